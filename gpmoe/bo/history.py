"""What a suggestion sees of a study: the trials of one moment, their space, and what they tell."""

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from gpmoe.bo.encoding import Encoding
from gpmoe.bo.lease import REAPED, is_alive
from gpmoe.bo.parameters import Categorical, Int, Value
from gpmoe.bo.space import Space, from_distribution
from gpmoe.bo.suggestion import Evidence

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class View:
    """The trials that a suggestion saw.

    Attributes:
        finished: completed, pruned and failed trials, by number.
        pending: those under way, by number.
    """

    finished: tuple[FrozenTrial, ...]
    pending: tuple[FrozenTrial, ...]

    @classmethod
    def of(cls, trials: Sequence[FrozenTrial], *, besides: int) -> "View":
        """The present view.

        Args:
            trials: of the study.
            besides: number of the trial that is being suggested, which it does not see.
        """
        others = [trial for trial in trials if trial.number != besides]
        finished = tuple(trial for trial in others if trial.state in _FINISHED)
        running = (trial for trial in others if trial.state == TrialState.RUNNING)
        return cls(finished, tuple(trial for trial in running if is_alive(trial)))

    def record(self) -> dict[str, str]:
        """The numbers of the trials, as ranges such as 0-12,14."""
        return {"seen": _ranges(self.finished), "pending": _ranges(self.pending)}

    @classmethod
    def recorded(cls, trials: Sequence[FrozenTrial], record: Mapping[str, str]) -> "View":
        """The view that a trial recorded, from the trials as they are now."""
        seen, pending = _numbers(record["seen"]), _numbers(record["pending"])
        waiting = (replace_state(trial, TrialState.RUNNING) for trial in trials if trial.number in pending)
        return cls(tuple(trial for trial in trials if trial.number in seen), tuple(waiting))


def replace_state(trial: FrozenTrial, state: TrialState) -> FrozenTrial:
    """A trial as it was in another state."""
    before = copy(trial)
    before.state = state
    return before


def space_of(view: View) -> Space | None:
    """The space that the parameters of completed and pruned trials span, None if there is none.

    The latest distribution of each parameter counts. A parameter that some trials don't have is taken to depend on a
    parameter that they all have, if one is found whose choices tell apart who has it; else to be always active.
    """
    trials = [trial for trial in view.finished if trial.state != TrialState.FAIL] or list(view.finished)
    distributions: dict[str, BaseDistribution] = {}
    for trial in trials:
        distributions |= trial.distributions
    if not distributions:
        return None
    parameters = {name: from_distribution(distribution) for name, distribution in distributions.items()}
    always = [
        name
        for name, parameter in parameters.items()
        if isinstance(parameter, Categorical | Int) and all(name in trial.params for trial in trials)
    ]
    for name, parameter in parameters.items():
        if any(name not in trial.params for trial in trials):
            when = _condition(name, [parent for parent in always if parent != name], trials, distributions)
            parameters[name] = replace(parameter, when=when)
    return Space(parameters)


def evidence_of(encoding: Encoding, view: View, *, maximise: bool) -> Evidence:
    """What the trials of a view tell, in the coordinates of a space.

    Completed trials tell their value, pruned ones the last value that they reported, failed ones that they failed,
    unless it was their process that ended. Trials outside the space are left out.
    """
    told: list[tuple[FrozenTrial, float]] = []
    failed: list[FrozenTrial] = []
    for trial in view.finished:
        value = _last_value(trial)
        if trial.state == TrialState.FAIL or value is None or math.isnan(value):
            if REAPED not in trial.system_attrs and trial.state != TrialState.PRUNED:
                failed.append(trial)
        else:
            told.append((trial, value))
    inside = [(trial, value) for trial, value in told if _fits(trial, encoding)]
    y = finite(np.array([value for _, value in inside], dtype=np.float64))
    return Evidence(
        C=_coordinates(encoding, [trial for trial, _ in inside]),
        y=y if maximise else -y,
        final=np.array([trial.state == TrialState.COMPLETE for trial, _ in inside], dtype=bool),
        failed=_coordinates(encoding, [trial for trial in failed if _fits(trial, encoding)]),
        pending=_coordinates(encoding, [trial for trial in view.pending if _fits(trial, encoding)]),
    )


def finite(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Outcomes ``(n,)`` divided by the largest finite magnitude; infinite ones lie one magnitude beyond it."""
    is_finite = np.isfinite(y)
    largest = np.abs(y[is_finite]).max(initial=0.0)
    return np.where(is_finite, np.where(is_finite, y, 0.0) / (largest or 1.0), 2 * np.sign(y))


SUGGESTED = "gpmoe:suggested"  # system attribute with the parameters of a trial, before it was asked for them


def parameters_of(trial: FrozenTrial) -> dict[str, Value]:
    """The parameters that a trial has, or those that were suggested for it if it has not asked for them yet."""
    if trial.params or trial.state != TrialState.RUNNING:
        return dict(trial.params)
    suggested: dict[str, Value] = trial.system_attrs.get(SUGGESTED, {})
    return suggested


def _coordinates(encoding: Encoding, trials: Sequence[FrozenTrial]) -> NDArray[np.float64]:
    return encoding.coordinates([parameters_of(trial) for trial in trials])


def _fits(trial: FrozenTrial, encoding: Encoding) -> bool:
    """Whether a trial lies in the space: every value it has there is one that its parameter takes."""
    values = parameters_of(trial)
    distributions = encoding.space.to_optuna()
    mine = [name for name in encoding.names if name in values]
    return bool(mine) and all(_contains(distributions[name], values[name]) for name in mine)


def _contains(distribution: BaseDistribution, value: Value) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and distribution._contains(distribution.to_internal_repr(value))


def _last_value(trial: FrozenTrial) -> float | None:
    if trial.state == TrialState.COMPLETE:
        return trial.value
    if trial.state == TrialState.PRUNED and trial.last_step is not None:
        return trial.intermediate_values[trial.last_step]
    return None


def _condition(
    name: str,
    parents: Sequence[str],
    trials: Sequence[FrozenTrial],
    distributions: Mapping[str, BaseDistribution],
) -> dict[str, tuple[Value, ...]] | None:
    """The parent and its choices under which trials have a parameter."""
    for parent in parents:
        having = {trial.params[parent] for trial in trials if name in trial.params}
        lacking = {trial.params[parent] for trial in trials if name not in trial.params}
        known = [value for value in having if _contains(distributions[parent], value)]
        if known and not having & lacking:
            return {parent: tuple(sorted(known, key=str))}
    return None


def _ranges(trials: Sequence[FrozenTrial]) -> str:
    parts: list[list[int]] = []
    for number in sorted(trial.number for trial in trials):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _numbers(text: str) -> set[int]:
    numbers: set[int] = set()
    for part in text.split(",") if text else []:
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers
