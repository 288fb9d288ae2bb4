"""Gates that model where inputs lie: against dense algebra, Monte Carlo, and the contract that is shipped."""

import math
from collections.abc import Callable
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Dirichlet, InverseGamma, MultivariateNormal, Normal, Wishart
from torch.testing import assert_close

from gpmoe.errors import InputError, NonFiniteError, ShapeError
from gpmoe.gates.dirichlet_process import DirichletProcessGate
from gpmoe.gates.gate import Gate
from gpmoe.gates.gaussian_inputs import GaussianInputs
from gpmoe.gates.gaussian_mixture import GaussianMixtureGate
from gpmoe.testing import check_gate

NAN = float("nan")
GATES: dict[str, Callable[[int], Gate]] = {
    "full": lambda k: GaussianMixtureGate(k, 2),
    "diagonal": lambda k: GaussianMixtureGate(k, 2, "diagonal"),
    "process": DirichletProcessGate,
    "wide process": lambda k: DirichletProcessGate(k, concentration=7.0),
    "process of inputs": lambda k: DirichletProcessGate(k, 2),
}


@pytest.fixture
def X(normal) -> Tensor:
    return normal(12, 2)


@pytest.fixture
def holed(X: Tensor) -> Tensor:
    """Inputs of which some are missing: one, the other, or both."""
    X = X.clone()
    X[0, 0], X[1, 1], X[2], X[3, 0] = NAN, NAN, NAN, NAN
    return X


@pytest.fixture
def responsibilities(normal) -> Tensor:
    return (2 * normal(12, 3)).softmax(-1)


@pytest.mark.parametrize("n_experts", [1, 2, 4])
@pytest.mark.parametrize("name", GATES)
def test_every_gate_keeps_the_contract(name: str, n_experts: int) -> None:
    check_gate(lambda: GATES[name](n_experts), 2)


@pytest.mark.parametrize("name", GATES)
def test_bound_is_expectation_plus_log_prior(name: str, X: Tensor, holed: Tensor, responsibilities: Tensor) -> None:
    gate = GATES[name](3)
    for inputs in (X, holed):
        gate.fit_step(inputs, responsibilities)
        wanted = (responsibilities * gate.expected_log_probs(inputs)).sum() + gate.log_prior()
        assert_close(gate.bound(inputs, responsibilities), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["full", "diagonal", "process of inputs"])
def test_bound_never_falls_with_missing_inputs(name: str, holed: Tensor, responsibilities: Tensor) -> None:
    gate = GATES[name](3)
    gate.fit_step(holed, responsibilities)
    values = []
    for _ in range(30):
        values.append(float(gate.bound(holed, responsibilities)))
        gate.fit_step(holed, responsibilities)
    assert all(new >= old - 1e-9 for old, new in pairwise(values))
    assert values[-1] - values[-2] < 1e-3 < values[-1] - values[0] or values[-1] - values[0] < 1e-3


def log_posterior(m: Tensor, S: Tensor, X: Tensor, r: Tensor, psi: float) -> Tensor:
    """Of one Gaussian under the prior, written with torch's distributions; the Wishart's Jacobian by hand."""
    d = X.shape[-1]
    data = (r * MultivariateNormal(m, S).log_prob(X)).sum()
    mean = MultivariateNormal(torch.zeros_like(m), S / 0.01).log_prob(m)
    wishart = Wishart(df=torch.tensor(d + 2.0, dtype=m.dtype), precision_matrix=psi * torch.eye(d, dtype=m.dtype))
    return data + mean + wishart.log_prob(torch.linalg.inv(S)) - (d + 1) * torch.logdet(S)


def test_full_gaussians_are_the_mode_of_the_posterior(X: Tensor, responsibilities: Tensor) -> None:
    inputs = GaussianInputs(3, 2)
    inputs.fit_step(X, responsibilities)
    for k in range(3):
        m, S = inputs.mean[k].clone().requires_grad_(), inputs.covariance[k].clone().requires_grad_()
        slopes = torch.autograd.grad(log_posterior(m, S, X, responsibilities[:, k], 3 ** (-2 / 2)), [m, S])
        for slope in slopes:
            assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-9)


