"""Early warning on real records: sepsis by the hour (challenge 2019) and death in hospital (2012).

| data | split | scored |
|---|---|---|
| `physionet2019_b` | 70/10/20 by stay | utility (threshold from the 10 %), AUROC and AUPRC of hours, 7 h before |
| `physionet2012` | 80/10/10 by stay, both sets, seeds 0-2 | AUROC and AUPRC of stays, calibration, channels left out |
"""

import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import DATA, Case, Figures, Results, Run, Suite, Table
from benchmarks.tables import duration, number, verdict
from gpmoe.early_warning import RaggedSeries

Array = NDArray[np.float64]

CLOCK, LOGISTIC, BOOSTING, GRU_D, RAW, MEAN, VARIANCE, DRAWS, GRU, TREES, BEST, DTW = (
    "clock", "logistic", "gradient boosting", "GRU-D", "raw TCN", "adapter mean, TCN", "adapter mean + variance, TCN",
    "adapter draws, TCN", "adapter mean + variance, GRU", "adapter mean + variance, boosted trees",
    "adapter mean + variance, trees and TCN", "DTW neighbours",
)  # fmt: skip
CONTROLS, HORIZONS = ("random", "length"), (0.0, 7.0)
SEPSIS, DEATH = "sepsis, challenge 2019", "death in hospital, challenge 2012"
_NO_VARIANCE = ("mean", "age", "measured", "static", "clock")


def model(name: str, small: bool, n_members: int = 1) -> Any:
    """A model by its row in the tables; the best of them takes several members where stays are few."""
    from gpmoe.estimators.early_warning_classifier import EarlyWarningClassifier
    from gpmoe.estimators.series_baselines import ClockClassifier, DTWNeighboursClassifier, HandFeatureClassifier

    options: dict[str, Any] = {"random_state": 0, **({"max_epochs": 2, "hidden": 8} if small else {})}
    networks: dict[str, dict[str, Any]] = {
        GRU_D: {"network": "gru_d", "adapter": "carry_forward"},
        RAW: {"network": "tcn", "adapter": "carry_forward"},
        MEAN: {"network": "tcn", "inputs": _NO_VARIANCE},
        VARIANCE: {"network": "tcn"},
        DRAWS: {"network": "tcn", "n_draws": 5},
        GRU: {"network": "gru"},
        BEST: {"network": ["trees", "tcn"], "n_members": n_members},
        TREES: {"network": "trees"},
    }
    if name in networks:
        return EarlyWarningClassifier(**networks[name], **options)
    if name == CLOCK:
        return ClockClassifier(random_state=0)
    if name == DTW:
        return DTWNeighboursClassifier(random_state=0, n_training=50 if small else 1000)
    kind = "logistic" if name == LOGISTIC else "boosting"
    return HandFeatureClassifier(kind, max_iter=20 if small else 150, random_state=0)


# --- sepsis ------------------------------------------------------------------------------------------


@cache
def sepsis(seed: int, n: int | None) -> list[RaggedSeries]:
    from gpmoe.early_warning.readers import load_challenge_2019

    series = load_challenge_2019(DATA / "physionet2019_b" / "stays.npz")
    return (series if n is None else series[:n]).split([0.7, 0.1, 0.2], seed=seed)


def sepsis_run(library: str, seed: int, n: int | None) -> Run:
    training, validation, test = sepsis(seed, n)

    def figures(fitted: Any) -> Figures:
        from gpmoe.early_warning import ChallengeUtility, reliability, time_ranking

        if library == DTW:
            return at_horizons(test, risk_at_horizons(fitted, test))
        risk, held = fitted.predict_proba(test), fitted.predict_proba(validation)
        threshold, _ = ChallengeUtility().best_threshold(validation, held)
        ranking, utility = time_ranking(test, risk), ChallengeUtility().score(test, risk >= threshold)
        found = {
            "utility": utility.value, "utility_low": utility.lower, "utility_high": utility.upper,
            "auroc": ranking.auroc.value, "auroc_low": ranking.auroc.lower, "auroc_high": ranking.auroc.upper,
            "auprc": ranking.auprc.value, "auprc_low": ranking.auprc.lower, "auprc_high": ranking.auprc.upper,
            "calibration": reliability(test, risk).error.value,
        }  # fmt: skip
        return found | at_horizons(test, risk)

    return Run(lambda: quietly(model(library, n is not None), training), figures)


