"""The grid model against dense algebra, its fits, samples and predictions."""

import pickle
from collections.abc import Callable
from copy import deepcopy
from functools import reduce

import pytest
import torch
from gpytorch.kernels import IndexKernel, MaternKernel, RBFKernel, ScaleKernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from torch import Tensor

from gpmoe.errors import InputError, NonFiniteError, NotConvergedWarning, ShapeError, SolverWarning
from gpmoe.inference import fit, log_marginal_likelihood
from gpmoe.linalg.complement import Iterative
from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.kronecker_gp import KroneckerGP

METHODS = ["auto", "complement", "dense", "iterative"]
EXACTLY = Iterative(tolerance=1e-12, probes=4)


@pytest.fixture
def grid(normal: Callable[..., Tensor]) -> tuple[list[Tensor], Tensor]:
    """Two axes, of one and two columns, and targets with missing cells."""
    axes = [normal(6, 1), normal(5, 2)]
    Y = axes[0].sin() + axes[1].sum(-1) + 0.1 * normal(6, 5)
    Y[normal(6, 5) > 0.7] = float("nan")
    return axes, Y


def product_kernel() -> tuple[ScaleKernel, MaternKernel]:
    first, second = ScaleKernel(RBFKernel(active_dims=[0])), MaternKernel(nu=1.5, ard_num_dims=2, active_dims=[1, 2])
    first.outputscale = 1.3
    second.lengthscale = torch.tensor([[0.7, 1.9]])
    return first.double(), second.double()


def model(axes: list[Tensor], Y: Tensor, method: str = "auto") -> KroneckerGP:
    first, second = product_kernel()
    first.base_kernel.active_dims = second.active_dims = None
    return KroneckerGP(axes, Y, kernels=[first, second], noise=0.1, method=method, iterative=EXACTLY)


