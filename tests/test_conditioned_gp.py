"""Conditioning on further observations against the same model on all the data."""

from collections.abc import Callable

import pytest
import torch
from botorch.sampling.normal import IIDNormalSampler, SobolQMCNormalSampler
from gpytorch import kernels as gpk
from gpytorch.likelihoods import GaussianLikelihood
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from gpmoe.errors import DtypeError, NonFiniteError, NotPositiveDefiniteError, ShapeError
from gpmoe.models import ConditionedGP, ExactGP
from gpmoe.models.gaussian_model import GaussianModel

Normal = Callable[..., Tensor]
Table = tuple[Tensor, Tensor]
NOISE = 0.05


def refitted(gp: ExactGP, X: Tensor, Y: Tensor, noise: Tensor | None = None) -> ExactGP:
    """A new model on all the data, with the same kernel and mean; Y is (q, 1)."""
    new = torch.full_like(Y.squeeze(-1), NOISE) if noise is None else noise.squeeze(-1)
    return ExactGP(
        torch.cat([gp.X, X]),
        torch.cat([gp.y, Y.squeeze(-1)]),
        kernel=gp.covar_module,
        mean=gp.mean_module,
        noise=torch.cat([gp.noise(), new]),
    )


def assert_same_posterior(one: GaussianModel, other: GaussianModel, X_new: Tensor) -> None:
    for got, wanted in zip(one.latent(X_new), other.latent(X_new), strict=True):
        assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.fixture
def gp(table: Table) -> ExactGP:
    kernel = gpk.LinearKernel() + gpk.ScaleKernel(gpk.MaternKernel(ard_num_dims=2))
    gp = ExactGP(*table, kernel=kernel, noise=torch.full((20,), NOISE, dtype=torch.float64))
    gp.mean_module.initialize(constant=0.3)
    return gp.requires_grad_(False)


@pytest.fixture
def X_new(normal: Normal) -> Tensor:
    return 2 + 2 * normal(5, 2)


@pytest.mark.parametrize("q", [1, 4])
def test_conditioning_equals_the_model_on_all_data(q: int, gp: ExactGP, normal: Normal, X_new: Tensor) -> None:
    X, Y = 2 + normal(q, 2), normal(q, 1)
    assert_same_posterior(gp.condition_on_observations(X, Y), refitted(gp, X, Y), X_new)


def test_conditioning_takes_a_noise_of_each_observation(gp: ExactGP, normal: Normal, X_new: Tensor) -> None:
    X, Y, noise = normal(3, 2), normal(3, 1), 0.01 + normal(3, 1).square()
    assert_same_posterior(gp.condition_on_observations(X, Y, noise=noise), refitted(gp, X, Y, noise), X_new)


def test_conditioning_twice_equals_conditioning_once_on_both(gp: ExactGP, normal: Normal, X_new: Tensor) -> None:
    X, Y = 2 + normal(5, 2), normal(5, 1)
    twice = gp.condition_on_observations(X[:2], Y[:2]).condition_on_observations(X[2:], Y[2:])
    assert_same_posterior(twice, refitted(gp, X, Y), X_new)


def test_conditioning_at_training_inputs_averages_the_observations(gp: ExactGP, X_new: Tensor) -> None:
    X, Y = gp.X[:3], gp.y[:3, None] + 1
    assert_same_posterior(gp.condition_on_observations(X, Y), refitted(gp, X, Y), X_new)


