"""The adapter's posterior as a stream: one observation at a time, in constant memory, for many series at once."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from gpmoe.errors import InputError, NonFiniteError
from gpmoe.linalg import state_space
from gpmoe.linalg.compiler import njit
from gpmoe.linalg.state_space import state_size
from gpmoe.models.channel_posterior import ChannelPosterior
from gpmoe.models.mgp_adapter import MGPAdapter

_COMPILED: Any = {"cache": True, "nogil": True, "error_model": "numpy"}
_LOG_2_PI = float(np.log(2 * np.pi))
_MODEL, _STATE = ("orders", "rates", "coregionalisation", "noise"), ("time", "mean", "explained", "log_likelihood")


@njit(**_COMPILED)
def _first_late(latest, series, time, moves):  # type: ignore[no-untyped-def]
    """The first row before its series' latest time, or -1; `latest` moves along if the rows change the state."""
    for j in range(len(time)):
        if time[j] < latest[series[j]]:
            return j
        if moves:
            latest[series[j]] = time[j]
    return -1


@njit(**_COMPILED)
def _update(series, time, channel, value, orders, rates, B, noise, now, m, R, log_likelihood):  # type: ignore[no-untyped-def]
    M = B.shape[1]
    u, A = np.empty(m.shape[1]), np.empty((len(orders), 3, 3))
    for j in range(len(time)):
        b, c = series[j], channel[j]
        gap = time[j] - now[b]
        if 0.0 < gap < np.inf:
            state_space.transitions(gap, orders, rates, A)
            state_space.predict(m[b], R[b], M, orders, A)
        now[b] = time[j]
        e, s = state_space.observe(m[b], R[b], M, orders, B, c, value[j], noise[c], u)
        log_likelihood[b] -= 0.5 * (e * e / s + np.log(s) + _LOG_2_PI)


@njit(**_COMPILED)
def _look(series, time, orders, rates, B, now, m, R, mean, covariance):  # type: ignore[no-untyped-def]
    M, d = B.shape[1], m.shape[1]
    m_then, R_then, A = np.empty(d), np.empty((d, d)), np.empty((len(orders), 3, 3))
    for j in range(len(time)):
        b = series[j]
        gap = time[j] - now[b]
        m_then[:] = m[b]
        R_then[:] = R[b]
        if 0.0 < gap < np.inf:
            state_space.transitions(gap, orders, rates, A)
            state_space.predict(m_then, R_then, M, orders, A)
        state_space.read_joint(m_then, R_then, M, orders, B, mean[j], covariance[j])


