"""The multi-task GP adapter against a plain loop over series and grid times, one dense solve each."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from gpmoe.errors import DifferentiationError, DtypeError, InputError, NonFiniteError, ShapeError
from gpmoe.linalg import state_space_filter
from gpmoe.linalg.series_batch import SeriesBatch
from gpmoe.models.channel_posterior import ChannelPosterior, smooth_noise
from gpmoe.models.measurement_history import measurement_history
from gpmoe.models.measurement_value import rank_measurements, variance_reduction
from gpmoe.models.mgp_adapter import MaternFamily, MGPAdapter

FAMILIES: tuple[MaternFamily, ...] = ("matern12", "matern32", "matern52")
MIXED: tuple[MaternFamily, ...] = ("matern12", "matern52")
SIZES, GRIDS = (7, 0, 12, 1, 9), (4, 3, 6, 2, 0)


def rows_of(
    sizes: Sequence[int], grids: Sequence[int], channels: int = 3, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Unsorted rows with repeated times, some of them on the grid, and unsorted grids."""
    generator = torch.Generator().manual_seed(seed)
    n, T = sum(sizes), sum(grids)
    time = (6 * torch.rand(n, generator=generator, dtype=torch.float64)).mul(2).round().div(2)
    channel = torch.randint(0, channels, (n,), generator=generator)
    value = torch.randn(n, generator=generator, dtype=torch.float64)
    grid = (8 * torch.rand(T, generator=generator, dtype=torch.float64) - 1).mul(2).round().div(2)
    return time, channel, value, offsets_of(sizes), grid, offsets_of(grids)


def offsets_of(sizes: Sequence[int]) -> Tensor:
    return torch.tensor([0, *sizes]).cumsum(0)


def batch_of(sizes: Sequence[int] = SIZES, grids: Sequence[int] = GRIDS, **more: int) -> SeriesBatch:
    return SeriesBatch(*rows_of(sizes, grids, **more))


def adapter_of(family: MaternFamily | Sequence[MaternFamily] = MIXED, channels: int = 3, rank: int = 2) -> MGPAdapter:
    adapter = MGPAdapter(channels, timescales=[0.7, 5.0], family=family, rank=rank)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return adapter


def kernel(adapter: MGPAdapter, t1: Tensor, c1: Tensor, t2: Tensor, c2: Tensor) -> Tensor:
    """Σ_q B_q[c, c'] k_q(|t - t'|) as the books write it."""
    total = torch.zeros(len(t1), len(t2), dtype=torch.float64)
    for q, family in enumerate(adapter.families):
        r = (t1[:, None] - t2).abs() / adapter.timescales[q]
        k = {
            "matern12": (-r).exp(),
            "matern32": (1 + math.sqrt(3) * r) * (-math.sqrt(3) * r).exp(),
            "matern52": (1 + math.sqrt(5) * r + 5 * r**2 / 3) * (-math.sqrt(5) * r).exp(),
        }[family]
        B = adapter.mixing[q] @ adapter.mixing[q].T + torch.diag(adapter.own_variance[q])
        total = total + B[c1][:, c2] * k
    return total