def test_diagonal_gaussians_are_the_mode_of_the_posterior(X: Tensor, responsibilities: Tensor) -> None:
    inputs = GaussianInputs(3, 2, "diagonal")
    inputs.fit_step(X, responsibilities)
    m = inputs.mean.clone().requires_grad_()
    s2 = inputs.covariance.diagonal(dim1=-2, dim2=-1).clone().requires_grad_()
    data = (responsibilities.unsqueeze(-1) * Normal(m, s2.sqrt()).log_prob(X.unsqueeze(1))).sum()
    three = torch.full_like(s2, 1.5)
    prior = Normal(0.0 * m, (s2 / 0.01).sqrt()).log_prob(m) + InverseGamma(three, 0 * three + 1 / 6).log_prob(s2)
    for slope in torch.autograd.grad(data + prior.sum(), [m, s2]):
        assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_log_prior_differs_from_the_density_by_a_constant(kind: str, normal) -> None:
    differences = []
    for seed in range(3):
        inputs = GaussianInputs(1, 2, kind)
        inputs.fit_step(normal(5 + seed, 2), torch.ones(5 + seed, 1, dtype=torch.float64))
        m, S = inputs.mean[0], inputs.covariance[0]
        nothing = torch.zeros(1, 2, dtype=torch.float64)
        if kind == "full":
            density = log_posterior(m, S, nothing, nothing[:, 0], 1.0)
        else:
            shape = torch.tensor(1.5, dtype=torch.float64)
            s2 = S.diagonal()
            density = (
                Normal(0 * m, (s2 / 0.01).sqrt()).log_prob(m) + InverseGamma(shape, shape / 3).log_prob(s2)
            ).sum()
        differences.append(float(density - inputs.log_prior()))
    assert max(differences) - min(differences) < 1e-9


def test_the_mixture_gate_is_bayes_rule(X: Tensor, responsibilities: Tensor) -> None:
    gate = GaussianMixtureGate(3, 2)
    gate.fit_step(X, responsibilities)
    weights = Dirichlet(1 + 1 / 3 + responsibilities.sum(0)).mode
    density = MultivariateNormal(gate.inputs.mean, gate.inputs.covariance).log_prob(X.unsqueeze(1)).exp()
    wanted = weights * density / (weights * density).sum(-1, keepdim=True)
    assert_close(gate.log_probs(X).exp(), wanted, rtol=1e-10, atol=1e-12)


def test_missing_inputs_are_integrated_out(X: Tensor, responsibilities: Tensor) -> None:
    gate = GaussianMixtureGate(3, 2)
    gate.fit_step(X, responsibilities)
    seen = torch.tensor([[0.4, NAN], [NAN, -0.7]], dtype=torch.float64)
    grid = torch.linspace(-30, 30, 20001, dtype=torch.float64)
    for row in seen:
        points = torch.where(row.isnan(), grid.unsqueeze(-1), row)
        density = MultivariateNormal(gate.inputs.mean, gate.inputs.covariance).log_prob(points.unsqueeze(1)).exp()
        joint = gate.log_weights.exp() * torch.trapezoid(density, grid, dim=0)
        assert_close(gate.log_probs(row.unsqueeze(0)).exp()[0], joint / joint.sum(), rtol=1e-8, atol=1e-10)
    nothing = torch.full((1, 2), NAN, dtype=torch.float64)
    assert_close(gate.log_probs(nothing)[0], gate.log_weights, rtol=1e-12, atol=1e-12)


def test_rows_keep_their_order_when_some_miss_inputs(holed: Tensor, responsibilities: Tensor) -> None:
    gate = GaussianMixtureGate(3, 2)
    gate.fit_step(holed, responsibilities)
    loop = torch.cat([gate.log_probs(row) for row in holed.unsqueeze(1)])
    assert_close(gate.log_probs(holed), loop, rtol=1e-10, atol=1e-10)
    batch = gate.log_probs(torch.stack([holed, -holed]))
    assert_close(batch[0], loop, rtol=1e-10, atol=1e-10)


