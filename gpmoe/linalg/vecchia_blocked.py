"""The Vecchia likelihood and its marginals in blocks of rows, by torch: any kernel, dtype and device.

Autograd passes through one block at a time, so memory does not grow with n.
"""

import math
from typing import Any

import numpy as np
import torch
from gpytorch.kernels import Kernel
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.errors import NotPositiveDefiniteError
from gpmoe.linalg.factorisation import Workspace
from gpmoe.linalg.likelihood import Precomputed
from gpmoe.linalg.stationary import dense_covariance

_LOG_2_PI = math.log(2 * math.pi)
_BLOCK = 2**21  # entries of a block of covariances: 16 MB in float64
_JITTERS = {torch.float64: (1e-10, 1e-9, 1e-8, 1e-7, 1e-6), torch.float32: (1e-6, 1e-5, 1e-4, 1e-3)}

Neighbours = NDArray[np.int32]


class Blocked(Precomputed):
    """The likelihood as a function of X, residual, noise and the kernel's learnable tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        X: Tensor,
        residual: Tensor,
        noise: Tensor,
        kernel: Kernel,
        neighbours: Neighbours,
        workspace: Workspace,
        *parameters: Tensor,
    ) -> Tensor:
        inputs = (X, residual, noise, *parameters)
        needed = [index for index, tensor in enumerate(inputs) if tensor.requires_grad]
        local = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs[:3]]
        wanted = [(*local, *parameters)[index] for index in needed]
        total, workspace.jitter = [torch.zeros_like(tensor) for tensor in wanted], 0.0
        value = residual.new_zeros(())
        for start in range(0, len(X), _rows_at_once(neighbours)):
            stop = min(len(X), start + _rows_at_once(neighbours))
            with torch.enable_grad():
                one, jitter = _conditional_block(kernel, local[0], local[1], local[2], neighbours, start, stop)
            workspace.jitter = max(workspace.jitter, jitter)
            value += one.detach()
            if wanted:
                pieces = torch.autograd.grad(one, wanted, allow_unused=True)
                for sum_, piece in zip(total, pieces, strict=True):
                    if piece is not None:
                        sum_ += piece
        found = dict(zip(needed, total, strict=True))
        gradients = [found.get(index) for index in range(len(inputs))]
        ctx.gradients = (*gradients[:3], None, None, None, *gradients[3:])
        return value


def _rows_at_once(neighbours: Neighbours) -> int:
    return max(1, _BLOCK // (neighbours.shape[1] + 1) ** 2)


def _conditional_block(
    kernel: Kernel, X: Tensor, residual: Tensor, noise: Tensor, neighbours: Neighbours, start: int, stop: int
) -> tuple[Tensor, float]:
    """The sum over rows start to stop, and the largest jitter."""
    own = torch.arange(start, stop).unsqueeze(-1)
    index = torch.cat([torch.from_numpy(neighbours[start:stop]).long(), own], -1).to(X.device)
    L, r, jitter = conditioning_factor(kernel, X, residual, noise, index)
    half = torch.linalg.solve_triangular(L, r.unsqueeze(-1), upper=False)[:, -1, 0]
    return -(0.5 * half.square() + 0.5 * _LOG_2_PI + L[:, -1, -1].log()).sum(), jitter


def conditioning_factor(
    kernel: Kernel, X: Tensor, residual: Tensor, noise: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Factors ``(b, m, m)`` and residuals ``(b, m)`` of sets of rows ``(b, m)``, apart from the rest where -1."""
    real = index >= 0
    index = index.clamp_min(0)
    points = X[index]
    both = real.unsqueeze(-1) & real.unsqueeze(-2)
    C = torch.where(both, dense_covariance(kernel, points, points), 0.0)
    C = C + torch.diag_embed(torch.where(real, noise[index], 1.0))
    L, info = torch.linalg.cholesky_ex(C)
    jitter = torch.zeros_like(C[:, 0, 0])
    for relative in _JITTERS[X.dtype]:
        if not bool(info.any()):
            break
        diagonal = C.detach().diagonal(dim1=-2, dim2=-1).mean(-1)
        jitter = torch.where(info > 0, relative * diagonal, jitter)
        L, info = torch.linalg.cholesky_ex(C + torch.diag_embed(jitter.unsqueeze(-1).expand(real.shape)))
    if bool(info.any()) or not bool(L.detach().isfinite().all()):
        raise no_factor(index.shape[-1] - 1)
    return L, torch.where(real, residual[index], 0.0), float(jitter.max())


def blocked_marginals(
    kernel: Kernel, X: Tensor, residual: Tensor, noise: Tensor, X_new: Tensor, neighbours: Neighbours
) -> tuple[Tensor, Tensor]:
    """See `vecchia.vecchia_marginals`."""
    means, variances = [X.new_zeros(0)], [X.new_zeros(0)]
    for start in range(0, len(X_new), _rows_at_once(neighbours)):
        rows = slice(start, start + _rows_at_once(neighbours))
        index = torch.from_numpy(neighbours[rows]).long().to(X.device)
        L, r, _ = conditioning_factor(kernel, X, residual, noise, index)
        new = X_new[rows].unsqueeze(-2)
        K = dense_covariance(kernel, new, X[index]).mT
        half = torch.linalg.solve_triangular(L, torch.cat([r.unsqueeze(-1), K], -1), upper=False)
        prior = dense_covariance(kernel, new, new)[:, 0, 0]
        means.append((half[..., 0] * half[..., 1]).sum(-1))
        variance = prior - half[..., 1].square().sum(-1)
        variances.append(torch.maximum(variance, torch.finfo(X.dtype).eps * prior))
    return torch.cat(means), torch.cat(variances)


def no_factor(count: int) -> NotPositiveDefiniteError:
    """The error for a row whose covariance with its neighbours has no factor."""
    return NotPositiveDefiniteError(
        f"the covariance of a row and its {count} neighbours is not positive definite at a relative jitter of "
        f"1e-6 (1e-3 in float32).\nUsual causes, most likely first: repeated rows of X (merge them); a noise "
        "variance near zero (raise its lower bound); a hyperparameter that is not finite."
    )
