"""Early warning of engines that fail: NASA's C-MAPSS, subset FD001, by the code that warns of sepsis.

| what | how |
|---|---|
| measurements | every sensor and setting that ever varies, once a cycle, as long tables without a grid have them |
| label | the engine fails within 30 cycles; each of the 100 training engines runs to failure |
| split | 60/20/20 by engine, seeds 0-2; the 100 engines of the test file, stopped before they fail, once more |
| alarm | one an engine; threshold chosen on the 20 validation engines by a budget with a guarantee |
| true alarm | from 60 cycles before the failure to one cycle before it |
"""

import gzip
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.early_warning import quietly
from benchmarks.harness import DATA, Case, Figures, Results, Run, Suite, Table
from benchmarks.tables import duration, number
from gpmoe.early_warning import RaggedSeries

Array = NDArray[np.float64]

NAME = "engine failure, C-MAPSS FD001"
FOLDER = DATA / "cmapss_fd001"
HORIZON, EARLIEST, SEEDS = 30.0, 60.0, range(3)
CLOCK, TREES, TCN = "clock", "adapter, boosted trees", "adapter, TCN"
ROWS = (CLOCK, TREES, TCN)
KINDS = ("held-out engines", "engines of the test file")


def rows(name: str) -> Array:
    """Engine, cycle, 3 settings and 21 sensors, ``(n, 26)``."""
    with gzip.open(FOLDER / f"{name}_FD001.txt.gz", "rt") as lines:
        return np.loadtxt(lines)


def engines(table: Array, left: Array, channels: NDArray[np.int64]) -> RaggedSeries:
    """One series an engine, scored at each cycle, which fails so many cycles after its last, ``(N,)``."""
    from gpmoe.early_warning.horizon_labels import horizon_labels

    counts = np.bincount(table[:, 0].astype(int))[1:]
    ends, M = np.cumsum(counts), len(channels)
    offsets = np.concatenate([[0], ends])
    series = RaggedSeries.from_arrays(
        np.repeat(table[:, 1], M), np.tile(np.arange(M), len(table)), table[:, channels].ravel(), M * offsets,
        channel_names=[f"column {c + 1}" for c in channels], grid_times=table[:, 1], grid_offsets=offsets,
        event_time=table[ends - 1, 1] + left,
    )  # fmt: skip
    return horizon_labels(series, HORIZON)


@cache
def data(seed: int, n: int | None) -> tuple[RaggedSeries, ...]:
    """Training, validation, held-out engines and those of the test file."""
    training, test = rows("train"), rows("test")
    varies = np.flatnonzero(np.ptp(training, axis=0) > 0)
    channels = varies[varies > 1]
    run_to_failure = engines(training, np.zeros(len(np.unique(training[:, 0]))), channels)
    stopped = engines(test, np.loadtxt(FOLDER / "RUL_FD001.txt"), channels)
    if n is not None:
        run_to_failure, stopped = run_to_failure[:n], stopped[:n]
    return *run_to_failure.split([0.6, 0.2, 0.2], seed=seed), stopped


def model(name: str, small: bool) -> Any:
    from gpmoe.estimators.early_warning_classifier import EarlyWarningClassifier
    from gpmoe.estimators.series_baselines import ClockClassifier

    if name == CLOCK:
        return ClockClassifier(random_state=0)
    if name == TREES:
        return EarlyWarningClassifier("trees", random_state=0)
    options: dict[str, Any] = {"max_epochs": 2, "hidden": 8} if small else {}
    return EarlyWarningClassifier("tcn", batch_size=8, random_state=0, **options)


