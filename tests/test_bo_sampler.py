"""The sampler for Optuna: its search, what it knows, resuming, failures, conditions, leases, strange objectives."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from gpmoe.bo.acquisition import Acquisition
from gpmoe.bo.encoding import Encoding
from gpmoe.bo.history import View, space_of
from gpmoe.bo.lease import KEY, Lease, reap
from gpmoe.bo.parameters import Categorical, Float, Int, Ordinal
from gpmoe.bo.sampler import GPMoESampler, record_of, replay
from gpmoe.bo.search import Search
from gpmoe.bo.space import LinearConstraint, Space
from gpmoe.errors import InputError

optuna.logging.set_verbosity(optuna.logging.ERROR)

CONDITIONAL = Space(
    {
        "kind": Categorical(["a", "b"]),
        "x": Float(0, 1, when={"kind": ["a"]}),
        "n": Int(1, 5, when={"kind": ["b"]}),
    }
)


def study_of(sampler: GPMoESampler, **options: Any) -> optuna.Study:
    return optuna.create_study(sampler=sampler, **options)


def quadratic(trial: optuna.Trial) -> float:
    return (trial.suggest_float("x", -3, 3) - 1) ** 2 + trial.suggest_int("n", 0, 4)


def reasons(study: optuna.Study) -> list[str]:
    return [record["by"] for trial in study.trials if (record := record_of(trial))]


class Peak:
    """An acquisition whose maximum is known: minus the squared distance of model inputs from a point."""

    def __init__(self, target: np.ndarray) -> None:
        self.target = target

    def __call__(self, X: np.ndarray) -> np.ndarray:
        return -((X - self.target) ** 2).sum(1)

    def with_slope(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self(X), -2 * (X - self.target)


def test_the_search_finds_the_best_of_a_mixed_space() -> None:
    space = Space(
        {"a": Float(0, 1), "b": Int(0, 1000), "c": Categorical(["p", "q", "r"]), "d": Ordinal(list(range(9)))}
    )
    encoding = Encoding(space)
    best = {"a": 0.3, "b": 777, "c": "q", "d": 5}
    peak: Acquisition = Peak(encoding.inputs(encoding.coordinates([best]))[0])
    search = Search(encoding, np.empty((0, 4)), rng=np.random.default_rng(0))
    found = search.maximise(peak, np.empty((0, 4)))
    assert found is not None
    configuration = encoding.configuration(found)
    assert configuration.pop("a") == pytest.approx(best.pop("a"), abs=1e-4)
    assert configuration == best


def test_the_search_keeps_constraints() -> None:
    space = Space({"a": Float(0, 1), "b": Float(0, 1)}, (LinearConstraint({"a": 1, "b": 1}, 1), lambda c: c["a"] > 0.2))
    encoding = Encoding(space)
    search = Search(encoding, np.empty((0, 2)), rng=np.random.default_rng(0))
    found = search.maximise(Peak(np.array([1.0, 1.0])), np.array([[0.5, 0.4]]))
    assert found is not None
    assert space.allows(encoding.configuration(found))
    assert found.sum() > 0.95


def test_inactive_parameters_do_not_tell_configurations_apart() -> None:
    encoding = Encoding(CONDITIONAL)
    C = encoding.active(np.array([[0.0, 0.5, 0.25], [0.0, 0.5, 0.75], [1.0, 0.1, 0.25]]))
    assert np.isnan(C[:2, 2]).all()
    assert encoding.configuration(C[0]) == {"kind": "a", "x": 0.5}
    assert (encoding.inputs(C)[0] == encoding.inputs(C)[1]).all()


def test_a_small_space_is_tried_without_repetition() -> None:
    space = Space({"a": Int(0, 3), "b": Categorical(["x", "y", "z"])})
    study = study_of(GPMoESampler(seed=1, space=space, n_startup_trials=3))
    study.optimize(lambda trial: len(str(space.suggest(trial))), n_trials=12)
    assert len({tuple(trial.params.items()) for trial in study.trials}) == 12
    study.optimize(lambda trial: len(str(space.suggest(trial))), n_trials=1)
    assert reasons(study)[-1] == "every configuration has been tried"


def test_conditions_are_read_from_the_trials() -> None:
    study = study_of(GPMoESampler(seed=0, n_startup_trials=5))

    def objective(trial: optuna.Trial) -> float:
        if trial.suggest_categorical("kind", ["a", "b"]) == "a":
            return (trial.suggest_float("x", 0, 1) - 0.3) ** 2
        return 1 + trial.suggest_int("n", 1, 5)

    study.optimize(objective, n_trials=14)
    space = space_of(View.of(study.trials, besides=99))
    assert space is not None
    assert space.parameters["x"].when == {"kind": ("a",)}
    assert space.parameters["n"].when == {"kind": ("b",)}
    assert study.best_value < 0.01
    assert set(reasons(study)) <= {"model", "start"}


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_a_resumed_study_goes_on_as_if_it_had_not_stopped(storage: str, tmp_path: Path) -> None:
    def make(name: str) -> Any:
        if storage == "sqlite":
            return f"sqlite:///{tmp_path / name}.db"
        return JournalStorage(JournalFileBackend(str(tmp_path / f"{name}.log")))

    whole = study_of(GPMoESampler(seed=3, n_startup_trials=4), storage=make("whole"), study_name="s")
    whole.optimize(quadratic, n_trials=12)
    first = study_of(GPMoESampler(seed=3, n_startup_trials=4), storage=make("parts"), study_name="s")
    first.optimize(quadratic, n_trials=6)
    second = optuna.load_study(storage=make("parts"), study_name="s", sampler=GPMoESampler(n_startup_trials=4))
    second.optimize(quadratic, n_trials=6)
    assert [t.params for t in whole.trials] == [t.params for t in second.trials]
    sampler = GPMoESampler(n_startup_trials=4)
    for trial in second.trials[2:]:
        assert replay(second, trial.number, sampler) == trial.params


@pytest.mark.slow
def test_where_trials_fail_is_learned() -> None:
    study = study_of(GPMoESampler(seed=0))
    study.optimize(lambda t: math.nan if (x := t.suggest_float("x", 0, 1)) < 0.5 else (x - 0.6) ** 2, n_trials=40)
    failed = sum(trial.state == TrialState.FAIL for trial in study.trials)
    assert failed <= 6
    assert study.best_value < 1e-4


def test_pruned_trials_tell_their_last_value() -> None:
    study = study_of(GPMoESampler(seed=0, n_startup_trials=3))

    def objective(trial: optuna.Trial) -> float:
        value = (trial.suggest_float("x", 0, 1) - 0.7) ** 2
        trial.report(value, 1)
        if trial.number % 2:
            raise optuna.TrialPruned
        return value

    study.optimize(objective, n_trials=12)
    assert min(abs(trial.params["x"] - 0.7) for trial in study.trials) < 0.02


def test_running_trials_are_not_suggested_again() -> None:
    space = Space({"x": Float(0, 1)})
    study = study_of(GPMoESampler(seed=0, space=space, n_startup_trials=3))
    study.optimize(lambda t: (t.suggest_float("x", 0, 1) - 0.5) ** 2, n_trials=6)
    at_once = [space.suggest(study.ask())["x"] for _ in range(4)]
    assert np.diff(np.sort(at_once)).min() > 1e-4
    assert record_of(study.trials[-1]) == {"seen": "0-5", "pending": "6-8", "by": "model"}


def test_a_trial_of_a_process_that_is_gone_is_failed_and_forgotten() -> None:
    study = study_of(GPMoESampler(seed=0, n_startup_trials=2))
    study.optimize(quadratic, n_trials=2)
    left = study.ask()
    left.suggest_float("x", -3, 3)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    mine = Lease.of_this_process(60)
    for lease, dead in (
        (Lease(mine.host, int(gone.stdout), 1, 1e12), True),
        (Lease("far", 1, 1, 0.0), True),
        (Lease("far", 1, 1, 1e12), False),
        (mine, False),
    ):
        assert lease.expired() is dead
    study._storage.set_trial_system_attr(left._trial_id, KEY, Lease("far", 1, 1, 0.0).to_json())
    assert [trial.number for trial in reap(study)] == [2]
    assert reap(study) == []
    study.optimize(quadratic, n_trials=1)
    assert study.trials[2].state == TrialState.FAIL
    assert record_of(study.trials[3]) == {"seen": "0-2", "pending": "", "by": "model"}


def test_a_suggestion_that_fails_is_replaced_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("broken")

    monkeypatch.setattr("gpmoe.bo.sampler.suggest", broken)
    study = study_of(GPMoESampler(seed=0, n_startup_trials=2))
    study.optimize(quadratic, n_trials=4)
    assert reasons(study)[-1] == "ZeroDivisionError: broken"


STRANGE: dict[str, Callable[[optuna.Trial], float | None]] = {
    "constant": lambda t: 0 * t.suggest_float("x", 0, 1),
    "infinite": lambda t: math.inf if t.suggest_float("x", 0, 1) > 0.5 else t.params["x"],
    "huge": lambda t: 1e308 * (t.suggest_float("x", -1e300, 1e300) / 1e300),
    "tiny": lambda t: 1e-300 * t.suggest_float("x", 0, 1e-300),
    "nothing but failures": lambda t: math.nan * t.suggest_float("x", 0, 1),
    "one value": lambda t: t.suggest_float("x", 1, 1) + t.suggest_categorical("c", [2]),
    "steep": lambda t: math.exp(600 * t.suggest_float("x", 0, 1)),
    "a wide log range": lambda t: math.log10(t.suggest_float("x", 1e-300, 1e300, log=True)),
    "big whole numbers": lambda t: t.suggest_int("x", 0, 10**15) * 1.0,
    "nothing asked": lambda t: 1.0,
    "missing": lambda t: None if t.suggest_int("x", 0, 2) else 1.0,
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_objectives_get_suggestions_without_errors_or_warnings(name: str) -> None:
    study = study_of(GPMoESampler(seed=0, n_startup_trials=2))
    study.optimize(STRANGE[name], n_trials=7, catch=())
    assert len(study.trials) == 7
    assert set(reasons(study)) <= {"model", "start", "every configuration has been tried"}


def test_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        GPMoESampler(n_startup_trials=0)


@pytest.mark.slow
def test_ten_thousand_fuzzed_suggestions_raise_and_warn_nothing() -> None:
    rng = np.random.default_rng(0)
    made = 0
    while made < 10_000:
        parameters: dict[str, Any] = {}
        for i in range(rng.integers(1, 6)):
            low = float(rng.choice([-1e3, 0.0, 1e-8, 1.0]))
            high = low + float(rng.choice([0.0, 1e-12, 1.0, 1e6]))
            kinds = [
                Float(low, high),
                Int(0, int(rng.choice([0, 1, 7, 10**6]))),
                Categorical(list("abcd"[: rng.integers(1, 5)])),
                Float(1e-9, 1.0, log=True),
                Ordinal([1, 2, 3]),
            ]
            parameters[f"p{i}"] = kinds[rng.integers(len(kinds))]
        space = Space(parameters)
        study = study_of(GPMoESampler(seed=int(rng.integers(1000)), space=space, n_startup_trials=2))
        values = [math.nan, math.inf, -math.inf, 0.0, 1e300, -1e-300, 1.0, float(rng.standard_cauchy())]
        for _ in range(20):
            trial = study.ask()
            space.suggest(trial)
            value = values[rng.integers(len(values))]
            study.tell(trial, None if math.isnan(value) else value, TrialState.FAIL if math.isnan(value) else None)
        assert set(reasons(study)) <= {"model", "start", "every configuration has been tried"}
        made += 20
