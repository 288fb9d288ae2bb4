"""What alarms achieved: events found, lead time, alarms a day, false alarms for each true one."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from gpmoe.early_warning.bootstrap import DEFAULT, Bootstrap, Estimate
from gpmoe.early_warning.rows import Array
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError, ShapeError


@dataclass(frozen=True)
class DetectionWindow:
    """Which alarms are true: those with lead time event - t from `latest` to `earliest`.

    Earlier alarms are false, as are all without an event. Later ones come when the event is known: they count neither
    way, and the time from then on is not watched.

    Attributes:
        earliest: longest lead time, in the unit of time of the series.
        latest: shortest lead time; negative if alarms after the event still help.
    """

    earliest: float = np.inf
    latest: float = 0.0

    def __post_init__(self) -> None:
        if not self.earliest >= self.latest:
            raise InputError(f"`earliest` can't be less than `latest`; got {self.earliest} and {self.latest}.")


@dataclass(frozen=True)
class AlarmTally:
    """Alarms of each series, all ``(N,)``.

    Attributes:
        true, false: number of alarms.
        event: whether there is one, bool.
        lead: lead time of the first true alarm, NaN without one.
        watched: time watched: from the first grid time to the last, or to when an alarm would be late, each grid time
            standing for the time to the next and the last for the median step.
    """

    true: Array
    false: Array
    event: Array
    lead: Array
    watched: Array


@dataclass(frozen=True)
class AlarmReport:
    """Scores of alarms with intervals over series; NaN where there is nothing to count.

    Attributes:
        detected: share of events with a true alarm (in the window).
        warned: share of events with any alarm before they were late, however early.
        precision: share of alarms that are true.
        false_per_true: false alarms for each true one.
        alarms_per_day: alarms a day watched.
        lead: quantiles of the lead time of first true alarms, by level.
        leads: these lead times, sorted.
    """

    detected: Estimate
    warned: Estimate
    precision: Estimate
    false_per_true: Estimate
    alarms_per_day: Estimate
    lead: dict[float, Estimate]
    leads: Array = field(repr=False)


def tally(series: RaggedSeries, raised: ArrayLike, window: DetectionWindow) -> AlarmTally:
    """Count true and false alarms of each series.

    Args:
        series: with event times.
        raised: where alarms went off, bool ``(G,)``: `Alarms.raised`.
        window: which are true.

    Raises:
        InputError: if the series have no event times.
        ShapeError: if there is not one truth value a grid time.
    """
    if series.event_time is None:
        raise InputError("alarms are judged by `event_time` of the series, infinite where there is none.")
    alarm = np.asarray(raised)
    if alarm.shape != series.grid_times.shape or alarm.dtype != bool:
        raise ShapeError(f"`raised` must be bool of shape {series.grid_times.shape}; got {alarm.dtype} {alarm.shape}.")
    n, owner = len(series), series.grid_owner
    lead = series.event_time[owner] - series.grid_times
    on_time = lead >= window.latest
    true = alarm & on_time & (lead <= window.earliest) & np.isfinite(lead)
    longest = np.full(n, -np.inf)
    np.maximum.at(longest, owner[true], lead[true])
    return AlarmTally(
        np.bincount(owner[true], minlength=n).astype(np.float64),
        np.bincount(owner[alarm & on_time & ~true], minlength=n).astype(np.float64),
        np.isfinite(series.event_time).astype(np.float64),
        np.where(np.isinf(longest), np.nan, longest),
        np.bincount(owner, np.where(on_time, _steps(series), 0.0), minlength=n).astype(np.float64),
    )


def alarm_report(
    series: RaggedSeries,
    raised: ArrayLike,
    *,
    window: DetectionWindow | None = None,
    day: float = 24.0,
    levels: Sequence[float] = (0.25, 0.5, 0.75),
    bootstrap: Bootstrap = DEFAULT,
) -> AlarmReport:
    """Judge alarms.

    Args:
        series: with event times.
        raised: where alarms went off, bool ``(G,)``.
        window: which are true; by default all before the event.
        day: length of a day in the unit of time of the series.
        levels: of the quantiles of lead time.
        bootstrap: how intervals are made.

    Raises:
        InputError, ShapeError: as `tally`.

    Example:
        >>> series = RaggedSeries.from_arrays(
        ...     [], [], [], [0, 0], n_channels=1, grid_times=[1.0, 2.0, 3.0], grid_offsets=[0, 3], event_time=[4.0])
        >>> report = alarm_report(series, np.array([True, False, True]), window=DetectionWindow(earliest=2.0))
        >>> report.precision.value, report.lead[0.5].value
        (0.5, 1.0)
    """
    counts = tally(series, raised, window or DetectionWindow())
    total = counts.true + counts.false
    event = counts.event
    sums = np.column_stack(
        [counts.true, total, event, event * (counts.true > 0), event * (total > 0), counts.watched / day]
    )
    true, all_alarms, events, found, warned, days = range(6)

    def share(top: int, bottom: int) -> Estimate:
        return bootstrap.of_sums(sums, lambda s: s[..., top] / s[..., bottom])

    return AlarmReport(
        share(found, events),
        share(warned, events),
        share(true, all_alarms),
        bootstrap.of_sums(sums, lambda s: (s[..., all_alarms] - s[..., true]) / s[..., true]),
        share(all_alarms, days),
        _lead_quantiles(counts.lead, levels, bootstrap),
        np.sort(counts.lead[~np.isnan(counts.lead)]),
    )


def _lead_quantiles(lead: Array, levels: Sequence[float], bootstrap: Bootstrap) -> dict[float, Estimate]:
    found = np.flatnonzero(~np.isnan(lead))
    if not found.size:
        return {float(level): Estimate(np.nan, np.nan, np.nan) for level in levels}
    found = found[np.argsort(lead[found])]
    weight = np.cumsum(np.vstack([np.ones(len(found)), bootstrap.counts(len(lead))[:, found]]), axis=1)
    weight = weight[weight[:, -1] > 0]
    result = {}
    for level in levels:
        place = (weight < level * weight[:, -1:] * (1 - 1e-12)).sum(axis=1)  # lower quantile of the weighted leads
        drawn = lead[found][place]
        result[float(level)] = bootstrap.interval(float(drawn[0]), drawn[1:])
    return result


def _steps(series: RaggedSeries) -> Array:
    """Time to the next grid time of the series, and the median step for the last, ``(G,)``."""
    steps = np.diff(series.grid_times, append=np.nan)
    last = series.grid_offsets[1:][np.diff(series.grid_offsets) > 0] - 1
    inner = np.delete(steps, last)
    steps[last] = np.median(inner) if inner.size else np.nan
    return steps
