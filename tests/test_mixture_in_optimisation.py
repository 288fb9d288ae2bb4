"""Mixtures of experts in BoTorch: sampled quantiles and moments, look-ahead models, acquisitions, a short loop."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from botorch.acquisition.knowledge_gradient import qKnowledgeGradient
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.optim import optimize_acqf, optimize_acqf_discrete
from botorch.sampling.normal import IIDNormalSampler, SobolQMCNormalSampler
from torch import Tensor
from torch.testing import assert_close

from gpmoe.errors import DtypeError, InputError, ShapeError
from gpmoe.inference.vbem import fit_mixture
from gpmoe.models import ExactGP, MixtureOfExperts
from gpmoe.models.conditioned_mixture import ConditionedMixture
from gpmoe.models.heteroscedastic_gp import HeteroscedasticGP
from gpmoe.models.null_expert import NullExpert

# A choice of expert is piecewise constant in x: where it jumps, line searches of L-BFGS may end early.
jumps = pytest.mark.filterwarnings("ignore:Optimization failed:RuntimeWarning")
UNIT = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
GRID = torch.linspace(-1, 1, 201, dtype=torch.float64).unsqueeze(-1)


def two_regimes(X: Tensor) -> Tensor:
    """A slow slope left of zero, a fast wave with the maximum, 1.5 near x = 0.55, right of it."""
    x = X.squeeze(-1)
    return torch.where(x < 0, 0.3 * x, torch.exp(-40 * (x - 0.55).square()) * 1.5 + 0.3 * torch.sin(12 * x))


def mixture_of(X: Tensor) -> MixtureOfExperts:
    """Two experts with lengthscales that suit the two sides, the gate between them; no fit, so no time."""
    moe = MixtureOfExperts(X, two_regimes(X), n_experts=2, noise=1e-2)
    r = torch.softmax(torch.cat([-4 * X, 4 * X], -1), -1)
    moe.experts[1].covar_module.base_kernel.lengthscale = 0.2
    moe.gate.fit_step(X, r)
    moe.set_responsibilities(r)
    return moe.requires_grad_(False)


@pytest.fixture
def moe() -> MixtureOfExperts:
    return mixture_of(torch.linspace(-1, 1, 12, dtype=torch.float64).unsqueeze(-1))


@pytest.fixture
def later(moe: MixtureOfExperts) -> ConditionedMixture:
    """The mixture given two more observations."""
    X = torch.tensor([[0.1], [0.6]], dtype=torch.float64)
    return ConditionedMixture(moe, X, torch.tensor([[0.4], [1.5]], dtype=torch.float64))


@pytest.mark.parametrize("sampler", [IIDNormalSampler, SobolQMCNormalSampler])
def test_sampled_quantiles_and_moments_are_those_of_the_mixture(moe: MixtureOfExperts, sampler: type) -> None:
    X, n = torch.tensor([[-0.4], [0.05], [0.5]], dtype=torch.float64), 2**16
    samples = sampler(torch.Size([n]), seed=0)(moe.posterior(X)).squeeze(-1).numpy()
    latent = moe.predictive(X, include_noise=False)
    for q in (0.05, 0.25, 0.5, 0.9):
        below = (samples <= latent.quantile(q)).mean(0)
        np.testing.assert_allclose(below, q, atol=4 * np.sqrt(q * (1 - q) / n))
    error = np.abs(samples.mean(0) - latent.mean)
    assert (error < 4 * samples.std(0) / np.sqrt(n)).all()
    square = (samples - latent.mean) ** 2
    assert (np.abs(square.mean(0) - latent.variance) < 4 * square.std(0) / np.sqrt(n)).all()


def test_conditioning_equals_experts_with_the_new_points_in_their_data(moe, later: ConditionedMixture) -> None:
    X_new = torch.linspace(-1.2, 1.2, 7, dtype=torch.float64).unsqueeze(-1)
    posterior = later.posterior(X_new)
    for k, expert in enumerate(moe.all_experts):
        X, y = torch.cat([expert.X, later.X]), torch.cat([expert.y, torch.tensor([0.4, 1.5], dtype=torch.float64)])
        weights = torch.cat([expert.weights, later.responsibilities[:, k]])
        whole = ExactGP(
            X, y, kernel=expert.covar_module, mean=expert.mean_module, noise=expert.likelihood, weights=weights
        )
        mean, covariance = whole.latent(X_new)
        assert_close(posterior.component_mean[k], mean, rtol=1e-7, atol=1e-9)
        assert_close(posterior.component_covariance[k], covariance, rtol=1e-7, atol=1e-9)


def test_new_responsibilities_are_gate_times_predictive_density(moe, later: ConditionedMixture) -> None:
    y = torch.tensor([0.4, 1.5], dtype=torch.float64)
    assert_close(later.responsibilities, moe.membership(later.X, y), rtol=1e-8, atol=1e-12)
    assert_close(later.responsibilities.sum(-1), torch.ones(2, dtype=torch.float64))


def test_one_expert_is_conditioned_as_a_gp_is() -> None:
    X = torch.linspace(-1, 1, 12, dtype=torch.float64).unsqueeze(-1)
    moe, gp = MixtureOfExperts(X, two_regimes(X), n_experts=1), ExactGP(X, two_regimes(X))
    X_new, Y = X[:2] + 0.05, torch.ones(2, 1, dtype=torch.float64)
    later, wanted = moe.condition_on_observations(X_new, Y), gp.condition_on_observations(X_new, Y)
    assert_close(later.posterior(X).mean, wanted.posterior(X).mean)
    assert_close(later.posterior(X).variance, wanted.posterior(X).variance)


def test_a_batch_of_fantasies_equals_a_loop(moe: MixtureOfExperts, normal: Callable[..., Tensor]) -> None:
    X, Y, X_new = normal(4, 2, 1), normal(3, 4, 2, 1), normal(4, 5, 1)
    together = moe.condition_on_observations(X, Y)
    assert together.batch_shape == (3, 4)
    posterior = together.posterior(X_new)
    assert posterior.base_sample_shape == (3, 4, 5, 3)
    for i, j in ((0, 0), (2, 3)):
        single = moe.condition_on_observations(X[j], Y[i, j]).posterior(X_new[j])
        assert_close(posterior.mean[i, j], single.mean, rtol=1e-6, atol=1e-9)
        assert_close(posterior.covariance[i, j], single.covariance, rtol=1e-6, atol=1e-9)


def test_conditioning_twice_keeps_the_shapes_and_lowers_the_variance(moe, later: ConditionedMixture) -> None:
    X = torch.tensor([[-0.55]], dtype=torch.float64)
    twice = later.condition_on_observations(X, torch.tensor([[-0.165]], dtype=torch.float64))
    assert float(twice.posterior(X).variance) < float(later.posterior(X).variance)
    assert twice.posterior(X, observation_noise=True).mean.shape == (1, 1)


def test_a_point_that_an_expert_did_not_make_leaves_it_alone(moe: MixtureOfExperts) -> None:
    X = torch.tensor([[-0.9]], dtype=torch.float64)
    before = moe.posterior(X).component_mean[1]
    later = moe.condition_on_observations(X, torch.tensor([[-0.27]], dtype=torch.float64))
    assert float(later.responsibilities[0, 1]) < 0.05
    noise = later.all_experts[1].noise
    assert_close(noise, 1e-2 / later.responsibilities[:, 1])
    assert float((later.posterior(X).component_mean[1] - before).abs()) < 0.2


def test_the_conditioned_posterior_passes_gradients(moe: MixtureOfExperts, normal) -> None:
    X_new = normal(3, 1)

    def moments(X: Tensor, Y: Tensor) -> Tensor:
        posterior = moe.condition_on_observations(X, Y).posterior(X_new)
        return torch.stack([posterior.mean, posterior.variance])

    X, Y = torch.tensor([[0.1], [0.6]], dtype=torch.float64), torch.tensor([[0.4], [1.2]], dtype=torch.float64)
    assert torch.autograd.gradcheck(moments, (X.requires_grad_(), Y.requires_grad_()))


def difference(f: Callable[[Tensor], Tensor], X: Tensor, h: float = 1e-6) -> Tensor:
    """Central differences of a scalar function, of X's shape."""
    slopes = torch.zeros_like(X)
    for i in range(X.numel()):
        step = torch.zeros_like(X)
        step.view(-1)[i] = h
        slopes.view(-1)[i] = (f(X + step) - f(X - step)).squeeze() / (2 * h)
    return slopes


