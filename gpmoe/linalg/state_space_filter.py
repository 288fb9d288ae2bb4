"""The compiled Kalman pass over many ragged series: causal posteriors on a grid, likelihoods, and their gradients.

Each series is filtered alone, in the cache of one core, so that its numbers don't depend on the batch it comes in. The
gradient is the hand-written adjoint of the same recursions (see `state_space`): a second pass forward, which keeps the
states of a segment, and one back. Memory beside the results is one segment's states a thread, at most about 32 MB,
and a checkpoint a segment. float32 tensors are filtered in float64 and come back as float32.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.linalg import state_space
from gpmoe.linalg.compiler import njit
from gpmoe.linalg.likelihood import expect_first_order
from gpmoe.linalg.pool import call_for_each
from gpmoe.linalg.series_batch import SeriesBatch

_LOG_2_PI = math.log(2 * math.pi)
_SHARES = 16  # that threads take in turn; sums are in their order, whatever the number of threads
_SEGMENT = 2**22  # entries of the states that one segment keeps
_SERIAL = 20_000  # entries below which one thread does it all
_COMPILED: Any = {"cache": True, "nogil": True, "error_model": "numpy"}

Array = NDArray[np.float64]


@njit(**_COMPILED)
def _merge(time, grid, what, gap):  # type: ignore[no-untyped-def]
    """Events of one series in order: row j as j, grid time g as -1 - g, and the time since the event before."""
    j, g, now = 0, 0, 0.0
    for e in range(len(time) + len(grid)):
        if g == len(grid) or (j < len(time) and time[j] <= grid[g]):
            what[e], then = j, time[j]
            j += 1
        else:
            what[e], then = -1 - g, grid[g]
            g += 1
        gap[e] = 0.0 if e == 0 else then - now
        now = then


@njit(**_COMPILED)
def _filter_series(events, series, model, state, outputs, joint):  # type: ignore[no-untyped-def]
    """Filter one series; returns its log likelihood."""
    (what, gap), (channel, value), (orders, rates, B, noise) = events, series, model
    (m, R, u, A), (mean, variance, covariance) = state, outputs
    M, total = B.shape[1], 0.0
    m[:], R[:] = 0.0, 0.0
    for e in range(len(what)):
        if gap[e] > 0.0:
            state_space.transitions(gap[e], orders, rates, A)
            state_space.predict(m, R, M, orders, A)
        j = what[e]
        if j >= 0:
            c = channel[j]
            error, s = state_space.observe(m, R, M, orders, B, c, value[j], noise[c], u)
            total -= 0.5 * (error * error / s + math.log(s) + _LOG_2_PI)
        elif joint:
            state_space.read_joint(m, R, M, orders, B, mean[-1 - j], covariance[-1 - j])
        else:
            state_space.read(m, R, M, orders, B, mean[-1 - j], variance[-1 - j])
    return total


@njit(**_COMPILED)
def _filters(  # type: ignore[no-untyped-def]
    first, step, order, offsets, grid_offsets, time, channel, value, grid, orders, rates, B, noise, joint,
    mean, variance, covariance, log_likelihood,
):  # fmt: skip
    M = B.shape[1]
    d = orders.sum() * M
    state = (np.empty(d), np.empty((d, d)), np.empty(d), np.empty((len(orders), 3, 3)))
    for at in range(first, len(order), step):
        b = order[at]
        i, n, g, k = offsets[b], offsets[b + 1], grid_offsets[b], grid_offsets[b + 1]
        events = (np.empty(n - i + k - g, dtype=np.int64), np.empty(n - i + k - g))
        _merge(time[i:n], grid[g:k], *events)
        outputs = (mean[g:k], variance[g:k], covariance[g:k]) if joint else (mean[g:k], variance[g:k], covariance)
        series = (channel[i:n], value[i:n])
        log_likelihood[b] = _filter_series(events, series, (orders, rates, B, noise), state, outputs, joint)


@njit(**_COMPILED)
def _advance(start, stop, events, series, model, state, m_kept, R_kept, history):  # type: ignore[no-untyped-def]
    """Filter events start <= e < stop; keep states before each prediction and what each row's adjoint needs."""
    (what, gap), (channel, value), (orders, rates, B, noise) = events, series, model
    (m, R, _, A), (u, error, scale) = state, history
    M = B.shape[1]
    for e in range(start, stop):
        if gap[e] > 0.0:
            if len(m_kept):
                m_kept[e - start] = m
                R_kept[e - start] = R
            state_space.transitions(gap[e], orders, rates, A)
            state_space.predict(m, R, M, orders, A)
        j = what[e]
        if j >= 0:
            c = channel[j]
            error[j], scale[j] = state_space.observe(m, R, M, orders, B, c, value[j], noise[c], u[j])


