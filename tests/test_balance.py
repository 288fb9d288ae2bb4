"""Balancing terms and diagnostics, against their definitions written as loops."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Dirichlet
from torch.testing import assert_close

from gpmoe.errors import InputError, ShapeError
from gpmoe.gates import ConstantGate, SoftmaxGate
from gpmoe.gates.balance import (
    importance_loss,
    load_loss,
    mutual_information,
    routing_entropy,
    switch_loss,
    usage,
    usage_entropy,
    usage_log_prior,
    z_loss,
)
from gpmoe.gates.diagnostics import gate_diagnostics, routing_diagnostics
from gpmoe.gates.loss_free_bias import LossFreeBias

TERMS = [usage_log_prior, importance_loss, switch_loss, z_loss, usage_entropy, mutual_information]
EVEN = torch.full((6, 3), 1 / 3, dtype=torch.float64).log()
ALONE = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).expand(6, 3).log()
BALANCED = torch.eye(3, dtype=torch.float64).repeat(2, 1).log()


@pytest.fixture
def log_probs(normal) -> Tensor:
    return (2 * normal(7, 3)).log_softmax(-1)


def test_values_of_even_collapsed_and_balanced_routing() -> None:
    for term, even, alone, balanced in [
        (importance_loss, 0.0, 2.0, 0.0),
        (switch_loss, 1.0, 3.0, 1.0),
        (usage_entropy, math.log(3), 0.0, math.log(3)),
        (mutual_information, 0.0, 0.0, math.log(3)),
        (lambda p: routing_entropy(p).mean(), math.log(3), 0.0, 0.0),
    ]:
        for log_probs, wanted in ((EVEN, even), (ALONE, alone), (BALANCED, balanced)):
            assert_close(float(term(log_probs)), wanted, rtol=0, atol=1e-12)


def test_dirichlet_prior_on_usage_is_the_density_up_to_a_constant(normal) -> None:
    a, b = ((2 * normal(7, 3)).log_softmax(-1) for _ in range(2))
    prior = Dirichlet(torch.full((3,), 1.7, dtype=torch.float64))
    wanted = prior.log_prob(usage(a)) - prior.log_prob(usage(b))
    assert_close(usage_log_prior(a, 1.7) - usage_log_prior(b, 1.7), wanted, rtol=1e-10, atol=1e-10)
    assert float(usage_log_prior(a, 1.0)) == 0.0
    assert float(usage_log_prior(ALONE)) == -math.inf
    with pytest.raises(InputError, match=r"at least 1 and finite; got 0\.5"):
        usage_log_prior(a, 0.5)


def test_losses_equal_loops(log_probs: Tensor) -> None:
    n, k = log_probs.shape
    pi = log_probs.exp()
    mean = [sum(float(pi[i, j]) for i in range(n)) / n for j in range(k)]
    spread = sum((value - 1 / k) ** 2 for value in mean) / k
    assert_close(float(importance_loss(log_probs)), spread * k**2, rtol=1e-10, atol=0)
    share = [sum(int(pi[i].argmax()) == j for i in range(n)) / n for j in range(k)]
    wanted = k * sum(f * p for f, p in zip(share, mean, strict=True))
    assert_close(float(switch_loss(log_probs)), wanted, rtol=1e-10, atol=0)
    logits = log_probs + torch.arange(n)[:, None]
    assert_close(float(z_loss(logits)), sum(i**2 for i in range(n)) / n, rtol=1e-10, atol=0)
    assert_close(routing_entropy(log_probs), Categorical(pi).entropy(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("n_active", [1, 2])
def test_load_loss_is_the_chance_to_stay_by_monte_carlo(n_active: int, normal) -> None:
    logits, scale, k = normal(2, 3), 0.7, 3
    noisy = logits + scale * normal(2, 3)
    load, error = torch.zeros(k, dtype=torch.float64), 0.0
    for i in range(2):
        for j in range(k):
            again = noisy[i].repeat(200_000, 1)
            again[:, j] = logits[i, j] + scale * normal(200_000)
            stays = (again.topk(n_active, -1).indices == j).any(-1).double()
            load[j] += stays.mean()
            error += 4 * float(stays.std()) / 200_000**0.5
    wanted = float(load.var(unbiased=False) / load.mean() ** 2)
    got = float(load_loss(logits, noisy, torch.tensor(scale), n_active))
    assert abs(got - wanted) < 4 * error


def test_load_loss_refuses_what_it_can_not_balance(log_probs: Tensor) -> None:
    with pytest.raises(InputError, match="less than the 3 experts; got 3"):
        load_loss(log_probs, log_probs, torch.tensor(1.0), 3)
    with pytest.raises(ShapeError, match=r"got \(7, 2\)"):
        load_loss(log_probs, log_probs[:, :2], torch.tensor(1.0), 1)


@pytest.mark.parametrize("term", TERMS)
def test_gradients_are_those_of_finite_differences(term, log_probs: Tensor) -> None:
    logits = log_probs.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: term(x if term is z_loss else x.log_softmax(-1)), (logits,))


@pytest.mark.parametrize("term", [importance_loss, usage_entropy, mutual_information, switch_loss])
def test_experts_out_of_the_choice_leave_values_and_gradients_finite(term, log_probs: Tensor) -> None:
    logits = log_probs.clone().requires_grad_()
    sparse = logits.masked_fill(torch.tensor([False, False, True]), -torch.inf).log_softmax(-1)
    value = term(sparse)
    (slope,) = torch.autograd.grad(value, logits)
    assert bool(value.isfinite())
    assert bool(slope.isfinite().all())


@pytest.mark.parametrize("term", TERMS)
def test_relabelling_and_batches_change_nothing(term, log_probs: Tensor) -> None:
    assert_close(term(log_probs[:, [2, 0, 1]]), term(log_probs), rtol=1e-12, atol=1e-12)
    both = torch.stack([log_probs, EVEN[:1].expand(7, 3)])
    assert_close(term(both), torch.stack([term(part) for part in both]), rtol=1e-12, atol=1e-12)


def test_loss_free_bias_balances_a_gate_that_prefers_one_expert(normal) -> None:
    logits = normal(600, 4) + torch.tensor([3.0, 0.0, 0.0, -1.0], dtype=torch.float64)
    for n_active in (1, 2):
        balance = LossFreeBias(4, n_active, rate=0.02)
        for _ in range(400):
            balance.update(balance.choose(logits))
        chosen = balance.choose(logits)
        assert bool((chosen.sum(-1) == n_active).all())
        assert_close(chosen.double().mean(0), torch.full((4,), n_active / 4, dtype=torch.float64), rtol=0, atol=0.03)
        assert float(balance.bias[3]) > 0 > float(balance.bias[0])  # counts for shares would let every bias fall


def test_loss_free_bias_refuses_wrong_arguments() -> None:
    with pytest.raises(InputError, match="from 1 to the 2 experts; got 3"):
        LossFreeBias(2, 3)
    with pytest.raises(InputError, match="positive and finite; got 0"):
        LossFreeBias(2, rate=0.0)
    with pytest.raises(ShapeError, match=r"\(n, 2\).*got \(0, 2\)"):
        LossFreeBias(2).update(torch.zeros(0, 2, dtype=torch.bool))


def test_diagnostics_of_a_known_gate() -> None:
    probs = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]], dtype=torch.float64)
    found = routing_diagnostics(probs.log())
    assert_close(found.usage, (0.55, 0.45, 0.0))
    assert found.top_share == (0.5, 0.5, 0.0)
    assert found.starved == (2,)
    assert not found.collapsed
    entropy = -(0.55 * math.log(0.55) + 0.45 * math.log(0.45))
    assert_close(found.effective_experts, math.exp(entropy))
    mean = -sum(p * math.log(p) for p in (0.9, 0.1, 0.2, 0.8)) / 2
    assert_close(found.routing_entropy, mean)
    assert_close(found.mutual_information, entropy - mean)


def test_diagnostics_tell_collapse_and_can_be_read() -> None:
    text = str(routing_diagnostics(ALONE))
    assert "collapsed on one expert" in text
    assert "starved (usage below 3.3 %): 1, 2" in text
    assert "1 expert," in str(gate_diagnostics(ConstantGate(1), torch.zeros(2, 1)))
    assert routing_diagnostics(EVEN, starved_below=0.4).starved == (0, 1, 2)


def test_diagnostics_of_a_gate_follow_it(normal) -> None:
    X = normal(50, 1)
    gate = SoftmaxGate(2, 1)
    blind = gate_diagnostics(gate, X)
    gate.fit_step(X, torch.cat([X < 0, X >= 0], -1).double())
    assert blind.mutual_information < 1e-12 < 0.5 < gate_diagnostics(gate, X).mutual_information


def test_diagnostics_need_rows() -> None:
    with pytest.raises(InputError, match="at least one row"):
        routing_diagnostics(EVEN[:0])
    with pytest.raises(ShapeError, match=r"got \(3,\)"):
        routing_diagnostics(EVEN[0])