@pytest.mark.parametrize("kind", ["noisy expected improvement", "knowledge gradient"])
def test_gradients_of_acquisitions_agree_with_finite_differences_at_fixed_base_samples(moe, kind: str) -> None:
    if kind == "knowledge gradient":
        acquisition = qKnowledgeGradient(moe, num_fantasies=4, sampler=SobolQMCNormalSampler(torch.Size([4]), seed=1))
        X = torch.linspace(-0.7, 0.8, 5, dtype=torch.float64).reshape(1, 5, 1)  # one candidate and four fantasies'
    else:
        sampler = SobolQMCNormalSampler(torch.Size([64]), seed=1)
        acquisition = qLogNoisyExpectedImprovement(moe, X_baseline=moe.X, sampler=sampler, prune_baseline=False)
        X = torch.tensor([[[0.31], [0.62]]], dtype=torch.float64)
    X.requires_grad_()
    (slope,) = torch.autograd.grad(acquisition(X).sum(), X)
    assert bool((slope.abs() > 1e-6).any())
    assert_close(slope, difference(lambda x: acquisition(x).detach(), X.detach()), rtol=2e-4, atol=2e-6)


@jumps
def test_the_knowledge_gradient_is_optimised_on_a_mixture(moe: MixtureOfExperts) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        acquisition = qKnowledgeGradient(moe, num_fantasies=4)
        candidate, value = optimize_acqf(acquisition, UNIT, q=1, num_restarts=2, raw_samples=16)
    assert candidate.shape == (1, 1)
    assert bool(value.isfinite())
    assert bool((candidate.abs() <= 1).all())


