"""L-BFGS on the tensors of a module, in place."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

Vector = NDArray[np.float64]


def minimise_parameters(parameters: Sequence[Tensor], loss: Callable[[], Tensor], *, steps: int) -> float:
    """Lower a scalar function of parameters by some steps of L-BFGS, or leave them as they are.

    Args:
        parameters: leaves that the loss depends on, any shapes, float64.
        loss: the scalar at their present values.
        steps: the most.

    Returns:
        The loss at the end, never above that at the start.
    """
    sizes = [parameter.numel() for parameter in parameters]

    def write(flat: Vector) -> None:
        parts = torch.from_numpy(np.array(flat)).split(sizes)
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.data.copy_(part.reshape(parameter.shape))

    def evaluate(flat: Vector) -> tuple[float, Vector]:
        write(flat)
        with torch.enable_grad():
            value = loss()
            slopes = torch.autograd.grad(value, list(parameters), materialize_grads=True)
        gradient: Vector = torch.cat([slope.reshape(-1) for slope in slopes]).numpy()
        return float(value.detach()), gradient

    start: Vector = torch.cat([parameter.detach().reshape(-1) for parameter in parameters]).numpy().copy()
    before = evaluate(start)[0]
    found = minimize(evaluate, start, jac=True, method="L-BFGS-B", options={"maxiter": steps})
    better = bool(found.fun <= before)
    write(found.x if better else start)
    return float(found.fun) if better else before
