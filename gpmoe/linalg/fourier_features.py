"""Sample functions of a stationary prior by random Fourier features, fixed while hyperparameters move.

| symbol | name in code | shape |
|---|---|---|
| leaf l's scaled inputs | `Z` | (n, D_l) |
| frequencies ω of leaf l | `normal`, times a radius of `uniform` | (paths, D_l, features) |
| a, b | `weights` | (paths, 2 features) |

    f(x) = sum over terms t of (s_t / features)^½ sum_j a_j cos φ_j(x) + b_j sin φ_j(x),  φ_j(x) = sum_l ω_lj · z_l(x)

Frequencies of a product of kernels are sums of theirs. Each path has frequencies of its own, so that E f(x) f(x') is
k(x, x') exactly, with any number of features; with many of them a path is close to Gaussian.
Radii: 1 for RBF; (χ²/2ν)^-½ with 2ν degrees of freedom for Matérn-ν; the square root of a Gamma(α, α) for the rational
quadratic. The same random numbers serve all hyperparameters, so that paths move smoothly with them.

Source: Rahimi and Recht (2007); Wilson et al. (2020), "Efficiently sampling functions from GP posteriors", sec. 3.
"""

from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.kernels import Kernel
from scipy.special import gammaincinv
from torch import Tensor

from gpmoe.errors import UnsupportedKernelError
from gpmoe.linalg import fused
from gpmoe.linalg.stationary import Leaf, Term, stationary_terms

_SMOOTHNESS = {fused.MATERN12: 0.5, fused.MATERN32: 1.5, fused.MATERN52: 2.5}
_BLOCK = 2**18  # entries of a block of phases


@dataclass(frozen=True)
class PriorPaths:
    """Functions drawn from the prior of a kernel.

    Attributes:
        kernel: whose present parameters are used.
        anchor: a point where all phases are zero, ``(1, d)``.
        normal, uniform: for each term and leaf, ``(paths, D, features)`` and ``(paths, features)``.
        weights: for each term, ``(paths, 2, features)``.

    Example:
        >>> import torch
        >>> from gpytorch.kernels import RBFKernel
        >>> X = torch.linspace(0, 1, 5, dtype=torch.float64).unsqueeze(-1)
        >>> draw_prior_paths(RBFKernel().double(), X, paths=3).values(X).shape
        torch.Size([5, 3])
    """

    kernel: Kernel
    anchor: Tensor
    normal: tuple[tuple[Tensor, ...], ...]
    uniform: tuple[tuple[Tensor, ...], ...]
    weights: tuple[Tensor, ...]

    def values(self, X: Tensor) -> Tensor:
        """The functions at X ``(n, d)``, ``(n, paths)``, without gradients."""
        with torch.no_grad():
            paths, _, features = self.weights[0].shape
            out = X.new_zeros(len(X), paths)
            rows = max(1, _BLOCK // features)
            for start in range(0, len(X), rows):
                terms = _known_terms(self.kernel, self.anchor, X[start : start + rows])
                for term, normal, uniform, weights in zip(terms, self.normal, self.uniform, self.weights, strict=True):
                    out[start : start + rows] += _term_values(term, normal, uniform, weights)
        return out


def draw_prior_paths(
    kernel: Kernel, X: Tensor, *, paths: int, features: int = 1024, generator: torch.Generator | None = None
) -> PriorPaths:
    """Draw functions from a prior.

    Args:
        kernel: sums and products of scaled stationary kernels, see `stationary_terms`.
        X: inputs ``(n, d)`` of the dtype and device to come, at least one.
        paths: how many functions.
        features: pairs of cosine and sine for each.
        generator: for everything random.

    Raises:
        UnsupportedKernelError: for any other kernel.
    """
    anchor = X[:1].detach()
    like: dict[str, Any] = {"dtype": X.dtype, "device": X.device, "generator": generator}
    terms = _known_terms(kernel, anchor, anchor)
    return PriorPaths(
        kernel=kernel,
        anchor=anchor,
        normal=tuple(tuple(torch.randn(paths, leaf.Z1.shape[1], features, **like) for leaf in t.leaves) for t in terms),
        uniform=tuple(tuple(torch.rand(paths, features, **like) for _ in term.leaves) for term in terms),
        weights=tuple(torch.randn(paths, 2, features, **like) for _ in terms),
    )


def _known_terms(kernel: Kernel, X1: Tensor, X2: Tensor) -> list[Term]:
    terms = stationary_terms(kernel, X1, X2)
    known = {fused.RBF, fused.RATIONAL_QUADRATIC, *_SMOOTHNESS}
    if terms is None or any(leaf.family not in known for term in terms for leaf in term.leaves):
        raise UnsupportedKernelError(
            f"no prior sample functions of {type(kernel).__name__}: they are drawn for RBF, Matérn, rational quadratic "
            "and periodic kernels, their scalings, sums and products, in float64 on the CPU. Use one of those, or "
            "Cholesky() as the solver, which needs none."
        )
    return terms


def _term_values(term: Term, normal: tuple[Tensor, ...], uniform: tuple[Tensor, ...], weights: Tensor) -> Tensor:
    """One term of every path at the term's second inputs, ``(n, paths)``."""
    radii = [_radius(leaf, u) for leaf, u in zip(term.leaves, uniform, strict=True)]
    columns = []
    for path in range(len(weights)):
        phase: Tensor | None = None
        for leaf, g, radius in zip(term.leaves, normal, radii, strict=True):
            assert leaf.Z2 is not None
            piece = leaf.Z2 @ (g[path] * radius[path])
            phase = piece if phase is None else phase + piece
        assert phase is not None
        columns.append(phase.cos() @ weights[path, 0] + phase.sin() @ weights[path, 1])
    amplitude = 1.0 if term.scale is None else term.scale.sqrt()
    return torch.stack(columns, -1) * (amplitude / weights.shape[-1] ** 0.5)


def _radius(leaf: Leaf, uniform: Tensor) -> Tensor:
    """What normal frequencies of a leaf are multiplied by, ``(paths, features)``."""
    if leaf.family == fused.RBF:
        return torch.ones_like(uniform)
    if leaf.family == fused.RATIONAL_QUADRATIC:
        assert leaf.shape is not None
        return _gamma(float(leaf.shape), uniform).sqrt()
    return _gamma(_SMOOTHNESS[leaf.family], uniform).rsqrt()


def _gamma(shape: float, uniform: Tensor) -> Tensor:
    """Gamma variables of mean one by inversion."""
    quantiles = torch.from_numpy(gammaincinv(shape, uniform.cpu().numpy())).to(uniform)
    return (quantiles / shape).clamp_min(torch.finfo(uniform.dtype).tiny)
