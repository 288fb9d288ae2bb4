"""The early-warning classifier: causal, batch-invariant, the same as a stream and from a file."""

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gpmoe
from gpmoe.early_warning import RaggedSeries, risk_fitting
from gpmoe.early_warning.boosted_trees import BoostedTrees, boosting
from gpmoe.early_warning.causality import largest_leak
from gpmoe.early_warning.hand_features import hand_features
from gpmoe.early_warning.horizon_labels import horizon_labels
from gpmoe.early_warning.next_measurement import next_measurement_of_series
from gpmoe.early_warning.recalibration import Calibration
from gpmoe.early_warning.risk_inputs import batch_of, carried_forward
from gpmoe.early_warning.risk_network import class_targets, hazard_targets, log_survival, loss, padded, risk
from gpmoe.errors import InputError, NonFiniteError
from gpmoe.estimators.early_warning_classifier import EarlyWarningClassifier
from gpmoe.estimators.series_baselines import ClockClassifier, DTWNeighboursClassifier, HandFeatureClassifier
from gpmoe.estimators.series_classifier import _parts

KINDS = {
    "tcn": {"network": "tcn", "n_blocks": 2},
    "gru": {"network": "gru"},
    "linear": {"network": "linear"},
    "gru_d": {"network": "gru_d", "adapter": "carry_forward"},
    "raw tcn": {"network": "tcn", "adapter": "carry_forward", "n_blocks": 2},
    "mean alone": {"network": "gru", "inputs": ["mean"]},
    "joint": {"network": "gru", "learn_adapter": "joint"},
    "draws": {"network": "gru", "n_draws": 2},
    "two members": {"network": "gru", "n_members": 2},
    "trees": {"network": "trees"},
    "trees, two members": {"network": "trees", "n_members": 2},
    "trees and gru": {"network": ["trees", "gru"]},
    "experts": {"network": "gru", "n_experts": 3},
    "hazard": {"network": "gru", "head": "hazard", "horizon": 4.0, "n_bins": 2},
}


def simulated(N: int = 50, M: int = 3, seed: int = 0, tasks: int = 0) -> RaggedSeries:
    """Irregular series whose mean is raised in every second one; half of the channels are often missing."""
    rng = np.random.default_rng(seed)
    rows, offsets = [], [0]
    for i in range(N):
        n = int(rng.integers(0, 30))
        rows.append(
            np.column_stack(
                [np.sort(rng.uniform(0, 12, n)), rng.integers(0, M, n), rng.standard_normal(n) + 2 * (i % 2)]
            )
        )
        offsets.append(offsets[-1] + n)
    time, channel, value = np.concatenate(rows).T
    ill = np.repeat(np.arange(N) % 2, 13).astype(float)
    return RaggedSeries.from_arrays(
        time,
        channel.astype(int),
        value,
        offsets,
        n_channels=M,
        grid_times=np.tile(np.arange(13.0), N),
        grid_offsets=13 * np.arange(N + 1),
        labels=np.column_stack([ill] * tasks) if tasks else ill,
        static=np.where(rng.random((N, 2)) < 0.2, np.nan, rng.standard_normal((N, 2))),
        event_time=np.where(np.arange(N) % 2, 10.0, np.inf),
    )


