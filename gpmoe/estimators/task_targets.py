"""Tables of targets at the front door: one column a task, NaN where missing, each column scaled by itself."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from gpmoe.errors import InputError, NonFiniteError, ShapeError
from gpmoe.estimators.arrays import Array, center_and_spread


def checked_task_targets(estimator: BaseEstimator, Y: Any, n: int) -> Array:
    """Y as float64 ``(n, T)``.

    Raises:
        ShapeError: if Y is missing, is no table, or has another number of rows than X.
        NonFiniteError: naming the first infinite entry.
        InputError: if Y is not real, or a column has no target at all.
    """
    name = type(estimator).__name__
    if Y is None:
        raise InputError(f"{name} requires y to be passed, but the target y is None.")
    values = np.asarray(Y)
    if np.iscomplexobj(values):
        raise InputError(f"Complex data not supported: `Y` must be real; got dtype {values.dtype}.")
    if values.ndim != 2 or values.shape[1] == 0:
        raise ShapeError(
            f"`Y` must have shape (n, T), one column for each task; got {values.shape}. For a single target take "
            "`y[:, None]`, or GPRegressor."
        )
    if len(values) != n:
        raise ShapeError(f"`X` and `Y` must have the same number of rows; got {n} and {len(values)}.")
    try:
        values = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"`Y` must be numeric; got dtype {np.asarray(Y).dtype} ({error}).") from error
    bad = np.argwhere(np.isinf(values))
    if len(bad):
        raise NonFiniteError(
            f"Input y contains infinity: first at row {bad[0, 0]}, column {bad[0, 1]}, {len(bad)} in all. Targets must "
            "be finite, or NaN where they are missing."
        )
    return values


def expect_each_task(Y: Array) -> None:
    """Check that each task has a target.

    Raises:
        InputError: naming the columns without one.
    """
    empty = np.flatnonzero(np.isnan(Y).all(0))
    if len(empty):
        raise InputError(
            f"Input y contains NaN only in columns {empty.tolist()}; every task needs a target. Leave such columns out."
        )


@dataclass(frozen=True)
class TaskScaling:
    """Affine maps between the caller's targets and those of the model.

    Attributes:
        shift, scale: of each task, ``(T,)``, units of Y.
    """

    shift: Array
    scale: Array

    @classmethod
    def learn(cls, Y: Array, kind: str | None) -> "TaskScaling":
        """Mean and standard deviation of what each task has; a constant task keeps its scale.

        Args:
            Y: ``(n, T)``, NaN where missing.
            kind: "standardise", or None for no scaling.
        """
        if kind is None:
            return cls(np.zeros(Y.shape[1]), np.ones(Y.shape[1]))
        pairs = [center_and_spread(column[~np.isnan(column)][:, None]) for column in Y.T]
        return cls(*(np.array([pair[i][0] for pair in pairs]) for i in (0, 1)))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {"shift": self.shift.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "TaskScaling":
        """The inverse of `to_dict`."""
        return cls(*(np.array(data[key], dtype=np.float64) for key in ("shift", "scale")))

    def targets(self, Y: Array) -> Tensor:
        """Y in the model's units."""
        return torch.from_numpy((Y - self.shift) / self.scale)
