"""Kernels of rows (x, t), whose last column is a task, 0 to T - 1.

| symbol | name in code | shape |
|---|---|---|
| x - x' of each pair | `difference` | (*batch, n, m, d), without m on a diagonal |
| v[t, t'] of each pair, from a table over pairs of tasks | `pick(v)` | (*batch, n, m), without m on a diagonal |
"""

from collections.abc import Callable

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.errors import InputError


class TaskRowKernel(Kernel):
    """A covariance between tasks as well as inputs: k((x, t), (x', t')).

    Attributes:
        n_tasks: T.
    """

    n_tasks: int


def tasks_of(x: Tensor, n_tasks: int) -> Tensor:
    """The task of each row (x, t) ``(*batch, n, d + 1)``, int64 ``(*batch, n)``.

    Raises:
        InputError: if the last column holds anything but 0 to T - 1.
    """
    tasks = x[..., -1].detach().long()
    if bool(((tasks < 0) | (tasks >= n_tasks) | (tasks != x[..., -1])).any()):
        lowest, highest = (float(end) for end in x[..., -1].detach().aminmax())
        raise InputError(
            f"the last column of `X` must be a task, 0 to {n_tasks - 1}; got values from {lowest} to {highest}. "
            "An estimator that scales its inputs needs `scale=None`."
        )
    return torch.as_tensor(tasks)


def pairs_of_rows(x1: Tensor, x2: Tensor, n_tasks: int, *, diag: bool) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Pairs of rows (x, t), as their differences and a function that looks up a value for their tasks.

    Args:
        x1, x2: ``(*batch, n, d + 1)`` and ``(*batch, m, d + 1)``.
        n_tasks: T.
        diag: pair the i-th row with the i-th alone.

    Returns:
        `difference` and `pick`; a table ``(T, T)`` is spread over the pairs by products with indicators of the tasks,
        exact, whose gradients need no scattered sums.
    """
    first, second = tasks_of(x1, n_tasks), tasks_of(x2, n_tasks)
    if diag:
        return x1[..., :-1] - x2[..., :-1], lambda table: table[first, second]
    known = torch.eye(n_tasks, dtype=x1.dtype, device=x1.device)
    left, right = known[first], known[second].mT
    return x1[..., :-1].unsqueeze(-2) - x2[..., :-1].unsqueeze(-3), lambda table: left @ table @ right