@pytest.fixture(autouse=True, scope="module")
def short_fits():
    """Of the Gaussian process, whose accuracy nothing here depends on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(risk_fitting, "_ADAPTER_SERIES", 6)
        yield


def fitted(**options: object) -> EarlyWarningClassifier:
    arguments = {"hidden": 6, "max_epochs": 3, "batch_size": 16, "random_state": 0, **options}
    return EarlyWarningClassifier(**arguments).fit(simulated())


@functools.cache
def gru() -> EarlyWarningClassifier:
    """For tests that leave it as it is."""
    return fitted(network="gru")


@pytest.fixture(scope="module", params=list(KINDS), ids=list(KINDS))
def model(request):
    return fitted(**KINDS[request.param])


class TestEveryNetwork:
    def test_knows_no_future(self, model):
        assert largest_leak(model.predict_proba, simulated(20, seed=1), cuts=4) < 1e-6

    def test_scores_a_series_alone_as_in_any_batch(self, model):
        series = simulated(12, seed=2)
        alone = np.concatenate([model.predict_proba(series[[i]]) for i in range(len(series))])
        assert np.abs(alone - model.predict_proba(series)).max() < 1e-6

    def test_says_probabilities(self, model):
        found = model.predict_proba(simulated(12, seed=2))
        assert found.shape == (156,)
        assert found.min() >= 0
        assert found.max() <= 1

    def test_is_the_same_from_a_file(self, model, tmp_path):
        series = simulated(12, seed=2)
        model.save(tmp_path / "model.gpmoe")
        loaded = gpmoe.load(tmp_path / "model.gpmoe")
        assert np.array_equal(loaded.predict_proba(series), model.predict_proba(series))
        assert loaded.get_params() == model.get_params()

    def test_is_the_same_as_a_stream(self, model):
        if model.n_draws:
            with pytest.raises(InputError, match="n_draws=0"):
                model.stream()
            return
        series, stream = simulated(6, seed=3), model.stream()
        expected, worst = model.predict_proba(series), 0.0
        for i in range(len(series)):
            stream.admit(i, series.static[i])
        place = series.offsets[:-1].copy()
        for g in range(13):  # series interleaved
            for i in range(len(series)):
                while place[i] < series.offsets[i + 1] and series.time[place[i]] <= g:
                    j = place[i]
                    name = series.channel_names[series.channel[j]]
                    stream.update(i, series.time[j], name, series.value[j])
                    place[i] += 1
                worst = max(worst, abs(stream.score(i, float(g))[0] - expected[13 * i + g]))
        assert worst < 1e-6


def test_a_planted_leak_is_caught():
    model = copy.deepcopy(gru())
    adapter = model.adapter_
    assert largest_leak(model.predict_proba, simulated(8, seed=4), cuts=3) < 1e-6
    adapter.posterior = adapter.smoothed  # all data at each time
    assert largest_leak(model.predict_proba, simulated(8, seed=4), cuts=3) > 1e-3


def test_padding_of_the_future_is_caught_where_values_alone_would_hide_it():
    def last_length(series: RaggedSeries) -> np.ndarray:
        return np.repeat(np.diff(series.offsets), np.diff(series.grid_offsets)).astype(float)

    assert largest_leak(last_length, simulated(8, seed=4), cuts=2) > 0


def test_it_learns_what_tells_the_series_apart():
    model = EarlyWarningClassifier("gru", hidden=8, max_epochs=15, batch_size=8, learning_rate=0.01, random_state=0)
    model.fit(simulated(80))
    fresh = simulated(60, seed=9)
    risks, labels = model.predict_proba(fresh)[12::13], fresh.series_labels
    assert risks[labels == 1].mean() > risks[labels == 0].mean() + 0.7


def test_the_seed_fixes_every_result_and_leaves_the_global_one_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = fitted(network="tcn", n_blocks=2).predict_proba(simulated(5, seed=2))
    assert torch.rand(1) == expected
    second = fitted(network="tcn", n_blocks=2).predict_proba(simulated(5, seed=2))
    assert np.array_equal(first, second)


def test_a_fit_that_fails_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    with pytest.raises(InputError, match="lower `learning_rate`"):
        fitted(network="tcn", adapter="carry_forward", learning_rate=np.inf)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("n_experts", [0, 3])
def test_several_tasks_share_a_body(n_experts):
    model = EarlyWarningClassifier("gru", hidden=4, max_epochs=2, n_experts=n_experts, random_state=0)
    model.fit(simulated(tasks=2))
    fresh = simulated(5, seed=2)
    assert model.predict_proba(fresh).shape == (65, 2)
    assert model.predict_proba_series(fresh).shape == (5, 2)


def test_labels_of_series_are_scored_at_the_last_grid_time():
    series = simulated()
    whole = RaggedSeries(**{**vars(series), "labels": series.series_labels, "label_per": "series"})
    model = EarlyWarningClassifier("gru", hidden=4, max_epochs=2, random_state=0).fit(whole)
    assert np.array_equal(model.predict_proba_series(whole), model.predict_proba(whole)[12::13])


@pytest.mark.parametrize("network", ["tcn", "trees"])
def test_the_last_risk_of_a_past_is_that_of_the_whole_at_its_end(network):
    series = simulated()
    model = EarlyWarningClassifier(network, hidden=4, max_epochs=2, random_state=0).fit(series)
    assert model.predict_proba_last(series.until(5.0)) == pytest.approx(model.predict_proba(series)[5::13], abs=1e-6)
    with pytest.raises(InputError, match="has no grid time"):
        model.predict_proba_last(series.until(-1.0))


def test_a_committee_averages_log_odds():
    series, fresh = simulated(), simulated(5, seed=2)
    both, *alone = (
        EarlyWarningClassifier(network, hidden=4, max_epochs=2, calibration=None, random_state=0).fit(series)
        for network in (["trees", "gru"], "trees", ["gru"])
    )
    odds = [logit(each.predict_proba(fresh)) for each in alone]
    assert logit(both.predict_proba(fresh)) == pytest.approx(np.mean(odds, axis=0), abs=1e-5)


def test_series_that_all_end_in_the_event_teach_by_their_earlier_times():
    series = simulated(24)
    run_to_failure = horizon_labels(dataclasses.replace(series, event_time=np.full(24, 11.0)), 4.0)
    assert (run_to_failure.series_labels == 1).all()
    for model in (
        ClockClassifier(random_state=0),
        EarlyWarningClassifier("gru", "carry_forward", hidden=4, max_epochs=2, random_state=0),
    ):
        risk = model.fit(run_to_failure).predict_proba(run_to_failure)
        assert risk.shape == (24 * 13,)


def test_a_kind_of_series_with_one_member_trains():
    series = simulated(12)
    labels = np.repeat(np.arange(12) > 0, 13).astype(float)
    labels[13::13] = 0.0  # the first time of each series but one
    mixed = dataclasses.replace(series, labels=labels)
    training, validation = _parts(mixed, labels[:, None], 0.5, 0)
    assert 0 in training.ids
    assert (len(training), len(validation)) == (6, 6)


def test_contributions_sum_to_the_change_of_the_logit():
    model, series = gru(), simulated(9, seed=5)
    one = series[[int(np.argmax(np.diff(series.offsets)))]]
    found = model.explain(one, 9.0, steps=64)
    assert found.contribution.sum() == pytest.approx(found.logit - found.baseline, abs=2e-3)
    assert (found.time <= 9.0).all()
    assert sum(part for _, part in found.by_channel()) == pytest.approx(found.contribution.sum())


def test_the_next_measurement_is_that_of_the_stream():
    model, series = gru(), simulated(9, seed=5)
    found = model.next_measurement(series[[3]], 5.0)
    assert found == next_measurement_of_series(model.stream(), series[[3]], 5.0)
    assert found.risk == pytest.approx(model.predict_proba(series[[3]])[5], abs=0.1)
    assert {each.channel for each in found.ranked} == {"0", "1", "2"}


def test_draws_of_the_risk_spread_around_it_and_do_not_depend_on_the_batch():
    model, series = gru(), simulated(6, seed=5)
    draws = model.predict_risk_draws(series, n_draws=40)
    assert draws.shape == (40, 78)
    assert draws.std(0).mean() > 1e-4
    assert np.abs(model.predict_risk_draws(series[[2]], n_draws=40) - draws[:, 26:39]).max() < 1e-6


def test_scores_of_a_stream_come_at_each_grid_time_once():
    model, series = gru(), simulated(4, seed=6)
    owner = series.owner
    order = np.argsort(series.time, kind="stable")
    rows = [(int(owner[j]), series.time[j], series.channel_names[series.channel[j]], series.value[j]) for j in order]
    found = list(model.score_stream(rows))
    bare = RaggedSeries(**{**vars(series), "static": np.full_like(series.static, np.nan)})
    for name, time, value in found:
        start = int(np.ceil(series.time[series.offsets[name]]))
        begun = bare[[name]].until(time).with_grid(np.arange(start, time + 0.5), [0, int(time) - start + 1])
        assert value[0] == pytest.approx(model.predict_proba(begun)[-1], abs=1e-6)
    assert len({(name, time) for name, time, _ in found}) == len(found) > 20


class TestHeads:
    def test_hazards_are_the_likelihood_of_discrete_survival(self):
        rng = np.random.default_rng(0)
        grid, event, censoring = np.zeros(3), np.array([2.5, np.inf, np.inf]), np.array([9.0, 9.0, 1.5])
        logits = torch.from_numpy(rng.standard_normal((3, 4, 1)))
        targets = hazard_targets(grid, event, censoring, horizon=4.0, n_bins=4, positive_weight=1.0)
        h = torch.sigmoid(logits[..., 0]).numpy()
        naive = -(
            np.log(h[0, 2]) + np.log1p(-h[0, :2]).sum()  # survived two bins, then the event
            + np.log1p(-h[1]).sum()  # survived all
            + np.log1p(-h[2, 0])  # survived one; then nobody looked
        )  # fmt: skip
        assert float(loss(logits.double(), dataclasses.replace(targets, event=targets.event.double(),
                     weight=targets.weight.double()))) == pytest.approx(naive)  # fmt: skip
        assert risk(logits)[:, 0].numpy() == pytest.approx(1 - np.prod(1 - h, axis=1))
        assert log_survival(logits).exp()[:, 0].numpy() == pytest.approx(np.prod(1 - h, axis=1))

    def test_grid_times_after_the_event_tell_nothing(self):
        targets = hazard_targets(np.array([3.0]), np.array([2.0]), np.array([9.0]), 4.0, 2, 1.0)
        assert not targets.weight.any()

    def test_unknown_labels_weigh_nothing(self):
        targets = class_targets(np.array([[np.nan], [1.0], [0.0]]), positive_weight=3.0)
        assert targets.weight[:, 0, 0].tolist() == [0.0, 3.0, 1.0]


class TestBaselines:
    MODELS = (
        ClockClassifier(random_state=0),
        HandFeatureClassifier(max_iter=5, random_state=0),
        HandFeatureClassifier("logistic", random_state=0),
    )

    @pytest.mark.parametrize("model", MODELS, ids=["clock", "boosting", "logistic"])
    def test_know_no_future(self, model):
        model.fit(simulated())
        assert largest_leak(model.predict_proba, simulated(10, seed=1), cuts=3) < 1e-6

    @pytest.mark.parametrize("model", MODELS, ids=["clock", "boosting", "logistic"])
    def test_are_the_same_from_a_file(self, model, tmp_path):
        fresh = simulated(10, seed=1, tasks=2)
        model.fit(simulated(tasks=2)).save(tmp_path / "model.gpmoe")
        loaded = gpmoe.load(tmp_path / "model.gpmoe")
        assert np.array_equal(loaded.predict_proba(fresh), model.predict_proba(fresh))
        assert loaded.get_params() == model.get_params()
        assert loaded.predict_proba(fresh).shape == (130, 2)

    def test_logistic_regression_is_that_of_scikit_learn(self):
        model = HandFeatureClassifier("logistic", calibration=None, random_state=0).fit(simulated())
        seed = int(np.random.RandomState(0).randint(2**31))
        training, _ = _parts(simulated(), simulated().labels[:, None], 0.1, seed)
        fresh = simulated(10, seed=1)
        X, X_new = (np.where(np.isnan(each), model.centers_, each) for each in map(hand_features, (training, fresh)))
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=150))
        expected = pipeline.fit(X, training.labels).predict_proba(X_new)[:, 1]
        assert model.predict_proba(fresh) == pytest.approx(expected, abs=1e-5)

    def test_neighbours_know_no_future_and_find_like_series(self, tmp_path):
        pytest.importorskip("dtaidistance")
        for combine in ("distances", "scores"):
            model = DTWNeighboursClassifier(5, combine, random_state=0).fit(simulated())
            fresh = simulated(10, seed=1)
            assert largest_leak(model.predict_proba, fresh, cuts=2) < 1e-6
            risks = model.predict_proba_series(fresh)
            assert risks[1::2].mean() > risks[::2].mean()
            assert np.array_equal(model.predict_proba_last(fresh), model.predict_proba(fresh)[12::13])
            model.save(tmp_path / "model.gpmoe")
            loaded = gpmoe.load(tmp_path / "model.gpmoe")
            assert np.array_equal(loaded.predict_proba(fresh), model.predict_proba(fresh))


class TestTrees:
    def test_are_those_of_scikit_learn(self):
        rng = np.random.default_rng(0)
        X = np.where(rng.random((2000, 4)) < 0.2, np.nan, rng.standard_normal((2000, 4))).astype(np.float32)
        y = (np.nan_to_num(X[:, 0]) + rng.standard_normal(2000) > np.isnan(X[:, 1])).astype(float)
        trees = BoostedTrees.grow(X, y, max_iter=30, seed=1)
        expected = boosting(30, 0.06, 1).fit(X, y).predict_proba(X)[:, 1]
        assert trees.predict(X) == pytest.approx(expected, abs=1e-12)

    def test_are_as_many_as_predict_others_best_and_average_their_log_odds(self):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((3000, 4)).astype(np.float32)
        y = (X[:, 0] + 2 * rng.standard_normal(3000) > 0).astype(float)
        kept = BoostedTrees.grow(X[:1000], y[:1000], (X[1000:], y[1000:]), max_iter=60)
        prefixes = [BoostedTrees.grow(X[:1000], y[:1000], max_iter=n) for n in range(1, 61)]
        losses = [log_loss(y[1000:], each.predict(X[1000:])) for each in prefixes]
        assert len(kept.starts) == 1 + np.argmin(losses) < 60
        two = [prefixes[4], BoostedTrees.grow(X, y, max_iter=3, seed=1)]
        expected = np.mean([logit(each.predict(X)) for each in two], axis=0)
        assert logit(BoostedTrees.averaged(two).predict(X)) == pytest.approx(expected, abs=1e-10)

    def test_have_no_gradient_to_explain(self):
        model = fitted(network="trees")
        with pytest.raises(InputError, match="Fit a 'tcn' or a 'gru'"):
            model.explain(simulated(3)[[0]], 5.0)
        with pytest.raises(InputError, match="Fit a 'tcn' or a 'gru'"):
            model.predict_risk_draws(simulated(3))


class TestCalibration:
    def test_a_temperature_undoes_a_scaled_logit(self):
        rng = np.random.default_rng(0)
        logit = rng.standard_normal(200_000)
        truth = (rng.random(200_000) < 1 / (1 + np.exp(-logit))).astype(float)
        found = Calibration.fit("temperature", 1 / (1 + np.exp(-(3 * logit + 1))), truth)
        assert found.y == pytest.approx([1 / 3, -1 / 3], abs=0.02)

    def test_isotonic_is_calibrated_on_its_own_data(self):
        rng = np.random.default_rng(0)
        p = rng.random(5000)
        truth = (rng.random(5000) < p**2).astype(float)
        found = Calibration.fit("isotonic", p, truth).apply(p)
        for value in np.unique(found):
            assert truth[found == value].mean() == pytest.approx(value, abs=1e-9)

    def test_one_class_is_refused(self):
        with pytest.raises(InputError, match="both classes"):
            Calibration.fit("isotonic", np.ones(3), np.zeros(3))


class TestWrongInput:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"network": "rnn"}, "`network` must be one of"),
            ({"adapter": "carry_forward", "inputs": ["variance"]}, "'variance' is the adapter's"),
            ({"inputs": ["pulse"]}, "`inputs` must name some of"),
            ({"head": "hazard"}, "needs a positive `horizon`"),
            ({"network": "gru_d"}, "pass adapter='carry_forward'"),
            ({"adapter": "carry_forward", "n_draws": 2}, "needs adapter='mgp'"),
            ({"validation_fraction": 1.0}, "`validation_fraction` must be between"),
            ({"calibration": "beta"}, "`calibration` must be one of"),
        ],
    )
    def test_is_named(self, options, words):
        with pytest.raises(InputError, match=words):
            fitted(**options)

    def test_of_the_series_is_named(self):
        series = simulated()
        with pytest.raises(InputError, match="must be a RaggedSeries"):
            EarlyWarningClassifier().fit(np.zeros((3, 2)))
        with pytest.raises(InputError, match="no labels"):
            EarlyWarningClassifier().fit(RaggedSeries(**{**vars(series), "labels": None, "label_per": None}))
        with pytest.raises(InputError, match="0, 1 or NaN"):
            EarlyWarningClassifier().fit(RaggedSeries(**{**vars(series), "labels": 2 * series.labels}))
        with pytest.raises(InputError, match="at least two series with a positive"):
            EarlyWarningClassifier().fit(RaggedSeries(**{**vars(series), "labels": 0 * series.labels}))
        with pytest.raises(InputError, match="at least two series with a negative label; got 0 among 50"):
            EarlyWarningClassifier().fit(RaggedSeries(**{**vars(series), "labels": 0 * series.labels + 1}))
        model = gru()
        with pytest.raises(InputError, match="missing"):
            model.predict_proba(simulated(3, M=2))

    def test_of_a_stream_is_named(self):
        stream = gru().stream()
        stream.update("a", 1.0, "0", 2.0)
        with pytest.raises(InputError, match="one of the 3 of training"):
            stream.update("a", 2.0, "pulse", 2.0)
        with pytest.raises(NonFiniteError, match="must be finite"):
            stream.update("a", 2.0, "0", np.nan)
        with pytest.raises(InputError, match="comes too late"):
            stream.update("a", 0.5, "0", 1.0)
        with pytest.raises(InputError, match="is unknown"):
            stream.score("b", 1.0)
        stream.score("a", 3.0)
        with pytest.raises(InputError, match="after the last scored"):
            stream.score("a", 3.0)
        stream.forget("a")
        assert len(stream) == 0


def test_values_are_carried_forward_to_the_grid():
    series = simulated(5, seed=7)
    found = carried_forward(series).numpy()
    for i in range(len(series)):
        rows = slice(series.offsets[i], series.offsets[i + 1])
        for g in range(13):
            for c in range(3):
                known = (series.time[rows] <= g) & (series.channel[rows] == c)
                expected = series.value[rows][known][-1] if known.any() else 0.0
                assert found[13 * i + g, c] == expected
    assert len(batch_of(series)) == 5


def test_padding_goes_behind():
    rows = torch.arange(5.0)[:, None]
    out, mask = padded(rows, np.array([2, 0, 3]))
    assert out[..., 0].tolist() == [[0, 1, 0], [0, 0, 0], [2, 3, 4]]
    assert mask.sum(1).tolist() == [2, 0, 3]
