"""The last step of every way to make a `RaggedSeries`: one form of table, checked row by row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpmoe.early_warning.frames import LongTable
from gpmoe.early_warning.offsets import checked_offsets, offsets_of
from gpmoe.early_warning.outcomes import Grid, checked_ends, checked_grid, checked_labels, checked_static
from gpmoe.early_warning.rows import Array, Rows, checked_rows
from gpmoe.errors import InputError, ShapeError

REPAIRS = ("non-finite", "unknown channel", "future-stamped", "unsorted", "duplicated", "grid")
"""What ``repair=True`` may touch; `RaggedSeries.repairs` counts the rows of each."""


def from_arrays(
    columns: tuple[ArrayLike, ArrayLike, ArrayLike],
    offsets: ArrayLike,
    *,
    n_channels: int | None,
    channel_names: Sequence[str] | None,
    grid: tuple[ArrayLike | None, ArrayLike | None],
    labels: ArrayLike | None,
    static: ArrayLike | None,
    static_names: Sequence[str] | None,
    ends: tuple[ArrayLike | None, ArrayLike | None],
    ids: Sequence[Any] | NDArray[Any] | None,
) -> LongTable:
    """Concatenated rows as a table; see `RaggedSeries.from_arrays`.

    Args:
        columns: time, channel and value.
        offsets, n_channels, channel_names, labels, static, static_names, ids: as there.
        grid: times and offsets.
        ends: times of event and of censoring.

    Raises:
        ShapeError, InputError: if arrays don't fit together.
    """
    time, channel, value = (np.asarray(column) for column in columns)
    bounds = checked_offsets("offsets", offsets, len(time) if time.ndim else 0)
    n, N = int(bounds[-1]), len(bounds) - 1
    for name, column in (("time", time), ("channel", channel), ("value", value)):
        if column.shape != (n,):
            raise ShapeError(f"`{name}` must have shape ({n},), as `offsets` ends there; got {column.shape}.")
    if channel.size and channel.dtype.kind not in "iub":
        raise InputError(f"`channel` must hold integers; got dtype {channel.dtype}. Names go to `from_table`.")
    owner = np.repeat(np.arange(N), np.diff(bounds))
    rows = Rows(owner, _float(time), channel.astype(np.int64), _float(value), np.arange(n))
    names = np.arange(N) if ids is None else np.array(ids)
    if names.shape != (N,):
        raise ShapeError(f"`ids` must have shape ({N},), one a series; got {names.shape}.")
    known = _names(channel_names, n_channels)
    return LongTable(rows, names, known, _grid(*grid), labels, static, static_names, *ends)


def assembled(table: LongTable, *, repair: bool) -> dict[str, Any]:
    """The fields of a `RaggedSeries` from a table, checked.

    Raises:
        ShapeError, NonFiniteError, InputError: as `RaggedSeries.from_arrays`; an error names the row.
    """
    n, grid = len(table.ids), table.grid
    labels = None if table.labels is None else np.array(table.labels, dtype=np.float64)
    counts = dict.fromkeys(REPAIRS, 0)
    event, censoring = checked_ends(table.event_time, table.censoring_time, n)
    if grid is not None:
        grid, labels, counts["grid"] = checked_grid(grid, labels, n, table.ids, repair)
    rows, found = checked_rows(
        table.rows, ids=list(table.ids), n_channels=len(table.channel_names), end=_latest(grid, censoring),
        repair=repair,
    )  # fmt: skip
    times, grid_offsets = _event_grid(rows, n) if grid is None else grid
    labels, label_per = checked_labels(labels, len(times), n)
    static, static_names = checked_static(table.static, table.static_names, n)
    return {
        "time": rows.time, "channel": rows.channel, "value": rows.value, "offsets": offsets_of(rows.owner, n),
        "grid_times": times, "grid_offsets": grid_offsets, "ids": table.ids,
        "channel_names": tuple(table.channel_names), "labels": labels, "label_per": label_per, "static": static,
        "static_names": static_names, "event_time": event, "censoring_time": censoring,
        "repairs": counts | found if repair else {},
    }  # fmt: skip


def _grid(times: ArrayLike | None, offsets: ArrayLike | None) -> Grid | None:
    if (times is None) != (offsets is None):
        raise InputError("`grid_times` and `grid_offsets` go together; got one of them.")
    if times is None or offsets is None:
        return None
    found = _float(np.asarray(times))
    return found, checked_offsets("grid_offsets", offsets, len(found))


def _latest(grid: Grid | None, censoring: Array | None) -> Array | None:
    """Latest stamp that a measurement of each series may have."""
    end = None if censoring is None else np.where(np.isnan(censoring), np.inf, censoring)
    if grid is None:
        return end
    times, offsets = grid
    last = np.full(len(offsets) - 1, -np.inf)
    some = np.diff(offsets) > 0
    last[some] = times[offsets[1:][some] - 1]
    return last if end is None else np.minimum(last, end)


def _event_grid(rows: Rows, n: int) -> Grid:
    """Each distinct time of each series."""
    first = np.ones(len(rows.time), dtype=bool)
    first[1:] = (np.diff(rows.time) != 0) | (np.diff(rows.owner) != 0)
    return rows.time[first], offsets_of(rows.owner[first], n)


def _float(column: NDArray[Any]) -> Array:
    if column.size and column.dtype.kind not in "biuf":
        raise InputError(f"times and values must be numbers; got dtype {column.dtype}.")
    return column.astype(np.float64)


def _names(channel_names: Sequence[str] | None, n_channels: int | None) -> tuple[str, ...]:
    if channel_names is None and n_channels is None:
        raise InputError("pass `n_channels` or `channel_names`, so that a channel that never occurs is counted too.")
    names = tuple(map(str, range(n_channels or 0))) if channel_names is None else tuple(map(str, channel_names))
    if n_channels is not None and len(names) != n_channels:
        raise InputError(f"`channel_names` must hold n_channels={n_channels} names; got {len(names)}.")
    if len(set(names)) != len(names):
        raise InputError(f"`channel_names` must differ; got {', '.join(names)}.")
    return names