def at_horizons(test: RaggedSeries, risk: Array) -> Figures:
    from gpmoe.early_warning import horizon_ranking

    found: Figures = {}
    for controls in CONTROLS:
        for horizon, ranking in horizon_ranking(test, risk, controls=controls, horizons=HORIZONS).items():
            area, name = ranking.auprc, f"{controls} {horizon:.0f} h"
            found |= {name: area.value, f"{name} low": area.lower, f"{name} high": area.upper,
                      f"{controls} prevalence": ranking.prevalence}  # fmt: skip
    return found


def risk_at_horizons(fitted: Any, test: RaggedSeries) -> Array:
    """The risks that `at_horizons` looks at, and 0 elsewhere, for a model that takes long over each."""
    from gpmoe.early_warning.horizons import matched_controls

    risk = np.zeros(len(test.grid_times))
    for controls in CONTROLS:
        matched = matched_controls(test, controls=controls, longest=max(HORIZONS))
        for horizon in HORIZONS:
            past = test[matched.which].until(matched.time - horizon)
            risk[test.grid_offsets[matched.which] + np.diff(past.grid_offsets) - 1] = fitted.predict_proba_last(past)
    return risk


def quietly(made: Any, series: RaggedSeries) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return made.fit(series)


# --- death -------------------------------------------------------------------------------------------


@cache
def death(seed: int, n: int | None) -> list[RaggedSeries]:
    from gpmoe.early_warning import concatenate
    from gpmoe.early_warning.readers import load_challenge_2012

    sets = [load_challenge_2012(DATA / "physionet2012" / f"set_{which}.npz") for which in "ab"]
    series = concatenate(sets)
    series = series[np.diff(series.offsets) > 0]
    return (series if n is None else series[:n]).split([0.8, 0.1, 0.1], seed=seed)


def without_channels(series: RaggedSeries, share: float, seed: int = 0) -> RaggedSeries:
    """A random share of channels gone, the same in every series."""
    gone = np.random.default_rng(seed).permutation(series.n_channels)[: round(share * series.n_channels)]
    kept = ~np.isin(series.channel, gone)
    counts = np.bincount(series.owner[kept], minlength=len(series))
    return RaggedSeries.from_arrays(
        series.time[kept], series.channel[kept], series.value[kept], np.concatenate([[0], np.cumsum(counts)]),
        channel_names=series.channel_names, grid_times=series.grid_times, grid_offsets=series.grid_offsets,
        labels=series.labels, static=series.static, static_names=series.static_names, ids=series.ids,
    )  # fmt: skip


def death_run(library: str, seed: int, n: int | None) -> Run:
    training, _, test = death(seed, n)

    def figures(fitted: Any) -> Figures:
        from gpmoe.early_warning import reliability, series_ranking

        risk = fitted.predict_proba_series(test)
        ranking = series_ranking(test, risk)
        found = {"auroc": ranking.auroc.value, "auprc": ranking.auprc.value,
                 "calibration": reliability(test, risk).error.value}  # fmt: skip
        for share in (0.1, 0.2, 0.3, 0.4, 0.5):
            fewer = without_channels(test, share)
            found[f"auroc without {share:.0%}"] = series_ranking(fewer, fitted.predict_proba_series(fewer)).auroc.value
        return found

    return Run(lambda: quietly(model(library, n is not None, n_members=3), training), figures)


# --- cases and tables --------------------------------------------------------------------------------

SEPSIS_ROWS = (CLOCK, LOGISTIC, BOOSTING, GRU_D, RAW, DTW, MEAN, VARIANCE, DRAWS, GRU, TREES, BEST)
DEATH_ROWS = (LOGISTIC, BOOSTING, GRU_D, RAW, VARIANCE, GRU, TREES, BEST)
RUNS: dict[str, Callable[..., Run]] = {SEPSIS: sepsis_run, DEATH: death_run}