def test_conditioning_on_a_batch_equals_a_loop(gp: ExactGP, normal: Normal, X_new: Tensor) -> None:
    X, Y = 2 + normal(3, 4, 2), normal(3, 4, 1)
    conditioned = gp.condition_on_observations(X, Y)
    assert conditioned.batch_shape == (3,)
    mean, covariance = conditioned.latent(X_new)
    for i in range(3):
        one, own = refitted(gp, X[i], Y[i]).latent(X_new)
        assert_close(mean[i], one, rtol=1e-9, atol=1e-9)
        assert_close(covariance[i], own, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("with_noise", [False, True])
def test_samples_of_observations_at_the_same_inputs_equal_a_loop(
    with_noise: bool, gp: ExactGP, normal: Normal, X_new: Tensor
) -> None:
    X, Y = 2 + normal(3, 2), normal(2, 3, 1)
    noise = 0.01 + normal(2, 3, 1).square() if with_noise else None
    mean, covariance = gp.condition_on_observations(X, Y, noise=noise).latent(X_new)
    for i in range(2):
        one, own = refitted(gp, X, Y[i], None if noise is None else noise[i]).latent(X_new)
        assert_close(mean[i], one, rtol=1e-9, atol=1e-9)
        assert_close(covariance[i], own, rtol=1e-9, atol=1e-9)


def test_new_inputs_of_each_sample_keep_to_their_sample(gp: ExactGP, normal: Normal) -> None:
    X, Y, X_new = 2 + normal(2, 3, 2), normal(4, 2, 3, 1), normal(4, 2, 5, 2)
    mean, covariance = gp.condition_on_observations(X, Y).latent(X_new)
    for s in range(4):
        for b in range(2):
            one, own = refitted(gp, X[b], Y[s, b]).latent(X_new[s, b])
            assert_close(mean[s, b], one, rtol=1e-9, atol=1e-9)
            assert_close(covariance[s, b], own, rtol=1e-9, atol=1e-9)


def test_conditioning_a_batch_of_models_equals_a_loop(normal: Normal, X_new: Tensor) -> None:
    inputs, y, X, Y = normal(3, 6, 2), normal(3, 6), normal(3, 2, 2), normal(3, 2, 1)
    noise = torch.full((3, 6), NOISE, dtype=torch.float64)
    mean, covariance = ExactGP(inputs, y, noise=noise).condition_on_observations(X, Y).latent(X_new)
    for i in range(3):
        alone = refitted(ExactGP(inputs[i], y[i], noise=noise[i]), X[i], Y[i])
        one, own = alone.latent(X_new)
        assert_close(mean[i], one, rtol=1e-9, atol=1e-9)
        assert_close(covariance[i], own, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", [IIDNormalSampler, SobolQMCNormalSampler])
def test_fantasies_equal_refitting_on_each(sampler: type, gp: ExactGP, normal: Normal, X_new: Tensor) -> None:
    X = 2 + normal(3, 2)
    fantasies = gp.fantasize(X, sampler(torch.Size([4]), seed=0))
    assert fantasies.batch_shape == (4,)
    mean, covariance = fantasies.latent(X_new)
    for i in range(4):
        one, own = refitted(gp, X, fantasies.Y[i].unsqueeze(-1)).latent(X_new)
        assert_close(mean[i], one, rtol=1e-9, atol=1e-9)
        assert_close(covariance[i], own, rtol=1e-9, atol=1e-9)


def test_fantasies_of_a_learned_noise_use_that_noise(table: Table, normal: Normal, X_new: Tensor) -> None:
    gp = ExactGP(*table, noise=GaussianLikelihood())
    gp.likelihood.noise = torch.tensor(NOISE, dtype=torch.float64)
    fantasies = gp.requires_grad_(False).fantasize(2 + normal(2, 2), IIDNormalSampler(torch.Size([2]), seed=0))
    mean, _ = fantasies.latent(X_new)
    for i in range(2):
        one, _ = refitted(gp, fantasies.X, fantasies.Y[i].unsqueeze(-1)).latent(X_new)
        assert_close(mean[i], one, rtol=1e-9, atol=1e-9)


def test_fantasies_of_a_batch_of_candidates_equal_a_loop(gp: ExactGP, normal: Normal, X_new: Tensor) -> None:
    X = 2 + normal(3, 2, 2)
    fantasies = gp.fantasize(X, IIDNormalSampler(torch.Size([4]), seed=0))
    assert fantasies.batch_shape == (4, 3)
    mean, _ = fantasies.latent(X_new)
    for s in range(4):
        for b in range(3):
            one, _ = refitted(gp, X[b], fantasies.Y[s, b].unsqueeze(-1)).latent(X_new)
            assert_close(mean[s, b], one, rtol=1e-9, atol=1e-9)


def test_fantasies_of_fantasies_equal_refitting_on_both(gp: ExactGP, normal: Normal, X_new: Tensor) -> None:
    X, later = 2 + normal(2, 2), 2 + normal(1, 2)
    first = gp.fantasize(X, IIDNormalSampler(torch.Size([3]), seed=0))
    second = first.fantasize(later, IIDNormalSampler(torch.Size([2]), seed=1))
    mean, _ = second.latent(X_new)
    for s in range(2):
        for t in range(3):
            Y = torch.cat([first.Y[t], second.Y[s, t]]).unsqueeze(-1)
            one, _ = refitted(gp, torch.cat([X, later]), Y).latent(X_new)
            assert_close(mean[s, t], one, rtol=1e-9, atol=1e-9)


def test_the_mean_of_fantasies_has_the_moments_of_the_preposterior(gp: ExactGP, X_new: Tensor) -> None:
    X, count = torch.tensor([[1.0, 3.0]], dtype=torch.float64), 20_000
    mean, covariance = gp.latent(torch.cat([X, X_new[:1]]))
    draws = gp.fantasize(X, IIDNormalSampler(torch.Size([count]), seed=0)).latent(X_new[:1])[0].squeeze(-1)
    variance = covariance[0, 1] ** 2 / (covariance[0, 0] + NOISE)
    assert (draws.mean() - mean[1]).abs() < 4 * (variance / count).sqrt()
    assert (draws.var() / variance - 1).abs() < 4 * (2 / count) ** 0.5


def test_gradients_for_observations_and_new_inputs_pass_gradcheck(gp: ExactGP, normal: Normal) -> None:
    tensors = [normal(2, 2), normal(3, 2, 1), normal(2, 2)]
    inputs = [tensor.requires_grad_() for tensor in tensors]
    assert gradcheck(lambda X, Y, X_new: gp.condition_on_observations(X, Y).latent(X_new), inputs)


def test_the_base_model_is_left_as_it_was(gp: ExactGP, normal: Normal, X_new: Tensor) -> None:
    before = gp.posterior(X_new).mean
    gp.condition_on_observations(normal(2, 2), normal(2, 1)).posterior(X_new)
    assert torch.equal(gp.posterior(X_new).mean, before)


def test_noise_of_later_observations_is_that_of_the_base(gp: ExactGP, normal: Normal, X_new: Tensor) -> None:
    conditioned = gp.condition_on_observations(normal(2, 2), normal(2, 1))
    latent, predictive = (conditioned.posterior(X_new, observation_noise=asked) for asked in (False, True))
    difference = predictive.distribution.covariance_matrix - latent.distribution.covariance_matrix
    assert_close(difference, NOISE * torch.eye(5, dtype=torch.float64), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("noise", [1e-6, 1e-9])
def test_repeated_observations_with_little_noise_give_their_mean(noise: float, gp: ExactGP, normal: Normal) -> None:
    X = torch.tensor([[8.0, 8.0]], dtype=torch.float64)
    Y, variance = torch.tensor([[1.0], [2.0]], dtype=torch.float64), torch.full((2, 1), noise, dtype=torch.float64)
    mean, covariance = gp.condition_on_observations(X.expand(2, 2), Y, noise=variance).latent(X)
    assert mean.item() == pytest.approx(1.5, abs=1e-3)
    assert 0 <= covariance.item() < 1e-6


BAD: dict[str, tuple[tuple[int, ...], tuple[int, ...], type[Exception], str]] = {
    "other length": ((3, 2), (2, 1), ShapeError, r"`Y` must have shape \(\*batch, 3, 1\); got \(2, 1\)"),
    "no last axis": ((3, 2), (3,), ShapeError, r"`Y` must have shape \(\*batch, 3, 1\); got \(3,\)"),
    "two outputs": ((3, 2), (3, 2), ShapeError, r"`Y` must have shape \(\*batch, 3, 1\); got \(3, 2\)"),
    "other inputs": ((3, 4), (3, 1), ShapeError, r"`X` must have shape \(\*batch, q, d\) with d=2; got \(3, 4\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_observations_that_do_not_fit_are_refused_at_once(name: str, gp: ExactGP) -> None:
    of_X, of_Y, error, text = BAD[name]
    with pytest.raises(error, match=text):
        gp.condition_on_observations(torch.zeros(of_X, dtype=torch.float64), torch.zeros(of_Y, dtype=torch.float64))


def test_observations_of_another_dtype_or_not_finite_are_refused(gp: ExactGP) -> None:
    X = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(DtypeError, match=r"`Y` must be torch\.float64.*got torch\.float32"):
        gp.condition_on_observations(X, torch.zeros(2, 1))
    with pytest.raises(NonFiniteError, match=r"`Y` has nan at index \(1, 0\)"):
        gp.condition_on_observations(X, torch.tensor([[0.0], [float("nan")]], dtype=torch.float64))


def test_a_negative_noise_of_observations_is_refused_with_causes(gp: ExactGP, normal: Normal, X_new: Tensor) -> None:
    conditioned = ConditionedGP(gp, normal(2, 2), normal(2, 1), torch.full((2, 1), -100.0, dtype=torch.float64))
    with pytest.raises(NotPositiveDefiniteError, match="Usual causes"):
        conditioned.latent(X_new)