def dense_model(gp: KroneckerGP) -> ExactGP:
    first, second = product_kernel()
    return ExactGP(gp.X, gp.y, kernel=first * second, noise=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_the_posterior_is_that_of_the_exact_gp(
    grid: tuple[list[Tensor], Tensor], normal: Callable[..., Tensor], method: str
) -> None:
    gp, X = model(*grid, method), normal(4, 3)
    expected = dense_model(gp).posterior(X)
    found = gp.posterior(X)
    assert torch.allclose(found.mean, expected.mean, atol=1e-9)
    assert torch.allclose(found.distribution.covariance_matrix, expected.distribution.covariance_matrix, atol=1e-9)
    mean, variance = gp.marginals(X)
    assert torch.allclose(mean, expected.mean.squeeze(-1), atol=1e-9)
    assert torch.allclose(variance, expected.variance.squeeze(-1), atol=1e-9)


@pytest.mark.parametrize("method", ["auto", "complement", "dense"])
def test_likelihood_and_gradient_are_those_of_the_exact_gp(grid: tuple[list[Tensor], Tensor], method: str) -> None:
    gp = model(*grid, method)
    exact = dense_model(gp)
    for each in (gp, exact):
        log_marginal_likelihood(each).backward()
    assert torch.allclose(log_marginal_likelihood(gp), log_marginal_likelihood(exact), atol=1e-10)
    first, second = exact.covar_module.kernels
    assert torch.allclose(gp.kernels[0].raw_outputscale.grad, first.raw_outputscale.grad, atol=1e-9)
    assert torch.allclose(gp.kernels[0].base_kernel.raw_lengthscale.grad, first.base_kernel.raw_lengthscale.grad)
    assert torch.allclose(gp.kernels[1].raw_lengthscale.grad, second.raw_lengthscale.grad, atol=1e-9)
    assert torch.allclose(gp.mean_module.raw_constant.grad, exact.mean_module.raw_constant.grad, atol=1e-9)


@pytest.mark.parametrize("complete", [True, False])
def test_marginals_on_a_grid_are_those_at_its_points(
    grid: tuple[list[Tensor], Tensor], normal: Callable[..., Tensor], complete: bool
) -> None:
    axes, Y = grid
    gp = model(axes, Y.nan_to_num(0.3) if complete else Y)
    new = [normal(3, 1), normal(2, 2)]
    mean, variance = gp.grid_marginals(new)
    cells = torch.ones(3, 2, dtype=torch.bool).nonzero().T
    expected = gp.marginals(gp.inputs_of(new, cells))
    assert torch.allclose(mean.flatten(), expected[0], atol=1e-10)
    assert torch.allclose(variance.flatten(), expected[1], atol=1e-10)
    assert gp.grid_marginals()[0].shape == Y.shape


def test_samples_on_a_grid_have_the_posterior_moments(
    grid: tuple[list[Tensor], Tensor], normal: Callable[..., Tensor], generator: torch.Generator
) -> None:
    gp, new, n = model(*grid), [normal(2, 1), normal(2, 2)], 20_000
    samples = gp.sample_grid(n, new, generator).flatten(1)
    cells = torch.ones(2, 2, dtype=torch.bool).nonzero().T
    mean, covariance = gp.latent(gp.inputs_of(new, cells))
    spread = covariance.diagonal().sqrt()
    assert ((samples.mean(0) - mean).abs() < 4 * spread / n**0.5).all()
    error = 4 * torch.outer(spread, spread) * (2 / n) ** 0.5
    assert ((samples.T.cov() - covariance).abs() < error).all()


def test_samples_at_the_data_go_through_them_when_noise_vanishes(
    grid: tuple[list[Tensor], Tensor], generator: torch.Generator
) -> None:
    axes, Y = grid
    gp = KroneckerGP(axes, Y, noise=1e-8)
    assert (gp.sample_grid(5, generator=generator)[:, gp.observed] - gp.y).abs().max() < 1e-2


@pytest.mark.parametrize("method", METHODS)
def test_the_posterior_is_differentiable_in_its_inputs(grid: tuple[list[Tensor], Tensor], method: str) -> None:
    gp = model(*grid, method)
    X = gp.X[:2].clone().add_(0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gp.latent(x)[0], X)
    assert torch.autograd.gradcheck(lambda x: gp.latent(x)[1], X)


def test_batches_of_new_points_and_further_observations_work_as_botorch_asks(
    grid: tuple[list[Tensor], Tensor], normal: Callable[..., Tensor]
) -> None:
    gp, X = model(*grid), normal(2, 3, 3)
    posterior = gp.posterior(X, observation_noise=True)
    assert posterior.mean.shape == (2, 3, 1)
    assert torch.allclose(posterior.variance[1], gp.posterior(X[1]).variance + 0.1, atol=1e-9)
    later = gp.condition_on_observations(X[0], normal(3, 1))
    expected = dense_model(gp).condition_on_observations(X[0], later.Y.unsqueeze(-1)).posterior(X[1])
    assert torch.allclose(later.posterior(X[1]).mean, expected.mean, atol=1e-9)


def test_a_fit_reaches_the_optimum_of_the_exact_gp(grid: tuple[list[Tensor], Tensor]) -> None:
    axes, Y = grid
    gp = KroneckerGP(axes, Y, kernels=model(axes, Y).kernels)
    report = fit(gp)
    first, second = product_kernel()
    other = fit(ExactGP(gp.X, gp.y, kernel=first * second))
    assert report.converged
    assert report.objective_trace[-1] == pytest.approx(other.objective_trace[-1], abs=1e-3)
    assert report.solver.startswith("complement")


def test_a_task_axis_with_an_index_kernel_is_coregionalisation(normal: Callable[..., Tensor]) -> None:
    tasks, X = torch.arange(3, dtype=torch.float64).unsqueeze(-1), normal(7, 2)
    kernels = [IndexKernel(num_tasks=3, rank=2), MaternKernel(nu=2.5)]
    kernels[0].covar_factor.data = normal(3, 2)
    kernels[0].raw_var.data = normal(3)
    gp = KroneckerGP([tasks, X], normal(3, 7), kernels=kernels, noise=0.2)
    B, K = kernels[0].covar_matrix.to_dense(), kernels[1](X).to_dense()
    C = torch.kron(B, K) + 0.2 * torch.eye(21, dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(gp.mean_module(gp.X), C)
    value = gp.log_marginal_likelihood()
    assert torch.allclose(value, law.log_prob(gp.y), atol=1e-10)
    expected = torch.autograd.grad(law.log_prob(gp.y), kernels[0].covar_factor)[0]
    assert torch.allclose(torch.autograd.grad(value, kernels[0].covar_factor)[0], expected, atol=1e-9)
    assert str(gp.report) == "eigenbasis"
    assert fit(gp, max_iterations=200).solver.startswith("eigenbasis")


def test_the_iterative_way_reports_residual_and_standard_error(grid: tuple[list[Tensor], Tensor]) -> None:
    axes, Y = grid
    gp = KroneckerGP(axes, Y, method="iterative", iterative=Iterative(tolerance=1e-6))
    gp.log_marginal_likelihood()
    assert 0 < gp.report.residual <= 1e-6
    assert gp.report.standard_error > 0
    assert "standard error" in str(gp.report)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_of_single_precision_stays_in_it(grid: tuple[list[Tensor], Tensor], method: str) -> None:
    axes, Y = grid
    gp = KroneckerGP([axis.float() for axis in axes], Y.float(), method=method)
    value = gp.log_marginal_likelihood()
    value.backward()
    assert value.dtype == gp.posterior(gp.X[:2]).mean.dtype == torch.float32
    double = KroneckerGP(axes, Y, method=method)
    assert value.item() == pytest.approx(double.log_marginal_likelihood().item(), rel=1e-3)


def test_copies_and_pickles_predict_alike(grid: tuple[list[Tensor], Tensor]) -> None:
    gp = model(*grid)
    expected = gp.posterior(gp.X[:3]).mean
    for other in (deepcopy(gp), pickle.loads(pickle.dumps(gp))):
        assert torch.equal(other.posterior(gp.X[:3]).mean, expected)


def test_a_changed_parameter_changes_predictions(grid: tuple[list[Tensor], Tensor]) -> None:
    gp = model(*grid)
    before = gp.posterior(gp.X[:3]).mean
    gp.kernels[1].lengthscale = 0.2
    assert not torch.allclose(gp.posterior(gp.X[:3]).mean, before)


def test_one_cell_and_one_axis_are_grids_too(normal: Callable[..., Tensor]) -> None:
    X = normal(1, 2)
    assert KroneckerGP([X], normal(1), noise=0.1).posterior(X).mean.shape == (1, 1)
    X, y = normal(9, 2), normal(9)
    gp, exact = KroneckerGP([X], y, noise=0.1), ExactGP(X, y, noise=0.1)
    assert torch.allclose(gp.posterior(X).mean, exact.posterior(X).mean, atol=1e-9)


def test_data_that_do_not_fit_are_refused(grid: tuple[list[Tensor], Tensor]) -> None:
    axes, Y = grid
    with pytest.raises(ShapeError, match=r"\(6, 5\); got \(5, 6\)"):
        KroneckerGP(axes, Y.T)
    with pytest.raises(ShapeError, match="no observed cell"):
        KroneckerGP(axes, torch.full_like(Y, float("nan")))
    with pytest.raises(NonFiniteError, match="NaN where a cell is missing"):
        KroneckerGP(axes, Y.nan_to_num(float("inf")))
    with pytest.raises(InputError, match="2 axes; got 1"):
        KroneckerGP(axes, Y, kernels=[RBFKernel()])
    with pytest.raises(InputError, match="one variance for all cells"):
        KroneckerGP(axes, Y, noise=FixedNoiseGaussianLikelihood(torch.ones(3)))
    with pytest.raises(InputError, match="must be positive"):
        KroneckerGP(axes, Y, noise=-1.0)
    with pytest.raises(ShapeError, match="2 parts"):
        model(axes, Y).grid_marginals(axes[:1])


def test_dense_kronecker_order_is_that_of_the_cells(grid: tuple[list[Tensor], Tensor]) -> None:
    axes, Y = grid
    gp = model(axes, Y.nan_to_num(0.0))
    K = reduce(torch.kron, gp.factors())
    exact = dense_model(gp).covar_module(gp.X).to_dense()
    assert torch.allclose(K, exact, atol=1e-12)


def test_the_default_kernels_fit_without_complaint(grid: tuple[list[Tensor], Tensor]) -> None:
    gp = KroneckerGP(*grid)
    assert fit(gp).converged
    assert [type(kernel) for kernel in gp.kernels] == [ScaleKernel, MaternKernel]


def test_auto_says_that_it_solves_iteratively(
    grid: tuple[list[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpmoe.linalg.latent_kronecker._MOST_FLOPS", 0.0)
    with pytest.warns(SolverWarning, match="solved iteratively, to a relative residual of 1e-12"):
        gp = model(*grid)
    gp.marginals(gp.X[:2])  # nothing more is said


def test_a_solve_that_stops_early_is_told_once_with_its_residual(grid: tuple[list[Tensor], Tensor]) -> None:
    axes, Y = grid
    gp = KroneckerGP(axes, Y, noise=1e-4, method="iterative", iterative=Iterative(tolerance=0.0))
    with pytest.warns(NotConvergedWarning, match="relative residual of") as caught:
        gp.marginals(gp.X[:2])
    assert len(caught) == 1


def test_moving_the_model_moves_its_grid(grid: tuple[list[Tensor], Tensor]) -> None:
    axes, Y = grid
    gp = model(axes, Y).to("meta")
    assert gp.grid.observed.device.type == "meta"
    single = model(axes, Y)
    single.marginals(single.X[:2])
    moved = single.float()
    assert moved.marginals(moved.X[:2])[0].dtype == torch.float32
