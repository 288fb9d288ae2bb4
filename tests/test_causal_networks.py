"""Causal networks: naive versions, causality, batches and streams."""

import copy
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from gpmoe.errors import DtypeError, InputError, ShapeError
from gpmoe.features import DecayingRecurrence, GatedRecurrence, LinearHead, TemporalConvolution
from gpmoe.features.causal_convolution import CausalConvolution

NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "linear": lambda: LinearHead(6, 4, seed=1),
    "tcn": lambda: TemporalConvolution(6, 5, n_blocks=3, dropout=0.3, seed=1).eval(),
    "tcn of equal channels": lambda: TemporalConvolution(6, 6, n_blocks=2, kernel_size=2, seed=1),
    "tcn of one tap": lambda: TemporalConvolution(6, 4, n_blocks=1, kernel_size=1, seed=1),
    "gru": lambda: GatedRecurrence(6, 5, n_layers=2, seed=1),
    "gru-d": lambda: DecayingRecurrence(2, 5, means=torch.tensor([0.5, -1.0]), seed=1),
}


def series(batch: int, time: int, seed: int = 0) -> Tensor:
    """Two channels as GRU-D takes them, which the others take as six."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, time, 2, dtype=torch.float64, generator=generator)
    measured = (torch.rand(batch, time, 2, dtype=torch.float64, generator=generator) < 0.4).double()
    since = torch.rand(batch, time, 2, dtype=torch.float64, generator=generator) * 3
    return torch.cat([values, measured, since], -1)


def first_leak(network: torch.nn.Module, x: Tensor) -> int | None:
    """The first time whose output moves when everything after it does; None for a causal network."""
    with torch.no_grad():
        expected = network(x)
        for t in range(x.shape[1] - 1):
            other = x.clone()
            other[:, t + 1 :] += 1.0 + t
            if not torch.allclose(network(other)[:, : t + 1], expected[:, : t + 1], rtol=1e-9, atol=1e-9):
                return t
    return None


class NormedOverTime(torch.nn.Module):
    """The leak of a published system: a layer norm over time behind a causal network."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        h = self.network(x)
        return (h - h.mean(1, keepdim=True)) / (h.std(1, keepdim=True) + 1e-6)


