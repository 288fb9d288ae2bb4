"""The stream of observations against the posterior of the whole batch."""

import pytest
import torch
from torch.testing import assert_close

from gpmoe.errors import InputError, NonFiniteError
from gpmoe.linalg.series_batch import SeriesBatch
from gpmoe.models.mgp_adapter import MaternFamily, MGPAdapter
from gpmoe.models.streaming_mgp import StreamingMGP

MIXED: tuple[MaternFamily, ...] = ("matern12", "matern32", "matern52")


def adapter_of(channels: int = 4) -> MGPAdapter:
    return MGPAdapter(channels, timescales=[0.5, 2.0, 8.0], family=MIXED, rank=2, seed=3)


def random_batch(count: int, channels: int, seed: int = 0) -> SeriesBatch:
    """Ragged series that lack channels and repeat times; grids of five times."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, 25, (count,), generator=generator)
    n, offsets = int(sizes.sum()), torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    time = (24 * torch.rand(n, generator=generator, dtype=torch.float64)).round()
    lacks = torch.randint(0, channels, (count,), generator=generator).repeat_interleave(sizes)
    channel = (lacks + torch.randint(1, channels, (n,), generator=generator)) % channels
    value = torch.randn(n, generator=generator, dtype=torch.float64)
    grid = (24 * torch.rand(count, 5, generator=generator, dtype=torch.float64)).round().sort(-1).values
    return SeriesBatch(time, channel, value, offsets, grid.flatten(), 5 * torch.arange(count + 1))


def test_stream_gives_the_posterior_of_dense_algebra_at_every_grid_time() -> None:
    adapter, batch = adapter_of(), random_batch(50, 4)
    stream, order = StreamingMGP(adapter, len(batch)), torch.argsort(batch.time, stable=True)
    wanted = adapter._dense(batch, causal=True, joint=True)
    events = sorted(
        [(float(t), 1, i) for i, t in enumerate(batch.grid)] + [(float(batch.time[j]), 0, int(j)) for j in order]
    )
    for time, asks, row in events:
        if asks:
            found = stream.posterior([int(batch.wanted.owner[row])], [time])
            assert found.covariance is not None
            assert wanted.covariance is not None
            assert_close(found.mean[0], wanted.mean[row].detach(), atol=1e-9, rtol=0)
            assert_close(found.covariance[0], wanted.covariance[row].detach(), atol=1e-9, rtol=0)
        else:
            stream.update(
                [int(batch.observed.owner[row])], [time], [int(batch.channel[row])], [float(batch.value[row])]
            )
    assert_close(stream.log_likelihood, wanted.log_marginal_likelihood.detach(), atol=1e-8, rtol=0)


def test_rows_at_once_and_one_by_one_leave_the_same_state() -> None:
    adapter, batch = adapter_of(), random_batch(6, 4)
    order = torch.argsort(batch.time, stable=True)
    rows = [part[order] for part in (batch.observed.owner, batch.time, batch.channel, batch.value)]
    together, apart = StreamingMGP(adapter, 6), StreamingMGP(adapter, 6)
    together.update(*rows)
    for owner, time, channel, value in zip(*rows, strict=True):
        apart.update(owner, time, channel, value)
    for name, part in together.to_tensors().items():
        assert torch.equal(part, apart.to_tensors()[name]), name


def test_asking_leaves_the_state_as_it_is() -> None:
    stream = StreamingMGP(adapter_of(), 2)
    stream.update([0], [1.0], [2], [0.5])
    before = stream.to_tensors()
    stream.posterior([0, 1], [9.0, 3.0])
    assert all(torch.equal(part, before[name]) for name, part in stream.to_tensors().items())


def test_series_without_rows_has_the_prior() -> None:
    adapter = adapter_of()
    posterior = StreamingMGP(adapter, 2).posterior([1], [-4.0])
    assert posterior.covariance is not None
    assert_close(posterior.mean, torch.zeros(1, 4, dtype=torch.float64))
    assert_close(posterior.covariance[0], adapter.coregionalisation.sum(0).detach())


def test_saved_state_goes_on_where_it_stopped() -> None:
    stream = StreamingMGP(adapter_of(), 3)
    stream.update([0, 2], [1.0, 1.5], [2, 0], [0.5, -1.0])
    other = StreamingMGP.from_tensors(stream.to_tensors())
    for each in (stream, other):
        each.update([0], [2.0], [1], [0.1])
    assert torch.equal(stream.posterior([0], [3.0]).mean, other.posterior([0], [3.0]).mean)
    with pytest.raises(InputError, match="noise"):
        StreamingMGP.from_tensors({name: part for name, part in stream.to_tensors().items() if name != "noise"})


def test_forgotten_series_starts_again() -> None:
    stream = StreamingMGP(adapter_of(), 2)
    stream.update([0, 1], [5.0, 5.0], [0, 0], [1.0, 1.0])
    stream.forget([0])
    stream.update([0], [1.0], [0], [1.0])
    assert stream.time.tolist() == [1.0, 5.0]


def test_rows_that_cannot_be_taken_are_named_and_change_nothing() -> None:
    stream = StreamingMGP(adapter_of(), 2)
    stream.update([0], [5.0], [0], [1.0])
    before = stream.to_tensors()
    with pytest.raises(InputError, match=r"row 1 has 4\.0 for series 0, which stands at 6\.0"):
        stream.update([0, 0], [6.0, 4.0], [0, 0], [1.0, 1.0])
    with pytest.raises(InputError, match=r"`channel` must be 0 to 3; row 0 has 4"):
        stream.update([0], [6.0], [4], [1.0])
    with pytest.raises(InputError, match=r"`series` must be 0 to 1; row 0 has -1"):
        stream.update([-1], [6.0], [0], [1.0])
    with pytest.raises(NonFiniteError, match="row 0 has nan"):
        stream.update([1], [6.0], [0], [float("nan")])
    with pytest.raises(InputError, match="`time` must be finite"):
        stream.posterior([1], [float("inf")])
    with pytest.raises(InputError, match="go back"):
        stream.posterior([0], [4.0])
    with pytest.raises(InputError, match="one entry a row"):
        stream.update([1], [6.0], [0, 1], [1.0])
    assert all(torch.equal(part, before[name]) for name, part in stream.to_tensors().items())
