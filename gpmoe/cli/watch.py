"""`gpmoe watch`: early warning on long tables, and on a stream of measurements."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import polars as pl
import typer
from rich.console import Console
from rich.table import Table

from gpmoe.cli.files import Delimiter, expect_fraction, expect_output, expect_table_ending, progress, replacing, say
from gpmoe.errors import FileFormatError, GPMoEError, InputError
from gpmoe.table import read_table, write_table

if TYPE_CHECKING:
    from gpmoe.early_warning import AlarmPolicy, RaggedSeries
    from gpmoe.early_warning.alarm_stream import AlarmStream, Verdict
    from gpmoe.estimators.early_warning_classifier import EarlyWarningClassifier

watch = typer.Typer(
    help="Early warning: learn a risk from irregular measurements, score tables and streams, report.",
    no_args_is_help=True,
)

Measurements = Annotated[Path, typer.Argument(help="A table with the columns id, time, channel and value.")]
Model = Annotated[Path, typer.Argument(help="A model that gpmoe watch fit wrote.")]
Grid = Annotated[
    Path | None,
    typer.Option(help="A table of the times to score: id, time. By default every so often, from first to last."),
]
Outcomes = Annotated[Path | None, typer.Option(help="A table with one row an id: events, labels, covariates.")]
Repair = Annotated[bool, typer.Option(help="Drop rows that can't be used, sort the rest, average repeated ones.")]


@dataclass(frozen=True)
class Layout:
    """How the tables of a model are laid out; kept in its file.

    Attributes:
        id, time, channel, value: columns of the table of measurements, `id` and `time` of the others too.
        label: column of the grid or of the outcomes.
        event_time, censoring_time, static: columns of the outcomes.
        horizon: labels say whether the event comes within it; None where labels are a column.
        every: distance of grid times.
    """

    id: str
    time: str
    channel: str
    value: str
    label: str | None
    event_time: str | None
    censoring_time: str | None
    static: list[str]
    horizon: float | None
    every: float


@watch.command()
def fit(
    measurements: Measurements,
    out: Annotated[Path, typer.Option(help="Where to write the model.")],
    outcomes: Outcomes = None,
    grid: Grid = None,
    label: Annotated[str | None, typer.Option(help="Column of 0 and 1, of the grid or of the outcomes.")] = None,
    event_time: Annotated[str | None, typer.Option(help="Column of the outcomes, empty without an event.")] = None,
    horizon: Annotated[
        float | None, typer.Option(help="In place of --label: warn of events that come within this time.")
    ] = None,
    censoring_time: Annotated[str | None, typer.Option(help="Column of the outcomes: end of observation.")] = None,
    static: Annotated[list[str] | None, typer.Option(help="A covariate in the outcomes; may be repeated.")] = None,
    every: Annotated[float, typer.Option(help="Distance of the times to score, where there is no --grid.")] = 1.0,
    columns: Annotated[
        str, typer.Option(help="Columns of names of series, of times (in any one unit), channels and values.")
    ] = "id,time,channel,value",
    network: Annotated[Literal["tcn", "gru", "linear"], typer.Option(help="What reads the channels.")] = "tcn",
    epochs: Annotated[int, typer.Option(min=1, help="At most so many passes over the data.")] = 30,
    test_fraction: Annotated[float, typer.Option(help="Share of the series held out for scores and alarms.")] = 0.3,
    precision: Annotated[float | None, typer.Option(help="Promise: least share of true alarms.")] = None,
    alarms_per_day: Annotated[float | None, typer.Option(help="Promise: most alarms a day watched.")] = None,
    day: Annotated[float, typer.Option(help="Length of a day in the unit of time.")] = 24.0,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Fixes the held-out series and the fit.")] = 0,
    repair: Repair = False,
    delimiter: Delimiter = None,
) -> None:
    """Fit a model, print its scores on held-out series beside the clock's, and choose an alarm threshold."""
    from gpmoe.estimators.early_warning_classifier import EarlyWarningClassifier

    expect_fraction("--test-fraction", test_fraction)
    expect_output("--out", out, measurements, outcomes, grid)
    if (label is None) == (horizon is None):
        raise InputError("give --label or --horizon: a column of labels, or how far ahead of --event-time to warn.")
    if event_time is None and (horizon is not None or precision is not None or alarms_per_day is not None):
        raise InputError("--horizon, --precision and --alarms-per-day need --event-time, a column of --outcomes.")
    layout = Layout(*_four(columns), label, event_time, censoring_time, static or [], horizon, every)
    series = _series(layout, measurements, grid, outcomes, delimiter, repair=repair, labelled=True)
    train, test = _split(series, test_fraction, seed)
    with progress(total=3) as step:
        step(f"fitting to {len(train)} series")
        model = EarlyWarningClassifier(network, max_epochs=epochs, random_state=seed).fit(train)
        step(f"scoring {len(test)} series")
        risk = model.predict_proba(test)
        table = _score_table(test, risk)
        policy, reason = _policy(test, risk, precision, alarms_per_day, day)
        step("saving")
        extra = {"watch": asdict(layout), "day": day, "policy": None if policy is None else asdict(policy)}
        with replacing(out) as partial:
            _save(model, partial, extra)
    typer.echo(f"Scores on {len(test)} held-out series, fitted to {len(train)}, with 95 % intervals:")
    Console().print(table)
    if reason:
        typer.echo(reason)
    typer.echo(f"{out}: fitted to {len(train)} series" + (f"; {_promise(policy)}" if policy else ""))


