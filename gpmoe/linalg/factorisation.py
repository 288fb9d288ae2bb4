"""Cholesky factorisation with a jitter ladder that is reported, and the memory it works in."""

from collections.abc import Callable

import torch
from torch import Tensor

from gpmoe.errors import NonFiniteError, NotPositiveDefiniteError
from gpmoe.linalg import lapack

_LADDER = {torch.float64: (0.0, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6), torch.float32: (0.0, 1e-6, 1e-5, 1e-4, 1e-3)}


class Workspace:
    """One square matrix that is reused from call to call, and the jitter that the last factorisation needed.

    First touch of fresh memory is slow: an optimiser that evaluates a likelihood many times holds one of these.
    """

    def __init__(self) -> None:
        self.jitter = 0.0
        self._matrix: Tensor | None = None

    def matrix(self, n: int, like: Tensor) -> Tensor:
        """An uninitialised ``(n, n)`` matrix of the dtype and device of `like`, in the same memory if it fits."""
        old = self._matrix
        if old is None or old.shape[0] != n or (old.dtype, old.device) != (like.dtype, like.device):
            self._matrix = None
            self._matrix = torch.empty(n, n, dtype=like.dtype, device=like.device)
        assert self._matrix is not None
        return self._matrix

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles start without memory of their own."""
        return {"jitter": self.jitter, "_matrix": None}


def cholesky_with_jitter_(fill: Callable[[Tensor], None], C: Tensor) -> float:
    """Factorise a covariance in place, adding as little to its diagonal as makes it positive definite.

    Args:
        fill: writes the covariance's lower triangle; called again before each attempt.
        C: ``(*batch, n, n)``, overwritten by the lower Cholesky factor.

    Returns:
        What was added to the diagonal, 0 if nothing.

    Raises:
        NotPositiveDefiniteError: if the last step of the ladder, 1e-6 of the mean diagonal in float64 and 1e-3 in
            float32, does not suffice.
        NonFiniteError: if the covariance has NaN or infinity.
    """
    jitter = 0.0
    for relative in _LADDER[C.dtype]:
        fill(C)
        diagonal = lapack.diagonal(C)
        if relative:
            jitter = relative * float(diagonal.mean())
            diagonal.add_(jitter)
        if lapack.cholesky_(C) == 0 and bool(diagonal.sum().isfinite()):
            return jitter
    fill(C)
    if not bool(C.tril().isfinite().all()):
        raise NonFiniteError(
            f"covariance of shape {tuple(C.shape)} has NaN or infinite entries. Usual causes: non-finite inputs; "
            "a hyperparameter that left its range (bound it, or give it a prior)."
        )
    raise not_positive_definite(C, jitter)


def not_positive_definite(C: Tensor, jitter: float) -> NotPositiveDefiniteError:
    """The error for a covariance that has no factor at a jitter."""
    return NotPositiveDefiniteError(
        f"covariance of shape {tuple(C.shape)}, {C.dtype}, is not positive definite at jitter {jitter:.1e}.\n"
        "Usual causes, most likely first: repeated or near-repeated rows of X (merge them); "
        "float32 (use float64); a noise variance near zero (raise its lower bound)."
    )
