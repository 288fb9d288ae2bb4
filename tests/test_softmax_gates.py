"""Gates of the softmax family: sparse, activated, annealed, neural, on features."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from gpmoe.errors import InputError, ShapeError, UnsupportedKernelError
from gpmoe.gates import (
    ActivationGate,
    AnnealedGate,
    ConstantGate,
    FeatureGate,
    Gate,
    HierarchicalGate,
    MultiGate,
    NeuralGate,
    SoftmaxGate,
    TopKGate,
)
from gpmoe.gates.description import buffers_of, build_gate, describe_gate, set_buffers
from gpmoe.linalg.minimise_parameters import minimise_parameters
from gpmoe.testing import check_gate

Normal = Callable[..., Tensor]
GATES: dict[str, Callable[[int], Gate]] = {
    "two of k": lambda k: TopKGate(k, 2, n_active=min(k, 2)),
    "all of k": lambda k: TopKGate(k, 2, n_active=k),
    "tanh": lambda k: ActivationGate(k, 2),
    "gelu": lambda k: ActivationGate(k, 2, "gelu"),
    "sigmoid": lambda k: ActivationGate(k, 2, "sigmoid"),
    "neural": lambda k: NeuralGate(k, 2),
    "tree": lambda k: HierarchicalGate(SoftmaxGate(2, 2), [ConstantGate(1), SoftmaxGate(k, 2)]),
    "features": lambda k: FeatureGate(torch.nn.Tanh(), SoftmaxGate(k, 2)),
}
EXCHANGEABLE = ("all of k", "features")  # the others start apart, or keep what they first select


@pytest.mark.parametrize("n_experts", [1, 2, 4])
@pytest.mark.parametrize("name", GATES)
def test_every_gate_keeps_the_contract(name: str, n_experts: int) -> None:
    check_gate(lambda: GATES[name](n_experts), 2, exchangeable=name in EXCHANGEABLE)


def labels(X: Tensor, edge: float) -> Tensor:
    right = (X[:, 0] > edge).double()
    return torch.stack([1 - right, right], -1)


def test_probabilities_are_a_softmax_of_the_largest_logits(normal: Normal) -> None:
    gate, X = TopKGate(4, 2, n_active=2), normal(30, 2)
    gate.dense.weights = normal(3, 4)
    logits = torch.cat([torch.ones(30, 1).double(), X], -1) @ gate.dense.weights
    for row, probs in zip(logits, gate.log_probs(X).exp(), strict=True):
        best = sorted(range(4), key=lambda k: float(row[k]))[-2:]
        expected = torch.zeros(4).double()
        expected[best] = torch.softmax(row[best], -1)
        assert_close(probs, expected, atol=1e-12, rtol=0.0)


def test_selection_on_scores_ignores_offsets(normal: Normal) -> None:
    X = normal(20, 1)
    gate = TopKGate(2, 1, n_active=1, select_on="score")
    gate.dense.weights = torch.tensor([[100.0, 0.0], [1.0, -1.0]]).double()
    assert torch.equal(gate.selected(X)[:, 0], X[:, 0] > 0)
    assert bool(TopKGate.from_description({**gate.description(), "select_on": "logit"}).selected(X).any())


def test_one_active_expert_learns_its_boundary() -> None:
    X = torch.linspace(-2, 2, 81, dtype=torch.float64).unsqueeze(-1)
    gate = TopKGate(2, 1, n_active=1)
    gate.fit_step(X, labels(X, 0.52))
    assert_close(gate.log_probs(X).exp(), labels(X, 0.52))
    assert float(gate.expected_log_probs(X).min()) > -100  # soft while it learns


def test_a_sparse_fit_raises_the_bound_of_the_sparse_gate(normal: Normal) -> None:
    X, gate = normal(200, 2), TopKGate(3, 2, n_active=2)
    r = (3 * X @ normal(2, 3)).softmax(-1)
    gate.fit_step(X, r)
    before = float(gate.bound(X, r))
    for _ in range(3):
        gate.fit_step(X, r)
    assert float(gate.bound(X, r)) >= before
    assert int((gate.log_probs(X).exp() > 0).sum()) <= 2 * 200 + 200  # the smallest float is not quite zero


@pytest.mark.parametrize("activation", ["tanh", "gelu", "sigmoid"])
def test_the_temperature_is_learned(activation: str) -> None:
    X = torch.linspace(-2, 2, 200, dtype=torch.float64).unsqueeze(-1)
    truth = ActivationGate(2, 1, activation, precision=1e-6)  # type: ignore[arg-type]
    with torch.no_grad():
        truth.slopes.copy_(torch.tensor([[2.0, -1.0]]))
        truth.log_temperature.fill_(-1.2)
    gate = ActivationGate(2, 1, activation, precision=1e-6)  # type: ignore[arg-type]
    probs = truth.log_probs(X).exp().detach()
    for _ in range(20):
        gate.fit_step(X, probs)
    lost = (probs * (truth.log_probs(X) - gate.log_probs(X))).sum(-1).mean()
    assert float(lost.detach()) < 0.004  # nats a row, of 0.5 that an even gate would lose


def test_a_linear_gate_is_refused_a_temperature_with_the_reason() -> None:
    with pytest.raises(InputError, match="Fisher information is singular"):
        ActivationGate(2, 1, "linear")  # type: ignore[arg-type]


def test_an_annealed_gate_starts_dense_and_ends_as_the_linear_one() -> None:
    X = torch.linspace(-2, 2, 50, dtype=torch.float64).unsqueeze(-1)
    annealed, linear = AnnealedGate(2, 1, rate=0.5), SoftmaxGate(2, 1)
    r = torch.cat([torch.sigmoid(-3 * X), torch.sigmoid(3 * X)], -1)
    linear.fit_step(X, r)
    spread = []
    for _ in range(8):
        annealed.fit_step(X, r)
        spread.append(float(annealed.log_probs(X).exp().max()))
    assert annealed.temperature == 1.0
    assert spread == sorted(spread)
    assert spread[0] < 0.95 < spread[-1]
    assert_close(annealed.log_probs(X), linear.log_probs(X))


def test_a_neural_gate_learns_what_no_line_separates(normal: Normal) -> None:
    X = normal(300, 2)
    inside = (X.square().sum(-1) < 1).double()
    gate = NeuralGate(2, 2)
    for _ in range(5):
        gate.fit_step(X, torch.stack([inside, 1 - inside], -1))
    assert float((gate.log_probs(X).argmax(-1) == (1 - inside).long()).double().mean()) > 0.97


def test_a_gate_on_features_trains_its_extractor_by_gradient(normal: Normal) -> None:
    X, extractor = normal(20, 2), torch.nn.Linear(2, 3).double()
    gate = FeatureGate(extractor, SoftmaxGate(2, 3))
    gate.fit_step(X, labels(X, 0.0))
    gate.log_probs(X)[:, 0].sum().backward()
    assert extractor.weight.grad is not None
    with pytest.raises(UnsupportedKernelError, match="extractor is code"):
        gate.description()


@pytest.mark.parametrize("n_active", [0, 3])
def test_impossible_numbers_of_active_experts_are_refused(n_active: int) -> None:
    with pytest.raises(InputError, match="between 1 and n_experts=2"):
        TopKGate(2, 1, n_active=n_active)


@pytest.mark.parametrize(
    "gate",
    [TopKGate(3, 2, n_active=2), ActivationGate(3, 2, "gelu"), NeuralGate(3, 2, width=4), AnnealedGate(3, 2)],
    ids=lambda gate: type(gate).__name__,
)
def test_a_described_gate_is_built_again(gate: Gate, normal: Normal) -> None:
    X = normal(30, 2)
    gate.fit_step(X, (2 * normal(30, 3)).softmax(-1))
    copy = build_gate(describe_gate(gate))
    assert isinstance(gate, torch.nn.Module)
    assert isinstance(copy, torch.nn.Module)
    set_buffers(copy, "gate", buffers_of(gate, "gate"))
    copy.load_state_dict(gate.state_dict())
    assert torch.equal(copy.log_probs(X), gate.log_probs(X))


def test_a_loss_that_cannot_be_lowered_leaves_parameters_alone() -> None:
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert minimise_parameters([x], lambda: ((x - 3) ** 2).sum(), steps=50) == pytest.approx(0.0, abs=1e-10)
    kept = x.detach().clone()
    minimise_parameters([x], lambda: ((x - 3) ** 2).sum(), steps=5)
    assert_close(x.detach(), kept, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("precision", [0.0, -1.0, math.inf, math.nan])
def test_a_prior_without_a_precision_is_refused(precision: float) -> None:
    with pytest.raises(InputError, match=f"`precision` of the prior.*got {precision}"):
        SoftmaxGate(2, 1, precision)


def test_a_tree_multiplies_along_its_branches(normal: Normal) -> None:
    X, r = normal(40, 2), (2 * normal(40, 4)).softmax(-1)
    tree = HierarchicalGate(SoftmaxGate(2, 2), [SoftmaxGate(3, 2), ConstantGate(1)])
    tree.fit_step(X, r)
    root = SoftmaxGate(2, 2)
    root.fit_step(X, torch.stack([r[:, :3].sum(-1), r[:, 3]], -1))
    assert_close(tree.log_probs(X)[:, 3], root.log_probs(X)[:, 1])
    assert_close(tree.log_probs(X)[:, :3].exp().sum(-1), root.log_probs(X)[:, 0].exp())
    copy = build_gate(describe_gate(tree))
    set_buffers(copy, "gate", buffers_of(tree, "gate"))
    assert torch.equal(copy.log_probs(X), tree.log_probs(X))
    with pytest.raises(InputError, match="among 1 branches"):
        HierarchicalGate(SoftmaxGate(2, 2), [ConstantGate(1)])


def test_a_row_that_counts_twice_is_two_rows(normal: Normal) -> None:
    X, r = normal(20, 2), (2 * normal(20, 3)).softmax(-1)
    twice, doubled = SoftmaxGate(3, 2), SoftmaxGate(3, 2)
    twice.fit_step(X, 2 * r)
    doubled.fit_step(X.repeat(2, 1), r.repeat(2, 1))
    assert_close(twice.weights, doubled.weights, atol=1e-6, rtol=0.0)


def test_tasks_have_gates_of_their_own_over_the_experts_they_see(normal: Normal) -> None:
    X = torch.cat([normal(40, 2), torch.arange(40).remainder(2).double()[:, None]], -1)
    visible = torch.tensor([[True, True, False], [True, False, True]])
    gate = MultiGate([SoftmaxGate(2, 2), ConstantGate(2)], column=2, visible=visible)
    r = (2 * normal(40, 3)).softmax(-1) * visible[X[:, 2].long()]
    r = r / r.sum(-1, keepdim=True)
    gate.fit_step(X, r)
    alone, first = SoftmaxGate(2, 2), X[:, 2] == 0
    alone.fit_step(X[first, :2], r[first][:, :2])
    assert_close(gate.log_probs(X)[first][:, :2], alone.log_probs(X[first, :2]))
    assert float(gate.log_probs(X)[first][:, 2].exp().max()) < 1e-300
    before = float(gate.bound(X, r))
    gate.fit_step(X, r)
    assert float(gate.bound(X, r)) >= before - 1e-9
    copy = build_gate(describe_gate(gate))
    set_buffers(copy, "gate", buffers_of(gate, "gate"))
    assert torch.equal(copy.log_probs(X[None].expand(2, 40, 3)), gate.log_probs(X).expand(2, 40, 3))


def test_wrong_tasks_and_masks_are_named() -> None:
    with pytest.raises(ShapeError, match="a row for each gate"):
        MultiGate([ConstantGate(2)], column=0, visible=torch.tensor([[True, False]]))
    with pytest.raises(InputError, match="show each expert"):
        MultiGate([ConstantGate(1)], column=0, visible=torch.tensor([[True, False]]))
    with pytest.raises(InputError, match="from 0 to 0; got 2"):
        MultiGate([ConstantGate(1)], column=0).log_probs(torch.tensor([[2.0, 0.0]]).double())