def case(name: str, library: str, seed: int, small: bool) -> Case:
    parameters = {"seed": seed, "n": 400 if small else None}
    return Case(name, library, partial(RUNS[name], library), parameters, repetitions=1, warm_up=0)


def seeds(name: str, library: str, small: bool) -> range:
    if small or (name == SEPSIS and library != BEST):
        return range(1)
    return range(3)


def cases(small: bool) -> list[Case]:
    wanted = {SEPSIS: (DATA / "physionet2019_b", SEPSIS_ROWS), DEATH: (DATA / "physionet2012", DEATH_ROWS)}
    found = []
    for name, (folder, rows) in wanted.items():
        if not folder.is_dir():
            print(f"early_warning: skipped, no folder {folder}; set GPMOE_DATA")
            continue
        found += [case(name, row, seed, small) for row in rows for seed in seeds(name, row, small)]
    return found


def interval(results: Results, each: Case, figure: str) -> str:
    low, high = (results.median(each, f"{figure}{end}") for end in ("_low", "_high"))
    return f" ({number(low)} to {number(high)})"


def sepsis_row(results: Results, library: str, small: bool) -> list[str]:
    one = case(SEPSIS, library, 0, small)
    bars = {"utility": 0.40, "auroc": 0.84, "auprc": 0.11} if library == BEST else {}
    cells = []
    for figure in ("utility", "auroc", "auprc"):
        value = results.median(one, figure)
        cells.append(number(value) + interval(results, one, figure) + verdict(value, bars.get(figure)))
    cells.append(number(results.median(one, "calibration"), ".4f"))
    cells += [
        f"{number(results.median(one, f'{controls} 7 h'))} ({number(results.median(one, f'{controls} 7 h low'))} to "
        f"{number(results.median(one, f'{controls} 7 h high'))})"
        for controls in ("random", "length")
    ]
    seconds = results.median(one)
    return [library, *cells, duration(seconds) + verdict(seconds, 2400, at_most=True)]


def death_row(results: Results, library: str, small: bool) -> list[str]:
    each = [case(DEATH, library, seed, small) for seed in seeds(DEATH, library, small)]
    ours = library == BEST
    bars = {"auroc": (0.85, False), "auprc": (0.50, False), "calibration": (0.03, True)} if ours else {}
    cells = []
    names = ["auroc", "auprc", "calibration", *(f"auroc without {share}0%" for share in range(1, 6))]
    for figure in names:
        values = np.array([results.median(one, figure) for one in each])
        error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        bar, at_most = bars.get(figure, (None, False))
        cells.append(f"{number(values.mean())} ± {number(error)}" + verdict(values.mean(), bar, at_most=at_most))
    return [library, *cells, duration(np.median([results.median(one) for one in each]))]


def tables(results: Results, small: bool) -> list[Table]:
    sepsis_table = Table(
        SEPSIS,
        ["model", "utility", "AUROC", "AUPRC", "calibration error", "AUPRC 7 h before, random controls",
         "same, controls of equal length", "fit"],
        [sepsis_row(results, row, small) for row in SEPSIS_ROWS],
        ("Split 0 of 70/10/20 by stay. Intervals of 95 % by bootstrap over stays. The utility's threshold is chosen on "
         "the 10 %, which trains nothing. Every model scores an hour from its past alone.",
         "Three splits of the last row, utility: "
         + ", ".join(number(results.median(case(SEPSIS, BEST, s, small), "utility")) for s in range(3)) + "; AUROC: "
         + ", ".join(number(results.median(case(SEPSIS, BEST, s, small), "auroc")) for s in range(3)) + "."),
    )  # fmt: skip
    death_table = Table(
        DEATH,
        ["model", "AUROC", "AUPRC", "calibration error",
         *(f"AUROC, {share}0 % of channels gone" for share in range(1, 6)), "fit"],
        [death_row(results, row, small) for row in DEATH_ROWS],
        ("Three splits of 80/10/10 by stay, scored at 48 h; mean ± standard error. Channels gone at test alone.",),
    )  # fmt: skip
    return [sepsis_table, death_table]


SUITE = Suite("early_warning", cases, tables)
