"""A check that scores know no future: the score at a time must not move when later data are taken away."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpmoe.early_warning.series import RaggedSeries

Array = NDArray[np.float64]


def largest_leak(
    predict: Callable[[RaggedSeries], Array], series: RaggedSeries, cuts: ArrayLike | int = 5, seed: int = 0
) -> float:
    """The largest change of any score when everything after a time is cut off; 0 for a causal model, up to rounding.

    Values after the cut are also replaced by others once, which catches what reads them without needing their number.

    Args:
        predict: from series to scores of their grid times ``(G, ...)``, such as `predict_proba` of a fitted model.
        series: to score.
        cuts: the times, or how many, at even quantiles of the grid times.
        seed: of the values that replace later ones.

    Example:
        >>> series = RaggedSeries.from_arrays([0.0, 1.0, 2.0], [0, 0, 0], [1.0, 2.0, 9.0], [0, 3], n_channels=1)
        >>> largest_leak(lambda s: np.full(len(s.grid_times), s.value.max()), series, cuts=[1.0])
        7.0
    """
    times = np.atleast_1d(np.asarray(cuts, dtype=np.float64))
    if isinstance(cuts, int):
        times = np.unique(np.quantile(series.grid_times, np.linspace(0, 1, cuts + 2)[1:-1], method="lower"))
    whole, rng, worst = predict(series), np.random.default_rng(seed), 0.0
    for cut in times:
        before = series.grid_times <= cut
        shuffled = np.where(series.time > cut, rng.permutation(series.value), series.value)
        for scores in (predict(series.until(cut)), predict(series.with_values(shuffled))[before]):
            worst = max(worst, float(np.abs(scores - whole[before]).max(initial=0.0)))
    return worst
