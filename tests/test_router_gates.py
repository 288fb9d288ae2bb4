"""The uncertainty-aware router and the global/local gate."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from gpmoe.errors import InputError, ShapeError
from gpmoe.gates.global_local import GlobalLocalGate
from gpmoe.gates.uncertainty_router import UncertaintyRouter
from gpmoe.testing import check_gate


@pytest.fixture
def X(normal) -> Tensor:
    return normal(12, 2)


@pytest.mark.parametrize("n_experts", [1, 2, 4])
def test_router_keeps_the_contract(n_experts: int) -> None:
    check_gate(lambda: UncertaintyRouter(n_experts, 2, width=4, passes=8), 2, exchangeable=False)


def fitted_router(X: Tensor, r: Tensor, **arguments: float) -> UncertaintyRouter:
    router = UncertaintyRouter(r.shape[-1], X.shape[-1], **arguments)
    router.fit_step(X, r)
    return router


def test_router_equals_a_loop_over_passes(X: Tensor, normal) -> None:
    router = fitted_router(X, normal(12, 3).softmax(-1), dropout=0.3, passes=5)
    with torch.no_grad():
        logits = []
        for mask in router.masks:
            hidden = torch.tanh((X * mask) @ router.hidden[:, :-1].mT + router.hidden[:, -1])
            logits.append(hidden @ router.output[:, :-1].mT + router.output[:, -1])
        mean, variance = torch.stack(logits).mean(0), torch.stack(logits).var(0)
        shrunk = mean / torch.sqrt(1 + math.pi * variance / 8)
        assert_close(router.log_probs(X), shrunk.log_softmax(-1), rtol=1e-10, atol=1e-10)
        probs = torch.stack(logits).softmax(-1)
        total = -(probs.mean(0) * probs.mean(0).log()).sum(-1)
        assert_close(router.routing_entropy(X), total, rtol=1e-9, atol=1e-9)
        within = -(probs * probs.log()).sum(-1).mean(0)
        assert_close(router.mutual_information(X), total - within, rtol=1e-9, atol=1e-9)
        assert bool((router.mutual_information(X) > 0).any())


def test_masks_drop_the_share_asked_for() -> None:
    masks = UncertaintyRouter(2, 50, dropout=0.3, passes=200).masks
    assert abs(float((masks == 0).double().mean()) - 0.3) < 4 * (0.21 / 10_000) ** 0.5
    assert_close(masks.max(), torch.tensor(1 / 0.7, dtype=torch.float64))


def test_without_dropout_the_router_is_a_network_that_is_sure(X: Tensor, normal) -> None:
    router = fitted_router(X, normal(12, 3).softmax(-1), dropout=0.0)
    with torch.no_grad():
        assert_close(router.mutual_information(X), torch.zeros(12, dtype=torch.float64), rtol=0, atol=1e-12)
        assert_close(router.logits(X), router.pass_logits(X)[0], rtol=1e-12, atol=1e-12)


def test_mackays_correction_agrees_with_monte_carlo_for_two_experts(normal) -> None:
    """Its error is below .02 for a logistic of a normal; π/8 is for the difference of two logits, a quarter each."""
    for mean, scale in ((0.5, 1.0), (2.0, 2.0), (-1.0, 3.0)):
        exact = float(torch.sigmoid(mean + scale * normal(400_000)).mean())
        assert abs(exact - float(torch.sigmoid(torch.tensor(mean / math.sqrt(1 + math.pi * scale**2 / 8))))) < 0.02


def test_router_recovers_a_boundary_that_is_not_linear(normal) -> None:
    X = normal(400, 2)
    inside = X.norm(dim=-1) < 1.2
    router = fitted_router(X, torch.stack([inside, ~inside], -1).double(), dropout=0.05)
    for _ in range(8):
        router.fit_step(X, torch.stack([inside, ~inside], -1).double())
    new = normal(400, 2)
    clear = (new.norm(dim=-1) - 1.2).abs() > 0.3
    right = (router.log_probs(new)[:, 0] > router.log_probs(new)[:, 1]) == (new.norm(dim=-1) < 1.2)
    assert float(right[clear].double().mean()) > 0.9


def test_router_gives_the_same_numbers_again_and_relabels(X: Tensor, normal) -> None:
    r = normal(12, 3).softmax(-1)
    first, again = fitted_router(X, r, seed=3), fitted_router(X, r, seed=3)
    other = fitted_router(X, r[:, [1, 2, 0]], seed=3)
    with torch.no_grad():
        assert torch.equal(first.log_probs(X), again.log_probs(X))
        assert_close(other.log_probs(X).exp(), first.log_probs(X).exp()[:, [1, 2, 0]], rtol=0, atol=2e-2)


def test_router_is_built_again_from_its_description(X: Tensor, normal) -> None:
    router = fitted_router(X, normal(12, 3).softmax(-1), width=5, seed=4)
    copy = UncertaintyRouter.from_description(router.description())
    copy.load_state_dict(router.state_dict())
    assert torch.equal(copy.log_probs(X), router.log_probs(X))


def test_router_refuses_wrong_arguments() -> None:
    with pytest.raises(InputError, match=r"\[0, 1\) and `passes` at least 2; got 1\.0 and 16"):
        UncertaintyRouter(2, 1, dropout=1.0)


class Grouped(torch.nn.Module):
    """The global/local gate on groups made of any input, for the contract."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = GlobalLocalGate(2, column=0)
        self.n_experts = 3
        self.log_occam_factor, self.log_prior = self.gate.log_occam_factor, self.gate.log_prior

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        self.gate.fit_step(codes(X), responsibilities)

    def expected_log_probs(self, X: Tensor) -> Tensor:
        return self.gate.expected_log_probs(codes(X))

    def bound(self, X: Tensor, responsibilities: Tensor) -> Tensor:
        return self.gate.bound(codes(X), responsibilities)

    def log_probs(self, X: Tensor) -> Tensor:
        return self.gate.log_probs(codes(X))


