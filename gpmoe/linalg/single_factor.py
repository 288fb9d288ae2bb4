"""The whole covariance, factorised in float32, as a preconditioner: iterative refinement where there is room for it.

| symbol | name in code | shape |
|---|---|---|
| P = C + δI = L L', in float32 | `L` | (n, n) |
| δ, above the rounding error of the factor | `shift` | |

One application removes all but δ / (noise + δ) and float32's rounding of an error, so that a few iterations reach
float64. With δ at least as large as the rounding error of L L', C ⪯ P ⪯ (1 + 2δ/noise) C: what the solver computes
anyway bounds its error up to that factor, the `slack`.

Source: Higham (2002), Accuracy and Stability of Numerical Algorithms, thm. 10.3 (the rounding error of a Cholesky
factor) and ch. 12 (refinement).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpmoe.errors import NotPositiveDefiniteError
from gpmoe.linalg import lapack
from gpmoe.linalg.operator import SymmetricOperator

_ROWS = 512  # of K that are computed at once
_SHIFTS = 4  # that are tried, each ten times the one before


@dataclass(frozen=True)
class SingleFactor:
    """L L' = C + δI in float32; see `preconditioners.Preconditioner` for what it is used as.

    Attributes:
        L: lower triangle, ``(n, n)``, float32; what lies above it is not defined.
        shift: δ.
        slack: v'C⁻¹v ≤ slack · v'P⁻¹v.

    Example:
        >>> import torch
        >>> from gpmoe.linalg.operator import DenseOperator
        >>> P = factorise_in_single(DenseOperator(torch.ones(3, 3).double(), torch.ones(3).double()))
        >>> P.solve(torch.ones(3, 1).double()).squeeze().round(decimals=3).tolist()
        [0.25, 0.25, 0.25]
    """

    L: Tensor
    shift: float
    slack: float

    @property
    def description(self) -> str:
        """For reports."""
        return f"a factor in float32 of all {len(self.L)} rows, shifted by {self.shift:.1e}"

    def solve(self, V: Tensor) -> Tensor:
        """P⁻¹ V in the precision of V, ``(n, c)``, to the accuracy of float32."""
        size = V.abs().amax(0).clamp_min(torch.finfo(torch.float32).tiny)
        W = lapack.solve_triangular(self.L, (V / size).float(), overwrite=True)
        W = lapack.solve_triangular(self.L, W, transpose=True, overwrite=True)
        return W.to(V.dtype) * size

    def log_determinant(self) -> float:
        """log|P|."""
        return float(2 * lapack.diagonal(self.L).double().log().sum())

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Columns drawn from N(0, P), ``(n, count)``, float64."""
        g = torch.randn(len(self.L), count, generator=generator, device=self.L.device)
        blocks = [self._lower_rows(start, g) for start in range(0, len(g), _ROWS)]
        return torch.cat(blocks).double()

    def _lower_rows(self, start: int, g: Tensor) -> Tensor:
        """Rows of L g from `start` on."""
        rows = self.L[start : start + _ROWS]
        corner = rows[:, start : start + _ROWS].tril()
        return rows[:, :start] @ g[:start] + corner @ g[start : start + _ROWS]


def factorise_in_single(operator: SymmetricOperator) -> SingleFactor:
    """Factorise an operator in float32, at 4 n² bytes.

    Args:
        operator: with a positive noise variance at every point.

    Raises:
        NotPositiveDefiniteError: if the covariance is not positive definite to the precision of float32.
    """
    n = len(operator.noise)
    C = torch.empty(n, n, dtype=torch.float32, device=operator.noise.device)
    scale = float(operator.diagonal().mean() + operator.noise.mean()) if n else 0.0
    shift = 0.25 * torch.finfo(torch.float32).eps * n * scale
    for _ in range(_SHIFTS):
        for start in range(0, n, _ROWS):
            index = torch.arange(start, min(start + _ROWS, n), device=C.device)
            C[index] = operator.rows(index).float()
        lapack.diagonal(C).add_((operator.noise + shift).float())
        if lapack.cholesky_(C) == 0:
            return SingleFactor(C, shift, 1 + 2 * shift / float(operator.noise.min()))
        shift *= 10
    raise NotPositiveDefiniteError(
        f"covariance of shape {(n, n)} is not positive definite in float32 with {shift / 10:.1e} added to its "
        "diagonal; raise the lower bound of the noise variance, or give `preconditioner_rank`."
    )
