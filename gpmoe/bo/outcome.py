"""What a surrogate sees of the outcomes: standardised, and on a log scale below the best where that is likelier.

Objectives of tuning have heavy tails: a few configurations are worse than the rest by orders of magnitude, and would
set the scale. With the best value c and an offset s, T(y) = -log(1 + (c - y) / s) is monotone, near c linear, far
below it logarithmic; s → ∞ leaves y as it is.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

OFFSETS = (math.inf, 1.0, 0.1, 0.01)  # of the scale of the outcomes


@dataclass(frozen=True)
class Outcome:
    """A monotone transform of outcomes, which are maximised.

    Attributes:
        best: c.
        offset: s in units of y; infinite for none.
        mean, scale: of the outcomes after the log, which are standardised.
        log_slope: sum over the outcomes of log dT/dy, which makes evidences of transforms comparable, nats.
    """

    best: float
    offset: float
    mean: float
    scale: float
    log_slope: float

    @classmethod
    def of(cls, y: Vector, relative_offset: float) -> "Outcome":
        """The transform of outcomes ``(n,)``.

        Args:
            y: finite.
            relative_offset: the offset s as a multiple of the median distance from the best.
        """
        best = float(y.max())
        spread = float(np.median(best - y)) or float(np.mean(best - y))
        if not 1e-300 < spread < 1e300:
            return cls(best, math.inf, float(np.mean(y)), 1.0, 0.0)
        offset = relative_offset * spread
        raw = _bend(y, best, offset)
        mean, scale = float(np.mean(raw)), float(np.std(raw))
        slopes = np.zeros(1) if math.isinf(offset) else -np.log1p((best - y) / offset) - math.log(offset)
        total = float(slopes.sum()) - len(y) * math.log(scale)
        return cls(best, offset, mean, scale, total)

    def __call__(self, y: Vector) -> Vector:
        """Transformed outcomes, ``(n,)``."""
        return (_bend(y, self.best, self.offset) - self.mean) / self.scale


def _bend(y: Vector, best: float, offset: float) -> Vector:
    return y if math.isinf(offset) else -np.log1p((best - y) / offset)
