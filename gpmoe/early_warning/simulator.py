"""Stays of many channels measured at irregular times, some with a latent onset, from a model that is known whole.

| symbol | here | what |
|---|---|---|
| tau | `onset` | hour of the event, infinite without one |
| w(t) | `StayModel.severity` | 0 up to tau - ramp, 1 from tau on, linear between |
| d | `StayModel.direction` | +1 or -1, the way in which each channel is pushed |
| a, b | | independent Ornstein-Uhlenbeck processes, correlated across channels by R0 and R1 |

Channel m reads, at time t,

    y = mu + g (sqrt(1 - w) a_m + sqrt(w) b_m) + e(t) + noise,    mu = shift d_m w,   g^2 = 1 - mu^2 / (1 - noise),

with a and b of variance 1 - noise. Its second moment, given no excursion, is 1 whatever w is: neither variance nor
mean square tells a stay with an event from one without. What does is the mean, the change of correlation from
R0 = (1 - r0) I + r0 11' to R1 = (1 - r1) I + r1 dd', and nothing else. e(t) is an excursion that comes in either kind
of stay: a triangular pulse of random hour in the direction d, or against it, without a change of correlation.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpmoe.early_warning.rows import Array, Index
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError


@dataclass(frozen=True)
class StayModel:
    """The law of simulated stays; times are hours since admission, values have unit mean square.

    Attributes:
        rates: measurements an hour of each channel, ``(M,)``.
        n_labs: how many channels, the last ones, are ordered rather than watched.
        prevalence: share of stays with an event.
        shift: size of the change of mean, at most sqrt(1 - noise).
        correlation_before, correlation_after: r0 and r1.
        ramp: hours from the first change to the event.
        lead: a grid time is labelled 1 from `lead` hours before the event on.
        timescale: of the Ornstein-Uhlenbeck processes, hours.
        noise: variance of the noise, out of 1.
        excursions: share of stays with an excursion.
        excursion_size, excursion_hours: its height and duration.
        ordering: labs are ordered 1 + ordering w(t) times as often; 0 for orders that tell nothing.
        lengths: shortest and longest stay, hours; lengths are uniform between them.
        longer_with_event: weight the lengths of stays with an event by their square, so that the clock tells.
        earliest: first possible hour of an event; given the length, hours from there to the end are equally likely.
    """

    rates: tuple[float, ...] = (0.6, 0.6, 0.6, 0.15, 0.15, 0.15)
    n_labs: int = 3
    prevalence: float = 0.05
    shift: float = 0.5
    correlation_before: float = 0.1
    correlation_after: float = 0.5
    ramp: float = 12.0
    lead: float = 6.0
    timescale: float = 3.0
    noise: float = 0.2
    excursions: float = 0.5
    excursion_size: float = 1.0
    excursion_hours: float = 10.0
    ordering: float = 0.0
    lengths: tuple[int, int] = (12, 60)
    longer_with_event: bool = False
    earliest: int = 6

    def __post_init__(self) -> None:
        if not 0 < self.prevalence < 1 or not 0 <= self.excursions <= 1:
            raise InputError(f"shares must lie between 0 and 1; got {self.prevalence} and {self.excursions}.")
        if not 0 < self.noise < 1 or self.shift**2 > 1 - self.noise:
            raise InputError(
                f"the mean square is 1, so shift^2 + noise can't exceed it; got shift {self.shift}, noise {self.noise}."
            )
        if not self.earliest <= self.lengths[0] <= self.lengths[1]:
            raise InputError(f"stays must reach the earliest event, {self.earliest} h; got lengths {self.lengths}.")

    @property
    def direction(self) -> Array:
        """d, ``(M,)``: +1, -1, +1, ..."""
        return np.where(np.arange(len(self.rates)) % 2 == 0, 1.0, -1.0)

    @property
    def correlations(self) -> tuple[Array, Array]:
        """R0 and R1, ``(M, M)`` each."""
        eye, d = np.eye(len(self.rates)), self.direction
        before: Array = (1 - self.correlation_before) * eye + self.correlation_before
        return before, (1 - self.correlation_after) * eye + self.correlation_after * np.outer(d, d)

    @property
    def hours(self) -> Index:
        """Possible lengths of a stay, ``(l,)``."""
        return np.arange(self.lengths[0], self.lengths[1] + 1)

    @property
    def excursion_starts(self) -> Array:
        """Possible hours at which an excursion begins, equally likely."""
        return np.arange(0.0, self.lengths[1], 6.0)

    def length_probs(self, event: bool) -> Array:
        """Probabilities of `hours`, with and without an event, ``(l,)``."""
        hours = self.hours.astype(np.float64)
        weight: Array = hours**2 if event and self.longer_with_event else np.ones(len(hours))
        return np.asarray(weight / weight.sum(), dtype=np.float64)

    def severity(self, time: Array, onset: Array | float) -> Array:
        """w(t), between 0 and 1."""
        return np.clip((time - (onset - self.ramp)) / self.ramp, 0.0, 1.0)

    def mean(self, channel: Index, severity: Array) -> Array:
        """mu, without excursion."""
        return self.shift * self.direction[channel] * severity

    def excursion(self, time: Array, channel: Index, start: Array | float, sign: Array | float) -> Array:
        """e(t) of an excursion that begins at `start`."""
        half = self.excursion_hours / 2
        pulse = np.clip(1 - np.abs(time - start - half) / half, 0.0, None)
        return sign * self.excursion_size * pulse * self.direction[channel]

    def covariance(self, time: Array, channel: Index, severity: Array) -> Array:
        """Covariance of measurements given their severities, ``(*batch, n, n)`` for ``(*batch, n)``, noise included."""
        before, after = self.correlations
        quiet, loud = np.sqrt(1 - severity), np.sqrt(severity)
        gain = np.sqrt(1 - self.mean(channel, severity) ** 2 / (1 - self.noise))
        pair = np.ix_(channel, channel)
        mixed = _outer(quiet * gain) * before[pair] + _outer(loud * gain) * after[pair]
        decay = np.exp(-np.abs(time[:, None] - time) / self.timescale)
        return (1 - self.noise) * decay * mixed + self.noise * np.eye(len(time))


@dataclass(frozen=True)
class SimulatedStays:
    """Stays and their truth.

    Attributes:
        series: with hourly grid, labels, event and censoring times.
        excursion_start: hour, infinite without one, ``(N,)``.
        excursion_sign: +1 or -1, ``(N,)``.
    """

    series: RaggedSeries
    excursion_start: Array
    excursion_sign: Array


def simulate_stays(n: int, *, model: StayModel | None = None, seed: int | None = None) -> SimulatedStays:
    """Draw stays.

    Args:
        n: number of stays.
        model: their law; `StayModel()` by default.
        seed: of NumPy's generator; ``None`` draws afresh.

    Example:
        >>> stays = simulate_stays(20, seed=0)
        >>> stays.series.n_channels, stays.series.label_per
        (6, 'grid')
    """
    model = model or StayModel()
    rng = np.random.default_rng(seed)
    event = rng.random(n) < model.prevalence
    length = np.where(event, *(rng.choice(model.hours, n, p=model.length_probs(kind)) for kind in (True, False)))
    onset = np.where(event, rng.integers(model.earliest, length + 1), np.inf)
    start = np.where(rng.random(n) < model.excursions, rng.choice(model.excursion_starts, n), np.inf)
    sign = rng.choice([-1.0, 1.0], n)
    stays = [_measured(model, rng, float(length[i]), onset[i], start[i], sign[i]) for i in range(n)]
    time, channel, value = (np.concatenate(column) for column in zip(*stays, strict=True))
    hour = np.concatenate([np.arange(1.0, hours + 1) for hours in length])
    names = ["lab" if lab else "vital" for lab in _is_lab(model)]
    series = RaggedSeries.from_arrays(
        time, channel, value, np.cumsum([0, *(len(stay[0]) for stay in stays)]),
        channel_names=[f"{name} {m}" for m, name in enumerate(names)],
        grid_times=hour, grid_offsets=np.concatenate([[0], np.cumsum(length)]),
        labels=hour >= np.repeat(onset, length) - model.lead, event_time=onset, censoring_time=length,
    )  # fmt: skip
    return SimulatedStays(series, start, sign)


def _measured(
    model: StayModel, rng: np.random.Generator, length: float, onset: float, start: float, sign: float
) -> tuple[Array, Index, Array]:
    """Times, channels and values of one stay."""
    most = np.array(model.rates) * np.where(_is_lab(model), 1 + model.ordering, 1.0)
    channel = np.repeat(np.arange(len(most)), rng.poisson(most * length))
    time = rng.uniform(0.0, length, len(channel))
    order = np.argsort(time)
    time, channel = time[order], channel[order]
    severity = model.severity(time, onset)
    chance = np.where(_is_lab(model)[channel], (1 + model.ordering * severity) / (1 + model.ordering), 1.0)
    kept = rng.random(len(time)) < chance
    time, channel, severity = time[kept], channel[kept], severity[kept]
    factor = np.linalg.cholesky(model.covariance(time, channel, severity)) if len(time) else np.zeros((0, 0))
    pulse = model.excursion(time, channel, start, sign) if np.isfinite(start) else 0.0
    return time, channel, model.mean(channel, severity) + pulse + factor @ rng.standard_normal(len(time))


def _is_lab(model: StayModel) -> NDArray[np.bool_]:
    return np.arange(len(model.rates)) >= len(model.rates) - model.n_labs


def _outer(vector: Array) -> Array:
    return vector[..., :, None] * vector[..., None, :]