@watch.command()
def score(
    model: Model,
    measurements: Measurements,
    out: Annotated[Path, typer.Option(help="Where to write the risks: .csv, .tsv or .parquet.")],
    grid: Grid = None,
    outcomes: Outcomes = None,
    threshold: Annotated[float | None, typer.Option(help="Raise one alarm a series above it.")] = None,
    repair: Repair = False,
    delimiter: Delimiter = None,
) -> None:
    """Write the risk at each time of each series, from the measurements up to it alone."""
    expect_output("--out", out, model, measurements, outcomes, grid)
    expect_table_ending("--out", out)
    fitted, layout, extra = _load(model)
    series = _series(layout, measurements, grid, outcomes, delimiter, repair=repair, channels=fitted.channel_names_)
    policy = _stored_policy(extra, threshold)
    with progress(total=1) as step:
        step(f"scoring {len(series)} series")
        risk = fitted.predict_proba(series)
    frame = pl.DataFrame(
        {layout.id: series.ids[series.grid_owner], layout.time: series.grid_times, "risk": risk}
    )  # fmt: skip
    if policy is not None:
        frame = frame.with_columns(pl.Series("alarm", policy.alarms(series, risk).raised))
    with replacing(out) as partial:
        write_table(frame, partial)
    typer.echo(f"{out}: {len(frame)} risks of {len(series)} series")


@watch.command()
def stream(
    model: Model,
    threshold: Annotated[float | None, typer.Option(help="Raise one alarm a series above it.")] = None,
    skip_wrong_lines: Annotated[bool, typer.Option(help="Note lines that can't be used on stderr, and go on.")] = False,
) -> None:
    """Read JSON lines, write risks and alarms as JSON lines, each as soon as it is certain.

    In: {"id": "a", "time": 1.5, "channel": "pulse", "value": 80}, in order of time within an id; before the first of
    an id, if wanted, {"id": "a", "static": [63, null]}; {"id": "a", "end": true} drops it. Out, for each grid time:
    {"id": "a", "time": 1.0, "risk": 0.03, "alarm": false, "active": false}.
    """
    from gpmoe.early_warning.alarm_stream import AlarmStream

    fitted, layout, extra = _load(model)
    policy = _stored_policy(extra, threshold)
    if policy is None:
        say("note: the model has no alarm threshold; pass --threshold to raise alarms.")
    alarms = AlarmStream(fitted.stream(), layout.every, policy)
    try:
        for number, line in enumerate(sys.stdin, start=1):
            if line.strip():
                _write(_taken(alarms, line, number, skip_wrong_lines))
        _write(alarms.end_all())
    except BrokenPipeError:  # nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@watch.command()
def report(
    model: Model,
    measurements: Measurements,
    out: Annotated[Path, typer.Option(help="Where to write the page: .html.")],
    outcomes: Outcomes = None,
    grid: Grid = None,
    repair: Repair = False,
    delimiter: Delimiter = None,
) -> None:
    """Write one page on how the model does on labelled series: curves, calibration, alarms, examples."""
    from gpmoe.plotting.early_warning_report import report as write_report

    expect_output("--out", out, model, measurements, outcomes, grid)
    if out.suffix not in (".html", ".htm"):
        raise InputError(f"--out must end in .html; got {out.name}.")
    fitted, layout, extra = _load(model)
    series = _series(
        layout, measurements, grid, outcomes, delimiter, repair=repair, channels=fitted.channel_names_, labelled=True
    )
    with progress(total=1) as step:
        step(f"judging {len(series)} series")
        write_report(fitted, series, out, policy=_stored_policy(extra, None), day=extra["day"], title=model.stem)
    typer.echo(f"{out}: report on {len(series)} series")