def naive(adapter: MGPAdapter, batch: SeriesBatch, causal: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (T, M), covariance (T, M, M) and log likelihood (B,) by one dense solve for each series and grid time."""
    channels = torch.arange(adapter.n_channels)
    means, covariances, logs = [], [], []
    for b in range(len(batch)):
        mine, points = batch.observed.owner == b, batch.wanted.owner == b
        t, c, y = batch.time[mine], batch.channel[mine], batch.value[mine]
        for s in batch.grid[points]:
            known = t <= s if causal else t <= torch.inf
            tk, ck = t[known], c[known]
            C = kernel(adapter, tk, ck, tk, ck) + torch.diag(adapter.noise[ck])
            K = kernel(adapter, s.expand(len(channels)), channels, tk, ck)
            prior = kernel(adapter, s.expand(len(channels)), channels, s.expand(len(channels)), channels)
            means.append(K @ torch.linalg.solve(C, y[known]))
            covariances.append(prior - K @ torch.linalg.solve(C, K.T))
        if len(t):
            C = kernel(adapter, t, c, t, c) + torch.diag(adapter.noise[c])
            logs.append(MultivariateNormal(torch.zeros(len(t), dtype=torch.float64), C).log_prob(y))
        else:
            logs.append(torch.zeros((), dtype=torch.float64))
    return torch.stack(means), torch.stack(covariances), torch.stack(logs)


def by_prefix(adapter: MGPAdapter, batch: SeriesBatch, joint: bool = False) -> ChannelPosterior:
    """The posterior by dense algebra, as other devices and machines without Numba have it."""
    return adapter._dense(batch, causal=True, joint=joint)


def by_filter(adapter: MGPAdapter, batch: SeriesBatch, joint: bool = False) -> ChannelPosterior:
    return adapter.posterior(batch, joint=joint)


ENGINES = pytest.mark.parametrize("engine", [by_filter, by_prefix])


@ENGINES
@pytest.mark.parametrize("family", [*FAMILIES, MIXED])
def test_causal_posterior_is_that_of_one_dense_solve_a_grid_time(
    engine: Callable[..., ChannelPosterior], family: MaternFamily
) -> None:
    adapter, batch = adapter_of(family), batch_of()
    mean, covariance, log_likelihood = naive(adapter, batch)
    joint, alone = engine(adapter, batch, joint=True), engine(adapter, batch)
    assert joint.covariance is not None
    assert_close(joint.mean, mean, atol=1e-10, rtol=0)
    assert_close(joint.covariance, covariance, atol=1e-10, rtol=0)
    assert_close(joint.log_marginal_likelihood, log_likelihood, atol=1e-9, rtol=0)
    assert_close(alone.mean, mean, atol=1e-10, rtol=0)
    assert_close(alone.variance, covariance.diagonal(dim1=-2, dim2=-1), atol=1e-10, rtol=0)


def test_fifty_random_series_agree_with_dense_algebra_to_a_millionth() -> None:
    sizes = torch.randint(0, 40, (50,), generator=torch.Generator().manual_seed(3)).tolist()
    adapter, batch = adapter_of(channels=6), batch_of(sizes, [3] * 50, channels=6)
    mean, covariance, log_likelihood = naive(adapter, batch)
    posterior = adapter.posterior(batch, joint=True)
    assert posterior.covariance is not None
    assert_close(posterior.mean, mean, atol=1e-9, rtol=0)
    assert_close(posterior.covariance, covariance, atol=1e-9, rtol=0)
    assert_close(posterior.log_marginal_likelihood, log_likelihood, atol=1e-8, rtol=0)


@pytest.mark.parametrize("joint", [False, True])
@ENGINES
@pytest.mark.parametrize("family", [*FAMILIES, MIXED])
def test_gradients_are_those_of_differences(
    engine: Callable[..., ChannelPosterior], family: MaternFamily, joint: bool
) -> None:
    adapter = adapter_of(family, channels=2, rank=1)
    time, channel, value, *rest = rows_of((4, 0, 3), (3, 1, 2), channels=2)
    names = [name for name, _ in adapter.named_parameters()]

    def moments(value: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        batch = SeriesBatch(time, channel, value, *rest)

        def call(module: MGPAdapter, batch: SeriesBatch) -> tuple[Tensor, ...]:
            found = engine(module, batch, joint)
            return found.mean, found.covariance if joint else found.variance, found.log_marginal_likelihood  # type: ignore[return-value]

        wrapped = _Call(adapter, call)
        state = {f"module.{name}": part for name, part in zip(names, parameters, strict=True)}
        return torch.func.functional_call(wrapped, state, (batch,))  # type: ignore[no-any-return]

    start = [parameter.detach().clone().requires_grad_() for parameter in adapter.parameters()]
    assert gradcheck(moments, (value.requires_grad_(), *start))


class _Call(torch.nn.Module):
    """A function of a module as a module."""

    def __init__(self, module: MGPAdapter, function: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, batch: SeriesBatch) -> tuple[Tensor, ...]:
        return self.function(self.module, batch)


def test_gradients_do_not_depend_on_how_a_long_series_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, batch = adapter_of(), batch_of((60, 17), (20, 30))
    gradients = []
    for entries in (2**22, 1):
        monkeypatch.setattr(state_space_filter, "_SEGMENT", entries)
        posterior = adapter.posterior(batch)
        loss = posterior.mean.sin().sum() + posterior.variance.sum() + posterior.log_marginal_likelihood.sum()
        gradients.append(torch.autograd.grad(loss, list(adapter.parameters())))
    for whole, cut in zip(*gradients, strict=True):
        assert torch.equal(whole, cut)


@ENGINES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_series_alone_has_the_numbers_it_has_in_a_batch(
    engine: Callable[..., ChannelPosterior], dtype: torch.dtype
) -> None:
    adapter, parts = adapter_of().to(dtype), rows_of(SIZES, GRIDS)
    batch = SeriesBatch(*(part.to(dtype) if part.is_floating_point() else part for part in parts))
    together = engine(adapter, batch)
    assert together.mean.dtype == dtype
    for b in range(len(batch)):
        alone, places = engine(adapter, batch.series(torch.tensor([b]))), batch.wanted.owner == b
        assert_close(alone.mean, together.mean[places], atol=1e-7, rtol=1e-7)
        assert_close(alone.variance, together.variance[places], atol=1e-7, rtol=1e-7)
        assert_close(alone.log_marginal_likelihood[0], together.log_marginal_likelihood[b], atol=1e-6, rtol=1e-6)


@ENGINES
def test_single_precision_gives_the_numbers_of_double(engine: Callable[..., ChannelPosterior]) -> None:
    adapter, batch = adapter_of(), batch_of()
    wanted, parts = engine(adapter, batch), rows_of(SIZES, GRIDS)
    single = SeriesBatch(*(part.float() if part.is_floating_point() else part for part in parts))
    found = engine(adapter.float(), single)
    assert_close(found.mean.double(), wanted.mean, atol=1e-5, rtol=0)
    assert_close(found.variance.double(), wanted.variance, atol=1e-5, rtol=0)


@ENGINES
def test_later_rows_change_nothing_before_them(engine: Callable[..., ChannelPosterior]) -> None:
    adapter = adapter_of()
    time, channel, value, _, grid, _ = rows_of((30,), (15,))
    ends, cut = torch.tensor([0, 15]), 3.0
    early, before = time <= cut, grid <= cut
    whole = engine(adapter, SeriesBatch(time, channel, value, torch.tensor([0, 30]), grid, ends))
    known = torch.tensor([0, int(early.sum())])
    part = engine(adapter, SeriesBatch(time[early], channel[early], value[early], known, grid, ends))
    assert_close(whole.mean[before], part.mean[before], atol=1e-12, rtol=0)
    assert_close(whole.variance[before], part.variance[before], atol=1e-12, rtol=0)
    assert not torch.allclose(whole.mean[~before], part.mean[~before])


def test_smoothed_posterior_knows_all_rows() -> None:
    adapter, batch = adapter_of(), batch_of()
    mean, covariance, log_likelihood = naive(adapter, batch, causal=False)
    smoothed = adapter.smoothed(batch, joint=True)
    assert smoothed.covariance is not None
    assert_close(smoothed.mean, mean, atol=1e-10, rtol=0)
    assert_close(smoothed.covariance, covariance, atol=1e-10, rtol=0)
    assert_close(smoothed.log_marginal_likelihood, log_likelihood, atol=1e-9, rtol=0)


def test_smoothed_gradients_are_those_of_the_plain_loop() -> None:
    adapter, batch = adapter_of(), batch_of()
    mean, covariance, _ = naive(adapter, batch, causal=False)
    wanted = torch.autograd.grad(mean.sin().sum() + covariance.sin().sum(), list(adapter.parameters()))
    smoothed = adapter.smoothed(batch, joint=True)
    assert smoothed.covariance is not None
    found = torch.autograd.grad(smoothed.mean.sin().sum() + smoothed.covariance.sin().sum(), list(adapter.parameters()))
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_likelihood_alone_is_that_of_the_posterior() -> None:
    adapter, batch = adapter_of(), batch_of()
    posterior = adapter.posterior(batch)
    assert_close(adapter.log_marginal_likelihood(batch), posterior.log_marginal_likelihood, atol=1e-12, rtol=0)


def test_values_that_repeat_at_one_time_and_channel_count_as_often_as_they_come() -> None:
    adapter = adapter_of()
    zeros, ends, point = torch.zeros(3, dtype=torch.float64), torch.tensor([0, 3]), torch.tensor([0, 1])
    values = torch.tensor([1.0, 2.0, 4.5], dtype=torch.float64)
    batch = SeriesBatch(zeros, zeros.long(), values, ends, zeros[:1], point)
    prior, noise = adapter.coregionalisation.sum(0)[0, 0], adapter.noise[0]
    posterior = adapter.posterior(batch)
    assert_close(posterior.mean[0, 0], 2.5 * prior / (prior + noise / 3))
    assert_close(posterior.variance[0, 0], prior * noise / 3 / (prior + noise / 3))


def test_far_apart_rows_are_forgotten() -> None:
    adapter, ends = adapter_of(), torch.tensor([0, 1])
    time, grid = torch.zeros(1, dtype=torch.float64), torch.full((1,), 1e200, dtype=torch.float64)
    posterior = adapter.posterior(SeriesBatch(time, time.long(), time + 1, ends, grid, ends))
    assert_close(posterior.mean, torch.zeros(1, 3, dtype=torch.float64), atol=1e-100, rtol=0)
    assert_close(posterior.variance[0], adapter.coregionalisation.sum(0).diagonal())


def test_small_noise_keeps_variances_exact() -> None:
    adapter, batch = adapter_of("matern52"), batch_of()
    with torch.no_grad():
        adapter.log_noise.fill_(math.log(1e-7))
    _, covariance, _ = naive(adapter, batch)
    posterior = adapter.posterior(batch)
    assert_close(posterior.variance, covariance.diagonal(dim1=-2, dim2=-1), atol=1e-9, rtol=0)


def test_a_batch_of_no_series_gives_nothing() -> None:
    batch = batch_of((), ())
    posterior = adapter_of().posterior(batch)
    assert posterior.mean.shape == (0, 3)
    assert posterior.log_marginal_likelihood.shape == (0,)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    adapter, batch, found = adapter_of(channels=20), batch_of([40] * 20, [10] * 20, channels=20), []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        loss = adapter.posterior(batch).mean.square().sum()
        found.append(torch.autograd.grad(loss, list(adapter.parameters())))
    torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_draws_have_the_posterior_law_over_channels() -> None:
    adapter, batch, n = adapter_of(), batch_of((9,), (3,)), 40_000
    posterior = adapter.posterior(batch, joint=True)
    assert posterior.covariance is not None
    noise = torch.randn(n, 3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    draws = posterior.draw(noise).detach()
    error = posterior.variance.detach().sqrt() / math.sqrt(n)
    assert bool(((draws.mean(0) - posterior.mean.detach()).abs() < 4 * error).all())
    spread = (draws - draws.mean(0)).permute(1, 2, 0)
    found = spread @ spread.mT / n
    scale = posterior.variance.detach()
    bound = 4 * (2 / n) ** 0.5 * (scale.unsqueeze(-1) * scale.unsqueeze(-2)).sqrt()
    assert bool(((found - posterior.covariance.detach()).abs() < bound).all())


def test_gradients_pass_through_draws() -> None:
    adapter, batch = adapter_of(), batch_of((9,), (3,))
    noise = torch.ones(2, 3, 3, dtype=torch.float64)
    adapter.posterior(batch, joint=True).draw(noise).square().sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in adapter.parameters())


def test_draws_without_covariance_are_refused() -> None:
    posterior = adapter_of().posterior(batch_of())
    with pytest.raises(InputError, match="joint=True"):
        posterior.draw(torch.zeros(1, 15, 3))


def test_noise_is_standard_normal_and_smooth_in_time() -> None:
    n, ends = 20_000, torch.tensor([0, 2])
    time, grid = torch.zeros(2, dtype=torch.float64), torch.tensor([0.0, 3.0], dtype=torch.float64)
    batch = SeriesBatch(time, time.long(), time, ends, grid, ends)
    noise = smooth_noise(batch, 1, n_draws=n, timescale=2.0, keys=torch.tensor([7]), seed=0)[..., 0]
    products = torch.cov(noise.T)
    assert_close(products.diagonal(), torch.ones(2, dtype=torch.float64), atol=4 * math.sqrt(2 / n), rtol=0)
    assert abs(float(products[0, 1]) - math.exp(-1.5)) < 4 / math.sqrt(n)


def test_noise_of_a_series_is_its_own_in_any_batch_and_on_longer_grids() -> None:
    grids, zeros = (3, 4), torch.zeros(2, dtype=torch.float64)
    grid = torch.arange(7, dtype=torch.float64)
    both = SeriesBatch(zeros, zeros.long(), zeros, torch.tensor([0, 1, 2]), grid, offsets_of(grids))
    one = SeriesBatch(zeros[:1], zeros[:1].long(), zeros[:1], torch.tensor([0, 1]), grid[3:6], torch.tensor([0, 3]))
    more: dict[str, float] = {"n_draws": 5, "timescale": 2.0, "seed": 1}
    noise = smooth_noise(both, 2, keys=torch.tensor([4, 9]), **more)  # type: ignore[arg-type]
    alone = smooth_noise(one, 2, keys=torch.tensor([9]), **more)  # type: ignore[arg-type]
    assert torch.equal(noise[:, 3:6], alone)


def test_history_counts_what_a_grid_time_can_know() -> None:
    batch = batch_of(SIZES, GRIDS)
    found = measurement_history(batch, 3)
    for point in range(len(batch.grid)):
        b, s = int(batch.wanted.owner[point]), float(batch.grid[point])
        mine = batch.observed.owner == b
        earlier = [float(g) for g in batch.grid[batch.wanted.owner == b] if g < s]
        for c in range(3):
            times = [float(t) for t in batch.time[mine & (batch.channel == c)] if t <= s]
            firsts = [float(t) for t in batch.time[mine] if t <= s]
            since = s - max(times) if times else (s - min(firsts) if firsts else 0.0)
            assert float(found.time_since_last[point, c]) == pytest.approx(since)
            assert float(found.measured[point, c]) == float(bool(times))
            if s not in [float(g) for i, g in enumerate(batch.grid) if int(batch.wanted.owner[i]) == b and i != point]:
                assert float(found.count[point, c]) == sum(t > max(earlier, default=-math.inf) for t in times)


def test_value_of_a_measurement_is_what_it_takes_from_the_variance() -> None:
    adapter = adapter_of()
    time, channel, value, ends, grid, points = rows_of((8,), (1,))
    before = adapter.posterior(SeriesBatch(time, channel, value, ends, grid, points), joint=True)
    assert before.covariance is not None
    reduction = variance_reduction(before.covariance, adapter.noise)
    for c in range(3):
        more = (torch.cat([time, grid]), torch.cat([channel, torch.tensor([c])]), torch.cat([value, grid]))
        after = adapter.posterior(SeriesBatch(*more, ends + torch.tensor([0, 1]), grid, points))
        assert_close(before.variance - after.variance, reduction[:, c], atol=1e-12, rtol=1e-9)


def test_measurements_are_ranked_by_weighted_value() -> None:
    covariance = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    channels, values = rank_measurements(covariance, torch.full((3,), 1e-3), torch.tensor([10.0, 1.0, 1.0]))
    assert channels.tolist() == [0, 2, 1]
    assert bool((values.diff() < 0).all())
    with pytest.raises(ShapeError, match="covariance"):
        variance_reduction(covariance, torch.ones(2))


def test_prior_keeps_parameters_near_their_start() -> None:
    adapter = MGPAdapter(3, timescales=[1.0, 4.0])
    start = adapter.log_prior()
    with torch.no_grad():
        adapter.log_timescales += 1
    assert_close(adapter.log_prior(), start - 1)  # two time scales, one standard deviation off each


def test_differentiating_twice_is_refused() -> None:
    adapter = adapter_of()
    posterior = adapter.posterior(batch_of())
    (gradient,) = torch.autograd.grad(posterior.mean.sum(), adapter.mixing, create_graph=False, retain_graph=True)
    assert gradient.shape == adapter.mixing.shape
    with pytest.raises(DifferentiationError):
        torch.autograd.grad(posterior.mean.sum(), adapter.mixing, create_graph=True)


def test_errors_name_what_came() -> None:
    time, channel, value, ends, grid, points = rows_of((4,), (2,))
    adapter = adapter_of(channels=2)
    with pytest.raises(InputError, match=r"row 1 has 5"):
        adapter.posterior(SeriesBatch(time, torch.tensor([0, 5, 1, 0]), value, ends, grid, points))
    broken = torch.where(torch.arange(4) == 2, torch.nan, value)
    with pytest.raises(NonFiniteError, match=r"`value` has nan at index 2"):
        SeriesBatch(time, channel, broken, ends, grid, points)
    with pytest.raises(ShapeError, match="offsets"):
        SeriesBatch(time, channel, value, ends - 1, grid, points)
    with pytest.raises(ShapeError, match="grid_offsets"):
        SeriesBatch(time, channel, value, ends, grid, torch.tensor([0, 1, 2]))
    with pytest.raises(ShapeError, match="channel"):
        SeriesBatch(time, channel.double(), value, ends, grid, points)
    with pytest.raises(DtypeError, match="float32"):
        adapter.float().posterior(SeriesBatch(time, channel % 2, value, ends, grid, points))
    for arguments in ({"timescales": []}, {"timescales": [1.0], "rank": -1}, {"timescales": [1.0], "noise": 0.0}):
        with pytest.raises(InputError):
            MGPAdapter(2, **arguments)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="family"):
        MGPAdapter(2, timescales=[1.0, 2.0], family=["matern12"])