def codes(X: Tensor) -> Tensor:
    """Group 0 below zero, 1 above it, none above one."""
    return torch.stack([(X[..., 0] > 0).double() + (X[..., 0] > 1).double(), X[..., 1]], -1)


def test_global_local_keeps_the_contract() -> None:
    check_gate(Grouped, 2, exchangeable=False)


def grouped(rows: list[int], local_share: float, strength: float = 10.0) -> tuple[GlobalLocalGate, Tensor, Tensor]:
    X = torch.cat([torch.full((n, 1), float(g), dtype=torch.float64) for g, n in enumerate(rows)])
    r = torch.zeros(len(X), 1 + len(rows), dtype=torch.float64)
    r[:, 0] = 1 - local_share
    r[torch.arange(len(X)), 1 + X[:, 0].long()] = local_share
    gate = GlobalLocalGate(len(rows), 0, strength)
    gate.fit_step(X, r)
    return gate, X, r


def test_global_local_shares_are_the_conjugate_posterior_by_monte_carlo() -> None:
    gate, _, _ = grouped([3, 20], 0.6)
    rng = np.random.default_rng(0)
    for group, n in enumerate([3, 20]):
        alpha = torch.from_numpy(rng.beta(9 + 0.4 * n, 1 + 0.6 * n, 400_000))
        both = torch.stack([alpha, 1 - alpha], -1)
        row = torch.tensor([[float(group)]], dtype=torch.float64)
        for value, samples in ((gate.log_probs(row).exp(), both), (gate.expected_log_probs(row), both.log())):
            error = (value[0, [0, 1 + group]] - samples.mean(0)).abs()
            assert bool((error < 4 * samples.std(0) / 400_000**0.5).all())


def test_global_local_bound_is_the_evidence_by_monte_carlo() -> None:
    gate, X, r = grouped([2, 4], 0.5)
    alpha = torch.from_numpy(np.random.default_rng(0).beta(9.0, 1.0, (1_000_000, 2)))
    terms = (alpha ** torch.tensor([1.0, 2.0]) * (1 - alpha) ** torch.tensor([1.0, 2.0])).prod(-1)
    error = 4 * float(terms.std() / terms.mean()) / 1000
    assert abs(float(gate.bound(X, r)) - float(terms.mean().log())) < error


def test_small_groups_are_shrunk_to_the_global_expert() -> None:
    gate, _, _ = grouped([1, 10, 1000], 0.9)
    rows = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    share = gate.log_probs(rows).exp()[:, 0]
    assert bool((share.diff() < 0).all())
    assert float(share[0]) > 0.8
    assert abs(float(share[2]) - 0.1) < 0.02
    unseen = GlobalLocalGate(3, 0).log_probs(rows).exp()[:, 0]
    assert_close(unseen, torch.full((3,), 0.9, dtype=torch.float64))


def test_rows_of_no_known_group_are_the_global_experts() -> None:
    gate, _, _ = grouped([5, 5], 0.9)
    rows = torch.tensor([[float("nan")], [7.0], [-1.0]], dtype=torch.float64)
    assert_close(gate.log_probs(rows).exp(), torch.eye(3, dtype=torch.float64)[[0, 0, 0]], rtol=0, atol=1e-12)


def test_other_groups_experts_get_no_responsibility() -> None:
    gate, X, _ = grouped([3, 3], 0.5)
    r = (gate.expected_log_probs(X) + torch.tensor([0.0, 0.0, 600.0], dtype=torch.float64)).softmax(-1)
    assert float(r[:3, 2].max()) < 1e-30


def test_global_local_refuses_wrong_groups_and_arguments() -> None:
    gate = GlobalLocalGate(2, 1)
    with pytest.raises(InputError, match="column 1 of `X` must hold groups 0 to 1, as whole numbers"):
        gate.log_probs(torch.full((1, 2), 0.5, dtype=torch.float64))
    with pytest.raises(ShapeError, match=r"got \(1, 1\)"):
        gate.log_probs(torch.zeros(1, 1, dtype=torch.float64))
    with pytest.raises(InputError, match="at least 1; got 0"):
        GlobalLocalGate(0, 0)
    with pytest.raises(InputError, match=r"between 0 and 1; got 10\.0, 1\.0"):
        GlobalLocalGate(2, 0, global_share=1.0)


def test_global_local_is_built_again_from_its_description() -> None:
    gate, X, _ = grouped([3, 9], 0.7, strength=4.0)
    copy = GlobalLocalGate.from_description(gate.description())
    copy.load_state_dict(gate.state_dict())
    assert torch.equal(copy.log_probs(X), gate.log_probs(X))