def test_gaussians_are_recovered_with_a_third_of_the_inputs_missing(normal, generator) -> None:
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.5]], dtype=torch.float64)
    L = torch.tensor([[0.6, 0.0], [0.5, 0.4]], dtype=torch.float64)
    labels = torch.arange(4000) % 2
    X = means[labels] + normal(4000, 2) @ L.mT
    X[torch.rand(4000, 2, generator=generator) < 1 / 3] = NAN
    inputs = GaussianInputs(2, 2)
    r = torch.nn.functional.one_hot(labels, 2).double()
    for _ in range(60):
        inputs.fit_step(X, r)
    assert_close(inputs.mean, means, rtol=0, atol=0.06)  # 4 s.e. of a mean of 1,300 rows and standard deviation 0.64
    assert_close(inputs.covariance, (L @ L.mT).repeat(2, 1, 1), rtol=0, atol=0.08)


def test_the_true_mixture_gate_is_recovered(normal) -> None:
    labels = (torch.arange(6000) % 3 > 0).long()
    X = normal(6000, 1) * torch.tensor([0.5, 1.0], dtype=torch.float64)[labels].unsqueeze(-1) - 1 + 2 * labels[:, None]
    gate = GaussianMixtureGate(2, 1)
    gate.fit_step(X, torch.nn.functional.one_hot(labels, 2).double())
    grid = torch.linspace(-3, 3, 50, dtype=torch.float64).unsqueeze(-1)
    joint = torch.cat([Normal(-1.0, 0.5).log_prob(grid), math.log(2) + Normal(1.0, 1.0).log_prob(grid)], -1)
    assert_close(
        gate.log_probs(grid).exp(), joint.softmax(-1), rtol=0, atol=0.05
    )  # the largest slope of the gate times 4 s.e.


def test_an_expert_without_rows_falls_back_to_the_prior(X: Tensor) -> None:
    gate = GaussianMixtureGate(3, 2)
    start = GaussianInputs(3, 2)
    r = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).expand(12, 3)
    gate.fit_step(X, r)
    assert_close(gate.inputs.mean[2], start.mean[2])
    assert_close(gate.inputs.covariance[2], start.covariance[2])
    assert bool(gate.bound(X, r).isfinite())


@pytest.mark.parametrize("rows", [1, 5])
def test_one_row_and_repeated_rows_are_taken(rows: int) -> None:
    X = torch.ones(rows, 2, dtype=torch.float64)
    r = torch.full((rows, 3), 1 / 3, dtype=torch.float64)
    for gate in (GATES[name](3) for name in GATES):
        gate.fit_step(X, r)
        assert bool(gate.log_probs(X).isfinite().all())


def test_wrong_inputs_are_refused(X: Tensor) -> None:
    gate = GaussianMixtureGate(2, 2)
    with pytest.raises(ShapeError, match=r"got \(12, 1\)"):
        gate.log_probs(X[:, :1])
    with pytest.raises(NonFiniteError, match="NaN where they are missing"):
        gate.log_probs(X / 0)
    with pytest.raises(InputError, match="'spherical'"):
        GaussianMixtureGate(2, 2, "spherical")
    with pytest.raises(InputError, match="positive and finite; got 0"):
        DirichletProcessGate(2, concentration=0.0)


@pytest.mark.parametrize("name", ["full", "process of inputs"])
def test_evidence_is_of_targets_given_inputs(name: str, X: Tensor, responsibilities: Tensor) -> None:
    one = GATES[name](1)
    ones = torch.ones(12, 1, dtype=torch.float64)
    one.fit_step(X, ones)
    assert_close(float(one.bound(X, ones) + one.log_occam_factor(X)), 0.0, rtol=0, atol=1e-9)


def process(counts: list[float], concentration: float = 1.0) -> DirichletProcessGate:
    gate = DirichletProcessGate(len(counts), concentration=concentration)
    gate.fit_step(torch.zeros(1, 1), torch.tensor([counts], dtype=torch.float64))
    return gate


