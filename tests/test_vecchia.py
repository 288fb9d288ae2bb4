"""Max-min order, previous neighbours and the Vecchia approximation against brute force and the exact process."""

import pickle
from collections.abc import Callable, Iterator
from copy import deepcopy

import numpy as np
import pytest
import torch
from botorch.acquisition.analytic import LogExpectedImprovement
from botorch.optim import optimize_acqf
from gpytorch import kernels as gpk
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from gpytorch.means import LinearMean
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from gpmoe.errors import DifferentiationError, DtypeError, InputError, NonFiniteError, ShapeError
from gpmoe.inference import fit, log_marginal_likelihood
from gpmoe.linalg.factorisation import Workspace
from gpmoe.linalg.neighbours import maximin_order, nearest_rows, previous_neighbours
from gpmoe.linalg.stationary import dense_covariance
from gpmoe.linalg.threads import at_most_threads
from gpmoe.linalg.vecchia import vecchia_log_likelihood
from gpmoe.models import ExactGP
from gpmoe.models.vecchia_gp import VecchiaGP

Normal = Callable[..., Tensor]
Array = NDArray[np.float64]

KERNELS: dict[str, Callable[[], Kernel]] = {
    "matern": lambda: gpk.ScaleKernel(gpk.MaternKernel(nu=1.5, ard_num_dims=2)),
    "sum and product": lambda: gpk.ScaleKernel(gpk.RBFKernel(active_dims=(0,)) + gpk.RQKernel() * gpk.RBFKernel()),
    "periodic": lambda: gpk.ScaleKernel(gpk.PeriodicKernel() * gpk.MaternKernel(nu=2.5)),
}


