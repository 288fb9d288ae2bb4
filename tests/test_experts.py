"""What every expert must do: its evidence, its E-step, its densities, and mixtures of it under variational EM."""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from gpmoe.data import simulate_two_regimes
from gpmoe.errors import InputError, ShapeError
from gpmoe.inference import Cholesky, choose_n_experts, fit, fit_mixture
from gpmoe.inference.mixture_starts import merge_experts
from gpmoe.inference.vbem import run_em
from gpmoe.linalg.gaussian_sites import site_posterior
from gpmoe.models import ExactGP, MixtureOfExperts
from gpmoe.models.heteroscedastic_gp import HeteroscedasticGP
from gpmoe.models.linear_expert import LinearExpert
from gpmoe.models.null_expert import NullExpert
from gpmoe.models.student_t_gp import StudentTGP

Make = Callable[[Tensor, Tensor], Any]

KINDS: dict[str, Make] = {
    "exact": lambda X, y: ExactGP(X, y),
    "linear": lambda X, y: LinearExpert(X, y),
    "constant": lambda X, y: LinearExpert(X, y, inputs=[]),
    "null": lambda X, y: NullExpert(X, y),
    "heteroscedastic": lambda X, y: HeteroscedasticGP(X, y),
    "student-t": lambda X, y: StudentTGP(X, y),
}
MODELS = ["exact", "heteroscedastic", "student-t"]
GAUSSIAN = ["exact", "linear", "constant", "null"]
NEVER = -np.inf


