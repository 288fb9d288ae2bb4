"""Surrogate and acquisition of a sweep, against GPyTorch, finite differences, BoTorch and Monte Carlo."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import approx_fprime

from gpmoe.bo.acquisition import NoisyExpectedImprovement, ProbabilityOfSuccess, Sum, log_h
from gpmoe.bo.outcome import OFFSETS, Outcome
from gpmoe.bo.surrogate import Evidence, Layout, Surrogate, climb, fit_surrogate

Matrix = NDArray[np.float64]
LAYOUT = Layout(np.array([0, 1, 1, 2]), np.array([0, 3]))


@pytest.fixture
def evidence() -> Evidence:
    rng = np.random.default_rng(0)
    X = rng.random((15, 4))
    return Evidence(X, np.sin(5 * X[:, 0]) + X[:, 1] + 0.1 * rng.standard_normal(15), LAYOUT)


@pytest.fixture
def theta(evidence: Evidence) -> Matrix:
    return evidence.start() + 0.3 * np.random.default_rng(1).standard_normal(evidence.mean + 1)


@pytest.fixture
def surrogate(evidence: Evidence, theta: Matrix) -> Surrogate:
    theta[evidence.noise] = -3.0
    return Surrogate(evidence, theta, 0.0)


def test_the_evidence_is_that_of_a_dense_gaussian(evidence: Evidence, theta: Matrix) -> None:
    a, b = np.exp(theta[evidence.a]), np.exp(theta[evidence.b])
    W = evidence.X.copy()
    W[:, [0, 3]] = 1 - (1 - W[:, [0, 3]] ** a) ** b
    Z = torch.from_numpy(W / np.exp(theta[evidence.length])[LAYOUT.owner])
    r = torch.cdist(Z, Z)
    K = np.exp(theta[evidence.output]) * (1 + 5**0.5 * r + 5 / 3 * r**2) * torch.exp(-(5**0.5) * r)
    C = K + np.exp(theta[evidence.noise]) * torch.eye(15, dtype=torch.float64)
    mean = torch.full((15,), theta[evidence.mean], dtype=torch.float64)
    dense = torch.distributions.MultivariateNormal(mean, C).log_prob(torch.from_numpy(evidence.y))
    u = (theta - evidence._middle) / evidence._spread
    assert evidence(theta)[0] == pytest.approx(float(dense) - 0.5 * u @ u, rel=1e-9)


def test_the_slope_of_the_evidence_is_its_finite_difference(evidence: Evidence, theta: Matrix) -> None:
    numeric = approx_fprime(theta, lambda t: evidence(t)[0], 1e-6)
    assert evidence(theta)[1] == pytest.approx(numeric, rel=1e-3, abs=1e-3)


def test_a_climb_ends_where_it_can_go_no_further(evidence: Evidence) -> None:
    end, value = climb(evidence, evidence.start(), 200)
    low, high = np.array(evidence.bounds()).T
    inside = (end > low + 1e-9) & (end < high - 1e-9)
    assert value > evidence(evidence.start())[0]
    assert np.abs(evidence(end)[1][inside]).max() < 0.05


def test_constant_and_repeated_data_can_be_fitted() -> None:
    X = np.full((6, 2), 0.5)
    fit = fit_surrogate(X, np.zeros(6), Layout(np.array([0, 1]), np.array([0, 1])))
    mean, covariance = fit.posterior(X[:2])
    assert mean == pytest.approx([0, 0], abs=1e-6)
    assert np.isfinite(covariance).all()


@pytest.mark.parametrize("offset", OFFSETS)
def test_outcomes_are_standardised_in_their_order(offset: float) -> None:
    y = np.random.default_rng(2).standard_cauchy(50) * 1e3
    outcome = Outcome.of(y, offset)
    assert outcome(y).mean() == pytest.approx(0, abs=1e-9)
    assert outcome(y).std() == pytest.approx(1)
    assert (np.diff(outcome(np.sort(y))) > 0).all()
    step = 1e-4
    slopes = (outcome(y - step) - outcome(y + step)) / (-2 * step)
    inside = y < y.max() - step
    expected = outcome.log_slope - float(np.log(slopes[~inside]).sum())
    assert np.log(slopes[inside]).sum() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("y", [np.zeros(4), np.array([1e300, -1e300]), np.array([1.0])])
def test_outcomes_without_a_scale_stay_finite(y: Matrix) -> None:
    for offset in OFFSETS:
        assert np.isfinite(Outcome.of(y, offset)(y)).all()


def test_log_h_is_right_far_below_the_best() -> None:
    z = np.array([3.0, 0.0, -0.999, -1.001, -5.0, -30.0])
    x = torch.from_numpy(z)
    normal = torch.distributions.Normal(0.0, 1.0)
    plain = (normal.log_prob(x).exp() + x * normal.cdf(x)).log().numpy()
    assert log_h(z)[:5] == pytest.approx(plain[:5], rel=1e-6)
    # h(z) = φ(z) / z² (1 - 3 / z² + ...) far below zero
    assert log_h(z)[5] == pytest.approx(-450 - 0.5 * np.log(2 * np.pi) - 2 * np.log(30) + np.log1p(-3 / 900), abs=1e-3)
    assert np.isfinite(log_h(np.array([-1e8, 1e8]))).all()


def test_noisy_improvement_is_what_paths_of_the_posterior_show(surrogate: Surrogate) -> None:
    rng = np.random.default_rng(3)
    x, pending = rng.random((1, 4)), rng.random((2, 4))
    nei = NoisyExpectedImprovement(surrogate, pending, seed=0, draws=512)
    T = np.concatenate([surrogate.evidence.X, pending, x])
    mean, covariance = surrogate.posterior(T)
    paths = rng.multivariate_normal(mean, covariance, 200_000, method="cholesky", check_valid="ignore")
    gains = np.maximum(paths[:, -1] - paths[:, :-1].max(1), 0)
    error = gains.std() / len(gains) ** 0.5
    assert np.exp(nei(x)[0]) == pytest.approx(gains.mean(), abs=4 * error + 0.02 * gains.mean())


def test_noisy_improvement_agrees_with_botorch(surrogate: Surrogate) -> None:
    from botorch.acquisition.logei import qLogNoisyExpectedImprovement
    from botorch.models import SingleTaskGP
    from botorch.sampling import SobolQMCNormalSampler

    evidence, theta = surrogate.evidence, surrogate.theta
    unwarped = theta.copy()
    unwarped[evidence.a] = unwarped[evidence.b] = 0.0
    surrogate = Surrogate(evidence, unwarped, 0.0)
    from gpytorch.kernels import MaternKernel, ScaleKernel

    kernel = ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=4)).double()
    model = SingleTaskGP(
        torch.from_numpy(evidence.X), torch.from_numpy(evidence.y)[:, None], covar_module=kernel, outcome_transform=None
    )
    kernel.base_kernel.lengthscale = torch.from_numpy(np.exp(theta[evidence.length])[LAYOUT.owner])
    kernel.outputscale = surrogate.scale
    model.likelihood.noise = surrogate.noise
    model.mean_module.constant.data.fill_(surrogate.mean)
    ours = NoisyExpectedImprovement(surrogate, np.empty((0, 4)), seed=0, draws=512)
    scattered = np.random.default_rng(4).random((500, 4))
    x = scattered[np.argsort(-ours(scattered))[:5]]  # elsewhere no sample improves
    sampler = SobolQMCNormalSampler(torch.Size([2048]), seed=0)
    theirs = qLogNoisyExpectedImprovement(model, torch.from_numpy(evidence.X), sampler=sampler, prune_baseline=False)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)[:, None]).numpy()
    assert ours(x) == pytest.approx(expected, abs=0.15)


def test_slopes_of_acquisitions_are_their_finite_differences(surrogate: Surrogate) -> None:
    rng = np.random.default_rng(5)
    nei = NoisyExpectedImprovement(surrogate, rng.random((1, 4)), seed=0)
    labels = Evidence(surrogate.evidence.X, np.sign(surrogate.evidence.y), LAYOUT)
    both = Sum(nei, ProbabilityOfSuccess(Surrogate(labels, surrogate.theta, 0.0)))
    X = rng.uniform(0.05, 0.95, (4, 4))
    values, slopes = both.with_slope(X)
    assert both(X) == pytest.approx(values, rel=1e-12)
    for x, slope in zip(X, slopes, strict=True):
        assert slope == pytest.approx(approx_fprime(x, lambda u: both(u[None])[0], 1e-7), rel=1e-3, abs=1e-4)


def test_a_pending_point_is_not_proposed_again(surrogate: Surrogate) -> None:
    x = np.random.default_rng(6).random((1, 4))
    before = NoisyExpectedImprovement(surrogate, np.empty((0, 4)), seed=0)(x)[0]
    assert NoisyExpectedImprovement(surrogate, x, seed=0)(x)[0] < before - 3
