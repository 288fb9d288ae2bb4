"""The multi-task GP adapter: ragged series in, exact causal posteriors on a grid out, with gradients.

    y_j = f_c(j)(t_j) + ε_j,   cov(f_c(t), f_c'(t')) = Σ_q B_q[c, c'] k_q(|t - t'|),   B_q = W_q W_q' + diag(v_q)

| symbol | name in code | shape |
|---|---|---|
| time scales of k_q | `timescales` | (Q,) |
| B_q | `coregionalisation` | (Q, M, M) |
| W_q, v_q | `mixing`, `own_variance` | (Q, M, rank), (Q, M) |
| noise variance of each channel | `noise` | (M,) |

Source: Futoma, Hariharan and Heller (2017), sec. 2 (multi-task adapter); Hartikainen and Särkkä (2010) (Matérn
processes as state-space models); Li and Marlin (2016) (adapters).
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from gpmoe.errors import DtypeError, InputError
from gpmoe.linalg.compiler import AVAILABLE
from gpmoe.linalg.prefix_posterior import dense_moments
from gpmoe.linalg.series_batch import SeriesBatch
from gpmoe.linalg.state_space import ORDERS
from gpmoe.linalg.state_space_filter import CausalMoments, FilterProblem
from gpmoe.models.channel_posterior import ChannelPosterior

MaternFamily = Literal["matern12", "matern32", "matern52"]

_LEAST_NOISE = 1e-6  # a variance; values are taken to be of the order of one
_PRIOR_WIDTHS = {"log_timescales": 1.0, "log_own_variance": 1.5, "log_noise": 1.5}  # standard deviations


class MGPAdapter(nn.Module):
    """An exact multi-task GP over irregular series of M channels that share its parameters.

    The posterior at a grid time knows the rows up to that time, its own included, and nothing later. It is computed by
    a Kalman filter with a hand-written adjoint (CPU and Numba), or else from prefixes of one Cholesky factor a series;
    the two agree to rounding, and a series has the same numbers alone and in any batch. Both run in float64; float32
    tensors come back as float32. The prior mean is zero: scale values to mean 0 and variance about 1 by training data.

    Args:
        n_channels: M.
        timescales: where to start, one for each component, in units of the time.
        family: "matern12" (Ornstein-Uhlenbeck), "matern32" or "matern52", one for all components or one for each.
        rank: columns of W_q; 0 leaves channels independent.
        noise: noise variance to start from.
        seed: of the small random mixing to start from.

    Attributes:
        families: of each component.
        mixing: W, ``(Q, M, rank)``, a parameter.

    Raises:
        InputError: if an argument is out of range.

    Example:
        >>> import torch
        >>> adapter = MGPAdapter(2, timescales=[1.0, 10.0])
        >>> times = torch.tensor([0.0, 0.0, 2.0, 5.0], dtype=torch.float64)
        >>> values = torch.tensor([1.0, 0.5, -1.0, 0.3], dtype=torch.float64)
        >>> grid = torch.tensor([0.0, 1.0, 2.0, 4.0], dtype=torch.float64)
        >>> channels, ends = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 4])
        >>> batch = SeriesBatch(times, channels, values, ends, grid, ends)
        >>> posterior = adapter.posterior(batch)
        >>> posterior.mean.shape, posterior.log_marginal_likelihood.shape
        (torch.Size([4, 2]), torch.Size([1]))
        >>> (posterior.mean.sum() + posterior.log_marginal_likelihood.sum()).backward()
        >>> adapter.mixing.grad.shape
        torch.Size([2, 2, 1])
    """

    def __init__(
        self,
        n_channels: int,
        *,
        timescales: Sequence[float],
        family: MaternFamily | Sequence[MaternFamily] = "matern12",
        rank: int = 1,
        noise: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        families = (family,) * len(timescales) if isinstance(family, str) else tuple(family)
        _check(n_channels, timescales, families, rank, noise)
        self.n_channels, self.families = n_channels, families
        Q, generator = len(timescales), torch.Generator().manual_seed(seed)
        scale = torch.tensor(timescales, dtype=torch.float64).log()
        start = torch.randn(Q, n_channels, rank, generator=generator, dtype=torch.float64)
        self.log_timescales = nn.Parameter(scale)
        self.mixing = nn.Parameter(start * math.sqrt(0.1 / (Q * max(rank, 1))))
        self.log_own_variance = nn.Parameter(torch.full((Q, n_channels), math.log(0.9 / Q), dtype=torch.float64))
        self.log_noise = nn.Parameter(torch.full((n_channels,), math.log(noise), dtype=torch.float64))
        for name in _PRIOR_WIDTHS:
            self.register_buffer(f"prior_{name}", getattr(self, name).detach().clone())

    @property
    def timescales(self) -> Tensor:
        """Of each component, ``(Q,)``, in units of the time."""
        return self.log_timescales.exp()

    @property
    def own_variance(self) -> Tensor:
        """v, what a channel's component does not share with others, ``(Q, M)``."""
        return self.log_own_variance.exp()

    @property
    def noise(self) -> Tensor:
        """Noise variance of each channel, ``(M,)``; never below 1e-6."""
        return self.log_noise.exp() + _LEAST_NOISE

    @property
    def coregionalisation(self) -> Tensor:
        """B, ``(Q, M, M)``: variances of the components and covariances between their channels."""
        return self.mixing @ self.mixing.mT + torch.diag_embed(self.own_variance)

    @property
    def rates(self) -> Tensor:
        """λ = sqrt(2ν)/timescale of each component, ``(Q,)``."""
        roots = [math.sqrt(2 * ORDERS[family] - 1) for family in self.families]
        return self.log_timescales.new_tensor(roots) / self.timescales

    @property
    def orders(self) -> tuple[int, ...]:
        """ν + 1/2 of each component."""
        return tuple(ORDERS[family] for family in self.families)

    def forward(self, batch: SeriesBatch) -> ChannelPosterior:
        """`posterior`, so that the adapter can be a layer."""
        return self.posterior(batch)

    def posterior(self, batch: SeriesBatch, *, joint: bool = False) -> ChannelPosterior:
        """The causal posterior: at each grid time given the rows up to it.

        Args:
            batch: the series and their grids.
            joint: with the covariance over channels, which draws need.

        Returns:
            Moments that backpropagate (once) to the parameters and to the batch's values, and the log likelihood of
            all rows, which costs nothing more: weigh it into the loss to train by both.

        Raises:
            InputError, DtypeError: if the batch does not fit the adapter.
        """
        self._expect(batch)
        if not (AVAILABLE and batch.time.device.type == "cpu"):
            return self._dense(batch, causal=True, joint=joint)
        problem = FilterProblem(batch, np.array(self.orders), joint)
        return _posterior(
            *CausalMoments.apply(self.coregionalisation, self.rates, self.noise, batch.value, problem), joint=joint
        )

    def smoothed(self, batch: SeriesBatch, *, joint: bool = False) -> ChannelPosterior:
        """The posterior at each grid time given all rows, later ones too: for pictures, never for warnings.

        Arguments, results and errors as of `posterior`.
        """
        self._expect(batch)
        return self._dense(batch, causal=False, joint=joint)

    def log_marginal_likelihood(self, batch: SeriesBatch) -> Tensor:
        """log p(values) of each series, exact, ``(B,)``, nats; 0 for one without rows."""
        nowhere = torch.zeros(len(batch) + 1, dtype=torch.int64)
        rows = (batch.time, batch.channel, batch.value, torch.from_numpy(batch.observed.offsets))
        return self.posterior(SeriesBatch(*rows, batch.grid[:0], nowhere)).log_marginal_likelihood

    def log_prior(self) -> Tensor:
        """Log density of weak priors, nats, without constants: what keeps a fit by a network's loss from running off.

        Log time scales, log v and log noise are normal around where they started (standard deviations 1, 1.5 and 1.5);
        entries of the mixing are normal around 0 with variance 1/(Q rank).
        """
        total = -0.5 * self.mixing.square().sum() * max(1, self.mixing.shape[0] * self.mixing.shape[2])
        for name, width in _PRIOR_WIDTHS.items():
            total = total - 0.5 * ((getattr(self, name) - getattr(self, f"prior_{name}")) / width).square().sum()
        return total

    @torch.no_grad()
    def start_at(self, *, timescales: Tensor, own_variance: Tensor, noise: Tensor) -> None:
        """Set time scales ``(Q,)``, own variances ``(Q, M)`` and noise ``(M,)``, and centre the priors there."""
        starts = {"log_timescales": timescales, "log_own_variance": own_variance, "log_noise": noise}
        for name, start in starts.items():
            if not bool(((start > 0) & start.isfinite()).all()):
                raise InputError(f"`{name.removeprefix('log_')}` must be positive and finite; got {start.tolist()}.")
            getattr(self, name).copy_(start.log())
            getattr(self, f"prior_{name}").copy_(start.log())

    def _dense(self, batch: SeriesBatch, *, causal: bool, joint: bool) -> ChannelPosterior:
        parts = (self.coregionalisation, self.rates, self.noise)
        return _posterior(*dense_moments(batch, *parts, orders=self.orders, causal=causal, joint=joint), joint=joint)

    def _expect(self, batch: SeriesBatch) -> None:
        batch.expect_channels(self.n_channels)
        dtype, device = self.log_noise.dtype, self.log_noise.device
        if (batch.time.dtype, batch.time.device) != (dtype, device):
            raise DtypeError(
                f"the batch must be {dtype} on {device}, as the adapter is; got {batch.time.dtype} on "
                f"{batch.time.device}. Convert the adapter: `adapter.to(batch.time)`."
            )


def _posterior(mean: Tensor, spread: Tensor, log_likelihood: Tensor, *, joint: bool) -> ChannelPosterior:
    variance = spread.diagonal(dim1=-2, dim2=-1) if joint else spread
    return ChannelPosterior(mean, variance, spread if joint else None, log_likelihood)


def _check(n_channels: int, timescales: Sequence[float], families: Sequence[str], rank: int, noise: float) -> None:
    if n_channels < 1 or rank < 0:
        raise InputError(f"`n_channels` must be at least 1 and `rank` at least 0; got {n_channels} and {rank}.")
    if not timescales or not all(0 < each < math.inf for each in timescales):
        raise InputError(f"`timescales` must be positive and finite, at least one; got {list(timescales)}.")
    if not 0 < noise < math.inf:
        raise InputError(f"`noise` is a variance and must be positive and finite; got {noise}.")
    known = get_args(MaternFamily)
    if len(families) != len(timescales) or any(each not in known for each in families):
        raise InputError(
            f"`family` must be one of {', '.join(known)}, or one for each of {len(timescales)} time scales; "
            f"got {list(families)}."
        )
