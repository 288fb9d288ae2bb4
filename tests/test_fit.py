"""Fitting: ascent, recovery of the truth, restarts, constraints, and calibration of what is fitted."""

import warnings
from collections.abc import Callable

import joblib
import numpy as np
import pytest
import torch
from gpytorch import constraints
from gpytorch import kernels as gpk
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ZeroMean
from gpytorch.priors import GammaPrior, NormalPrior
from torch import Tensor
from torch.testing import assert_close

from gpmoe.errors import JitterWarning, NotConvergedWarning
from gpmoe.inference import FitReport, fit, log_marginal_likelihood, log_prior
from gpmoe.inference.fit import Coordinates
from gpmoe.kernels import FeatureKernel
from gpmoe.models import ExactGP

Normal = Callable[..., Tensor]
Table = tuple[Tensor, Tensor]


def simulate(normal: Normal, n: int, *, noise: float = 0.1, lengthscale: float = 0.5) -> Table:
    """Draws from a Gaussian process with outputscale 2 on two inputs, of which the second does nothing."""
    X = 2 * normal(n, 2)
    kernel = gpk.RBFKernel().double()
    kernel.lengthscale = torch.tensor(lengthscale, dtype=torch.float64)
    with torch.no_grad():
        C = 2 * kernel(X[:, :1]).to_dense() + noise * torch.eye(n, dtype=torch.float64)
    return X, torch.linalg.cholesky(C) @ normal(n)


def total(gp: ExactGP) -> float:
    with torch.no_grad():
        return float(log_marginal_likelihood(gp) + log_prior(gp))


def slopes(gp: ExactGP) -> Tensor:
    """Gradient of the objective for the stored parameters."""
    gp.zero_grad()
    (log_marginal_likelihood(gp) + log_prior(gp)).backward()
    return torch.cat([p.grad.reshape(-1) for p in gp.parameters() if p.grad is not None])


def test_the_objective_rises_to_a_stationary_point_and_is_reported(table: Table) -> None:
    gp = ExactGP(*table)
    first = total(gp)
    report = fit(gp)
    trace = np.array([first, *report.objective_trace])
    assert (np.diff(trace) >= -1e-9).all()
    assert trace[-1] > first + 1
    assert total(gp) == pytest.approx(trace[-1], abs=1e-9)
    assert slopes(gp).abs().max() < 1e-2
    assert report.converged
    assert (report.iterations, report.starts) == (len(report.objective_trace), (trace[-1],))
    assert report.jitter == 0


def test_known_hyperparameters_are_recovered(normal: Normal) -> None:
    X, y = simulate(normal, 300)
    gp = ExactGP(X, y, kernel=gpk.ScaleKernel(gpk.RBFKernel(ard_num_dims=2)), mean=ZeroMean())
    fit(gp)
    relevant, idle = gp.covar_module.base_kernel.lengthscale.squeeze().tolist()
    assert relevant == pytest.approx(0.5, rel=0.15)
    assert idle > 5
    assert gp.likelihood.noise.item() == pytest.approx(0.1, rel=0.3)
    assert gp.covar_module.outputscale.item() == pytest.approx(2, rel=0.7)
    truth = ExactGP(X, y, kernel=gpk.ScaleKernel(gpk.RBFKernel(active_dims=(0,))), mean=ZeroMean(), noise=0.1)
    truth.covar_module.outputscale, truth.covar_module.base_kernel.lengthscale = 2.0, 0.5
    assert total(gp) > total(truth)


