"""Eigenvalues and eigenvectors of symmetric matrices, by the LAPACK that `lapack.provider` chose."""

import torch
from scipy.linalg import lapack as scipy_lapack
from torch import Tensor

from gpmoe.errors import NonFiniteError
from gpmoe.linalg import lapack
from gpmoe.linalg.threads import threads_for


def eigh(K: Tensor) -> tuple[Tensor, Tensor]:
    """K = Q diag(λ) Q', eigenvalues ascending.

    Args:
        K: symmetric, ``(*batch, n, n)``; only its lower triangle is read.

    Returns:
        λ ``(*batch, n)`` and Q ``(*batch, n, n)``, without gradients: Q's would divide by differences of eigenvalues.

    Raises:
        NonFiniteError: if K has NaN or infinity.

    Example:
        >>> import torch
        >>> eigh(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64))[0]
        tensor([1., 3.], dtype=torch.float64)
    """
    K = K.detach()
    if not bool(K.isfinite().all()):
        raise NonFiniteError(
            f"a covariance of shape {tuple(K.shape)} has NaN or infinite entries. Usual causes: non-finite inputs; "
            "a hyperparameter that left its range (bound it, or give it a prior)."
        )
    if K.dim() == 2 and K.device.type == "cpu" and lapack.provider() == "scipy":
        syevd = scipy_lapack.dsyevd if K.dtype == torch.float64 else scipy_lapack.ssyevd
        with threads_for(len(K)):
            values, vectors, info = syevd(K.contiguous().numpy().T, lower=0)
        if info == 0:
            return torch.from_numpy(values), torch.from_numpy(vectors)
    found = torch.linalg.eigh(K)
    return found.eigenvalues, found.eigenvectors
