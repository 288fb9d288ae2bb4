"""What a Gaussian process knows of all channels at each time of a grid, and paths drawn from it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpmoe.errors import InputError, ShapeError
from gpmoe.linalg.series_batch import SeriesBatch


@dataclass(frozen=True)
class ChannelPosterior:
    """Posterior of the latent channels at the grid times of many series.

    Attributes:
        mean: ``(T, M)``, in units of the values.
        variance: of each channel, without noise, ``(T, M)``.
        covariance: over channels at each time, ``(T, M, M)``; None unless asked for.
        log_marginal_likelihood: of all rows of each series, ``(B,)``, nats.
    """

    mean: Tensor
    variance: Tensor
    covariance: Tensor | None
    log_marginal_likelihood: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """Draws by the reparametrisation trick, mean + L ξ with LL' the covariance over channels at each time.

        At each time the draws have the posterior's exact law over channels, given what that time knows; gradients pass
        to mean and covariance. How draws hang together in time is the noise's choice: see `smooth_noise`.

        Args:
            noise: standard normal ξ, ``(draws, T, M)``.

        Returns:
            ``(draws, T, M)``.

        Raises:
            InputError: if the covariance was not asked for.
            ShapeError: if the noise has another shape.
        """
        if self.covariance is None:
            raise InputError("draws need the covariance over channels; ask for it: `posterior(batch, joint=True)`.")
        if noise.dim() != 3 or noise.shape[1:] != self.mean.shape:
            raise ShapeError(
                f"`noise` must have shape (draws, {', '.join(map(str, self.mean.shape))}); got {tuple(noise.shape)}."
            )
        L = torch.linalg.cholesky(self.covariance)
        return self.mean + (L @ noise.unsqueeze(-1)).squeeze(-1)


def smooth_noise(
    batch: SeriesBatch, n_channels: int, *, n_draws: int, timescale: float, keys: Tensor, seed: int
) -> Tensor:
    """Standard normal noise on a grid whose correlation falls as exp(-|t - t'|/timescale): one path a draw.

    The noise of a grid time depends on those before it, never on those after it, and the noise of a series on its key
    and the seed alone: it is the same in any batch, and stays when the grid grows at its end.

    Args:
        batch: the series; grids in rising order.
        n_channels: M.
        n_draws: how many paths.
        timescale: of the correlation, in units of time; the model's own time scales are a good choice.
        keys: an integer of each series, ``(B,)``, not negative, its identifier for instance.
        seed: not negative.

    Returns:
        ``(n_draws, T, M)``.

    Raises:
        ShapeError: if `keys` are not B.
        InputError: if the time scale is not positive.
    """
    if keys.shape != (len(batch),):
        raise ShapeError(f"`keys` must have shape ({len(batch)},), one for each series; got {tuple(keys.shape)}.")
    if not timescale > 0:
        raise InputError(f"`timescale` must be positive; got {timescale}.")
    grid = batch.grid.detach().cpu().double().numpy()
    noise = np.empty((len(grid), n_draws, n_channels))
    offsets = batch.wanted.offsets
    for b, key in enumerate(keys.tolist()):
        rows = noise[offsets[b] : offsets[b + 1]]
        rows[:] = np.random.Generator(np.random.Philox(key=[seed, key])).standard_normal(rows.shape)
        kept = np.exp(-np.diff(grid[offsets[b] : offsets[b + 1]]) / timescale)
        for g, a in enumerate(kept, start=1):
            rows[g] = a * rows[g - 1] + np.sqrt(1 - a**2) * rows[g]
    return torch.from_numpy(noise).transpose(0, 1).to(batch.grid)
