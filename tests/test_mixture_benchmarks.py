"""Benchmarks of mixtures on a small scale; benchmarks/mixtures_{small,local,scale}.py are the whole."""

import pytest

from benchmarks import mixtures_local as local
from benchmarks import mixtures_scale as scale
from benchmarks import mixtures_small as small
from benchmarks.harness import DATA, Figures, Run

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no data in {DATA}; set GPMOE_DATA")


def figures(run: Run) -> Figures:
    return run.figures(run.step())


@needs_data
def test_the_mixture_meets_the_bar_of_the_motorcycle_data_and_beats_one_gp() -> None:
    found = {library: figures(small.run(small.motorcycle_split, library)) for library in (small.GP, small.MIXTURE)}
    mixture = found[small.MIXTURE]
    assert mixture["log_score"] > small.SINGLE_BAR
    assert mixture["log_score"] > found[small.GP]["log_score"] + 0.2
    assert abs(mixture["coverage_90"] - 0.9) < 0.1


@needs_data
def test_the_mixture_beats_one_gp_on_a_fold_of_lidar() -> None:
    found = {
        library: figures(small.run(small.fold_split, library, data="lidar", fold=0))
        for library in (small.GP, small.MIXTURE)
    }
    assert found[small.MIXTURE]["log_score"] > found[small.GP]["log_score"]


def test_local_experts_follow_two_regimes_and_rows_in_blocks_do_as_well() -> None:
    whole, blocks = figures(local.growth(2000)), figures(local.from_blocks(2000, 500))
    for found in (whole, blocks):
        assert found["nls"] < 0.5  # one Gaussian: about 1.1
    assert abs(whole["nls"] - blocks["nls"]) < 0.2


@needs_data
def test_local_experts_rank_the_rules_as_published() -> None:
    found = figures(local.four_experts(0, 232))
    score = {method: found[f"{method}: nls"] for method in local.PUBLISHED}
    assert score["exact"] < score["cpoe 2"] < score["bcm"]
    assert found["cpoe 2: covered"] > 0.85 > found["rbcm, noise inside: covered"]


def test_a_stochastic_mixture_nears_the_truth_as_rows_grow() -> None:
    few, many = (figures(scale.scale_run(n, n_inducing=48, epochs=20, new=1000)) for n in (500, 4000))
    assert few["log_score"] < many["log_score"] < many["truth"]


def test_the_prediction_that_is_timed_beside_smt_fits_its_blocks() -> None:
    run = scale.predict_ours(1000, 500)
    predictive = run.step()
    assert predictive.weights.shape == (500, 8)
    assert float(predictive.variance.min()) >= 0.1**2 / 2
