"""Early warning: a multi-task GP in front of a causal network, front door."""

import zlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from gpmoe.early_warning.boosted_trees import BoostedTrees
from gpmoe.early_warning.explanation import Contributions, integrated_gradients
from gpmoe.early_warning.hand_features import hand_features
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
from gpmoe.early_warning.risk_stream import RiskStream
from gpmoe.early_warning.scaling import SeriesScaling
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError
from gpmoe.estimators.series_classifier import SeriesClassifier
from gpmoe.features.decaying_recurrence import DecayingRecurrence
from gpmoe.features.gated_recurrence import GatedRecurrence
from gpmoe.features.linear_head import LinearHead
from gpmoe.features.temporal_convolution import TemporalConvolution
from gpmoe.inference.fit_adapter import adapter_from_data, fit_adapter
from gpmoe.inference.report import FitReport
from gpmoe.models.mgp_adapter import MGPAdapter

Array = NDArray[np.float64]

_NETWORKS = ("tcn", "gru", "gru_d", "linear", "trees")
_ADAPTERS = ("mgp", "carry_forward")
_ALL_INPUTS = ("mean", "variance", "age", "measured", "static", "clock")
_ADAPTER_SERIES = 1000  # how many series fit the GP at most, and
_ADAPTER_STEPS, _ADAPTER_BATCH = 384, 32  # in how many steps of how many series
_BLOCK = 256  # series at a time of passes over many
_JOINT_WEIGHT = 0.1  # of the likelihood of a measurement beside the network's loss


