"""What a risk network reads at each grid time: the posterior of the channels, and how they were measured.

| part | columns | what |
|---|---|---|
| mean | M | posterior mean of the adapter, or the last value carried forward, scaled |
| variance | M | posterior variance over prior variance, in [0, 1] |
| age | M | log(1 + time since the last measurement / step) |
| measured | 2 M | whether the channel was measured since the grid time before, and whether ever |
| static | 2 s | scaled covariates, 0 where unknown, and whether they are known |
| clock | 2 | grid time, and log(1 + grid time), both in steps and scaled |

All of it is known at the grid time. The step is the median distance of grid times in the training data.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError
from gpmoe.linalg.compiler import njit
from gpmoe.linalg.series_batch import SeriesBatch
from gpmoe.models.channel_posterior import ChannelPosterior, smooth_noise
from gpmoe.models.measurement_history import MeasurementHistory, measurement_history
from gpmoe.models.mgp_adapter import MGPAdapter

PARTS = ("mean", "variance", "age", "measured", "static", "clock")
_LONGEST_CLOCK = 100.0  # steps that count as one in the clock
_BLOCK = 256  # series at a time of passes over many


class RiskInputs:
    """Makes a network's inputs from scaled series.

    Args:
        parts: which of `PARTS`.
        n_channels: M.
        n_static: s.
        step: the unit of time of ages and clock.
        adapter: the multi-task GP; values are carried forward if None, and "variance" can't be asked for.

    Attributes:
        width: columns.

    Raises:
        InputError: for an unknown part, or none.
    """

    def __init__(
        self, parts: Sequence[str], n_channels: int, n_static: int, step: float, adapter: MGPAdapter | None
    ) -> None:
        self.parts = checked_parts(parts, has_adapter=adapter is not None)
        self.n_channels, self.n_static, self.step, self.adapter = n_channels, n_static, step, adapter
        columns = {"mean": n_channels, "variance": n_channels, "age": n_channels, "measured": 2 * n_channels,
                   "static": 2 * n_static, "clock": 2}  # fmt: skip
        self.width = sum(columns[part] for part in self.parts)

    def __call__(self, series: RaggedSeries, keys: Tensor | None = None, seed: int = 0) -> Tensor:
        """Inputs of all grid times ``(G, width)``, float64.

        Args:
            series: scaled.
            keys: if given, one draw of the channels takes the place of their mean, with the noise of these integers,
                one a series, and the seed; see `models.channel_posterior.smooth_noise`.
            seed: of the draw.

        Returns:
            Differentiable in the adapter's parameters.
        """
        return torch.cat([self._block(block, key, seed)[0] for block, key in self._blocks(series, keys)])

    def with_likelihood(self, series: RaggedSeries, keys: Tensor | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
        """As calling, for a few series, with the adapter's log marginal likelihood of their measurements, nats."""
        return self._block(series, keys, seed)

    def of_values(self, series: RaggedSeries, value: Tensor) -> Tensor:
        """As calling, with other scaled values ``(n,)``, differentiable in them."""
        batch = batch_of(series)
        batch = SeriesBatch(
            batch.time, batch.channel, value, torch.from_numpy(batch.observed.offsets), batch.grid,
            torch.from_numpy(batch.wanted.offsets),
        )  # fmt: skip
        history = measurement_history(batch, self.n_channels)
        static = torch.from_numpy(series.static[series.grid_owner])
        if self.adapter is None:
            last = carried_forward(series.with_values(np.arange(1.0, len(value) + 1))).long()
            mean = torch.cat([value.new_zeros(1), value])[last]
            return self.assembled(mean, None, None, history, static, batch.grid)
        posterior = self.adapter.posterior(batch)
        prior = self.adapter.coregionalisation.sum(0).diagonal()
        return self.assembled(posterior.mean, posterior.variance, prior, history, static, batch.grid)

    def _blocks(self, series: RaggedSeries, keys: Tensor | None) -> Iterator[tuple[RaggedSeries, Tensor | None]]:
        for start in range(0, max(1, len(series)), _BLOCK):
            chosen = slice(start, start + _BLOCK)
            yield series[chosen], None if keys is None else keys[chosen]

    def _block(self, series: RaggedSeries, keys: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
        batch = batch_of(series)
        history = measurement_history(batch, self.n_channels)
        prior = None
        if self.adapter is None:
            mean, variance, log_likelihood = carried_forward(series), None, torch.zeros(())
        else:
            posterior = self.adapter.posterior(batch, joint=keys is not None)
            prior = self.adapter.coregionalisation.sum(0).diagonal()
            mean = posterior.mean
            if keys is not None:
                timescale = float(self.adapter.timescales.detach().max())
                mean = _drawn(posterior, batch, self.n_channels, timescale, keys, seed)
            variance, log_likelihood = posterior.variance, posterior.log_marginal_likelihood.sum()
        static = torch.from_numpy(series.static[series.grid_owner])
        return self.assembled(mean, variance, prior, history, static, batch.grid), log_likelihood

    def assembled(
        self,
        mean: Tensor,
        variance: Tensor | None,
        prior: Tensor | None,
        history: MeasurementHistory,
        static: Tensor,
        time: Tensor,
    ) -> Tensor:
        """Columns of rows whose parts are known.

        Args:
            mean, variance: of the channels, ``(r, M)``.
            prior: prior variance of each channel, ``(M,)``.
            history: of the measuring, ``(r, M)``.
            static: scaled covariates, NaN where unknown, ``(r, s)``.
            time: ``(r,)``.

        Returns:
            ``(r, width)``.
        """
        known = ~static.isnan()
        steps = (time / self.step).unsqueeze(-1)
        made = {
            "mean": lambda: [mean],
            "variance": lambda: [_ratio(variance, prior)],
            "age": lambda: [torch.log1p(history.time_since_last / self.step)],
            "measured": lambda: [history.count.clamp_max(1.0), history.measured],
            "static": lambda: [static.nan_to_num(), known.to(time)],
            "clock": lambda: [steps / _LONGEST_CLOCK, steps.clamp_min(0.0).log1p() / np.log1p(_LONGEST_CLOCK)],
        }
        return torch.cat([column for part in self.parts for column in made[part]()], -1)


def checked_parts(parts: Sequence[str], *, has_adapter: bool) -> tuple[str, ...]:
    """The parts in the order of `PARTS`.

    Raises:
        InputError: for an unknown part, none, or a variance that there is not.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise InputError(f"`inputs` must name some of {', '.join(PARTS)}; got {list(parts)}.")
    if not has_adapter and "variance" in parts:
        raise InputError("the input 'variance' is the adapter's: it has none when values are carried forward.")
    return tuple(part for part in PARTS if part in parts)


def _drawn(
    posterior: ChannelPosterior, batch: SeriesBatch, n_channels: int, timescale: float, keys: Tensor, seed: int
) -> Tensor:
    """One draw of all channels, smooth over the longest time scale, ``(G, M)``."""
    noise = smooth_noise(batch, n_channels, n_draws=1, timescale=timescale, keys=keys, seed=seed)
    return posterior.draw(noise).squeeze(0)


def _ratio(variance: Tensor | None, prior: Tensor | None) -> Tensor:
    """What is left of the prior variance."""
    if variance is None or prior is None:
        raise InputError("the input 'variance' needs the adapter's variances.")
    return variance / prior


def batch_of(series: RaggedSeries) -> SeriesBatch:
    """Scaled series as the adapter takes them, without a copy of their measurements."""
    time, channel, value, offsets, grid, grid_offsets = (
        torch.from_numpy(_writable(part))
        for part in (
            series.time, series.channel, series.value, series.offsets, series.grid_times, series.grid_offsets
        )
    )  # fmt: skip
    return SeriesBatch(time, channel, value, offsets, grid, grid_offsets)


def _writable(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """A copy, as torch does not know arrays that are only to be read."""
    return array.copy()


def carried_forward(series: RaggedSeries) -> Tensor:
    """The latest value of each channel at each grid time, 0 before the first, ``(G, M)``."""
    out = np.zeros((len(series.grid_times), series.n_channels))
    _carry(series.time, series.channel, series.value, series.offsets, series.grid_times, series.grid_offsets, out)
    return torch.from_numpy(out)


@njit(cache=True, nogil=True)
def _carry(time, channel, value, offsets, grid, grid_offsets, out):  # type: ignore[no-untyped-def]
    latest = np.empty(out.shape[1])
    for i in range(len(offsets) - 1):
        latest[:] = 0.0
        j = offsets[i]
        for g in range(grid_offsets[i], grid_offsets[i + 1]):
            while j < offsets[i + 1] and time[j] <= grid[g]:
                latest[channel[j]] = value[j]
                j += 1
            out[g] = latest
