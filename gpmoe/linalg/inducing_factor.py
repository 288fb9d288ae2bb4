"""The Cholesky factor of the covariance of inducing points, differentiable."""

from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.errors import DifferentiationError
from gpmoe.linalg import lapack
from gpmoe.linalg.cross_covariance import cross_covariance
from gpmoe.linalg.factorisation import cholesky_with_jitter_

NUGGET = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Variance of the noise with which inducing points see the function, as a share of the mean prior variance.

Without it the factor of points that lie close together is rounding noise, and a bound on the evidence is none any
more. With it the bound holds exactly, since a noisy copy of f(Z) is as good a set of inducing variables as f(Z).
"""


def inducing_factor(kernel: Kernel, Z: Tensor) -> tuple[Tensor, float]:
    """L with L L' = K(Z, Z) + nugget.

    Args:
        kernel: any GPyTorch kernel.
        Z: inducing points, ``(*batch, p, d)``.

    Returns:
        Lower triangular ``(*batch, p, p)``, differentiable once, and what was added to the diagonal beyond the nugget,
        0 if nothing.

    Raises:
        NotPositiveDefiniteError, NonFiniteError: see `cholesky_with_jitter_`.
    """
    K = cross_covariance(kernel, Z, Z)
    nugget = NUGGET[K.dtype] * lapack.diagonal(K.detach()).mean(-1, keepdim=True)
    L, jitter = _Cholesky.apply(K + torch.diag_embed(nugget.expand(K.shape[:-1])))
    return L, float(jitter)


class _Cholesky(torch.autograd.Function):
    """As `torch.linalg.cholesky`, with the jitter ladder and the fastest LAPACK.

    Source: Murray (2016), Differentiation of the Cholesky decomposition, eq. 10.
    """

    @staticmethod
    def forward(ctx: Any, C: Tensor) -> tuple[Tensor, Tensor]:
        L = torch.empty_like(C, memory_format=torch.contiguous_format)

        def fill(out: Tensor) -> None:
            out.copy_(C)

        jitter = cholesky_with_jitter_(fill, L)
        L.tril_()
        ctx.save_for_backward(L)
        added = C.new_tensor(jitter)
        ctx.mark_non_differentiable(added)
        return L, added

    @staticmethod
    def backward(ctx: Any, dL: Tensor, _: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise DifferentiationError("the factor can be differentiated once; leave out create_graph=True.")
        (L,) = ctx.saved_tensors
        middle = (L.mT @ dL).tril()
        middle = middle + middle.tril(-1).mT  # the symmetric matrix with this lower triangle
        half = lapack.solve_triangular(L, middle, transpose=True)
        return 0.5 * lapack.solve_triangular(L, half.mT, transpose=True)
