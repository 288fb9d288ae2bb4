"""Tasks as one process, each smoothed by a Gaussian of its own width."""

import math
from typing import Any

import torch
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.kernels.coregionalisation import Coregionalisation
from gpmoe.kernels.parameter import constrained, declare_positive, set_constrained
from gpmoe.kernels.task_rows import TaskRowKernel, pairs_of_rows


class ConvolvedTaskKernel(TaskRowKernel):
    """A convolution process: rough tasks and smooth ones that still tell of each other.

    With latent white noise u_q and smoothing kernels G_t, Gaussians of variance ℓ_t²/2 in each input,

        f_t(x) = Σ_q W[t, q] ∫ G_t(x - z) u_q(z) dz,   S = (ℓ_t² + ℓ_t'²)/2,

        k((x, t), (x', t')) = B[t, t'] Π_i sqrt(ℓ_ti ℓ_t'i / S_i) exp(-(x - x')_i² / 2 S_i).

    Each task alone has an RBF kernel of lengthscales ℓ_t and variance B[t, t]; tasks of different width correlate less
    than B says. With equal widths it is the intrinsic model. Lengthscales start at √d, under the prior of the default
    kernels, for inputs of about unit variance.

    Args:
        tasks: B, such as W W' + diag(v).
        n_inputs: d.

    Attributes:
        lengthscales: ℓ, ``(T, d)``, units of the inputs.

    Raises:
        InputError: if d is less than one; in a product, if a task is none of B's.

    Example:
        >>> import torch
        >>> from gpmoe.kernels import FreeCoregionalisation
        >>> kernel = ConvolvedTaskKernel(FreeCoregionalisation(2), n_inputs=1)
        >>> rows = torch.tensor([[0.3, 0.0], [0.3, 1.0]], dtype=torch.float64)
        >>> kernel(rows).to_dense().shape
        torch.Size([2, 2])

    Source: Boyle and Frean (2005), Dependent Gaussian Processes, sec. 3; Álvarez and Lawrence (2011), Computationally
        Efficient Convolved Multiple Output Gaussian Processes, sec. 2.2.
    """

    def __init__(self, tasks: Coregionalisation, n_inputs: int) -> None:
        super().__init__()
        if n_inputs < 1:
            raise InputError(f"`n_inputs` must be at least 1; got {n_inputs}.")
        self.tasks = tasks
        self.n_tasks, self.n_inputs = len(tasks().detach()), n_inputs
        start = torch.full((self.n_tasks, n_inputs), math.sqrt(n_inputs), dtype=torch.float64)
        declare_positive(self, "lengthscales", start)
        location, spread = start.new_tensor(1.0 + 0.5 * math.log(n_inputs)), start.new_tensor(math.sqrt(3.0))
        prior = LogNormalPrior(location, spread, validate_args=False)
        self.register_prior("lengthscales_prior", prior, _lengthscales)

    @property
    def lengthscales(self) -> Tensor:
        """ℓ, ``(T, d)``."""
        return constrained(self, "lengthscales")

    @lengthscales.setter
    def lengthscales(self, value: Tensor) -> None:
        set_constrained(self, "lengthscales", value)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """The covariance of rows ``(*batch, n, d + 1)`` and ``(*batch, m, d + 1)``, or its diagonal."""
        difference, pick = pairs_of_rows(x1, x2, self.n_tasks, diag=diag)
        a, b = self.lengthscales.unsqueeze(1), self.lengthscales
        S = 0.5 * (a.square() + b.square())  # (T, T, d)
        amplitude = self.tasks() * (a * b / S).sqrt().prod(-1)
        exponents = [difference[..., i].square() * pick(0.5 / S[..., i]) for i in range(self.n_inputs)]
        return pick(amplitude) * torch.stack(exponents).sum(0).neg().exp()


def _lengthscales(kernel: ConvolvedTaskKernel) -> Tensor:
    return kernel.lengthscales