class Centred(torch.nn.Module):
    """Another: a convolution that looks one step ahead."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.nn.functional.pad(x[:, 1:], (0, 0, 0, 1))


def streamed(network: torch.nn.Module, x: Tensor) -> Tensor:
    state, outputs = network.clean_state(len(x)), []
    for t in range(x.shape[1]):
        output, state = network.forward_step(x[:, t].clone(), state)
        outputs.append(output.clone())
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_output_depends_on_nothing_later(name: str) -> None:
    assert first_leak(NETWORKS[name](), series(3, 12)) is None


@pytest.mark.parametrize("name", ["tcn", "gru"])
def test_a_planted_leak_is_caught(name: str) -> None:
    assert first_leak(NormedOverTime(NETWORKS[name]()), series(3, 12)) is not None
    assert first_leak(Centred(), series(3, 12)) is not None


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_a_stream_gives_what_the_whole_series_gives(name: str, dtype: torch.dtype, tolerance: float) -> None:
    network, x = NETWORKS[name]().to(dtype), series(3, 40).to(dtype)
    output = streamed(network, x)
    assert output.dtype == dtype
    assert_close(output, network(x).detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_series_alone_equals_itself_in_any_padded_batch(name: str) -> None:
    network, x = NETWORKS[name](), series(4, 12)
    lengths = torch.tensor([12, 1, 7, 5])
    mask = torch.arange(12) < lengths.unsqueeze(-1)
    padded = torch.where(mask.unsqueeze(-1), x, torch.nan)
    together = network(padded, mask)
    assert bool((together[~mask] == 0).all())
    for i, length in enumerate(lengths):
        assert_close(together[i, :length], network(x[i : i + 1, :length])[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_sends_no_gradient(name: str) -> None:
    network, x = NETWORKS[name](), series(2, 6)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    gradients = []
    for filling in (0.0, torch.nan):
        network.zero_grad()
        network(torch.where(mask.unsqueeze(-1), x, filling), mask).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    assert all(torch.equal(a, b) and bool(a.isfinite().all()) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_state_does_not_grow(name: str) -> None:
    network, x = NETWORKS[name](), series(2, 60)
    state, sizes = network.clean_state(2), set()
    for t in range(60):
        _, state = network.forward_step(x[:, t], state)
        sizes.add(len(pickle.dumps(state)) // 64)
    assert len(sizes) <= 2  # the step counter takes a byte more


@pytest.mark.parametrize("name", NETWORKS)
def test_a_seed_fixes_the_start_and_no_global_state_moves(name: str) -> None:
    before = torch.get_rng_state()
    first, again = NETWORKS[name](), NETWORKS[name]()
    assert torch.equal(before, torch.get_rng_state())
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
        assert bool(one.isfinite().all())
        assert one.dtype == torch.float64


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_copied_and_pickled(name: str) -> None:
    network, x = NETWORKS[name](), series(2, 5)
    assert torch.equal(copy.deepcopy(network)(x), network(x))
    assert torch.equal(pickle.loads(pickle.dumps(network))(x), network(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_series_that_do_not_fit_are_refused(name: str) -> None:
    network, x = NETWORKS[name](), series(2, 5)
    with pytest.raises(ShapeError, match=r"\(batch, time, 6\); got \(2, 5, 5\)"):
        network(x[..., :5])
    with pytest.raises(DtypeError, match=r"as the network is; got torch\.float32"):
        network(x.float())
    with pytest.raises(ShapeError, match=r"must be bool .* got torch.float64"):
        network(x, torch.ones(2, 5, dtype=torch.float64))
    with pytest.raises(InputError, match="pad at the end"):
        network(x, torch.tensor([[False, True, True, True, True]] * 2))


def naive_convolution(layer: CausalConvolution, x: Tensor) -> Tensor:
    """Step by step, tap by tap; (batch, time, channels)."""
    norm = layer.direction.square().sum((0, 2)).sqrt()
    rows = []
    for t in range(x.shape[1]):
        total = layer.bias.expand(len(x), -1)
        for i in range(layer.kernel_size):
            if t - i * layer.dilation >= 0:
                weight = layer.direction[i] * (layer.gain.squeeze(-1) / norm).unsqueeze(-1)
                total = total + x[:, t - i * layer.dilation] @ weight.mT
        rows.append(total.clamp_min(0))
    return torch.stack(rows, 1)


@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (2, 3), (3, 4), (4, 30)])
def test_a_convolution_equals_the_loop_over_steps_and_taps(kernel_size: int, dilation: int, normal) -> None:
    layer = CausalConvolution(3, 4, kernel_size, dilation, torch.Generator().manual_seed(0))
    layer.gain.data += 0.3
    layer.bias.data = normal(4)
    x = normal(2, 10, 3)
    assert_close(layer(x.transpose(0, 1)).transpose(0, 1), naive_convolution(layer, x))


def test_the_gradient_of_a_convolution_is_that_of_differences(normal) -> None:
    layer = CausalConvolution(3, 4, 3, 2, torch.Generator().manual_seed(0))
    layer.bias.data = normal(4)
    tensors = [normal(7, 2, 3), *(parameter.detach().clone() for parameter in layer.parameters())]

    def output(x: Tensor, *values: Tensor) -> Tensor:
        names = [name for name, _ in layer.named_parameters()]
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, [tensor.requires_grad_() for tensor in tensors])


def test_the_temporal_network_is_its_blocks_written_out(normal) -> None:
    network, x = TemporalConvolution(3, 4, n_blocks=2, kernel_size=2), normal(2, 9, 3)
    convolutions = list(network.convolutions)
    assert [layer.dilation for layer in convolutions] == [1, 1, 2, 2]
    assert network.receptive_field == 1 + 2 * (1 + 2)
    h = naive_convolution(convolutions[1], naive_convolution(convolutions[0], x))
    h = torch.relu(h + network.shortcut(x))
    h = torch.relu(h + naive_convolution(convolutions[3], naive_convolution(convolutions[2], h)))
    assert_close(network(x), h)


def test_an_output_reaches_back_as_far_as_the_receptive_field_says(normal) -> None:
    network = TemporalConvolution(2, 16, n_blocks=3, kernel_size=3)
    for layer in network.convolutions:
        layer.bias.data += 0.5  # keeps the rectifiers open
    x = normal(1, 40, 2).requires_grad_()
    network(x)[0, -1].sum().backward()
    reached = x.grad[0].abs().sum(-1).nonzero().min()
    assert 40 - int(reached) == network.receptive_field


def test_dropout_takes_whole_channels_of_a_series_and_only_in_training() -> None:
    network = TemporalConvolution(2, 200, n_blocks=1, dropout=0.4)
    h = torch.ones(7, 3, 200, dtype=torch.float64)  # time, batch, channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropped = network._dropped(h)
    assert bool((dropped == dropped[:1]).all())
    assert set(dropped.unique().tolist()) == {0.0, 1 / 0.6}
    share = float((dropped[0] == 0).double().mean())
    assert abs(share - 0.4) < 4 * math.sqrt(0.4 * 0.6 / 600)
    assert not torch.equal(dropped[0, 0], dropped[0, 1])
    assert network.eval()._dropped(h) is h


def test_sizes_that_make_no_network_are_refused() -> None:
    with pytest.raises(InputError, match="must be at least 1; got 3, 4, 0, 3"):
        TemporalConvolution(3, 4, n_blocks=0)
    with pytest.raises(InputError, match=r"`dropout` must be in \[0, 1\); got 1"):
        TemporalConvolution(3, 4, dropout=1.0)
    with pytest.raises(ShapeError, match=r"`means` must have shape \(2,\)"):
        DecayingRecurrence(2, 4, means=torch.zeros(3))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def naive_gru_d(network: DecayingRecurrence, x: np.ndarray) -> np.ndarray:
    """One series (time, 3 channels), channel by channel, by the formulas of the module."""
    p = {name: parameter.detach().numpy() for name, parameter in network.named_parameters()}
    means, width = network.means.numpy(), network.n_outputs
    h, last, outputs = np.zeros(width), means.copy(), []
    for row in x:
        values, measured, since = np.split(row, 3)
        filled = np.empty_like(means)
        for c in range(len(means)):
            share = np.exp(-max(0.0, p["input_decay"][0, c] * since[c] + p["input_decay"][1, c]))
            filled[c] = values[c] if measured[c] else share * last[c] + (1 - share) * means[c]
            last[c] = values[c] if measured[c] else last[c]
        h = h * np.exp(-np.maximum(0, p["hidden_decay.weight"] @ since + p["hidden_decay.bias"]))
        driven = p["inputs.weight"] @ np.concatenate([filled, measured]) + p["inputs.bias"]
        z = sigmoid(driven[:width] + p["gates"][:width] @ h)
        r = sigmoid(driven[width : 2 * width] + p["gates"][width:] @ h)
        candidate = np.tanh(driven[2 * width :] + p["candidate"] @ (r * h))
        h = (1 - z) * h + z * candidate
        outputs.append(h)
    return np.stack(outputs)


def test_gru_d_equals_its_formulas_channel_by_channel() -> None:
    network, x = NETWORKS["gru-d"](), series(3, 15)
    x = torch.where(torch.cat([x[..., 2:4] > 0, torch.ones(3, 15, 4, dtype=torch.bool)], -1), x, torch.nan)
    output = network(x).detach().numpy()
    for i in range(3):
        np.testing.assert_allclose(output[i], naive_gru_d(network, x[i].numpy()), rtol=1e-10, atol=1e-12)


def test_every_parameter_of_gru_d_learns() -> None:
    network = NETWORKS["gru-d"]()
    network(series(5, 15)).square().sum().backward()
    assert all(bool((parameter.grad != 0).any()) for parameter in network.parameters())
    assert bool((network.input_decay.grad != 0).all())


def test_a_network_and_a_head_learn_to_remember() -> None:
    """Whether the first input was positive, told ten steps later."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 11, 1, dtype=torch.float64, generator=generator)
    wanted = (x[:, 0, 0] > 0).double()
    network, head = TemporalConvolution(1, 8, n_blocks=3), LinearHead(8, 1)
    optimiser = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        logits = head(network(x))[:, -1, 0]
        torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted).backward()
        optimiser.step()
    assert float(((logits > 0) == (wanted > 0)).double().mean()) > 0.95
