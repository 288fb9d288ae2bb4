"""Arrays at the front door: what comes in is checked, scaled to unit variance, and scaled back on the way out."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.validation import validate_data
from torch import Tensor

from gpmoe.distributions import Predictive
from gpmoe.errors import InputError, NonFiniteError, ShapeError

Array = NDArray[np.float64]


def checked_inputs(estimator: BaseEstimator, X: Any, *, reset: bool) -> Array:
    """X as float64 ``(n, d)``, with scikit-learn's checks of features and their names.

    Args:
        estimator: remembers the number and the names of features.
        X: array or frame.
        reset: True in `fit`, False in prediction.

    Raises:
        NonFiniteError: naming the first row and column that is NaN or infinite.
        InputError: naming the first row and column that holds text, or the first column of dates.
        ValueError: scikit-learn's, naming what came and what was wanted.
    """
    _expect_no_dates(X)
    try:
        checked: Array = validate_data(estimator, X, reset=reset, dtype=np.float64, order="C", ensure_all_finite=False)
    except ValueError as error:
        text = _first_text(X)
        if text is None:
            raise
        raise InputError(
            f"`X` must hold numbers; {text}. Encode such columns first, for instance by "
            "sklearn.preprocessing.OneHotEncoder, or leave them out."
        ) from error
    bad = ~np.isfinite(checked)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        names = getattr(estimator, "feature_names_in_", None)
        where = f"row {row}, column {column}" + ("" if names is None else f" ({str(names[column])!r})")
        raise NonFiniteError(
            f"Input X contains {_word(checked[row, column])}: first at {where}, {int(bad.sum())} in all. "
            "Every entry must be finite; drop such rows or impute them first."
        )
    return checked


def _expect_no_dates(X: Any) -> None:
    """Dates would be read as nanoseconds or microseconds since 1970, as their type happens to count."""
    columns = getattr(X, "columns", None)
    kinds = [getattr(X, "dtype", None)] if columns is None else list(getattr(X, "dtypes", []))
    for i, kind in enumerate(kinds):
        if str(kind).lower().startswith(("datetime", "duration", "timedelta", "date")):
            where = "its entries are" if columns is None else f"column {i} ({str(columns[i])!r}) is"
            raise InputError(
                f"`X` must hold numbers; {where} of {kind}. Pass a time in a unit that you choose, such as "
                "hours since the first."
            )


def _first_text(X: Any) -> str | None:
    """Where X holds text that is no number; None where it doesn't."""
    values = np.asarray(X, dtype=object)
    for row, column in np.ndindex(values.shape) if values.ndim == 2 else ():
        value = values[row, column]
        if isinstance(value, str) and not _is_number(value):
            names = getattr(X, "columns", None)
            name = "" if names is None else f" ({str(names[column])!r})"
            return f"row {row}, column {column}{name} is {value!r}"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def checked_targets(estimator: BaseEstimator, y: Any, n: int) -> Array:
    """y as float64 ``(n,)``.

    Raises:
        ShapeError: if y is missing, has another length than X, or several columns.
        NonFiniteError: naming the first row that is NaN or infinite.
        InputError: if y is not real.
    """
    if y is None:
        raise InputError(f"{type(estimator).__name__} requires y to be passed, but the target y is None.")
    values = np.asarray(y)
    if np.iscomplexobj(values):
        raise InputError(f"Complex data not supported: `y` must be real; got dtype {values.dtype}.")
    if values.ndim == 2 and values.shape[1] == 1:
        text = "A column-vector y was passed when a 1d array was expected; it is read as (n_samples,)."
        warnings.warn(text, DataConversionWarning, stacklevel=3)
        values = values[:, 0]
    if values.ndim != 1:
        raise ShapeError(f"`y` must have shape (n,), one target; got {values.shape}. Fit one model for each column.")
    if len(values) != n:
        raise ShapeError(f"`X` and `y` must have the same number of rows; got {n} and {len(values)}.")
    try:
        values = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"`y` must be numeric; got dtype {np.asarray(y).dtype} ({error}).") from error
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argmax(bad))
        raise NonFiniteError(
            f"Input y contains {_word(values[row])}: first at row {row}, {int(bad.sum())} in all. Drop such rows first."
        )
    return values


