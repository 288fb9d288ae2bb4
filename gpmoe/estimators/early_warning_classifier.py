"""Early warning: a multi-task GP in front of a causal network, front door."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from gpmoe.early_warning.boosted_trees import BoostedTrees
from gpmoe.early_warning.explanation import Contributions, integrated_gradients
from gpmoe.early_warning.hand_features import hand_features
from gpmoe.early_warning.next_measurement import NextMeasurement, next_measurement_of_series
from gpmoe.early_warning.risk_bodies import NETWORKS, risk_network
from gpmoe.early_warning.risk_fitting import (
    Labelled,
    event_targets,
    fit_network,
    fitted_adapter,
    label_targets,
    median_step,
)
from gpmoe.early_warning.risk_inputs import RiskInputs, checked_parts
from gpmoe.early_warning.risk_network import RiskNetwork, Targets, Training, risk
from gpmoe.early_warning.risk_scorer import RiskScorer, pooled
from gpmoe.early_warning.risk_stream import RiskStream
from gpmoe.early_warning.scaling import SeriesScaling
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError
from gpmoe.estimators.early_warning_parts import (
    adapter_parts,
    module_tensors,
    restored_adapter,
    restored_trees,
    set_module_tensors,
    trees_parts,
)
from gpmoe.estimators.series_classifier import SeriesClassifier

Array = NDArray[np.float64]

_ADAPTERS = ("mgp", "carry_forward")
_ALL_INPUTS = ("mean", "variance", "age", "measured", "static", "clock")
_WEIGHT_DECAY, _PATIENCE = 0.1, 5  # of AdamW; epochs without a better validation loss
_MOST_TREES = 300  # before those are dropped that the validation series don't want
_ROWS_A_LABEL = 8  # of a series whose grid times share one label: more of them say little more


class EarlyWarningClassifier(SeriesClassifier):
    """Risk at each time of irregular, incomplete series, from their past alone.

    A multi-task Gaussian process turns the measurements up to each grid time into the posterior of all channels there;
    a causal network reads it, with its uncertainty, and says the risk.

    Args:
        network: "tcn" (dilated causal convolutions), "gru", "linear" (no memory), "gru_d" (Che et al., 2018), which
            has decays of its own in place of the adapter and takes adapter="carry_forward", or "trees": boosted trees
            on the same inputs and on hand features of each channel's past. Several, such as ["trees", "tcn"], are a
            committee, whose log odds are averaged.
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
        n_experts: of several tasks (labels with a column each): experts on top of the network, which a gate of each
            task mixes; see `early_warning.multitask_head`. 0 for a linear head.
        hidden: width of the network.
        n_blocks: of "tcn", whose past is 2^(n_blocks + 2) grid times; layers of "gru", at most two.
        n_components: time scales of the GP.
        rank: of its coregionalisation.
        max_epochs, batch_size, learning_rate: see `early_warning.risk_network.Training`.
        positive_weight: how much a positive label counts; "balanced" gives both classes the same total.
        validation_fraction: of the series, held back to stop early and to calibrate.
        calibration: "temperature", "isotonic" or None.
        n_members: of each network, trained from different starts, whose log odds are averaged.
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
        network: str | Sequence[str] = "tcn",
        adapter: str = "mgp",
        inputs: Sequence[str] | None = None,
        n_draws: int = 0,
        learn_adapter: str = "likelihood",
        head: str = "class",
        horizon: float | None = None,
        n_bins: int = 6,
        n_experts: int = 0,
        hidden: int = 64,
        n_blocks: int = 4,
        n_components: int = 2,
        rank: int = 2,
        max_epochs: int = 15,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
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
        self.n_experts = n_experts
        self.hidden = hidden
        self.n_blocks = n_blocks
        self.n_components = n_components
        self.rank = rank
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.positive_weight = positive_weight
        self.validation_fraction = validation_fraction
        self.calibration = calibration
        self.n_members = n_members
        self.verbose = verbose
        self.random_state = random_state

    def _fit(self, training: RaggedSeries, validation: RaggedSeries, seed: int) -> None:
        self._check_arguments()
        self.scaling_ = SeriesScaling.fit(training, "normal")
        self.step_ = median_step(training)
        scaled, held = self.scaling_.apply(training), self.scaling_.apply(validation)
        self.adapter_ = None
        if self.adapter == "mgp":
            self.adapter_, self.report_ = fitted_adapter(scaled, self.n_components, self.rank, seed)
            self.adapter_.requires_grad_(self.learn_adapter == "joint")
        self.networks_, self.losses_, self.trees_ = [], [], []
        if "trees" in self._kinds:
            self.trees_ = self._grown(training, scaled, validation, held, seed)
        learn, check = (Labelled(part, self._loss_targets(part)) for part in (scaled, held))
        learning = self.adapter_ if self.learn_adapter == "joint" else None
        for kind, member in self._members():
            network = self._network(kind, seed + member)
            losses = fit_network(
                network, self._reader(), learn, check, self._training(), n_draws=self.n_draws, adapter=learning,
                seed=seed + member,
            )  # fmt: skip
            self.networks_.append(network)
            self.losses_.append(losses)

    @property
    def _kinds(self) -> tuple[str, ...]:
        return (self.network,) if isinstance(self.network, str) else tuple(self.network)

    def _members(self) -> list[tuple[str, int]]:
        """Kind and number of each network."""
        return [(kind, member) for kind in self._kinds if kind != "trees" for member in range(self.n_members)]

    def _training(self) -> Training:
        progress = _print_epoch if self.verbose else None
        return Training(self.max_epochs, self.batch_size, self.learning_rate, _WEIGHT_DECAY, _PATIENCE, progress)

    def _grown(
        self, training: RaggedSeries, scaled: RaggedSeries, validation: RaggedSeries, held: RaggedSeries, seed: int
    ) -> list[BoostedTrees]:
        rows, ends = self._tree_rows(training), self._tree_rows(validation)
        X, labels = self._tree_features(training, scaled)[rows], self._targets(training)[rows]
        X_held, held_labels = self._tree_features(validation, held)[ends], self._targets(validation)[ends]
        grown = []
        for y, y_held in zip(labels.T, held_labels.T, strict=True):
            known, known_held = ~np.isnan(y), ~np.isnan(y_held)
            check = (X_held[known_held], y_held[known_held]) if known_held.any() else None
            members = [
                BoostedTrees.grow(X[known], y[known], check, max_iter=_MOST_TREES, seed=seed + member)
                for member in range(self.n_members)
            ]
            grown.append(BoostedTrees.averaged(members))
        return grown

    def _tree_rows(self, series: RaggedSeries) -> NDArray[np.int64]:
        """Grid rows that trees learn from: all, or a few of each series where these share one label."""
        if series.label_per == "grid":
            return np.arange(len(series.grid_times))
        spans = zip(series.grid_offsets[:-1], series.grid_offsets[1:], strict=True)
        return np.concatenate([np.arange(end - 1, start - 1, -max(1, (end - start) // _ROWS_A_LABEL))
                               for start, end in spans])  # fmt: skip

    @torch.no_grad()
    def _tree_features(self, series: RaggedSeries, scaled: RaggedSeries) -> NDArray[np.float32]:
        """Inputs of a network, and hand features of the values as they came, ``(G, columns)``."""
        return np.concatenate([self._reader()(scaled).float().numpy(), hand_features(series)], axis=1)

    def _input_parts(self) -> tuple[str, ...]:
        has_adapter = self.adapter == "mgp"
        chosen = ("mean", "age", "measured") if "gru_d" in self._kinds else self.inputs
        if chosen is None:
            chosen = _ALL_INPUTS if has_adapter else tuple(part for part in _ALL_INPUTS if part != "variance")
        return checked_parts(chosen, has_adapter=has_adapter)

    def _reader(self) -> RiskInputs:
        n_channels, n_static = len(self.channel_names_), len(self.static_names_)
        return RiskInputs(self._input_parts(), n_channels, n_static, self.step_, self.adapter_)

    def _network(self, kind: str, seed: int) -> RiskNetwork:
        return risk_network(
            kind, self._reader(), hidden=self.hidden, n_blocks=self.n_blocks,
            n_bins=self.n_bins if self.head == "hazard" else 1, n_tasks=self.n_tasks_, n_experts=self.n_experts,
            seed=seed,
        )  # fmt: skip

    def _loss_targets(self, series: RaggedSeries) -> Targets:
        if self.head == "hazard" and self.horizon is not None:
            return event_targets(series, self.horizon, self.n_bins)
        return label_targets(self._targets(series), self.positive_weight)

    def _scorer(self) -> RiskScorer:
        return RiskScorer(self._reader(), self.networks_, self.n_draws)

    def _raw(self, series: RaggedSeries) -> Array:
        scaled, found = self.scaling_.apply(series), []
        if self.trees_:
            X = self._tree_features(series, scaled)
            found.append(np.column_stack([each.predict(X) for each in self.trees_]))
        if self.networks_:
            found.append(risk(self._scorer().logits(scaled).double()).numpy())
        return pooled(found, 1 / len(self._kinds))

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
        scaled, scorer = self.scaling_.apply(series), self._scorer()
        logits = (scorer.one_draw(scaled, random_state + i) for i in range(n_draws))
        return np.stack([self._shaped(self._calibrated(risk(each.double()).numpy())) for each in logits])

    def stream(self) -> RiskStream:
        """A fresh stream, which takes one observation at a time and says the same risks as `predict_proba`.

        Raises:
            InputError: for a model of draws, whose average has no step-wise form.
        """
        check_is_fitted(self, "networks_")
        if self.n_draws:
            raise InputError("a model with `n_draws` can't stream; fit one with n_draws=0.")
        return RiskStream(
            self._reader(), self.networks_, self.trees_, 1 / len(self._kinds), self.scaling_, self.channel_names_,
            self._calibrated,
        )  # fmt: skip

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
        past = past.with_grid(grid, [0, len(grid)])
        scaled, scorer = self.scaling_.apply(past), self._scorer()
        with torch.enable_grad():
            found, top, base = integrated_gradients(
                lambda value: scorer.last_logit(scaled, value, task), torch.from_numpy(scaled.value.copy()), steps
            )
        return Contributions(past.time, past.channel, past.value, found, top, base, past.channel_names)

    def next_measurement(self, series: RaggedSeries, time: float, task: int = 0) -> NextMeasurement:
        """Which channel of one series is most worth measuring at a time; see `early_warning.next_measurement`.

        Args:
            series: a single one; later data are left out.
            time: of the risk and the measurement.
            task: whose risk.

        Raises:
            InputError: if there is not exactly one series, and without the GP or its mean among the inputs.
        """
        self._expect_known(series)
        return next_measurement_of_series(self.stream(), series, time, task=task)

    def _expect_network(self, what: str) -> None:
        if self.trees_:
            raise InputError(f"{what}; 'trees' have none. Fit a 'tcn' or a 'gru' alone.")

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `io.Savable`."""
        data, tensors = self._common_parts(), self._common_tensors()
        data["arguments"]["inputs"] = None if self.inputs is None else list(self.inputs)
        data["arguments"]["network"] = self.network if isinstance(self.network, str) else list(self.network)
        data |= {"step": self.step_, "losses": self.losses_}
        for name in ("knots", "scores"):
            tensors[f"scaling.{name}"] = torch.from_numpy(np.array(getattr(self.scaling_, name)))
        parts = [trees_parts(self.trees_)]
        if self.adapter_ is not None:
            parts.append(adapter_parts(self.adapter_, self.report_))
        for more_data, more_tensors in parts:
            data |= more_data
            tensors |= more_tensors
        for i, network in enumerate(self.networks_):
            tensors |= module_tensors(network, f"network{i}")
        return data, tensors

    @classmethod
    def from_parts(cls, data: dict[str, Any], tensors: dict[str, Tensor]) -> "EarlyWarningClassifier":
        """See `io.Savable`."""
        model = cls._restored(data, tensors)
        model._check_arguments()
        knots, scores = (tensors[f"scaling.{name}"].numpy() for name in ("knots", "scores"))
        model.scaling_ = SeriesScaling("normal", knots, scores, len(model.channel_names_))
        model.step_, model.losses_, model.adapter_ = float(data["step"]), data["losses"], None
        if "families" in data:
            model.adapter_, model.report_ = restored_adapter(data, tensors, len(model.channel_names_), model.rank)
        model.trees_ = restored_trees(data, tensors)
        model.networks_ = [model._network(kind, 0) for kind, _ in model._members()]
        for i, network in enumerate(model.networks_):
            set_module_tensors(network, f"network{i}", tensors)
            network.requires_grad_(False).eval()
        return model

    def _check_arguments(self) -> None:
        if not self._kinds:
            raise InputError("`network` is empty; name one or several, such as 'tcn' or ['trees', 'tcn'].")
        for name, value, known in (
            *(("network", kind, (*NETWORKS, "trees")) for kind in self._kinds),
            ("adapter", self.adapter, _ADAPTERS),
            ("learn_adapter", self.learn_adapter, ("likelihood", "joint")),
            ("head", self.head, ("class", "hazard")),
        ):
            if value not in known:
                raise InputError(f"`{name}` must be one of {', '.join(known)}; got {value!r}.")
        if self.head == "hazard" and (self.horizon is None or not self.horizon > 0):
            raise InputError(f"head='hazard' needs a positive `horizon`, in units of time; got {self.horizon!r}.")
        given = self.head, self.learn_adapter, self.n_draws, self.n_experts
        if "trees" in self._kinds and given != ("class", "likelihood", 0, 0):
            raise InputError("'trees' take head='class', learn_adapter='likelihood', n_draws=0, n_experts=0.")
        if "gru_d" in self._kinds and (
            len(self._kinds) > 1 or self.adapter != "carry_forward" or self.inputs is not None
        ):
            raise InputError(
                "'gru_d' decays values itself and stands alone: pass adapter='carry_forward' and leave `inputs` alone."
            )
        if self.n_draws and self.adapter != "mgp":
            raise InputError("`n_draws` needs adapter='mgp'; values carried forward have no uncertainty.")
        self._input_parts()


def _print_epoch(epoch: int, training: float, validation: float) -> None:
    print(f"epoch {epoch + 1}: loss {training:.5f}, on validation series {validation:.5f}", flush=True)
