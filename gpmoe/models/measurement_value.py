"""Which channel to measure next: what one more observation of it would take from the posterior's variance."""

import torch
from torch import Tensor

from gpmoe.errors import ShapeError


def variance_reduction(covariance: Tensor, noise: Tensor) -> Tensor:
    """How much one observation of channel c takes from the variance of channel m, at the same time.

    Var(f_m) - Var(f_m | y_c) = P_mc² / (P_cc + σ_c²), whatever the value turns out to be.

    Args:
        covariance: posterior covariance P over channels, ``(*batch, M, M)``.
        noise: noise variance of each channel, ``(M,)``.

    Returns:
        ``(*batch, M, M)``, entry [c, m] for an observation of channel c, in squared units of channel m.

    Raises:
        ShapeError: if the two don't fit.

    Source: Rasmussen and Williams (2006), eq. 2.26, for one more row.
    """
    M = covariance.shape[-1]
    if covariance.dim() < 2 or covariance.shape[-2] != M or noise.shape != (M,):
        raise ShapeError(
            f"`covariance` must have shape (*batch, M, M) and `noise` (M,); got {tuple(covariance.shape)} and "
            f"{tuple(noise.shape)}."
        )
    spread = covariance.diagonal(dim1=-2, dim2=-1) + noise
    return covariance.square() / spread.unsqueeze(-1)


def rank_measurements(covariance: Tensor, noise: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Channels from the most to the least worth measuring.

    The value of channel c is Σ_m w_m times what an observation of c takes from the variance of m.

    Args:
        covariance: posterior covariance over channels, ``(*batch, M, M)``.
        noise: noise variance of each channel, ``(M,)``.
        weights: what a unit of variance of each channel matters, ``(*batch, M)``, squared gradients of a risk for
            instance; one each if None.

    Returns:
        Channels ``(*batch, M)`` in falling order of value, and their values.

    Example:
        >>> import torch
        >>> covariance = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 0.5]])
        >>> channels, values = rank_measurements(covariance, torch.tensor([0.5, 0.1, 0.1]))
        >>> channels.tolist()
        [1, 0, 2]
    """
    reduction = variance_reduction(covariance, noise)
    total = reduction.sum(-1) if weights is None else (reduction @ weights.unsqueeze(-1)).squeeze(-1)
    values, channels = torch.sort(total, dim=-1, descending=True, stable=True)
    return channels, values
