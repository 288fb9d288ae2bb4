"""Which exact way solves a table of tasks at the least cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from gpytorch.kernels import MaternKernel
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.linalg.compiler import AVAILABLE
from gpmoe.linalg.latent_kronecker import plan as plan_grid

_FILTER_COST = 150.0  # operations of a factorisation that take as long as one entry of a filter's state, per row
_COLUMNS = 100  # right-hand sides that joint predictions are reckoned to have

TaskMethod = Literal["eigenbasis", "complement", "dense", "filter"]


@dataclass(frozen=True)
class TaskPlan:
    """How a table of tasks is solved, and why.

    Attributes:
        method: "eigenbasis" (Kronecker, complete tables of the intrinsic model), "complement" (latent Kronecker, few
            missing cells of the intrinsic model), "dense", or "filter" (Matérn kernels of one input).
        prediction: how predictions are solved: as the likelihood, but by a dense factor beside the filter where that
            costs less than filtering a hundred right-hand sides.
        flops: of each way that could be taken, for one likelihood and gradient.
        reason: in words.
    """

    method: TaskMethod
    prediction: TaskMethod
    flops: dict[str, float]
    reason: str

    def __str__(self) -> str:
        later = "" if self.prediction == self.method else f", predictions {self.prediction}"
        return f"{self.method}{later} ({self.reason})"


def plan_tasks(
    n: int,
    n_tasks: int,
    observed: int,
    *,
    n_components: int,
    separable: bool = True,
    orders: Sequence[int] | None = None,
    method: str = "auto",
) -> TaskPlan:
    """Choose the cheapest exact way.

    Args:
        n, n_tasks, observed: n, T and M.
        n_components: Q; one allows Kronecker algebra.
        separable: whether each component is a kernel of inputs times a covariance of tasks.
        orders: 1, 2 or 3 for the Matérn-1/2, -3/2 and -5/2 of one input that each component has; None for others.
        method: "auto", or one of `TaskMethod`.

    Raises:
        InputError: for another word, or a way that the model rules out.

    Example:
        >>> plan_tasks(300, 4, 1200, n_components=1).method
        'eigenbasis'
        >>> plan_tasks(300, 4, 1190, n_components=2).method
        'dense'
    """
    flops = {"dense": 2.0 * float(observed) ** 3 + 120.0 * n_components * float(observed) ** 2}
    if n_components == 1 and separable:
        grid = plan_grid((n, n_tasks), observed).flops
        flops |= {name: grid[name] for name in ("eigenbasis", "complement") if name in grid}
    if orders is not None:
        flops["filter"] = _FILTER_COST * observed * float(n_tasks * sum(orders)) ** 2
    if method not in ("auto", *get_args(TaskMethod)):
        raise InputError(f"`method` must be 'auto' or one of {', '.join(get_args(TaskMethod))}; got {method!r}.")
    if method != "auto" and method not in flops:
        raise InputError(
            f"{method!r} does not fit {observed} of {n * n_tasks} cells, {n_components} components and these kernels; "
            f"{', '.join(flops)} do. 'eigenbasis' takes complete tables and one component, 'complement' one component "
            "and missing cells, both a kernel of inputs alone, 'filter' isotropic Matérn kernels of one input on the "
            "CPU, with Numba installed."
        )
    best = min(flops, key=lambda name: flops[name]) if method == "auto" else method
    factor = method == "auto" and best == "filter" and flops["dense"] < _COLUMNS * flops["filter"]
    of = "every cell" if observed == n * n_tasks else f"{observed} of {n * n_tasks} cells"
    later = "dense" if factor else best
    return TaskPlan(cast(TaskMethod, best), cast(TaskMethod, later), flops, f"{of}, components: {n_components}")


def matern_orders(kernels: torch.nn.ModuleList, X: Tensor) -> tuple[int, ...] | None:
    """ν + ½ of each kernel if all are such as the filter takes: plain Matérn of one input, float64 on the CPU."""
    fits = AVAILABLE and X.shape[-1] == 1 and X.dtype == torch.float64 and X.device.type == "cpu"
    known = {0.5: 1, 1.5: 2, 2.5: 3}
    plain: list[Any] = [k for k in kernels if type(k) is MaternKernel and not k.batch_shape]
    orders = [known[k.nu] for k in plain if k.nu in known]
    return tuple(orders) if fits and len(orders) == len(kernels) else None
