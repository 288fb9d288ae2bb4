"""A kernel on rows (x, task), which makes any model of one output a multi-task one."""

from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.kernels.coregionalisation import Coregionalisation


class TaskKernel(Kernel):
    """k(x, x') B[t, t'] for rows whose last column is the task, 0 to T - 1: the intrinsic model of coregionalisation.

    A sum of such kernels is the linear model. With it an `ExactGP` is a multi-task expert of a mixture, beside the
    gate `MultiGate`, which reads the same column.

    Args:
        base_kernel: a GPyTorch kernel of x, best without a scale of its own.
        tasks: B.

    Raises:
        InputError: in a product, if a task is none of B's.

    Example:
        >>> import torch
        >>> from gpytorch.kernels import RBFKernel
        >>> from gpmoe.kernels.coregionalisation import FreeCoregionalisation
        >>> kernel = TaskKernel(RBFKernel(), FreeCoregionalisation(2)).double()
        >>> rows = torch.tensor([[0.3, 0.0], [0.3, 1.0]], dtype=torch.float64)
        >>> kernel(rows).to_dense().shape
        torch.Size([2, 2])

    Source: Bonilla, Chai and Williams (2008), Multi-task Gaussian Process Prediction, eq. 1.
    """

    def __init__(self, base_kernel: Kernel, tasks: Coregionalisation) -> None:
        super().__init__()
        self.base_kernel = base_kernel
        self.tasks = tasks

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """The covariance of rows ``(*batch, n, d + 1)`` and ``(*batch, m, d + 1)``, or its diagonal."""
        B: Tensor = self.tasks()
        first, second = _tasks(x1, len(B)), _tasks(x2, len(B))
        if diag:
            between = B[first, second]
            return self.base_kernel(x1[..., :-1], x2[..., :-1], diag=True, **params) * between
        K = self.base_kernel(x1[..., :-1], x2[..., :-1], **params)
        dense = K if isinstance(K, Tensor) else K.to_dense()
        return dense * B[first.unsqueeze(-1), second.unsqueeze(-2)]


def _tasks(x: Tensor, n_tasks: int) -> Tensor:
    tasks = x[..., -1].detach().long()
    if bool(((tasks < 0) | (tasks >= n_tasks) | (tasks != x[..., -1])).any()):
        lowest, highest = (float(end) for end in x[..., -1].detach().aminmax())
        raise InputError(f"the last column must be a task, 0 to {n_tasks - 1}; got values from {lowest} to {highest}.")
    return torch.as_tensor(tasks)
