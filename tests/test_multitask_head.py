"""The head of several tasks: its formula in loops, causal behind a body, the same in any batch and as a stream."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from gpmoe.early_warning.multitask_head import MultitaskHead
from gpmoe.early_warning.risk_network import RiskNetwork
from gpmoe.early_warning.risk_stream import stepped
from gpmoe.errors import InputError
from gpmoe.features import GatedRecurrence, TemporalConvolution

BODIES = {
    "tcn": lambda: TemporalConvolution(3, 6, n_blocks=2, seed=1),
    "gru": lambda: GatedRecurrence(3, 6, seed=1),
}


def moved(head: MultitaskHead) -> MultitaskHead:
    """With gates that differ between tasks and inputs, which start out equal."""
    generator = torch.Generator().manual_seed(7)
    for parameter in head.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return head


@pytest.fixture(params=list(BODIES))
def network(request: pytest.FixtureRequest) -> RiskNetwork:
    return RiskNetwork(BODIES[request.param](), moved(MultitaskHead(6, 2, 3, n_bins=4)), tasks=2)


def series(batch: int, time: int) -> Tensor:
    return torch.randn(batch, time, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_its_logits_are_the_formula_in_loops() -> None:
    head = moved(MultitaskHead(3, 2, 4, n_bins=2, width=5))
    x = series(2, 3)
    found = head(x).detach().numpy().reshape(2, 3, 2, 2)
    W, b = (part.detach().numpy() for part in (head.experts.weight, head.experts.bias))
    v, c = head.weight.detach().numpy(), head.bias.detach().numpy()
    for i, t in np.ndindex(2, 3):
        h = x[i, t].numpy()
        for task in range(2):
            share = head.gates[task].log_probs(x[i, t : t + 1]).exp()[0].detach().numpy()
            heard = sum(share[k] * np.maximum(W[5 * k : 5 * k + 5] @ h + b[5 * k : 5 * k + 5], 0) for k in range(4))
            for each_bin in range(2):
                expected = v[each_bin, task] @ heard + c[each_bin, task]
                assert found[i, t, each_bin, task] == pytest.approx(expected, abs=1e-12)


def test_one_expert_needs_no_gate() -> None:
    head, x = moved(MultitaskHead(3, 2, 1)), series(2, 3)
    assert_close(head(x), torch.relu(head.experts(x)) @ head.weight[0].mT + head.bias[0])


def test_tasks_that_swap_swap_their_logits() -> None:
    head, x = moved(MultitaskHead(3, 2, 4)), series(2, 3)
    expected = head(x).flip(-1)
    head.gates = torch.nn.ModuleList(reversed(head.gates))
    head.weight.data, head.bias.data = head.weight.data.flip(1), head.bias.data.flip(1)
    assert_close(head(x), expected)


def test_behind_a_causal_body_a_risk_depends_on_nothing_later(network: RiskNetwork) -> None:
    x = series(2, 10)
    expected = network(x)
    for t in range(9):
        other = x.clone()
        other[:, t + 1 :] += 1.0 + t
        assert_close(network(other)[:, : t + 1], expected[:, : t + 1])


def test_a_series_alone_equals_itself_in_any_padded_batch(network: RiskNetwork) -> None:
    x, lengths = series(3, 8), torch.tensor([8, 1, 5])
    mask = torch.arange(8) < lengths.unsqueeze(-1)
    together = network(torch.where(mask.unsqueeze(-1), x, torch.nan), mask)
    assert bool((together[~mask] == 0).all())
    for i, length in enumerate(lengths):
        assert_close(together[i, :length], network(x[i : i + 1, :length])[0])


def test_a_stream_gives_what_the_whole_series_gives(network: RiskNetwork) -> None:
    x = series(2, 15)
    expected, state = network(x), network.body.clean_state(2)
    for t in range(15):
        logits, state = stepped(network, x[:, t].clone(), state)
        assert_close(logits, expected[:, t])
        hidden = network.body(x[:, : t + 1])[:, -1]
        assert_close(network.head.forward_step(hidden, None)[0], expected[:, t].flatten(1))


def test_float32_stays_float32() -> None:
    assert MultitaskHead(3, 2).float()(series(2, 3).float()).dtype == torch.float32


def test_every_parameter_learns() -> None:
    head = moved(MultitaskHead(3, 2, 4))
    gradients = torch.autograd.grad(head(series(4, 5)).square().sum(), list(head.parameters()))
    assert all(bool((gradient != 0).any()) for gradient in gradients)


def test_tasks_that_contradict_each_other_come_to_hear_different_experts() -> None:
    """Whether |x| > 0.5, and whether it is not: a line tells neither."""
    x = torch.rand(400, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wanted = torch.cat([x.abs() > 0.5, x.abs() <= 0.5], -1).double()
    head = MultitaskHead(1, 2, 4, width=8)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(x), wanted)
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.2 * math.log(2)
    probs = head.gate_probs(x[:, 0]).detach()
    assert probs.shape == (400, 2, 4)
    assert_close(probs.sum(-1), torch.ones(400, 2, dtype=torch.float64))
    assert float((probs[:, 0] - probs[:, 1]).abs().max()) > 0.2


def test_sizes_that_make_no_head_are_refused() -> None:
    with pytest.raises(InputError, match="must be at least 1; got 3, 2, 0, 1, 3"):
        MultitaskHead(3, 2, 0)
