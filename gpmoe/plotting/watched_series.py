"""One series as it was watched: measurements, what the Gaussian process knew of them then, risk and alarms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import ndtri

from gpmoe.distributions import Array
from gpmoe.early_warning.alarms import AlarmPolicy
from gpmoe.early_warning.risk_inputs import batch_of
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError
from gpmoe.estimators.early_warning_classifier import EarlyWarningClassifier
from gpmoe.estimators.series_classifier import SeriesClassifier
from gpmoe.plotting.ink import BLUE, RED, open_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = (0.5, 0.9)
_POINTS = 240
_CHANNELS = 3
_DRAWS = 60


@dataclass(frozen=True, eq=False)
class WatchedChannel:
    """A channel of one series.

    Args:
        name: of the channel.
        time, value: its measurements, ``(n,)``.
        at: when the bands hold, ``(t,)``; empty for a model without Gaussian process.
        mean: causal predictive mean there, in the caller's units, ``(t,)``.
        lower, upper: ends of the predictive intervals of `LEVELS`, noise included, ``(2, t)``.
    """

    name: str
    time: Array
    value: Array
    at: Array
    mean: Array
    lower: Array
    upper: Array


@dataclass(frozen=True, eq=False)
class WatchedSeries:
    """The numbers of a figure of one series.

    Args:
        id: of the series.
        channels: those that are shown.
        time, risk: at the grid times, ``(g,)``.
        risk_lower, risk_upper: 90 % interval of the risk under draws of what was not measured, ``(g,)``; empty for a
            model without Gaussian process.
        threshold: of the policy.
        alarm_time: when alarms went off.
        event_time: infinite without an event.
    """

    id: str
    channels: tuple[WatchedChannel, ...]
    time: Array
    risk: Array
    risk_lower: Array
    risk_upper: Array
    threshold: float
    alarm_time: Array
    event_time: float


def watched_series(
    model: SeriesClassifier, series: RaggedSeries, policy: AlarmPolicy, *, channels: Sequence[str] | None = None
) -> WatchedSeries:
    """Compute what a figure of one series shows.

    Bands are causal: at each time they know the measurements up to it, as the alarm did.

    Args:
        model: fitted, of one task.
        series: a single one, with grid times.
        policy: of the alarms.
        channels: to show; by default the three that moved the risk most at the first alarm, or else where the risk
            was largest (the three most measured, for other models than `EarlyWarningClassifier`).

    Raises:
        InputError: if there is not exactly one series, it has no grid time, or a channel is unknown.
    """
    if len(series) != 1 or not len(series.grid_times):
        raise InputError(f"`series` must be a single one with grid times, such as series[[3]]; got {series!r}.")
    risk = model.predict_proba(series)
    alarm_time = series.grid_times[policy.alarms(series, risk).raised]
    when = float(alarm_time[0]) if len(alarm_time) else float(series.grid_times[np.argmax(risk)])
    names = _telling(model, series, when) if channels is None else list(channels)
    unknown = [name for name in names if name not in series.channel_names]
    if unknown:
        raise InputError(f"`channels` must be among {', '.join(series.channel_names)}; got {unknown[0]!r}.")
    at, mean, lower, upper = _bands(model, series)
    shown = []
    for name in names:
        c = series.channel_names.index(name)
        rows = series.channel == c
        shown.append(
            WatchedChannel(name, series.time[rows], series.value[rows], at, mean[:, c], lower[..., c], upper[..., c])
        )
    low = high = at[:0]
    if _has_process(model):
        low, high = np.quantile(model.predict_risk_draws(series, _DRAWS), [0.05, 0.95], axis=0)
    return WatchedSeries(
        str(series.ids[0]), tuple(shown), series.grid_times, risk, low, high,
        policy.threshold, alarm_time, float("inf") if series.event_time is None else float(series.event_time[0]),
    )  # fmt: skip


def plot_watched_series(
    numbers: WatchedSeries, axes: Sequence[Axes] | None = None, *, xlabel: str = "time", title: str | None = None
) -> list[Axes]:
    """Draw each channel above the risk: measurements, bands, threshold and alarms in red, the event as a line.

    Args:
        numbers: from `watched_series`.
        axes: one a channel and one more, or None for a new figure.
        xlabel: with the unit of time.
        title: above the first.

    Returns:
        The axes drawn on.

    Raises:
        InputError: if there is another number of axes.
        MissingPackageError: if matplotlib is not installed.
    """
    rows = len(numbers.channels) + 1
    if axes is None:
        figure = open_axes(None, figsize=(7.2, 1.25 * rows + 0.9)).get_figure(root=True)
        assert figure is not None
        figure.clear()
        axes = list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
    if len(axes) != rows:
        raise InputError(f"`axes` must be {rows}, one a channel and one for the risk; got {len(axes)}.")
    for ax, channel in zip(axes, numbers.channels, strict=False):
        _draw_channel(open_axes(ax), channel)
    _draw_risk(open_axes(axes[-1]), numbers)
    for ax in axes:
        if np.isfinite(numbers.event_time):
            ax.axvline(numbers.event_time, color="black", linewidth=1.0, label="event" if ax is axes[-1] else None)
        for i, time in enumerate(numbers.alarm_time):
            last = ax is axes[-1] and not i
            ax.axvline(float(time), color=RED, linewidth=1.0, label="alarm" if last else None)
    axes[-1].set_xlabel(xlabel)
    for ax in (axes[0], axes[-1]):
        ax.legend(frameon=False, fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    if title is not None:
        axes[0].set_title(title, loc="left", fontsize="medium")
    return list(axes)


def _draw_channel(ax: Axes, channel: WatchedChannel) -> None:
    for i in reversed(range(len(channel.lower))):
        ax.fill_between(
            channel.at, channel.lower[i], channel.upper[i], color=BLUE, alpha=(0.34, 0.17)[i], linewidth=0,
            label=f"{LEVELS[i]:.0%} predictive",
        )  # fmt: skip
    if len(channel.at):
        ax.plot(channel.at, channel.mean, color=BLUE, linewidth=1.2, label="mean")
    ax.plot(channel.time, channel.value, "o", color="black", markersize=2.8, markeredgewidth=0, label="data")
    ax.set_ylabel(channel.name, fontsize="small")


def _draw_risk(ax: Axes, numbers: WatchedSeries) -> None:
    if len(numbers.risk_lower):
        ax.fill_between(
            numbers.time, numbers.risk_lower, numbers.risk_upper, color=BLUE, alpha=0.17, linewidth=0,
            label="90% over what\nwas not measured",
        )  # fmt: skip
    ax.plot(numbers.time, numbers.risk, color=BLUE, linewidth=1.4, label="risk")
    ax.axhline(numbers.threshold, color=RED, linewidth=0.9, linestyle=(0, (4, 2)), label="threshold")
    ends = np.concatenate([numbers.risk, numbers.risk_upper, [numbers.threshold]])
    ax.set(ylim=(0, min(1.02, 1.15 * float(ends.max()))))
    ax.set_ylabel("risk", fontsize="small")


def _has_process(model: SeriesClassifier) -> bool:
    return isinstance(model, EarlyWarningClassifier) and model.adapter_ is not None


def _telling(model: SeriesClassifier, series: RaggedSeries, when: float) -> list[str]:
    """Channels that moved the risk most, among those measured; or those measured most."""
    count = np.bincount(series.channel, minlength=series.n_channels)
    if isinstance(model, EarlyWarningClassifier):
        moved = [name for name, _ in model.explain(series, when, steps=8).by_channel()]
        order = [series.channel_names.index(name) for name in moved]
    else:
        order = [int(c) for c in np.argsort(-count, kind="stable")]
    return [series.channel_names[c] for c in order if count[c]][:_CHANNELS]


def _bands(model: SeriesClassifier, series: RaggedSeries) -> tuple[Array, Array, Array, Array]:
    """Times ``(t,)``, mean ``(t, M)`` and ends of intervals ``(2, t, M)`` of what comes next, in the caller's units."""
    M = series.n_channels
    if not (isinstance(model, EarlyWarningClassifier) and model.adapter_ is not None and len(series.time)):
        return np.zeros(0), np.zeros((0, M)), np.zeros((0, 0, M)), np.zeros((0, 0, M))
    first, last = float(series.time[0]), float(max(series.time[-1], series.grid_times[-1]))
    at = np.unique(np.concatenate([np.linspace(first, last, _POINTS), series.time]))
    scaled = model.scaling_.apply(series.with_grid(at, [0, len(at)]))
    with torch.no_grad():
        posterior = model.adapter_.posterior(batch_of(scaled))
        spread = (posterior.variance + model.adapter_.noise).sqrt().numpy()
    mean, channel = posterior.mean.numpy(), np.arange(M)
    reach = np.array([ndtri(0.5 + level / 2) for level in LEVELS])[:, None, None] * spread
    return (
        at, model.scaling_.unscaled(channel, mean), model.scaling_.unscaled(channel, mean - reach),
        model.scaling_.unscaled(channel, mean + reach),
    )  # fmt: skip