def _four(columns: str) -> tuple[str, str, str, str]:
    names = [name.strip() for name in columns.split(",")]
    if len(names) != 4 or len(set(names)) < 4 or not all(names):
        raise InputError(
            "--columns must name four columns, of series, times, channels and values, with commas between; got "
            f"{columns!r}."
        )
    return names[0], names[1], names[2], names[3]


def _series(
    layout: Layout,
    measurements: Path,
    grid: Path | None,
    outcomes: Path | None,
    delimiter: str | None,
    *,
    repair: bool,
    channels: tuple[str, ...] | None = None,
    labelled: bool = False,
) -> "RaggedSeries":
    """The tables as series, on a regular grid where none is given."""
    from gpmoe.early_warning import RaggedSeries
    from gpmoe.early_warning.horizon_labels import horizon_labels
    from gpmoe.early_warning.regular_grid import regular_grid

    columns = [layout.id, layout.time, layout.channel, layout.value]
    frames = [
        None if path is None else _read(path, delimiter, columns[:n], text=(layout.id, layout.channel))
        for path, n in ((measurements, 4), (grid, 2), (outcomes, 1))
    ]
    with _in_words_of_options(measurements):
        series = RaggedSeries.from_table(
            frames[0], id=layout.id, time=layout.time, channel=layout.channel, value=layout.value,
            channel_names=channels, grid=frames[1], outcomes=frames[2], static=layout.static, repair=repair,
            label=layout.label if labelled else None,
            event_time=layout.event_time if labelled else None,
            censoring_time=layout.censoring_time if labelled else None,
        )  # fmt: skip
        if grid is None:
            series = regular_grid(series, layout.every)
        if labelled and layout.horizon is not None:
            series = horizon_labels(series, layout.horizon)
    if labelled and series.labels is None:
        raise InputError(f"there are no labels: the column {layout.label!r} is in --grid, which did not come.")
    return series


def _read(path: Path, delimiter: str | None, wanted: list[str], text: tuple[str, ...]) -> pl.DataFrame:
    frame = read_table(path, delimiter, text=text)
    lacking = [name for name in wanted if name not in frame.columns]
    if lacking:
        raise InputError(
            f"{path} has no column {lacking[0]!r}; it has {', '.join(map(repr, frame.columns))}. Rename it, or name "
            "the columns when fitting, such as --columns id,time,channel,value."
        )
    for name in wanted:
        if name not in text and not frame[name].dtype.is_numeric():
            wrong = frame[name].cast(pl.String).cast(pl.Float64, strict=False).is_null().arg_true()
            row = int(wrong[0]) if len(wrong) else 0
            raise InputError(
                f"{path}, row {row}: column {name!r} holds {frame[name][row]!s}, which is not a number. Times are "
                "numbers of one unit, such as hours since admission. Rows are counted from 0, below the header."
            )
    return frame


@contextmanager
def _in_words_of_options(path: Path) -> Iterator[None]:
    """Errors of series name the file, and options of the command in place of arguments."""
    try:
        yield
    except InputError as error:
        text = str(error).replace("pass repair=True", "pass --repair")
        rows = " Rows are counted from 0, below the header." if text.startswith("row ") else ""
        raise InputError(f"{path}: {text}{rows}") from error


def _split(series: "RaggedSeries", fraction: float, seed: int) -> tuple["RaggedSeries", "RaggedSeries"]:
    """Training and test series, each with its share of the positive ones."""
    positive = series.series_labels > 0
    order = np.random.default_rng(seed).permutation(len(series))
    test = np.zeros(len(series), dtype=bool)
    for kind in (True, False):
        group = order[positive[order] == kind]
        if len(group) < 4 and (kind or len(group)):
            raise InputError(
                f"{len(group)} series are {'positive' if kind else 'negative'}; at least 4 of each kind are needed to "
                "fit and to score. Check the labels, or bring more series."
            )
        test[group[: max(1, round(fraction * len(group)))]] = True
    return series[~test], series[test]


