"""pandas and polars tables as arrays: long ones, a measurement a row, and wide ones, a time a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from gpmoe.early_warning.offsets import offsets_of
from gpmoe.early_warning.outcomes import Grid
from gpmoe.early_warning.rows import Array, Index, Rows
from gpmoe.errors import InputError

_NANOSECONDS = {"D": 86_400e9, "h": 3_600e9, "m": 60e9, "s": 1e9, "ms": 1e6, "us": 1e3, "ns": 1.0}


@dataclass(frozen=True)
class LongTable:
    """What a table holds, in arrays, not yet checked row by row.

    Attributes:
        rows: grouped by series, in the table's order within each.
        ids: name of each series, ``(N,)``.
        channel_names: M names.
        grid: grid times and offsets, or None.
        labels, static, event_time, censoring_time: as in `RaggedSeries`, or None.
        static_names: names of the columns of static.
    """

    rows: Rows
    ids: NDArray[Any]
    channel_names: Sequence[str]
    grid: Grid | None
    labels: ArrayLike | None
    static: ArrayLike | None
    static_names: Sequence[str] | None
    event_time: ArrayLike | None = None
    censoring_time: ArrayLike | None = None


def from_long(
    frame: Any,
    *,
    names: tuple[str, str, str, str],
    channel_names: Sequence[str] | None,
    grid: Any,
    outcomes: Any,
    label: str | None,
    ends: tuple[str | None, str | None],
    static: Sequence[str],
    unit: str | None,
) -> LongTable:
    """Arrays of a long table and of the tables of grid times and outcomes; see `RaggedSeries.from_table`."""
    id, time, channel, value = names
    table = _Frame(frame, "frame")
    about = None if outcomes is None else _Frame(outcomes, "outcomes")
    ids = _occurring(table, grid, id) if about is None else _one_row_each(about, id)
    owner = _numbered(table, id, ids)
    stamps = _Stamps(table.values(time), owner, len(ids), unit, time)
    labels_of_grid = label is not None and grid is not None and label in _Frame(grid, "grid").columns
    times, labels = (
        (None, None) if grid is None else _grid(grid, id, time, label if labels_of_grid else None, ids, stamps)
    )
    known = _channel_names(table.series(channel)) if channel_names is None else list(map(str, channel_names))
    codes = _numbered_channels(table.series(channel), known)
    order = np.argsort(owner, kind="stable")
    rows = Rows(
        owner[order], stamps.of(table.values(time), owner)[order], codes[order], table.numbers(value)[order], order,
        lambda row: table.values(channel)[row],
    )  # fmt: skip
    if (label is not None and not labels_of_grid) or static or any(ends):
        about = about or _missing_outcomes()
        labels = about.numbers(label) if label is not None and not labels_of_grid else labels
    event, censoring = (None if about is None or name is None else _end(about, name, stamps) for name in ends)
    covariates = None if about is None or not static else np.column_stack([about.numbers(name) for name in static])
    return LongTable(rows, ids.to_numpy(), known, times, labels, covariates, static, event, censoring)


def from_wide(
    frame: Any,
    *,
    id: str,
    time: str,
    channels: Sequence[str],
    label: str | None,
    static: Sequence[str],
    unit: str | None,
) -> LongTable:
    """Arrays of a wide table, whose rows are the grid times; see `RaggedSeries.from_wide`."""
    table = _Frame(frame, "frame")
    ids = _occurring(table, None, id)
    owner = _numbered(table, id, ids)
    stamps = _Stamps(table.values(time), owner, len(ids), unit, time).of(table.values(time), owner)
    values = np.column_stack([table.numbers(name) for name in channels])
    order = np.argsort(owner, kind="stable")
    row, channel = np.nonzero(~np.isnan(values[order]))
    number = order[row]
    rows = Rows(owner[number], stamps[number], channel, values[number, channel], number, None)
    offsets = offsets_of(owner, len(ids))
    first = order[offsets[:-1]]
    covariates = np.column_stack([table.numbers(name)[first] for name in static]) if static else None
    labels = None if label is None else table.numbers(label)[order]
    return LongTable(rows, ids.to_numpy(), channels, (stamps[order], offsets), labels, covariates, static)


class _Frame:
    """A pandas or polars frame, read by column."""

    def __init__(self, frame: Any, name: str) -> None:
        if not hasattr(frame, "columns") or not hasattr(frame, "__getitem__"):
            raise InputError(f"`{name}` must be a pandas or polars frame; got {type(frame).__name__}.")
        self.frame, self.name, self.columns = frame, name, list(frame.columns)

    def values(self, column: str) -> NDArray[Any]:
        """A column as NumPy has it."""
        if column not in self.columns:
            raise InputError(f"`{self.name}` has no column {column!r}; it has {', '.join(map(repr, self.columns))}.")
        return np.asarray(self.frame[column].to_numpy())

    def series(self, column: str) -> pl.Series:
        """A column of names, of which none is missing."""
        series = self.frame[column] if column in self.columns else None
        if not isinstance(series, pl.Series):
            values = self.values(column)
            listed = values.tolist() if values.dtype.kind == "O" else values
            series = pl.Series(column, listed, strict=False)
        missing = series.is_null() | (series.is_nan() if series.dtype.is_float() else False)
        if missing.any():
            raise InputError(f"row {int(missing.arg_true()[0])} of `{self.name}` has no {column!r}; fill it in.")
        return series

    def numbers(self, column: str) -> Array:
        """A column of numbers, NaN where missing."""
        values = self.values(column)
        if values.dtype.kind == "O":  # numbers and missing ones
            values = pl.Series(values.tolist(), strict=False).to_numpy()
        if values.dtype.kind not in "biuf":
            raise InputError(f"column {column!r} of `{self.name}` must hold numbers; it holds {values.dtype}.")
        return values.astype(np.float64)


class _Stamps:
    """Times as numbers: as they are, or durations in a unit since the first row of the series where they are dates."""

    def __init__(self, values: NDArray[Any], owner: Index, n: int, unit: str | None, column: str) -> None:
        self.unit, self.column, self.origin = unit, column, None
        if values.dtype.kind in "mM" and unit not in _NANOSECONDS:
            raise InputError(
                f"column {column!r} holds dates or durations; pass `unit`, one of {', '.join(_NANOSECONDS)}, "
                f"such as unit='h' for hours; got {unit!r}."
            )
        if values.dtype.kind == "M":
            earliest = np.full(n, np.iinfo(np.int64).max)
            there = ~np.isnat(values)
            np.minimum.at(earliest, owner[there], values.astype("datetime64[ns]").astype(np.int64)[there])
            self.origin = earliest

    def of(self, values: NDArray[Any], owner: Index) -> Array:
        """Stamps of rows of the series ``owner``, a float a row."""
        if (values.dtype.kind == "M") != (self.origin is not None):
            raise InputError(f"either all tables have dates in {self.column!r} or none; got dtype {values.dtype}.")
        if values.dtype.kind in "mM":
            nanoseconds = values.astype(f"{values.dtype.kind}8[ns]")
            ticks = nanoseconds.astype(np.int64) - (0 if self.origin is None else self.origin[owner])
            return np.where(np.isnat(values), np.nan, ticks / _NANOSECONDS[str(self.unit)])
        if values.dtype.kind not in "biuf":
            raise InputError(f"column {self.column!r} must hold numbers or dates; it holds {values.dtype}.")
        return values.astype(np.float64)


def _occurring(table: _Frame, grid: Any, id: str) -> pl.Series:
    """Names in the order of their first row, then those that have grid times only."""
    names = table.series(id).unique(maintain_order=True)
    if grid is None:
        return names
    more = _Frame(grid, "grid").series(id).cast(names.dtype)
    return pl.concat([names, more]).unique(maintain_order=True)


def _one_row_each(about: _Frame, id: str) -> pl.Series:
    ids = about.series(id)
    if ids.is_duplicated().any():
        row = int(ids.is_duplicated().arg_true()[0])
        raise InputError(f"`outcomes` must have one row a series; {id!r} {ids[row]!r} has several.")
    return ids


def _numbered(table: _Frame, id: str, ids: pl.Series) -> Index:
    """Number of the series of each row of a table."""
    numbers = _positions(table.series(id), ids)
    if (numbers < 0).any():
        row = int(np.argmax(numbers < 0))
        raise InputError(
            f"row {row} of `{table.name}` has {id!r} {table.values(id)[row]!s}, which no row of "
            "the other tables has. Add it there, or leave the row out."
        )
    return numbers


def _numbered_channels(names: pl.Series, known: Sequence[str]) -> Index:
    """Number of each row's channel, -1 where unknown."""
    return _positions(names.cast(pl.String), pl.Series(names.name, list(known), dtype=pl.String))


