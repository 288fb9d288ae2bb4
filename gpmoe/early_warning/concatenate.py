"""Several collections of series as one."""

from collections.abc import Sequence

import numpy as np

from gpmoe.early_warning.assembly import REPAIRS
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError


def concatenate(parts: Sequence[RaggedSeries]) -> RaggedSeries:
    """Series of several objects one after another; they must have the same channels, covariates and kind of labels.

    Raises:
        InputError: if there are none, or they differ.

    Example:
        >>> one = RaggedSeries.from_arrays([0.0], [0], [1.0], [0, 1], n_channels=1)
        >>> len(concatenate([one, one]))
        2
    """
    if not parts:
        raise InputError("`parts` must hold at least one RaggedSeries; got none.")
    kinds = {_kind(part) for part in parts}
    if len(kinds) > 1:
        raise InputError(
            f"parts must agree in channels, static covariates, labels and ends; got {sorted(map(str, kinds))}."
        )
    join = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("time", "channel", "value", "grid_times", "ids", "static", *_kind(parts[0])[3])
    }
    sizes = {
        name: np.concatenate([np.diff(getattr(part, name)) for part in parts]) for name in ("offsets", "grid_offsets")
    }
    offsets = {name: np.concatenate([[0], np.cumsum(size)]) for name, size in sizes.items()}
    repairs = {
        name: sum(part.repairs.get(name, 0) for part in parts) for name in REPAIRS if any(p.repairs for p in parts)
    }
    return RaggedSeries(**{**vars(parts[0]), **join, **offsets, "repairs": repairs})


def _kind(series: RaggedSeries) -> tuple[tuple[str, ...], tuple[str, ...], str | None, tuple[str, ...]]:
    optional = ("labels", "event_time", "censoring_time")
    there = tuple(name for name in optional if getattr(series, name) is not None)
    return series.channel_names, series.static_names, series.label_per, there