def _policy(
    series: "RaggedSeries", risk: Any, precision: float | None, alarms_per_day: float | None, day: float
) -> tuple["AlarmPolicy | None", str]:
    """The policy that keeps what was promised, if there is one, and why."""
    from gpmoe.early_warning import AlarmBudget, AlarmPolicy, choose_threshold

    if precision is None and alarms_per_day is None:
        return None, ""
    budget = AlarmBudget(precision, alarms_per_day, day=day)
    choice = choose_threshold(series, risk, AlarmPolicy(0.5, latching=True), budget)
    return choice.policy, f"Alarms: {choice.reason}"


def _promise(policy: "AlarmPolicy") -> str:
    return f"one alarm a series, above a risk of {policy.threshold:.4g}"


def _score_table(series: "RaggedSeries", risk: Any) -> Table:
    """Scores of the model and of the clock, side by side."""
    from gpmoe.early_warning.scorecard import scorecard

    table = Table()
    table.add_column("score")
    for heading in ("model", "clock"):
        table.add_column(heading, justify="right")
    cards = [vars(scorecard(series, score)) for score in (risk, series.grid_times)]
    for name, words in (
        ("time_auroc", "AUROC of times"),
        ("time_auprc", "AUPRC of times"),
        ("series_auroc", "AUROC of series"),
        ("series_auprc", "AUPRC of series"),
        ("utility", "utility (challenge 2019)"),
        ("calibration_error", "calibration error"),
    ):
        if cards[0][name] is not None:
            table.add_row(words, *("-" if card[name] is None else str(card[name]) for card in cards))
    return table


def _save(model: "EarlyWarningClassifier", path: Path, extra: dict[str, Any]) -> None:
    from gpmoe.io import save

    save(model, path, extra=extra)


def _load(path: Path) -> tuple["EarlyWarningClassifier", Layout, dict[str, Any]]:
    from gpmoe.io import load_with_extra

    if not path.is_file():
        raise InputError(f"there is no model file {path}. Write one with gpmoe watch fit.")
    model, extra = load_with_extra(path)
    if not extra or "watch" not in extra:
        raise FileFormatError(f"{path} is not a model of gpmoe watch fit. Use gpmoe.load in Python instead.")
    return model, Layout(**extra["watch"]), extra


def _stored_policy(extra: dict[str, Any], threshold: float | None) -> "AlarmPolicy | None":
    from gpmoe.early_warning import AlarmPolicy

    if threshold is not None:
        return AlarmPolicy(threshold, latching=True)
    return None if extra["policy"] is None else AlarmPolicy(**extra["policy"])


def _taken(alarms: "AlarmStream", line: str, number: int, skip: bool) -> list["Verdict"]:
    """What a line leads to; an error that names the line."""
    try:
        return _of_line(alarms, line)
    except GPMoEError as error:
        text = f"line {number}: {error}"
        if not skip:
            raise InputError(f"{text} Nothing after it was read; --skip-wrong-lines goes on.") from error
        say(f"note: skipped {text}")
        return []


def _of_line(alarms: "AlarmStream", line: str) -> list["Verdict"]:
    form = '{"id": …, "time": …, "channel": …, "value": …}, {"id": …, "static": […]} or {"id": …, "end": true}'
    try:
        found = json.loads(line)
    except ValueError as error:
        raise InputError(f"it is not JSON ({error}). It must be {form}.") from error
    keys = set(found) if isinstance(found, dict) else set()
    if keys == {"id", "end"} and found["end"] is True and _is_name(found["id"]):
        return alarms.end(found["id"])
    if keys == {"id", "static"} and _is_name(found["id"]) and isinstance(found["static"], list):
        alarms.admit(found["id"], [_number("static", np.nan if x is None else x) for x in found["static"]])
        return []
    if keys != {"id", "time", "channel", "value"} or not _is_name(found["id"]):
        raise InputError(f"it must be {form}, with text or an integer for id; got {line.strip()[:80]}.")
    time, value = (_number(name, found[name]) for name in ("time", "value"))
    return alarms.update(found["id"], time, str(found["channel"]), value)


def _is_name(id: Any) -> bool:
    return isinstance(id, (str, int)) and not isinstance(id, bool)


def _number(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise InputError(f"{name!r} must be a number; got {json.dumps(value)}.")
    return float(value)


def _write(verdicts: list["Verdict"]) -> None:
    for verdict in verdicts:
        sys.stdout.write(json.dumps(verdict._asdict()) + "\n")
        sys.stdout.flush()