def test_sticks_are_the_conjugate_posterior_by_monte_carlo() -> None:
    gate = process([5.0, 3.0, 1.5])
    v = torch.from_numpy(np.random.default_rng(0).beta([6.0, 4.0], [5.5, 2.5], (200_000, 2)))
    pi = torch.stack([v[:, 0], (1 - v[:, 0]) * v[:, 1], (1 - v[:, 0]) * (1 - v[:, 1])], -1)
    X = torch.zeros(1, 1)
    for value, samples in ((gate.log_probs(X).exp(), pi), (gate.expected_log_probs(X), pi.log())):
        error = (value[0] - samples.mean(0)).abs()
        assert bool((error < 4 * samples.std(0) / len(samples) ** 0.5).all())


def test_sticks_bound_is_the_evidence_of_the_counts() -> None:
    gate = process([4.0, 2.0, 1.0], concentration=1.5)
    v = torch.from_numpy(np.random.default_rng(1).beta(1.0, 1.5, (2_000_000, 2)))
    held = gate.counts[gate.order]
    terms = v[:, 0] ** held[0] * (1 - v[:, 0]) ** (held[1] + held[2]) * v[:, 1] ** held[1] * (1 - v[:, 1]) ** held[2]
    error = 4 * float(terms.std() / terms.mean()) / len(terms) ** 0.5
    X, r = torch.zeros(1, 1), torch.tensor([[4.0, 2.0, 1.0]], dtype=torch.float64)
    assert abs(float(gate.bound(X, r)) - float(terms.mean().log())) < error


@pytest.mark.parametrize("concentration", [0.3, 1.0, 5.0])
def test_relabelling_permutes_the_probabilities_of_sticks(concentration: float) -> None:
    probs = process([1.0, 9.0, 3.0, 0.2], concentration).log_probs(torch.zeros(1, 1))[0]
    relabelled = process([0.2, 3.0, 1.0, 9.0], concentration).log_probs(torch.zeros(1, 1))[0]
    assert_close(relabelled, probs[[3, 2, 0, 1]], rtol=1e-12, atol=1e-12)


def test_the_order_of_sticks_is_the_best_of_all() -> None:
    for concentration in (0.5, 1.0, 4.0):
        gate = process([2.0, 7.0, 0.5, 3.0], concentration)
        best = max(float(gate._evidence(gate.counts[torch.tensor(order)])) for order in permutations(range(4)))
        assert_close(float(gate._evidence(gate.counts[gate.order])), best, rtol=0, atol=1e-12)


def test_experts_that_are_not_needed_are_pruned(normal) -> None:
    """EM of a mixture of Gaussians with eight experts where there are two clusters."""
    X = normal(400, 1) * 0.3 + torch.where(torch.arange(400) % 2 == 0, -1.0, 1.0).unsqueeze(-1)
    gate = DirichletProcessGate(8, 1, concentration=0.1)
    r = (0.5 * normal(400, 8) - X * torch.linspace(-2, 2, 8, dtype=torch.float64)).softmax(-1)
    for _ in range(300):
        gate.fit_step(X, r)
        r = gate.expected_log_probs(X).softmax(-1)
    gate.fit_step(X, r)
    assert gate.n_in_use == 2
    small = gate.pruned()
    assert small.n_experts == 2
    kept = gate.log_probs(X)[:, gate.in_use].softmax(-1)
    assert_close(small.log_probs(X).exp(), kept, rtol=0, atol=1e-2)


def test_a_gate_without_rows_is_not_pruned_away() -> None:
    assert DirichletProcessGate(3).pruned().n_experts == 3


@pytest.mark.parametrize("name", GATES)
def test_a_described_gate_is_built_again(name: str, X: Tensor, responsibilities: Tensor) -> None:
    gate = GATES[name](3)
    gate.fit_step(X, responsibilities)
    copy = type(gate).from_description(gate.description())
    copy.load_state_dict(gate.state_dict())
    assert torch.equal(copy.log_probs(X), gate.log_probs(X))
