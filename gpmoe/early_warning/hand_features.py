"""What a modeller would write by hand about a series at each grid time, from the rows up to it alone.

For each channel, of its values so far (NaN before the first):

| feature | what |
|---|---|
| last | latest value |
| age | time since it |
| count | how many there were |
| change | latest value minus the one before |
| least, most | of all |
| fast, slow | means that forget: weight 2^(-age/half-life) on each value |
| rate | measurements that forget by the slow half-life |

Beside them the grid time itself, and the static covariates.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpmoe.early_warning.series import RaggedSeries
from gpmoe.linalg.compiler import njit

OF_CHANNEL = ("last", "age", "count", "change", "least", "most", "fast", "slow", "rate")
_HALF_LIVES = 4.0, 24.0  # of fast and slow, in hours; in general, of the unit that `unit` converts to
_COMPILED: Any = {"cache": True, "nogil": True, "error_model": "numpy"}

Array = NDArray[np.float32]


def hand_features(series: RaggedSeries, half_lives: tuple[float, float] = _HALF_LIVES) -> Array:
    """Features of every grid time.

    Args:
        series: unscaled will do.
        half_lives: of the fast and the slow mean, in units of the time.

    Returns:
        ``(G, 1 + s + 9 M)``, float32, in the order of `hand_feature_names`; NaN where nothing is known.
    """
    G, M = len(series.grid_times), series.n_channels
    features = np.empty((G, len(OF_CHANNEL) * M), dtype=np.float32)
    _fill(
        series.time, series.channel, series.value, series.offsets, series.grid_times, series.grid_offsets,
        np.log(2) / np.array(half_lives, dtype=np.float64), features.reshape(G, M, len(OF_CHANNEL)),
    )  # fmt: skip
    static = series.static[series.grid_owner].astype(np.float32)
    return np.concatenate([series.grid_times[:, None].astype(np.float32), static, features], axis=1)


def hand_feature_names(series: RaggedSeries) -> list[str]:
    """Names of the columns of `hand_features`."""
    channels = [f"{channel}: {name}" for channel in series.channel_names for name in OF_CHANNEL]
    return ["time", *series.static_names, *channels]


@njit(**_COMPILED)
def _fill(time, channel, value, offsets, grid, grid_offsets, decay, out):  # type: ignore[no-untyped-def]
    M = out.shape[1]
    state = np.empty(
        (M, 9)
    )  # last, when, count, change, least, most, and decayed sums: fast weight and value, slow value
    slow = np.empty(M)  # decayed count by the slow half-life
    for i in range(len(offsets) - 1):
        state[:, :6] = np.nan
        state[:, 2] = 0.0
        state[:, 6:] = 0.0
        slow[:] = 0.0
        j, end = offsets[i], offsets[i + 1]
        for g in range(grid_offsets[i], grid_offsets[i + 1]):
            while j < end and time[j] <= grid[g]:
                c, x, s = channel[j], value[j], state[channel[j]]
                gap = time[j] - s[1] if s[2] > 0 else 0.0
                fast_kept, slow_kept = np.exp(-decay[0] * gap), np.exp(-decay[1] * gap)
                s[3] = x - s[0]
                s[0], s[1] = x, time[j]
                s[2] += 1
                s[4] = x if s[2] == 1 else min(s[4], x)
                s[5] = x if s[2] == 1 else max(s[5], x)
                s[6] = s[6] * fast_kept + 1
                s[7] = s[7] * fast_kept + x
                s[8] = s[8] * slow_kept + x
                slow[c] = slow[c] * slow_kept + 1
                j += 1
            for c in range(M):
                s, row = state[c], out[g, c]
                row[0], row[1], row[2], row[3] = s[0], grid[g] - s[1], s[2], s[3]
                row[4], row[5] = s[4], s[5]
                seen = s[2] > 0
                row[6] = s[7] / s[6] if seen else np.nan
                row[7] = s[8] / slow[c] if seen else np.nan
                row[8] = slow[c] * np.exp(-decay[1] * (grid[g] - s[1])) if seen else 0.0