class EarlyWarningClassifier(SeriesClassifier):
    """Risk at each time of irregular, incomplete series, from their past alone.

    A multi-task Gaussian process turns the measurements up to each grid time into the posterior of all channels there;
    a causal network reads it, with its uncertainty, and says the risk.

    Args:
        network: "tcn" (dilated causal convolutions), "gru", "linear" (no memory), "gru_d" (Che et al., 2018), which
            has decays of its own in place of the adapter and takes adapter="carry_forward", or "trees": boosted trees
            on the same inputs and on hand features of each channel's past, `max_trees` of them.
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
        max_trees: of "trees".
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
        networks_: the fitted `RiskNetwork`s; none for "trees".
        trees_: `BoostedTrees` of each task, for "trees".
        scaling_: of channels and covariates, to normal scores.
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
    trees_: list[BoostedTrees]

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
        max_trees: int = 150,
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
        self.max_trees = max_trees
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
        self.scaling_ = SeriesScaling.fit(training, "normal")
        self.step_ = _step(training)
        scaled, held = self.scaling_.apply(training), self.scaling_.apply(validation)
        self.adapter_ = self._fitted_adapter(scaled, seed) if self.adapter == "mgp" else None
        self.networks_, self.losses_, self.trees_ = [], [], []
        if self.network == "trees":
            self._grow(training, scaled, seed)
            return
        for member in range(self.n_members):
            network = self._network(seed + member)
            self.networks_.append(network)
            self.losses_.append(self._train(network, scaled, held, seed + member))

    def _grow(self, training: RaggedSeries, scaled: RaggedSeries, seed: int) -> None:
        X, labels = self._tree_features(training, scaled), self._targets(training)
        for task in range(self.n_tasks_):
            known = ~np.isnan(labels[:, task])
            self.trees_.append(BoostedTrees.grow(X[known], labels[known, task], max_iter=self.max_trees, seed=seed))

    @torch.no_grad()
    def _tree_features(self, series: RaggedSeries, scaled: RaggedSeries) -> NDArray[np.float32]:
        """Inputs of a network, and hand features of the values as they came, ``(G, columns)``."""
        return np.concatenate([self._reader()(scaled).float().numpy(), hand_features(series)], axis=1)

    def _fitted_adapter(self, scaled: RaggedSeries, seed: int) -> MGPAdapter:
        """The GP fitted by its likelihood to some of the series."""
        rng = np.random.default_rng(seed)
        some = np.sort(rng.permutation(np.flatnonzero(np.diff(scaled.offsets) > 0))[:_ADAPTER_SERIES])
        batch = batch_of(scaled[some])
        adapter = adapter_from_data(batch, scaled.n_channels, n_components=self.n_components, rank=self.rank, seed=seed)
        epochs = -(-_ADAPTER_STEPS // -(-len(batch) // _ADAPTER_BATCH))
        self.report_ = fit_adapter(adapter, batch, epochs=epochs, batch_size=_ADAPTER_BATCH, seed=seed)
        return adapter.requires_grad_(self.learn_adapter == "joint")

    def _reader(self) -> RiskInputs:
        chosen = ("mean", "age", "measured") if self.network == "gru_d" else self.inputs
        if chosen is None:
            chosen = _ALL_INPUTS if self.adapter_ is not None else tuple(p for p in _ALL_INPUTS if p != "variance")
        return RiskInputs(chosen, len(self.channel_names_), len(self.static_names_), self.step_, self.adapter_)

    def _network(self, seed: int) -> RiskNetwork:
        width, bins = self._reader().width, self.n_bins if self.head == "hazard" else 1
        body: torch.nn.Module
        if self.network == "tcn":
            body = TemporalConvolution(width, self.hidden, n_blocks=self.n_blocks, dropout=self.dropout, seed=seed)
        elif self.network == "gru":
            body = GatedRecurrence(width, self.hidden, seed=seed)
        elif self.network == "gru_d":
            body = DecayedInputs(len(self.channel_names_), self.hidden, seed)
        else:
            body = LinearHead(width, self.hidden, seed=seed)
        head = LinearHead(self.hidden, bins * self.n_tasks_, seed=seed)
        made: RiskNetwork = RiskNetwork(body, head, self.n_tasks_).float()
        return made

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
        adapter = self.adapter_ if self.learn_adapter == "joint" else None
        joint = adapter is not None
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
                if adapter is not None:
                    measured = max(1, len(some.time))
                    prior = adapter.log_prior() / max(1, len(scaled.time))
                    extra = -_JOINT_WEIGHT * (likelihood / measured + prior)
            x, mask = padded(x.to(torch.float32), lengths[rows])
            event, _ = padded(targets.event[places], lengths[rows])
            weight, _ = padded(targets.weight[places], lengths[rows])
            return x, mask, Targets(event, weight), extra

        def validation_loss() -> float:
            logits = self._logits(held, [network], reader, self.n_draws, seed)
            return float(loss(logits, held_targets)) / max(1.0, float(held_targets.weight.sum()))

        parameters = list(network.parameters())
        if adapter is not None:
            parameters += list(adapter.parameters())
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
        if self.horizon is None:
            raise InputError("head='hazard' needs a `horizon`.")
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
        if self.trees_:
            X = self._tree_features(series, self.scaling_.apply(series))
            return np.column_stack([each.predict(X) for each in self.trees_])
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
        self._expect_network("draws go through a network")
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

    def stream(self) -> RiskStream:
        """A fresh stream, which takes one observation at a time and says the same risks as `predict_proba`.

        Raises:
            InputError: for a model of draws, whose average has no step-wise form.
        """
        check_is_fitted(self, "networks_")
        if self.n_draws:
            raise InputError("a model with `n_draws` can't stream; fit one with n_draws=0.")
        return RiskStream(
            self._reader(), self.networks_, self.trees_, self.scaling_, self.channel_names_, self._calibrated
        )

    def score_stream(
        self, observations: Iterable[tuple[Hashable, float, str, float]], every: float | None = None
    ) -> Iterator[tuple[Hashable, float, Array]]:
        """Risks as observations come in; see `early_warning.risk_stream.RiskStream.run`.

        Args:
            observations: (id, time, channel name, value), of any series in any mixture, each in order of time.
            every: distance of grid times; that of training if None.

        Yields:
            id, grid time, risk ``(tasks,)``.
        """
        yield from self.stream().run(observations, self.step_ if every is None else every)

    def explain(self, series: RaggedSeries, time: float, task: int = 0, steps: int = 32) -> Contributions:
        """How much each measurement moved the risk of one series at a time; see `early_warning.explanation`.

        Args:
            series: a single one.
            time: a grid time is put there if there is none; later data are left out.
            task: whose risk.
            steps: of the quadrature.

        Raises:
            InputError: if there is more than one series, or none.
        """
        self._expect_known(series)
        self._expect_network("contributions follow a network's gradient")
        if len(series) != 1:
            raise InputError(f"`series` must be a single one, such as series[[3]]; got {len(series)}.")
        past = series.until(time)
        grid = np.append(past.grid_times[past.grid_times < time], time)
        past = RaggedSeries.from_arrays(
            past.time, past.channel, past.value, past.offsets, channel_names=past.channel_names, grid_times=grid,
            grid_offsets=[0, len(grid)], static=past.static, static_names=past.static_names, ids=past.ids,
        )  # fmt: skip
        scaled, reader = self.scaling_.apply(past), self._reader()

        def logit(value: Tensor) -> Tensor:
            x = reader.of_values(scaled, value).unsqueeze(0).to(torch.float32)
            logits = torch.stack([network(x)[0, -1, :, task] for network in self.networks_]).mean(0).double()
            survival = torch.nn.functional.logsigmoid(-logits).sum()
            return torch.log(-torch.expm1(survival)) - survival

        with torch.enable_grad():
            found, top, base = integrated_gradients(logit, torch.from_numpy(scaled.value.copy()), steps)
        return Contributions(past.time, past.channel, past.value, found, top, base, past.channel_names)

    def _expect_network(self, what: str) -> None:
        if self.trees_:
            raise InputError(f"{what}; network='trees' has none. Fit a 'tcn' or a 'gru'.")

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `io.Savable`."""
        arguments = self.get_params(deep=False)
        seed = arguments["random_state"]
        arguments["random_state"] = int(seed) if isinstance(seed, (int, np.integer)) else None
        arguments["inputs"] = None if self.inputs is None else list(self.inputs)
        data = {"arguments": arguments, "step": self.step_, "losses": self.losses_, **self._common_parts()}
        tensors = self._common_tensors()
        for name in ("knots", "scores"):
            tensors[f"scaling.{name}"] = torch.from_numpy(np.array(getattr(self.scaling_, name)))
        if self.adapter_ is not None:
            tensors |= _state(self.adapter_, "adapter")
            data["families"] = list(self.adapter_.families)
            data["report"] = asdict(self.report_)
        for i, network in enumerate(self.networks_):
            tensors |= _state(network, f"network{i}")
        for task, trees in enumerate(self.trees_):
            tensors[f"trees{task}.starts"] = torch.from_numpy(trees.starts)
            tensors[f"trees{task}.nodes"] = torch.from_numpy(trees.nodes)
        data["baselines"] = [trees.baseline for trees in self.trees_]
        return data, tensors

    @classmethod
    def from_parts(cls, data: dict[str, Any], tensors: dict[str, Tensor]) -> "EarlyWarningClassifier":
        """See `io.Savable`."""
        model = cls(**data["arguments"])
        model._check_arguments()
        model._restore_common(data, tensors)
        knots, scores = (tensors[f"scaling.{name}"].numpy() for name in ("knots", "scores"))
        model.scaling_ = SeriesScaling("normal", knots, scores, len(model.channel_names_))
        model.step_, model.losses_, model.adapter_ = float(data["step"]), data["losses"], None
        if "families" in data:
            families = data["families"]
            model.adapter_ = MGPAdapter(
                len(model.channel_names_), timescales=[1.0] * len(families), family=families, rank=model.rank
            )
            _set_state(model.adapter_, "adapter", tensors)
            model.adapter_.requires_grad_(False)
            model.report_ = FitReport.from_dict(data["report"])
        model.trees_ = [
            BoostedTrees(float(baseline), tensors[f"trees{t}.starts"].numpy(), tensors[f"trees{t}.nodes"].numpy())
            for t, baseline in enumerate(data["baselines"])
        ]
        model.networks_ = [] if model.trees_ else [model._network(0) for _ in range(model.n_members)]
        for i, network in enumerate(model.networks_):
            _set_state(network, f"network{i}", tensors)
            network.requires_grad_(False).eval()
        return model

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
        if self.network == "trees" and (self.head, self.learn_adapter, self.n_draws) != ("class", "likelihood", 0):
            raise InputError("network='trees' takes head='class', learn_adapter='likelihood' and n_draws=0.")
        if self.network == "gru_d" and (self.adapter != "carry_forward" or self.inputs is not None):
            raise InputError(
                "network='gru_d' decays values itself: pass adapter='carry_forward' and leave `inputs` alone."
            )
        if self.n_draws and self.adapter != "mgp":
            raise InputError("`n_draws` needs adapter='mgp'; values carried forward have no uncertainty.")


