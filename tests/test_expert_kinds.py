"""Experts by name and mixtures of several kinds, at the front door."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from gpmoe import GPRegressor, MixtureOfExpertsRegressor
from gpmoe.data import simulate_two_regimes
from gpmoe.errors import InputError, ShapeError, UnsupportedKernelError
from gpmoe.estimators import mixture_of_experts_regressor
from gpmoe.gates import SoftmaxGate
from gpmoe.inference.hard_em import fit_hard
from gpmoe.models.expert_kinds import (
    EXPERTS,
    build_expert,
    describe_expert,
    make_expert,
    restore_sites,
    sites_of,
)
from gpmoe.models.heteroscedastic_gp import HeteroscedasticGP
from gpmoe.models.mixture_of_experts import MixtureOfExperts
from gpmoe.models.null_expert import NullExpert

Array = np.ndarray[Any, Any]


def growing_noise(n: int, seed: int = 0) -> tuple[Array, Array]:
    """A sine whose noise grows by e² from left to right."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-2, 2, (n, 1))
    return X, np.sin(2 * X[:, 0]) + 0.3 * np.exp(X[:, 0] / 2) * rng.standard_normal(n)


@pytest.mark.parametrize("name", EXPERTS)
def test_an_expert_comes_back_from_its_description_to_the_last_bit(name: str, table: tuple[Tensor, Tensor]) -> None:
    X, y = table
    weights = torch.linspace(0.1, 1.0, len(y), dtype=torch.float64)
    expert: Any = make_expert(name, X, y, 2)
    expert.set_data(X, y, weights)
    expert.fit_step()
    other = build_expert(describe_expert(expert), X, y)
    for mine, theirs in zip(expert.parameters(), other.parameters(), strict=True):
        theirs.data.copy_(mine.detach())
    other.set_data(X, y, weights)
    restore_sites(other, {key: value.clone() for key, value in sites_of(expert).items()})
    with torch.no_grad():
        assert float(other.evidence()) == float(expert.evidence())
        for got, wanted in zip(other.components(X + 0.1), expert.components(X + 0.1), strict=True):
            assert torch.equal(got, wanted)


def test_sites_of_another_number_of_points_are_refused(table: tuple[Tensor, Tensor]) -> None:
    expert = HeteroscedasticGP(*table)
    with pytest.raises(ShapeError, match=r"`precision` must have shape \(20,\).*got \(3,\)"):
        restore_sites(expert, {"precision": torch.ones(3), "linear": torch.ones(3)})
    with pytest.raises(ShapeError, match=r"`certainty`.*got nothing"):
        restore_sites(make_expert("student_t", *table, 1), {})


def test_an_expert_of_the_users_own_is_not_written(table: tuple[Tensor, Tensor]) -> None:
    class Own(NullExpert):
        """A kind that no file knows."""

    with pytest.raises(UnsupportedKernelError, match="type Own can't be written"):
        describe_expert(Own(*table))
    with pytest.raises(UnsupportedKernelError, match="unknown kind of expert 'own'"):
        build_expert({"type": "own"}, *table)


def test_a_linear_and_a_wavy_regime_get_their_kinds() -> None:
    rng = np.random.default_rng(0)
    X = np.linspace(-3, 3, 120)[:, None]
    f = np.where(X[:, 0] < 0, 3 * X[:, 0], 2 * np.sin(5 * X[:, 0]))
    model = MixtureOfExpertsRegressor(expert=["gp", "linear"], random_state=0)
    model.fit(X, f + 0.1 * rng.standard_normal(120))
    assert model.n_experts_ == 2
    assert model.predict_gate_probs([[-2.0], [2.0]]).argmax(1).tolist() == [1, 0]
    assert_allclose(model.predict([[-2.0], [2.0]]), [-6.0, 2 * np.sin(10)], atol=0.3)


def test_a_null_expert_takes_the_outliers() -> None:
    X, y = growing_noise(60)
    y[::15] += 6.0
    model = MixtureOfExpertsRegressor(expert=["gp", "null"], gate="constant", random_state=0).fit(X, y)
    own = model.responsibilities_[:, 1]
    assert own[::15].min() > 0.9
    assert own.mean() < 0.25