@pytest.fixture(params=["compiled", "blocked"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each of the two implementations; on one thread, since torch's wait for each other."""
    with pytest.MonkeyPatch.context() as patch, at_most_threads(1):
        if request.param == "blocked":
            patch.setattr("gpmoe.linalg.vecchia.stationary_terms", lambda *arguments: None)
        yield request.param


def matching(gp: VecchiaGP) -> ExactGP:
    """The exact model of the same parts."""
    return ExactGP(gp.X, gp.y, kernel=gp.covar_module, mean=gp.mean_module, noise=gp.likelihood)


def model(normal: Normal, n: int = 40, *, n_neighbours: int = 100, kernel: str = "matern") -> VecchiaGP:
    noise = FixedNoiseGaussianLikelihood(torch.linspace(0.05, 0.2, n).double())
    X = normal(n, 2)
    return VecchiaGP(X, normal(n), kernel=KERNELS[kernel](), mean=LinearMean(2), noise=noise, n_neighbours=n_neighbours)


# Order and neighbours


def naive_maximin(Z: Array) -> list[int]:
    """Farthest point first, by definition."""
    order = [int(((Z - Z.mean(0)) ** 2).sum(1).argmin())]
    distance = ((Z - Z[order[0]]) ** 2).sum(1)
    left = [i for i in range(len(Z)) if i != order[0]]
    while left:
        order.append(max(left, key=lambda i: (distance[i], -i)))
        left.remove(order[-1])
        distance = np.minimum(distance, ((Z - Z[order[-1]]) ** 2).sum(1))
    return order


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_maximin_order_is_that_of_brute_force(d: int) -> None:
    Z = np.random.default_rng(d).standard_normal((300, d))
    Z[50:60] = Z[40:50]
    Z[100:] **= 3
    assert maximin_order(Z).tolist() == naive_maximin(Z)


@pytest.mark.parametrize("Z", [np.zeros((0, 2)), np.zeros((1, 2)), np.zeros((5, 2)), np.arange(6.0)[:, None] * 1e-9])
def test_maximin_order_of_few_or_equal_points_is_a_permutation(Z: Array) -> None:
    assert sorted(maximin_order(Z)) == list(range(len(Z)))


@pytest.mark.parametrize(("n", "count"), [(500, 7), (200, 30), (5, 30), (2, 1), (1, 3), (0, 3)])
def test_previous_neighbours_are_those_of_brute_force(n: int, count: int) -> None:
    Z = np.random.default_rng(n).standard_normal((n, 2))
    Z[n // 2 : n // 2 + n // 10] = Z[: n // 10]
    found = previous_neighbours(Z, count)
    assert found.shape == (n, max(0, min(count, n - 1)))
    for i in range(n):
        near = found[i][found[i] >= 0]
        distances = ((Z[i] - Z[:i]) ** 2).sum(1)
        assert len(set(near)) == len(near) == min(count, i)
        np.testing.assert_allclose(distances[near], np.sort(distances)[: len(near)])


# The likelihood


@pytest.mark.parametrize("kernel", KERNELS)
def test_with_all_previous_rows_the_likelihood_and_gradient_are_exact(kernel: str, path: str, normal: Normal) -> None:
    gp = model(normal, kernel=kernel)
    exact = matching(gp)
    got, wanted = gp.log_marginal_likelihood(), log_marginal_likelihood(exact)
    assert_close(got, wanted, rtol=0, atol=1e-8)
    parameters = list(gp.parameters())
    for one, other in zip(torch.autograd.grad(got, parameters), torch.autograd.grad(wanted, parameters), strict=True):
        assert_close(one, other, rtol=1e-8, atol=1e-8)


def naive(kernel: Kernel, X: Tensor, residual: Tensor, noise: Tensor, neighbours: NDArray[np.int32]) -> Tensor:
    """The sum of conditional log densities, one row at a time."""
    C = dense_covariance(kernel, X, X) + noise.diag()
    total = X.new_zeros(())
    for i, row in enumerate(neighbours):
        near = torch.from_numpy(row[row >= 0]).long()
        weights = torch.linalg.solve(C[near][:, near], C[near, i])
        variance = C[i, i] - weights @ C[near, i]
        total = total + torch.distributions.Normal(weights @ residual[near], variance.sqrt()).log_prob(residual[i])
    return total


@pytest.mark.parametrize("kernel", KERNELS)
def test_with_few_neighbours_it_is_the_sum_of_conditional_densities(kernel: str, path: str, normal: Normal) -> None:
    k, X = KERNELS[kernel]().double(), normal(25, 2)
    residual, noise = normal(25).requires_grad_(), normal(25).exp().requires_grad_()
    neighbours = previous_neighbours(X.numpy(), 4)
    X = X.requires_grad_()
    got = vecchia_log_likelihood(k, X, residual, noise, neighbours, workspace=Workspace())
    wanted = naive(k, X, residual, noise, neighbours)
    assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    inputs = [X, residual, noise, *k.parameters()]
    for one, other in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(wanted, inputs), strict=True):
        assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_pass_gradcheck(kernel: str, path: str, normal: Normal) -> None:
    k, X = KERNELS[kernel]().double(), normal(12, 2)
    neighbours = previous_neighbours(X.numpy(), 4)
    names = [name for name, _ in k.named_parameters()]

    def value(X: Tensor, residual: Tensor, noise: Tensor, *parameters: Tensor) -> Tensor:
        for name, parameter in zip(names, parameters, strict=True):
            *parts, last = name.split(".")
            place = k.get_submodule(".".join(parts))
            place._parameters.pop(last, None)
            setattr(place, last, parameter)
        return vecchia_log_likelihood(k, X, residual, noise, neighbours, workspace=Workspace())

    inputs = [X, normal(12), normal(12).exp(), *(p.detach().clone() for p in k.parameters())]
    assert gradcheck(value, [tensor.requires_grad_() for tensor in inputs])


def test_results_do_not_depend_on_the_number_of_threads(normal: Normal) -> None:
    gp, before, found = model(normal, 400, n_neighbours=12), torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        value = gp.log_marginal_likelihood()
        found.append([value, *torch.autograd.grad(value, list(gp.parameters())), *gp.marginals(gp.X[:50])])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_fewer_rows_than_neighbours_are_exact(n: int, path: str, normal: Normal) -> None:
    gp, X_new = model(normal, n, n_neighbours=30), normal(3, 2)
    assert_close(gp.log_marginal_likelihood(), log_marginal_likelihood(matching(gp)), rtol=1e-10, atol=1e-10)
    for one, other in zip(gp.marginals(X_new), matching(gp).marginals(X_new), strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_repeated_rows_are_solved_as_the_exact_model_does(path: str, normal: Normal) -> None:
    X, y = normal(15, 2).repeat(2, 1), normal(30)
    gp = VecchiaGP(X, y, noise=0.1, n_neighbours=30)
    assert_close(gp.log_marginal_likelihood(), log_marginal_likelihood(matching(gp)), rtol=1e-9, atol=1e-9)
    assert gp.jitter_needed() == 0


def test_repeated_rows_with_hardly_any_noise_need_jitter_that_is_told(path: str, normal: Normal) -> None:
    X = normal(10, 2)
    gp = VecchiaGP(X.repeat(2, 1), X.sum(-1).repeat(2), noise=1e-30, n_neighbours=8)
    value = gp.log_marginal_likelihood()
    value.backward()
    assert 0 < gp.jitter_needed() <= 1e-6
    assert bool(value.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in gp.parameters() if p.grad is not None)
    mean, variance = gp.marginals(X)
    assert_close(mean, X.sum(-1), rtol=0, atol=1e-3)
    assert bool((variance > 0).all())


def test_differentiating_twice_is_refused(path: str, normal: Normal) -> None:
    gp = model(normal)
    with pytest.raises(DifferentiationError, match="once"):
        torch.autograd.grad(gp.log_marginal_likelihood(), list(gp.parameters()), create_graph=True)


def test_float32_stays_float32_and_close(normal: Normal) -> None:
    X, y = normal(50, 2), normal(50)
    gp, single = VecchiaGP(X, y, noise=0.1), VecchiaGP(X.float(), y.float(), noise=0.1)
    with at_most_threads(1):
        value = single.log_marginal_likelihood()
        marginals = single.marginals(X.float())
    assert value.dtype == torch.float32
    assert_close(value.double(), gp.log_marginal_likelihood(), rtol=1e-4, atol=1e-3)
    for one, other in zip(marginals, gp.marginals(X), strict=True):
        assert_close(one.double(), other, rtol=1e-3, atol=1e-3)


# Predictions


@pytest.mark.parametrize("kernel", KERNELS)
def test_with_all_rows_predictions_are_exact(kernel: str, path: str, normal: Normal) -> None:
    gp, X_new = model(normal, kernel=kernel), normal(6, 2)
    exact = matching(gp)
    pairs = (*zip(gp.marginals(X_new), exact.marginals(X_new), strict=True),)
    for one, other in (*pairs, *zip(gp.latent(X_new), exact.latent(X_new), strict=True)):
        assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_the_joint_posterior_of_one_point_is_its_marginal(path: str, normal: Normal) -> None:
    gp, X_new = model(normal, 200, n_neighbours=9), normal(7, 2)
    mean, covariance = gp.latent(X_new.unsqueeze(-2))
    wanted_mean, wanted_variance = gp.marginals(X_new)
    assert_close(mean.squeeze(-1), wanted_mean, rtol=1e-9, atol=1e-10)
    assert_close(covariance[:, 0, 0], wanted_variance, rtol=1e-9, atol=1e-10)


def test_the_joint_posterior_is_that_given_all_neighbours_together(normal: Normal) -> None:
    gp, X_new = model(normal, 200, n_neighbours=5), normal(2, 3, 2)
    mean, covariance = gp.latent(X_new)
    for b in range(2):
        near = np.unique(nearest_rows(*gp._scaled(X_new[b]), 5))
        noise = gp.noise()[torch.from_numpy(near)]
        local = ExactGP(gp.X[near], gp.y[near], kernel=gp.covar_module, mean=gp.mean_module, noise=noise)
        for one, other in zip((mean[b], covariance[b]), local.latent(X_new[b]), strict=True):
            assert_close(one, other, rtol=1e-8, atol=1e-9)
        for one, other in zip(gp.latent(X_new[b]), local.latent(X_new[b]), strict=True):
            assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_the_joint_posterior_has_gradients_for_new_inputs(normal: Normal) -> None:
    gp = model(normal, 60, n_neighbours=6)
    gp.requires_grad_(False)
    assert gradcheck(gp.latent, [normal(2, 2).requires_grad_()])


def test_a_joint_posterior_of_too_many_points_is_refused(normal: Normal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpmoe.models.vecchia_gp._MOST_JOINT", 20)
    gp = model(normal, 60, n_neighbours=6)
    with pytest.raises(InputError, match=r"40 points.*more than 20.*marginals"):
        gp.posterior(normal(40, 2))


def test_marginals_are_the_same_in_one_block_and_in_many(
    path: str, normal: Normal, monkeypatch: pytest.MonkeyPatch
) -> None:
    gp, X_new = model(normal, 60, n_neighbours=6), normal(37, 2)
    whole = gp.marginals(X_new)
    monkeypatch.setattr("gpmoe.models.vecchia_gp._BLOCK", 5)
    monkeypatch.setattr("gpmoe.linalg.vecchia_blocked._BLOCK", 1)
    for one, other in zip(gp.marginals(X_new), whole, strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_marginals_far_away_are_the_prior_and_at_data_interpolate(normal: Normal) -> None:
    X = normal(50, 2)
    gp = VecchiaGP(X, X.sum(-1), noise=1e-6)
    mean, variance = gp.marginals(torch.cat([X[:3], X[:2] + 1e4]))
    assert_close(mean[:3], X[:3].sum(-1), rtol=0, atol=1e-3)
    assert_close(variance[3:], gp.covar_module.outputscale.detach().expand(2), rtol=1e-10, atol=1e-10)
    assert gp.marginals(X[:0])[0].shape == (0,)


def test_noise_is_added_when_asked_for(normal: Normal) -> None:
    gp, X_new = model(normal), normal(3, 2)
    latent = gp.posterior(X_new).variance
    assert_close(gp.posterior(X_new, observation_noise=True).variance, latent + 0.125, rtol=1e-6, atol=1e-6)


def test_an_acquisition_function_climbs_on_it(normal: Normal) -> None:
    gp = model(normal, 80, n_neighbours=8)
    best = LogExpectedImprovement(gp, best_f=gp.y.max())
    bounds = torch.tensor([[-1.0, -1.0], [1.0, 1.0]]).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        X, value = optimize_acqf(best, bounds, q=1, num_restarts=2, raw_samples=8, options={"maxiter": 5})
    assert X.shape == (1, 2)
    assert bool(value.isfinite())


def test_conditioning_on_an_observation_moves_the_posterior_there(normal: Normal) -> None:
    gp = model(normal, 80, n_neighbours=8)
    x = normal(1, 2)
    later = gp.condition_on_observations(x, torch.full((1, 1), 3.0).double(), noise=torch.full((1, 1), 1e-6).double())
    assert_close(later.posterior(x).mean, torch.full((1, 1), 3.0).double(), rtol=0, atol=1e-2)


# The model


def surface(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    X = 4 * torch.rand(n, 2, dtype=torch.float64, generator=generator)
    noise = torch.randn(n, dtype=torch.float64, generator=generator)
    return X, X[:, 0].sin() * (2 * X[:, 1]).cos() + 0.2 * noise


def test_a_fit_finds_what_the_exact_fit_finds(generator: torch.Generator) -> None:
    X, y = surface(250, generator)
    gp, exact = VecchiaGP(X, y), ExactGP(X, y)
    report = fit(gp)
    fit(exact)
    assert report.converged
    assert report.solver == "Vecchia with 30 neighbours"
    assert report.jitter == 0
    assert_close(gp.likelihood.noise, exact.likelihood.noise, rtol=0.1, atol=0)
    ours, theirs = (m.covar_module.base_kernel.lengthscale for m in (gp, exact))
    assert_close(ours, theirs, rtol=0.15, atol=0)
    X_new, _ = surface(100, generator)
    assert_close(gp.marginals(X_new)[0], exact.marginals(X_new)[0], rtol=0, atol=0.15)


def test_with_all_neighbours_a_fit_is_the_exact_fit(generator: torch.Generator) -> None:
    X, y = surface(40, generator)
    gp, exact = VecchiaGP(X, y, n_neighbours=39), ExactGP(X, y)
    assert fit(gp).objective_trace[-1] == pytest.approx(fit(exact).objective_trace[-1], abs=1e-5)


def test_restarts_run_on_copies(generator: torch.Generator) -> None:
    gp = VecchiaGP(*surface(30, generator), n_neighbours=5)
    report = fit(gp, n_restarts=1, seed=0, max_iterations=30)
    assert len(report.starts) == 2


def test_neighbours_follow_the_lengthscales_when_chosen_anew(generator: torch.Generator) -> None:
    gp = VecchiaGP(*surface(60, generator), n_neighbours=5)
    before = gp.neighbours.clone()
    gp.covar_module.base_kernel.lengthscale = torch.tensor([0.1, 100.0]).double()
    assert torch.equal(gp.neighbours, before)
    gp.choose_neighbours()
    i = 59
    near = gp.order[gp.neighbours[i].long()]
    earlier = gp.order[:i]
    gaps = (gp.X[earlier, 0] - gp.X[gp.order[i], 0]).abs()
    assert set(near.tolist()) == set(earlier[gaps.argsort()[:5]].tolist())


@pytest.mark.parametrize("copy", [deepcopy, lambda gp: pickle.loads(pickle.dumps(gp))], ids=["deepcopy", "pickle"])
def test_copies_predict_the_same(copy: Callable[[VecchiaGP], VecchiaGP], normal: Normal) -> None:
    gp, X_new = VecchiaGP(normal(30, 2), normal(30), n_neighbours=4), normal(5, 2)
    for one, other in zip(copy(gp).marginals(X_new), gp.marginals(X_new), strict=True):
        assert torch.equal(one, other)


def test_the_model_says_what_it_is(normal: Normal) -> None:
    assert "n=30, n_neighbours=4" in repr(VecchiaGP(normal(30, 2), normal(30), n_neighbours=4))


def test_arguments_that_do_not_fit_are_refused(normal: Normal) -> None:
    X, y = normal(5, 2), normal(5)
    with pytest.raises(ShapeError, match=r"\(n, d\)"):
        VecchiaGP(normal(2, 5, 2), normal(2, 5))
    with pytest.raises(InputError, match="n_neighbours"):
        VecchiaGP(X, y, n_neighbours=0)
    with pytest.raises(ShapeError, match="batch"):
        VecchiaGP(X, y, kernel=gpk.RBFKernel(batch_shape=torch.Size([3])))
    with pytest.raises(NonFiniteError):
        VecchiaGP(X, y * torch.nan)
    gp = VecchiaGP(X, y)
    with pytest.raises(ShapeError):
        gp.marginals(normal(3, 4))
    with pytest.raises(ShapeError):
        gp.marginals(normal(3, 1, 2))
    with pytest.raises(DtypeError):
        gp.marginals(normal(3, 2).float())