def test_the_optimum_equals_that_of_torch_on_the_dense_density(table: Table) -> None:
    gp, other = ExactGP(*table), ExactGP(*table)
    fit(gp)
    optimizer = torch.optim.LBFGS(other.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        C = other.covar_module(other.X).to_dense() + other.noise().diag()
        density = torch.distributions.MultivariateNormal(other.mean_module(other.X), C).log_prob(other.y)
        value = -(density + log_prior(other))
        value.backward()
        return value

    optimizer.step(loss)
    assert total(gp) == pytest.approx(total(other), abs=1e-4)


def test_priors_are_part_of_the_objective(table: Table) -> None:
    prior = NormalPrior(torch.tensor(0.2, dtype=torch.float64), torch.tensor(1e-2, dtype=torch.float64))
    gp = ExactGP(*table, kernel=gpk.MaternKernel(lengthscale_prior=prior))
    gp.likelihood.register_prior("noise_prior", GammaPrior(2.0, 5.0), "noise")
    wanted = prior.log_prob(gp.covar_module.lengthscale).sum() + GammaPrior(2.0, 5.0).log_prob(gp.likelihood.noise)
    assert_close(log_prior(gp), wanted.squeeze(), check_dtype=False, rtol=1e-6, atol=1e-6)
    report = fit(gp)
    assert gp.covar_module.lengthscale.item() == pytest.approx(0.2, abs=0.02)
    assert report.objective_trace[-1] == pytest.approx(total(gp), abs=1e-9)


def test_another_objective_is_maximised(table: Table) -> None:
    gp = ExactGP(*table)

    def leave_one_out_score(gp: ExactGP) -> Tensor:
        C = gp.covar_module(gp.X).to_dense() + gp.noise().diag()
        inverse = torch.linalg.inv(C)
        variance = 1 / inverse.diagonal()
        mean = gp.y - variance * (inverse @ (gp.y - gp.mean_module(gp.X)))
        return torch.distributions.Normal(mean, variance.sqrt()).log_prob(gp.y).sum()

    before = float(leave_one_out_score(gp).detach())
    fit(gp, leave_one_out_score)
    mean, variance = gp.leave_one_out()
    after = torch.distributions.Normal(mean, variance.sqrt()).log_prob(gp.y).sum()
    assert after > before + 1


@pytest.mark.parametrize("shift", [0.0, 1e3, -1e6])
def test_a_mean_far_from_zero_is_found(shift: float, table: Table) -> None:
    X, y = table
    reference = ExactGP(X, y)
    gp = ExactGP(X, y + shift)
    gp.mean_module.initialize(constant=shift)
    fit(reference)
    fit(gp)
    assert gp.mean_module.constant.item() - shift == pytest.approx(reference.mean_module.constant.item(), abs=0.05)
    assert total(gp) == pytest.approx(total(reference), abs=1e-2)


def test_rescaled_targets_give_rescaled_parameters(normal: Normal) -> None:
    X, y = simulate(normal, 60)
    fitted = []
    for scale in (1.0, 1e3):
        kernel = gpk.ScaleKernel(gpk.MaternKernel(ard_num_dims=2), outputscale_constraint=constraints.Positive())
        gp = ExactGP(X, scale * y, kernel=kernel, mean=ZeroMean())
        gp.covar_module.outputscale, gp.likelihood.noise = scale**2, 0.1 * scale**2
        fit(gp)
        fitted.append([gp.covar_module.outputscale.item() / scale**2, gp.likelihood.noise.item() / scale**2])
    assert fitted[1] == pytest.approx(fitted[0], rel=1e-2)


def restarted(table: Table, seed: int | None = 0, n_restarts: int = 3) -> tuple[FitReport, list[Tensor]]:
    gp = ExactGP(*table, kernel=gpk.ScaleKernel(gpk.RBFKernel(ard_num_dims=2)))
    report = fit(gp, n_restarts=n_restarts, seed=seed)
    return report, [parameter.detach().clone() for parameter in gp.parameters()]


def test_restarts_with_a_seed_repeat_bit_for_bit(table: Table) -> None:
    (one, parameters), (two, others) = restarted(table), restarted(table)
    assert one.starts == two.starts
    assert one.objective_trace == two.objective_trace
    assert all(torch.equal(p, q) for p, q in zip(parameters, others, strict=True))
    assert restarted(table, seed=1)[0].starts != one.starts


@pytest.mark.slow
@pytest.mark.parametrize("n", [60, 280])  # from 256 on, LAPACK takes as many threads as its process has
def test_restarts_in_other_processes_give_the_same_bits(n: int, normal: Normal) -> None:
    data = simulate(normal, n)
    one, parameters = restarted(data, n_restarts=1)
    with joblib.parallel_config(n_jobs=2):
        two, others = restarted(data, n_restarts=1)
    assert one.starts == two.starts
    assert all(torch.equal(p, q) for p, q in zip(parameters, others, strict=True))


def test_the_best_of_all_starts_is_taken_and_the_first_is_the_present_one(normal: Normal) -> None:
    X, y = simulate(normal, 40, lengthscale=0.3)
    alone = ExactGP(X, y, kernel=gpk.RBFKernel())
    alone.covar_module.lengthscale = 50.0  # where noise explains everything
    gp = ExactGP(X, y, kernel=gpk.RBFKernel())
    gp.load_state_dict(alone.state_dict())
    poor, report = fit(alone), fit(gp, n_restarts=4, seed=0)
    assert report.starts[0] == pytest.approx(poor.objective_trace[-1], abs=1e-9)
    assert len(report.starts) == 5
    assert total(gp) == pytest.approx(max(report.starts), abs=1e-9)
    assert report.objective_trace[-1] == max(report.starts)


def everything() -> ExactGP:
    """A model with parameters of all kinds of constraint."""
    body = torch.nn.Linear(2, 2)
    kernel = gpk.ScaleKernel(FeatureKernel(body, gpk.RQKernel(lengthscale_constraint=constraints.Interval(0.1, 9.0))))
    return ExactGP(torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64), kernel=kernel)


