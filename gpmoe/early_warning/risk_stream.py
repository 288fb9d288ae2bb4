"""Risks of many series as their measurements come in, one at a time, in constant memory."""

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.early_warning.boosted_trees import BoostedTrees
from gpmoe.early_warning.hand_features import HandState
from gpmoe.early_warning.risk_inputs import RiskInputs
from gpmoe.early_warning.risk_network import RiskNetwork, risk
from gpmoe.early_warning.risk_scorer import pooled
from gpmoe.early_warning.scaling import SeriesScaling
from gpmoe.errors import InputError, NonFiniteError
from gpmoe.models.channel_posterior import ChannelPosterior
from gpmoe.models.measurement_history import MeasurementHistory
from gpmoe.models.streaming_mgp import StreamingMGP


class Observation(NamedTuple):
    """One measurement."""

    id: Hashable
    time: float
    channel: str
    value: float


class RiskStream:
    """The classifier's risk after each observation, for many series at once; equal to `predict_proba` to rounding.

    A series needs the state of a Kalman filter, d (d + 1) numbers for d = M Σ_q (ν_q + 1/2), and of the networks,
    whatever has been seen. Series can come and go: `forget` frees one's place.

    Args:
        reader: makes the inputs.
        networks: whose logits are averaged; may be none.
        trees: one ensemble a task on inputs and hand features; may be none.
        share_of_trees: their weight beside networks, see `risk_scorer.pooled`.
        scaling: of channels and covariates.
        channel_names: M names.
        calibrate: from risks ``(r, tasks)`` to probabilities.
    """

    def __init__(
        self,
        reader: RiskInputs,
        networks: list[RiskNetwork],
        trees: list[BoostedTrees],
        share_of_trees: float,
        scaling: SeriesScaling,
        channel_names: tuple[str, ...],
        calibrate: Any,
    ) -> None:
        self._reader, self._networks, self._trees = reader, networks, trees
        self._share_of_trees, self._scaling, self._calibrate = share_of_trees, scaling, calibrate
        self._channels = {name: i for i, name in enumerate(channel_names)}
        self._series: dict[Hashable, _Series] = {}
        adapter = reader.adapter
        self._prior = None if adapter is None else adapter.coregionalisation.detach().sum(0).diagonal()
        self._adapter = adapter

    def __len__(self) -> int:
        """Series known."""
        return len(self._series)

    def admit(self, id: Hashable, static: Any = ()) -> None:
        """Begin a series, with its covariates ``(s,)``, NaN where unknown.

        Raises:
            InputError: if it is known already, or has another number of covariates.
        """
        given = np.asarray(static, dtype=np.float64).ravel()
        if id in self._series:
            raise InputError(f"series {id!r} is known already; `forget` it to begin it again.")
        if len(given) not in (0, self._reader.n_static):
            raise InputError(f"`static` must hold {self._reader.n_static} covariates; got {len(given)}.")
        if not len(given):
            given = np.full(self._reader.n_static, np.nan)
        self._series[id] = _Series(self, given)

    def forget(self, id: Hashable) -> None:
        """Drop a series and its state."""
        self._known(id)
        del self._series[id]

    def update(self, id: Hashable, time: float, channel: str, value: float) -> None:
        """Take one observation in; a series that was not admitted begins, without covariates.

        Raises:
            InputError: for an unknown channel, or a time before one already seen or scored.
            NonFiniteError: for a time or a value that is not finite.
        """
        self.check(id, time, channel, value)
        if id not in self._series:
            self.admit(id)
        index = self._channels[channel]
        scaled = float(self._scaling.values([index], [value])[0])
        self._series[id].update(time, index, scaled, float(value))

    def check(self, id: Hashable, time: float, channel: str, value: float) -> None:
        """Raise what `update` would, but for lateness, and change nothing."""
        if channel not in self._channels:
            raise InputError(f"`channel` must be one of the {len(self._channels)} of training; got {channel!r}.")
        if not (np.isfinite(time) and np.isfinite(value)):
            raise NonFiniteError(f"`time` and `value` must be finite; got {time} and {value} for series {id!r}.")

    def score(self, id: Hashable, time: float) -> NDArray[np.float64]:
        """The risk at the series' next grid time, ``(tasks,)``; the network moves on by one step.

        Raises:
            InputError: for an unknown series, or a time not after the last scored or before the last observation.
        """
        return self._known(id).score(time)

    def look(self, id: Hashable, time: float) -> tuple[Tensor, ChannelPosterior | None, list[Any]]:
        """What `score` would read at a time, changing nothing.

        Returns:
            Inputs of the networks ``(1, width)``, the posterior of the scaled channels (None without the Gaussian
            process), and the state of each network, which is not to be changed.

        Raises:
            InputError: as `score`.
        """
        known = self._known(id)
        if self._trees:
            raise InputError("'trees' have no state to look at. Fit a 'tcn' or a 'gru' alone.")
        return *known.inputs(time), known.states

    @property
    def reader(self) -> RiskInputs:
        """What makes the inputs."""
        return self._reader

    @property
    def networks(self) -> list[RiskNetwork]:
        """Whose logits are averaged."""
        return self._networks

    @property
    def channel_names(self) -> tuple[str, ...]:
        """M names."""
        return tuple(self._channels)

    def run(
        self, observations: Iterable[Observation | tuple[Hashable, float, str, float]], every: float
    ) -> Iterator[tuple[Hashable, float, NDArray[np.float64]]]:
        """Scores at the grid 0, every, 2 every, ... of each series, each as soon as it is certain.

        A grid time is scored when the first observation beyond it comes; `early_warning.alarm_stream` also ends a
        series.

        Args:
            observations: (id, time, channel, value), within a series in order of time.
            every: distance of grid times, as in training; the grid begins at the last multiple of it that is not after
                the series' first observation.

        Yields:
            id, grid time, risk ``(tasks,)``.
        """
        if not every > 0:
            raise InputError(f"`every` must be positive; got {every}.")
        for id, time, channel, value in observations:
            known = self._series.get(id)
            if known is None or known.next_step is None:
                self.update(id, time, channel, value)
                self._series[id].next_step = int(np.ceil(time / every))
                continue
            while known.next_step * every < time:
                at = known.next_step * every
                yield id, at, known.score(at)
                known.next_step += 1
            self.update(id, time, channel, value)

    def probabilities(self, logits: list[Tensor]) -> NDArray[np.float64]:
        """Calibrated risks ``(r, tasks)`` of the logits of each network ``(r, bins, tasks)``."""
        found: NDArray[np.float64] = self._calibrate(risk(torch.stack(logits).mean(0).double()).numpy())
        return found

    def _known(self, id: Hashable) -> "_Series":
        if id not in self._series:
            raise InputError(f"series {id!r} is unknown; `admit` it or give it an observation first.")
        return self._series[id]


