"""A kernel on rows (x, task), which makes any model of one output a multi-task one."""

from typing import Any

from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.kernels.coregionalisation import Coregionalisation
from gpmoe.kernels.task_rows import TaskRowKernel, tasks_of


class TaskKernel(TaskRowKernel):
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
        self.n_tasks = len(tasks().detach())

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """The covariance of rows ``(*batch, n, d + 1)`` and ``(*batch, m, d + 1)``, or its diagonal."""
        B: Tensor = self.tasks()
        first, second = tasks_of(x1, len(B)), tasks_of(x2, len(B))
        if diag:
            between = B[first, second]
            return self.base_kernel(x1[..., :-1], x2[..., :-1], diag=True, **params) * between
        K = self.base_kernel(x1[..., :-1], x2[..., :-1], **params)
        dense = K if isinstance(K, Tensor) else K.to_dense()
        return dense * B[first.unsqueeze(-1), second.unsqueeze(-2)]
