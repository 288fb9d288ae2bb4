"""The exact Gaussian log marginal likelihood, with its analytic gradient.

| symbol | name in code | shape |
|---|---|---|
| y - m(X) | `residual` | (n,) |
| C = K + diag(noise) | `C`, later its factor L, later C⁻¹ | (n, n), one matrix in place |
| α = C⁻¹(y - m) | `alpha` | (n,) |

    log p(y) = -½ (α'(y - m) + log|C| + n log 2π),     d log p / dC = ½ (αα' - C⁻¹)

No autograd passes through the factor: value and gradient cost one potrf, one potri and O(n²d). For kernels that the
fused pass knows, the gradient for the scaled inputs Z is accumulated in the same pass that recomputes the kernel from
Z, so a lengthscale or a whole feature map is reached by ordinary autograd from dL/dZ, ``(n, d)``. Other kernels are
recomputed in row blocks under autograd, which needs their gradient alone. Gradients are computed with the value,
in the one matrix of the workspace; differentiating twice is not supported.

Source: Rasmussen and Williams (2006), eq. 5.8-5.9; Seeger (2004), sec. 3.
"""

import math
from typing import Any

import numpy as np
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.errors import DifferentiationError
from gpmoe.linalg import fused, lapack
from gpmoe.linalg.factorisation import Workspace, cholesky_with_jitter_
from gpmoe.linalg.stationary import Packed, dense_covariance, fill_covariance, pack, row_blocks, stationary_terms


def gaussian_log_likelihood(
    kernel: Kernel, X: Tensor, residual: Tensor, noise: Tensor, *, workspace: Workspace | None = None
) -> Tensor:
    """log N(residual | 0, K(X, X) + diag(noise)), exact, differentiable once.

    Args:
        kernel: any GPyTorch kernel.
        X: ``(*batch, n, d)``.
        residual: targets less their mean, ``(*batch, n)``.
        noise: noise variance of each point, ``(*batch, n)``.
        workspace: memory to reuse, and where the jitter is reported.

    Returns:
        ``(*batch,)``, nats; gradients reach the kernel's parameters, X, residual and noise.

    Raises:
        NotPositiveDefiniteError, NonFiniteError: see `cholesky_with_jitter_`.
    """
    workspace = Workspace() if workspace is None else workspace
    terms = stationary_terms(kernel, X) if residual.dim() == 1 else None
    if terms is not None:
        packed = pack(terms)
        value: Tensor = _FusedLikelihood.apply(
            packed.Z1, packed.shape, packed.scale, residual, noise, packed, workspace
        )
        return value
    if X.dim() > 2 or residual.dim() > 1 or len(kernel.batch_shape):
        value = _DenseLikelihood.apply(dense_covariance(kernel, X, X), residual, noise, workspace)
        return value
    value = _BlockedLikelihood.apply(X, residual, noise, kernel, workspace, *learnable_tensors(kernel))
    return value


def learnable_tensors(module: torch.nn.Module) -> list[Tensor]:
    """Tensors of a module that want a gradient: its parameters, and samples that stand in for parameters."""
    placed = (tensor for part in module.modules() for tensor in vars(part).values() if isinstance(tensor, Tensor))
    return [tensor for tensor in [*module.parameters(), *placed] if tensor.requires_grad]


def _log_density(alpha: Tensor, residual: Tensor, L: Tensor) -> Tensor:
    log_det = 2 * _log(lapack.diagonal(L)).sum(-1)
    return -0.5 * ((alpha * residual).sum(-1) + log_det + residual.shape[-1] * math.log(2 * math.pi))


def _log(x: Tensor) -> Tensor:
    """By NumPy where it can: torch's goes through a thread pool at any length."""
    return x.log() if x.is_cuda else torch.from_numpy(np.log(x.numpy()))


