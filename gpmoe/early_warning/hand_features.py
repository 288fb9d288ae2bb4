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
        _decay(half_lives), features.reshape(G, M, len(OF_CHANNEL)),
    )  # fmt: skip
    static = series.static[series.grid_owner].astype(np.float32)
    return np.concatenate([series.grid_times[:, None].astype(np.float32), static, features], axis=1)


def hand_feature_names(series: RaggedSeries) -> list[str]:
    """Names of the columns of `hand_features`."""
    channels = [f"{channel}: {name}" for channel in series.channel_names for name in OF_CHANNEL]
    return ["time", *series.static_names, *channels]


class HandState:
    """What the features of one series need of its past, for a stream.

    Args:
        n_channels: M.
        half_lives: as in `hand_features`.
    """

    def __init__(self, n_channels: int, half_lives: tuple[float, float] = _HALF_LIVES) -> None:
        self._state, self._decay = np.empty((n_channels, 10)), _decay(half_lives)
        _clear(self._state)

    def update(self, time: float, channel: int, value: float) -> None:
        """Take a measurement in."""
        _take(self._state[channel], time, value, self._decay)

    def features(self, time: float, static: NDArray[np.float64]) -> Array:
        """The row of `hand_features` at a time ``(1, 1 + s + 9 M)``, of unscaled covariates ``(s,)``."""
        row = np.empty((len(self._state), len(OF_CHANNEL)), dtype=np.float32)
        _read(self._state, time, self._decay, row)
        return np.concatenate([[np.float32(time)], static.astype(np.float32), row.ravel()])[None]


def _decay(half_lives: tuple[float, float]) -> NDArray[np.float64]:
    return np.log(2) / np.array(half_lives, dtype=np.float64)


@njit(**_COMPILED)
def _clear(state):  # type: ignore[no-untyped-def]
    state[:, :6] = np.nan  # last, when, count, change, least, most
    state[:, 2] = 0.0
    state[:, 6:] = 0.0  # decayed sums: fast weights and values, slow values and weights


@njit(**_COMPILED)
def _take(s, time, x, decay):  # type: ignore[no-untyped-def]
    gap = time - s[1] if s[2] > 0 else 0.0
    fast, slow = np.exp(-decay[0] * gap), np.exp(-decay[1] * gap)
    s[3] = x - s[0]
    s[0], s[1] = x, time
    s[2] += 1
    s[4] = x if s[2] == 1 else min(s[4], x)
    s[5] = x if s[2] == 1 else max(s[5], x)
    s[6], s[7] = s[6] * fast + 1, s[7] * fast + x
    s[8], s[9] = s[8] * slow + x, s[9] * slow + 1


@njit(**_COMPILED)
def _read(state, time, decay, out):  # type: ignore[no-untyped-def]
    for c in range(len(state)):
        s, row = state[c], out[c]
        row[0], row[1], row[2], row[3] = s[0], time - s[1], s[2], s[3]
        row[4], row[5] = s[4], s[5]
        if s[2] > 0:
            row[6], row[7], row[8] = s[7] / s[6], s[8] / s[9], s[9] * np.exp(-decay[1] * (time - s[1]))
        else:
            row[6], row[7], row[8] = np.nan, np.nan, 0.0


@njit(**_COMPILED)
def _fill(time, channel, value, offsets, grid, grid_offsets, decay, out):  # type: ignore[no-untyped-def]
    state = np.empty((out.shape[1], 10))
    for i in range(len(offsets) - 1):
        _clear(state)
        j = offsets[i]
        for g in range(grid_offsets[i], grid_offsets[i + 1]):
            while j < offsets[i + 1] and time[j] <= grid[g]:
                _take(state[channel[j]], time[j], value[j], decay)
                j += 1
            _read(state, grid[g], decay, out[g])
