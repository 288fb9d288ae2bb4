"""Which GPyTorch kernels the fused passes can compute, and how they are packed for them.

`product_terms` writes a kernel as a sum of scaled products of functions of squared distance. Known are RBF, Matérn,
rational quadratic, periodic and spectral mixture kernels with ARD and active dimensions, under any nesting of
ScaleKernel, sums and products, and every `StationaryKernel`. Subclasses are not taken for their parents, since they
may change `forward`. `stationary_terms` gives those that the pass of `fused` knows.

Angles go onto a circle: with u(x) = (cos, sin)(2πx/p), |u(x) - u(x')|² = 4 sin²(π(x - x')/p), so the periodic kernel
exp(-2 sin²(π(x - x')/p)/λ) is the RBF kernel of u/√λ, and the cosine of a spectral mixture is 1 - |u(x) - u(x')|²/2,
the family `COSINE`. Turns are counted, and whole ones taken off, in float64 whatever the inputs are.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from gpytorch.kernels import (
    AdditiveKernel,
    Kernel,
    MaternKernel,
    PeriodicKernel,
    ProductKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
    SpectralMixtureKernel,
)
from torch import Tensor

from gpmoe.linalg import fused
from gpmoe.linalg.compiler import AVAILABLE

MATERN_FAMILY = {0.5: fused.MATERN12, 1.5: fused.MATERN32, 2.5: fused.MATERN52}
COSINE = 5  # k = 1 - r2/2: of points on the unit circle, the cosine of their angle; unknown to `fused`
_MOST_TERMS = 64  # of a spectral mixture that is multiplied out


@dataclass(frozen=True)
class Leaf:
    """A function of squared distance between scaled inputs; `Z2` is None for a covariance with itself."""

    family: int
    Z1: Tensor
    Z2: Tensor | None
    shape: Tensor | None = None


@dataclass(frozen=True)
class Term:
    """A product of leaves times a scale (a 0-dimensional tensor, or None for one)."""

    scale: Tensor | None
    leaves: tuple[Leaf, ...]


class StationaryKernel(Kernel):
    """A kernel that writes itself as stationary terms, and so takes the fused pass."""

    @abstractmethod
    def stationary_terms(self, X1: Tensor, X2: Tensor | None) -> list[Term] | None:
        """Terms of the covariance of `X1` ``(n, d)`` with `X2` ``(m, d)`` or itself; None if it can't."""


def stationary_terms(kernel: Kernel, X1: Tensor, X2: Tensor | None = None) -> list[Term] | None:
    """Write a kernel as a sum of scaled products of leaves that the pass of `fused` computes.

    Args:
        kernel: any GPyTorch kernel.
        X1: ``(n, d)``.
        X2: ``(m, d)``, or None for the covariance of X1 with itself.

    Returns:
        Terms whose tensors carry gradients to the kernel's parameters and inputs; None for a kernel, device or
        dtype that the fused pass does not know, and where Numba, which compiles it, is not installed.
    """
    inputs = [X1] if X2 is None else [X1, X2]
    if not AVAILABLE or any(X.dim() != 2 or X.dtype != torch.float64 or X.device.type != "cpu" for X in inputs):
        return None
    terms = product_terms(kernel, X1, X2)
    return None if terms is None or any(leaf.family == COSINE for term in terms for leaf in term.leaves) else terms


def product_terms(kernel: Kernel, X1: Tensor, X2: Tensor | None = None) -> list[Term] | None:
    """Write a kernel as a sum of scaled products of leaves, on any device and in any dtype.

    Args:
        kernel: any GPyTorch kernel.
        X1: ``(n, d)``.
        X2: ``(m, d)``, or None for the covariance of X1 with itself.

    Returns:
        Terms whose tensors carry gradients to the kernel's parameters and inputs; None for a kernel that can't be
        written so, and for one with batch dimensions.
    """
    return selected_terms(kernel, X1, X2)


def selected_terms(kernel: Kernel, X1: Tensor, X2: Tensor | None) -> list[Term] | None:
    """`stationary_terms` of any dtype and device, whether or not a compiled pass is at hand."""
    if kernel.active_dims is not None:
        X1 = X1.index_select(-1, kernel.active_dims)
        X2 = None if X2 is None else X2.index_select(-1, kernel.active_dims)
    return _terms(kernel, X1, X2)


