"""Start and fit of the adapter on series drawn from one with known parameters."""

from functools import cache

import pytest
import torch
from torch.testing import assert_close

from gpmoe.errors import InputError, NotConvergedWarning
from gpmoe.inference.fit_adapter import adapter_from_data, fit_adapter
from gpmoe.linalg.prefix_posterior import matern
from gpmoe.linalg.series_batch import SeriesBatch
from gpmoe.models.mgp_adapter import MGPAdapter

EMPTY = torch.zeros(0, dtype=torch.float64)


@cache
def drawn() -> tuple[MGPAdapter, SeriesBatch]:
    """Eighty series of forty rows of three channels, two of them strongly correlated, and what they were drawn from."""
    truth = MGPAdapter(3, timescales=[4.0], rank=1, noise=0.05)
    generator = torch.Generator().manual_seed(0)
    count, n = 80, 40
    with torch.no_grad():
        truth.mixing[0, :, 0] = torch.tensor([0.9, 0.9, 0.0])
        truth.log_own_variance[0] = torch.tensor([0.1, 0.1, 0.8]).log()
    time = 30 * torch.rand(count, n, generator=generator, dtype=torch.float64)
    channel = torch.randint(0, 3, (count, n), generator=generator)
    B = truth.coregionalisation[0].detach()
    k = matern((time[:, :, None] - time[:, None]).abs() / 4.0, 1)
    C = k * B[channel[:, :, None], channel[:, None]] + 0.05 * torch.eye(n, dtype=torch.float64)
    noise = torch.randn(count, n, 1, generator=generator, dtype=torch.float64)
    value = (torch.linalg.cholesky(C) @ noise).flatten()
    nowhere = torch.zeros(count + 1, dtype=torch.int64)
    return truth, SeriesBatch(time.flatten(), channel.flatten(), value, n * torch.arange(count + 1), EMPTY, nowhere)


def test_fit_finds_the_parameters_that_the_series_were_drawn_from() -> None:
    truth, batch = drawn()
    adapter = adapter_from_data(batch, 3, n_components=1, rank=1)
    report = fit_adapter(adapter, batch, epochs=40, batch_size=16, seed=0)
    assert report.starts[0] > float((truth.log_marginal_likelihood(batch).sum() + truth.log_prior()).detach()) - 10
    assert 0.75 < float(adapter.timescales.detach()) / 4 < 1.33
    B, wanted = adapter.coregionalisation[0].detach(), truth.coregionalisation[0].detach()
    assert_close(B, wanted, atol=0.25, rtol=0)
    assert_close(adapter.noise.detach(), truth.noise.detach(), atol=0.03, rtol=0)


def test_fit_raises_the_evidence_and_repeats_itself_under_a_seed() -> None:
    _, batch = drawn()
    few, results = batch.series(torch.arange(20)), []
    for _ in range(2):
        adapter = adapter_from_data(few, 3, seed=1)
        before = float(adapter.log_marginal_likelihood(few).sum().detach())
        fit_adapter(adapter, few, epochs=12, batch_size=8, learning_rate=0.02, seed=5)
        assert float(adapter.log_marginal_likelihood(few).sum().detach()) > before + 10
        results.append([parameter.detach().clone() for parameter in adapter.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_fit_that_still_climbs_says_so() -> None:
    _, batch = drawn()
    with pytest.warns(NotConvergedWarning, match="3 epochs"):
        fit_adapter(MGPAdapter(3, timescales=[0.01], noise=5.0), batch, epochs=3, seed=0)


def test_held_parameters_stay() -> None:
    _, batch = drawn()
    adapter = adapter_from_data(batch, 3)
    adapter.log_timescales.requires_grad_(False)
    before = adapter.timescales.clone()
    with pytest.warns(NotConvergedWarning, match="1 epochs"):
        fit_adapter(adapter, batch.series(torch.arange(8)), epochs=1, seed=0)
    assert torch.equal(adapter.timescales, before)


def test_start_suits_the_series() -> None:
    _, batch = drawn()
    adapter = adapter_from_data(batch, 4, n_components=3, rank=2)
    scales = adapter.timescales.detach()
    assert_close(scales[1] ** 2, scales[0] * scales[2])
    assert 0.3 < float(scales[0]) < 3
    assert 10 < float(scales[2]) < 15
    square = float(batch.value[batch.channel == 1].square().mean())
    variance = adapter.coregionalisation.detach().sum(0)
    assert 0.65 * square < float(variance[1, 1]) < 1.1 * square
    assert float(adapter.noise[3].detach()) == pytest.approx(0.2, abs=1e-5)
    assert float(adapter.log_prior().detach()) > -20


def test_single_precision_series_get_a_single_precision_adapter() -> None:
    _, batch = drawn()
    parts = (batch.time.float(), batch.channel, batch.value.float(), torch.from_numpy(batch.observed.offsets))
    single = SeriesBatch(*parts, EMPTY.float(), torch.zeros(81, dtype=torch.int64))
    adapter = adapter_from_data(single, 3)
    assert adapter.noise.dtype == torch.float32
    assert adapter.log_marginal_likelihood(single).dtype == torch.float32


def test_start_from_one_row_is_finite_and_from_none_refused() -> None:
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    ends, nowhere = torch.tensor([0, 1]), torch.tensor([0, 0])
    adapter = adapter_from_data(SeriesBatch(one, zero, one, ends, EMPTY, nowhere), 2)
    assert bool(adapter.timescales.isfinite().all())
    nothing = SeriesBatch(EMPTY, EMPTY.long(), EMPTY, nowhere, EMPTY, nowhere)
    with pytest.raises(InputError, match="no rows"):
        adapter_from_data(nothing, 2)
    with pytest.raises(InputError, match="no rows"):
        fit_adapter(adapter, nothing)