def _positions(names: pl.Series, known: pl.Series) -> Index:
    if names.dtype != known.dtype:
        names, known = names.cast(pl.String), known.cast(pl.String)
    right = pl.DataFrame({"name": known, "place": np.arange(len(known))})
    joined = pl.DataFrame({"name": names}).join(right, on="name", how="left", maintain_order="left")
    return joined["place"].fill_null(-1).to_numpy().astype(np.int64)


def _channel_names(names: pl.Series) -> list[str]:
    return [str(name) for name in names.unique().sort()]


def _grid(
    grid: Any, id: str, time: str, label: str | None, ids: pl.Series, stamps: _Stamps
) -> tuple[Grid, Array | None]:
    table = _Frame(grid, "grid")
    owner = _numbered(table, id, ids)
    order = np.argsort(owner, kind="stable")
    offsets = offsets_of(owner, len(ids))
    labels = None if label is None else table.numbers(label)[order]
    return (stamps.of(table.values(time), owner)[order], offsets), labels


def _end(about: _Frame, column: str, stamps: _Stamps) -> Array:
    values = about.values(column)
    values = values if values.dtype.kind in "mM" else about.numbers(column)
    return stamps.of(values, np.arange(len(values)))


def _missing_outcomes() -> _Frame:
    raise InputError("`label`, `event_time`, `censoring_time` and `static` are columns of `outcomes`; pass that table.")
