"""The search space: coordinates, conditions, constraints, and its forms in Optuna and in files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from gpmoe.bo.parameters import Categorical, Fixed, Float, Int, Ordinal, Parameter, grid
from gpmoe.bo.space import LinearConstraint, Space
from gpmoe.errors import InputError

optuna.logging.set_verbosity(optuna.logging.WARNING)

KINDS: list[Parameter] = [
    Float(-1.0, 3.0),
    Float(1e-5, 10.0, log=True),
    Float(0.0, 1.0, step=0.1),
    Float(-1e308, 1e308),
    Float(2.0, 2.0),
    Int(-3, 9),
    Int(1, 1000, log=True),
    Int(2, 9, step=3),
    Int(5, 5),
    Categorical(["a", 1, True, None, 2.5]),
    Ordinal([16, 32, 64, 128]),
    Fixed("adam"),
]


@pytest.fixture
def space() -> Space:
    return Space(
        {
            "C": Float(1e-3, 1e3, log=True, when={"kind": ["svm"]}),
            "kind": Categorical(["svm", "forest"]),
            "trees": Int(10, 500, log=True, when={"kind": ["forest"]}),
            "depth": Ordinal([2, 4, 8], when={"kind": ["forest"]}),
            "leaf": Int(1, 4, when={"depth": [4, 8]}),
            "seed": Fixed(7),
        },
        (LinearConstraint({"trees": 1.0, "leaf": 100.0}, 600.0),),
    )


@pytest.mark.parametrize("parameter", KINDS, ids=str)
def test_every_value_survives_its_coordinate(parameter: Parameter) -> None:
    for u in np.linspace(0, 1, 7):
        value = parameter.from_unit(parameter.draw(u))
        again = parameter.from_unit(parameter.to_unit(value))
        assert again == (pytest.approx(value, rel=1e-12) if isinstance(parameter, Float) else value)


@pytest.mark.parametrize("parameter", [k for k in KINDS if k.levels is not None], ids=str)
def test_uniform_numbers_reach_every_level_and_nothing_else(parameter: Parameter) -> None:
    drawn = {round(parameter.draw(u), 12) for u in (np.arange(20_000) + 0.5) / 20_000}
    levels = grid(parameter)
    assert levels is not None
    assert drawn == {round(u, 12) for u in levels}


@pytest.mark.parametrize("parameter", KINDS, ids=str)
def test_optuna_takes_every_value(parameter: Parameter) -> None:
    distribution = Space({"x": parameter}).to_optuna()["x"]
    for u in np.linspace(0, 1, 9):
        assert distribution._contains(distribution.to_internal_repr(parameter.from_unit(parameter.draw(u))))


def test_distributions_come_back_as_they_went() -> None:
    parameters = {str(i): kind for i, kind in enumerate(KINDS) if not isinstance(kind, Ordinal | Fixed)}
    distributions = Space(parameters).to_optuna()
    assert Space.from_optuna(distributions).to_optuna() == distributions


def test_children_follow_their_parents(space: Space) -> None:
    assert next(iter(space.parameters)) == "kind"
    assert space.active({"kind": "svm", "depth": 8}) == ["kind", "C", "seed"]
    assert space.active({"kind": "forest", "depth": 2}) == ["kind", "trees", "depth", "seed"]


def test_a_trial_is_asked_for_active_parameters_only(space: Space) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(20):
        trial = study.ask()
        configuration = space.suggest(trial)
        assert list(configuration) == space.active(configuration)
        assert trial.params == configuration


def test_a_configuration_is_checked(space: Space) -> None:
    space.check({"kind": "svm", "C": 1.0, "seed": 7})
    for wrong in (
        {"kind": "svm", "seed": 7},
        {"kind": "svm", "C": 1e4, "seed": 7},
        {"kind": "forest", "trees": 500, "depth": 8, "leaf": 4, "seed": 7},
    ):
        with pytest.raises(InputError):
            space.check(wrong)


def test_files_give_the_space_back(space: Space, tmp_path: Path) -> None:
    path = tmp_path / "space.json"
    path.write_text(json.dumps(space.to_dict()))
    assert Space.from_file(path).to_dict() == space.to_dict()
    path = tmp_path / "space.toml"
    path.write_text(
        '[parameters]\nlr = {type = "float", low = 1e-5, high = 1, log = true}\n'
        '[parameters.units]\ntype = "ordinal"\nchoices = [16, 32]\n'
        "[[constraints]]\ncoefficients = {lr = 1.0}\nupper = 0.5\n"
    )
    read = Space.from_file(path)
    assert read.parameters["lr"] == Float(1e-5, 1, log=True)
    assert not read.allows({"lr": 0.6, "units": 16})


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"x": 1}, "table `parameters`"),
        ({"parameters": {"x": {"type": "flaot"}}}, "one of float, int"),
        ({"parameters": {"x": {"type": "float", "low": 0}}}, "needs `high`"),
        ({"parameters": {"x": {"type": "int", "low": 0, "high": 2, "base": 2}}}, "knows no `base`"),
        ({"parameters": {"x": {"type": "float", "low": 0, "high": 1, "log": True}}}, "positive `low`"),
        ({"parameters": {"x": {"type": "float", "low": 2, "high": 1}}}, "not be above"),
        ({"parameters": {"x": {"type": "categorical", "choices": ["a", "a"]}}}, "twice"),
        ({"parameters": {"x": {"type": "fixed", "value": 1, "when": {"y": [1]}}}}, "not in the space"),
        ({"parameters": {"x": {"type": "int", "low": 0, "high": 1, "when": {"x": [1]}}}}, "circle"),
    ],
)
def test_a_wrong_form_says_what_is_wrong(form: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Space.from_dict(form)


def test_conditions_need_choices() -> None:
    with pytest.raises(InputError, match="continuous"):
        Space({"x": Float(0, 1), "y": Int(0, 1, when={"x": [0.5]})})


def test_a_study_keeps_its_space(space: Space) -> None:
    study = optuna.create_study()
    space.bind(study)
    space.bind(study)
    other = Space({**space.parameters, "trees": Int(10, 400, log=True, when={"kind": ["forest"]})})
    with pytest.raises(InputError, match="`trees` is"):
        other.bind(study)


def test_trials_of_another_range_are_refused() -> None:
    study = optuna.create_study()
    study.optimize(lambda trial: trial.suggest_float("x", 0, 2), n_trials=1)
    with pytest.raises(InputError, match="trial 0"):
        Space({"x": Float(0, 1)}).bind(study)
