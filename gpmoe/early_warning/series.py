"""Irregular measurements of many channels on many series, with the times at which each is to be scored."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpmoe.early_warning.assembly import assembled, from_arrays
from gpmoe.early_warning.frames import from_long, from_wide
from gpmoe.early_warning.offsets import offsets_of, picked
from gpmoe.early_warning.rows import Array, Index
from gpmoe.errors import InputError, ShapeError


@dataclass(frozen=True, eq=False)
class RaggedSeries:
    """N series; each has measurements (time, channel, value), and grid times at which a score is wanted.

    Made by `from_arrays`, `from_table` or `from_wide`, which check every row. All arrays are read-only. Times are in
    any one unit, counted from any origin. Within a series, measurements rise in time, and in channel at one time;
    grid times rise strictly.

    Attributes:
        time, channel, value: measurements of all series, one series after another, ``(n,)``.
        offsets: series i has the measurements ``offsets[i]:offsets[i + 1]``, ``(N + 1,)``.
        grid_times: times at which to score, of all series, ``(G,)``.
        grid_offsets: series i has the grid times ``grid_offsets[i]:grid_offsets[i + 1]``, ``(N + 1,)``.
        ids: name of each series, ``(N,)``.
        channel_names: M names.
        labels: ``(G,)`` or ``(G, tasks)`` if `label_per` is "grid", ``(N,)`` or ``(N, tasks)`` if it is "series",
            NaN where unknown; or None.
        label_per: "grid", "series" or None.
        static: covariates known from the start, ``(N, s)``, NaN where unknown; s may be 0.
        static_names: s names.
        event_time: when the event came, ``(N,)``, infinity where none was seen; or None.
        censoring_time: when observation ended, ``(N,)``; or None.
        repairs: how many rows each repair touched, empty without ``repair=True``.

    Example:
        >>> series = RaggedSeries.from_arrays(
        ...     [0.0, 1.5, 0.2], [0, 1, 1], [7.1, 2.0, 2.2], [0, 2, 3], n_channels=2,
        ...     grid_times=[1.0, 2.0, 1.0], grid_offsets=[0, 2, 3], labels=[0, 1, 0])
        >>> series
        RaggedSeries(2 series, 3 measurements of 2 channels, 3 grid times, labels per grid)
        >>> series.until(1.0).value.tolist(), series[[1]].value.tolist()
        ([7.1, 2.2], [2.2])
    """

    time: Array
    channel: Index
    value: Array
    offsets: Index
    grid_times: Array
    grid_offsets: Index
    ids: NDArray[Any]
    channel_names: tuple[str, ...]
    labels: Array | None = None
    label_per: str | None = None
    static: Array = field(default_factory=lambda: np.zeros((0, 0)))
    static_names: tuple[str, ...] = ()
    event_time: Array | None = None
    censoring_time: Array | None = None
    repairs: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for array in vars(self).values():
            if isinstance(array, np.ndarray):
                array.flags.writeable = False

    @classmethod
    def from_arrays(
        cls,
        time: ArrayLike,
        channel: ArrayLike,
        value: ArrayLike,
        offsets: ArrayLike,
        *,
        n_channels: int | None = None,
        channel_names: Sequence[str] | None = None,
        grid_times: ArrayLike | None = None,
        grid_offsets: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        static: ArrayLike | None = None,
        static_names: Sequence[str] | None = None,
        event_time: ArrayLike | None = None,
        censoring_time: ArrayLike | None = None,
        ids: Sequence[Any] | NDArray[Any] | None = None,
        repair: bool = False,
    ) -> "RaggedSeries":
        """Series from concatenated rows.

        Args:
            time: rising within each series, ``(n,)``.
            channel: integers from 0 to n_channels - 1, ``(n,)``.
            value: ``(n,)``.
            offsets: rows of series i are ``offsets[i]:offsets[i + 1]``, ``(N + 1,)``.
            n_channels: M; this or `channel_names` must be given.
            channel_names: M names, "0", "1", ... by default.
            grid_times: times to score, ``(G,)``; by default each distinct time at which a series was measured.
            grid_offsets: ``(N + 1,)``, together with grid_times.
            labels: one a grid time or one a series, with a second axis for several tasks; NaN where unknown.
                G labels are read as one a grid time, also where G = N.
            static: ``(N, s)`` or ``(N,)``, NaN where unknown.
            static_names: s names.
            event_time: ``(N,)``, NaN or infinity where no event was seen.
            censoring_time: ``(N,)``, end of observation.
            ids: N names, 0, 1, ... by default.
            repair: drop non-finite rows, those of unknown channels and those stamped after the last grid time or the
                censoring time; sort the rest and average duplicates; sort grid times, keeping the last of equals.

        Raises:
            ShapeError: if arrays don't fit together.
            NonFiniteError: if a time, a value or a grid time is NaN or infinite; names the row.
            InputError: if rows are unsorted, duplicated, stamped after the end of their series or of an unknown
                channel; names the row.
        """
        table = from_arrays(
            (time, channel, value),
            offsets,
            n_channels=n_channels,
            channel_names=channel_names,
            grid=(grid_times, grid_offsets),
            labels=labels,
            static=static,
            static_names=static_names,
            ends=(event_time, censoring_time),
            ids=ids,
        )
        return cls(**assembled(table, repair=repair))

    @classmethod
    def from_table(
        cls,
        frame: Any,
        *,
        id: str,
        time: str,
        channel: str,
        value: str,
        channel_names: Sequence[str] | None = None,
        grid: Any = None,
        outcomes: Any = None,
        label: str | None = None,
        event_time: str | None = None,
        censoring_time: str | None = None,
        static: Sequence[str] = (),
        unit: str | None = None,
        repair: bool = False,
    ) -> "RaggedSeries":
        """Series from a long pandas or polars table, one measurement a row.

        Rows of a series need not stand together, but must rise in time; series come in the order of `outcomes`, or
        of their first row.

        Args:
            frame: a row for each measurement.
            id, time, channel, value: its columns. A date in `time` needs `unit`.
            channel_names: channels and their order; by default all that occur, in the order of text.
            grid: table with the columns `id` and `time`, and `label` if there is one a grid time.
            outcomes: table with the column `id`, one row a series, for what belongs to a series. A series without
                measurements is kept.
            label: column of `grid` or of `outcomes`.
            event_time, censoring_time: columns of `outcomes`, on the scale of `time`.
            static: columns of `outcomes`, numbers.
            unit: of durations, as NumPy writes it ("h", "m", "s", "D"), where `time` holds dates; they are then
                counted from the first row of the series.
            repair: as in `from_arrays`.

        Raises:
            InputError: if a column is not there or holds text for numbers, or a row is at fault; names it.

        Example:
            >>> import polars
            >>> frame = polars.DataFrame({"who": ["a", "a", "b"], "hour": [0.0, 1.0, 0.5],
            ...                           "what": ["pulse", "urea", "pulse"], "reading": [80.0, 5.2, 95.0]})
            >>> series = RaggedSeries.from_table(frame, id="who", time="hour", channel="what", value="reading")
            >>> series.channel_names, series.ids.tolist(), series.grid_times.tolist()
            (('pulse', 'urea'), ['a', 'b'], [0.0, 1.0, 0.5])
        """
        table = from_long(
            frame,
            names=(id, time, channel, value),
            channel_names=channel_names,
            grid=grid,
            outcomes=outcomes,
            label=label,
            ends=(event_time, censoring_time),
            static=static,
            unit=unit,
        )
        return cls(**assembled(table, repair=repair))

    @classmethod
    def from_wide(
        cls,
        frame: Any,
        *,
        id: str,
        time: str,
        channels: Sequence[str],
        label: str | None = None,
        static: Sequence[str] = (),
        unit: str | None = None,
        repair: bool = False,
    ) -> "RaggedSeries":
        """Series from a wide pandas or polars table: one row a time, one column a channel, NaN where not measured.

        Each row is also a grid time, whether or not something was measured.

        Args:
            frame: the table.
            id, time: its columns.
            channels: its columns of measurements.
            label: its column of labels, one a row.
            static: its columns of what belongs to the series, read from the first row of each.
            unit: as in `from_table`.
            repair: as in `from_arrays`.

        Raises:
            InputError: if a column is not there or holds text, or a row is at fault; names it.

        Example:
            >>> import pandas
            >>> frame = pandas.DataFrame({"who": [1, 1], "hour": [0.0, 1.0], "pulse": [80.0, None], "sick": [0, 1]})
            >>> RaggedSeries.from_wide(frame, id="who", time="hour", channels=["pulse"], label="sick")
            RaggedSeries(1 series, 1 measurements of 1 channels, 2 grid times, labels per grid)
        """
        table = from_wide(frame, id=id, time=time, channels=channels, label=label, static=static, unit=unit)
        return cls(**assembled(table, repair=repair))

    @property
    def n_channels(self) -> int:
        """M."""
        return len(self.channel_names)

    @property
    def owner(self) -> Index:
        """Series of each measurement, ``(n,)``."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def grid_owner(self) -> Index:
        """Series of each grid time, ``(G,)``."""
        return np.repeat(np.arange(len(self)), np.diff(self.grid_offsets))

    @property
    def series_labels(self) -> Array:
        """One label a series: as given, or the largest known of its grid times, NaN if none is; ``(N, ...)``.

        Raises:
            InputError: if there are no labels.
        """
        if self.labels is None:
            raise InputError("these series have no labels; pass `labels` when making them.")
        if self.label_per == "series":
            return self.labels
        largest = np.full((len(self), *self.labels.shape[1:]), -np.inf)
        np.fmax.at(largest, self.grid_owner, self.labels)
        return np.where(np.isinf(largest), np.nan, largest)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator["RaggedSeries"]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        labels = "no labels" if self.labels is None else f"labels per {self.label_per}"
        return (
            f"RaggedSeries({len(self)} series, {len(self.time)} measurements of {self.n_channels} channels, "
            f"{len(self.grid_times)} grid times, {labels})"
        )

    def __getitem__(self, which: int | slice | ArrayLike) -> "RaggedSeries":
        """Some series, by number, slice, numbers or mask; always a `RaggedSeries`, in the order asked for."""
        index = np.arange(len(self))[np.asarray(which) if not isinstance(which, (int, slice)) else which]
        index = np.atleast_1d(index)
        rows, offsets = picked(self.offsets, index)
        grid_rows, grid_offsets = picked(self.grid_offsets, index)
        return self._with(rows, offsets, grid_rows, grid_offsets, index)

    def until(self, t: ArrayLike) -> "RaggedSeries":
        """What was known at a time: measurements and grid times no later than t; a number, or one a series ``(N,)``.

        Labels of the grid times that stay are kept, and so are event and censoring times: they are the truth, not
        an input.

        Raises:
            ShapeError: if t is neither.
        """
        limit = np.asarray(t, dtype=np.float64)
        if limit.shape not in ((), (len(self),)):
            raise ShapeError(f"`t` must be a number or have shape ({len(self)},); got {limit.shape}.")
        limit = np.broadcast_to(limit, (len(self),))
        owner, grid_owner = self.owner, self.grid_owner
        rows = np.flatnonzero(self.time <= limit[owner])
        grid_rows = np.flatnonzero(self.grid_times <= limit[grid_owner])
        n = len(self)
        return self._with(
            rows, offsets_of(owner[rows], n), grid_rows, offsets_of(grid_owner[grid_rows], n), np.arange(n)
        )

    def with_grid(
        self, grid_times: ArrayLike, grid_offsets: ArrayLike, labels: ArrayLike | None = None
    ) -> "RaggedSeries":
        """The same measurements with other grid times, and labels for them; labels a series are kept if none come.

        Raises:
            InputError, ShapeError, NonFiniteError: as `from_arrays`.
        """
        made = RaggedSeries.from_arrays(
            self.time, self.channel, self.value, self.offsets, channel_names=self.channel_names,
            grid_times=grid_times, grid_offsets=grid_offsets, labels=labels, static=self.static,
            static_names=self.static_names, event_time=self.event_time, censoring_time=self.censoring_time,
            ids=self.ids,
        )  # fmt: skip
        if labels is None and self.label_per == "series":  # also where there are as many grid times as series
            return RaggedSeries(**{**vars(made), "labels": self.labels, "label_per": "series"})
        return made

    def with_values(self, value: ArrayLike, static: ArrayLike | None = None) -> "RaggedSeries":
        """The same series with other values ``(n,)``, such as scaled ones, and other static covariates ``(N, s)``.

        Raises:
            ShapeError: if there are more or fewer of them.
        """
        values = np.array(value, dtype=np.float64)
        covariates = self.static if static is None else np.array(static, dtype=np.float64)
        if values.shape != self.value.shape or covariates.shape != self.static.shape:
            raise ShapeError(
                f"values must have shape {self.value.shape} and static covariates {self.static.shape}; "
                f"got {values.shape} and {covariates.shape}."
            )
        return RaggedSeries(**{**vars(self), "value": values, "static": covariates})

    def split(
        self, fractions: Sequence[float], *, groups: ArrayLike | None = None, seed: int | None = None
    ) -> list["RaggedSeries"]:
        """Random parts, such as (0.7, 0.1, 0.2) for training, validation and test.

        Args:
            fractions: sizes of the parts, which sum to one.
            groups: ``(N,)``; series of one group (a patient with several stays) come into one part, and fractions
                are those of groups.
            seed: of NumPy's generator; ``None`` splits afresh.

        Returns:
            The parts, each in the order of this object.

        Raises:
            InputError: if the fractions don't sum to one, or groups are not one a series.
        """
        if not np.isclose(sum(fractions), 1.0) or min(fractions, default=-1.0) < 0:
            raise InputError(f"`fractions` must be positive and sum to 1; got {list(fractions)}.")
        labels = np.arange(len(self)) if groups is None else np.asarray(groups)
        if labels.shape != (len(self),):
            raise InputError(f"`groups` must have shape ({len(self)},), one a series; got {labels.shape}.")
        _, group = np.unique(labels, return_inverse=True)
        n = int(group.max(initial=-1)) + 1
        place = np.random.default_rng(seed).permutation(n)[group]
        cuts = np.round(np.cumsum([0.0, *fractions]) * n)
        return [self[(place >= start) & (place < stop)] for start, stop in pairwise(cuts)]

    def _with(self, rows: Index, offsets: Index, grid_rows: Index, grid_offsets: Index, index: Index) -> "RaggedSeries":
        """Some rows and grid times of some series."""
        labels = self.labels
        if labels is not None:
            labels = labels[grid_rows] if self.label_per == "grid" else labels[index]
        return RaggedSeries(
            self.time[rows], self.channel[rows], self.value[rows], offsets, self.grid_times[grid_rows], grid_offsets,
            self.ids[index], self.channel_names, labels, self.label_per, self.static[index], self.static_names,
            None if self.event_time is None else self.event_time[index],
            None if self.censoring_time is None else self.censoring_time[index], self.repairs,
        )  # fmt: skip