def test_coordinates_go_out_and_back_unchanged() -> None:
    gp = everything()
    before = [parameter.detach().clone() for parameter in gp.parameters()]
    coordinates = Coordinates(gp)
    x = coordinates.read()
    coordinates.write(x + 1)
    assert np.abs(coordinates.read() - x - 1).max() < 1e-12
    coordinates.write(x)
    for parameter, old in zip(gp.parameters(), before, strict=True):
        assert_close(parameter.detach(), old, rtol=1e-12, atol=1e-12)


def test_a_step_of_one_is_a_factor_of_e_above_the_lower_bound() -> None:
    likelihood = GaussianLikelihood(noise_constraint=constraints.GreaterThan(0.5)).double()
    likelihood.noise = torch.tensor(0.7, dtype=torch.float64)
    coordinates = Coordinates(likelihood)
    for step in (1.0, 30.0, -80.0):
        coordinates.write(coordinates.read() + step)
        wanted = 0.5 + 0.2 * np.exp({1.0: 1.0, 30.0: 31.0, -80.0: -49.0}[step])
        assert likelihood.noise.item() == pytest.approx(wanted, rel=1e-7)


def test_gradient_in_coordinates_equals_finite_differences(table: Table) -> None:
    gp = everything()
    gp.X, gp.y = table
    coordinates = Coordinates(gp)
    x, step = coordinates.read(), 1e-6
    slopes(gp)
    got = coordinates.gradient(x)

    def objective(x: np.ndarray) -> float:
        coordinates.write(x)
        return total(gp)

    wanted = [(objective(x + step * e) - objective(x - step * e)) / (2 * step) for e in np.eye(len(x))]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_an_interval_is_kept_and_its_end_is_reached(table: Table) -> None:
    kernel = gpk.MaternKernel(lengthscale_constraint=constraints.Interval(0.1, 0.5))
    gp = ExactGP(*table, kernel=kernel)
    fit(gp)
    free = ExactGP(*table, kernel=gpk.MaternKernel())
    fit(free)
    assert free.covar_module.lengthscale.item() > 0.6
    assert 0.49 < gp.covar_module.lengthscale.item() <= 0.5


def test_parameters_without_gradient_stay_as_they_are(table: Table) -> None:
    gp = ExactGP(*table)
    gp.covar_module.base_kernel.raw_lengthscale.requires_grad_(False)
    before = gp.covar_module.base_kernel.lengthscale.clone()
    noise = gp.likelihood.noise.item()
    fit(gp, n_restarts=1, seed=0)
    assert torch.equal(gp.covar_module.base_kernel.lengthscale, before)
    assert gp.likelihood.noise.item() != noise


def test_a_model_without_free_parameters_is_reported_as_it_stands(table: Table) -> None:
    gp = ExactGP(*table).requires_grad_(False)
    report = fit(gp)
    assert report.objective_trace == (total(gp),)
    assert (report.converged, report.reason, report.iterations) == (True, "no free parameters", 0)


def test_a_start_at_the_top_is_reported_with_its_value(table: Table) -> None:
    gp = ExactGP(*table)
    for _ in range(3):  # the second and third start where the one before ended
        report = fit(gp)
    assert report.objective_trace[-1] == pytest.approx(total(gp), abs=1e-9)


def test_stopping_early_warns_once_with_the_number_and_is_reported(table: Table) -> None:
    gp = ExactGP(*table)
    with pytest.warns(NotConvergedWarning, match="stopped after 1 iterations before it converged") as caught:
        report = fit(gp, max_iterations=1)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert not report.converged
    assert report.iterations == 1