def _terms(kernel: Kernel, X1: Tensor, X2: Tensor | None) -> list[Term] | None:
    if isinstance(kernel, StationaryKernel):
        return kernel.stationary_terms(X1, X2)
    kind = type(kernel)
    if kind is ScaleKernel:
        if kernel.raw_outputscale.dim():  # batch
            return None
        inner = _terms(kernel.base_kernel, X1, X2)  # ScaleKernel has selected its base's active dimensions already
        return None if inner is None else [_scaled(term, kernel.outputscale) for term in inner]
    if kind is AdditiveKernel or kind is ProductKernel:
        parts = [selected_terms(part, X1, X2) for part in kernel.kernels]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        if kind is AdditiveKernel:
            return [term for part in known for term in part]
        return [_product(terms) for terms in product(*known)]
    if kind is SpectralMixtureKernel:
        return None if kernel.raw_mixture_weights.dim() > 1 else _spectral_terms(kernel, X1, X2)
    leaf = _leaf(kernel, X1, X2)
    return None if leaf is None else [Term(None, (leaf,))]


def _spectral_terms(kernel: SpectralMixtureKernel, X1: Tensor, X2: Tensor | None) -> list[Term] | None:
    """The product over inputs of sums over components of a Gaussian times a cosine, multiplied out; None if long.

    GPyTorch takes the product over inputs of one-dimensional mixtures; Wilson and Adams (2013), eq. 12, for one input.
    """
    frequencies, spreads = kernel.mixture_means.squeeze(-2), kernel.mixture_scales.squeeze(-2)  # (q, d) each
    components, d = spreads.shape
    if components**d > _MOST_TERMS:
        return None
    x1, x2 = _centred(X1, X2)
    terms = []
    for chosen in product(range(components), repeat=d):
        spread = torch.stack([spreads[q, i] for i, q in enumerate(chosen)])
        frequency = torch.stack([frequencies[q, i] for i, q in enumerate(chosen)])
        Z = [None if x is None else (x * (2 * math.pi * spread)).to(X1) for x in (x1, x2)]
        U = [None if x is None else _on_circle(x * frequency).to(X1) for x in (x1, x2)]
        assert Z[0] is not None
        assert U[0] is not None
        circles = [Leaf(COSINE, U[0][:, i], None if U[1] is None else U[1][:, i]) for i in range(d)]
        terms.append(Term(kernel.mixture_weights[list(chosen)].prod(), (Leaf(fused.RBF, Z[0], Z[1]), *circles)))
    return terms


def _scaled(term: Term, scale: Tensor) -> Term:
    return Term(scale if term.scale is None else term.scale * scale, term.leaves)


def _product(terms: tuple[Term, ...]) -> Term:
    """Multiply terms; RBF leaves merge into one, since exponents add."""
    result = Term(None, tuple(leaf for term in terms for leaf in term.leaves if leaf.family != fused.RBF))
    for term in terms:
        result = result if term.scale is None else _scaled(result, term.scale)
    smooth = [leaf for term in terms for leaf in term.leaves if leaf.family == fused.RBF]
    if smooth:
        Z2 = [leaf.Z2 for leaf in smooth if leaf.Z2 is not None]
        merged = Leaf(fused.RBF, torch.cat([leaf.Z1 for leaf in smooth], -1), torch.cat(Z2, -1) if Z2 else None)
        result = Term(result.scale, (merged, *result.leaves))
    return result


def _leaf(kernel: Kernel, X1: Tensor, X2: Tensor | None) -> Leaf | None:
    kind = type(kernel)
    if kind not in (RBFKernel, MaternKernel, RQKernel, PeriodicKernel) or kernel.raw_lengthscale.dim() > 2:  # batch
        return None
    x1, x2 = _centred(X1, X2)
    if kind is PeriodicKernel:
        radius = kernel.lengthscale.rsqrt().unsqueeze(-1)
        Z1, Z2 = (
            None if x is None else (_on_circle(x / kernel.period_length) * radius).flatten(-2).to(X1) for x in (x1, x2)
        )
        assert Z1 is not None
        return Leaf(fused.RBF, Z1, Z2)
    Z1 = (x1 / kernel.lengthscale).to(X1)
    Z2 = None if x2 is None else (x2 / kernel.lengthscale).to(X1)
    if kind is MaternKernel:
        return Leaf(MATERN_FAMILY[kernel.nu], Z1, Z2) if kernel.nu in MATERN_FAMILY else None
    if kind is RQKernel:
        return Leaf(fused.RATIONAL_QUADRATIC, Z1, Z2, kernel.alpha.reshape(()))
    return Leaf(fused.RBF, Z1, Z2)


