"""Which channel to measure next: how much one measurement now is expected to take from the doubt about the risk.

| symbol | here | what |
|---|---|---|
| m, P | | posterior mean and covariance of the channels f at the time, given the past |
| r(f) | | risk that the network says if it reads f in place of m |
| y | | a measurement of channel c, normal around m_c with variance s^2 = P_cc + noise_c |

The doubt is Var r(f). After y it is Var(r(f) | y), whose expectation is less by Var_y E[r(f) | y]: that is the value of
channel c, and never negative. f given y is normal with mean m + P_c (y - m_c) / s^2 and covariance P - P_c P_c' / s^2;
y is integrated by Gauss-Hermite quadrature, f by quasi Monte Carlo, with the same points for every channel and y.

What the network reads of the measuring itself (variances, ages, counts) is held as it is: the value is that of knowing,
not of having measured.

Source: Lindley (1956), On a measure of the information provided by an experiment (with variance in place of entropy).
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpmoe.early_warning.risk_stream import RiskStream, stepped
from gpmoe.early_warning.rows import Array
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError
from gpmoe.features.temporal_convolution import ConvolutionState


@dataclass(frozen=True)
class ChannelValue:
    """What one measurement of a channel is worth.

    Attributes:
        channel: its name.
        share: of the variance of the risk that it is expected to take, in [0, 1].
        std: of the risk after it: root of the expected variance.
    """

    channel: str
    share: float
    std: float


@dataclass(frozen=True)
class NextMeasurement:
    """Channels from the most to the least worth measuring.

    Attributes:
        time: of the risk.
        risk: its mean under draws of what is not known.
        std: its standard deviation under them.
        ranked: all channels.
    """

    time: float
    risk: float
    std: float
    ranked: tuple[ChannelValue, ...]

    def __str__(self) -> str:
        width = max(len(each.channel) for each in self.ranked)
        lines = [f"risk {self.risk:.3f} ± {self.std:.3f} at {self.time:g}; after one measurement of"]
        lines += [f"  {each.channel:<{width}}  ± {each.std:.3f}  (-{each.share:.0%})" for each in self.ranked]
        return "\n".join(lines)


def next_measurement(
    stream: RiskStream, id: Hashable, time: float, *, task: int = 0, n_values: int = 9, n_draws: int = 128
) -> NextMeasurement:
    """Rank the channels of a series in a stream, whose state stays as it is.

    Args:
        stream: of a model with the multi-task Gaussian process that reads its mean.
        id: of the series.
        time: of the risk and the measurement: a grid time that can be scored next.
        task: whose risk.
        n_values: of the measurement, in the quadrature.
        n_draws: of the channels, best a power of 2.

    Raises:
        InputError: without the Gaussian process or its mean among the inputs, for an unknown series, or a time that
            can't be scored.
    """
    x, posterior, states = stream.look(id, time)
    if posterior is None or posterior.covariance is None or stream.reader.adapter is None:
        raise InputError("the value of a measurement needs adapter='mgp'; values carried forward have no uncertainty.")
    if "mean" not in stream.reader.parts:
        raise InputError("the value of a measurement needs a network that reads the posterior mean: inputs='mean'.")
    M = stream.reader.n_channels

    def risk(f: Tensor) -> Array:
        rows = x.repeat(len(f), 1)
        rows[:, :M] = f  # the mean is the first part that a network reads
        each = zip(stream.networks, states, strict=True)
        return stream.probabilities([stepped(network, rows, _repeated(state, len(f)))[0] for network, state in each])[
            :, task
        ]

    with torch.no_grad():
        noise = stream.reader.adapter.noise
        mean, covariance = posterior.mean[0], posterior.covariance[0]
        average, variance, shares = values_of_measurements(risk, mean, covariance, noise, n_values, n_draws)
    std = float(np.sqrt(variance))
    ranked = [
        ChannelValue(stream.channel_names[c], float(shares[c]), std * float(np.sqrt(1 - shares[c])))
        for c in np.argsort(-shares, kind="stable")
    ]
    return NextMeasurement(float(time), average, std, tuple(ranked))


def next_measurement_of_series(
    stream: RiskStream, series: RaggedSeries, time: float, *, task: int = 0
) -> NextMeasurement:
    """As `next_measurement`, of one series at a time, from its measurements up to it.

    Args:
        stream: fresh, `EarlyWarningClassifier.stream()`.
        series: a single one; the network steps through its grid times before `time`.
        time: of the risk and the measurement.
        task: whose risk.

    Raises:
        InputError: if there is not exactly one series; and as `next_measurement`.
    """
    if len(series) != 1:
        raise InputError(f"`series` must be a single one, such as series[[3]]; got {len(series)}.")
    id = series.ids[0]
    stream.admit(id, series.static[0])
    past = series.until(time)
    rows = zip(past.time, past.channel, past.value, strict=True)
    row = next(rows, None)
    for grid_time in [*past.grid_times[past.grid_times < time], time]:
        while row is not None and row[0] <= grid_time:
            stream.update(id, float(row[0]), stream.channel_names[int(row[1])], float(row[2]))
            row = next(rows, None)
        if grid_time < time:
            stream.score(id, float(grid_time))
    return next_measurement(stream, id, time, task=task)


def values_of_measurements(
    risk: Callable[[Tensor], Array], mean: Tensor, covariance: Tensor, noise: Tensor, n_values: int, n_draws: int
) -> tuple[float, float, Array]:
    """Mean and variance of a function of normal channels, and the share of it that one measurement of each takes.

    Args:
        risk: from channels ``(r, M)`` to ``(r,)``.
        mean, covariance: of the channels, ``(M,)`` and ``(M, M)``.
        noise: variance of the noise of each, ``(M,)``.
        n_values, n_draws: as in `next_measurement`.

    Returns:
        Mean, variance, and shares in [0, 1], ``(M,)``; all 0 where the variance is.

    Example:
        >>> P, noise = torch.diag(torch.tensor([1.0, 4.0])), torch.tensor([1.0, 1e-6])
        >>> _, _, shares = values_of_measurements(lambda f: f[:, 0].numpy(), torch.zeros(2), P, noise, 9, 1024)
        >>> shares.round(2).tolist()
        [0.5, 0.0]
    """
    M = len(mean)
    uniform = torch.quasirandom.SobolEngine(M, scramble=True, seed=0).draw(n_draws, dtype=torch.float64)
    xi = torch.special.ndtri(uniform.clamp(1e-10, 1 - 1e-10)).to(mean)
    nodes, weights = np.polynomial.hermite_e.hermegauss(n_values)
    weights = weights / weights.sum()
    z = torch.from_numpy(nodes).to(mean)
    now = risk(mean + xi @ _root(covariance))
    shares = np.zeros(M)
    for c in range(M):
        gain = covariance[:, c] / (covariance[c, c] + noise[c]).sqrt()
        spread = xi @ _root(covariance - torch.outer(gain, gain))
        f = mean + z[:, None, None] * gain + spread  # (n_values, n_draws, M)
        found = risk(f.reshape(-1, M)).reshape(n_values, n_draws)
        each = found.mean(1)
        told = float(weights @ (each - weights @ each) ** 2)
        left = float(weights @ found.var(1))
        shares[c] = told / (told + left) if told + left > _ROUNDING else 0.0
    return float(now.mean()), float(now.var()), shares


_ROUNDING = 1e-24  # a variance of a risk that is no more than its rounding


def _root(covariance: Tensor) -> Tensor:
    """The symmetric root, for covariances that are singular too."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0.0).sqrt()) @ vectors.mT


def _repeated(state: Any, n: int) -> Any:
    """A copy of a network's state for n rows that share it."""
    if isinstance(state, ConvolutionState):
        return ConvolutionState([ring.repeat(1, n, 1) for ring in state.rings], state.step)
    return None if state is None else state.repeat(1, n, 1)