def _word(value: float) -> str:
    return "NaN" if np.isnan(value) else "infinity"


@dataclass(frozen=True)
class Scaling:
    """Affine maps between the caller's units and those of the model.

    Attributes:
        X_shift, X_scale: ``(d,)``, units of X.
        y_shift, y_scale: numbers, units of y.
    """

    X_shift: Array
    X_scale: Array
    y_shift: float
    y_scale: float

    @classmethod
    def learn(cls, X: Array, y: Array, kind: str | None) -> "Scaling":
        """Means and standard deviations of the training data; a constant column or target keeps its scale.

        Args:
            X: ``(n, d)``.
            y: ``(n,)``.
            kind: "standardise", or None for no scaling.

        Raises:
            InputError: if `kind` is another word.
        """
        if kind is None:
            return cls(np.zeros(X.shape[1]), np.ones(X.shape[1]), 0.0, 1.0)
        if kind != "standardise":
            raise InputError(f"`scale` must be 'standardise' or None; got {kind!r}.")
        X_shift, X_scale = center_and_spread(X)
        y_shift, y_scale = center_and_spread(y[:, None])
        return cls(X_shift, X_scale, float(y_shift[0]), float(y_scale[0]))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {
            "X_shift": self.X_shift.tolist(),
            "X_scale": self.X_scale.tolist(),
            "y_shift": self.y_shift,
            "y_scale": self.y_scale,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Scaling":
        """The inverse of `to_dict`."""
        shift, scale = (np.array(data[key], dtype=np.float64) for key in ("X_shift", "X_scale"))
        return cls(shift, scale, float(data["y_shift"]), float(data["y_scale"]))

    def inputs(self, X: Array) -> Tensor:
        """X in the model's units."""
        return torch.from_numpy((X - self.X_shift) / self.X_scale)

    def targets(self, y: Array) -> Tensor:
        """y in the model's units."""
        return torch.from_numpy((y - self.y_shift) / self.y_scale)

    def noise(self, noise: ArrayLike | None, n: int) -> Tensor | None:
        """Noise variances, a number or ``(n,)``, in the model's units; None, for noise to learn, stays None.

        Raises:
            ShapeError: if there are several, but not one for each of n rows.
            InputError: if one is not positive and finite.
        """
        if noise is None:
            return None
        given = np.asarray(noise, dtype=np.float64)
        if given.shape not in ((), (n,)):
            raise ShapeError(f"`noise` must be a number or have shape ({n},); got {given.shape}.")
        if not np.all(given > 0) or not np.all(np.isfinite(given)):
            raise InputError(f"`noise` is a variance and must be positive and finite; got a minimum of {given.min()}.")
        return torch.as_tensor(given / self.y_scale**2, dtype=torch.float64)

    def one_noise(self, noise: Any) -> float | None:
        """One noise variance in the model's units; None, for noise to learn, stays None.

        Raises:
            InputError: if it is no positive and finite number.
        """
        if noise is None:
            return None
        if not isinstance(noise, (int, float, np.integer, np.floating)) or not 0 < noise < np.inf:
            raise InputError(
                f"`noise` is a variance and must be positive and finite, one number or None to learn it; got {noise!r}."
            )
        return float(noise) / self.y_scale**2

    def predictive(self, predictive: Predictive) -> Predictive:
        """A prediction in the caller's units."""
        return predictive.affine(self.y_scale, self.y_shift)


def center_and_spread(values: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each column, without overflow; 1 where a column varies by rounding alone."""
    size = np.abs(values).max(axis=0)
    size = np.where(size > 0, size, 1.0)
    unit = values / size
    center = unit.mean(axis=0)
    spread = unit.std(axis=0)
    varies = spread > 10 * np.finfo(np.float64).eps * np.sqrt(len(values))
    return center * size, np.where(varies, spread * size, 1.0)
