"""Optuna's sampler by Gaussian processes: everything it knows stands in the storage.

A suggestion is a function of the study's seed, the trial's number, and the trials that were there, whose numbers it
writes into the trial: a stopped and resumed study goes on as if it had not been stopped, and any suggestion can be
made again by `replay`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from scipy.stats import qmc

from gpmoe.bo.encoding import Encoding
from gpmoe.bo.history import SUGGESTED, View, evidence_of, space_of
from gpmoe.bo.lease import reap, take
from gpmoe.bo.search import Search
from gpmoe.bo.space import Configuration, Space, from_distribution
from gpmoe.bo.suggestion import Evidence, suggest
from gpmoe.errors import InputError

SEED = "gpmoe:seed"
RECORD = "gpmoe:suggestion"
_LONGEST = 2000  # characters of a system attribute; databases take 2045


class GPMoESampler(BaseSampler):
    """Suggests by log noisy expected improvement of a GP on warped inputs and outcomes.

    Failed trials tell where trials fail, pruned ones their last value; running ones are pending until their process is
    gone, and are then failed. Conditional parameters are modelled: those of `space`, or else as the trials so far show
    them. No configuration is proposed twice while there are others. If a suggestion can't be computed, a quasi-random
    point is proposed, and the reason is kept in the trial's system attribute ``gpmoe:suggestion``.

    Args:
        seed: of the study; that of the storage, or else one made of the study's name, if None.
        space: what is searched; the parameters that earlier trials asked for if None.
        n_startup_trials: how many trials, finished or under way, come before the first that a model suggests.
        lease_seconds: how long a trial on another host counts as alive without news.

    Example:
        >>> import optuna
        >>> study = optuna.create_study(sampler=GPMoESampler(seed=0))
        >>> study.optimize(lambda trial: (trial.suggest_float("x", -2, 2) - 1) ** 2, n_trials=12)
        >>> abs(study.best_params["x"] - 1) < 0.1
        True
    """

    def __init__(
        self,
        seed: int | None = None,
        *,
        space: Space | None = None,
        n_startup_trials: int = 6,
        lease_seconds: float = 3600.0,
    ) -> None:
        if n_startup_trials < 1 or not lease_seconds > 0:
            raise InputError(
                "`n_startup_trials` must be at least 1 and `lease_seconds` positive; "
                f"got {n_startup_trials} and {lease_seconds}."
            )
        self.seed = seed
        self.space = space
        self.n_startup_trials = n_startup_trials
        self.lease_seconds = lease_seconds

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Take the trial's lease, and fail those whose process is gone."""
        take(study, trial, self.lease_seconds)
        reap(study)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The distributions of the space, or of the parameters that trials asked for so far."""
        if self.space is not None:
            return self.space.to_optuna()
        space = space_of(View.of(study.get_trials(deepcopy=False), besides=trial.number))
        return {} if space is None else space.to_optuna()

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of a trial, those that its own choices make active."""
        self._expect_one_objective(study)
        if not search_space:
            return {}
        view = View.of(study.get_trials(deepcopy=False), besides=trial.number)
        configuration, reason = self.suggest(study, trial.number, view, search_space)
        self._keep(study, trial, configuration, view.record() | {"by": reason})
        return configuration

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A quasi-random value for a parameter that no trial asked for before."""
        self._expect_one_objective(study)
        parameter = from_distribution(param_distribution)
        seed = _counter(self._seed(study), "independent", param_name)
        u = float(qmc.Halton(1, seed=seed).fast_forward(trial.number).random(1)[0, 0])
        return parameter.from_unit(parameter.draw(u))

    def suggest(
        self, study: Study, number: int, view: View, search_space: Mapping[str, BaseDistribution]
    ) -> tuple[Configuration, str]:
        """The configuration of a trial, as a function of what it sees.

        Args:
            study: for its seed and direction.
            number: of the trial.
            view: the trials it sees.
            search_space: what is asked for; others are left out.

        Returns:
            The configuration, and what suggested it: "model", "start", or why no model did.
        """
        space = self._space(view, search_space)
        encoding = Encoding(space)
        seed = self._seed(study)
        if not encoding.names:
            return encoding.configuration(np.empty(0)), "start"
        maximise = study.direction == StudyDirection.MAXIMIZE
        evidence = evidence_of(encoding, view, maximise=maximise)
        known = len(evidence.y) + len(evidence.failed) + len(evidence.pending)
        reason = "start"
        if known >= self.n_startup_trials and evidence.final.any():
            # The one place where all errors are caught: a study must not end because a suggestion can't be computed.
            try:
                c = suggest(encoding, evidence, _counter(seed, "model", str(number)))
                if c is not None:
                    return encoding.configuration(c), "model"
                reason = "every configuration has been tried"
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"[:500]
        return self._scattered(encoding, evidence, seed, number), reason

    def _scattered(self, encoding: Encoding, evidence: Evidence, seed: int, number: int) -> Configuration:
        """The quasi-random configuration of a trial, the next one instead if it has been tried or is not allowed."""
        seen = np.concatenate([evidence.C, evidence.failed, evidence.pending])
        rng = np.random.default_rng(_counter(seed, "scattered", str(number)))
        sequence = qmc.Sobol(len(encoding.names), seed=np.random.default_rng(_counter(seed, "start", "")))
        if number:  # SciPy can't go forward by nothing
            sequence.fast_forward(number % 2**20)
        c = encoding.active(encoding.draw(sequence.random(1)))
        search = Search(encoding, seen, rng=rng)
        if search.is_new(c[0]) and encoding.allowed(c)[0]:
            return encoding.configuration(c[0])
        other = search.random()
        return encoding.configuration(c[0] if other is None else other)

    def _space(self, view: View, search_space: Mapping[str, BaseDistribution]) -> Space:
        """The part of the space that is asked for, with its conditions."""
        whole = self.space if self.space is not None else space_of(view)
        parts = {}
        for name, distribution in search_space.items():
            known = None if whole is None else whole.parameters.get(name)
            if known is None:
                known = from_distribution(distribution)
            elif any(parent not in search_space for parent in known.when or {}):
                known = type(known)(**(vars(known) | {"when": None}))
            parts[name] = known
        whole_is_asked = whole is not None and set(whole.parameters) == set(parts)
        return Space(parts, whole.constraints if whole is not None and whole_is_asked else ())

    def _seed(self, study: Study) -> int:
        stored = study._storage.get_study_system_attrs(study._study_id).get(SEED)
        if stored is not None:
            return int(stored)
        seed = _counter(0, "study", study.study_name) if self.seed is None else self.seed
        study._storage.set_study_system_attr(study._study_id, SEED, seed)
        return seed

    def _keep(self, study: Study, trial: FrozenTrial, configuration: Configuration, record: Mapping[str, str]) -> None:
        """Write what was suggested, and what was seen, into the trial."""
        write = study._storage.set_trial_system_attr
        if len(json.dumps(configuration)) < _LONGEST:
            write(trial._trial_id, SUGGESTED, configuration)
        text = json.dumps(record)
        for i, start in enumerate(range(0, len(text), _LONGEST)):
            write(trial._trial_id, RECORD if i == 0 else f"{RECORD}:{i}", text[start : start + _LONGEST])

    def _expect_one_objective(self, study: Study) -> None:
        if len(study.directions) != 1:
            raise ValueError(f"GPMoESampler takes one objective; the study has {len(study.directions)}.")


def record_of(trial: FrozenTrial) -> dict[str, str] | None:
    """What a trial recorded of its suggestion: the trials seen, those pending, and by what; None if nothing."""
    text = trial.system_attrs.get(RECORD)
    if text is None:
        return None
    parts, i = [text], 1
    while f"{RECORD}:{i}" in trial.system_attrs:
        parts.append(trial.system_attrs[f"{RECORD}:{i}"])
        i += 1
    record: dict[str, str] = json.loads("".join(parts))
    return record


def replay(study: Study, number: int, sampler: GPMoESampler) -> Configuration:
    """Make a suggestion again from what the trial recorded.

    Args:
        study: with the trials that it saw.
        number: of the trial.
        sampler: made as that of the study.

    Raises:
        InputError: if the trial was not suggested by such a sampler.
    """
    trials: Sequence[FrozenTrial] = study.get_trials(deepcopy=False)
    record = record_of(trials[number])
    if record is None:
        raise InputError(f"trial {number} of study `{study.study_name}` has no recorded suggestion.")
    view = View.recorded(trials, record)
    space = sampler.space if sampler.space is not None else space_of(view)
    configuration, _ = sampler.suggest(study, number, view, {} if space is None else space.to_optuna())
    return configuration


def _counter(seed: int, *words: str) -> int:
    """A number below 2^31 made of a seed and words."""
    digest = hashlib.sha256("\0".join([str(seed), *words]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
