"""Where local experts lie: which rows each has, which of them answer for a new point, and who talks to all."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from gpmoe.errors import InputError, ShapeError
from gpmoe.models.partition import Partition

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class ExpertLayout:
    """Experts' rows, one expert after another, and the geometry of their regions.

    Attributes:
        offsets: ``(M + 1,)``: expert i has the rows ``offsets[i]:offsets[i + 1]``, at least one.
        centers: mean of each expert's rows in units in which distances mean something, ``(M, d)``.
        regions: sends a new point, in the model's units, to an expert; None where experts have no regions (rows drawn
            at random): then all answer.
        communication: rows of the communication expert, ``(n_c,)``.
        n_nearest: how many experts answer for a point, those around its own; None for all.

    Raises:
        ShapeError: if the parts don't fit each other.
        InputError: if an expert has no rows, or `n_nearest` is less than 1.

    Example:
        >>> import numpy as np
        >>> from gpmoe.models.partition import partition_rows
        >>> X = np.arange(6.0)[:, None]
        >>> regions, labels = partition_rows(X, 3)
        >>> layout = ExpertLayout(np.array([0, 2, 4, 6]), X[::2] + 0.5, regions, np.array([0]), n_nearest=2)
        >>> layout.nearest(np.array([[5.2], [0.1]])).tolist()
        [[2, 1], [0, 1]]
    """

    offsets: Indices
    centers: Array
    regions: Partition | None
    communication: Indices
    n_nearest: int | None = None

    def __post_init__(self) -> None:
        rows, count = int(self.offsets[-1]), len(self.offsets) - 1
        if (np.diff(self.offsets) < 1).any() or self.offsets[0] != 0:
            raise InputError("every expert needs at least one row; `offsets` must rise from 0 by 1 or more.")
        if len(self.centers) != count or (self.regions is not None and self.regions.n_parts != count):
            raise ShapeError(f"`offsets` are those of {count} experts, but `centers` or `regions` have another number.")
        if len(self.communication) and not 0 <= self.communication.min() <= self.communication.max() < rows:
            raise ShapeError(f"`communication` must be row numbers below {rows}.")
        if self.n_nearest is not None and self.n_nearest < 1:
            raise InputError(f"`n_nearest` must be at least 1, or None for all experts; got {self.n_nearest}.")

    @property
    def n_experts(self) -> int:
        """M."""
        return len(self.offsets) - 1

    @cached_property
    def neighbours(self) -> Indices:
        """For each expert itself and the others that answer in its region, by distance of centres, ``(M, k)``."""
        count = self.n_experts
        k = count if self.n_nearest is None or self.regions is None else min(self.n_nearest, count)
        near = cKDTree(self.centers).query(self.centers, k=[*range(1, k + 1)])[1].astype(np.int64)
        own = np.arange(count)[:, None]
        others = np.argsort(near == own, axis=1, kind="stable")  # an expert of the same centre may come before it
        rest = np.take_along_axis(near, others, 1)[:, : k - 1]
        return np.concatenate([own, rest], 1)

    def nearest(self, X: Array) -> Indices:
        """The experts that answer for each of ``(q, d)`` points, its own first: ``(q, k)``."""
        if self.regions is None:
            return np.tile(np.arange(self.n_experts), (len(X), 1))
        return self.neighbours[self.regions.assign(X)]

    def rows_of(self, experts: Indices, *, with_communication: bool = False) -> tuple[Indices, Indices]:
        """Row numbers of some experts, one after another, and where each one's begin.

        Args:
            experts: ``(e,)``.
            with_communication: each expert's rows begin with the communication expert's, less those that are its own.

        Returns:
            ``(total,)`` and ``(e + 1,)``.
        """
        starts, sizes = self.offsets[experts], np.diff(self.offsets)[experts]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        rows = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], sizes)
        if not with_communication or not len(self.communication):
            return rows, offsets
        shared, count = np.tile(self.communication, len(experts)), len(self.communication)
        owner = np.repeat(np.arange(len(experts)), count)
        foreign = (shared < starts[owner]) | (shared >= (starts + sizes)[owner])
        owners = np.concatenate([owner[foreign], np.repeat(np.arange(len(experts)), sizes)])
        together = np.concatenate([shared[foreign], rows])[np.argsort(owners, kind="stable")]
        return together, np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(experts)))])

    def to_tensors(self) -> dict[str, Tensor]:
        """What a file keeps."""
        parts: dict[str, Any] = {
            "offsets": self.offsets,
            "centers": self.centers,
            "communication": self.communication,
        }
        if self.regions is not None:
            parts |= {"normals": self.regions.normals, "thresholds": self.regions.thresholds}
            parts["children"] = self.regions.children
        return {f"layout.{name}": torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], n_nearest: int | None) -> "ExpertLayout":
        """The inverse of `to_tensors`."""
        parts = {name[7:]: part.numpy() for name, part in tensors.items() if name.startswith("layout.")}
        regions = None
        if "children" in parts:
            regions = Partition(parts["normals"], parts["thresholds"], parts["children"])
        return cls(parts["offsets"], parts["centers"], regions, parts["communication"], n_nearest)
