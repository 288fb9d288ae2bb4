"""Many small problems one after another in the same tensors: where each begins, and who owns which row."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.errors import ShapeError

_GROWTH, _PADDED = 1.25, 2**20  # most that padding may add to a side, and entries of one padded batch


@dataclass(frozen=True)
class Ragged:
    """Rows of B problems, concatenated.

    Attributes:
        offsets: ``(B + 1,)``, int64; problem b has the rows ``offsets[b]:offsets[b + 1]``, possibly none.
        owner: the problem of each row, ``(total,)``.
        order: problems from the largest to the smallest, so that threads that take them in turn end together.

    Example:
        >>> import torch
        >>> ragged = Ragged.of(torch.tensor([0, 3, 5]), rows=5)
        >>> ragged.owner.tolist()
        [0, 0, 0, 1, 1]
    """

    offsets: NDArray[np.int64]
    owner: Tensor
    order: NDArray[np.int64]

    @classmethod
    def of(cls, offsets: Tensor, *, rows: int, device: torch.device | None = None, name: str = "offsets") -> "Ragged":
        """Check offsets against the number of rows.

        Raises:
            ShapeError: if they are not integers that rise from 0 to `rows`.
        """
        whole = offsets.dim() == 1 and len(offsets) > 0 and not offsets.is_floating_point()
        values = offsets.detach().cpu().numpy().astype(np.int64) if whole else np.zeros(0, dtype=np.int64)
        sizes = np.diff(values)
        if not whole or values[0] != 0 or values[-1] != rows or (sizes < 0).any():
            raise ShapeError(
                f"`{name}` must be integers (B + 1,) that rise from 0 to the number of rows, {rows}; "
                f"got {offsets.dtype} {tuple(offsets.shape)}"
                + (f", {values.min()} to {values.max()}." if whole else ".")
            )
        owner = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(device)
        return cls(values, owner, np.argsort(-sizes, kind="stable"))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rows of each problem, ``(B,)``."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def size_classes(self) -> Iterator[NDArray[np.int64]]:
        """Groups of problems of similar size, for padded batches; empty problems are left out."""
        sizes = self.sizes[self.order]
        start, end = 0, int((sizes > 0).sum())
        while start < end:
            most = int(sizes[start])
            similar = int((sizes * _GROWTH >= most).sum())
            stop = max(start + 1, min(similar, end, start + _PADDED // most**2))
            yield self.order[start:stop]
            start = stop

    def rows_of(self, problems: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Row numbers of some problems, padded to the largest by repeating row 0: ``(b, n)``, and which are real."""
        sizes = self.sizes[problems]
        places = np.arange(max(int(sizes.max()), 1))
        real = places < sizes[:, None]
        index = np.where(real, self.offsets[problems][:, None] + places, 0)
        device = self.owner.device
        return torch.from_numpy(index).to(device), torch.from_numpy(real).to(device)
