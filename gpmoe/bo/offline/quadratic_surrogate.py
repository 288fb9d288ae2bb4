"""Surrogates for what depends on a few numbers nearly quadratically, such as the loss of a merged model.

    M(c) ≈ e + b'c + ½ c'A c                                  least squares, (N + 1)(N + 2)/2 numbers
    M ~ GP(m, v_q (1 + c'c')² + k_residual(c, c')) + noise     the same quadratics, what they miss, and how sure one is

| symbol | name in code | shape |
|---|---|---|
| c, coefficients | `C` | (n, N) |
| M(c), one metric | `metric` | (n,) |
| e, b, A | `offset`, `slope`, `curvature` | (), (N,), (N, N) |

The polynomial kernel spans the quadratics: without residual and as noise vanishes, the posterior mean is the
least-squares quadratic wherever that is unique.

Source: Li et al. (2025), MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic Approximation,
sec. 4.1, for the quadratic.
"""

from dataclasses import dataclass

import torch
from gpytorch.kernels import Kernel, PolynomialKernel, RBFKernel, ScaleKernel
from gpytorch.means import ZeroMean
from torch import Tensor

from gpmoe.errors import InputError, ShapeError
from gpmoe.models.exact_gp import ExactGP
from gpmoe.shapes import expect_finite, expect_floating, expect_shape


@dataclass(frozen=True)
class Quadratic:
    """e + b'c + ½ c'A c.

    Attributes:
        offset: e, a scalar.
        slope: b, ``(N,)``.
        curvature: A, symmetric, ``(N, N)``.
    """

    offset: Tensor
    slope: Tensor
    curvature: Tensor

    def __call__(self, C: Tensor) -> Tensor:
        """Values at C ``(*batch, N)``, ``(*batch,)``."""
        return self.offset + C @ self.slope + 0.5 * ((C @ self.curvature) * C).sum(-1)


def least_squares_quadratic(C: Tensor, metric: Tensor) -> Quadratic:
    """The quadratic of least squared error.

    Args:
        C: coefficients, ``(n, N)``, n at least (N + 1)(N + 2)/2.
        metric: values, ``(n,)``.

    Raises:
        ShapeError, DtypeError, NonFiniteError: if the two don't fit each other.
        InputError: if the points don't determine a quadratic.

    Example:
        >>> C = torch.rand(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> found = least_squares_quadratic(C, 1.0 - C.square().sum(-1))
        >>> torch.allclose(found.curvature, -2 * torch.eye(2, dtype=torch.float64))
        True
    """
    _expect_points(C, metric)
    N = C.shape[-1]
    rows, columns = torch.triu_indices(N, N).unbind()
    features = torch.cat([torch.ones_like(C[:, :1]), C, C[:, rows] * C[:, columns]], dim=-1)
    rank = int(torch.linalg.matrix_rank(features))
    if rank < features.shape[1]:
        raise InputError(
            f"{len(C)} points determine {rank} of the {features.shape[1]} numbers of a quadratic in {N} coefficients; "
            "evaluate more points, not all on a line, a conic or the like."
        )
    found = torch.linalg.lstsq(features, metric.unsqueeze(-1)).solution.squeeze(-1)
    upper = C.new_zeros(N, N)
    upper[rows, columns] = found[1 + N :]
    return Quadratic(found[0], found[1 : 1 + N], upper + upper.mT)


def quadratic_gp(C: Tensor, metric: Tensor, *, residual: bool = True, noise: float | None = None) -> ExactGP:
    """A GP whose mean is a random quadratic, with a smooth residual around it; `inference.fit` fits it.

    Args:
        C: coefficients, ``(n, N)``, of about unit size.
        metric: values, ``(n,)``, standardised.
        residual: whether there is more than the quadratic.
        noise: noise variance, learned if None.

    Raises:
        ShapeError, DtypeError, NonFiniteError: if the two don't fit each other.

    Example:
        >>> C = torch.rand(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> gp = quadratic_gp(C, C.square().sum(-1), noise=1e-6)
        >>> bool((gp.posterior(C[:1]).mean.squeeze() - C[0].square().sum()).abs() < 0.01)
        True
    """
    _expect_points(C, metric)
    kernel: Kernel = ScaleKernel(PolynomialKernel(power=2, offset=1.0))
    kernel.base_kernel.raw_offset.requires_grad_(False)
    if residual:
        smooth = ScaleKernel(RBFKernel())
        smooth.outputscale = 0.1  # small beside a standardised metric: the quadratic comes first
        kernel = kernel + smooth
    return ExactGP(C, metric, kernel=kernel, mean=ZeroMean(), noise=noise)


def _expect_points(C: Tensor, metric: Tensor) -> None:
    expect_shape("C", C, ndim=2, last=(-1, -1))
    expect_floating("C", C)
    expect_floating("metric", metric, like=C)
    if metric.shape != C.shape[:1]:
        raise ShapeError(f"`metric` must have one value for each of {len(C)} rows of `C`; got {tuple(metric.shape)}.")
    expect_finite("C", C)
    expect_finite("metric", metric)
