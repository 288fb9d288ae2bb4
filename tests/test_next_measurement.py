"""The value of the next measurement, against brute force and closed forms."""

import functools

import numpy as np
import pytest
import torch

from gpmoe.early_warning import RaggedSeries
from gpmoe.early_warning.next_measurement import (
    next_measurement,
    next_measurement_of_series,
    values_of_measurements,
)
from gpmoe.early_warning.risk_inputs import batch_of
from gpmoe.errors import InputError
from gpmoe.estimators.early_warning_classifier import EarlyWarningClassifier


def spread(M: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((M, M))
    return (
        torch.from_numpy(rng.standard_normal(M)),
        torch.from_numpy(A @ A.T / M),
        torch.from_numpy(rng.uniform(0.1, 1, M)),
    )


def test_of_a_linear_function_is_the_closed_form() -> None:
    mean, P, noise = spread(4)
    g = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    average, variance, shares = values_of_measurements(lambda f: (f @ g).numpy(), mean, P, noise, 9, 4096)
    assert average == pytest.approx(float(mean @ g), abs=0.02)
    assert variance == pytest.approx(float(g @ P @ g), rel=0.02)
    exact = (P @ g).square() / (P.diagonal() + noise) / (g @ P @ g)
    assert shares == pytest.approx(exact.numpy(), abs=0.01)


def test_of_a_curved_function_is_that_of_nested_monte_carlo() -> None:
    mean, P, noise = spread(2, seed=1)

    def risk(f: torch.Tensor) -> np.ndarray:
        return (1 / (1 + torch.exp(-3 * f[..., 0] * f[..., 1]))).numpy()

    _, variance, shares = values_of_measurements(risk, mean, P, noise, 15, 4096)
    rng, n = np.random.default_rng(0), 3000
    for c in range(2):
        y = float(mean[c]) + np.sqrt(float(P[c, c] + noise[c])) * rng.standard_normal(n)
        gain = P[:, c] / (P[c, c] + noise[c])
        root = torch.linalg.cholesky(P - torch.outer(gain, P[c]))
        draws = torch.from_numpy(rng.standard_normal((n, 400, 2))) @ root.mT
        shifted = mean + torch.from_numpy(y - float(mean[c]))[:, None] * gain
        left = risk(shifted[:, None] + draws).var(axis=1, ddof=1)
        assert variance * (1 - shares[c]) == pytest.approx(left.mean(), abs=4 * left.std() / np.sqrt(n) + 1e-3)


def test_of_a_channel_that_tells_nothing_is_nought() -> None:
    P = torch.diag(torch.tensor([1.0, 1.0], dtype=torch.float64))
    noise = torch.full((2,), 0.1, dtype=torch.float64)
    _, _, shares = values_of_measurements(
        lambda f: torch.sigmoid(f[:, 0]).numpy(), torch.zeros(2, dtype=torch.float64), P, noise, 9, 64
    )
    assert shares[1] < 1e-12
    _, variance, shares = values_of_measurements(lambda f: np.full(len(f), 0.5), 0 * noise, P, noise, 9, 64)
    assert (variance, shares.tolist()) == (0.0, [0.0, 0.0])


def stays(N: int = 40, seed: int = 0) -> RaggedSeries:
    rng = np.random.default_rng(seed)
    time = np.concatenate([np.sort(rng.uniform(0, 8, 10)) for _ in range(N)])
    label = np.arange(N) % 2
    channel = rng.integers(0, 3, 10 * N)
    value = rng.standard_normal(10 * N) + 2 * np.repeat(label, 10) * (channel == 0)
    return RaggedSeries.from_arrays(
        time, channel, value, 10 * np.arange(N + 1), n_channels=3, grid_times=np.tile(np.arange(1.0, 9), N),
        grid_offsets=8 * np.arange(N + 1), labels=label.astype(float),
    )  # fmt: skip


@functools.cache
def model_of(network: str, **options) -> EarlyWarningClassifier:
    arguments = {"hidden": 6, "max_epochs": 3, "n_blocks": 1, "random_state": 0, "inputs": ["mean"], **options}
    return EarlyWarningClassifier(network, **arguments).fit(stays())


@pytest.mark.parametrize("network", ["tcn", "gru", "linear"])
def test_of_a_model_is_that_of_measuring_and_asking_again(network: str) -> None:
    """Brute force: add the row to the series, and take the posterior and the whole network anew."""
    model, series = model_of(network), stays(6, seed=1)[[3]]
    series = series.until(4.0)
    found = next_measurement_of_series(model.stream(), series, 4.0)
    rng, scaled = np.random.default_rng(0), model.scaling_.apply(series)
    now = model.adapter_.posterior(batch_of(scaled), joint=True)
    inputs = model._reader()(scaled)

    def risks(mean: torch.Tensor, covariance: torch.Tensor) -> np.ndarray:
        f = mean + torch.from_numpy(rng.standard_normal((500, 3))) @ torch.linalg.cholesky(covariance).mT
        x = inputs.repeat(500, 1, 1)
        x[:, -1] = f
        with torch.no_grad():
            logits = model.networks_[0](x.float())[:, -1, 0, 0]
        return model._calibrated(torch.sigmoid(logits.double()).numpy()[:, None])[:, 0]

    with torch.no_grad():
        mean, P = now.mean[-1], now.covariance[-1]
        assert found.std == pytest.approx(risks(mean, P).std(), rel=0.15)
        for c in range(3):
            left = []
            for _ in range(60):
                s = float((P[c, c] + model.adapter_.noise[c]).sqrt())
                y = float(mean[c]) + s * rng.standard_normal()
                more = RaggedSeries.from_arrays(
                    np.append(scaled.time, 4.0), np.append(scaled.channel, c), np.append(scaled.value, y),
                    [0, len(scaled.time) + 1], n_channels=3, grid_times=scaled.grid_times,
                    grid_offsets=scaled.grid_offsets,
                )  # fmt: skip
                after = model.adapter_.posterior(batch_of(more), joint=True)
                left.append(risks(after.mean[-1], after.covariance[-1]).var())
            each = next(value for value in found.ranked if value.channel == str(c))
            error = 4 * np.std(left) / np.sqrt(60) + 0.05 * found.std**2
            assert each.std**2 == pytest.approx(np.mean(left), abs=error)
    assert [each.share for each in found.ranked] == sorted((each.share for each in found.ranked), reverse=True)


def test_asking_changes_nothing() -> None:
    model, series = model_of("tcn"), stays(1, seed=2)
    stream = model.stream()
    for time, channel, value in zip(series.time, series.channel, series.value, strict=True):
        stream.update("a", time, str(channel), value)
    first = next_measurement(stream, "a", 9.0)
    assert next_measurement(stream, "a", 9.0) == first
    assert len(first.ranked) == 3
    assert "after one measurement" in str(first)
    fresh = model.stream()
    for time, channel, value in zip(series.time, series.channel, series.value, strict=True):
        fresh.update("a", time, str(channel), value)
    assert stream.score("a", 9.0) == fresh.score("a", 9.0)


def test_needs_the_gaussian_process() -> None:
    model = EarlyWarningClassifier("gru", "carry_forward", hidden=4, max_epochs=1, random_state=0).fit(stays())
    with pytest.raises(InputError, match="needs adapter='mgp'"):
        next_measurement_of_series(model.stream(), stays(1), 3.0)
    with pytest.raises(InputError, match="reads the posterior mean"):
        next_measurement_of_series(model_of("gru", inputs=("variance",)).stream(), stays(1), 3.0)
    with pytest.raises(InputError, match="must be a single one"):
        next_measurement_of_series(model_of("gru").stream(), stays(2), 3.0)