def run(library: str, seed: int, n: int | None) -> Run:
    training, validation, test, stopped = data(seed, n)

    def figures(fitted: Any) -> Figures:
        from gpmoe.early_warning import AlarmBudget, AlarmPolicy, DetectionWindow, choose_threshold

        window, one = DetectionWindow(EARLIEST, 1.0), AlarmPolicy(0.5, latching=True)
        choice = choose_threshold(
            validation, fitted.predict_proba(validation), one, AlarmBudget(precision=0.7, risk=0.2), window=window
        )
        found: Figures = {"attainable": float(choice.attainable), "reason": choice.reason}
        for kind, series in zip(KINDS, (test, stopped), strict=True):
            found |= scores(series, fitted.predict_proba(series), choice.policy, window, kind)
        return found

    return Run(lambda: quietly(model(library, n is not None), training), figures)


def scores(series: RaggedSeries, risk: Array, policy: Any, window: Any, kind: str) -> Figures:
    """Of some engines; those of alarms only where there is a threshold."""
    from gpmoe.early_warning import alarm_report, time_ranking
    from gpmoe.early_warning.alarm_report import tally

    ranking = time_ranking(series, risk)
    found = {"auroc": ranking.auroc.value, "auprc": ranking.auprc.value}
    if policy is not None:
        raised = policy.alarms(series, risk).raised
        report = alarm_report(series, raised, window=window)
        found |= {
            "detected": report.detected.value, "false an engine": float(tally(series, raised, window).false.mean()),
            **{f"lead {level}": estimate.value for level, estimate in report.lead.items()},
        }  # fmt: skip
    return {f"{kind}: {name}": value for name, value in found.items()}


def case(library: str, seed: int, small: bool) -> Case:
    return Case(
        NAME, library, partial(run, library), {"seed": seed, "n": 30 if small else None}, repetitions=1, warm_up=0
    )


def cases(small: bool) -> list[Case]:
    if not FOLDER.is_dir():
        print(f"cmapss_warning: skipped, no folder {FOLDER}; set GPMOE_DATA")
        return []
    return [case(library, seed, small) for library in ROWS for seed in (SEEDS[:1] if small else SEEDS)]


def row(results: Results, library: str, kind: str, small: bool) -> list[str]:
    each = [case(library, seed, small) for seed in (SEEDS[:1] if small else SEEDS)]

    def cell(figure: str, form: str) -> str:
        values = np.array([results.median(one, f"{kind}: {figure}") for one in each])
        known = values[~np.isnan(values)]
        if not len(known):
            return "-"
        ends = f" ({number(known.min(), form)} to {number(known.max(), form)})" if len(known) > 1 else ""
        return number(float(np.median(known)), form) + ends

    leads = " / ".join(cell(f"lead {level}", ".0f").split(" ")[0] for level in (0.25, 0.5, 0.75))
    attained = sum(results.median(one, "attainable") == 1 for one in each)
    return [
        library, kind, cell("auroc", ".3f"), cell("auprc", ".3f"), f"{attained} of {len(each)}", leads,
        cell("detected", ".2f"), cell("false an engine", ".2f"),
        duration(float(np.median([results.median(one) for one in each]))),
    ]  # fmt: skip


def tables(results: Results, small: bool) -> list[Table]:
    table = Table(
        NAME,
        ["model", "scored on", "AUROC", "AUPRC", "thresholds attained", "lead, cycles: quartiles", "detected",
         "false alarms an engine", "fit"],
        [row(results, library, kind, small) for kind in KINDS for library in ROWS],
        ("Median of three splits (least to largest). Lines of AUROC and AUPRC are over all cycles: does the engine "
         "fail within 30?",
         "Alarms: one an engine, at the lowest threshold for which at least 70 % of alarms are true on new engines, "
         "chosen on the 20 validation engines, wrong with probability 20 % at most; true is an alarm from 60 to 1 "
         "cycles before the failure. Where no threshold keeps the promise, alarm figures of that split are left out.",
         "An engine of the test file was stopped before it failed, by 7 to 145 cycles: one that was stopped early "
         "can't be warned of in time, which bounds the share detected.",
         "The code knows nothing of engines, nor of medicine: the same classes, in units of cycles."),
    )  # fmt: skip
    return [table]


SUITE = Suite("cmapss_warning", cases, tables)
