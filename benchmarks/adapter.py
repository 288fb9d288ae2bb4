"""The multi-task GP adapter: moments with gradients beside GPyTorch's batch mode, and rows a second as a stream.

GPyTorch's users write the adapter as a batch of exact GPs of (time, channel), sums of a Matérn kernel of the time times
an `IndexKernel` of the channel, and ask for the posterior on the grid, which is given all rows. Where the grid lies
after the rows, the causal posterior is the same; where it lies among them, gpmoe's smoothed one is.
"""

from functools import partial
from typing import Any

import gpytorch
import numpy as np
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import IndexKernel, MaternKernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from torch import Tensor

from benchmarks.harness import Case, Figures, Results, Run, Suite, Table
from benchmarks.libraries import gpytorch_cholesky
from benchmarks.tables import against, duration, number, verdict

MOMENTS, STREAM = "moments and gradient", "stream"
CAUSAL, DRAWS, SMOOTHED, PEER = "gpmoe causal", "gpmoe causal, 10 draws", "gpmoe smoothed", "GPyTorch batch"
BULK, SINGLE = "gpmoe, rows in blocks of 1,000", "gpmoe, row by row with its posterior"
SPEED_BAR, STREAM_BAR = 8.0, 2000.0
TIMESCALES, RANK, NOISE = (1.0, 8.0), 2, 0.1


def rows(series: int, observations: int, channels: int, grid: int, after: bool) -> tuple[Tensor, ...]:
    """Times ``(series, n)`` in hours, channels, values, and the hourly grid, which may begin when the rows end."""
    rng = np.random.default_rng(0)
    time = np.sort(rng.uniform(0, grid, (series, observations)), axis=1)
    channel = rng.integers(0, channels, (series, observations))
    value = rng.standard_normal((series, observations))
    hours = torch.arange(grid, dtype=torch.float64) + (grid if after else 0)
    return torch.from_numpy(time), torch.from_numpy(channel), torch.from_numpy(value), hours


def coregionalisation(channels: int) -> Tensor:
    """W of every component, ``(Q, M, rank)``."""
    draws = np.random.default_rng(1).standard_normal((len(TIMESCALES), channels, RANK))
    return torch.from_numpy(0.3 * draws)


def summary(mean: Tensor, variance: Tensor) -> Tensor:
    """A loss whose value tells whether two libraries have the same numbers."""
    return mean.square().sum() + variance.square().sum()


# --- gpmoe -------------------------------------------------------------------------------------------


def gpmoe_adapter(channels: int) -> Any:
    from gpmoe.models.mgp_adapter import MGPAdapter

    adapter = MGPAdapter(channels, timescales=TIMESCALES, rank=RANK, noise=NOISE)
    with torch.no_grad():
        adapter.mixing.copy_(coregionalisation(channels))
        adapter.log_own_variance.fill_(np.log(0.5))
    return adapter


def gpmoe_moments(kind: str, series: int, observations: int, channels: int, grid: int, after: bool) -> Run:
    from gpmoe.linalg.series_batch import SeriesBatch

    time, channel, value, hours = rows(series, observations, channels, grid, after)
    ends, points = observations * torch.arange(series + 1), grid * torch.arange(series + 1)
    parts = (time.flatten(), channel.flatten(), value.flatten(), ends, hours.repeat(series), points)
    adapter = gpmoe_adapter(channels)
    noise = torch.randn(10, series * grid, channels, dtype=torch.float64)

    def step() -> float:
        adapter.zero_grad(set_to_none=True)
        batch = SeriesBatch(*parts)
        joint = kind == DRAWS
        posterior = adapter.smoothed(batch) if kind == SMOOTHED else adapter.posterior(batch, joint=joint)
        loss = summary(posterior.mean, posterior.variance)
        (loss + posterior.draw(noise).square().sum() if joint else loss).backward()
        return loss.item()

    return Run(step, lambda value: {"value": value})


def gpmoe_stream(library: str, series: int, observations: int, channels: int) -> Run:
    from gpmoe.models.streaming_mgp import StreamingMGP

    rng = np.random.default_rng(0)
    owner, channel = rng.integers(0, series, observations), rng.integers(0, channels, observations)
    time, value = np.sort(rng.uniform(0, 48, observations)), rng.standard_normal(observations)
    adapter = gpmoe_adapter(channels)

    def step() -> tuple[Any, float]:
        stream, total = StreamingMGP(adapter, series), 0.0
        width = 1000 if library == BULK else 1
        for start in range(0, observations, width):
            block = slice(start, start + width)
            stream.update(owner[block], time[block], channel[block], value[block])
            if width == 1:
                total += float(stream.posterior(owner[block], time[block]).mean[0, 0])
        return stream, total

    def figures(result: tuple[Any, float]) -> Figures:
        state = sum(part.nbytes for part in result[0].to_tensors().values())
        return {"observations": observations, "state_bytes": state}

    return Run(step, figures)


# --- GPyTorch ----------------------------------------------------------------------------------------


