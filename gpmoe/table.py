"""Tables from files: what the command line reads, checks and turns into arrays.

A row is named by its place among the data rows, counted from 1: the header does not count.
"""

import csv
import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gpmoe.errors import FileFormatError, InputError, NonFiniteError

_DELIMITERS = ",;\t|"
_MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL")
_DATE = r"^(\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[/.]\d{1,2}[/.]\d{2,4}|\d{4}/\d{1,2}/\d{1,2})([T ].*)?$"
_DECIMAL_COMMA = r"^[+-]?\d+,\d+$"
_LONGEST_LIST = 10
_FEWEST_FOR_IDENTIFIERS = 10


@dataclass(frozen=True)
class Column:
    """A feature column: numbers, or text of known levels that is one-hot encoded.

    Attributes:
        name: as in the table's header.
        levels: the text values seen in fitting, sorted; ``None`` for a column of numbers.
    """

    name: str
    levels: tuple[str, ...] | None = None

    def encode(self, values: pl.Series) -> NDArray[np.float64]:
        """Numbers ``(n, 1)``, or one 0/1 column a level ``(n, len(levels))``, of a column without missing values."""
        if self.levels is None:
            return _finite_numbers(values)[:, None]
        text = _as_text(values)
        known = np.array(self.levels)
        encoded: NDArray[np.bool_] = text.to_numpy()[:, None] == known[None, :]
        unseen = np.flatnonzero(~encoded.any(axis=1))
        if unseen.size:
            row = int(unseen[0])
            raise InputError(
                f"row {row + 1}, column {self.name!r}: {text[row]!r} was not among the values the model was fitted "
                f"with ({_listed(self.levels)}). Correct it, or fit again with rows that hold it."
            )
        return encoded.astype(np.float64)


@dataclass(frozen=True)
class TableSchema:
    """Which columns a model takes from a table, and how they become an array.

    Attributes:
        target: name of the target column.
        columns: the feature columns in the order of the array.

    Example:
        >>> frame = pl.DataFrame({"x": [1.0, 2.0, 3.0], "colour": ["red", "blue", "red"], "y": [1.0, 4.0, 9.0]})
        >>> schema, notes = TableSchema.learn(frame, "y")
        >>> schema.features(frame)
        array([[1., 0., 1.],
               [2., 1., 0.],
               [3., 0., 1.]])
        >>> notes
        ["column 'colour' holds text: one-hot encoded as 2 columns (blue, red)."]
    """

    target: str
    columns: tuple[Column, ...]

    @classmethod
    def learn(cls, frame: pl.DataFrame, target: str) -> tuple["TableSchema", list[str]]:
        """Choose the feature columns of a table, with a note on each that is not a plain column of numbers.

        Raises:
            InputError: if the target is not a column, no feature is left, values are missing, or a column holds
                dates or a mixture of numbers and text.
        """
        if target not in frame.columns:
            raise InputError(_no_such_column(target, frame.columns, "--target"))
        _expect_complete(frame)
        _expect_target_numbers(frame[target])
        columns: list[Column] = []
        notes: list[str] = []
        for series in frame.drop(target):
            column, note = _describe(series)
            columns += [column] if column else []
            notes += [note] if note else []
        if not columns:
            raise InputError(
                f"the table has no feature column that varies beside the target {target!r}. "
                "Add at least one column to predict from."
            )
        return cls(target, tuple(columns)), notes

    def features(self, frame: pl.DataFrame) -> NDArray[np.float64]:
        """The array ``(n, d)`` of the feature columns; further columns are ignored.

        Raises:
            InputError: naming the column, and the row where one is at fault.
        """
        lacking = [column.name for column in self.columns if column.name not in frame.columns]
        if lacking:
            raise InputError(
                f"the table lacks {_listed(map(repr, lacking))}, which the model was fitted with; "
                f"its columns are {_listed(map(repr, frame.columns))}. Add or rename the columns."
            )
        frame = frame.select(column.name for column in self.columns)
        _expect_complete(frame)
        return np.hstack([column.encode(frame[column.name]) for column in self.columns])

    def targets(self, frame: pl.DataFrame) -> NDArray[np.float64]:
        """The target column ``(n,)``."""
        return _finite_numbers(frame[self.target])

    def to_dict(self) -> dict[str, Any]:
        """A dictionary that JSON can hold."""
        columns = [{"name": column.name, "levels": column.levels and list(column.levels)} for column in self.columns]
        return {"target": self.target, "columns": columns}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "TableSchema":
        """The schema that `to_dict` wrote.

        Raises:
            FileFormatError: if the dictionary is of another kind.
        """
        try:
            columns = tuple(
                Column(str(entry["name"]), None if entry["levels"] is None else tuple(map(str, entry["levels"])))
                for entry in stored["columns"]
            )
            return cls(str(stored["target"]), columns)
        except (KeyError, TypeError) as error:
            raise FileFormatError("the model file's table description is damaged. Fit the model again.") from error