def _state(module: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    """Parameters and buffers under a prefix."""
    return {f"{prefix}.{name}": value.detach().clone() for name, value in module.state_dict().items()}


def _set_state(module: torch.nn.Module, prefix: str, tensors: dict[str, Tensor]) -> None:
    """The inverse of `_state`; torch checks names and shapes."""
    module.load_state_dict({name: tensors[f"{prefix}.{name}"] for name in module.state_dict()})


class DecayedInputs(torch.nn.Module):
    """GRU-D behind the columns that `RiskInputs` makes of "mean", "age" and "measured" of M channels."""

    def __init__(self, n_channels: int, n_outputs: int, seed: int) -> None:
        super().__init__()
        self.n_channels = n_channels
        self.network = DecayingRecurrence(n_channels, n_outputs, seed=seed)

    def _columns(self, x: Tensor) -> Tensor:
        value, age, now, _ = x.split(self.n_channels, -1)
        return torch.cat([value, now, age], -1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `features.CausalNetwork`."""
        return self.network(self._columns(x), mask)

    def forward_step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """See `features.CausalNetwork`."""
        return self.network.forward_step(self._columns(x), state)

    def clean_state(self, batch: int) -> Any:
        """See `features.CausalNetwork`."""
        return self.network.clean_state(batch)


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