def _finish(ctx: Any, alpha: Tensor, C_inverse: Tensor, before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    """Keep the gradients for `backward`, those for residual and noise in the middle."""
    d_noise = 0.5 * (alpha * alpha - lapack.diagonal(C_inverse))
    ctx.gradients = (*before, -alpha, d_noise, *after)


def expect_first_order() -> None:
    """Refuse a second derivative.

    Raises:
        DifferentiationError: in a backward pass that is itself to be differentiated.
    """
    if torch.is_grad_enabled():
        raise DifferentiationError("the likelihood can be differentiated once; leave out create_graph=True.")


class Precomputed(torch.autograd.Function):
    """A scalar function whose gradients were found with its value."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        expect_first_order()
        return tuple(None if g is None else grad * g for g in ctx.gradients)


class _FusedLikelihood(Precomputed):
    @staticmethod
    def forward(
        ctx: Any,
        Z: Tensor,
        shape: Tensor,
        scale: Tensor,
        residual: Tensor,
        noise: Tensor,
        packed: Packed,
        workspace: Workspace,
    ) -> Tensor:
        def fill(C: Tensor) -> None:
            fused.assemble(Z.numpy(), None, packed.arrays(), C.numpy())
            lapack.diagonal(C).add_(noise)

        C = workspace.matrix(residual.shape[0], like=residual)
        workspace.jitter = cholesky_with_jitter_(fill, C)
        alpha = lapack.cholesky_solve(C, residual)
        value = _log_density(alpha, residual, C)
        if any(ctx.needs_input_grad):
            lapack.inverse_from_cholesky_(C)
            dZ, d_shape, d_scale = fused.gradient(alpha.numpy(), C.numpy(), Z.numpy(), packed.arrays())
            before = (torch.from_numpy(dZ), torch.from_numpy(d_shape), torch.from_numpy(d_scale))
            _finish(ctx, alpha, C, before, (None, None))
        return value


class _BlockedLikelihood(Precomputed):
    @staticmethod
    def forward(
        ctx: Any,
        X: Tensor,
        residual: Tensor,
        noise: Tensor,
        kernel: Kernel,
        workspace: Workspace,
        *parameters: Tensor,
    ) -> Tensor:
        def fill(C: Tensor) -> None:
            fill_covariance(kernel, X, None, C)
            lapack.diagonal(C).add_(noise)

        C = workspace.matrix(residual.shape[0], like=residual)
        workspace.jitter = cholesky_with_jitter_(fill, C)
        alpha = lapack.cholesky_solve(C, residual)
        value = _log_density(alpha, residual, C)
        if any(ctx.needs_input_grad):
            lapack.inverse_from_cholesky_(C)
            dX, *d_parameters = _kernel_gradient(kernel, X, parameters, alpha, C, ctx.needs_input_grad[0])
            _finish(ctx, alpha, C, (dX,), (None, None, *d_parameters))
        return value


def _kernel_gradient(
    kernel: Kernel, X: Tensor, parameters: tuple[Tensor, ...], alpha: Tensor, C_inverse: Tensor, for_X: bool
) -> list[Tensor | None]:
    """Gradient for X (None unless `for_X`) and the parameters, summed over row blocks of the lower triangle."""
    x = X.detach().requires_grad_(for_X)
    wanted = [x, *parameters] if for_X else list(parameters)
    total: list[Tensor | None] = [torch.zeros_like(tensor) for tensor in wanted]
    for rows, columns, on_diagonal in row_blocks(len(X), len(X), symmetric=True, cuda=X.is_cuda):
        inverse = C_inverse[rows, columns]
        inverse = 0.5 * (inverse.tril() + inverse.tril(-1).mT) if on_diagonal else inverse
        weight = torch.outer(alpha[rows], alpha[columns]).mul_(0.5 if on_diagonal else 1.0).sub_(inverse)
        with torch.enable_grad():
            left = x[rows]
            K = dense_covariance(kernel, left, left if on_diagonal else x[columns])
        if wanted and K.requires_grad:
            pieces = torch.autograd.grad(K, wanted, weight, allow_unused=True)
            for sum_, piece in zip(total, pieces, strict=True):
                if piece is not None and sum_ is not None:
                    sum_ += piece
    return total if for_X else [None, *total]


class _DenseLikelihood(Precomputed):
    @staticmethod
    def forward(ctx: Any, K: Tensor, residual: Tensor, noise: Tensor, workspace: Workspace) -> Tensor:
        def fill(C: Tensor) -> None:
            C.copy_(K)
            lapack.diagonal(C).add_(noise)

        shape = torch.broadcast_shapes(K.shape[:-1], residual.shape, noise.shape)
        residual, noise = residual.expand(shape), noise.expand(shape)
        C = K.new_empty(*shape, shape[-1])
        workspace.jitter = cholesky_with_jitter_(fill, C)
        alpha = lapack.cholesky_solve(C, residual)
        value = _log_density(alpha, residual, C)
        if any(ctx.needs_input_grad):
            C_inverse = torch.cholesky_inverse(C)
            dK = alpha.unsqueeze(-1) * alpha.unsqueeze(-2)
            _finish(ctx, alpha, C_inverse, (dK.sub_(C_inverse).mul_(0.5),), (None,))
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        expect_first_order()
        dK, d_residual, d_noise, _ = ctx.gradients
        per_point = grad.unsqueeze(-1)
        return per_point.unsqueeze(-1) * dK, per_point * d_residual, per_point * d_noise, None