@njit(**_COMPILED)
def _retreat(start, stop, events, series, model, state, kept, history, weights, gradients, joint):  # type: ignore[no-untyped-def]
    """Adjoint of events start <= e < stop, from the last to the first."""
    (what, gap), (channel, _), (orders, rates, B, _) = events, series, model
    (gm, gR, gu, A), (m_kept, R_kept), (u, error, scale) = state, kept, history
    (g_mean, g_variance, g_covariance, g_log), (dB, drates, dnoise, dvalue) = weights, gradients
    M = B.shape[1]
    for e in range(stop - 1, start - 1, -1):
        j = what[e]
        if j >= 0:
            c = channel[j]
            of_value, of_noise = state_space.pull_back_observe(
                gm, gR, M, orders, c, u[j], error[j], scale[j], g_log, dB, gu
            )
            dvalue[j] = of_value
            dnoise[c] += of_noise
        elif joint:
            state_space.pull_back_read_joint(gm, gR, M, orders, g_mean[-1 - j], g_covariance[-1 - j], dB)
        else:
            state_space.pull_back_read(gm, gR, M, orders, g_mean[-1 - j], g_variance[-1 - j], dB)
        if gap[e] > 0.0:
            state_space.transitions(gap[e], orders, rates, A)
            state_space.pull_back_predict(gm, gR, m_kept[e - start], R_kept[e - start], M, orders, gap[e], A, drates)


@njit(**_COMPILED)
def _pull_back_series(events, series, model, weights, gradients, kept, joint):  # type: ignore[no-untyped-def]
    """Adjoint of one series, a segment of as many events as there is room for at a time."""
    orders, _, B, _ = model
    d, segment = orders.sum() * B.shape[1], len(kept[0])
    n, count = len(series[0]), len(events[0])
    segments = (count + segment - 1) // segment
    m_start, R_start = np.zeros((segments, d)), np.zeros((segments, d, d))
    history = (np.empty((n, d)), np.empty(n), np.empty(n))
    m, R, A = np.zeros(d), np.zeros((d, d)), np.empty((len(orders), 3, 3))
    state = (m, R, np.empty(d), A)
    nothing = (np.empty((0, d)), np.empty((0, d, d)))
    for at in range(segments - 1):
        m_start[at] = m
        R_start[at] = R
        _advance(at * segment, (at + 1) * segment, events, series, model, state, *nothing, history)
    m_start[segments - 1] = m
    R_start[segments - 1] = R
    adjoint = (np.zeros(d), np.zeros((d, d)), np.empty(d), A)
    for at in range(segments - 1, -1, -1):
        start, stop = at * segment, min((at + 1) * segment, count)
        m[:], R[:] = m_start[at], R_start[at]
        _advance(start, stop, events, series, model, state, *kept, history)
        _retreat(start, stop, events, series, model, adjoint, kept, history, weights, gradients, joint)


@njit(**_COMPILED)
def _pull_backs(  # type: ignore[no-untyped-def]
    first, step, order, offsets, grid_offsets, time, channel, value, grid, orders, rates, B, noise, joint,
    g_mean, g_variance, g_covariance, g_log, segment, dB, drates, dnoise, dvalue,
):  # fmt: skip
    longest, d = 1, orders.sum() * B.shape[1]
    for at in range(first, len(order), step):
        b = order[at]
        longest = max(longest, offsets[b + 1] - offsets[b] + grid_offsets[b + 1] - grid_offsets[b])
    room = min(segment, longest)
    kept = (np.empty((room, d)), np.empty((room, d, d)))
    for at in range(first, len(order), step):
        b = order[at]
        i, n, g, k = offsets[b], offsets[b + 1], grid_offsets[b], grid_offsets[b + 1]
        if n == i and k == g:
            continue
        events = (np.empty(n - i + k - g, dtype=np.int64), np.empty(n - i + k - g))
        _merge(time[i:n], grid[g:k], *events)
        covariance = g_covariance[g:k] if joint else g_covariance
        weights = (g_mean[g:k], g_variance[g:k], covariance, g_log[b])
        gradients = (dB[first], drates[first], dnoise[first], dvalue[i:n])
        series, model = (channel[i:n], value[i:n]), (orders, rates, B, noise)
        _pull_back_series(events, series, model, weights, gradients, kept, joint)