def _centred(X1: Tensor, X2: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Inputs in float64 less the mean of the first, which keeps lengthscales' gradients free of cancellation."""
    x1 = X1.double()
    center = x1.detach().mean(0)
    return x1 - center, None if X2 is None else X2.double() - center


def _on_circle(turns: Tensor) -> Tensor:
    """(cos, sin) of an angle counted in turns, ``(*, 2)``."""
    angle = (turns - turns.detach().round()) * (2 * math.pi)
    return torch.stack([angle.cos(), angle.sin()], -1)


@dataclass(frozen=True)
class Packed:
    """Terms as the tensors and index arrays of the fused pass.

    Attributes:
        Z1: ``(D, n)``, all leaves' scaled inputs, transposed and one under another.
        Z2: ``(D, m)`` or None.
        shape: ``(leaves,)``.
        scale: ``(terms,)``.
        rows, family, leaves: see the table in `fused`.
    """

    Z1: Tensor
    Z2: Tensor | None
    shape: Tensor
    scale: Tensor
    rows: np.ndarray
    family: np.ndarray
    leaves: np.ndarray

    def arrays(self) -> fused.Packed:
        """The kernel's part, as NumPy arrays."""
        return (
            self.rows,
            self.family,
            self.shape.detach().numpy(),
            self.leaves,
            self.scale.detach().numpy(),
        )


def pack(terms: list[Term]) -> Packed:
    """Lay terms out for the fused pass; the tensors keep their gradients."""
    leaves = [leaf for term in terms for leaf in term.leaves]
    one = leaves[0].Z1.new_ones(())
    second = [leaf.Z2.mT for leaf in leaves if leaf.Z2 is not None]
    return Packed(
        Z1=torch.cat([leaf.Z1.mT for leaf in leaves]).contiguous(),
        Z2=torch.cat(second).contiguous() if second else None,
        shape=torch.stack([one if leaf.shape is None else leaf.shape for leaf in leaves]),
        scale=torch.stack([one if term.scale is None else term.scale.reshape(()) for term in terms]),
        rows=np.cumsum([0, *(leaf.Z1.shape[-1] for leaf in leaves)]),
        family=np.array([leaf.family for leaf in leaves]),
        leaves=np.cumsum([0, *(len(term.leaves) for term in terms)]),
    )


def fill_covariance(kernel: Kernel, X1: Tensor, X2: Tensor | None, out: Tensor) -> None:
    """Write a covariance into a matrix, without gradients: fused where the kernel is known, else in row blocks.

    Args:
        kernel: any GPyTorch kernel without batch dimensions.
        X1: ``(n, d)``.
        X2: ``(m, d)``; None for the covariance of X1 with itself, of which only the lower triangle is written.
        out: ``(n, m)``, contiguous.
    """
    with torch.no_grad():
        terms = stationary_terms(kernel, X1, X2)
        if terms is not None:
            packed = pack(terms)
            Z2 = None if packed.Z2 is None else packed.Z2.numpy()
            fused.assemble(packed.Z1.numpy(), Z2, packed.arrays(), out.numpy())
            return
        for rows, columns, on_diagonal in row_blocks(*out.shape, symmetric=X2 is None, cuda=X1.is_cuda):
            other = X1 if X2 is None else X2
            x = X1[rows]
            out[rows, columns] = dense_covariance(kernel, x, x if on_diagonal else other[columns])


def row_blocks(n: int, m: int, *, symmetric: bool, cuda: bool = False) -> list[tuple[slice, slice, bool]]:
    """Blocks of rows that keep a kernel's temporaries in cache, as (rows, columns, lies on the diagonal).

    With `symmetric` they cover the lower triangle: for each block of rows a square one on the diagonal, where the
    kernel sees equal inputs and gets exact zeros for distances, and the rectangle left of it.
    """
    size = max(32, (2**24 if cuda else 2**18) // m)
    starts = [(start, min(start + size, n)) for start in range(0, n, size)]
    if not symmetric:
        return [(slice(start, stop), slice(0, m), False) for start, stop in starts]
    square = [(slice(start, stop), slice(start, stop), True) for start, stop in starts]
    left = [(slice(start, stop), slice(0, start), False) for start, stop in starts if start]
    return square + left


def dense_covariance(kernel: Kernel, x1: Tensor, x2: Tensor) -> Tensor:
    """k(x1, x2) as a matrix, sums and scalings by their parts, differentiable.

    linear_operator factorises A when it adds a low-rank operator to it, so that ``RBFKernel() + LinearKernel()``
    would cost a Cholesky and a singular value decomposition, and a jitter warning for repeated rows.
    """
    kind = type(kernel)
    if kind is ScaleKernel and type(kernel.base_kernel) is AdditiveKernel:
        inner = dense_covariance(kernel.base_kernel, x1, x2)
        return kernel.outputscale[..., None, None] * inner
    if kind is AdditiveKernel:
        parts = [dense_covariance(part, x1, x2) for part in kernel.kernels]
        return sum(parts[1:], parts[0])
    dense: Tensor = kernel(x1, x2).to_dense()
    return dense