@pytest.mark.parametrize("seed", [1, 2])
def test_a_short_loop_finds_the_maximum_of_two_regimes(seed: int) -> None:
    """From six points that are far below it, with the lengthscales of both sides and the gate known."""
    X = 2 * torch.rand(6, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1
    best = float(two_regimes(GRID).max())
    assert float(two_regimes(X).max()) < 0.5 * best
    for _ in range(6):
        sampler = SobolQMCNormalSampler(torch.Size([64]), seed=seed)
        acquisition = qLogNoisyExpectedImprovement(mixture_of(X), X_baseline=X, sampler=sampler, prune_baseline=False)
        candidate, _ = optimize_acqf_discrete(acquisition, q=1, choices=GRID, X_avoid=X)
        X = torch.cat([X, candidate])
    assert float(two_regimes(X).max()) > 0.99 * best


def test_a_fitted_mixture_takes_part_in_a_loop() -> None:
    X = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(-1)
    y = two_regimes(X)
    moe = MixtureOfExperts(X, (y - y.mean()) / y.std(), n_experts=2)
    fit_mixture(moe, n_restarts=2, seed=0)
    sampler = SobolQMCNormalSampler(torch.Size([64]), seed=0)
    acquisition = qLogNoisyExpectedImprovement(moe, X_baseline=X, sampler=sampler, prune_baseline=False)
    candidate, value = optimize_acqf_discrete(acquisition, q=1, choices=GRID, X_avoid=X)
    assert bool(value.isfinite())
    assert float(candidate.squeeze()) > 0  # where the maximum is


def test_wrong_observations_are_named(moe: MixtureOfExperts) -> None:
    X = torch.zeros(2, 1, dtype=torch.float64)
    with pytest.raises(ShapeError, match="`Y`"):
        moe.condition_on_observations(X, torch.zeros(3, 1, dtype=torch.float64))
    with pytest.raises(DtypeError, match="float32"):
        moe.condition_on_observations(X, torch.zeros(2, 1))
    with pytest.raises(InputError, match="Monte Carlo objective"):
        moe.condition_on_observations(X, X).posterior(X, observation_noise=torch.ones(2, 1))


def test_experts_with_a_noise_of_their_own_at_each_input_are_conditioned_with_it() -> None:
    X = torch.linspace(-1, 1, 12, dtype=torch.float64).unsqueeze(-1)
    moe = MixtureOfExperts(X, two_regimes(X), experts=[HeteroscedasticGP(X, two_regimes(X)) for _ in range(2)])
    X_new, Y = X[:2] + 0.05, torch.tensor([[0.1], [0.2]], dtype=torch.float64)
    later = moe.condition_on_observations(X_new, Y)
    noise = later.all_experts[0].noise * later.responsibilities[:, 0]
    assert_close(noise, moe.all_experts[0].noise_variance(X_new))
    assert later.posterior(X, observation_noise=True).mean.shape == (12, 1)


def test_experts_that_are_no_gaussian_processes_are_not_conditioned() -> None:
    X = torch.linspace(-1, 1, 12, dtype=torch.float64).unsqueeze(-1)
    y = two_regimes(X)
    moe = MixtureOfExperts(X, y, experts=[ExactGP(X, y), NullExpert(X, y)])
    with pytest.raises(InputError, match="got NullExpert"):
        moe.condition_on_observations(X[:2], y[:2, None])
