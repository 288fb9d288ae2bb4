"""Gates: each against a naive version, quadrature or Monte Carlo, and all against the contract that is shipped."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from gpmoe.errors import ShapeError, UnsupportedKernelError
from gpmoe.gates import ConstantGate, Gate, GPGate, SoftmaxGate
from gpmoe.gates.description import buffers_of, build_gate, describe_gate, set_buffers
from gpmoe.testing import check_gate

GATES: dict[str, Callable[[int], Gate]] = {
    "constant": ConstantGate,
    "softmax": lambda k: SoftmaxGate(k, 2),
    "gp": lambda k: GPGate(k, 2),
}


@pytest.fixture
def X(normal) -> Tensor:
    return normal(12, 2)


@pytest.fixture
def responsibilities(normal) -> Tensor:
    return (2 * normal(12, 3)).softmax(-1)


@pytest.mark.parametrize("n_experts", [1, 2, 4])
@pytest.mark.parametrize("name", GATES)
def test_every_gate_keeps_the_contract(name: str, n_experts: int) -> None:
    check_gate(lambda: GATES[name](n_experts), 2, exchangeable=name != "gp")


class Wrong(torch.nn.Module):
    """A constant gate with one rule broken."""

    def __init__(self, rule: str) -> None:
        super().__init__()
        self.gate, self.rule, self.n_experts = ConstantGate(2), rule, 2
        self.bound, self.log_occam_factor = self.gate.bound, self.gate.log_occam_factor

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        self.gate.fit_step(X, responsibilities.flip(-1) if self.rule == "lower the bound" else responsibilities)
        if self.rule == "change what it is given":
            responsibilities.mul_(1.5)
        if self.rule == "permute":
            self.gate.logits[0] += 0.1

    def expected_log_probs(self, X: Tensor) -> Tensor:
        return self.gate.log_probs(X) + 0.1 * (self.rule == r"E\[log π\]")

    def log_probs(self, X: Tensor) -> Tensor:
        return self.gate.log_probs(X) + 0.1 * (self.rule == "sum to one")


@pytest.mark.parametrize("rule", ["lower the bound", "change what it is given", r"E\[log π\]", "sum to one"])
def test_the_contract_names_the_rule_that_is_broken(rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_gate(lambda: Wrong(rule), 1)


def test_constant_gate_is_the_mode_of_a_dirichlet_posterior(X: Tensor, responsibilities: Tensor) -> None:
    gate = ConstantGate(3)
    gate.fit_step(X, responsibilities)
    counts = responsibilities.sum(0)
    mode = (counts + 1 / 3) / (counts.sum() + 1)
    assert_close(gate.log_probs(X).exp(), mode.expand(12, 3), rtol=1e-12, atol=0)
    log_prior = mode.log().sum() / 3
    assert_close(gate.bound(X, responsibilities), (counts * mode.log()).sum() + log_prior, rtol=1e-12, atol=0)


def softmax_objective(W: Tensor, X: Tensor, responsibilities: Tensor, precision: float) -> Tensor:
    logits = W[0] + X @ W[1:]
    log_probs = logits - logits.exp().sum(-1, keepdim=True).log()
    return (responsibilities * log_probs).sum() - 0.5 * precision * (W**2).sum()


@pytest.mark.parametrize("precision", [0.01, 1.0])
def test_softmax_gate_equals_a_general_optimiser(X: Tensor, responsibilities: Tensor, precision: float) -> None:
    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        W = torch.from_numpy(flat.copy()).reshape(3, 3).requires_grad_()
        value = -softmax_objective(W, X, responsibilities, precision)
        value.backward()
        return float(value.detach()), W.grad.numpy().ravel()

    best = minimize(loss, np.zeros(9), jac=True, method="BFGS", options={"gtol": 1e-9})
    gate = SoftmaxGate(3, 2, precision)
    gate.fit_step(X, responsibilities)
    assert_close(gate.weights, torch.from_numpy(best.x).reshape(3, 3), rtol=1e-4, atol=1e-5)
    assert_close(float(gate.bound(X, responsibilities)), -best.fun, rtol=1e-9, atol=1e-9)


def test_softmax_gate_finds_the_mode_for_hard_separable_labels(X: Tensor) -> None:
    gate = SoftmaxGate(2, 2)
    labels = torch.stack([X[:, 0] > 0, X[:, 0] <= 0], -1).double()
    gate.fit_step(X, labels)
    W = gate.weights.clone().requires_grad_()
    softmax_objective(W, X, labels, gate.precision).backward()
    assert float(W.grad.abs().max()) < 1e-4
    assert bool((gate.log_probs(X).exp().argmax(-1) == labels.argmax(-1)).all())


def test_softmax_gate_is_invariant_to_a_constant_added_to_the_logits(X: Tensor, responsibilities: Tensor) -> None:
    gate = SoftmaxGate(3, 2)
    gate.fit_step(X, responsibilities)
    before = gate.log_probs(X)
    gate.weights = gate.weights + torch.tensor([[40.0], [3.0], [-2.0]], dtype=torch.float64)
    assert_close(gate.log_probs(X), before, rtol=1e-10, atol=1e-10)


def test_softmax_occam_factor_is_laplace_with_a_hessian_by_autograd(X: Tensor, responsibilities: Tensor) -> None:
    gate = SoftmaxGate(3, 2, precision=0.5)
    gate.fit_step(X, responsibilities)
    H = -torch.autograd.functional.hessian(lambda W: softmax_objective(W, X, responsibilities, 0.5), gate.weights)
    wanted = -0.5 * torch.logdet(H.reshape(9, 9) / 0.5)
    assert_close(gate.log_occam_factor(X), wanted, rtol=1e-8, atol=1e-8)


def gp_gate(n_experts: int, X: Tensor, responsibilities: Tensor) -> GPGate:
    kernel = ScaleKernel(RBFKernel())
    kernel.outputscale, kernel.base_kernel.lengthscale = 3.0, 0.8
    gate = GPGate(n_experts, X.shape[-1], kernel)
    gate.fit_step(X, responsibilities)
    return gate


def stick(gate: GPGate, X: Tensor, responsibilities: Tensor, j: int) -> tuple[Tensor, Tensor, Tensor]:
    """Curvature, and mean and covariance of q(h_j), from the definition: prior times a Gaussian in each h."""
    with torch.no_grad():
        K = gate.kernel(X).to_dense()
    xi, mass = gate.xi[:, j], responsibilities[:, j:].sum(-1)
    curvature = mass * torch.tanh(xi / 2) / (2 * xi)
    covariance = torch.linalg.inv(torch.linalg.inv(K) + curvature.diag())
    slope = responsibilities[:, j] - mass / 2 + torch.linalg.solve(K, gate.prior_mean[j].expand(len(X)))
    return curvature, covariance @ slope, covariance


def test_gp_gate_bound_equals_expectation_minus_divergence(X: Tensor, responsibilities: Tensor) -> None:
    gate = gp_gate(3, X, responsibilities)
    total = torch.zeros((), dtype=torch.float64)
    for j in range(2):
        curvature, mean, covariance = stick(gate, X, responsibilities, j)
        xi, mass = gate.xi[:, j], responsibilities[:, j:].sum(-1)
        second = mean**2 + covariance.diagonal()
        expected = mass * (logsigmoid(xi) - xi / 2) + (responsibilities[:, j] - mass / 2) * mean
        expected = expected - curvature / 2 * (second - xi**2)
        prior = MultivariateNormal(gate.prior_mean[j].expand(12), gate.kernel(X).to_dense().detach())
        total += expected.sum() - kl_divergence(MultivariateNormal(mean, covariance), prior)
    assert_close(gate.bound(X, responsibilities).detach(), total, rtol=1e-8, atol=1e-8)


def test_gp_gate_expected_log_probs_are_bounds_by_quadrature(X: Tensor, responsibilities: Tensor) -> None:
    gate = gp_gate(2, X, responsibilities[:, :2] / responsibilities[:, :2].sum(-1, keepdim=True))
    _, mean, covariance = stick(gate, X, gate.responsibilities, 0)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(60))
    h = mean[:, None] + covariance.diagonal().sqrt()[:, None] * nodes
    exact = torch.stack([(logsigmoid(sign * h) * weights / weights.sum()).sum(-1) for sign in (1, -1)], -1)
    bound = gate.expected_log_probs(X)
    assert bool((bound <= exact + 1e-9).all())
    assert_close(bound, exact, rtol=0, atol=0.5)


@pytest.mark.parametrize("labels", [[1.0], [0.0], [0.3], [1.0, 0.0], [1.0, 1.0], [0.9, 0.4]])
def test_gp_gate_bound_is_below_the_evidence_by_quadrature(X: Tensor, labels: list[float]) -> None:
    X, r = X[: len(labels)], torch.tensor(labels, dtype=torch.float64)
    gate = gp_gate(2, X, torch.stack([r, 1 - r], -1))
    L = torch.linalg.cholesky(gate.kernel(X).to_dense().detach())
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(80))
    grid = torch.cartesian_prod(*[nodes] * len(r)).reshape(-1, len(r))
    weight = torch.cartesian_prod(*[weights / weights.sum()] * len(r)).reshape(-1, len(r)).prod(-1)
    h = gate.prior_mean[0] + grid @ L.mT
    evidence = (weight * (r * logsigmoid(h) + (1 - r) * logsigmoid(-h)).sum(-1).exp()).sum().log()
    gap = float(evidence - gate.bound(X, gate.responsibilities).detach())
    assert 0 <= gap < 0.2 * len(r)


def test_gp_gate_predictive_agrees_with_monte_carlo(X: Tensor, responsibilities: Tensor, normal) -> None:
    gate, X_new = gp_gate(3, X, responsibilities), normal(2, 2)
    taken = []
    for j in range(2):
        with torch.no_grad():
            K, K_new, K_both = (gate.kernel(a, b).to_dense() for a, b in [(X, X), (X_new, X_new), (X_new, X)])
        _, mean, covariance = stick(gate, X, responsibilities, j)
        A = torch.linalg.solve(K, K_both.mT).mT
        at = gate.prior_mean[j] + A @ (mean - gate.prior_mean[j])
        variance = (K_new - A @ (K - covariance) @ A.mT).diagonal()
        taken.append((at + variance.sqrt() * normal(1_000_000, 2)).sigmoid())
    samples = torch.stack([taken[0], (1 - taken[0]) * taken[1], (1 - taken[0]) * (1 - taken[1])], -1)
    error = (gate.log_probs(X_new).exp() - samples.mean(0)).abs()
    assert bool((error < 4 * samples.std(0) / 1000).all())


@pytest.mark.parametrize("n_experts", [2, 3, 5])
def test_gp_gate_far_from_data_gives_every_expert_about_its_share(n_experts: int, X: Tensor) -> None:
    gate = GPGate(n_experts, 2)
    gate.kernel.outputscale = 1e-6
    gate.fit_step(X, torch.full((12, n_experts), 1 / n_experts, dtype=torch.float64))
    even = torch.full((1, n_experts), 1 / n_experts, dtype=torch.float64)
    assert_close(gate.log_probs(X[:1] + 1e6).exp(), even, rtol=1e-5, atol=0)


def test_gp_gate_takes_experts_without_any_data(X: Tensor) -> None:
    gate = GPGate(3, 2)
    gate.fit_step(X, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).expand(12, 3))
    assert bool(gate.expected_log_probs(X).isfinite().all())
    assert bool(gate.bound(X, gate.responsibilities).isfinite())


@pytest.mark.parametrize("name", GATES)
def test_a_described_gate_is_built_again_with_the_same_probabilities(name: str, X: Tensor, responsibilities: Tensor):
    gate = GATES[name](3)
    gate.fit_step(X, responsibilities)
    copy = build_gate(describe_gate(gate))
    copy.load_state_dict(dict(gate.named_parameters()), strict=False)
    set_buffers(copy, "gate", buffers_of(gate, "gate"))
    assert torch.equal(copy.log_probs(X + 0.1), gate.log_probs(X + 0.1))


def test_unknown_gates_can_not_be_described_or_built(X: Tensor) -> None:
    with pytest.raises(UnsupportedKernelError, match="gate of type Wrong"):
        describe_gate(Wrong(""))
    with pytest.raises(UnsupportedKernelError, match=r"'os\.system'"):
        build_gate({"type": "os.system", "n_experts": 2})
    with pytest.raises(ShapeError, match=r"gate\.logits"):
        set_buffers(ConstantGate(2), "gate", buffers_of(ConstantGate(3), "gate"))
