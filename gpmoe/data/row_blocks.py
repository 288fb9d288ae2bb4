"""Tables too long for memory: read in blocks, and kept in a temporary file from which any rows can be had."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpmoe.errors import InputError, ShapeError

Array = NDArray[np.float64]
Block = tuple[Any, Any]

_ROWS = 2**16  # in a block, where we choose


class ParquetBlocks:
    """A Parquet file as (X, y) blocks, which can be gone through again and again.

    Args:
        source: a path, read by polars some 65,000 rows at a time, or a `pyarrow.parquet.ParquetFile`, read by row
            groups.
        target: the column to predict.
        features: the other columns to use, in order; all but the target if None.

    Raises:
        InputError: by reading, if a column is not there.
    """

    def __init__(self, source: Any, target: str, features: list[str] | None = None) -> None:
        self.source = source
        self.target = target
        self.features = features

    def __iter__(self) -> Iterator[Block]:
        by_groups = hasattr(self.source, "num_row_groups")
        return self._from_groups() if by_groups else self._from_path()

    def _columns(self, names: list[str]) -> list[str]:
        features = [name for name in names if name != self.target] if self.features is None else self.features
        missing = {*features, self.target} - set(names)
        if missing:
            raise InputError(f"no column {sorted(missing)[0]!r} in {self.source}; it has {', '.join(names)}.")
        return features

    def _from_groups(self) -> Iterator[Block]:
        features = self._columns(list(self.source.schema_arrow.names))
        for group in range(self.source.num_row_groups):
            table = self.source.read_row_group(group, columns=[*features, self.target])
            yield np.column_stack([table[name].to_numpy() for name in features]), table[self.target].to_numpy()

    def _from_path(self) -> Iterator[Block]:
        import polars

        frame = polars.scan_parquet(self.source)
        features = self._columns(frame.collect_schema().names())
        n = int(frame.select(polars.len()).collect().item())
        for start in range(0, n, _ROWS):
            part = frame.slice(start, _ROWS).select([*features, self.target]).collect()
            yield part.select(features).to_numpy(), part[self.target].to_numpy()


class ArrayBlocks:
    """Two arrays as (X, y) blocks: views, so that a memory-mapped file is read a block at a time.

    Args:
        X: ``(n, d)``.
        y: ``(n,)``.
        rows: in a block.
    """

    def __init__(self, X: Any, y: Any, rows: int = _ROWS) -> None:
        if len(X) != len(y):
            raise ShapeError(f"`X` and `y` must have the same number of rows; got {len(X)} and {len(y)}.")
        self.X, self.y, self.rows = X, y, rows

    def __iter__(self) -> Iterator[Block]:
        for start in range(0, len(self.X), self.rows):
            yield self.X[start : start + self.rows], self.y[start : start + self.rows]


class RowFile:
    """Rows of d + 1 numbers, inputs and target, in a temporary file that goes when nothing uses it any more.

    Args:
        blocks: X ``(b, d)`` and y ``(b,)`` of each block, float64.

    Attributes:
        rows: the file as an array ``(n, d + 1)``, mapped into memory.

    Raises:
        InputError: if there are no rows.
        ShapeError: if blocks have different numbers of columns.

    Example:
        >>> import numpy as np
        >>> file = RowFile(ArrayBlocks(np.ones((5, 2)), np.zeros(5), rows=2))
        >>> file.rows.shape, file.rows[3].tolist()
        ((5, 3), [1.0, 1.0, 0.0])
    """

    def __init__(self, blocks: Iterable[tuple[Array, Array]]) -> None:
        width, n = 0, 0
        with tempfile.TemporaryDirectory(prefix="gpmoe-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "rows"
            with path.open("wb") as file:
                for X, y in blocks:
                    if width not in (0, X.shape[1] + 1):
                        raise ShapeError(f"blocks must agree in their columns; got {width - 1}, then {X.shape[1]}.")
                    width, n = X.shape[1] + 1, n + len(X)
                    file.write(np.ascontiguousarray(np.column_stack([X, y])).tobytes())
            if not n:
                raise InputError("there are no rows in these blocks; an iterator that was used up gives none.")
            self.rows = np.memmap(path, dtype=np.float64, mode="r+", shape=(n, width))

    @classmethod
    def empty(cls, n: int, width: int) -> "RowFile":
        """A file of zeros to be filled."""
        file = cls.__new__(cls)
        with tempfile.TemporaryDirectory(prefix="gpmoe-", ignore_cleanup_errors=True) as folder:
            file.rows = np.memmap(Path(folder) / "rows", dtype=np.float64, mode="w+", shape=(n, width))
        return file


def blocks_in_memory(rows: Array) -> Iterator[tuple[Array, slice]]:
    """Blocks of an array that is mapped into memory, copied from it one after another, and where they stand."""
    for start in range(0, len(rows), _ROWS):
        at = slice(start, min(start + _ROWS, len(rows)))
        yield np.array(rows[at]), at