def test_jitter_of_the_result_is_reported_and_warned_of_once(table: Table) -> None:
    X, y = torch.cat([table[0]] * 2), torch.cat([table[1]] * 2)
    gp = ExactGP(X, y, noise=GaussianLikelihood(noise_constraint=constraints.Positive()))
    gp.likelihood.noise = 1e-18
    gp.likelihood.requires_grad_(False)
    with pytest.warns(JitterWarning, match="needed a jitter of .*raise the noise's lower bound") as caught:
        report = fit(gp)
    assert len(caught) == 1
    assert report.jitter == gp.factor().jitter > 0


def test_repeated_rows_and_constant_inputs_are_fitted_without_jitter(table: Table) -> None:
    X, y = torch.cat([table[0]] * 2), torch.cat([table[1]] * 2)
    X = torch.cat([X, torch.ones(40, 1, dtype=torch.float64)], -1)
    report = fit(ExactGP(X, y))
    assert report.converged
    assert report.jitter == 0


@pytest.mark.parametrize("n", [1, 2])
def test_one_and_two_points_are_fitted(n: int, normal: Normal) -> None:
    gp = ExactGP(normal(n, 2), normal(n))
    before = total(gp)
    report = fit(gp)
    assert report.converged
    assert total(gp) >= before


def test_targets_that_do_not_vary_are_fitted(table: Table) -> None:
    gp = ExactGP(table[0], torch.full((20,), 3.0, dtype=torch.float64))
    fit(gp)
    posterior = gp.posterior(table[0][:4] + 0.1)
    assert_close(posterior.mean, torch.full((4, 1), 3.0, dtype=torch.float64), rtol=0, atol=0.01)


def test_float32_models_are_fitted_to_nearly_the_same_optimum(table: Table) -> None:
    double, single = ExactGP(*table), ExactGP(*(tensor.float() for tensor in table))
    fit(double)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)  # the line search may end in rounding errors
        fit(single)
    assert single.likelihood.noise.dtype == torch.float32
    assert total(single) == pytest.approx(total(double), abs=0.05)


def test_a_feature_map_in_front_is_fitted_with_the_kernel(normal: Normal) -> None:
    X = normal(60, 3)
    y = torch.tanh(2 * (X[:, 0] - X[:, 1])) + 0.05 * normal(60)
    body = torch.nn.Linear(3, 1).double()
    body.weight.data = torch.tensor([[0.5, 0.3, 0.4]], dtype=torch.float64)
    gp = ExactGP(X, y, kernel=gpk.ScaleKernel(FeatureKernel(body, gpk.RBFKernel())))
    fit(gp)
    direction = body.weight.detach().squeeze() / body.weight.detach().norm()
    wanted = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64) / 2**0.5
    assert abs(float(direction @ wanted)) > 0.999


def test_ninety_percent_intervals_of_fitted_models_cover_ninety_percent(normal: Normal) -> None:
    hits = []
    for _ in range(25):
        X, y = simulate(normal, 90)
        gp = ExactGP(X[:60], y[:60], kernel=gpk.ScaleKernel(gpk.RBFKernel(active_dims=(0,))), mean=ZeroMean())
        fit(gp)
        mean, variance = gp.marginals(X[60:])
        stddev = (variance + gp.new_noise().detach()).sqrt()
        hits.append(((y[60:] - mean).abs() < 1.6449 * stddev).double().mean())
    coverage = torch.stack(hits)
    error = coverage.std() / len(hits) ** 0.5  # hits within a data set go together
    assert abs(float(coverage.mean()) - 0.9) < 4 * float(error)
    assert error < 0.02


def test_intervals_at_the_true_parameters_cover_ninety_percent(normal: Normal) -> None:
    kernel = gpk.ScaleKernel(gpk.RBFKernel(active_dims=(0,))).double()
    kernel.outputscale, kernel.base_kernel.lengthscale = 2.0, 0.5
    coverage = []
    for _ in range(200):
        X, y = simulate(normal, 40)
        mean, variance = ExactGP(X[:30], y[:30], kernel=kernel, mean=ZeroMean(), noise=0.1).marginals(X[30:])
        coverage.append(((y[30:] - mean).abs() < 1.6449 * (variance + 0.1).sqrt()).double().mean())
    hits = torch.stack(coverage)
    assert abs(float(hits.mean()) - 0.9) < 4 * float(hits.std()) / 200**0.5
