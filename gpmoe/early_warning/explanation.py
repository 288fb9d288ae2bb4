"""How much each measurement moved a risk: integrated gradients through network and Gaussian process.

    c_j = y_j ∫_0^1 ∂logit(α y)/∂y_j dα,   Σ_j c_j = logit(y) - logit(0)

with y the scaled values: the baseline has each value at its channel's mean, measured at the same times.

Source: Sundararajan, Taly and Yan (2017), Axiomatic Attribution for Deep Networks, eq. 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Contributions:
    """What moved the logit of a risk.

    Attributes:
        time, channel, value: the measurements up to the time of the risk, ``(n,)``, in the caller's units.
        contribution: of each to the logit, ``(n,)``.
        logit: of the risk; the contributions sum to it less the baseline's, up to the quadrature.
        baseline: logit with every value at its channel's mean.
        channel_names: M names.
    """

    time: Array
    channel: NDArray[np.int64]
    value: Array
    contribution: Array
    logit: float
    baseline: float
    channel_names: tuple[str, ...]

    def by_channel(self) -> list[tuple[str, float]]:
        """Sum over each channel's measurements, the largest in size first."""
        sums = np.bincount(self.channel, self.contribution, minlength=len(self.channel_names))
        order = np.argsort(-np.abs(sums), kind="stable")
        return [(self.channel_names[i], float(sums[i])) for i in order]


def integrated_gradients(logit: Callable[[Tensor], Tensor], value: Tensor, steps: int) -> tuple[Array, float, float]:
    """Contributions of values ``(n,)`` to a scalar, with its value there and at zero; midpoint rule."""
    total = torch.zeros_like(value)
    for step in range(steps):
        point = (value * ((step + 0.5) / steps)).requires_grad_(True)
        (gradient,) = torch.autograd.grad(logit(point), point)
        total += gradient
    with torch.no_grad():
        ends = float(logit(value)), float(logit(torch.zeros_like(value)))
    return (value * total / steps).numpy(), *ends
