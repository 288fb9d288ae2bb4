"""What an iterative solve gives back: the solution and how far it is from it."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from gpmoe.errors import NotConvergedWarning, ShapeError
from gpmoe.linalg.operator import SymmetricOperator
from gpmoe.shapes import expect_finite, expect_floating


@dataclass(frozen=True)
class Solution:
    """X ≈ C⁻¹ B, and how far it is from it.

    Attributes:
        X: ``(n, c)``.
        remainder: B - C X, computed in the operator's own precision after the last step, ``(n, c)``.
        residuals: norm of each remainder over that of its right-hand side, ``(c,)``; 0 for a zero right-hand side.
        iterations: steps taken: products for conjugate gradients, passes over the rows for the others.
        converged: whether every residual met its tolerance.
        seconds: wall time.
    """

    X: Tensor
    remainder: Tensor
    residuals: Tensor
    iterations: int
    converged: bool
    seconds: float

    @property
    def residual(self) -> float:
        """The largest true relative residual; 0 if there are no columns."""
        return float(self.residuals.max()) if self.residuals.numel() else 0.0

    def warn_unless_converged(self, what: str, *, stacklevel: int) -> None:
        """Give one warning with the residual reached, if the solve did not converge."""
        if not self.converged:
            text = (
                f"{what}: the solve stopped after {self.iterations} iterations at a true relative residual of "
                f"{self.residual:.1e}. Remedies: more iterations; a larger preconditioner; a larger noise variance."
            )
            warnings.warn(text, NotConvergedWarning, stacklevel=stacklevel + 1)


def expect_right_hand_sides(B: Tensor, operator: SymmetricOperator) -> None:
    """Check right-hand sides against an operator.

    Raises:
        ShapeError, DtypeError, NonFiniteError: naming what came and what was wanted.
    """
    n = len(operator.noise)
    if B.dim() != 2 or len(B) != n:
        raise ShapeError(f"`B` must have shape (n, c) with n={n}; got {tuple(B.shape)}.")
    expect_floating("B", B, like=operator.noise)
    expect_finite("B", B)


def relative(R: Tensor, norms: Tensor) -> Tensor:
    """Norms of the columns of R over those of their right-hand sides, 0 where those are 0."""
    size = torch.linalg.vector_norm(R, dim=0)
    return torch.where(norms > 0, size / norms.clamp_min(torch.finfo(R.dtype).tiny), size)
