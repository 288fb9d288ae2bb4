"""Early warning: a multi-task GP in front of a causal network, front door."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.early_warning.recalibration import Calibration
from gpmoe.early_warning.risk_inputs import RiskInputs, batch_of
from gpmoe.early_warning.risk_network import (
    RiskNetwork,
    Targets,
    Training,
    class_targets,
    hazard_targets,
    loss,
    padded,
    risk,
    train,
)
from gpmoe.early_warning.scaling import SeriesScaling
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError
from gpmoe.estimators.probabilistic_regressor import set_tensors, tensors_of
from gpmoe.estimators.series_classifier import SeriesClassifier
from gpmoe.features.gated_recurrence import GatedRecurrence
from gpmoe.features.linear_head import LinearHead
from gpmoe.features.temporal_convolution import TemporalConvolution
from gpmoe.inference.fit_adapter import adapter_from_data, fit_adapter
from gpmoe.models.mgp_adapter import MGPAdapter

Array = NDArray[np.float64]

_NETWORKS = ("tcn", "gru", "linear")
_ADAPTERS = ("mgp", "carry_forward")
_ALL_INPUTS = ("mean", "variance", "age", "measured", "static", "clock")
_ADAPTER_SERIES, _ADAPTER_EPOCHS = 1000, 12  # how many series fit the GP, and how often it sees them
_BLOCK = 256  # series at a time of passes over many
_JOINT_WEIGHT = 0.1  # of the likelihood of a measurement beside the network's loss


class EarlyWarningClassifier(SeriesClassifier):
    """Risk at each time of irregular, incomplete series, from their past alone.

    A multi-task Gaussian process turns the measurements up to each grid time into the posterior of all channels there;
    a causal network reads it, with its uncertainty, and says the risk.

    Args:
        network: "tcn" (dilated causal convolutions), "gru", or "linear" (no memory).
        adapter: "mgp", the multi-task GP, or "carry_forward", the last values.
        inputs: which of "mean", "variance", "age", "measured", "static", "clock" the network reads; see
            `early_warning.risk_inputs`; all that the adapter has, if None.
        n_draws: if positive, the network reads draws from the posterior in place of its mean: one in each pass of
            training, so many in prediction, whose risks are averaged.
        learn_adapter: "likelihood" fits the GP to the measurements alone, before the network; "joint" goes on with it
            by the network's loss, plus a tenth of the likelihood of a measurement.
        head: "class", the label of each grid time; or "hazard", the event in the `horizon` after it, by discrete
            survival in `n_bins`: it takes `event_time` and `censoring_time` of the series for labels.
        horizon: how far a hazard looks, in units of time.
        n_bins: of the horizon.
        hidden: width of the network.
        n_blocks: of "tcn", whose past is 2^(n_blocks + 2) grid times; layers of "gru", at most two.
        dropout: share of hidden channels dropped in training.
        n_components: time scales of the GP.
        rank: of its coregionalisation.
        max_epochs, batch_size, learning_rate, weight_decay, patience: see `early_warning.risk_network.Training`.
        positive_weight: how much a positive label counts; "balanced" gives both classes the same total.
        validation_fraction: of the series, held back to stop early and to calibrate.
        calibration: "temperature", "isotonic" or None.
        n_members: networks trained from different starts, whose logits are averaged.
        verbose: print a line an epoch.
        random_state: fixes every result.

    Attributes:
        adapter_: the fitted `MGPAdapter`, or None.
        networks_: the fitted `RiskNetwork`s.
        scaling_: of channels and covariates.
        step_: median distance of grid times in training.
        losses_: training and validation loss of each epoch, of each network.

    Example:
        >>> from gpmoe.early_warning import RaggedSeries
        >>> rng = np.random.default_rng(0)
        >>> offsets, label = np.arange(0, 321, 8), np.arange(40) % 2
        >>> values = rng.standard_normal(320) + 2 * np.repeat(label, 8)
        >>> series = RaggedSeries.from_arrays(np.tile(np.arange(8.0), 40), np.zeros(320, int), values, offsets,
        ...                                   n_channels=1, labels=label)
        >>> model = EarlyWarningClassifier("gru", hidden=4, max_epochs=3, calibration=None, random_state=0).fit(series)
        >>> model.predict_proba(series).shape, model.predict_proba_series(series).shape
        ((320,), (40,))
    """

    networks_: list[RiskNetwork]

    def __init__(
        self,
        network: str = "tcn",
        adapter: str = "mgp",
        inputs: Sequence[str] | None = None,
        n_draws: int = 0,
        learn_adapter: str = "likelihood",
        head: str = "class",
        horizon: float | None = None,
        n_bins: int = 6,
        hidden: int = 64,
        n_blocks: int = 4,
        dropout: float = 0.1,
        n_components: int = 2,
        rank: int = 2,
        max_epochs: int = 30,
        batch_size: int = 64,
        learning_rate: float = 2e-3,
        weight_decay: float = 1e-2,
        patience: int = 5,
        positive_weight: float | str = 1.0,
        validation_fraction: float = 0.1,
        calibration: str | None = "temperature",
        n_members: int = 1,
        verbose: bool = False,
        random_state: Any = None,
    ) -> None:
        self.network = network
        self.adapter = adapter
        self.inputs = inputs
        self.n_draws = n_draws
        self.learn_adapter = learn_adapter
        self.head = head
        self.horizon = horizon
        self.n_bins = n_bins
        self.hidden = hidden
        self.n_blocks = n_blocks
        self.dropout = dropout
        self.n_components = n_components
        self.rank = rank
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.patience = patience
        self.positive_weight = positive_weight
        self.validation_fraction = validation_fraction
        self.calibration = calibration
        self.n_members = n_members
        self.verbose = verbose
        self.random_state = random_state

    def _fit(self, training: RaggedSeries, validation: RaggedSeries, seed: int) -> None:
        self._check_arguments()
        self.scaling_ = SeriesScaling.fit(training, log_skewed=True)
        self.step_ = _step(training)
        scaled, held = self.scaling_.apply(training), self.scaling_.apply(validation)
        self.adapter_ = self._fitted_adapter(scaled, seed) if self.adapter == "mgp" else None
        self.networks_, self.losses_ = [], []
        for member in range(self.n_members):
            network = self._network(seed + member)
            self.networks_.append(network)
            self.losses_.append(self._train(network, scaled, held, seed + member))

    def _fitted_adapter(self, scaled: RaggedSeries, seed: int) -> MGPAdapter:
        """The GP fitted by its likelihood to some of the series."""
        rng = np.random.default_rng(seed)
        some = np.sort(rng.permutation(np.flatnonzero(np.diff(scaled.offsets) > 0))[:_ADAPTER_SERIES])
        batch = batch_of(scaled[some])
        adapter = adapter_from_data(
            batch, scaled.n_channels, n_components=self.n_components, rank=self.rank, seed=seed
        )
        self.report_ = fit_adapter(adapter, batch, epochs=_ADAPTER_EPOCHS, seed=seed)
        return adapter.requires_grad_(self.learn_adapter == "joint")

    def _reader(self) -> RiskInputs:
        chosen = self.inputs
        if chosen is None:
            chosen = _ALL_INPUTS if self.adapter_ is not None else tuple(p for p in _ALL_INPUTS if p != "variance")
        return RiskInputs(chosen, len(self.channel_names_), len(self.static_names_), self.step_, self.adapter_)

    def _network(self, seed: int) -> RiskNetwork:
        width, bins = self._reader().width, self.n_bins if self.head == "hazard" else 1
        body: torch.nn.Module
        if self.network == "tcn":
            body = TemporalConvolution(
                width, self.hidden, n_blocks=self.n_blocks, dropout=self.dropout, seed=seed
            )
        elif self.network == "gru":
            body = GatedRecurrence(width, self.hidden, n_layers=1, seed=seed)
        else:
            return RiskNetwork(torch.nn.Identity(), LinearHead(width, bins * self.n_tasks_, seed=seed), self.n_tasks_)
        head = LinearHead(self.hidden, bins * self.n_tasks_, seed=seed)
        return RiskNetwork(body, head, self.n_tasks_).float()

    def _train(self, network: RiskNetwork, scaled: RaggedSeries, held: RaggedSeries, seed: int) -> dict[str, Any]:
        """Fit one network, and the adapter with it if it learns."""
        torch_state = torch.get_rng_state()  # dropout draws from the global generator
        torch.manual_seed(seed)
        try:
            return self._train_seeded(network, scaled, held, seed)
        finally:
            torch.set_rng_state(torch_state)

    def _train_seeded(
        self, network: RiskNetwork, scaled: RaggedSeries, held: RaggedSeries, seed: int
    ) -> dict[str, Any]:
        joint = self.adapter_ is not None and self.learn_adapter == "joint"
        reader, targets, held_targets = self._reader(), self._loss_targets(scaled), self._loss_targets(held)
        lengths = np.diff(scaled.grid_offsets)
        keys = torch.arange(len(scaled)) if self.n_draws else None
        fixed = None
        if not joint and not self.n_draws:
            with torch.no_grad():
                fixed = reader(scaled).float()
        epoch_seed = [0]

        def batch(rows: NDArray[np.int64]) -> tuple[Tensor, Tensor, Targets, Tensor]:
            places = _places(scaled.grid_offsets, rows)
            extra = torch.zeros(())
            if fixed is not None:
                x = fixed[places]
            else:
                epoch_seed[0] += 1
                some = scaled[rows]
                with torch.set_grad_enabled(joint):
                    x, likelihood = reader.with_likelihood(
                        some, None if keys is None else keys[torch.from_numpy(rows)], seed + epoch_seed[0]
                    )
                if joint:
                    assert self.adapter_ is not None
                    measured = max(1, len(some.time))
                    prior = self.adapter_.log_prior() / max(1, len(scaled.time))
                    extra = -_JOINT_WEIGHT * (likelihood / measured + prior)
            x, mask = padded(x.to(torch.float32), lengths[rows])
            event, _ = padded(targets.event[places], lengths[rows])
            weight, _ = padded(targets.weight[places], lengths[rows])
            return x, mask, Targets(event, weight), extra

        def validation_loss() -> float:
            logits = self._logits(held, [network], reader, self.n_draws, seed)
            return float(loss(logits, held_targets)) / max(1.0, float(held_targets.weight.sum()))

        parameters = list(network.parameters())
        if joint and self.adapter_ is not None:
            parameters += list(self.adapter_.parameters())
        training = Training(
            self.max_epochs, self.batch_size, self.learning_rate, self.weight_decay, self.patience,
            _print_epoch if self.verbose else None,
        )  # fmt: skip
        losses, checked, reason = train(network, parameters, batch, lengths, validation_loss, training, seed)
        network.requires_grad_(False).eval()
        return {"training": losses, "validation": checked, "reason": reason}

    def _loss_targets(self, series: RaggedSeries) -> Targets:
        if self.head == "class":
            labels = self._targets(series)
            return class_targets(labels, self._weight(labels))
        assert self.horizon is not None
        owner = series.grid_owner
        event, censoring = _ends(series)
        made = hazard_targets(series.grid_times, event[owner], censoring[owner], self.horizon, self.n_bins, 1.0)
        return made

    def _weight(self, labels: Array) -> float:
        if self.positive_weight == "balanced":
            known = labels[~np.isnan(labels)]
            return float((len(known) - known.sum()) / max(known.sum(), 1.0))
        return float(self.positive_weight)

    def _raw(self, series: RaggedSeries) -> Array:
        logits = self._logits(self.scaling_.apply(series), self.networks_, self._reader(), self.n_draws, 0)
        return risk(logits.double()).numpy()

    @torch.no_grad()
    def _logits(
        self, scaled: RaggedSeries, networks: list[RiskNetwork], reader: RiskInputs, n_draws: int, seed: int
    ) -> Tensor:
        """Of all grid times ``(G, bins, tasks)``; risks of draws are averaged, logits of networks."""
        blocks = []
        for start in range(0, max(1, len(scaled)), _BLOCK):
            some = scaled[start : start + _BLOCK]
            if n_draws:
                each = torch.stack([self._one_draw(some, networks, reader, seed + i) for i in range(n_draws)])
                blocks.append(torch.logit(torch.sigmoid(each.double()).mean(0).clamp(1e-12, 1 - 1e-12)).float())
            else:
                blocks.append(_through(networks, reader(some), some))
        return torch.cat(blocks)

    def _one_draw(self, some: RaggedSeries, networks: list[RiskNetwork], reader: RiskInputs, seed: int) -> Tensor:
        return _through(networks, reader(some, _keys(some), seed), some)

    def predict_risk_draws(self, series: RaggedSeries, n_draws: int = 20, random_state: int = 0) -> Array:
        """Risks under draws of what was not measured: their spread says how much the missing data matter.

        Args:
            series: as for `predict_proba`.
            n_draws: paths of the channels from their causal posterior.
            random_state: of the draws; those of a series do not depend on the others.

        Returns:
            ``(n_draws, G)``, or ``(n_draws, G, tasks)``.

        Raises:
            InputError: without the multi-task GP.
        """
        self._expect_known(series)
        if self.adapter_ is None:
            raise InputError("draws need adapter='mgp'; values carried forward have no uncertainty.")
        scaled, reader, rows = self.scaling_.apply(series), self._reader(), []
        with torch.no_grad():
            for i in range(n_draws):
                parts = [
                    self._one_draw(scaled[s : s + _BLOCK], self.networks_, reader, random_state + i)
                    for s in range(0, max(1, len(scaled)), _BLOCK)
                ]
                rows.append(self._shaped(self._calibrated(risk(torch.cat(parts).double()).numpy())))
        return np.stack(rows)

    def _check_arguments(self) -> None:
        for name, value, known in (
            ("network", self.network, _NETWORKS),
            ("adapter", self.adapter, _ADAPTERS),
            ("learn_adapter", self.learn_adapter, ("likelihood", "joint")),
            ("head", self.head, ("class", "hazard")),
        ):
            if value not in known:
                raise InputError(f"`{name}` must be one of {', '.join(known)}; got {value!r}.")
        if self.head == "hazard" and (self.horizon is None or not self.horizon > 0):
            raise InputError(f"head='hazard' needs a positive `horizon`, in units of time; got {self.horizon!r}.")
        if self.n_draws and self.adapter != "mgp":
            raise InputError("`n_draws` needs adapter='mgp'; values carried forward have no uncertainty.")


def _through(networks: list[RiskNetwork], x: Tensor, series: RaggedSeries) -> Tensor:
    """Mean logits of all grid times ``(G, bins, tasks)``."""
    lengths = np.diff(series.grid_offsets)
    inputs, mask = padded(x.to(torch.float32), lengths)
    return torch.stack([network(inputs, mask)[mask] for network in networks]).mean(0)


def _keys(series: RaggedSeries) -> Tensor:
    """An integer of each series, from its id alone."""
    return torch.tensor([zlib.crc32(str(name).encode()) for name in series.ids], dtype=torch.int64)


def _places(offsets: NDArray[np.int64], rows: NDArray[np.int64]) -> Tensor:
    """Rows of some series, one series after another."""
    return torch.from_numpy(np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in rows]))


def _step(series: RaggedSeries) -> float:
    """Median distance of neighbouring grid times of one series; 1 where no series has two."""
    gaps = np.diff(series.grid_times)[np.diff(series.grid_owner) == 0]
    return float(np.median(gaps)) if len(gaps) else 1.0


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


def _print_epoch(epoch: int, training: float, validation: float) -> None:
    print(f"epoch {epoch + 1}: loss {training:.5f}, on validation series {validation:.5f}", flush=True)
