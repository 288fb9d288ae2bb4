"""Risks and alarms of many series as their measurements come in: what `AlarmPolicy` does, one grid time at a time."""

from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np

from gpmoe.early_warning.alarms import AlarmPolicy
from gpmoe.early_warning.regular_grid import grid_step
from gpmoe.early_warning.risk_stream import RiskStream
from gpmoe.errors import InputError


class Verdict(NamedTuple):
    """What is said of a series at a grid time.

    Attributes:
        id, time: whose, and when.
        risk: in [0, 1].
        alarm: an alarm goes off.
        active: the state of alarm holds.
    """

    id: Hashable
    time: float
    risk: float
    alarm: bool
    active: bool


class AlarmState:
    """One series under a policy; its alarms are those of `AlarmPolicy.alarms`.

    Args:
        policy: what decides.

    Example:
        >>> state = AlarmState(AlarmPolicy(0.5, release=0.3))
        >>> [state.step(t, risk) for t, risk in enumerate([0.6, 0.4, 0.2, 0.7])]
        [(True, True), (False, True), (False, False), (True, True)]
    """

    def __init__(self, policy: AlarmPolicy) -> None:
        self.policy = policy
        self._active, self._last, self._count = False, -np.inf, 0

    def step(self, time: float, risk: float) -> tuple[bool, bool]:
        """Whether an alarm goes off at the next grid time, and whether the state of alarm holds."""
        policy, before = self.policy, self._active
        release = policy.threshold if policy.release is None else policy.release
        if risk > policy.threshold:
            self._active = True
        elif risk <= release and not policy.latching:
            self._active = False
        raised = self._active and not before
        if policy.snooze is not None:
            raised = self._active and time - self._last >= policy.snooze * (1 - 1e-9)
        if raised:
            self._last, self._count = time, self._count + 1
        return raised and (policy.max_alarms is None or self._count <= policy.max_alarms), self._active


class AlarmStream:
    """Scores series on the grid k · every and raises alarms, in constant memory a series.

    A grid time is scored when the first measurement after it comes, or when the series ends. The risks and alarms are
    those of `predict_proba` and `AlarmPolicy.alarms` on `regular_grid`.

    Args:
        risks: a fresh stream of a model of one task, `EarlyWarningClassifier.stream()`.
        every: distance of grid times, as in training.
        policy: when a risk becomes an alarm; None for no alarms.

    Raises:
        InputError: if `every` is not positive and finite.
    """

    def __init__(self, risks: RiskStream, every: float, policy: AlarmPolicy | None = None) -> None:
        grid_step(0.0, every)
        self._risks, self._every, self._policy = risks, every, policy
        self._next: dict[Hashable, int] = {}
        self._states: dict[Hashable, AlarmState] = {}

    def __len__(self) -> int:
        """Series known."""
        return len(self._risks)

    def admit(self, id: Hashable, static: Any = ()) -> None:
        """Begin a series with its covariates; see `RiskStream.admit`."""
        self._risks.admit(id, static)

    def update(self, id: Hashable, time: float, channel: str, value: float) -> list[Verdict]:
        """Take one measurement in.

        Returns:
            Verdicts on the grid times before it that were not scored yet.

        Raises:
            InputError, NonFiniteError: as `RiskStream.update`; then nothing has changed.
        """
        self._risks.check(id, time, channel, value)
        found = []
        while id in self._next and self._next[id] * self._every < time:
            found.append(self._score(id))
        self._risks.update(id, time, channel, value)
        if id not in self._next:
            self._next[id] = grid_step(time, self._every)
        return found

    def end(self, id: Hashable) -> list[Verdict]:
        """End a series: its last grid time is scored, and its state is dropped.

        Raises:
            InputError: for an unknown series.
        """
        found = [self._score(id)] if id in self._next else []
        self._risks.forget(id)
        self._next.pop(id, None)
        self._states.pop(id, None)
        return found

    def end_all(self) -> list[Verdict]:
        """End every series that was measured, in the order in which they began."""
        return [verdict for id in list(self._next) for verdict in self.end(id)]

    def _score(self, id: Hashable) -> Verdict:
        time = self._next[id] * self._every
        risks = self._risks.score(id, time)
        if len(risks) != 1:
            raise InputError(f"alarms need a model of one task; this one has {len(risks)}.")
        self._next[id] += 1
        alarm = active = False
        if self._policy is not None:
            if id not in self._states:
                self._states[id] = AlarmState(self._policy)
            alarm, active = self._states[id].step(time, float(risks[0]))
        return Verdict(id, time, float(risks[0]), alarm, active)
