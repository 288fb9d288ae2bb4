"""Variational EM: its bound against naive formulas and the exact evidence, its climb, and what it finds."""

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
import torch
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from joblib import parallel_config
from numpy.testing import assert_allclose
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence
from torch.testing import assert_close

from gpmoe import GPRegressor, MixtureOfExpertsRegressor
from gpmoe.data import load_motorcycle, simulate_two_regimes
from gpmoe.inference import Cholesky
from gpmoe.inference.fit import Climber
from gpmoe.inference.hard_em import fit_hard
from gpmoe.inference.marginal_likelihood import log_prior
from gpmoe.inference.plain_evidence import plain_evidence
from gpmoe.inference.report import FitReport
from gpmoe.inference.vbem import (
    _expected_log_likelihood,
    choose_n_experts,
    cluster_starts,
    expert_evidence,
    fit_mixture,
    run_em,
    split_experts,
)
from gpmoe.models import ExactGP, MixtureOfExperts

GATES = ["constant", "softmax", "gp"]
NEVER = -np.inf  # a tolerance that never stops


def scaled(X: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
    """Data of zero mean and unit variance, as tensors."""
    return torch.from_numpy((X - X.mean(0)) / X.std(0)), torch.from_numpy((y - y.mean()) / y.std())


def data_set(name: str) -> tuple[Tensor, Tensor]:
    if name == "two regimes":
        return scaled(*simulate_two_regimes(40, seed=0)[:2])
    if name == "motorcycle":
        X, y = load_motorcycle()
        return scaled(X[::3], y[::3])
    rng = np.random.default_rng(3)
    X = rng.standard_normal((30, 4))
    return scaled(X, np.abs(X[:, 0]) + 0.1 * rng.standard_normal(30))


def bound(moe: MixtureOfExperts) -> float:
    """Experts, gate and entropy, without the log priors of hyperparameters."""
    with torch.no_grad():
        r = moe.responsibilities
        experts = sum(float(expert_evidence(expert)) for expert in moe.experts)
        return experts + float(moe.gate.bound(moe.X, r)) - float(torch.special.xlogy(r, r).sum())


@pytest.fixture
def moe(table: tuple[Tensor, Tensor], normal: Callable[..., Tensor]) -> MixtureOfExperts:
    """Two unfitted experts that differ, a constant gate, eight points and soft responsibilities."""
    kernels = [ScaleKernel(RBFKernel()), ScaleKernel(MaternKernel(nu=1.5))]
    moe = MixtureOfExperts(table[0][:8], table[1][:8], n_experts=2, kernel=kernels, gate="constant")
    for k, expert in enumerate(moe.experts):
        expert.likelihood.noise, expert.mean_module.constant = 0.1 + 0.3 * k, 0.5 - k
        expert.covar_module.outputscale = 1.0 + k
    moe.gate.logits = torch.tensor([0.3, -0.4], dtype=torch.float64)
    moe.set_responsibilities(normal(8, 2).softmax(-1))
    return moe


def dense(expert: ExactGP, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Prior mean, prior covariance and noise variance of an expert."""
    with torch.no_grad():
        K = expert.covar_module(X).to_dense()
        return expert.mean_module.constant.detach().expand(len(X)), K, expert.likelihood.noise.detach()


def dense_posterior(expert: ExactGP, X: Tensor, y: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """q(f) of an expert by inverses: prior precision plus r over the noise."""
    m, K, noise = dense(expert, X)
    covariance = torch.linalg.inv(torch.linalg.inv(K) + (r / noise).diag())
    return m + covariance @ (r / noise * (y - m)), covariance


def test_an_expert_sees_a_point_with_its_noise_over_the_responsibility(moe: MixtureOfExperts, table) -> None:
    X, y, X_new = moe.X, moe.y, table[0][8:12]
    for k, expert in enumerate(moe.experts):
        m, K, noise = dense(expert, X)
        K_new = expert.covar_module(X_new, X).to_dense().detach()
        C = K + (noise / moe.responsibilities[:, k]).diag()
        mean = m[0] + K_new @ torch.linalg.solve(C, y - m)
        variance = dense(expert, X_new)[1].diagonal() - (K_new * torch.linalg.solve(C, K_new.mT).mT).sum(-1)
        got = expert.marginals(X_new)
        assert_close(got[0], mean, rtol=1e-10, atol=1e-10)
        assert_close(got[1], variance, rtol=1e-10, atol=1e-10)


def test_the_expected_log_likelihood_is_that_of_samples(moe: MixtureOfExperts, normal) -> None:
    expert = moe.experts[1]
    mean, covariance = dense_posterior(expert, moe.X, moe.y, moe.responsibilities[:, 1])
    f = mean + covariance.diagonal().sqrt() * normal(100_000, 8)
    samples = torch.distributions.Normal(f, expert.likelihood.noise.detach().sqrt()).log_prob(moe.y)
    error = expert.expected_log_likelihood(moe.X, moe.y) - samples.mean(0)
    assert bool((error.abs() < 4 * samples.std(0) / 100_000**0.5).all())


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_equals_expected_log_joint_minus_expected_log_posterior(moe: MixtureOfExperts, seed: int) -> None:
    r = torch.rand(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    moe.set_responsibilities(r)
    log_pi = torch.log_softmax(moe.gate.logits, -1)
    total = (r * (log_pi - r.log())).sum() + log_pi.sum() / 2
    for k, expert in enumerate(moe.experts):
        m, K, noise = dense(expert, moe.X)
        mean, covariance = dense_posterior(expert, moe.X, moe.y, r[:, k])
        square = (moe.y - mean) ** 2 + covariance.diagonal()
        total += (r[:, k] * -0.5 * ((2 * torch.pi * noise).log() + square / noise)).sum()
        total -= kl_divergence(MultivariateNormal(mean, covariance), MultivariateNormal(m, K))
    assert_close(bound(moe), float(total), rtol=1e-9, atol=1e-9)


def exact_log_evidence(moe: MixtureOfExperts) -> float:
    """log of the sum over all k^n assignments of p(z) p(y | z), dense."""
    log_pi, parts = torch.log_softmax(moe.gate.logits, -1), [dense(expert, moe.X) for expert in moe.experts]
    terms = []
    for z in itertools.product(range(len(parts)), repeat=len(moe.y)):
        assignment = torch.tensor(z)
        term = log_pi[assignment].sum()
        for k, (m, K, noise) in enumerate(parts):
            own = (assignment == k).nonzero().squeeze(-1)
            C = K[own][:, own] + noise * torch.eye(len(own), dtype=torch.float64)
            if len(own):
                term = term + MultivariateNormal(m[own], C).log_prob(moe.y[own])
        terms.append(term)
    return float(torch.stack(terms).logsumexp(0))


def test_the_bound_is_below_the_evidence_by_enumeration(moe: MixtureOfExperts) -> None:
    log_prior_of_gate = float(torch.log_softmax(moe.gate.logits, -1).sum() / 2)
    evidence = exact_log_evidence(moe)
    gaps = []
    for _ in range(30):
        gaps.append(evidence - (bound(moe) - log_prior_of_gate))
        logs = [expert.expected_log_likelihood(moe.X, moe.y) for expert in moe.experts]
        moe.set_responsibilities(torch.softmax(torch.stack(logs, -1) + moe.gate.logits, -1))
    assert min(gaps) > 0
    assert gaps[-1] < 2
    assert max(np.diff(gaps)) < 1e-9


def test_the_bound_of_certain_assignments_is_their_exact_joint_probability(moe: MixtureOfExperts) -> None:
    z = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    moe.set_responsibilities(torch.nn.functional.one_hot(z, 2).double())
    log_pi = torch.log_softmax(moe.gate.logits, -1)
    wanted = log_pi[z].sum() + log_pi.sum() / 2
    for k, expert in enumerate(moe.experts):
        m, K, noise = dense(expert, moe.X[z == k])
        wanted += MultivariateNormal(m, K + noise * torch.eye(4, dtype=torch.float64)).log_prob(moe.y[z == k])
    assert_close(bound(moe), float(wanted), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["two regimes", "motorcycle", "four inputs"])
@pytest.mark.parametrize("n_experts", [2, 3])
@pytest.mark.parametrize("gate", GATES)
def test_the_bound_never_falls(name: str, n_experts: int, gate: str) -> None:
    X, y = data_set(name)
    moe = MixtureOfExperts(X, y, n_experts=n_experts, gate=gate)
    generator = torch.Generator().manual_seed(n_experts)
    moe.set_responsibilities((2 * torch.randn(len(y), n_experts, dtype=torch.float64, generator=generator)).softmax(-1))
    trace = np.array(run_em(moe, Cholesky(), 12, NEVER).trace)
    assert len(trace) == 12
    assert (np.diff(trace) >= -1e-8 * np.abs(trace[1:])).all()


@pytest.mark.parametrize("gate", GATES)
def test_the_report_of_a_fit_holds_the_bound_at_its_end(gate: str) -> None:
    moe = MixtureOfExperts(*data_set("two regimes"), n_experts=2, gate=gate)
    report = fit_mixture(moe, seed=1, n_restarts=2)
    priors = float(torch.as_tensor(log_prior(moe.gate)).detach())
    priors += sum(float(log_prior(expert).detach()) for expert in moe.experts)
    assert_close(bound(moe) + priors, report.objective_trace[-1], rtol=1e-8, atol=1e-7)
    assert (np.diff(report.objective_trace) >= -1e-8 * np.abs(report.objective_trace[1:])).all()
    assert report.converged
    assert len(report.starts) == 2


def test_one_expert_equals_the_gp_regressor() -> None:
    X, y, _ = simulate_two_regimes(40, seed=0)
    gp, moe = GPRegressor().fit(X, y), MixtureOfExpertsRegressor(n_experts=1).fit(X, y)
    grid = np.linspace(-3, 3, 50)[:, None]
    assert np.abs(moe.predict_dist(grid).log_prob(0.5) - gp.predict_dist(grid).log_prob(0.5)).max() < 1e-6
    assert abs(moe.report_.objective_trace[-1] - gp.report_.objective_trace[-1]) < 1e-6


@pytest.mark.parametrize("gate", ["constant", "softmax"])
def test_relabelling_experts_permutes_outputs(gate: str) -> None:
    X, y = data_set("two regimes")
    runs = []
    for order in ([0, 1], [1, 0]):
        moe = MixtureOfExperts(X, y, n_experts=2, gate=gate)
        moe.set_responsibilities(torch.stack([X[:, 0].sigmoid(), (-X[:, 0]).sigmoid()], -1)[:, order])
        runs.append((run_em(moe, Cholesky(), 5, NEVER).trace, moe.predictive(X), moe.responsibilities))
    assert_close(runs[0][0], runs[1][0], rtol=1e-6, atol=1e-6)
    assert_close(runs[0][2], runs[1][2].flip(-1), rtol=0, atol=1e-4)
    for name in ("weights", "component_means", "component_variances"):
        first, second = (getattr(run[1], name) for run in runs)
        np.testing.assert_allclose(first, second[:, ::-1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gate", ["softmax", "gp"])
def test_gate_probabilities_of_two_regimes_are_recovered(gate: str) -> None:
    X, y, truth = simulate_two_regimes(150, seed=0)
    model = MixtureOfExpertsRegressor(n_experts=2, gate=gate, random_state=0).fit(X, y)
    probs = model.predict_gate_probs(X)
    assert min(np.abs(probs - truth).mean(), np.abs(probs[:, ::-1] - truth).mean()) < 0.1


def parameters(model: MixtureOfExpertsRegressor) -> list[Tensor]:
    return [*model.model_.parameters(), model.model_.responsibilities, model.model_.gate_probs(model.model_.X)]


def test_a_seed_reproduces_every_bit() -> None:
    X, y, _ = simulate_two_regimes(40, seed=2)
    first, second = (MixtureOfExpertsRegressor(n_experts=2, random_state=4).fit(X, y) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(parameters(first), parameters(second), strict=True))
    assert first.report_.objective_trace == second.report_.objective_trace


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["softmax", "gp"])
def test_a_seed_reproduces_every_bit_in_two_processes(gate: str) -> None:
    X, y, _ = simulate_two_regimes(40, seed=2)
    here = MixtureOfExpertsRegressor(n_experts=2, gate=gate, random_state=4).fit(X, y)
    with parallel_config(n_jobs=2):
        there = MixtureOfExpertsRegressor(n_experts=2, gate=gate, random_state=4).fit(X, y)
    assert all(torch.equal(a, b) for a, b in zip(parameters(here), parameters(there), strict=True))


def test_starts_are_assignments_that_differ_and_follow_their_seed(table) -> None:
    moe = MixtureOfExperts(*table, n_experts=3)
    starts, again = ([start.responsibilities for start in cluster_starts(moe, ExactGP(*table), 7, 0)] for _ in range(2))
    assert len(starts) == 7
    assert all(torch.equal(a, b) for a, b in zip(starts, again, strict=True))
    assert all(bool(((r > 0) & (r < 1)).all()) and r.shape == (20, 3) for r in starts)
    assert_close(torch.stack(starts).sum(-1), torch.ones(7, 20, dtype=torch.float64))
    assert not torch.equal(starts[0], starts[1])


def test_splitting_an_expert_leaves_the_others_and_the_total(moe: MixtureOfExperts) -> None:
    moe.set_responsibilities(torch.tensor([[0.9, 0.1]] * 4 + [[0.2, 0.8]] * 4, dtype=torch.float64))
    starts = split_experts(moe)
    assert len(starts) == 2
    for k, start in enumerate(starts):
        r = start.responsibilities
        assert torch.equal(r[:, 0], moe.responsibilities[:, 1 - k])
        assert_close(r[:, 1:].sum(-1), moe.responsibilities[:, k])
        assert start.models == [moe.experts[1 - k], moe.experts[k], moe.experts[k]]


def test_the_number_of_experts_is_held_by_the_number_of_points(table) -> None:
    asked = []

    def make(k: int) -> MixtureOfExperts:
        asked.append(k)
        return MixtureOfExperts(*table, n_experts=k)

    choose_n_experts(make, n_restarts=1, seed=0)
    assert asked == [1, 2]


@pytest.mark.parametrize("gate", ["softmax", "gp"])
def test_on_many_rows_the_search_is_made_on_some_and_the_fit_on_all(gate: str) -> None:
    X, y, truth = simulate_two_regimes(400, seed=0)
    model = MixtureOfExpertsRegressor(n_experts=2, gate=gate, random_state=0).fit(X, y)
    probs = model.predict_gate_probs(X)
    assert model.responsibilities_.shape == (400, 2)
    assert min(np.abs(probs - truth).mean(), np.abs(probs[:, ::-1] - truth).mean()) < 0.08
    assert model.report_.converged
    assert (np.diff(model.report_.objective_trace) >= -1e-8 * np.abs(model.report_.objective_trace[1:])).all()
    assert len(model.report_.starts) == 6


def test_membership_is_the_posterior_of_predictive_densities(moe: MixtureOfExperts, table) -> None:
    X, y = table[0][8:12], table[1][8:12]
    predictive = moe.predictive(X)
    density = [
        float(weight) * np.exp(-0.5 * (float(y[i]) - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)
        for i in range(4)
        for weight, mean, variance in zip(
            predictive.weights[i], predictive.component_means[i], predictive.component_variances[i], strict=True
        )
    ]
    joint = np.reshape(density, (4, 2))
    np.testing.assert_allclose(moe.membership(X, y).numpy(), joint / joint.sum(-1, keepdims=True), rtol=1e-10)


def test_a_model_on_some_rows_keeps_parameters_and_leaves_the_first_alone(moe: MixtureOfExperts) -> None:
    before = moe.responsibilities.clone()
    small = moe.on_rows(torch.tensor([5, 1]))
    assert torch.equal(small.X, moe.X[[5, 1]])
    assert torch.equal(small.responsibilities, before[[5, 1]])
    assert torch.equal(small.experts[0].y, moe.y[[5, 1]])
    small.experts[0].mean_module.constant = 9.0
    assert moe.experts[0].mean_module.constant.item() == 0.5
    assert torch.equal(moe.responsibilities, before)
    assert len(moe.experts[0].y) == 8


@pytest.mark.parametrize("kernel", [None, "unwritten"])
def test_the_written_out_e_step_equals_that_of_the_model(kernel: str | None, table, normal) -> None:
    made = None if kernel is None else ScaleKernel(RBFKernel() + MaternKernel(nu=1.5))
    moe = MixtureOfExperts(*table, n_experts=2, kernel=made, gate="constant")
    moe.set_responsibilities(normal(20, 2).softmax(-1))
    expert = moe.all_experts[0]
    climber = Climber(expert, expert_evidence, plain_evidence(expert))
    value = climber.nudge(3)
    assert (climber.plain is None) == (kernel is not None)
    assert value == pytest.approx(float((expert_evidence(expert) + log_prior(expert)).detach()), rel=1e-9)
    wanted = expert.expected_log_likelihood(moe.X, moe.y)
    assert_close(_expected_log_likelihood(climber, moe.X, moe.y), wanted, rtol=1e-8, atol=1e-8)


def test_the_report_holds_each_experts_share_after_each_iteration() -> None:
    X, y, _ = simulate_two_regimes(40, 0)
    for fit_by in (fit_mixture, fit_hard):
        moe = MixtureOfExperts(torch.from_numpy(X), torch.from_numpy(y), n_experts=2)
        report = fit_by(moe, seed=0)
        assert np.shape(report.usage) == (report.iterations, 2)
        assert_allclose(np.sum(report.usage, 1), 1.0)
        assert_allclose(report.usage[-1], moe.responsibilities.mean(0))
        assert FitReport.from_dict(json.loads(json.dumps(asdict(report)))) == report