@pytest.mark.parametrize("name", EXPERTS)
def test_a_name_makes_every_expert_of_its_kind(name: str) -> None:
    X, y, _ = simulate_two_regimes(25, 0)
    model = MixtureOfExpertsRegressor(2, name, random_state=0).fit(X, y)
    assert [type(expert) for expert in model.model_.all_experts] == [type(make_expert(name, *_tensors(X, y), 2))] * 2
    normal = -0.5 * np.log(2 * np.pi * np.e * y.var())  # log score of one normal for all rows
    assert model.log_score(X, y) > (normal if name != "null" else normal - 1.0)
    if name == "null":  # knows nothing of the data but their scale
        assert_allclose(model.leave_one_out().mean, y.mean())


def _tensors(X: Array, y: Array) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(X), torch.from_numpy(y)


def test_the_experts_weighted_by_the_gate_are_the_mixture() -> None:
    X, y = growing_noise(30)
    for model in (
        MixtureOfExpertsRegressor(expert=["student_t", "linear"], random_state=0),
        MixtureOfExpertsRegressor(2, inference="svi", n_inducing=8, max_iterations=2, random_state=0),
    ):
        each = model.fit(X, y).predict_experts(X)
        gate, whole = model.predict_gate_probs(X), model.predict_dist(X)
        assert len(each) == 2
        assert_allclose(sum(gate[:, k] * part.mean for k, part in enumerate(each)), whole.mean, atol=1e-9)
        density = sum(gate[:, k] * np.exp(part.log_prob(0.3)) for k, part in enumerate(each))
        assert_allclose(np.log(density), whole.log_prob(0.3), atol=1e-9)


@pytest.mark.filterwarnings("ignore::gpmoe.errors.NotConvergedWarning")
def test_auto_takes_one_heteroscedastic_gp_where_noise_grows_gradually() -> None:
    X, y = growing_noise(150)
    model = MixtureOfExpertsRegressor(random_state=0).fit(X, y)
    assert isinstance(model.model_.all_experts[0], HeteroscedasticGP)
    assert model.n_experts_ == 1
    X_new, y_new = growing_noise(1000, 1)
    assert model.log_score(X_new, y_new) > GPRegressor().fit(X, y).log_score(X_new, y_new) + 0.05


def test_auto_has_that_rival_only_for_learned_noise_and_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def choose(make: Any, **options: Any) -> Any:
        seen.append([type(rival.all_experts[0]) for rival in options["rivals"]])
        raise InterruptedError

    monkeypatch.setattr(mixture_of_experts_regressor, "choose_n_experts", choose)
    for expert, n in (
        (None, 30),
        ("gp", 30),
        (GPRegressor(), 30),
        (GPRegressor(noise=0.1), 30),
        ("student_t", 30),
        (None, 501),  # rows
    ):
        with pytest.raises(InterruptedError):
            MixtureOfExpertsRegressor(expert=expert).fit(*growing_noise(n))
    assert seen == [[HeteroscedasticGP]] * 3 + [[]] * 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"expert": "forest"}, "'heteroscedastic', 'student_t', or a list of such names; got 'forest'"),
        ({"expert": ["gp", GPRegressor()]}, "or a list of such names"),
        ({"expert": []}, r"got \[\]"),
        ({"expert": 3}, "got 3"),
        ({"expert": ["gp", "linear"], "n_experts": 3}, "names 2 experts, one each; got n_experts=3"),
        ({"expert": ["gp", "linear"], "inference": "svi"}, "inference='svi' has Gaussian processes for experts"),
        ({"expert": "student_t", "inference": "hard"}, "pass inference='vbem' for expert='student_t'"),
        ({"expert": "linear", "gate": SoftmaxGate(2, 1)}, "pass that number as `n_experts` too"),
    ],
)
def test_kinds_that_do_not_fit_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        MixtureOfExpertsRegressor(**options).fit(*growing_noise(20))


def test_hard_em_refuses_experts_that_are_no_exact_gps(table: tuple[Tensor, Tensor]) -> None:
    moe = MixtureOfExperts(*table, experts=[make_expert(name, *table, 2) for name in ("gp", "null")])
    with pytest.raises(InputError, match="expert 1 is a NullExpert: use `fit_mixture`"):
        fit_hard(moe)


def test_a_gate_of_its_own_goes_with_a_list_of_experts() -> None:
    model = MixtureOfExpertsRegressor(expert=["gp", "linear"], gate=SoftmaxGate(2, 1), random_state=0)
    assert model.fit(*growing_noise(30)).n_experts_ == 2


def test_a_certain_expert_can_be_sampled_without_noise(table: tuple[Tensor, Tensor]) -> None:
    moe = MixtureOfExperts(*table, experts=[NullExpert(*table), NullExpert(*table)])
    samples = moe.posterior(table[0][:3]).rsample(torch.Size([5]))
    assert float(samples.abs().max()) < 1e-9