class StreamingMGP:
    """The causal posterior of an `MGPAdapter`, updated row by row: a Kalman filter for each of many series.

    Its numbers are those of `MGPAdapter.posterior` to rounding. An update costs O(d²) whatever has been seen, and the
    memory is d (d + 1) numbers a series, where d = M Σ_q (ν_q + 1/2). Needs Numba; all is float64.

    Args:
        adapter: the fitted model, whose parameters are copied.
        n_series: how many series, numbered from 0.

    Attributes:
        time: of the latest row of each series, ``(n_series,)``; -inf where there is none.
        log_likelihood: of the rows so far, one step ahead each, ``(n_series,)``, nats.

    Example:
        >>> from gpmoe.models.mgp_adapter import MGPAdapter
        >>> stream = StreamingMGP(MGPAdapter(2, timescales=[5.0]), n_series=1000)
        >>> stream.update(series=[7, 7], time=[0.0, 1.5], channel=[0, 1], value=[1.0, -0.5])
        >>> posterior = stream.posterior(series=[7], time=[2.0])
        >>> posterior.mean.shape, bool(posterior.variance[0, 0] < 1)
        (torch.Size([1, 2]), True)
    """

    def __init__(self, adapter: MGPAdapter, n_series: int) -> None:
        arrays = [
            part.detach().cpu().double().numpy().copy()
            for part in (adapter.rates, adapter.coregionalisation, adapter.noise)
        ]
        self._model: tuple[NDArray[Any], ...] = (np.array(adapter.orders), *arrays)
        d = state_size(self._model[0], adapter.n_channels)
        self.time = torch.full((n_series,), -torch.inf, dtype=torch.float64)
        self._mean = torch.zeros(n_series, d, dtype=torch.float64)
        self._explained = torch.zeros(n_series, d, d, dtype=torch.float64)
        self.log_likelihood = torch.zeros(n_series, dtype=torch.float64)

    @property
    def n_channels(self) -> int:
        """M."""
        return len(self._model[3])

    def update(self, series: ArrayLike, time: ArrayLike, channel: ArrayLike, value: ArrayLike) -> None:
        """Take rows in, of any series in any mixture; within a series in order of time.

        Args:
            series, channel: integers ``(n,)``.
            time, value: ``(n,)``.

        Raises:
            InputError, NonFiniteError: naming the first row that can't be taken; then no row is.
        """
        owners, times = self._rows(series, time)
        channels, values = np.asarray(channel, dtype=np.int64).ravel(), np.asarray(value, dtype=np.float64).ravel()
        if not len(owners) == len(channels) == len(values):
            raise InputError(
                "`series`, `time`, `channel` and `value` must have one entry a row; "
                f"got {len(owners)}, {len(times)}, {len(channels)} and {len(values)}."
            )
        _expect(
            (channels >= 0) & (channels < self.n_channels), channels, f"`channel` must be 0 to {self.n_channels - 1}"
        )
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise NonFiniteError(f"`value` must be finite; row {row} has {values[row]}. Leave such rows out.")
        self._expect_later(owners, times, moves=True)
        _update(owners, times, channels, values, *self._model, *(part.numpy() for part in self._parts()))

    def posterior(self, series: ArrayLike, time: ArrayLike) -> ChannelPosterior:
        """Posterior of all channels given the rows so far; the state stays as it is.

        Args:
            series: whose, integers ``(n,)``.
            time: when, not before the series' latest row, ``(n,)``.

        Returns:
            Mean ``(n, M)``, variance, covariance ``(n, M, M)``, and the log likelihood of each asked series' rows.

        Raises:
            InputError: naming the first row that asks for the past.
        """
        owners, times = self._rows(series, time)
        self._expect_later(owners, times, moves=False)
        mean, covariance = np.empty((len(owners), self.n_channels)), np.empty((len(owners), *[self.n_channels] * 2))
        now, m, R, _ = (part.numpy() for part in self._parts())
        _look(owners, times, *self._model[:3], now, m, R, mean, covariance)
        spread = torch.from_numpy(covariance)
        variance = spread.diagonal(dim1=-2, dim2=-1)
        return ChannelPosterior(torch.from_numpy(mean), variance, spread, self.log_likelihood[torch.from_numpy(owners)])

    def forget(self, series: ArrayLike) -> None:
        """Set series back to where no row was seen, so that their numbers can be used again."""
        rows = torch.from_numpy(np.asarray(series, dtype=np.int64).ravel())
        for part, value in zip(self._parts(), (-torch.inf, 0.0, 0.0, 0.0), strict=True):
            part[rows] = value

    def to_tensors(self) -> dict[str, Tensor]:
        """Model and state as plain tensors, copied: all that `from_tensors` needs to go on."""
        model = {name: torch.from_numpy(part).clone() for name, part in zip(_MODEL, self._model, strict=True)}
        return model | {name: part.clone() for name, part in zip(_STATE, self._parts(), strict=True)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "StreamingMGP":
        """The inverse of `to_tensors`.

        Raises:
            InputError: if a part is missing.
        """
        missing = [name for name in (*_MODEL, *_STATE) if name not in tensors]
        if missing:
            raise InputError(f"the saved state lacks {', '.join(missing)}; it has {', '.join(sorted(tensors))}.")
        stream = cls.__new__(cls)
        stream._model = tuple(tensors[name].numpy().copy() for name in _MODEL)
        stream.time, stream._mean, stream._explained, stream.log_likelihood = (tensors[n].clone() for n in _STATE)
        return stream

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.time, self._mean, self._explained, self.log_likelihood

    def _rows(self, series: ArrayLike, time: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        owners, times = np.asarray(series, dtype=np.int64).ravel(), np.asarray(time, dtype=np.float64).ravel()
        if len(owners) != len(times):
            raise InputError(f"`series` and `time` must have one entry a row; got {len(owners)} and {len(times)}.")
        _expect((owners >= 0) & (owners < len(self.time)), owners, f"`series` must be 0 to {len(self.time) - 1}")
        _expect(np.isfinite(times), times, "`time` must be finite")
        return owners, times

    def _expect_later(self, owners: NDArray[np.int64], times: NDArray[np.float64], *, moves: bool) -> None:
        latest = self.time.numpy().copy() if moves else self.time.numpy()
        row = _first_late(latest, owners, times, moves)
        if row >= 0:
            raise InputError(
                f"`time` must not go back within a series; row {row} has {times[row]} for series {owners[row]}, which "
                f"stands at {latest[owners[row]]}. Sort the rows by time, or `forget` the series to start it again."
            )


def _expect(fine: NDArray[np.bool_], found: NDArray[Any], rule: str) -> None:
    wrong = np.flatnonzero(~fine)
    if len(wrong):
        raise InputError(f"{rule}; row {wrong[0]} has {found[wrong[0]]}.")
