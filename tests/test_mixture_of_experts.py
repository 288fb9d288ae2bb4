"""The mixture model: its predictive distribution, its BoTorch posterior and its leave-one-out formula."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.optim import optimize_acqf
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from torch import Tensor
from torch.testing import assert_close

from gpmoe import MixtureOfExpertsRegressor
from gpmoe.data import simulate_two_regimes
from gpmoe.errors import DtypeError, InputError, NonFiniteError, ShapeError
from gpmoe.gates import ConstantGate, GPGate, SoftmaxGate
from gpmoe.models import ExactGP, MixtureOfExperts


@pytest.fixture
def moe(table: tuple[Tensor, Tensor], normal: Callable[..., Tensor]) -> MixtureOfExperts:
    """Three experts of different noise, mean and responsibilities, and a gate that varies."""
    X, y = table
    moe = MixtureOfExperts(X, y, n_experts=3)
    for k, expert in enumerate(moe.experts):
        expert.likelihood.noise, expert.mean_module.constant = 0.05 * 4**k, float(k) - 1
    r = (2 * normal(20, 3)).softmax(-1)
    moe.gate.fit_step(X, r)
    moe.set_responsibilities(r)
    return moe


@pytest.fixture
def X_new(normal: Callable[..., Tensor]) -> Tensor:
    return 2 + 2 * normal(4, 2)


def draws(moe: MixtureOfExperts, X_new: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """New observations ``(n, m)`` by the story: pick an expert by the gate, then draw from it."""
    with torch.no_grad():
        chosen = torch.multinomial(moe.gate_probs(X_new), n, replacement=True, generator=generator).mT
        samples = torch.zeros(n, len(X_new), dtype=torch.float64)
        for k, expert in enumerate(moe.experts):
            mean, variance = expert.marginals(X_new)
            noise = torch.randn(n, len(X_new), dtype=torch.float64, generator=generator)
            own = mean + (variance + expert.likelihood.noise).sqrt() * noise
            samples = torch.where(chosen == k, own, samples)
        return samples


def test_moments_agree_with_monte_carlo(moe: MixtureOfExperts, X_new: Tensor, generator) -> None:
    samples = draws(moe, X_new, 1_000_000, generator)
    predictive = moe.predictive(X_new)
    square = (samples - samples.mean(0)) ** 2
    assert bool(((samples.mean(0) - torch.from_numpy(predictive.mean)).abs() < 4e-3 * samples.std(0)).all())
    assert bool(((square.mean(0) - torch.from_numpy(predictive.variance)).abs() < 4e-3 * square.std(0)).all())


@pytest.mark.parametrize("q", [0.05, 0.5, 0.9])
def test_quantiles_agree_with_monte_carlo(moe: MixtureOfExperts, X_new: Tensor, generator, q: float) -> None:
    samples = draws(moe, X_new, 1_000_000, generator).numpy()
    below = (samples <= moe.predictive(X_new).quantile(q)).mean(0)
    assert (np.abs(below - q) < 4e-3 * np.sqrt(q * (1 - q))).all()


def test_crps_agrees_with_monte_carlo(moe: MixtureOfExperts, X_new: Tensor, generator) -> None:
    a, b = draws(moe, X_new, 1_000_000, generator), draws(moe, X_new, 1_000_000, generator)
    terms = (a - 0.3).abs() - 0.5 * (a - b).abs()
    error = terms.mean(0) - torch.from_numpy(moe.predictive(X_new).crps(0.3))
    assert bool((error.abs() < 4e-3 * terms.std(0)).all())


def test_the_latent_prediction_leaves_out_each_experts_noise(moe: MixtureOfExperts, X_new: Tensor) -> None:
    with_noise, latent = moe.predictive(X_new), moe.predictive(X_new, include_noise=False)
    added = with_noise.component_variances - latent.component_variances
    np.testing.assert_allclose(added, np.tile([0.05, 0.2, 0.8], (4, 1)), rtol=1e-6)
    np.testing.assert_array_equal(with_noise.component_means, latent.component_means)


@pytest.mark.parametrize("observation_noise", [False, True])
def test_posterior_moments_agree_with_its_samples(
    moe: MixtureOfExperts, X_new: Tensor, observation_noise: bool
) -> None:
    n = 100_000
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        posterior = moe.posterior(X_new, observation_noise=observation_noise)
        samples = posterior.rsample(torch.Size([n])).squeeze(-1)
    mean = posterior.mean.squeeze(-1)
    assert bool(((samples.mean(0) - mean).abs() < 4 * samples.std(0) / n**0.5).all())
    products = (samples - mean).unsqueeze(-1) * (samples - mean).unsqueeze(-2)
    assert bool(((products.mean(0) - posterior.covariance).abs() < 4 * products.std(0) / n**0.5).all())
    assert_close(posterior.covariance.diagonal(), posterior.variance.squeeze(-1))


def test_posterior_and_predictive_have_the_same_moments(moe: MixtureOfExperts, X_new: Tensor) -> None:
    posterior, predictive = moe.posterior(X_new, observation_noise=True), moe.predictive(X_new)
    assert_close(posterior.mean.squeeze(-1).detach(), torch.from_numpy(predictive.mean))
    assert_close(posterior.variance.squeeze(-1).detach(), torch.from_numpy(predictive.variance))


def test_a_batch_of_posteriors_equals_a_loop(moe: MixtureOfExperts, X_new: Tensor) -> None:
    batch = moe.posterior(torch.stack([X_new, -X_new]))
    for i, X in enumerate((X_new, -X_new)):
        single = moe.posterior(X)
        assert_close(batch.mean[i], single.mean)
        assert_close(batch.covariance[i], single.covariance, rtol=1e-8, atol=1e-10)
    assert batch.rsample(torch.Size([5])).shape == (5, 2, 4, 1)


def test_one_expert_has_the_posterior_of_its_gp(table: tuple[Tensor, Tensor], X_new: Tensor) -> None:
    moe, gp = MixtureOfExperts(*table, n_experts=1), ExactGP(*table)
    posterior = moe.posterior(X_new)
    assert_close(posterior.mean, gp.posterior(X_new).mean)
    assert_close(posterior.covariance, gp.posterior(X_new).distribution.covariance_matrix)


def test_samples_pass_gradients_to_inputs(moe: MixtureOfExperts, X_new: Tensor, normal) -> None:
    base = normal(3, 4, 4)

    def sampled(X: Tensor) -> Tensor:
        return moe.posterior(X).rsample_from_base_samples(torch.Size([3]), base)

    assert torch.autograd.gradcheck(sampled, X_new.clone().requires_grad_())


@pytest.mark.parametrize("gate", ["constant", "softmax", "gp"])
@pytest.mark.filterwarnings("ignore:Optimization failed in `gen_candidates_scipy`:RuntimeWarning")  # samples jump
def test_botorch_optimises_an_acquisition_on_the_fitted_model(gate: str) -> None:
    X, y, _ = simulate_two_regimes(30, seed=0)
    model = MixtureOfExpertsRegressor(n_experts=2, gate=gate, random_state=0).fit(X, y).model_
    with torch.random.fork_rng():
        torch.manual_seed(0)
        acquisition = qLogNoisyExpectedImprovement(model, X_baseline=model.X)
        bounds = torch.tensor([[-2.0], [2.0]], dtype=torch.float64)
        candidate, value = optimize_acqf(acquisition, bounds, q=2, num_restarts=2, raw_samples=16)
    assert candidate.shape == (2, 1)
    assert bool(value.isfinite())
    assert bool((candidate.abs() <= 2).all())


def test_leave_one_out_of_one_expert_equals_that_of_the_gp(table: tuple[Tensor, Tensor]) -> None:
    mean, variance = ExactGP(*table).leave_one_out()
    predictive = MixtureOfExperts(*table, n_experts=1).leave_one_out()
    np.testing.assert_allclose(predictive.mean, mean.numpy(), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(predictive.variance, variance.numpy(), rtol=1e-8)


@pytest.mark.parametrize("certain", [False, True])
def test_leave_one_out_equals_taking_each_point_away(moe: MixtureOfExperts, certain: bool) -> None:
    if certain:
        moe.set_responsibilities(torch.nn.functional.one_hot(moe.responsibilities.argmax(-1), 3).double())
    predictive, r = moe.leave_one_out(), moe.responsibilities
    for i in (0, 7, 19):
        for k, expert in enumerate(moe.experts):
            rest = (torch.arange(20) != i) & (r[:, k] > 0)
            kernel, mean, noise = expert.covar_module, expert.mean_module, expert.likelihood
            without = ExactGP(moe.X[rest], moe.y[rest], kernel=kernel, mean=mean, noise=noise, weights=r[rest, k])
            mean, variance = without.marginals(moe.X[i : i + 1])
            assert abs(predictive.component_means[i, k] - mean.item()) < 1e-7
            assert abs(predictive.component_variances[i, k] - (variance + noise.noise).item()) < 1e-7


def test_responsibilities_are_cleaned_and_sum_to_one(moe: MixtureOfExperts) -> None:
    r = torch.tensor([[0.5, 0.5 - 1e-15, 1e-15]], dtype=torch.float64).repeat(20, 1)
    moe.set_responsibilities(r)
    assert bool((moe.responsibilities[:, 2] == 0).all())
    assert_close(moe.responsibilities.sum(-1), torch.ones(20, dtype=torch.float64), rtol=1e-15, atol=0)


def test_an_expert_without_points_is_its_prior(moe: MixtureOfExperts, X_new: Tensor) -> None:
    moe.set_responsibilities(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).repeat(20, 1))
    predictive = moe.predictive(X_new, include_noise=False)
    np.testing.assert_allclose(predictive.component_means[:, 2], 1.0, atol=1e-9)
    np.testing.assert_allclose(predictive.component_variances[:, 2], 1.0, rtol=1e-9)


def test_kernels_are_copied_for_each_expert(table: tuple[Tensor, Tensor]) -> None:
    kernel = ScaleKernel(RBFKernel())
    moe = MixtureOfExperts(*table, n_experts=2, kernel=kernel)
    moe.experts[0].covar_module.outputscale = 5.0
    assert moe.experts[1].covar_module.outputscale.item() == pytest.approx(kernel.outputscale.item())
    assert kernel.raw_outputscale.dtype == torch.float32


def test_each_expert_may_have_its_own_kernel(table: tuple[Tensor, Tensor]) -> None:
    moe = MixtureOfExperts(*table, n_experts=2, kernel=[RBFKernel(), MaternKernel(nu=0.5)])
    assert [type(expert.covar_module) for expert in moe.experts] == [RBFKernel, MaternKernel]


def test_a_fixed_noise_stays_out_of_learning(table: tuple[Tensor, Tensor]) -> None:
    moe = MixtureOfExperts(*table, n_experts=2, noise=0.3)
    assert all(expert.likelihood.noise.item() == pytest.approx(0.3) for expert in moe.experts)
    assert not any("noise" in name for name, p in moe.named_parameters() if p.requires_grad)


def test_gates_come_by_name_or_as_objects(table: tuple[Tensor, Tensor]) -> None:
    for name, kind in {"constant": ConstantGate, "softmax": SoftmaxGate, "gp": GPGate}.items():
        assert type(MixtureOfExperts(*table, gate=name).gate) is kind
    gate = SoftmaxGate(2, 2, precision=3.0)
    assert MixtureOfExperts(*table, gate=gate).gate is gate


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"n_experts": 0}, InputError, "`n_experts` must be at least 1; got 0"),
        ({"gate": "tree"}, InputError, "'uncertainty_router', or a Gate; got 'tree'"),
        ({"gate": ConstantGate(3)}, InputError, "must have 2 experts; got one of 3"),
        ({"kernel": [RBFKernel()]}, ShapeError, "one kernel or 2, one for each expert; got 1"),
    ],
)
def test_wrong_arguments_are_named(table: tuple[Tensor, Tensor], arguments: dict, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        MixtureOfExperts(*table, **arguments)


def test_wrong_inputs_are_named(moe: MixtureOfExperts, X_new: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"d=2; got \(4, 1\)"):
        moe.predictive(X_new[:, :1])
    with pytest.raises(DtypeError, match="float32"):
        moe.posterior(X_new.float())
    with pytest.raises(NonFiniteError, match="nan"):
        moe.posterior(X_new * torch.nan)
    with pytest.raises(InputError, match="Monte Carlo objective"):
        moe.posterior(X_new, observation_noise=torch.ones(4, 1))