def stepped(network: RiskNetwork, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Logits ``(r, bins, tasks)`` of one grid time's inputs ``(r, width)``, and the body's state after it."""
    hidden, after = network.body.forward_step(x, state)  # type: ignore[operator]
    return network.head(hidden.unsqueeze(1)).squeeze(1).unflatten(-1, (-1, network.tasks)), after


class _Series:
    """State of one series."""

    def __init__(self, stream: RiskStream, static: NDArray[np.float64]) -> None:
        self.stream, self.raw_static = stream, static
        self.static = torch.from_numpy(stream._scaling.static(static)).unsqueeze(0)
        M = stream._reader.n_channels
        self.hand = HandState(M) if stream._trees else None
        self.filter = None if stream._adapter is None else StreamingMGP(stream._adapter, 1)
        self.values = torch.zeros(1, M, dtype=torch.float64)
        self.latest = torch.full((1, M), -torch.inf, dtype=torch.float64)
        self.count = torch.zeros(1, M, dtype=torch.float64)
        self.first, self.seen, self.scored = np.inf, -np.inf, -np.inf
        self.states = [network.body.clean_state(1) for network in stream._networks]  # type: ignore[operator]
        self.next_step: int | None = None

    def update(self, time: float, channel: int, value: float, raw: float) -> None:
        if time < self.seen or time <= self.scored:
            raise InputError(
                f"an observation at {time} comes too late: the series stands at {max(self.seen, self.scored)}. "
                "Sort observations by time."
            )
        if self.filter is not None:
            self.filter.update([0], [time], [channel], [value])
        if self.hand is not None:
            self.hand.update(time, channel, raw)
        self.values[0, channel], self.latest[0, channel] = value, time
        self.count[0, channel] += 1
        self.first, self.seen = min(self.first, time), time

    @torch.no_grad()
    def score(self, time: float) -> NDArray[np.float64]:
        x, _ = self.inputs(time)
        self.count.zero_()
        self.scored = time
        stream, risks = self.stream, []
        if self.hand is not None:
            row = np.concatenate([x.numpy(), self.hand.features(time, self.raw_static)], axis=1)
            risks.append(np.column_stack([each.predict(row) for each in stream._trees]))
        logits = []
        for i, network in enumerate(stream._networks):
            out, self.states[i] = stepped(network, x, self.states[i])
            logits.append(out)
        if logits:
            risks.append(risk(torch.stack(logits).mean(0).double()).numpy())
        found: NDArray[np.float64] = stream._calibrate(pooled(risks, stream._share_of_trees))[0]
        return found

    def inputs(self, time: float) -> tuple[Tensor, ChannelPosterior | None]:
        """What the networks read at a time ``(1, width)``, and the posterior of the scaled channels."""
        if not np.isfinite(time) or time <= self.scored or time < self.seen:
            raise InputError(
                f"`time` must be after the last scored ({self.scored}) and not before the last observation "
                f"({self.seen}); got {time}."
            )
        stream, reader = self.stream, self.stream._reader
        measured = self.latest.isfinite()
        origin = torch.where(measured, self.latest, torch.as_tensor(self.first, dtype=torch.float64))
        since = (time - origin).clamp_min(0.0).nan_to_num(posinf=0.0)
        history = MeasurementHistory(since, measured.double(), self.count)
        posterior = None if self.filter is None else self.filter.posterior([0], [time])
        mean, variance = (self.values, None) if posterior is None else (posterior.mean, posterior.variance)
        at = torch.tensor([time], dtype=torch.float64)
        return reader.assembled(mean, variance, stream._prior, history, self.static, at).float(), posterior
