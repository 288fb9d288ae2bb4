"""Public collections of intensive-care stays as `RaggedSeries`: the PhysioNet challenges of 2012 and 2019.

Challenge 2019 (sepsis), hours as the unit of time. Each hourly row is a grid time, and measured at, its ICULOS (hours
since admission to intensive care, 1 for the first): the clock is the time axis, not a channel. Age, Gender, Unit1,
Unit2 and HospAdmTime (hours from hospital to intensive-care admission, negative) are static covariates, known from
the first row. The label of a row turns to 1 six hours before the onset, so `event_time` is the first positive row's
time plus 6, infinite without one; a stay that is positive from its first row has its onset at most that late.

Challenge 2012 (mortality), minutes on file, hours here. Age, Gender, Height, ICUType and the weight at admission are
static (-1 on file means unknown, NaN here), the other 36 parameters and later weights are channels. There is one
label a stay, death in hospital, and the grid is hourly from 1 to 48. Stays have repeated stamps, which are averaged,
and 12 hold no measurements (drop them by ``series[np.diff(series.offsets) > 0]``).

Source: Reyna et al. (2020), Critical Care Medicine 48(2); Silva et al. (2012), Computing in Cardiology 39.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gpmoe.early_warning.offsets import offsets_of
from gpmoe.early_warning.rows import Array, Index
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import FileFormatError, InputError

HOURS_BEFORE_ONSET = 6
"""How long before the onset the labels of the challenge 2019 turn positive."""

_STATIC_2019 = ("Age", "Gender", "Unit1", "Unit2", "HospAdmTime")
_CLOCK_2019, _LABEL_2019 = "ICULOS", "SepsisLabel"
_STATIC_2012 = ("Age", "Gender", "Height", "ICUType", "Weight")
_LABEL_2012 = "In-hospital_death"
_HOURS_2012 = 48


def read_challenge_2019(folder: str | Path) -> RaggedSeries:
    """The ``.psv`` files of a folder, one a stay; ids are the file names without ending.

    Raises:
        InputError: if there is no such file.
        FileFormatError: if a file lacks the clock, or has other columns than the first.
    """
    paths = _files(folder, "*.psv")
    tables, columns = [], None
    for path in paths:
        with path.open(encoding="utf-8") as file:
            names = file.readline().strip().split("|")
        columns = columns or names
        if names != columns or _CLOCK_2019 not in names:
            raise FileFormatError(f"{path} must have the columns {'|'.join(columns)}, {_CLOCK_2019} among them.")
        tables.append(np.genfromtxt(path, delimiter="|", skip_header=1, ndmin=2))
    sizes = [len(table) for table in tables]
    values = np.concatenate(tables)
    names = columns or []
    labels = values[:, names.index(_LABEL_2019)] if _LABEL_2019 in names else None
    inputs = [name for name in names if name != _LABEL_2019]
    return _hourly(
        values[:, [names.index(name) for name in inputs]], labels, np.cumsum([0, *sizes]), inputs,
        np.array([path.stem for path in paths]),
    )  # fmt: skip


def load_challenge_2019(path: str | Path) -> RaggedSeries:
    """An ``.npz`` file of X ``(rows, 40)``, y ``(rows,)``, offsets ``(N + 1,)``, patient_id and columns.

    Raises:
        FileFormatError: if an array is not there.
    """
    with np.load(path, allow_pickle=False) as file:
        X, y, offsets, ids, columns = _arrays(file, path, ("X", "y", "offsets", "patient_id", "columns"))
    return _hourly(X.astype(np.float64), y, offsets, [str(name) for name in columns], ids)


def read_challenge_2012(folder: str | Path, outcomes: str | Path | None = None) -> RaggedSeries:
    """The ``.txt`` files of a folder, one a stay, with lines "hh:mm,parameter,value", and the file of outcomes.

    Args:
        folder: of the stays; ids are the file names without ending, as numbers.
        outcomes: comma-separated, with the columns RecordID and In-hospital_death; None for no labels.

    Raises:
        InputError: if there is no such file, or a stay has no outcome.
        FileFormatError: if a file is of another layout.
    """
    paths = _files(folder, "*.txt")
    paths = [path for path in paths if path.stem.isdigit()]
    time, name, value, sizes = [], [], [], [0]
    for path in paths:
        lines = [line.split(",") for line in path.read_text(encoding="utf-8").split("\n")[1:] if line.strip()]
        lines = [line for line in lines if len(line) == 3 and line[1] not in ("RecordID", "")]
        if any(line[0][2:3] != ":" for line in lines):
            raise FileFormatError(f"{path} must have lines such as 00:07,HR,73; one has another form.")
        time += [60 * int(line[0][:2]) + int(line[0][3:]) for line in lines]
        name += [line[1] for line in lines]
        value += [float(line[2]) for line in lines]
        sizes.append(len(lines))
    ids = np.array([int(path.stem) for path in paths])
    labels = None if outcomes is None else _outcomes(Path(outcomes), ids)
    parameters = [*_STATIC_2012, *sorted(set(name) - set(_STATIC_2012))]
    place = {parameter: i for i, parameter in enumerate(parameters)}
    codes = np.array([place[parameter] for parameter in name], dtype=np.int64)
    return _irregular(np.array(time), codes, np.array(value), np.cumsum(sizes), parameters, ids, labels)


def load_challenge_2012(path: str | Path) -> RaggedSeries:
    """An ``.npz`` file of time_min, param, value, offsets, record_id, param_names, outcomes and outcome_names.

    Raises:
        FileFormatError: if an array is not there.
    """
    names = ("time_min", "param", "value", "offsets", "record_id", "param_names", "outcomes", "outcome_names")
    with np.load(path, allow_pickle=False) as file:
        time, codes, value, offsets, ids, parameters, outcomes, columns = _arrays(file, path, names)
    labels = outcomes[:, list(columns).index(_LABEL_2012)]
    return _irregular(time, codes.astype(np.int64), value, offsets, [str(p) for p in parameters], ids, labels)


def _hourly(
    values: Array, labels: NDArray[Any] | None, offsets: Index, columns: list[str], ids: NDArray[Any]
) -> RaggedSeries:
    """Rows of the challenge 2019 as series; see the head of this file."""
    static = [name for name in _STATIC_2019 if name in columns]
    channels = [name for name in columns if name not in (*_STATIC_2019, _CLOCK_2019)]
    clock = values[:, columns.index(_CLOCK_2019)]
    row, channel = np.nonzero(~np.isnan(measured := values[:, [columns.index(name) for name in channels]]))
    first = np.asarray(offsets)[:-1]
    return RaggedSeries.from_arrays(
        clock[row], channel, measured[row, channel], np.searchsorted(row, offsets), channel_names=channels,
        grid_times=clock, grid_offsets=offsets, labels=labels,
        static=values[first][:, [columns.index(name) for name in static]], static_names=static,
        event_time=None if labels is None else _onsets(clock, labels, offsets),
        censoring_time=clock[np.asarray(offsets)[1:] - 1], ids=ids,
    )  # fmt: skip


def _onsets(clock: Array, labels: NDArray[Any], offsets: Index) -> Array:
    onset = np.full(len(offsets) - 1, np.inf)
    positive = np.flatnonzero(labels > 0)
    owner = np.searchsorted(offsets, positive, side="right") - 1
    stays, first = np.unique(owner, return_index=True)
    onset[stays] = clock[positive[first]] + HOURS_BEFORE_ONSET
    return onset


def _irregular(
    minutes: NDArray[Any],
    codes: Index,
    value: NDArray[Any],
    offsets: Index,
    parameters: list[str],
    ids: NDArray[Any],
    labels: Array | None,
) -> RaggedSeries:
    """Rows of the challenge 2012 as series; see the head of this file."""
    n = len(offsets) - 1
    owner = np.repeat(np.arange(n), np.diff(offsets))
    column = np.array([_STATIC_2012.index(name) if name in _STATIC_2012 else -1 for name in parameters])[codes]
    at_start = (minutes == 0) & (column >= 0)
    static = np.full((n, len(_STATIC_2012)), np.nan)
    static[owner[at_start], column[at_start]] = np.where(value[at_start] == -1, np.nan, value[at_start])
    channels = [name for name in parameters if name not in _STATIC_2012 or name == "Weight"]
    place = np.array([channels.index(name) if name in channels else -1 for name in parameters])[codes]
    kept = ~at_start & (place >= 0) & ((value != -1) | (column < 0))
    hours = np.arange(1.0, _HOURS_2012 + 1)
    return RaggedSeries.from_arrays(
        minutes[kept] / 60.0, place[kept], value[kept], offsets_of(owner[kept], n),
        channel_names=channels, grid_times=np.tile(hours, n), grid_offsets=_HOURS_2012 * np.arange(n + 1),
        labels=labels, static=static, static_names=_STATIC_2012, ids=ids, repair=True,
    )  # fmt: skip


def _outcomes(path: Path, ids: NDArray[Any]) -> Array:
    table = pl.read_csv(path)
    if not {"RecordID", _LABEL_2012} <= set(table.columns):
        raise FileFormatError(f"{path} must have the columns RecordID and {_LABEL_2012}; got {table.columns}.")
    known = dict(zip(table["RecordID"], table[_LABEL_2012], strict=True))
    lacking = [int(stay) for stay in ids if stay not in known]
    if lacking:
        raise InputError(f"{path} has no row for stay {lacking[0]} ({len(lacking)} lack one).")
    return np.array([known[stay] for stay in ids], dtype=np.float64)


def _files(folder: str | Path, pattern: str) -> list[Path]:
    paths = sorted(Path(folder).glob(pattern))
    if not paths:
        raise InputError(f"{folder} holds no file {pattern}. Give the folder of the stays.")
    return paths


def _arrays(file: Any, path: str | Path, names: tuple[str, ...]) -> list[NDArray[Any]]:
    lacking = [name for name in names if name not in file]
    if lacking:
        raise FileFormatError(f"{path} lacks the arrays {', '.join(lacking)}; it has {', '.join(file)}.")
    return [file[name] for name in names]
