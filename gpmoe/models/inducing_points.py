"""Where to put inducing points.

| symbol | name in code | shape |
|---|---|---|
| conditional variance of f(x_i) given f at the points chosen so far | `variance` | (n,) |
| rows of the pivoted Cholesky factor of K(X, X) | `R` | (p, n) |
"""

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.errors import InputError, ShapeError
from gpmoe.linalg.cross_covariance import cross_covariance
from gpmoe.shapes import expect_finite, expect_floating, expect_shape


def greedy_inducing_points(kernel: Kernel, X: Tensor, p: int) -> Tensor:
    """Rows of X, each where the function is least known given its values at the rows before: pivoted Cholesky.

    Deterministic; the first is the first row of largest prior variance. O(n p²) time and p x n memory.

    Args:
        kernel: any GPyTorch kernel without batch dimensions.
        X: ``(n, d)``.
        p: how many.

    Returns:
        ``(p, d)``, or fewer rows where those determine the function at all others (repeated rows, kernels of low rank).

    Raises:
        InputError: if p is not positive.

    Source: Burt, Rasmussen and van der Wilk (2020), Convergence of Sparse Variational Inference in Gaussian Processes
        Regression, sec. 4.2 and alg. 1; Fine and Scheinberg (2001) for the factorisation.
    """
    _check(X, p)
    with torch.no_grad():
        variance = kernel(X, diag=True).clone()
        exhausted = 10 * torch.finfo(X.dtype).eps * float(variance.max())
        R = X.new_empty(min(p, len(X)), len(X))
        chosen: list[int] = []
        for j in range(len(R)):
            pivot = int(variance.argmax())
            height = float(variance[pivot])
            if height <= exhausted:
                break
            row = cross_covariance(kernel, X[pivot : pivot + 1], X)[0]
            R[j] = (row - R[:j, pivot] @ R[:j]) / height**0.5
            variance -= R[j].square()
            variance[pivot] = 0.0
            chosen.append(pivot)
    return X[chosen].clone()


def kmeans_inducing_points(X: Tensor, p: int, seed: int) -> Tensor:
    """Centres of k-means clusters of X.

    Args:
        X: ``(n, d)``.
        p: how many.
        seed: fixes the start.

    Returns:
        ``(p, d)``, or fewer where X has fewer distinct rows.

    Raises:
        InputError: if p is not positive.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    _check(X, p)
    values = X.detach().cpu().numpy()
    distinct = len(torch.unique(X.detach(), dim=0))
    with threadpool_limits(1):  # with several threads sums depend on which is first
        centers = KMeans(min(p, distinct), n_init=1, random_state=seed).fit(values).cluster_centers_
    return torch.from_numpy(centers).to(X)


def _check(X: Tensor, p: int) -> None:
    expect_floating("X", X)
    expect_shape("X", X, ndim=2, last=(-1, -1))
    expect_finite("X", X)
    if len(X) == 0:
        raise ShapeError(f"`X` must have at least one row; got {tuple(X.shape)}.")
    if p < 1:
        raise InputError(f"`p`, the number of inducing points, must be positive; got {p}.")
