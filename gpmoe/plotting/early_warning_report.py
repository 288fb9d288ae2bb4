"""One page on how a model of early warning does: scores beside the clock's, calibration, alarms, three series."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpmoe import __version__
from gpmoe.distributions import Array
from gpmoe.early_warning.alarm_report import DetectionWindow, tally
from gpmoe.early_warning.alarm_table import AlarmRow, alarm_table
from gpmoe.early_warning.alarms import AlarmPolicy
from gpmoe.early_warning.bootstrap import DEFAULT, Bootstrap, Estimate
from gpmoe.early_warning.calibration import Reliability, reliability
from gpmoe.early_warning.scorecard import Scorecard, has_events, scorecard, series_score
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError, MissingPackageError
from gpmoe.estimators.series_classifier import SeriesClassifier
from gpmoe.plotting.ranking_curves import RankingCurves, plot_precision_recall, plot_roc, ranking_curves
from gpmoe.plotting.risk_reliability import plot_reliability
from gpmoe.plotting.watched_series import WatchedSeries, plot_watched_series, watched_series

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHARE = 0.1  # of series that alarm in the examples, where no policy is given

_STYLE = """
body{font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;color:#222;background:#fff;
margin:0 auto;max-width:62rem;padding:1.5rem 1.25rem 3rem}
h1{font-size:1.6rem;line-height:1.25;margin:.2em 0 .4em}h2{font-size:1.15rem;margin:2.2em 0 .5em}
p{max-width:46rem;margin:.5em 0}.note{color:#555;font-size:.88rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.6em 0}
th,td{padding:.32em .75em;text-align:right;white-space:nowrap;border-bottom:1px solid #e2e2e2;vertical-align:baseline}
th{font-weight:600;border-bottom:1.5px solid #888;white-space:normal;vertical-align:bottom;font-size:.9rem}
th:first-child,td:first-child{text-align:left;padding-left:0}
td small{color:#666;font-size:.78rem;display:block}
tr.clock td{color:#666}tr.chosen td{font-weight:600}tr.chosen td small{font-weight:400}
figure{margin:1em 0}figcaption{color:#555;font-size:.88rem;max-width:46rem}
.row{display:flex;flex-wrap:wrap;gap:1rem}.row img{width:300px;max-width:100%}figure>img{max-width:100%}
"""


@dataclass(frozen=True, eq=False)
class ReportNumbers:
    """Everything that the page shows.

    Args:
        n_series, n_channels, n_times, n_events: sizes; events are series with one, or with a positive label.
        scores: of the model and the clock, by name.
        curves: of times, or of series for labels a series, by name.
        calibration: of the model's risks.
        alarms: rows of the table; empty without event times.
        examples: what each is, and its numbers.
    """

    n_series: int
    n_channels: int
    n_times: int
    n_events: int
    scores: dict[str, Scorecard]
    curves: dict[str, RankingCurves]
    calibration: Reliability
    alarms: list[AlarmRow]
    examples: list[tuple[str, WatchedSeries]]


def report(
    model: SeriesClassifier,
    series: RaggedSeries,
    path: str | os.PathLike[str],
    *,
    policy: AlarmPolicy | None = None,
    window: DetectionWindow | None = None,
    day: float = 24.0,
    time_unit: str | None = None,
    title: str = "Early warning",
    bootstrap: Bootstrap = DEFAULT,
) -> ReportNumbers:
    """Write one HTML file that needs nothing beside it; it appears whole or not at all.

    Args:
        model: a fitted classifier of series, of one task.
        series: labelled ones that it has not seen, some positive and some not; with event times for alarms.
        path: the file, replaced if it exists.
        policy: of alarms, such as `choose_threshold` found; shown as a row of its own and in the examples. By default
            examples have one alarm a series, at the threshold at which a tenth of the series alarm.
        window: which alarms are true; by default all before the event.
        day: length of a day in the unit of time.
        time_unit: such as "hours", for labels of axes.
        title: of the page.
        bootstrap: how intervals are made.

    Returns:
        The numbers on the page.

    Raises:
        InputError: without labels, with several tasks, or with one class alone.
        MissingPackageError: if matplotlib is not installed.
    """
    numbers = report_numbers(model, series, policy=policy, window=window, day=day, bootstrap=bootstrap)
    text = _page(numbers, title, time_unit, window or DetectionWindow(), bootstrap)
    target = Path(path)
    partial = target.with_name(f".{target.name}-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return numbers


def report_numbers(
    model: SeriesClassifier,
    series: RaggedSeries,
    *,
    policy: AlarmPolicy | None = None,
    window: DetectionWindow | None = None,
    day: float = 24.0,
    bootstrap: Bootstrap = DEFAULT,
) -> ReportNumbers:
    """Compute what `report` shows.

    Args:
        model, series, policy, window, day, bootstrap: as in `report`.

    Raises:
        InputError: as `report`.
    """
    series = series[np.diff(series.grid_offsets) > 0]
    labels = series.labels
    if labels is None or labels.ndim != 1:
        raise InputError("a report needs labels of one task; pass `labels` when making the series.")
    found = np.unique(labels[~np.isnan(labels)])
    if len(found) < 2:
        raise InputError(
            f"a report needs positive and negative labels; got {'none' if not len(found) else f'only {found[0]:g}'} "
            f"among {len(series)} series with grid times. Bring labelled series of both kinds."
        )
    risk = model.predict_proba(series)
    scores = {"model": risk, "clock": series.grid_times}
    chosen = policy or AlarmPolicy(_threshold(series_score(series, risk)), latching=True)
    rows = []
    if has_events(series):
        own = {} if policy is None else {"model": policy}
        rows = alarm_table(series, scores, policies=own, window=window, day=day, bootstrap=bootstrap)
    of_series = series.label_per == "series"
    judged = {name: series_score(series, score) if of_series else score for name, score in scores.items()}
    examples = [
        (words, watched_series(model, series[[i]], chosen)) for words, i in _examples(series, risk, chosen, window)
    ]
    return ReportNumbers(
        len(series), series.n_channels, len(series.grid_times), int((series.series_labels > 0).sum()),
        {name: scorecard(series, score, bootstrap=bootstrap) for name, score in scores.items()},
        {name: ranking_curves(score, labels) for name, score in judged.items()},
        reliability(series, judged["model"], bootstrap=bootstrap), rows, examples,
    )  # fmt: skip


def _threshold(score: Array) -> float:
    """What a tenth of the series exceed."""
    return float(np.sort(score)[min(len(score) - 1, int(np.ceil((1 - _SHARE) * len(score))) - 1)])


def _examples(
    series: RaggedSeries, risk: Array, policy: AlarmPolicy, window: DetectionWindow | None
) -> list[tuple[str, int]]:
    """Three series by rule, not by taste: a warned one, the one missed most clearly, the falsest alarm."""
    score = series_score(series, risk)
    truth = series.series_labels
    positive, negative = np.flatnonzero(truth > 0), np.flatnonzero(truth == 0)
    raised = policy.alarms(series, risk).raised
    if has_events(series):
        found = tally(series, raised, window or DetectionWindow()).true > 0
    else:
        found = np.bincount(series.grid_owner, raised, minlength=len(series)) > 0
    warned, missed = positive[found[positive]], positive[~found[positive]]
    rules = (
        ("Warned in time: of the series with a true alarm, the one of median risk", warned, 0.5),
        ("Missed: of the positive series without a true alarm, the one of least risk", missed, 0.0),
        ("The highest risk without cause: of the negative series", negative, 1.0),
        ("Quiet: the negative series of median risk", negative, 0.5),
        ("The positive series of least risk", positive, 0.0),
        ("The positive series of largest risk", positive, 1.0),
    )
    shown: dict[int, str] = {}
    for words, group, level in rules:
        if len(group) and len(shown) < 3:
            order = group[np.argsort(score[group], kind="stable")]
            shown.setdefault(int(order[round(level * (len(order) - 1))]), words)
    return [(words, i) for i, words in shown.items()]


def _page(
    numbers: ReportNumbers, title: str, time_unit: str | None, window: DetectionWindow, bootstrap: Bootstrap
) -> str:
    """The HTML."""
    unit = f" {time_unit}" if time_unit else ""
    what = "series" if numbers.scores["model"].time_auroc is None else "times"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{numbers.n_series} series of {numbers.n_channels} channels, scored at {numbers.n_times} times from the "
        f"measurements up to each alone; {numbers.n_events} series are positive. Intervals are "
        f"{bootstrap.coverage:.0%} bootstrap intervals over series.</p>",
        "<h2>Scores</h2>",
        _score_table(numbers.scores),
        '<p class="note">The clock is the time since the origin of each series and nothing else: what a model has '
        "beyond it comes from the measurements. Utility is that of the PhysioNet challenge of 2019 with times read as "
        "hours, at thresholds found on the other half of the series.</p>",
        f"<h2>Ranking and calibration of {what}</h2>",
        '<div class="row">',
        _image(lambda ax: plot_roc(numbers.curves, ax), (3.6, 3.6), "Receiver operating curve"),
        _image(lambda ax: plot_precision_recall(numbers.curves, ax), (3.6, 3.6), "Precision against recall"),
        _image(lambda ax: plot_reliability(numbers.calibration, ax), (3.6, 3.6), "Observed frequency against risk"),
        "</div>",
        f'<p class="note">Calibration is read in {len(numbers.calibration.count)} bins of equal size; bars are two '
        "standard errors.</p>",
        "<h2>Alarms</h2>",
        *_alarm_section(numbers.alarms, unit, window),
        "<h2>Three series</h2>",
        '<p class="note">Chosen by the rules in their captions. Bands are what the Gaussian process expected of the '
        "next measurement from the past alone; shown are the channels that moved the risk most.</p>",
    ]
    xlabel = f"time ({time_unit})" if time_unit else "time"
    for words, example in numbers.examples:
        parts.append(_example(words, example, xlabel))
    parts.append(f'<p class="note">Written by gpmoe {html.escape(__version__)}.</p>')
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _score_table(scores: dict[str, Scorecard]) -> str:
    columns = {
        "time_auroc": "AUROC of times", "time_auprc": "AUPRC of times", "series_auroc": "AUROC of series",
        "series_auprc": "AUPRC of series", "utility": "utility", "calibration_error": "calibration error",
    }  # fmt: skip
    shown = [name for name in columns if getattr(scores["model"], name) is not None]
    rows = [
        (name, [name, *(_estimate(getattr(card, column)) for column in shown)]) for name, card in scores.items()
    ]  # fmt: skip
    prevalence = f'<p class="note">Share of positives: {scores["model"].prevalence:.3f}.</p>'
    return _table(["", *(columns[name] for name in shown)], rows) + prevalence


def _alarm_section(rows: list[AlarmRow], unit: str, window: DetectionWindow) -> list[str]:
    if not rows:
        return [
            "<p>These series have no event times, so that alarms can't be judged as true or "
            "false. Give <code>event_time</code> to see the table.</p>"
        ]
    heads = ["score", "threshold", "series alarmed", "events detected", "precision", "false per true alarm",
             "alarms a day", f"median lead{unit and f' ({unit.strip()})'}"]  # fmt: skip
    body = []
    for i, row in enumerate(rows):
        found = row.report
        cells = [
            row.score, f"{row.policy.threshold:.3g}", f"{row.share:.0%}", _estimate(found.detected),
            _estimate(found.precision), _estimate(found.false_per_true, 1), _estimate(found.alarms_per_day),
            _estimate(found.lead[0.5], 1),
        ]  # fmt: skip
        chosen = i == 0 and len(rows) % 2
        body.append(("chosen" if chosen else row.score, cells))
    if np.isfinite(window.earliest):
        when = f"from {window.earliest:g} to {window.latest:g}{unit} before it"
    else:
        when = f"at least {window.latest:g}{unit} before it" if window.latest else "before it"
    return [
        _table(heads, body),
        f'<p class="note">An event is detected by an alarm {when}. Model and clock are set side by side at thresholds '
        "that let the same share of series alarm, one alarm a series"
        + ("; the row in bold is the policy in use" if len(rows) % 2 else "")
        + ".</p>",
    ]


def _table(heads: list[str], rows: Iterable[tuple[str, list[str]]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "\n".join(
        f'<tr class="{html.escape(kind)}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        for kind, cells in rows
    )
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _estimate(estimate: Estimate | None, digits: int = 3) -> str:
    """A cell of value and interval; a dash where there is none."""
    if estimate is None or not np.isfinite(estimate.value):
        return "–"
    ends = f"<small>{estimate.lower:.{digits}f} to {estimate.upper:.{digits}f}</small>"
    return f"{estimate.value:.{digits}f}" + (ends if np.isfinite(estimate.lower) else "")


def _example(words: str, example: WatchedSeries, xlabel: str) -> str:
    rows = len(example.channels) + 1
    figure = _new_figure((8.4, 1.15 * rows + 0.6))
    axes = list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
    plot_watched_series(example, axes, xlabel=xlabel)
    alarms = "no alarm" if not len(example.alarm_time) else f"first alarm at {example.alarm_time[0]:.4g}"
    event = "no event" if not np.isfinite(example.event_time) else f"event at {example.event_time:.4g}"
    text = f"{words}. Series {example.id}: {event}, {alarms}."
    return f"<figure>{_inline(figure, words)}<figcaption>{html.escape(text)}</figcaption></figure>"


def _image(draw: Callable[..., object], size: tuple[float, float], words: str) -> str:
    figure = _new_figure(size)
    draw(figure.subplots())
    return _inline(figure, words)


def _inline(figure: Figure, words: str) -> str:
    """An image element that holds its picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(words)}" src="data:image/svg+xml;base64,{data}">'


def _new_figure(size: tuple[float, float]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError('a report needs matplotlib: pip install "gpmoe[plot]"') from error
    return Figure(figsize=size, layout="constrained")
