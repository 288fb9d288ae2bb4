"""Optimisation loops within one process: ask and tell, and `minimise` and `maximise` over them."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import optuna
from optuna.trial import Trial, TrialState

from gpmoe.bo.sampler import GPMoESampler
from gpmoe.bo.space import Configuration, Space
from gpmoe.bo.trial_run import Objective, number, run_trial
from gpmoe.errors import InputError

Direction: TypeAlias = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Optimum:
    """What a loop found.

    Attributes:
        configuration: the best one.
        value: of the objective there.
        study: Optuna's study with every trial.
    """

    configuration: Configuration
    value: float
    study: optuna.Study


class AskTell:
    """Configurations to try and their outcomes, in the caller's own loop.

    Args:
        space: what is searched.
        maximise: whether larger outcomes are better.
        seed: fixes every suggestion.

    Example:
        >>> from gpmoe.bo import AskTell, Float, Space
        >>> loop = AskTell(Space({"x": Float(-1, 1)}), seed=0)
        >>> for _ in range(5):
        ...     batch = loop.ask(2)
        ...     for number, configuration in batch.items():
        ...         loop.tell(number, configuration["x"] ** 2)
        >>> loop.best().value < 0.01
        True
    """

    def __init__(self, space: Space, *, maximise: bool = False, seed: int | None = None) -> None:
        self.space = space
        direction: Direction = "maximize" if maximise else "minimize"
        self.study = optuna.create_study(direction=direction, sampler=GPMoESampler(seed, space=space))
        self._asked: dict[int, Trial] = {}

    def ask(self, q: int = 1) -> dict[int, Configuration]:
        """Configurations to try next, by the number of their trial; each knows of those before it.

        Args:
            q: how many.
        """
        batch = {}
        for _ in range(q):
            trial = self.study.ask()
            self._asked[trial.number] = trial
            batch[trial.number] = self.space.suggest(trial)
        return batch

    def tell(self, trial: int, value: float | None) -> None:
        """Tell the outcome of a trial.

        Args:
            trial: its number.
            value: the outcome; None if it failed.

        Raises:
            InputError: if there is no such trial under way, or the value is not one finite number.
        """
        if trial not in self._asked:
            raise InputError(f"there is no trial {trial} under way; those under way are {sorted(self._asked)}.")
        outcome = None if value is None else number(value)
        asked = self._asked.pop(trial)
        self.study.tell(asked, outcome, state=TrialState.FAIL if outcome is None else None)

    def best(self) -> Optimum:
        """The best outcome so far.

        Raises:
            InputError: if there is none.
        """
        return best_of(self.study)


def minimise(f: Objective, space: Space, n_trials: int, *, seed: int | None = None) -> Optimum:
    """The least value of a function of a configuration that so many calls find.

    Calls that raise or don't return a finite number are failed trials; see `run_trial`.

    Args:
        f: a function of a configuration, a dict of the active parameters.
        space: what is searched.
        n_trials: how often it is called.
        seed: fixes the suggestions.

    Raises:
        InputError: if every call failed.
    """
    return _optimise(f, space, n_trials, seed, "minimize")


def maximise(f: Objective, space: Space, n_trials: int, *, seed: int | None = None) -> Optimum:
    """The largest value of a function of a configuration that so many calls find; see `minimise`."""
    return _optimise(f, space, n_trials, seed, "maximize")


def best_of(study: optuna.Study) -> Optimum:
    """The best outcome of a study.

    Raises:
        InputError: if no trial has one; with the error of the last that failed.
    """
    trials = study.get_trials(deepcopy=False)
    if not any(trial.state == TrialState.COMPLETE for trial in trials):
        errors = [trial.user_attrs["error"] for trial in trials if "error" in trial.user_attrs]
        last = f" The last error was:\n{errors[-1]}" if errors else ""
        raise InputError(f"none of {len(trials)} trials has an outcome.{last}")
    best = study.best_trial
    return Optimum(dict(best.params), float(best.value or 0.0), study)


def _optimise(f: Objective, space: Space, n_trials: int, seed: int | None, direction: Direction) -> Optimum:
    if n_trials < 1:
        raise InputError(f"`n_trials` must be at least 1; got {n_trials}.")
    study = optuna.create_study(direction=direction, sampler=GPMoESampler(seed, space=space))
    for _ in range(n_trials):
        run_trial(study, f, space)
    return best_of(study)