def soft(n: int, k: int, seed: int = 0) -> Tensor:
    """Responsibilities ``(n, k)``, some nearly certain."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(n, k, dtype=torch.float64, generator=generator)).softmax(-1)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def held(kind: str, table: tuple[Tensor, Tensor]) -> Any:
    """An expert that holds twenty points with unequal weights."""
    expert = KINDS[kind](*table)
    expert.set_data(*table, soft(20, 2)[:, 0])
    return expert


def value(expert: Any) -> float:
    return float(expert.evidence().detach())


def test_the_slope_of_the_evidence_in_a_weight_is_the_expected_log_likelihood(held: Any, table) -> None:
    X, y = table
    weights = held.weights.clone()
    wanted = held.expected_log_likelihood(X, y)
    for i in (0, 7, 19):
        ends = []
        for sign in (1, -1):
            moved = weights.clone()
            moved[i] += sign * 1e-4
            other = deepcopy(held)
            other.set_data(X, y, moved)
            ends.append(value(other))
        assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(float(wanted[i]), rel=1e-4, abs=1e-4)


def test_a_weight_of_two_is_the_row_twice(kind: str, table) -> None:
    X, y = table
    weighted, twice = KINDS[kind](X, y), KINDS[kind](X.repeat(2, 1), y.repeat(2))
    weighted.set_data(X, y, torch.full_like(y, 2.0))
    assert value(weighted) == pytest.approx(value(twice), rel=1e-6)
    for got, wanted in zip(weighted.components(X), twice.components(X), strict=True):
        assert_close(got, wanted, rtol=2e-3, atol=1e-5)


def test_components_are_a_density_about_the_latent_mean(held: Any, table) -> None:
    X = table[0][:5] + 0.3
    for include_noise in (False, True):
        weights, means, variances = held.components(X, include_noise=include_noise)
        assert_close(weights.sum(-1), torch.ones(5, dtype=torch.float64))
        assert bool((weights >= 0).all())
        assert bool((variances > 0).all())
        assert_close((weights * means).sum(-1), held.latent(X)[0].detach(), rtol=1e-8, atol=1e-8)
    assert held.latent(X)[1].shape == (5, 5)
    assert bool((held.noise_variance(X) > 0).all())


@pytest.mark.parametrize("kind", GAUSSIAN, indirect=True)
def test_leaving_a_point_out_equals_taking_it_away(held: Any, table) -> None:
    X, y, weights = *table, held.weights
    means, variances = held.components_left_out(X, y, weights)[1:]
    for i in (0, 7, 19):
        rest = torch.arange(20) != i
        other = deepcopy(held)
        other.set_data(X[rest], y[rest], weights[rest])
        _, mean, variance = other.components(X[i : i + 1])
        assert_close(means[i], mean[0], rtol=1e-7, atol=1e-7)
        assert_close(variances[i], variance[0], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", ["heteroscedastic", "student-t"], indirect=True)
def test_leaving_a_point_out_is_close_to_taking_it_away(held: Any, table) -> None:
    X, y, weights = *table, held.weights
    means = held.components_left_out(X, y, weights)[1][:, 0]
    away = []
    for i in range(20):
        rest = torch.arange(20) != i
        other = deepcopy(held)
        other.set_data(X[rest], y[rest], weights[rest])
        away.append(other.components(X[i : i + 1])[1][0, 0])
    assert float((means - torch.stack(away)).abs().median()) < 0.02 * float(y.std())


def test_an_expert_that_holds_next_to_nothing_is_its_prior(kind: str, table) -> None:
    X, y = table
    expert = KINDS[kind](X, y)
    expert.set_data(X[:1], y[:1], torch.tensor([1e-14], dtype=torch.float64))
    assert abs(value(expert)) < 1e-9
    mean = expert.components(X)[1]
    assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", ["heteroscedastic", "student-t"], indirect=True)
def test_the_gradient_is_that_of_the_collapsed_bound(held: Any) -> None:
    held.evidence().backward()
    for parameter in held.parameters():
        if not parameter.requires_grad:
            continue
        flat, slope = parameter.data.reshape(-1), parameter.grad.reshape(-1)
        for i in range(len(flat)):
            before, ends = float(flat[i]), []
            for sign in (1, -1):
                flat[i] = before + sign * 1e-4
                ends.append(value(held))
            flat[i] = before
            assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(float(slope[i]), rel=2e-3, abs=2e-3)


def test_the_linear_evidence_is_that_of_dense_algebra(table) -> None:
    X, y = table
    expert = LinearExpert(X, y, noise=0.3, prior_variance=5.0)
    A = torch.cat([torch.ones_like(X[:, :1]), X], -1)
    C = 5.0 * A @ A.mT + 0.3 * torch.eye(20, dtype=torch.float64)
    wanted = torch.distributions.MultivariateNormal(torch.zeros(20, dtype=torch.float64), C).log_prob(y)
    assert value(expert) == pytest.approx(float(wanted), rel=1e-9)
    assert_close(expert.marginals(X)[0], 5.0 * A @ A.mT @ torch.linalg.solve(C, y), rtol=1e-8, atol=1e-8)


def test_a_nearly_flat_prior_gives_least_squares_and_its_noise(table) -> None:
    X, y = table
    expert = LinearExpert(X, y, prior_variance=1e8)
    expert.fit_step()
    A = torch.cat([torch.ones_like(X[:, :1]), X], -1)
    b = torch.linalg.lstsq(A, y.unsqueeze(-1)).solution.squeeze(-1)
    assert_close(expert.coefficients, b, rtol=1e-5, atol=1e-5)
    assert expert.noise == pytest.approx(float((y - A @ b).square().sum() / (20 - 3)), rel=1e-4)


def test_learning_the_linear_noise_raises_the_evidence_to_its_top(held: Any, kind: str) -> None:
    before = value(held)
    held.fit_step()
    assert value(held) >= before - 1e-12
    if kind in ("linear", "constant"):
        top = value(held)
        for factor in (0.98, 1.02):
            held.likelihood.noise = torch.tensor([held.noise * factor], dtype=torch.float64)
            assert value(held) < top


def test_em_goes_on_from_given_coefficients() -> None:
    X = torch.linspace(-1, 1, 400, dtype=torch.float64).unsqueeze(-1)
    y = 3 * X.squeeze(-1).abs() + 0.05 * torch.randn(
        400, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    moe = MixtureOfExperts(X, y, experts=[LinearExpert(X, y, prior_variance=1e6) for _ in range(2)])
    for sign, expert in zip((-1.0, 1.0), moe.all_experts, strict=True):
        expert.set_coefficients(torch.tensor([0.1, 2 * sign], dtype=torch.float64), 0.2)
    moe.set_responsibilities(moe.membership(X, y))
    assert run_em(moe, Cholesky(), 100, 1e-6).converged
    for sign, expert in zip((-1.0, 1.0), moe.all_experts, strict=True):
        assert_close(expert.coefficients, torch.tensor([0.0, 3 * sign], dtype=torch.float64), rtol=0, atol=0.03)
        assert expert.noise == pytest.approx(0.0025, rel=0.3)


@pytest.mark.parametrize("name", ["heteroscedastic", "student-t"])
def test_the_bound_is_below_the_evidence_by_sampling(name: str, table) -> None:
    X, y = table[0][:6], table[1][:6]
    model = KINDS[name](X, y)
    generator = torch.Generator().manual_seed(3)
    draws = 200_000
    with torch.no_grad():
        K = model.covar_module(X).to_dense()
        if name == "student-t":
            nu, noise = model.degrees_of_freedom, model.likelihood.noise
            gamma = torch.distributions.Gamma(0.5 * nu, 0.5 * nu)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                variance = noise / gamma.sample(torch.Size([draws, 6]))
        else:
            L = torch.linalg.cholesky(model.noise_covar_module(X).to_dense())
            g = model.noise_mean_module.constant + torch.randn(draws, 6, dtype=K.dtype, generator=generator) @ L.mT
            variance = g.exp()
        C = K + torch.diag_embed(variance)
        density = torch.distributions.MultivariateNormal(torch.zeros(6, dtype=K.dtype), C).log_prob(y)
    evidence = float(density.logsumexp(0)) - math.log(draws)
    assert evidence - 1.5 < value(model) < evidence + 0.02


def test_student_t_components_have_the_density_of_a_student_t(table) -> None:
    expert = StudentTGP(*table)
    weights, _, variances = expert._over_scales(table[1][:1] * 0, table[1][:1] * 0 + 1e-12, include_noise=True)
    grid = torch.linspace(-2, 2, 41, dtype=torch.float64).unsqueeze(-1)
    got = torch.logsumexp(weights.log() - 0.5 * (2 * torch.pi * variances).log() - 0.5 * grid.square() / variances, -1)
    nu, scale = expert.degrees_of_freedom.detach(), expert.likelihood.noise.detach().sqrt()
    assert_close(got, torch.distributions.StudentT(nu, 0.0, scale).log_prob(grid.squeeze(-1)), rtol=0, atol=0.03)


@pytest.mark.parametrize("gate", ["softmax", "gp"])
def test_the_bound_never_falls(kind: str, gate: str) -> None:
    X, y, _ = simulate_two_regimes(40, seed=0)
    X, y = torch.from_numpy((X - X.mean(0)) / X.std(0)), torch.from_numpy((y - y.mean()) / y.std())
    moe = MixtureOfExperts(X, y, gate=gate, experts=[KINDS[kind](X, y), KINDS[kind](X, y), NullExpert(X, y)])
    moe.set_responsibilities(soft(40, 3))
    trace = np.array(run_em(moe, Cholesky(), 12, NEVER).trace)
    assert (np.diff(trace) >= -1e-6 * np.abs(trace[1:])).all()
    assert_close(moe.responsibilities.sum(-1), torch.ones(40, dtype=torch.float64))
    predictive = moe.predictive(X)
    np.testing.assert_allclose(predictive.weights.sum(-1), 1)
    assert_close(moe.posterior(X).mean.squeeze(-1).detach(), torch.from_numpy(predictive.mean), rtol=1e-8, atol=1e-8)
    assert len(moe.leave_one_out()) == 40


def test_relabelling_experts_permutes_outputs(kind: str) -> None:
    X, y, _ = simulate_two_regimes(30, seed=0)
    X, y = torch.from_numpy((X - X.mean(0)) / X.std(0)), torch.from_numpy((y - y.mean()) / y.std())
    runs = []
    for order in ([0, 1], [1, 0]):
        moe = MixtureOfExperts(X, y, experts=[KINDS[kind](X, y) for _ in range(2)])
        moe.set_responsibilities(torch.stack([X[:, 0].sigmoid(), (-X[:, 0]).sigmoid()], -1)[:, order])
        runs.append((run_em(moe, Cholesky(), 3, NEVER).trace, moe.responsibilities))
    assert_close(runs[0][0], runs[1][0], rtol=1e-5, atol=1e-5)
    assert_close(runs[0][1], runs[1][1].flip(-1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_one_expert_is_the_model_alone(name: str, table) -> None:
    X, y = table
    alone, moe = KINDS[name](X, y), MixtureOfExperts(X, y, experts=[KINDS[name](X, y)])
    report, of_mixture = fit(alone), fit_mixture(moe)
    assert of_mixture.objective_trace[-1] == pytest.approx(report.objective_trace[-1], abs=1e-6)
    weights, means, variances = alone.components(X)
    predictive = moe.predictive(X)
    np.testing.assert_allclose(predictive.weights, weights, atol=1e-9)
    np.testing.assert_allclose(predictive.component_means, means, atol=1e-5)
    np.testing.assert_allclose(predictive.component_variances, variances, rtol=1e-4)


def test_rows_twice_one_row_and_constant_targets_are_fitted(kind: str) -> None:
    X = torch.tensor([[0.0], [0.0], [1.0], [1.0], [0.5]], dtype=torch.float64)
    for rows, y in ((5, torch.zeros(5, dtype=torch.float64)), (1, torch.ones(1, dtype=torch.float64))):
        moe = MixtureOfExperts(X[:rows], y, experts=[KINDS[kind](X[:rows], y), NullExpert(X[:rows], y)])
        trace = np.array(run_em(moe, Cholesky(), 4, NEVER).trace)
        assert np.isfinite(trace).all()
        assert np.isfinite(moe.predictive(X).variance).all()


def test_more_experts_than_rows_are_allowed_with_given_responsibilities() -> None:
    X = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    moe = MixtureOfExperts(X, X.squeeze(-1), experts=[LinearExpert(X, X.squeeze(-1)) for _ in range(4)])
    assert np.isfinite(run_em(moe, Cholesky(), 3, NEVER).trace).all()


def test_the_heteroscedastic_gp_finds_where_the_noise_is() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.linspace(-2, 2, 120, dtype=torch.float64).unsqueeze(-1)
    truth = 0.05 + 0.5 * (X.squeeze(-1) > 0)
    y = X.squeeze(-1).sin() + truth * torch.randn(120, dtype=torch.float64, generator=generator)
    gp = HeteroscedasticGP(X, y)
    assert fit(gp).converged
    found = gp.noise_variance(X).sqrt()
    assert 0.03 < float(found[:40].mean()) < 0.09
    assert 0.35 < float(found[80:].mean()) < 0.75
    posterior = gp.posterior(X[:3], observation_noise=True)
    assert_close(
        posterior.variance.squeeze(-1), gp.marginals(X[:3])[1] + gp.noise_variance(X[:3]), rtol=1e-6, atol=1e-9
    )
    assert len(gp.predictive(X)) == 120


def test_merging_takes_the_two_experts_that_say_the_same(table) -> None:
    X, y = table
    moe = MixtureOfExperts(X, y, experts=[LinearExpert(X, y, noise=0.1) for _ in range(3)], gate="constant")
    r = soft(20, 3)
    moe.set_responsibilities(r)
    for slope, expert in zip((0.0, 5.0, 0.01), moe.all_experts, strict=True):
        expert.set_coefficients(torch.tensor([slope, 0.0, slope], dtype=torch.float64), 0.1)
    (start,) = merge_experts(moe)
    assert_close(start.responsibilities, torch.stack([r[:, 1], r[:, 0] + r[:, 2]], -1))
    assert start.models is not None
    assert start.models[0] is moe.experts[1]
    assert merge_experts(MixtureOfExperts(X, y, n_experts=1)) == []


def test_one_expert_is_reported_when_the_data_want_one() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.linspace(-2, 2, 60, dtype=torch.float64).unsqueeze(-1)
    y = 2 * X.squeeze(-1) + 0.3 * torch.randn(60, dtype=torch.float64, generator=generator)
    made = choose_n_experts(
        lambda k: MixtureOfExperts(X, y, experts=[LinearExpert(X, y) for _ in range(k)]), n_restarts=2, seed=0, most=3
    )
    assert made[0].n_experts == 1


def test_a_rival_is_kept_where_its_evidence_is_larger() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.linspace(-2, 2, 60, dtype=torch.float64).unsqueeze(-1)
    y = (1.2 * X.squeeze(-1)).exp() * torch.randn(60, dtype=torch.float64, generator=generator)
    even = X.squeeze(-1).sin() + 0.2 * torch.randn(60, dtype=torch.float64, generator=generator)
    for data, kept in ((y, HeteroscedasticGP), (even, ExactGP)):
        targets = (data - data.mean()) / data.std()
        rival = MixtureOfExperts(X, targets, experts=[HeteroscedasticGP(X, targets)])
        moe, report = choose_n_experts(
            lambda k, y=targets: MixtureOfExperts(X, y, n_experts=k), n_restarts=1, seed=0, most=1, rivals=[rival]
        )
        assert type(moe.experts[0]) is kept
        assert report.converged


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda X, y: LinearExpert(X, y, noise=-1.0), InputError, "`noise` is a variance .* got -1.0"),
        (lambda X, y: LinearExpert(X, y, inputs=[2]), InputError, r"columns of X, 0 to 1; got \[2\]"),
        (lambda X, y: LinearExpert(X, y).set_data(X[:, :1], y), ShapeError, r"\(n, 2\).* got \(20, 1\)"),
        (lambda X, y: LinearExpert(X, y).set_coefficients(y, 1.0), ShapeError, r"\(3,\); got \(20,\)"),
        (lambda X, y: NullExpert(X, y, variance=0.0), InputError, "`variance` must be positive"),
        (lambda X, y: HeteroscedasticGP(X, y).set_data(X[:, :1], y), ShapeError, r"\(n, 2\).* got \(20, 1\)"),
        (lambda X, y: StudentTGP(X, y).set_data(X[:, :1], y), ShapeError, r"\(n, 2\).* got \(20, 1\)"),
        (lambda X, y: MixtureOfExperts(X, y, experts=[]), InputError, "at least 1; got 0"),
        (lambda X, y: MixtureOfExperts(X, y, experts=[NullExpert(X, y)], noise=1.0), InputError, "neither of these"),
    ],
)
def test_wrong_arguments_are_named(table, call: Callable, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        call(*table)


def test_sharp_factors_on_repeated_rows_lose_no_digits(table) -> None:
    X = table[0][:5].repeat(4, 1)
    K = ExactGP(X, X[:, 0], noise=1.0).covar_module(X).to_dense().detach()
    y = X[:, 0].sin()
    got = site_posterior(K, torch.full_like(y, 1e10), 1e10 * y)
    assert_close(got.mean, y, rtol=0, atol=1e-7)
    assert_close(K @ got.alpha, y, rtol=0, atol=1e-7)


def test_factors_of_any_precision_have_the_posterior_of_dense_algebra(table, normal) -> None:
    K = ExactGP(*table, noise=1.0).covar_module(table[0]).to_dense().detach() + 0.1 * torch.eye(20, dtype=torch.float64)
    precision, linear = 10 ** (3 * normal(20) - 3), normal(20)
    precision[:3] = 0.0
    linear[1] = 0.0
    got = site_posterior(K, precision, linear)
    S = (K.inverse() + precision.diag()).inverse()
    assert_close(got.mean, S @ linear, rtol=1e-7, atol=1e-8)
    assert_close(got.variance, S.diagonal(), rtol=1e-7, atol=1e-8)
    assert_close(K @ got.alpha, got.mean, rtol=1e-7, atol=1e-8)
    q, prior = (torch.distributions.MultivariateNormal(mean, cov) for mean, cov in ((S @ linear, S), (0 * linear, K)))
    assert got.divergence == pytest.approx(float(torch.distributions.kl_divergence(q, prior)), rel=1e-7)
    assert got.half_log_det == pytest.approx(0.5 * float(K.logdet() - S.logdet()), rel=1e-7)


def test_a_heteroscedastic_gp_interpolates_repeated_rows() -> None:
    X = torch.linspace(-1, 1, 6, dtype=torch.float64).unsqueeze(-1).repeat_interleave(4, 0)
    y = (3 * X[:, 0]).sin()
    gp = HeteroscedasticGP(X, y)
    fit(gp)
    assert_close(gp.marginals(X)[0], y, rtol=0, atol=1e-3)
