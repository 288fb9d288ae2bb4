"""Start and fit of a multi-task GP adapter by the marginal likelihood of ragged series, in minibatches of series."""

import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.inference.minibatches import SETTLED, falling_steps, late_gain
from gpmoe.inference.report import FitReport, warn_about
from gpmoe.linalg.compiler import AVAILABLE
from gpmoe.linalg.series_batch import SeriesBatch
from gpmoe.models.mgp_adapter import MaternFamily, MGPAdapter

_NOISE_SHARE, _MIXED_SHARE = 0.2, 0.1  # of a channel's mean square, at the start


def adapter_from_data(
    batch: SeriesBatch,
    n_channels: int,
    *,
    n_components: int = 2,
    family: MaternFamily | Sequence[MaternFamily] = "matern12",
    rank: int = 2,
    seed: int = 0,
) -> MGPAdapter:
    """An adapter whose parameters, and the centres of whose priors, suit some series.

    Time scales are spread evenly in their logarithm from the median time between two measurements of one channel to
    half the median length of a series. Of a channel's mean square 20 % is noise, 70 % is its own and 10 % mixed by
    small random numbers, so that B is nearly diagonal.

    Args:
        batch: training series, each channel of mean near 0; the grids don't matter.
        n_channels: M; a channel that was never measured gets a mean square of 1.
        n_components: Q.
        family: of the components, or of each.
        rank: of the mixing of each.
        seed: of the mixing.

    Returns:
        The adapter, in the dtype of the batch.

    Raises:
        InputError: if there is no row, or a channel is beyond M.
    """
    batch.expect_channels(n_channels)
    if not len(batch.time):
        raise InputError("`batch` has no rows to start an adapter from.")
    squares = np.ones(n_channels)
    value, channel = batch.value.detach().cpu().double().numpy(), batch.channel.cpu().numpy()
    counts = np.bincount(channel, minlength=n_channels)
    seen = counts > 0
    squares[seen] = np.bincount(channel, value**2, minlength=n_channels)[seen] / counts[seen]
    mean_square = torch.from_numpy(np.maximum(squares, 1e-4))
    timescales = _timescales(batch, n_components)
    adapter = MGPAdapter(n_channels, timescales=timescales.tolist(), family=family, rank=rank, seed=seed)
    own = (1 - _NOISE_SHARE - _MIXED_SHARE) / n_components
    adapter.start_at(
        timescales=timescales,
        own_variance=(own * mean_square).expand(n_components, n_channels),
        noise=_NOISE_SHARE * mean_square,
    )
    with torch.no_grad():
        adapter.mixing.mul_(mean_square.sqrt().unsqueeze(-1))
    return adapter.to(batch.time)


def _timescales(batch: SeriesBatch, n_components: int) -> Tensor:
    """Evenly in their logarithm; the geometric mean of the ends if there is one."""
    time, channel = batch.time.detach().cpu().double().numpy(), batch.channel.cpu().numpy()
    owner = batch.observed.owner.cpu().numpy()
    order = np.lexsort((time, channel, owner))
    gaps = np.diff(time[order])
    same = (np.diff(owner[order]) == 0) & (np.diff(channel[order]) == 0) & (gaps > 0)
    ends = batch.observed.offsets
    lengths = np.array([np.ptp(time[i:n]) for i, n in pairwise(ends) if n > i])
    lengths = lengths[lengths > 0]
    longest = 0.5 * float(np.median(lengths)) if len(lengths) else 1.0
    shortest = min(float(np.median(gaps[same])) if same.any() else longest / 10, longest / 2)
    places = (torch.arange(n_components, dtype=torch.float64) + 0.5) / n_components
    if n_components > 1:
        places = torch.linspace(0, 1, n_components, dtype=torch.float64)
    return shortest * (longest / shortest) ** places


def fit_adapter(
    adapter: MGPAdapter,
    batch: SeriesBatch,
    *,
    epochs: int = 30,
    batch_size: int = 32,
    learning_rate: float = 0.05,
    seed: int | None = None,
) -> FitReport:
    """Maximise the log marginal likelihood of all series plus the log prior by Adam, in place.

    Each epoch sees every series once, in random order. In the second half of the epochs the step size falls linearly,
    to a hundredth.

    Args:
        adapter: the model; parameters that want no gradient stay.
        batch: training series; the grids don't matter.
        epochs: how often each series is seen.
        batch_size: series a step.
        learning_rate: Adam's, for the parameters as they are stored, logarithms mostly.
        seed: for the order of series.

    Returns:
        The report; `objective_trace` holds the mean over the minibatches of each epoch, scaled to all series, `starts`
        the objective over all series at the end.

    Warns:
        NotConvergedWarning: if the last tenth of the epochs still gained 0.01 nats an observation.

    Raises:
        InputError: if there is no row.
    """
    began = time.perf_counter()
    if not len(batch.time):
        raise InputError("`batch` has no rows to fit to.")
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    wanted = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(wanted, lr=learning_rate)
    (schedule,) = falling_steps([optimiser], epochs)
    trace, count = [], len(batch)
    with torch.enable_grad():
        for _ in range(epochs):
            values = []
            for rows in torch.randperm(count, generator=generator).split(batch_size):
                optimiser.zero_grad(set_to_none=True)
                found = adapter.log_marginal_likelihood(batch.series(rows)).sum()
                objective = found * (count / len(rows)) + adapter.log_prior()
                (-objective).backward()
                optimiser.step()
                values.append(float(objective.detach()))
            schedule.step()
            trace.append(sum(values) / len(values))
    with torch.no_grad():
        final = float(adapter.log_marginal_likelihood(batch).sum() + adapter.log_prior())
    gained = late_gain(trace) / len(batch.time)
    report = FitReport(
        objective_trace=tuple(trace),
        iterations=epochs * -(-count // batch_size),
        evaluations=epochs * -(-count // batch_size),
        converged=gained < SETTLED,
        reason=f"{epochs} epochs; the last tenth gained {gained:.2g} nats an observation",
        jitter=0.0,
        seconds=time.perf_counter() - began,
        solver=f"Adam, minibatches of {batch_size} series; " + ("Kalman filter" if AVAILABLE else "dense Cholesky"),
        starts=(final,),
    )
    warn_about(report, stacklevel=2)
    return report