def read_table(path: Path, delimiter: str | None = None, text: Collection[str] = ()) -> pl.DataFrame:
    """Read a CSV, TSV or Parquet file: columns of numbers as float64, others as they are.

    Args:
        path: file ending in ``.parquet``, or text with a header line.
        delimiter: of a text file, ``\\t`` for a tab; by default a tab for ``.tsv`` and a comma otherwise.
        text: columns that hold names, such as 007, even where they look like numbers.

    Raises:
        InputError: if there is no such file, or its rows or header can't be read as a table.
    """
    if not path.is_file():
        raise InputError(f"{path} is {'a folder' if path.is_dir() else 'no file'}. Give the path of a table.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty. It needs a header line and rows below it.")
    frame = _read_parquet(path) if path.suffix == ".parquet" else _read_text(path, delimiter, text)
    if frame.height == 0:
        raise InputError(f"{path} has a header but no rows. Add rows below the header.")
    frame = frame.with_columns(pl.selectors.float().fill_nan(None))
    return frame.with_columns(pl.col(name).cast(pl.String) for name in text if name in frame.columns)


def write_table(frame: pl.DataFrame, path: Path) -> None:
    """Write a table as the path's ending says: ``.csv``, ``.tsv`` or ``.parquet``."""
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    else:
        frame.write_csv(path, separator="\t" if path.suffix == ".tsv" else ",")


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path} is not a Parquet file that can be read: {_first_line(error)}") from error


def _read_text(path: Path, delimiter: str | None, text: Collection[str]) -> pl.DataFrame:
    tab = delimiter == r"\t" or (delimiter is None and path.suffix == ".tsv")
    separator = "\t" if tab else "," if delimiter is None else delimiter
    if len(separator.encode()) != 1 or separator in '"\r\n':
        raise InputError(f"the delimiter must be one ASCII character and no quote; got {delimiter!r}.")
    names = _header(path, separator)
    try:
        frame = pl.read_csv(path, separator=separator, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path} can't be read as a table: {_ragged_row(path, separator, error)}") from error
    frame.columns = names
    return frame.select(_typed(series, series.name in text) for series in frame)


def _header(path: Path, separator: str) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            names = [name.strip() for name in next(csv.reader(lines, delimiter=separator), [])]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a text table in UTF-8: {error}. Save it as CSV in UTF-8.") from error
    if not any(names):
        raise InputError(f"{path} starts with an empty line. It needs a header line and rows below it.")
    other = next((mark for mark in _DELIMITERS if mark != separator and mark in names[0]), None)
    if len(names) == 1 and other is not None:
        raise InputError(
            f"{path} has one column, {names[0]!r}, if {separator!r} divides columns, but the header holds {other!r}. "
            f"Add --delimiter {other!r}."
        )
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise InputError(f"{path} has two columns named {repeated[0]!r}. Give each column a name of its own.")
    return names


def _ragged_row(path: Path, separator: str, error: Exception) -> str:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        rows = csv.reader(lines, delimiter=separator)
        width = len(next(rows))
        for number, row in enumerate(rows, start=1):
            if len(row) > width:
                return f"row {number} has {len(row)} values, the header {width} names. Correct or quote that row."
    return _first_line(error)


def _typed(series: pl.Series, names: bool) -> pl.Series:
    """A text column as numbers where every value that is there reads as one, else as stripped text; names as text."""
    stripped = series.str.strip_chars()
    text = stripped.set(stripped.is_in(_MISSING), None)
    if names:
        return text
    numbers = text.cast(pl.Float64, strict=False)
    return numbers if numbers.null_count() == text.null_count() and text.null_count() < len(text) else text


def _expect_complete(frame: pl.DataFrame) -> None:
    missing = frame.select(pl.all().is_null())
    rows = missing.select(pl.any_horizontal(pl.all())).to_series().arg_true()
    if len(rows):
        row = int(rows[0])
        column = next(name for name in missing.columns if missing[name][row])
        count = int(sum(missing.sum().row(0)))
        values = "1 value is" if count == 1 else f"{count} values are"
        raise InputError(
            f"{values} missing in {len(rows)} of {frame.height} rows; the first is in row {row + 1}, "
            f"column {column!r}. Fill them in, or take out those rows or columns."
        )


