"""The iterative GP against the exact one, through the model, `fit` and the estimator."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from torch import Tensor

from gpmoe import GPRegressor, load
from gpmoe.errors import InputError, MemoryLimitError, NotConvergedWarning, ShapeError, SolverWarning
from gpmoe.estimators import memory
from gpmoe.inference.fit import fit
from gpmoe.inference.marginal_likelihood import log_marginal_likelihood
from gpmoe.inference.solver import (
    AlternatingProjections,
    Cholesky,
    ConjugateGradients,
    IterativeSolver,
    Schedule,
    StochasticDualDescent,
)
from gpmoe.inference.solver_description import build_solver, describe_solver
from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.iterative_gp import IterativeGP

Data = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def data(normal: Callable[..., Tensor]) -> Data:
    """150 noisy values of a smooth function of two inputs, and 40 new inputs, some of them among the old."""
    X = 2 * normal(150, 2)
    y = X[:, 0].sin() + 0.3 * X[:, 1] + 0.2 * normal(150)
    return X, y, torch.cat([3 * normal(36, 2), X[:4]])


def kernel() -> ScaleKernel:
    return ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=2)).double()


def pair(data: Data, solver: IterativeSolver, noise: float = 0.05) -> tuple[ExactGP, IterativeGP]:
    X, y, _ = data
    return ExactGP(X, y, kernel=kernel(), noise=noise), IterativeGP(X, y, kernel=kernel(), noise=noise, solver=solver)


SOLVERS = [
    ConjugateGradients(),
    ConjugateGradients(preconditioner_rank=0, mixed_precision=False),
    AlternatingProjections(tolerance=1e-6, block_size=75),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=["adapted", "plain", "projections"])
def test_means_and_deviations_equal_those_of_the_exact_model(data: Data, solver: IterativeSolver) -> None:
    exact, iterative = pair(data, solver)
    (mean, variance), (other_mean, other_variance) = exact.marginals(data[2]), iterative.marginals(data[2])
    torch.testing.assert_close(other_mean, mean, atol=1e-4, rtol=0)
    ratio = (other_variance / variance).sqrt()
    assert float(ratio.min()) > 1 - 1e-6  # never too small
    assert float(ratio.max()) < 1.005


def test_dual_descent_predicts_nearly_as_the_exact_model(data: Data) -> None:
    exact, iterative = pair(data, StochasticDualDescent(tolerance=1e-2, batch_size=50), noise=0.5)
    mean, other = exact.marginals(data[2])[0], iterative.marginals(data[2])[0]
    torch.testing.assert_close(other, mean, atol=0.05, rtol=0)


def test_the_joint_posterior_and_its_gradient_equal_the_exact_ones(data: Data) -> None:
    exact, iterative = pair(data, ConjugateGradients(tolerance=1e-8))
    results = []
    for gp in (exact, iterative):
        X_new = data[2][:36].reshape(6, 6, 2).clone().requires_grad_()
        posterior = gp.posterior(X_new)
        (gradient,) = torch.autograd.grad(posterior.mean.sum() + posterior.variance.sum(), X_new)
        results.append((posterior.mean.detach(), posterior.distribution.covariance_matrix.detach(), gradient))
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-2)


def test_weights_and_noise_that_differ_are_respected(data: Data) -> None:
    X, y, X_new = data
    weights, noise = torch.linspace(0.5, 3, 150).double(), torch.linspace(0.02, 0.3, 150).double()
    exact = ExactGP(X, y, kernel=kernel(), noise=noise, weights=weights)
    iterative = IterativeGP(X, y, kernel=kernel(), noise=noise, weights=weights, solver=ConjugateGradients())
    torch.testing.assert_close(iterative.marginals(X_new)[0], exact.marginals(X_new)[0], atol=1e-4, rtol=0)


def test_the_likelihood_is_within_its_standard_error(data: Data) -> None:
    exact, iterative = pair(data, ConjugateGradients())
    estimate = iterative.estimate_log_marginal_likelihood()
    value = float(exact.log_marginal_likelihood().detach())
    assert abs(estimate.value - value) < 4 * estimate.standard_error + 1e-3
    assert float(log_marginal_likelihood(iterative).detach()) == pytest.approx(estimate.value)


def test_paths_have_the_moments_of_the_posterior(data: Data) -> None:
    exact, iterative = pair(data, ConjugateGradients())
    X_new = data[2][:10]
    paths = iterative.draw_paths(2000, features=64, generator=torch.Generator().manual_seed(0))
    samples = paths(X_new)
    mean, covariance = exact.latent(X_new)
    error = samples.std(0) / 2000**0.5
    assert bool(((samples.mean(0) - mean).abs() < 4.5 * error).all())
    pairs = (samples - mean)[:, :, None] * (samples - mean)[:, None]
    assert bool(((pairs.mean(0) - covariance).abs() < 4.5 * pairs.std(0) / 2000**0.5).all())
    torch.testing.assert_close(paths(X_new[:1]), samples[:, :1], atol=1e-9, rtol=0)


def test_new_parameters_and_new_data_are_solved_anew(data: Data) -> None:
    exact, iterative = pair(data, ConjugateGradients())
    iterative.marginals(data[2])
    for gp in (exact, iterative):
        gp.covar_module.base_kernel.lengthscale = 2.0
    torch.testing.assert_close(iterative.marginals(data[2])[0], exact.marginals(data[2])[0], atol=1e-4, rtol=0)
    for gp in (exact, iterative):
        gp.set_data(data[0] + 0.5, -data[1])
    torch.testing.assert_close(iterative.marginals(data[2])[0], exact.marginals(data[2])[0], atol=1e-4, rtol=0)


def test_one_row_and_no_new_points(data: Data) -> None:
    X, y, X_new = data
    exact = ExactGP(X[:1], y[:1], kernel=kernel(), noise=0.1)
    iterative = IterativeGP(X[:1], y[:1], kernel=kernel(), noise=0.1, solver=ConjugateGradients())
    for ours, theirs in zip(iterative.marginals(X_new), exact.marginals(X_new), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0.01)
    assert iterative.marginals(X_new[:0])[0].shape == (0,)


def test_batches_are_refused(data: Data) -> None:
    with pytest.raises(ShapeError, match="batch"):
        IterativeGP(data[0].expand(2, 150, 2), data[1].expand(2, 150), solver=ConjugateGradients())


def test_non_convergence_warns_once_with_the_residual(data: Data) -> None:
    _, iterative = pair(data, ConjugateGradients(preconditioner_rank=0, max_iterations=2))
    with pytest.warns(NotConvergedWarning, match="true relative residual") as caught:
        iterative.marginals(data[2])
    assert len(caught) == 1


def test_copies_and_pickles_predict_alike(data: Data) -> None:
    _, iterative = pair(data, ConjugateGradients())
    before = iterative.marginals(data[2])
    after = pickle.loads(pickle.dumps(iterative)).marginals(data[2])
    assert all(bool((a == b).all()) for a, b in zip(before, after, strict=True))
    assert "ConjugateGradients" in repr(iterative)


def test_a_fit_comes_near_the_exact_optimum_and_says_how(data: Data) -> None:
    X, y, _ = data
    exact = ExactGP(X, y, kernel=kernel())
    best = fit(exact).objective_trace[-1]
    solver = ConjugateGradients(schedule=Schedule(subset_rows=60))
    iterative = IterativeGP(X, y, kernel=kernel(), solver=solver)
    report = fit(iterative)
    assert "L-BFGS on 60 of 150 rows" in report.solver
    assert "15 pathwise steps" in report.solver
    assert report.converged
    for target, source in zip(exact.parameters(), iterative.parameters(), strict=True):
        target.data = source.data
    assert float(exact.log_marginal_likelihood().detach()) > best - 3.0


def test_an_exact_model_can_be_fitted_iteratively_too(data: Data) -> None:
    X, y, _ = data
    gps = [ExactGP(X, y, kernel=kernel()), IterativeGP(X, y, kernel=kernel(), solver=ConjugateGradients())]
    for gp in gps:
        fit(gp, solver=ConjugateGradients(schedule=Schedule(subset_rows=60, steps=3)))
    for a, b in zip(gps[0].parameters(), gps[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_what_cannot_be_fitted_is_refused(data: Data) -> None:
    exact, iterative = pair(data, ConjugateGradients())
    with pytest.raises(InputError, match="IterativeGP can't be fitted by Cholesky"):
        fit(iterative, solver=Cholesky())
    with pytest.raises(InputError, match="maximises"):
        fit(exact, lambda gp: gp.log_marginal_likelihood(), solver=ConjugateGradients())


@pytest.mark.parametrize("solver", [None, "auto", Cholesky(), *SOLVERS, StochasticDualDescent()], ids=str)
def test_solvers_survive_their_description(solver: object) -> None:
    assert build_solver(describe_solver(solver)) == solver


def test_descriptions_of_older_files_are_understood() -> None:
    assert build_solver(True) == Cholesky()
    assert build_solver(False) is None
    with pytest.raises(InputError, match="to be saved"):
        describe_solver(object())


def test_the_estimator_predicts_and_saves_as_with_cholesky(data: Data, tmp_path: Path) -> None:
    X, y, X_new = (tensor.numpy() for tensor in data)
    solver = ConjugateGradients(schedule=Schedule(subset_rows=1000))  # all rows: the same hyperparameters
    exact, iterative = (GPRegressor(RBFKernel(), solver=s).fit(X, y) for s in (None, solver))
    for ours, theirs in zip(
        iterative.predict(X_new, return_std=True), exact.predict(X_new, return_std=True), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0.005, atol=1e-4)
    assert "ConjugateGradients" in iterative.report_.solver
    assert "true residual" in iterative.report_.solver
    assert iterative.sample_y(X_new, 3).shape == (40, 3)
    with pytest.raises(InputError, match="Cholesky"):
        iterative.leave_one_out()
    iterative.save(tmp_path / "model")
    restored = load(tmp_path / "model")
    assert restored.solver == solver
    np.testing.assert_array_equal(restored.predict(X_new), iterative.predict(X_new))


def test_auto_keeps_cholesky_where_it_fits_and_warns_where_it_does_not(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y, _ = (tensor.numpy() for tensor in data)
    assert "Cholesky" in GPRegressor(solver="auto").fit(X, y).report_.solver
    monkeypatch.setattr(memory, "available_bytes", lambda: 4000)
    monkeypatch.setattr(memory, "_WORKSPACE", 8)
    with pytest.warns(SolverWarning, match="ConjugateGradients"):
        model = GPRegressor(solver="auto").fit(X, y)
    assert model.report_.solver.startswith("ConjugateGradients")
    with pytest.raises(InputError, match="auto"):
        GPRegressor(solver="fastest").fit(X, y)


def test_the_iterative_solver_that_auto_takes_is_planned_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 2 * 10**9)
    with pytest.warns(SolverWarning, match="solving iteratively"):
        solver = memory.solver_for(60_000, "auto", stacklevel=1)
    assert isinstance(solver, ConjugateGradients)
    assert 2 * solver.memory + 60_000 * memory._WORKSPACE < 2e9
    with pytest.raises(MemoryLimitError, match=r"at least 3\.3 GB"):
        memory.solver_for(200_000, "auto", stacklevel=1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"steps": 0}, "`steps` must be at least 1; got 0"),
        ({"tolerance": 0.0}, "`tolerance` must be positive; got 0.0"),
    ],
)
def test_a_schedule_that_fits_nothing_is_refused(options, text: str) -> None:
    with pytest.raises(InputError, match=text):
        Schedule(**options)
