"""Measurements as they come in: checked row by row, or repaired when asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from gpmoe.errors import InputError, NonFiniteError

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """One measurement a row.

    Attributes:
        owner: series of each row, ``(n,)``, rising.
        time, channel, value: ``(n,)``; an unknown channel is negative, or too large.
        number: where the caller's table has the row, counted from 0, ``(n,)``.
        name_of: what the caller calls the channel of a row of the table, for messages.
    """

    owner: Index
    time: Array
    channel: Index
    value: Array
    number: Index
    name_of: Callable[[int], Any] | None = None

    def take(self, kept: NDArray[Any]) -> "Rows":
        """The rows that a mask or index names."""
        return Rows(
            self.owner[kept], self.time[kept], self.channel[kept], self.value[kept], self.number[kept], self.name_of
        )


def checked_rows(
    rows: Rows, *, ids: Sequence[Any], n_channels: int, end: Array | None, repair: bool
) -> tuple[Rows, dict[str, int]]:
    """Rows in order of series, time and channel, each pair of time and channel once.

    Args:
        rows: grouped by series, otherwise as they came.
        ids: name of each series, for messages.
        n_channels: channels are 0, ..., n_channels - 1.
        end: time after which each series can't have been measured, ``(N,)``, or None.
        repair: drop non-finite, unknown and future-stamped rows, sort the rest by time and average duplicates,
            instead of raising.

    Returns:
        The rows, and how many rows each repair touched, by name.

    Raises:
        NonFiniteError: if a time or a value is NaN or infinite; names the row, as all errors here do.
        InputError: if a channel is unknown, a row is stamped after the end of its series, before the row above, or
            has the series, time and channel of another.
    """
    counts = {}
    for name, bad in _faults(rows, n_channels, end):
        mask = bad()
        counts[name] = int(mask.sum())
        if counts[name]:
            if not repair:
                _refuse(name, rows, int(np.argmax(mask)), ids, n_channels, end)
            rows = rows.take(~mask)
            return _with_counts(checked_rows(rows, ids=ids, n_channels=n_channels, end=end, repair=True), counts)
    rows, counts["unsorted"] = _sorted_by_time(rows, ids, repair)
    rows = _sorted_by_channel(rows)
    rows, counts["duplicated"] = _without_duplicates(rows, ids, repair)
    return rows, counts


def _with_counts(result: tuple[Rows, dict[str, int]], counts: dict[str, int]) -> tuple[Rows, dict[str, int]]:
    rows, later = result
    return rows, {name: counts.get(name, 0) + later[name] for name in later}


def _faults(rows: Rows, n_channels: int, end: Array | None) -> list[tuple[str, Callable[[], NDArray[np.bool_]]]]:
    """Rows that can't be kept, by the name of the fault; later faults are looked for once earlier ones are gone."""
    late = np.inf if end is None else end[rows.owner]
    return [
        ("non-finite", lambda: ~(np.isfinite(rows.time) & np.isfinite(rows.value))),
        ("unknown channel", lambda: (rows.channel < 0) | (rows.channel >= n_channels)),
        ("future-stamped", lambda: rows.time > late),
    ]


def _sorted_by_time(rows: Rows, ids: Sequence[Any], repair: bool) -> tuple[Rows, int]:
    before = (np.diff(rows.time) < 0) & (np.diff(rows.owner) == 0)
    count = int(before.sum())
    if count and not repair:
        _refuse("unsorted", rows, int(np.argmax(before)) + 1, ids, 0, None)
    return (rows.take(np.lexsort((rows.time, rows.owner))) if count else rows), count


def _sorted_by_channel(rows: Rows) -> Rows:
    """Rows of one time in the order of their channels, so that the order they came in changes nothing."""
    tied = (np.diff(rows.time) == 0) & (np.diff(rows.owner) == 0)
    if not (tied & (np.diff(rows.channel) < 0)).any():
        return rows
    return rows.take(np.lexsort((rows.channel, rows.time, rows.owner)))


def _without_duplicates(rows: Rows, ids: Sequence[Any], repair: bool) -> tuple[Rows, int]:
    again = (np.diff(rows.time) == 0) & (np.diff(rows.owner) == 0) & (np.diff(rows.channel) == 0)
    count = int(again.sum())
    if not count:
        return rows, 0
    if not repair:
        _refuse("duplicated", rows, int(np.argmax(again)) + 1, ids, 0, None)
    first = np.concatenate([[True], ~again])
    group = np.cumsum(first) - 1
    mean = np.bincount(group, rows.value) / np.bincount(group)
    return replace(rows.take(first), value=mean), count


def _refuse(name: str, rows: Rows, row: int, ids: Sequence[Any], n_channels: int, end: Array | None) -> NoReturn:
    """Raise the error of a fault, which names the row in the caller's table."""
    number, time = int(rows.number[row]), float(rows.time[row])
    channel = int(rows.channel[row]) if rows.name_of is None else rows.name_of(number)
    owner = int(rows.owner[row])
    where = f"row {number} (series {ids[owner]!s}, time {time:g}, channel {channel!s})"
    if name == "non-finite":
        raise NonFiniteError(
            f"{where} holds the value {float(rows.value[row])}; time and value must be finite. "
            "Leave out what was not measured, or pass repair=True, which drops such rows."
        )
    if name == "unknown channel":
        raise InputError(
            f"{where}: there are {n_channels} channels, and this is none of them. Correct the row or the list of "
            "channels, or pass repair=True, which drops such rows."
        )
    if name == "future-stamped":
        last = float("inf") if end is None else float(end[owner])
        raise InputError(
            f"{where} is stamped after the end of its series, {last:g} (its last grid time or its censoring time). "
            "Correct the stamp, lengthen the grid, or pass repair=True, which drops such rows."
        )
    if name == "unsorted":
        raise InputError(
            f"{where} lies before the row above it, at time {float(rows.time[row - 1]):g}. "
            "Sort each series by time, or pass repair=True, which does."
        )
    raise InputError(
        f"{where} repeats row {int(rows.number[row - 1])}: same series, time and channel. "
        "Keep one of them, or pass repair=True, which keeps their mean."
    )
