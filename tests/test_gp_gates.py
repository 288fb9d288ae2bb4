"""Softmax and probit of GPs: against dense algebra, quadrature and Monte Carlo."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence
from torch.special import log_ndtr
from torch.testing import assert_close

from gpmoe.errors import InputError
from gpmoe.gates.gate import Gate
from gpmoe.gates.gp import GPGate
from gpmoe.gates.gp_probit import GPProbitGate
from gpmoe.gates.gp_softmax import GPSoftmaxGate, contrasts
from gpmoe.testing import check_gate

GATES: dict[str, Callable[..., Gate]] = {
    "softmax": lambda k, kernel=None: GPSoftmaxGate(k, 2, kernel),
    "probit": lambda k, kernel=None: GPProbitGate(2, kernel, k),
    "sticks": lambda k, kernel=None: GPGate(k, 2, kernel),
}
TWO = [("softmax", 2), ("softmax", 4), ("probit", 2)]


@pytest.fixture
def X(normal) -> Tensor:
    return normal(12, 2)


def responsibilities_of(normal, k: int) -> Tensor:
    return (2 * normal(12, k)).softmax(-1)


def kernel() -> ScaleKernel:
    kernel = ScaleKernel(RBFKernel())
    kernel.outputscale, kernel.base_kernel.lengthscale = 3.0, 0.8
    return kernel


@pytest.mark.parametrize("n_experts", [1, 2, 4])
def test_gp_softmax_keeps_the_contract(n_experts: int) -> None:
    check_gate(lambda: GPSoftmaxGate(n_experts, 2), 2, exchangeable=n_experts < 3)


def test_gp_probit_keeps_the_contract() -> None:
    check_gate(lambda: GPProbitGate(2), 2)


@pytest.mark.parametrize(("name", "k"), [*TWO, ("sticks", 3)])
def test_bound_is_expectation_plus_log_prior(name: str, k: int, X: Tensor, normal) -> None:
    gate, r = GATES[name](k, kernel()), responsibilities_of(normal, k)
    with torch.no_grad():
        gate.fit_step(X, r)
        wanted = (r * gate.expected_log_probs(X)).sum() + gate.log_prior()
        assert_close(gate.bound(X, r), wanted, rtol=1e-9, atol=1e-9)


def dense(K: Tensor, z: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a GP on pseudo-observations, by inverses."""
    covariance = torch.linalg.inv(torch.linalg.inv(K) + torch.eye(len(K), dtype=K.dtype) / noise)
    return covariance @ z / noise, covariance


@pytest.mark.parametrize(("name", "k"), TWO)
def test_log_prior_is_minus_the_divergence(name: str, k: int, X: Tensor, normal) -> None:
    gate, r = GATES[name](k, kernel()), responsibilities_of(normal, k)
    with torch.no_grad():
        gate.fit_step(X, r)
        K = gate.kernel(X).to_dense() + 1e-10 * torch.eye(12, dtype=torch.float64)
        if name == "softmax":
            z, noise = gate._pseudo(r), 2.0
        else:
            psi = gate.psi
            phi = (-0.5 * psi**2).exp() / (2 * torch.pi) ** 0.5
            z, noise = (
                (psi + phi * (r[:, 0] / torch.special.ndtr(psi) - r[:, 1] / torch.special.ndtr(-psi)))[:, None],
                1,
            )
        prior = MultivariateNormal(torch.zeros(12, dtype=torch.float64), K)
        moments = [dense(K, column, noise) for column in z.mT]
        divergence = sum(kl_divergence(MultivariateNormal(mean, C), prior) for mean, C in moments)
        assert_close(-gate.log_prior(), divergence, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "k"), TWO)
def test_steps_climb_to_a_fixed_point(name: str, k: int, X: Tensor, normal) -> None:
    gate, r = GATES[name](k, kernel()), responsibilities_of(normal, k)
    values = []
    with torch.no_grad():
        for _ in range(20):
            gate.fit_step(X, r)
            values.append(float(gate.bound(X, r)))
    assert all(new >= old - 1e-10 for old, new in pairwise(values))
    assert values[-1] - values[-2] < 1e-7


@pytest.mark.parametrize("k", [2, 3])
def test_gp_softmax_expectations_are_bounds_by_monte_carlo(k: int, X: Tensor, normal) -> None:
    gate, r = GATES["softmax"](k, kernel()), responsibilities_of(normal, k)
    with torch.no_grad():
        gate.fit_step(X, r)
        mean, variance = gate._moments(X)
        g = mean + variance.sqrt()[:, None] * normal(100_000, 12, k - 1)
        samples = (g @ contrasts(k).mT).log_softmax(-1)
        exact, error = samples.mean(0), 4 * samples.std(0) / 100_000**0.5
        bound = gate.expected_log_probs(X)
        assert bool((bound <= exact + error).all())
        assert_close(bound, exact, rtol=0, atol=0.8)


def test_gp_probit_expectations_are_bounds_by_quadrature(X: Tensor, normal) -> None:
    gate, r = GPProbitGate(2, kernel()), responsibilities_of(normal, 2)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(60))
    with torch.no_grad():
        gate.fit_step(X, r)
        mean, variance = gate._moments(X)
        h = mean[:, None] + variance.sqrt()[:, None] * nodes
        exact = torch.stack([(log_ndtr(sign * h) * weights / weights.sum()).sum(-1) for sign in (1, -1)], -1)
        bound = gate.expected_log_probs(X)
        assert bool((bound <= exact + 1e-9).all())
        assert_close(bound, exact, rtol=0, atol=0.8)