def _expect_target_numbers(series: pl.Series) -> None:
    if not series.dtype.is_numeric():
        text = series.cast(pl.String)
        wrong = text.cast(pl.Float64, strict=False).is_null().arg_true()
        row = int(wrong[0]) if len(wrong) else 0
        raise InputError(
            f"the target {series.name!r} must hold numbers; row {row + 1} holds {text[row]!r}. "
            "Correct the value, or name another column with --target."
        )
    _finite_numbers(series)


def _finite_numbers(series: pl.Series) -> NDArray[np.float64]:
    values = series.cast(pl.Float64, strict=False)
    if values.null_count():
        row = int(values.is_null().arg_true()[0])
        raise InputError(
            f"row {row + 1}, column {series.name!r}: {series.cast(pl.String)[row]!r} is not a number. "
            "Correct it: the column held numbers when the model was fitted."
        )
    array = values.to_numpy().astype(np.float64)
    infinite = np.flatnonzero(~np.isfinite(array))
    if infinite.size:
        row = int(infinite[0])
        raise NonFiniteError(f"row {row + 1}, column {series.name!r}: {array[row]} is not finite. Correct that row.")
    return array


def _describe(series: pl.Series) -> tuple[Column | None, str | None]:
    """The feature column that a series becomes, if any, and a note if that is not what the caller might expect."""
    if series.dtype.is_temporal():
        raise _dates(series)
    if series.n_unique() == 1 and len(series) > 1:
        return None, f"column {series.name!r} is left out: every row holds {series[0]!r}."
    if series.dtype.is_numeric():
        _finite_numbers(series)
        return Column(series.name), _counting_note(series)
    return _describe_text(_as_text(series))


def _describe_text(text: pl.Series) -> tuple[Column | None, str | None]:
    if text.str.contains(_DATE).all():
        raise _dates(text)
    _expect_no_stray_text(text)
    levels = tuple(text.unique().sort().to_list())
    if len(levels) == len(text) >= _FEWEST_FOR_IDENTIFIERS:
        return None, f"column {text.name!r} is left out: its text differs in every row, as in an identifier."
    columns = f"one-hot encoded as {len(levels)} columns ({_listed(levels)})"
    return Column(text.name, levels), f"column {text.name!r} holds text: {columns}."


def _as_text(series: pl.Series) -> pl.Series:
    """Text of a series; truth values in lower case, as Python, R and Parquet spell them differently."""
    if series.dtype.is_nested() or series.dtype in (pl.Binary, pl.Object):
        raise InputError(f"column {series.name!r} is of type {series.dtype}; columns must hold numbers or text.")
    text = series.cast(pl.String)
    lower = text.str.to_lowercase()
    return lower if lower.is_in(["true", "false"]).all() else text


def _expect_no_stray_text(text: pl.Series) -> None:
    stray = text.cast(pl.Float64, strict=False).is_null()
    if _share(stray) < 0.5:
        row = int(stray.arg_true()[0])
        raise InputError(
            f"column {text.name!r} holds numbers, but row {row + 1} holds {text[row]!r}. "
            "Correct it, or leave the cell empty and the row out."
        )
    if _share(text.str.contains(_DECIMAL_COMMA)) > 0.5:
        raise InputError(
            f"column {text.name!r} holds numbers with decimal commas such as {text[0]!r}. Write them with points."
        )


def _share(claims: pl.Series) -> float:
    return float(claims.sum()) / len(claims)


def _dates(series: pl.Series) -> InputError:
    return InputError(
        f"column {series.name!r} holds dates or times, such as {str(series[0])!r}, which are not numbers. Replace it "
        f"by a number, such as days since the first date, or leave it out with --drop {series.name}."
    )


def _counting_note(series: pl.Series) -> str | None:
    counts = len(series) >= _FEWEST_FOR_IDENTIFIERS and bool((series.cast(pl.Float64).diff().drop_nulls() == 1).all())
    if not counts:
        return None
    return f"column {series.name!r} counts the rows; if it is a row number, leave it out with --drop {series.name!r}."


def _no_such_column(name: str, columns: list[str], option: str) -> str:
    folded = {column.casefold(): column for column in columns}
    near = [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=3)]
    remedy = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"Name one of them with {option}."
    return f"there is no column {name!r} among {_listed(map(repr, columns))}. {remedy}"


def _listed(words: Iterable[str]) -> str:
    words = list(words)
    shown = ", ".join(words[:_LONGEST_LIST])
    return shown if len(words) <= _LONGEST_LIST else f"{shown} and {len(words) - _LONGEST_LIST} more"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