class ChannelGP(gpytorch.models.ExactGP):  # type: ignore[misc]
    """A batch of exact GPs of time and channel, as GPyTorch's Hadamard multitask example writes one."""

    def __init__(self, inputs: tuple[Tensor, Tensor], value: Tensor, channels: int, noise: Tensor) -> None:
        super().__init__(inputs, value, FixedNoiseGaussianLikelihood(noise))
        self.mean_module = gpytorch.means.ZeroMean()
        self.time_kernels = torch.nn.ModuleList([MaternKernel(nu=0.5) for _ in TIMESCALES])
        self.channel_kernels = torch.nn.ModuleList([IndexKernel(num_tasks=channels, rank=RANK) for _ in TIMESCALES])

    def forward(self, time: Tensor, channel: Tensor) -> MultivariateNormal:
        """The prior."""
        pairs = zip(self.time_kernels, self.channel_kernels, strict=True)
        terms = [one(time).mul(other(channel)) for one, other in pairs]
        return MultivariateNormal(self.mean_module(time), sum(terms[1:], terms[0]))


def gpytorch_moments(kind: str, series: int, observations: int, channels: int, grid: int, after: bool) -> Run:
    time, channel, value, hours = rows(series, observations, channels, grid, after)
    log_noise = torch.full((channels,), np.log(NOISE + 1e-6), dtype=torch.float64, requires_grad=True)
    gp = ChannelGP((time.unsqueeze(-1), channel.unsqueeze(-1)), value, channels, log_noise.exp()[channel]).double()
    for q, mixing in enumerate(coregionalisation(channels)):
        gp.time_kernels[q].lengthscale = TIMESCALES[q]
        gp.channel_kernels[q].covar_factor.data.copy_(mixing)
        gp.channel_kernels[q].var = torch.full((channels,), 0.5, dtype=torch.float64)
    gp.eval()
    when = hours.repeat_interleave(channels).reshape(1, -1, 1).expand(series, -1, -1)
    which = torch.arange(channels).repeat(grid).reshape(1, -1, 1).expand(series, -1, -1)

    def step() -> float:
        gp.zero_grad(set_to_none=True)
        gp.prediction_strategy = None
        gp.likelihood.noise_covar.noise = log_noise.exp()[channel]
        with gpytorch_cholesky(), gpytorch.settings.detach_test_caches(False):
            posterior = gp(when, which)
            loss = summary(posterior.mean, posterior.variance)
            loss.backward()
        return float(loss.item())

    return Run(step, lambda value: {"value": value})


# --- cases and tables --------------------------------------------------------------------------------


def problems(small: bool) -> list[dict[str, Any]]:
    sizes = {"series": 4, "observations": 30, "channels": 6, "grid": 8}
    if not small:
        sizes = {"series": 64, "observations": 239, "channels": 34, "grid": 48}
    return [sizes | {"after": after} for after in (True, False)]


def moments_case(library: str, problem: dict[str, Any]) -> Case:
    prepare = partial(gpytorch_moments if library == PEER else gpmoe_moments, library)
    repetitions = 2 if library == PEER else 3
    return Case(MOMENTS, library, prepare, problem, repetitions=repetitions, isolated=True)


def stream_case(library: str, small: bool) -> Case:
    problem = {"series": 1000, "observations": 2000 if small else 20_000, "channels": 34}
    return Case(STREAM, library, partial(gpmoe_stream, library), problem, isolated=True)


def libraries(problem: dict[str, Any]) -> list[str]:
    return [CAUSAL, DRAWS, PEER] if problem["after"] else [CAUSAL, SMOOTHED, PEER]


def cases(small: bool) -> list[Case]:
    moments = [moments_case(library, problem) for problem in problems(small) for library in libraries(problem)]
    return moments + [stream_case(library, small) for library in (BULK, SINGLE)]


def moments_table(results: Results, problem: dict[str, Any], small: bool) -> Table:
    same = CAUSAL if problem["after"] else SMOOTHED
    peer, lines = moments_case(PEER, problem), []
    for library in libraries(problem):
        case = moments_case(library, problem)
        bar = SPEED_BAR if library == same and not small else None
        apart = abs(results.median(case, "value") / results.median(peer, "value") - 1)
        memory = results.median(case, "peak_bytes") / 2**20
        ratio = "" if library == PEER else against(results, case, peer, bar)
        equal = number(apart, ".0e") if library in (same, DRAWS) else ""
        lines.append([library, duration(results.median(case)), number(memory, ",.0f"), ratio, equal])
    sizes = "{series} series x {observations} rows x {channels} channels, hourly grid of {grid}".format(**problem)
    where = "grid after the rows" if problem["after"] else "grid among the rows"
    header = ("library", "forward and backward", "peak memory, MiB", "times as fast as GPyTorch", "loss apart by")
    notes = [
        "float64; mean and variance on the grid and all channels, gradients for all hyperparameters; two components "
        "(Matérn-1/2), rank 2, a noise variance per channel.",
        "GPyTorch's posterior is given all rows. "
        + (
            "No row is later than the grid, so the causal posterior is the same."
            if problem["after"]
            else "The smoothed row has its numbers; the causal row knows less at each grid time, by design."
        ),
    ]
    return Table(f"{sizes}; {where}", header, lines, notes)


def stream_table(results: Results, small: bool) -> Table:
    lines = []
    for library in (BULK, SINGLE):
        case = stream_case(library, small)
        rate = results.median(case, "observations") / results.median(case)
        state = results.median(case, "state_bytes") / 2**20
        lines.append(
            [library, number(rate, ",.0f") + verdict(rate, None if small else STREAM_BAR), number(state, ".1f")]
        )
    header = ("library", "observations a second, one core", "state of all series, MiB")
    return Table("1,000 series interleaved, 34 channels", header, lines, ["The state does not grow with time."])


def tables(results: Results, small: bool) -> list[Table]:
    return [*(moments_table(results, problem, small) for problem in problems(small)), stream_table(results, small)]


SUITE = Suite("adapter", cases, tables)
