"""The front doors of sparse and hard mixtures: scikit-learn's contract, files, and known answers."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import ndtr
from sklearn.utils.estimator_checks import parametrize_with_checks

from gpmoe import GPRegressor, MixtureOfExpertsRegressor, load
from gpmoe.errors import FileFormatError, GPMoEWarning, InputError
from gpmoe.estimators import mixture_of_experts_regressor
from gpmoe.estimators.mixture_of_experts_classifier import MixtureOfExpertsClassifier
from gpmoe.gates import SoftmaxGate
from gpmoe.models.mixture_of_experts import GATES, MixtureOfExperts
from gpmoe.models.sparse_mixture_of_experts import SparseMixtureOfExperts

pytestmark = pytest.mark.filterwarnings("ignore::gpmoe.errors.NotConvergedWarning")
Array = np.ndarray[Any, Any]


def two_regimes(n: int, seed: int = 0) -> tuple[Array, Array]:
    """Units far from one: smooth and quiet left of 50, steep and noisy right of it."""
    rng = np.random.default_rng(seed)
    X = np.column_stack([rng.uniform(0, 100, n), rng.normal(0, 5, n)])
    left = X[:, 0] < 50
    f = np.where(left, 10 * np.sin(X[:, 0] / 8), 30 - X[:, 0])
    return X, 1000 + f + np.where(left, 0.5, 5.0) * rng.standard_normal(n)


def fitted(inference: str, n: int = 300, **options: Any) -> MixtureOfExpertsRegressor:
    options = {"n_experts": 2, "max_iterations": 5, "n_inducing": 20, "random_state": 0, **options}
    return MixtureOfExpertsRegressor(inference=inference, **options).fit(*two_regimes(n))


@parametrize_with_checks([MixtureOfExpertsClassifier(n_inducing=10, max_iterations=10)])
def test_scikit_learns_contract_is_kept_by_classifiers(estimator, check) -> None:
    check(estimator)


@pytest.mark.slow
@pytest.mark.parametrize("inference", ["svi", "hard"])
def test_scikit_learns_contract_is_kept(inference: str) -> None:
    from sklearn.utils.estimator_checks import check_estimator

    model = MixtureOfExpertsRegressor(2, inference=inference, n_inducing=10, max_iterations=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(model, on_fail=None)
    failed = [(each["check_name"], each["exception"]) for each in results if each["status"] == "failed"]
    assert not failed


@pytest.mark.parametrize("inference", ["svi", "hard"])
def test_a_mixture_beats_one_gp_where_noise_differs(inference: str) -> None:
    X, y = two_regimes(300, 1)
    one = GPRegressor().fit(*two_regimes(300))
    assert fitted(inference, max_iterations=100).log_score(X, y) > one.log_score(X, y) + 0.2


def test_hard_em_takes_sparse_experts_beyond_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(fitted("hard").model_, MixtureOfExperts)
    monkeypatch.setattr(mixture_of_experts_regressor, "_EXACT_SHARE", 100)
    model = fitted("hard")
    assert isinstance(model.model_, SparseMixtureOfExperts)
    assert "sparse experts" in model.report_.solver


def test_the_number_of_experts_is_found() -> None:
    model = fitted("svi", n_experts="auto")
    assert model.n_experts_ >= 2
    assert model.responsibilities_.shape == (300, model.n_experts_)


@pytest.mark.parametrize(
    "options",
    [{}, {"gate": "constant"}, {"gate": SoftmaxGate(2, 2, precision=2.0)}, {"expert": GPRegressor(noise=4.0)}],
    ids=["softmax", "constant", "own gate", "noise"],
)
def test_a_file_predicts_as_its_model_did(options: dict[str, Any], tmp_path: Path) -> None:
    X, _ = two_regimes(20, 1)
    model = fitted("svi", **options)
    model.save(tmp_path / "model.gpmoe")
    other = load(tmp_path / "model.gpmoe")
    assert_array_equal(other.predict_dist(X).quantile(0.3), model.predict_dist(X).quantile(0.3))
    assert_array_equal(other.predict(X, return_cov=True)[1], model.predict(X, return_cov=True)[1])
    assert_array_equal(other.sample_y(X, 2), model.sample_y(X, 2))
    assert_array_equal(other.responsibilities_, model.responsibilities_)
    assert other.get_params()["inference"] == "svi"


@pytest.mark.parametrize("inference", ["svi", "hard"])
def test_predictions_follow_units_and_seed(inference: str) -> None:
    X, y = two_regimes(200)
    options = {"inference": inference, "max_iterations": 3, "n_inducing": 15, "random_state": 0}
    a = MixtureOfExpertsRegressor(2, **options).fit(X, y).predict(X)
    b = MixtureOfExpertsRegressor(2, **options).fit(X, y).predict(X)
    c = MixtureOfExpertsRegressor(2, **options).fit(8 * X, 4 * y).predict(8 * X)
    assert_array_equal(a, b)
    assert_allclose(c, 4 * a, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"n_experts": 31}, "at most the number of rows; got n_experts=31, n_samples=30"),
        ({"n_inducing": 0}, "`n_inducing` must be a whole number of at least 1; got 0"),
        ({"gate": "tree"}, "tree"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], text: str) -> None:
    for inference in ("svi", "hard"):
        with pytest.raises(InputError, match=text):
            fitted(inference, n=30, **options)


def test_sparse_experts_have_no_leave_one_out() -> None:
    with pytest.raises(InputError, match="exact experts"):
        fitted("svi").leave_one_out()


def test_one_row_is_enough_for_one_expert() -> None:
    model = MixtureOfExpertsRegressor(1, inference="svi", random_state=0).fit([[1.0]], [2.0])
    assert np.isfinite(model.predict([[1.0]])).all()


# Classes.


def boundary(n: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Two classes: inputs, labels, and the probability of the second, whose side turns over at x0 = 0."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-2, 2, (n, 2))
    p = ndtr(3 * np.sign(X[:, 0]) * X[:, 1])
    return X, np.where(rng.random(n) < p, "yes", "no"), p


def classifier(**options: Any) -> MixtureOfExpertsClassifier:
    return MixtureOfExpertsClassifier(**{"n_inducing": 25, "max_iterations": 30, "random_state": 0, **options})


def test_a_known_boundary_is_found() -> None:
    X, y, _ = boundary(800)
    X_new, y_new, p = boundary(2000, 1)
    model = classifier().fit(X, y)
    truth = np.log(np.where(y_new == "yes", p, 1 - p)).mean()
    assert model.log_score(X_new, y_new) > truth - 0.12
    assert model.predict_gate_probs(X_new).shape == (2000, 2)
    assert model.score(X_new, y_new) > np.maximum(p, 1 - p).mean() - 0.05


def test_three_classes_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    X = rng.uniform(-3, 3, (400, 1))
    y = np.digitize(X[:, 0], [-1, 1]) * 10
    model = classifier().fit(X, y)
    assert model.classes_.tolist() == [0, 10, 20]
    assert model.predict([[-2.0], [0.0], [2.0]]).tolist() == [0, 10, 20]
    assert_allclose(model.predict_proba(X).sum(1), 1.0)
    assert "SparseMixture" in type(model.model_).__name__


@pytest.mark.parametrize("classes", [["a", "b"], [1, 2, 3], [False, True]])
def test_a_file_classifies_as_its_model_did(classes: list[Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (60, 2))
    y = np.array(classes)[np.arange(60) % len(classes)]
    model = classifier(max_iterations=2, n_inducing=5).fit(X, y)
    model.save(tmp_path / "model.gpmoe")
    other = load(tmp_path / "model.gpmoe")
    assert_array_equal(other.predict_proba(X), model.predict_proba(X))
    assert_array_equal(other.predict(X), model.predict(X))
    assert other.classes_.dtype == model.classes_.dtype


def test_the_number_of_experts_for_classes_is_found(tmp_path: Path) -> None:
    X, y, _ = boundary(400)
    two = classifier(n_experts="auto", max_iterations=100).fit(X, y)
    assert two.n_experts_ >= 2
    smooth = np.where(np.random.default_rng(0).random(400) < ndtr(2 * X[:, 0]), "yes", "no")
    one = classifier(n_experts="auto", max_iterations=100).fit(X, smooth)
    assert one.n_experts_ == 1
    one.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert_array_equal(again.predict_proba(X), one.predict_proba(X))
    assert (again.n_experts, again.n_experts_) == ("auto", 1)


def test_a_probit_gate_of_classes_has_two_experts_at_most() -> None:
    X, y, _ = boundary(100)
    assert classifier(n_experts="auto", gate="gp_probit", n_inducing=8).fit(X, y).n_experts_ <= 2


def test_labels_must_be_known_and_more_than_one() -> None:
    X, y, _ = boundary(40)
    with pytest.raises(InputError, match="at least two classes; got one class"):
        classifier().fit(X, np.ones(40))
    for wrong in (0, "many"):
        with pytest.raises(
            InputError, match=f"`n_experts` must be 'auto' or a whole number of at least 1; got {wrong!r}"
        ):
            classifier(n_experts=wrong).fit(X, y)
    with pytest.raises(InputError, match="pass that number as `n_experts` too"):
        classifier(n_experts="auto", gate=SoftmaxGate(2, 2)).fit(X, y)
    with pytest.raises(InputError, match="got n_experts=41, n_samples=40"):
        classifier(n_experts=41).fit(X, y)
    model = classifier(max_iterations=1, n_inducing=4).fit(X, y)
    with pytest.raises(InputError, match="none of the classes"):
        model.log_score(X[:1], ["maybe"])


def test_a_tampered_file_is_refused(tmp_path: Path) -> None:
    X, y, _ = boundary(40)
    path = tmp_path / "model.gpmoe"
    classifier(max_iterations=1, n_inducing=4).fit(X, y).save(path)
    path.write_bytes(path.read_bytes().replace(b"bernoulli", b"bernoullj"))
    with pytest.raises(FileFormatError):
        load(path)


def test_warnings_are_gpmoes(recwarn: pytest.WarningsRecorder) -> None:
    fitted("svi")
    assert all(issubclass(each.category, GPMoEWarning) for each in recwarn)


@pytest.mark.parametrize(("inference", "n"), [("vbem", 40), ("svi", 200)])
@pytest.mark.parametrize("gate", sorted(GATES))
def test_every_named_gate_fits_and_is_read_from_a_file(gate: str, inference: str, n: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = np.linspace(-2, 2, n).reshape(-1, 1)
    y = np.where(X[:, 0] < 0, np.sin(3 * X[:, 0]), 2.0) + np.where(X[:, 0] < 0, 0.05, 0.3) * rng.standard_normal(n)
    model = MixtureOfExpertsRegressor(2, gate=gate, inference=inference, n_inducing=8, max_iterations=5, random_state=0)
    model.fit(X, y)
    assert_allclose(model.predict_gate_probs(X).sum(1), 1.0, atol=1e-9)
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert_array_equal(again.predict(X), model.predict(X))
    assert_array_equal(again.predict_gate_probs(X), model.predict_gate_probs(X))


@pytest.mark.parametrize("n_experts", ["auto", 3])
@pytest.mark.parametrize("gate", sorted(GATES))
def test_every_named_gate_takes_any_number_of_experts(gate: str, n_experts: Any, tmp_path: Path) -> None:
    if (gate, n_experts) == ("gp_probit", 3):
        pytest.skip("has two experts at most; see `test_a_probit_gate_refuses_three_experts`")
    rng = np.random.default_rng(0)
    X = np.linspace(-2, 2, 30).reshape(-1, 1)
    y = np.where(X[:, 0] < 0, np.sin(3 * X[:, 0]), 2.0) + np.where(X[:, 0] < 0, 0.02, 0.4) * rng.standard_normal(30)
    model = MixtureOfExpertsRegressor(n_experts, gate=gate, random_state=0).fit(X, y)
    assert model.n_experts_ <= (2 if gate == "gp_probit" else 3)
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert_array_equal(again.predict_dist(X).quantile(0.2), model.predict_dist(X).quantile(0.2))
    assert_array_equal(again.predict_gate_probs(X), model.predict_gate_probs(X))
    assert again.get_params()["n_experts"] == n_experts


@pytest.mark.parametrize("estimator", [MixtureOfExpertsRegressor, MixtureOfExpertsClassifier])
def test_the_docstring_names_every_gate(estimator: type) -> None:
    text = str(estimator.__doc__)
    assert [name for name in GATES if f'"{name}"' not in text] == []


def test_a_probit_gate_refuses_three_experts() -> None:
    with pytest.raises(InputError, match="two experts; got 3"):
        fitted("svi", n=30, n_experts=3, gate="gp_probit")


def test_an_unknown_gate_is_told_the_known_ones() -> None:
    with pytest.raises(InputError) as caught:
        fitted("svi", n=30, gate="tree")
    assert [name for name in GATES if repr(name) not in str(caught.value)] == []