@pytest.mark.parametrize("r", [[1.0], [0.3], [1.0, 0.0], [0.9, 0.4]])
@pytest.mark.parametrize("name", ["softmax", "probit"])
def test_bound_is_below_the_evidence_by_quadrature(name: str, r: list[float], X: Tensor) -> None:
    X, first = X[: len(r)], torch.tensor(r, dtype=torch.float64)
    gate = GATES[name](2, kernel())
    with torch.no_grad():
        for _ in range(20):
            gate.fit_step(X, torch.stack([first, 1 - first], -1))
        L = torch.linalg.cholesky(gate.kernel(X).to_dense())
        nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(80))
        grid = torch.cartesian_prod(*[nodes] * len(r)).reshape(-1, len(r))
        weight = torch.cartesian_prod(*[weights / weights.sum()] * len(r)).reshape(-1, len(r)).prod(-1)
        h = grid @ L.mT
        if name == "softmax":
            h = 2**0.5 * h  # two logits g/√2 and -g/√2
        log_sigmoid = log_ndtr if name == "probit" else torch.nn.functional.logsigmoid
        evidence = (weight * (first * log_sigmoid(h) + (1 - first) * log_sigmoid(-h)).sum(-1).exp()).sum().log()
        gap = float(evidence - gate.bound(X, gate.responsibilities))
    assert -1e-9 <= gap < 0.5 * len(r)


@pytest.mark.parametrize(("name", "k"), TWO)
def test_predictive_agrees_with_monte_carlo(name: str, k: int, X: Tensor, normal) -> None:
    gate, r = GATES[name](k, kernel()), responsibilities_of(normal, k)
    with torch.no_grad():
        gate.fit_step(X, r)
        mean, variance = gate._moments(X[:3] + 0.5)
        mean = mean.reshape(3, -1)
        g = mean + variance.sqrt()[:, None] * normal(1_000_000 // k, 3, mean.shape[-1])
        first = torch.special.ndtr(g)
        samples = (g @ contrasts(k).mT).softmax(-1) if name == "softmax" else torch.cat([first, 1 - first], -1)
        error = (gate.log_probs(X[:3] + 0.5).exp() - samples.mean(0)).abs()
        quasi = 0.0 if name == "probit" else 2e-3
        assert bool((error < 4 * samples.std(0) / len(samples) ** 0.5 + quasi).all())


def test_gp_softmax_treats_experts_alike_up_to_the_quadrature(X: Tensor, normal) -> None:
    r, order = responsibilities_of(normal, 4), [2, 0, 3, 1]
    gate, relabelled = GPSoftmaxGate(4, 2), GPSoftmaxGate(4, 2)
    gate.fit_step(X, r)
    relabelled.fit_step(X, r[:, order])
    with torch.no_grad():
        assert_close(relabelled.bound(X, r[:, order]), gate.bound(X, r), rtol=1e-9, atol=1e-9)
        assert_close(relabelled.log_probs(X).exp(), gate.log_probs(X).exp()[:, order], rtol=0, atol=5e-3)


@pytest.mark.parametrize(("name", "k"), TWO)
def test_the_bound_has_the_gradient_for_the_kernel(name: str, k: int, X: Tensor, normal) -> None:
    gate, r = GATES[name](k, kernel()), responsibilities_of(normal, k)
    gate.fit_step(X, r)
    raw = gate.kernel.raw_outputscale
    (slope,) = torch.autograd.grad(gate.bound(X, r), raw)
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            raw += step
            values.append(float(gate.bound(X, r)))
            raw -= step
    assert_close(float(slope), (values[0] - values[1]) / 2e-5, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "k"), TWO)
def test_a_known_boundary_is_recovered_and_forgotten_far_away(name: str, k: int, normal) -> None:
    X = 2 * normal(200, 2)
    labels = (X[:, 0] > 0).long()
    gate = GATES[name](k)
    gate.fit_step(X, torch.nn.functional.one_hot(labels, k).double())
    with torch.no_grad():
        probs = gate.log_probs(X).exp()
        clear = X[:, 0].abs() > 0.5
        assert float((probs.argmax(-1) == labels)[clear].double().mean()) > 0.98
        far = gate.log_probs(torch.full((1, 2), 1e4, dtype=torch.float64)).exp()
        assert_close(far, torch.full_like(far, 1 / k), rtol=0, atol=5e-3)


@pytest.mark.parametrize(("name", "k"), TWO)
def test_edge_rows_are_taken(name: str, k: int) -> None:
    only_first = torch.eye(k, dtype=torch.float64)[:1]
    for X in (torch.zeros(1, 2, dtype=torch.float64), torch.ones(5, 2, dtype=torch.float64)):
        gate, r = GATES[name](k), only_first.expand(len(X), k)
        with torch.no_grad():
            gate.fit_step(X, r)
            assert bool(gate.bound(X, r).isfinite())
            assert bool(gate.expected_log_probs(X).isfinite().all())
            assert int(gate.log_probs(X)[0].argmax()) == 0


def test_probit_gates_have_two_experts() -> None:
    with pytest.raises(InputError, match="has two experts; got 3"):
        GPProbitGate(1, n_experts=3)


@pytest.mark.parametrize(("name", "k"), [*TWO, ("sticks", 3)])
def test_a_described_gate_is_built_again(name: str, k: int, X: Tensor, normal) -> None:
    gate = GATES[name](k)
    gate.fit_step(X, responsibilities_of(normal, k))
    copy = type(gate).from_description(gate.description())
    copy.load_state_dict(dict(gate.named_parameters()), strict=False)
    for buffer, value in gate.named_buffers(recurse=False):
        setattr(copy, buffer, value)
    with torch.no_grad():
        assert torch.equal(copy.log_probs(X + 0.1), gate.log_probs(X + 0.1))
