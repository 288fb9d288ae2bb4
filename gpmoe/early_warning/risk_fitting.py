"""From labelled, scaled series to a fitted adapter and a fitted network: one after the other, or both by the loss.

With `adapter` the inputs of the network are differentiable in the GP, which minimises

    loss of the network - w [log likelihood / measurements of the batch + log prior / measurements of all],   w = 0.1
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.early_warning.risk_inputs import RiskInputs, batch_of
from gpmoe.early_warning.risk_network import (
    RiskNetwork,
    Targets,
    Training,
    class_targets,
    hazard_targets,
    loss,
    padded,
    train,
)
from gpmoe.early_warning.risk_scorer import RiskScorer
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError
from gpmoe.inference.fit_adapter import adapter_from_data, fit_adapter
from gpmoe.inference.report import FitReport
from gpmoe.models.mgp_adapter import MGPAdapter

Array = NDArray[np.float64]

_ADAPTER_SERIES = 1000  # how many series fit the GP at most, and
_ADAPTER_STEPS, _ADAPTER_BATCH = 384, 32  # in how many steps of how many series
_JOINT_WEIGHT = 0.1  # of the likelihood of a measurement beside the network's loss


def fitted_adapter(scaled: RaggedSeries, n_components: int, rank: int, seed: int) -> tuple[MGPAdapter, FitReport]:
    """The GP fitted by its likelihood to some of the series."""
    rng = np.random.default_rng(seed)
    some = np.sort(rng.permutation(np.flatnonzero(np.diff(scaled.offsets) > 0))[:_ADAPTER_SERIES])
    batch = batch_of(scaled[some])
    adapter = adapter_from_data(batch, scaled.n_channels, n_components=n_components, rank=rank, seed=seed)
    epochs = -(-_ADAPTER_STEPS // -(-len(batch) // _ADAPTER_BATCH))
    return adapter, fit_adapter(adapter, batch, epochs=epochs, batch_size=_ADAPTER_BATCH, seed=seed)


def label_targets(labels: Array, positive_weight: float | str) -> Targets:
    """Of labels ``(G, tasks)``, NaN where unknown; "balanced" gives both classes the same total."""
    if positive_weight == "balanced":
        known = labels[~np.isnan(labels)]
        return class_targets(labels, float((len(known) - known.sum()) / max(known.sum(), 1.0)))
    return class_targets(labels, float(positive_weight))


def event_targets(series: RaggedSeries, horizon: float, n_bins: int) -> Targets:
    """Of the event times of series.

    Raises:
        InputError: without event times.
    """
    owner = series.grid_owner
    event, censoring = _ends(series)
    return hazard_targets(series.grid_times, event[owner], censoring[owner], horizon, n_bins, 1.0)


@dataclass(frozen=True)
class Labelled:
    """Scaled series, and what the network's logits of their grid times are compared with."""

    series: RaggedSeries
    targets: Targets


def fit_network(
    network: RiskNetwork,
    reader: RiskInputs,
    learn: Labelled,
    check: Labelled,
    training: Training,
    *,
    n_draws: int,
    adapter: MGPAdapter | None,
    seed: int,
) -> dict[str, Any]:
    """Train a network in place.

    Args:
        network: takes the inputs of `reader`.
        reader: makes them.
        learn: to train on.
        check: to stop by.
        training: how.
        n_draws: if positive, the network reads one draw of the channels in each pass, and so many are checked.
        adapter: the reader's, to be trained too; None leaves it as it is.
        seed: of minibatches, draws and dropout; torch's global generator is left as it was.

    Returns:
        Losses of each epoch on both, "training" and "validation", and the "reason" why it ended.
    """
    parameters = list(network.parameters()) + ([] if adapter is None else list(adapter.parameters()))
    scorer, heavy = RiskScorer(reader, [network], n_draws), max(1.0, float(check.targets.weight.sum()))

    def validation_loss() -> float:
        return float(loss(scorer.logits(check.series, seed), check.targets)) / heavy

    with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator
        torch.default_generator.manual_seed(seed)
        batches = _Minibatches(reader, learn, adapter, draws=n_draws > 0, seed=seed)
        lengths = np.diff(learn.series.grid_offsets)
        losses, checked, reason = train(network, parameters, batches, lengths, validation_loss, training, seed)
    network.requires_grad_(False).eval()
    return {"training": losses, "validation": checked, "reason": reason}


class _Minibatches:
    """Series numbers to a minibatch: a `risk_network.Batch`. Inputs that do not change are made once."""

    def __init__(
        self, reader: RiskInputs, learn: Labelled, adapter: MGPAdapter | None, *, draws: bool, seed: int
    ) -> None:
        self._reader, self._series, self._targets, self._adapter = reader, learn.series, learn.targets, adapter
        self._lengths = np.diff(learn.series.grid_offsets)
        self._keys = torch.arange(len(learn.series)) if draws else None
        self._seed = seed
        self._fixed = None
        if adapter is None and not draws:
            with torch.no_grad():
                self._fixed = reader(learn.series).float()

    def __call__(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor, Targets, Tensor]:
        places, lengths = _places(self._series.grid_offsets, rows), self._lengths[rows]
        x, extra = self._fresh(rows) if self._fixed is None else (self._fixed[places], torch.zeros(()))
        x, mask = padded(x.to(torch.float32), lengths)
        event, _ = padded(self._targets.event[places], lengths)
        weight, _ = padded(self._targets.weight[places], lengths)
        return x, mask, Targets(event, weight), extra

    def _fresh(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Inputs, and what the adapter's likelihood adds to the loss."""
        self._seed += 1
        some, keys = self._series[rows], None if self._keys is None else self._keys[torch.from_numpy(rows)]
        with torch.set_grad_enabled(self._adapter is not None):
            x, likelihood = self._reader.with_likelihood(some, keys, self._seed)
        if self._adapter is None:
            return x, torch.zeros(())
        prior = self._adapter.log_prior() / max(1, len(self._series.time))
        return x, -_JOINT_WEIGHT * (likelihood / max(1, len(some.time)) + prior)


def median_step(series: RaggedSeries) -> float:
    """Median distance of neighbouring grid times of one series; 1 where no series has two."""
    gaps = np.diff(series.grid_times)[np.diff(series.grid_owner) == 0]
    return float(np.median(gaps)) if len(gaps) else 1.0


def _places(offsets: NDArray[np.int64], rows: NDArray[np.int64]) -> Tensor:
    """Rows of some series, one series after another."""
    return torch.from_numpy(np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in rows]))


def _ends(series: RaggedSeries) -> tuple[Array, Array]:
    """Times of event and of the end of observation, the last grid time where it is not said."""
    if series.event_time is None:
        raise InputError("head='hazard' needs the `event_time` of each series, infinite where none was seen.")
    event = np.where(np.isnan(series.event_time), np.inf, series.event_time)
    if series.censoring_time is not None:
        return event, np.where(np.isnan(series.censoring_time), np.inf, series.censoring_time)
    last = np.full(len(series), -np.inf)
    some = np.diff(series.grid_offsets) > 0
    last[some] = series.grid_times[series.grid_offsets[1:][some] - 1]
    return event, last
