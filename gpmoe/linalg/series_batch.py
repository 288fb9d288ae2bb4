"""Irregularly sampled series of several channels, and the times at which something is wanted of each."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.errors import InputError, ShapeError
from gpmoe.linalg.ragged import Ragged
from gpmoe.shapes import expect_finite, expect_floating, expect_shape


class SeriesBatch:
    """Observations (time, channel, value) of B series, one after another, and a grid of times of each.

    Rows of one series may come in any order, repeated times and channels are ordinary, and channels that a series
    lacks are simply not there. Nothing is padded and nothing is cast.

    Args:
        time: of each observation, in any one unit, ``(n,)``, float64 or float32.
        channel: which channel was observed, integers ``(n,)`` from 0.
        value: what was observed, ``(n,)``; may carry a gradient.
        offsets: integers ``(B + 1,)`` from 0 to n: series b has the rows ``offsets[b]:offsets[b + 1]``, possibly none.
        grid: times at which something is wanted, of all series, ``(T,)``.
        grid_offsets: integers ``(B + 1,)`` from 0 to T.

    Attributes:
        observed: where each series' observations begin, who owns which.
        wanted: the same of the grid.
        order: rows sorted by series, then time, ``(n,)``; rows of one time keep their order.
        grid_order: the grid sorted likewise, ``(T,)``.

    Raises:
        ShapeError, DtypeError, NonFiniteError, InputError: if the parts don't fit each other.

    Example:
        >>> import torch
        >>> time, value = torch.tensor([0.0, 1.5, 0.5]), torch.tensor([1.0, 2.0, 3.0])
        >>> channel, offsets = torch.tensor([0, 1, 0]), torch.tensor([0, 2, 3])
        >>> batch = SeriesBatch(time, channel, value, offsets, torch.tensor([0.0, 2.0, 1.0]), torch.tensor([0, 2, 3]))
        >>> len(batch), batch.known_rows().tolist()
        (2, [1, 2, 1])
    """

    def __init__(
        self,
        time: Tensor,
        channel: Tensor,
        value: Tensor,
        offsets: Tensor,
        grid: Tensor,
        grid_offsets: Tensor,
    ) -> None:
        expect_floating("time", time)
        expect_shape("time", time, ndim=1)
        for name, tensor in (("value", value), ("grid", grid)):
            expect_floating(name, tensor, like=time)
            expect_shape(name, tensor, ndim=1, last=(len(time),) if name == "value" else ())
        for name, tensor in (("time", time), ("value", value), ("grid", grid)):
            expect_finite(name, tensor)
        if channel.shape != time.shape or channel.is_floating_point() or bool((channel < 0).any()):
            raise ShapeError(
                f"`channel` must be integers ({len(time)},) from 0, one for each time; got {channel.dtype} "
                f"{tuple(channel.shape)}" + (f" with a minimum of {int(channel.min())}." if len(channel) else ".")
            )
        self.time, self.channel, self.value, self.grid = time, channel.long(), value, grid
        self.observed = Ragged.of(offsets, rows=len(time), device=time.device)
        self.wanted = Ragged.of(grid_offsets, rows=len(grid), device=time.device, name="grid_offsets")
        if len(self.wanted) != len(self.observed):
            raise ShapeError(
                f"`grid_offsets` must have {len(self.observed) + 1} entries, as `offsets`; got {len(self.wanted) + 1}."
            )
        self.order = _sorted_rows(time, self.observed)
        self.grid_order = _sorted_rows(grid, self.wanted)

    def __len__(self) -> int:
        return len(self.observed)

    def known_rows(self) -> NDArray[np.int64]:
        """How many rows of its series each grid time knows, those at its own time included, ``(T,)``."""
        times, grid = self.time.detach().cpu().numpy()[self.order], self.grid.detach().cpu().numpy()
        starts, ends = self.observed.offsets, self.wanted.offsets
        counts = np.zeros(len(grid), dtype=np.int64)
        for b in range(len(self)):
            known = times[starts[b] : starts[b + 1]]
            counts[ends[b] : ends[b + 1]] = np.searchsorted(known, grid[ends[b] : ends[b + 1]], side="right")
        return counts

    def expect_channels(self, n_channels: int) -> None:
        """Check that no channel is beyond those of a model.

        Raises:
            InputError: naming the first row.
        """
        beyond = (self.channel >= n_channels).nonzero()
        if len(beyond):
            row = int(beyond[0, 0])
            raise InputError(
                f"`channel` must be 0 to {n_channels - 1}; row {row} has {int(self.channel[row])}. "
                "Make the model with more channels, or drop such rows."
            )

    def series(self, rows: Tensor) -> "SeriesBatch":
        """Some of the series as a batch of their own, in the order of `rows`, integers ``(b,)``."""
        chosen = rows.cpu().numpy()
        places, offsets = _gather(self.observed, chosen)
        grid_places, grid_offsets = _gather(self.wanted, chosen)
        places, grid_places = places.to(self.time.device), grid_places.to(self.time.device)
        parts = (self.time[places], self.channel[places], self.value[places], offsets)
        return SeriesBatch(*parts, self.grid[grid_places], grid_offsets)


def _sorted_rows(time: Tensor, ragged: Ragged) -> NDArray[np.int64]:
    order: NDArray[np.int64] = np.lexsort((time.detach().cpu().numpy(), ragged.owner.cpu().numpy()))
    return order


def _gather(ragged: Ragged, chosen: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Rows of chosen series one after another, and their offsets."""
    sizes = ragged.sizes[chosen]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    places = np.repeat(ragged.offsets[chosen] - offsets[:-1], sizes) + np.arange(offsets[-1])
    return torch.from_numpy(places), torch.from_numpy(offsets)
