"""From scores to probabilities, learned on series that trained nothing."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from gpmoe.errors import InputError

Array = NDArray[np.float64]
KINDS = ("temperature", "isotonic")
_LEAST = 1e-7  # a probability that a logit can be taken of


@dataclass(frozen=True, eq=False)
class Calibration:
    """A rising map of probabilities.

    Attributes:
        kind: "temperature", p -> σ(slope logit p + intercept), or "isotonic", linear between knots.
        x, y: knots, or for a temperature slope and intercept in y, ``(k,)``.

    Example:
        >>> p = np.array([0.1, 0.2, 0.8, 0.9])
        >>> Calibration.fit("isotonic", p, np.array([0.0, 0.0, 1.0, 1.0])).apply(p).tolist()
        [0.0, 0.0, 1.0, 1.0]
    """

    kind: str
    x: Array
    y: Array

    @classmethod
    def fit(cls, kind: str, probability: Array, label: Array) -> "Calibration":
        """Learn from probabilities ``(n,)`` and labels ``(n,)``, 0 or 1, NaN where unknown.

        Raises:
            InputError: for an unknown kind, or labels of one class alone.
        """
        known = ~np.isnan(label)
        p, truth = probability[known], label[known]
        expect_kind(kind)
        if len(np.unique(truth)) < 2:
            raise InputError(
                "calibration needs both classes among the validation series; "
                "raise `validation_fraction` or pass calibration=None."
            )
        if kind == "isotonic":
            found = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(p, truth)
            return cls(kind, np.asarray(found.X_thresholds_, np.float64), np.asarray(found.y_thresholds_, np.float64))
        scores = _logit(p)[:, None]
        line = LogisticRegression(C=np.inf, max_iter=1000).fit(scores, truth)
        return cls(kind, np.zeros(2), np.array([line.coef_[0, 0], line.intercept_[0]]))

    def apply(self, probability: Array) -> Array:
        """Calibrated probabilities of any shape."""
        if self.kind == "isotonic":
            return np.interp(probability, self.x, self.y)
        found: Array = expit(self.y[0] * _logit(probability) + self.y[1])
        return found


def expect_kind(kind: str) -> None:
    """Refuse a kind of calibration that there is not.

    Raises:
        InputError: naming those there are.
    """
    if kind not in KINDS:
        raise InputError(f"`calibration` must be one of {', '.join(KINDS)}, or None; got {kind!r}.")


def _logit(probability: Array) -> Array:
    found: Array = logit(np.clip(probability, _LEAST, 1 - _LEAST))
    return found
