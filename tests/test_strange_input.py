"""What a stranger may pass to the mixtures: tables as they come, and arguments that make no sense."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_diabetes
from sklearn.exceptions import NotFittedError

from gpmoe import (
    GPRegressor,
    LocalExpertsRegressor,
    MixtureOfExpertsClassifier,
    MixtureOfExpertsRegressor,
    TreeMixtureRegressor,
    load,
)
from gpmoe.errors import InputError, NonFiniteError
from gpmoe.estimators import mixture_of_experts_regressor
from gpmoe.estimators.sparse_gp_regressor import SparseGPRegressor

Array = np.ndarray[Any, Any]
REGRESSORS: dict[str, Any] = {
    "vbem": MixtureOfExpertsRegressor(1, random_state=0),
    "hard": MixtureOfExpertsRegressor(1, inference="hard", random_state=0),
    "svi": MixtureOfExpertsRegressor(1, inference="svi", n_inducing=16, max_iterations=300, random_state=0),
    "local": LocalExpertsRegressor(points_per_expert=10, random_state=0),
    "tree": TreeMixtureRegressor(n_partitions=4, leaf_size=20, random_state=0),
}
every = pytest.mark.parametrize("model", REGRESSORS.values(), ids=REGRESSORS)
slow_to_settle = pytest.mark.filterwarnings("ignore::gpmoe.errors.NotConvergedWarning")


def diabetes(rows: int) -> tuple[pd.DataFrame, pd.Series]:
    data = load_diabetes(as_frame=True)
    return data.data[["bmi", "bp", "s5"]].iloc[:rows], data.target.iloc[:rows]


def answers(model: Any, X: Any) -> list[Array]:
    """Everything that a fitted regressor says at X."""
    predictive = model.predict_dist(X)
    return [model.predict(X), predictive.stddev, predictive.quantile(0.1), model.sample_y(X, 2, random_state=0)]


@slow_to_settle
@every
def test_a_frame_of_patients_is_learned_saved_and_read(model: Any, tmp_path: Path) -> None:
    X, y = diabetes(80)
    model.fit(X, y).save(tmp_path / "model")
    assert model.log_score(X, y) > -np.log(y.std() * np.sqrt(2 * np.pi * np.e))  # that of a normal for all patients
    again = load(tmp_path / "model")
    assert_array_equal(again.feature_names_in_, X.columns)
    for ours, theirs in zip(answers(model, X), answers(again, X), strict=True):
        assert_array_equal(ours, theirs)


@slow_to_settle
@every
def test_a_constant_column_changes_little(model: Any) -> None:
    X, y = diabetes(40)
    plain = model.fit(X, y).predict(X)
    more = X.assign(hospital=7.0)
    assert_allclose(model.fit(more, y).predict(more), plain, atol=0.4 * y.std())


@slow_to_settle
@every
def test_rows_that_repeat_are_averaged(model: Any) -> None:
    rng = np.random.default_rng(0)
    X = np.repeat(np.linspace(-1, 1, 6)[:, None], 6, 0)
    y = 5 * X[:, 0] + rng.standard_normal(36)
    model.fit(X, y)
    means = y.reshape(6, 6).mean(1)
    assert_allclose(model.predict(X[::6]), means, atol=1.5)
    assert_allclose(model.predict(X, return_std=True)[1], 1.0, atol=0.6)


@slow_to_settle
@every
@pytest.mark.parametrize("n", [1, 2, 3])
def test_one_two_and_three_rows_are_enough_for_one_expert(model: Any, n: int) -> None:
    X, y = np.arange(n, dtype=float)[:, None], 10.0 + np.arange(n)
    model.fit(X, y)
    assert_allclose(model.predict(X), y, atol=2.0)
    assert all(np.isfinite(part).all() for part in answers(model, [[-5.0], [0.5]]))


@slow_to_settle
@every
def test_a_target_that_never_changes_is_predicted(model: Any) -> None:
    X, _ = diabetes(20)
    assert_allclose(model.fit(X, np.full(20, 3.5)).predict(X), 3.5, atol=0.1)


CLASSIFIER = MixtureOfExpertsClassifier(1, n_inducing=8, max_iterations=2, random_state=0)


@pytest.mark.parametrize("model", [*REGRESSORS.values(), CLASSIFIER], ids=[*REGRESSORS, "classifier"])
def test_text_among_the_inputs_is_named_with_a_remedy(model: Any) -> None:
    X, y = diabetes(6)
    y = y > 100 if model is CLASSIFIER else y
    text = X.assign(ward=["1", "2", "3", "4", "north", "5"])
    with pytest.raises(InputError, match=r"row 4, column 3 \('ward'\) is 'north'.*OneHotEncoder"):
        model.fit(text, y)
    with pytest.raises(InputError, match=r"row 0, column 1 is 'x'\. Encode"):
        model.fit([[1.0, "x"]] * 6, y)
    with pytest.raises(NonFiniteError, match=r"row 2, column 1 \('bp'\)"):
        model.fit(X.assign(bp=[0.0, 1.0, np.nan, 0.0, 1.0, 0.0]), y)


@pytest.mark.parametrize("model", [*REGRESSORS.values(), CLASSIFIER], ids=[*REGRESSORS, "classifier"])
def test_dates_among_the_inputs_are_named_with_a_remedy(model: Any) -> None:
    X, y = diabetes(6)
    y = y > 100 if model is CLASSIFIER else y
    days = np.arange("2026-01-01", "2026-01-07", dtype="datetime64[D]").astype("datetime64[ns]")
    with pytest.raises(InputError, match=r"column 3 \('day'\) is of datetime64\[ns\].*hours since"):
        model.fit(X.assign(day=days), y)
    with pytest.raises(InputError, match=r"column 0 \('day'\) is of Datetime"):
        model.fit(pl.DataFrame({"day": days}), y)
    with pytest.raises(InputError, match=r"its entries are of datetime64"):
        model.fit(days[:, None], y)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_label_that_is_missing_is_named(missing: Any) -> None:
    with pytest.raises(NonFiniteError, match="NaN, None or infinity: first at row 1"):
        CLASSIFIER.fit([[0.0], [1.0], [2.0]], np.array(["a", missing, "b"], dtype=object))


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (MixtureOfExpertsRegressor(2, gate=3), "'uncertainty_router', or a Gate; got 3"),
        (MixtureOfExpertsRegressor(2, gate=None, inference="hard"), "or a Gate; got None"),
        (MixtureOfExpertsRegressor(True), "'auto' or a whole number of at least 1; got True"),
        (
            MixtureOfExpertsRegressor(2, inference="svi", max_iterations=0),
            "None or a whole number of at least 1; got 0",
        ),
        (MixtureOfExpertsRegressor(2, inference="svi", max_iterations=1.5), "at least 1; got 1.5"),
        (MixtureOfExpertsRegressor(2, n_inducing="many"), "`n_inducing` must be a whole number"),
        (MixtureOfExpertsRegressor(2, GPRegressor("rbf")), "`kernel` must be a GPyTorch kernel or None; got 'rbf'"),
        (MixtureOfExpertsClassifier(gate=3), "or a Gate; got 3"),
        (MixtureOfExpertsClassifier(kernel="rbf"), "`kernel` must be a GPyTorch kernel or None"),
        (MixtureOfExpertsClassifier(max_iterations=-1), "None or a whole number of at least 1; got -1"),
        (LocalExpertsRegressor(points_per_expert="few"), "`points_per_expert` must be a whole number"),
        (LocalExpertsRegressor(n_nearest=0), "`n_nearest` must be None or a whole number of at least 1; got 0"),
        (LocalExpertsRegressor(shared="no"), "`shared` must be True or False; got 'no'"),
        (LocalExpertsRegressor(degree=1.5), "`degree` must be a whole number of at least 1; got 1.5"),
        (LocalExpertsRegressor(kernel="rbf"), "`kernel` must be a GPyTorch kernel"),
        (LocalExpertsRegressor(noise=-1.0), "`noise` is a variance and must be positive and finite"),
        (TreeMixtureRegressor(kernel="rbf"), "`kernel` must be a GPyTorch kernel"),
        (TreeMixtureRegressor(randomness=2.0), "`randomness` must lie between 0 and 1; got 2.0"),
        (TreeMixtureRegressor(randomness="much"), "`randomness` must lie between 0 and 1; got 'much'"),
        (LocalExpertsRegressor(noise="little"), "one number or None to learn it; got 'little'"),
        (TreeMixtureRegressor(noise=[0.1, 0.2]), r"one number or None to learn it; got \[0.1, 0.2\]"),
        (MixtureOfExpertsRegressor(2, GPRegressor(noise=-1.0)), "must be positive and finite, one number.*got -1.0"),
        (TreeMixtureRegressor(noise=0.0), "`noise` is a variance and must be positive and finite"),
        (SparseGPRegressor(max_iterations=0), "None or a whole number of at least 1; got 0"),
        (GPRegressor(kernel=3), "`kernel` must be a GPyTorch kernel or None; got 3"),
    ],
)
def test_arguments_that_make_no_sense_are_named(model: Any, text: str) -> None:
    X, y = diabetes(12)
    with pytest.raises(InputError, match=text):
        model.fit(X, y > 100 if isinstance(model, MixtureOfExpertsClassifier) else y)


def test_mixtures_that_are_not_fitted_say_so() -> None:
    for ask in ("predict_gate_probs", "predict_experts", "predict"):
        with pytest.raises(NotFittedError, match="MixtureOfExpertsRegressor instance is not fitted yet"):
            getattr(MixtureOfExpertsRegressor(), ask)([[0.0]])
    for model in (MixtureOfExpertsRegressor(), GPRegressor()):
        with pytest.raises(NotFittedError):
            model.leave_one_out()


def test_a_folder_that_is_not_there_and_samples_that_are_no_number_are_named(tmp_path: Path) -> None:
    model = GPRegressor().fit(*diabetes(10))
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere; make it first"):
        model.save(tmp_path / "nowhere" / "model")
    with pytest.raises(InputError, match="`n_samples` must be a whole number of at least 0; got -1"):
        model.sample_y(diabetes(2)[0], -1)


@slow_to_settle
@pytest.mark.parametrize(
    "model",
    [
        GPRegressor(random_state=np.int64(3), n_restarts=np.int64(1)),
        MixtureOfExpertsRegressor(np.int64(1), random_state=np.int64(3)),
        LocalExpertsRegressor(np.int64(5), n_jobs=np.int64(1), random_state=np.int64(3)),
        TreeMixtureRegressor(np.int64(2), random_state=np.int64(3)),
    ],
)
def test_whole_numbers_of_numpy_go_into_a_file(model: Any, tmp_path: Path) -> None:
    X, y = diabetes(10)
    model.fit(X, y).save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.random_state == 3
    assert_array_equal(again.predict(X), model.predict(X))


def test_a_list_of_one_gp_asks_for_one_expert_without_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture_of_experts_regressor, "choose_n_experts", None)
    X, y = diabetes(20)
    for inference in ("vbem", "hard"):
        model = MixtureOfExpertsRegressor(expert=["gp"], inference=inference, random_state=0).fit(X, y)
        assert model.n_experts_ == 1