@dataclass(frozen=True)
class FilterProblem:
    """What is no tensor in a call of the filter.

    Attributes:
        batch: the series.
        orders: of each component, ``(Q,)``, int64.
        joint: whether the covariance over channels is wanted, or its diagonal.
    """

    batch: SeriesBatch
    orders: NDArray[np.int64]
    joint: bool

    def run(self, function: Any, *arguments: Any) -> None:
        """Call a compiled pass on all threads: always in the same shares, so that sums have one order."""
        batch = self.batch
        cost = (len(batch.time) + len(batch.grid)) * self.orders.sum() ** 2
        threads = torch.get_num_threads() if cost > _SERIAL else 1
        fixed = (batch.observed.order, batch.observed.offsets, batch.wanted.offsets)
        call_for_each(lambda share: function(share, _SHARES, *fixed, *arguments), range(_SHARES), threads)

    def data(self, value: Tensor) -> tuple[Any, ...]:
        """Times, channels, values and grid, sorted and in float64."""
        batch = self.batch
        rows, grid = batch.order, batch.grid_order
        return (
            _float64(batch.time)[rows],
            batch.channel.numpy()[rows],
            _float64(value)[rows],
            _float64(batch.grid)[grid],
        )


def _float64(tensor: Tensor) -> Array:
    array: Array = tensor.detach().double().contiguous().numpy()
    return array


class CausalMoments(torch.autograd.Function):
    """Posterior of f at each grid time given the rows up to it, and the log likelihood of all rows.

    As a function of B ``(Q, M, M)`` symmetric, rates ``(Q,)``, noise ``(M,)`` and values ``(n,)``: mean ``(T, M)``,
    variance ``(T, M)`` or covariance ``(T, M, M)``, log likelihood ``(B,)``.
    """

    @staticmethod
    def forward(
        ctx: Any, B: Tensor, rates: Tensor, noise: Tensor, value: Tensor, problem: FilterProblem
    ) -> tuple[Tensor, Tensor, Tensor]:
        M, T = len(noise), len(problem.batch.grid)
        model = (problem.orders, _float64(rates), _float64(B), _float64(noise))
        ctx.problem, ctx.model, ctx.value, ctx.dtype = problem, model, value.detach(), B.dtype
        mean = np.empty((T, M))
        variance = np.empty((0 if problem.joint else T, M))
        covariance = np.empty((T if problem.joint else 0, M, M))
        log_likelihood = np.empty(len(problem.batch))
        problem.run(_filters, *problem.data(value), *model, problem.joint, mean, variance, covariance, log_likelihood)
        back = np.argsort(problem.batch.grid_order)
        second = covariance if problem.joint else variance
        parts = (mean[back], second[back], log_likelihood)
        first, spread, total = (torch.from_numpy(part).to(B.dtype) for part in parts)
        return first, spread, total

    @staticmethod
    def backward(ctx: Any, g_mean: Tensor, g_spread: Tensor, g_log: Tensor) -> tuple[Tensor | None, ...]:
        expect_first_order()
        problem, model = ctx.problem, ctx.model
        orders, _, B, noise = model
        M, grid = len(noise), problem.batch.grid_order
        spread = _float64(g_spread)[grid]
        if problem.joint:
            spread = 0.5 * (spread + spread.swapaxes(-1, -2))
            weights = (np.empty((0, M)), spread)
        else:
            weights = (spread, np.empty((0, M, M)))
        dB, drates = np.zeros((_SHARES, *B.shape)), np.zeros((_SHARES, len(orders)))
        dnoise, dvalue = np.zeros((_SHARES, M)), np.zeros(len(ctx.value))
        d = state_space.state_size(orders, M)
        segment = max(16, _SEGMENT // d**2)
        arguments = (*problem.data(ctx.value), *model, problem.joint, _float64(g_mean)[grid], *weights, _float64(g_log))
        if len(ctx.value) or len(grid):
            problem.run(_pull_backs, *arguments, segment, dB, drates, dnoise, dvalue)
        unsorted = np.empty_like(dvalue)
        unsorted[problem.batch.order] = dvalue
        parts = (dB.sum(0), drates.sum(0), dnoise.sum(0), unsorted)
        return *(torch.from_numpy(part).to(ctx.dtype) for part in parts), None
