"""The command line: from a table to a fitted model, and from a model to predictions."""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import polars as pl
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from gpmoe import __version__
from gpmoe.cli.files import Delimiter, expect_fraction, expect_output, expect_table_ending, progress, replacing, say
from gpmoe.cli.sweep import sweep
from gpmoe.cli.watch import watch
from gpmoe.errors import FileFormatError, GPMoEError, GPMoEWarning, InputError, MissingPackageError
from gpmoe.table import TableSchema, read_table, write_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gpmoe.distributions import Predictive
    from gpmoe.estimators import GPRegressor, MixtureOfExpertsRegressor

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.add_typer(watch, name="watch")
app.command()(sweep)

_FEWEST_ROWS = 10


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 2 with one line on stderr about what was wrong.

    Args:
        args: the words after ``gpmoe``; by default those of this process.
    """
    os.environ.setdefault("KEOPS_VERBOSE", "0")  # or KeOps prints a line about GPUs among the results
    words = list(sys.argv[1:] if args is None else args) or ["--help"]
    try:
        with _warnings_as_notes():
            return app(words, prog_name="gpmoe", standalone_mode=False) or 0
    except typer.TyperException as error:
        return _complain(f"{error.format_message().rstrip('.')}. See gpmoe --help.")
    except (GPMoEError, OSError) as error:
        return _complain(str(error))
    except (typer.Abort, KeyboardInterrupt):
        _complain("stopped before the end; files are as they were.")
        return 130


@app.command()
def fit(
    table: Annotated[Path, typer.Argument(help="A .csv, .tsv or .parquet file with a header.")],
    target: Annotated[str, typer.Option(help="Name of the column to predict.")],
    out: Annotated[Path, typer.Option(help="Where to write the model.")],
    model: Annotated[Literal["gp", "moe"], typer.Option(help="Gaussian process, or mixture of GP experts.")] = "gp",
    test_fraction: Annotated[float, typer.Option(help="Share of the rows held out for the scores.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Fixes the held-out rows and the fit.")] = 0,
    delimiter: Delimiter = None,
    drop: Annotated[list[str] | None, typer.Option(help="A column to leave out; may be repeated.")] = None,
) -> None:
    """Fit a model to a table, print its scores on held-out rows, and save it fitted to all rows."""
    expect_fraction("--test-fraction", test_fraction)
    expect_output("--out", out, table)
    frame = _without(read_table(table, delimiter), drop or [], target)
    schema, notes = TableSchema.learn(frame, target)
    for note in notes:
        say(f"note: {note}")
    X, y = schema.features(frame), schema.targets(frame)
    train, test = _split(len(y), test_fraction, seed)
    with progress(total=3) as step:
        step(f"fitting to {len(train)} rows")
        held_out = _estimator(model, seed).fit(X[train], y[train]).predict_dist(X[test])
        scores = _scores(held_out, y[test])
        step(f"fitting to all {len(y)} rows")
        fitted = _estimator(model, seed).fit(X, y)
        step("saving")
        _save(fitted, out, {"table": schema.to_dict(), "model": model, "held_out_scores": scores})
    typer.echo(f"Scores on {len(test)} held-out rows, fitted to {len(train)}, in units of {target}:")
    Console().print(_score_table(scores))
    typer.echo(f"{out}: fitted to all {len(y)} rows; the scores above are of a fit to {len(train)} of them.")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A model that gpmoe fit wrote.")],
    table: Annotated[Path, typer.Argument(help="A table with the model's feature columns.")],
    out: Annotated[Path, typer.Option(help="Where to write the predictions: .csv, .tsv or .parquet.")],
    coverage: Annotated[float, typer.Option(help="Probability that the interval holds the target.")] = 0.9,
    plot: Annotated[Path | None, typer.Option(help="Where to write a figure: .png, .pdf or .svg.")] = None,
    delimiter: Delimiter = None,
) -> None:
    """Predict the target for each row of a table, with an interval."""
    expect_fraction("--coverage", coverage)
    for option, path in (("--out", out), *([("--plot", plot)] if plot else [])):
        expect_output(option, path, table, model)
    expect_table_ending("--out", out)
    fitted, schema = _load(model)
    frame = read_table(table, delimiter)
    X = schema.features(frame)
    with progress(total=1) as step:
        step(f"predicting {len(X)} rows")
        predictive = fitted.predict_dist(X)
        predictions = _prediction_frame(predictive, coverage, frame, schema.target)
    with replacing(out) as partial:
        write_table(predictions, partial)
        if plot:
            _plot(plot, fitted, schema, X, predictions, coverage)
    typer.echo(f"{out}: {len(X)} rows" + (f"\n{plot}: figure" if plot else ""))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the figure and the scores.")] = Path("gpmoe-demo"),
) -> None:
    """Compare a Gaussian process with a mixture of GP experts on two real tables."""
    from gpmoe.demo import run_demo

    run_demo(out, Console())


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gpmoe {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Gaussian processes and mixtures of GP experts with calibrated predictions."""


def _estimator(model: str, seed: int) -> "GPRegressor | MixtureOfExpertsRegressor":
    from gpmoe.estimators import GPRegressor, MixtureOfExpertsRegressor

    return (MixtureOfExpertsRegressor if model == "moe" else GPRegressor)(random_state=seed)


def _scores(predictive: "Predictive", y: NDArray[np.float64]) -> dict[str, float]:
    from gpmoe.metrics import scores

    return {name: float(value) for name, value in scores(predictive, y).items()}


def _save(estimator: "GPRegressor | MixtureOfExpertsRegressor", path: Path, extra: dict[str, object]) -> None:
    from gpmoe.io import save

    with replacing(path) as partial:
        save(estimator, partial, extra=extra)


def _load(path: Path) -> tuple["GPRegressor | MixtureOfExpertsRegressor", TableSchema]:
    from gpmoe.io import load_with_extra

    if not path.is_file():
        raise InputError(f"there is no model file {path}. Write one with gpmoe fit.")
    estimator, extra = load_with_extra(path)
    if extra is None or "table" not in extra:
        raise FileFormatError(f"{path} holds a model without a table description. Use gpmoe.load in Python instead.")
    return estimator, TableSchema.from_dict(extra["table"])


def _without(frame: pl.DataFrame, drop: list[str], target: str) -> pl.DataFrame:
    unknown = [name for name in drop if name not in frame.columns or name == target]
    if unknown:
        reason = "is the target" if unknown[0] == target else f"is not among {', '.join(frame.columns)}"
        raise InputError(f"--drop {unknown[0]}: the column {reason}.")
    return frame.drop(drop)


def _split(n: int, test_fraction: float, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    if n < _FEWEST_ROWS:
        raise InputError(f"the table has {n} rows; at least {_FEWEST_ROWS} are needed to fit and to score.")
    held_out = min(max(round(n * test_fraction), 1), n - 2)
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _score_table(scores: dict[str, float]) -> Table:
    table = Table()
    table.add_column("score")
    table.add_column("value", justify="right")
    table.add_column("better is")
    for name, label, better in (
        ("log_score", "log score (nats a row)", "higher"),
        ("crps", "CRPS", "lower"),
        ("rmse", "RMSE", "lower"),
        ("mae", "MAE", "lower"),
        ("coverage_90", "coverage of 90 % intervals", "near 0.9"),
        ("width_90", "width of 90 % intervals", "lower"),
        ("calibration_error", "calibration error", "lower"),
    ):
        table.add_row(label, f"{scores[name]:.4g}", better)
    return table


def _prediction_frame(predictive: "Predictive", coverage: float, frame: pl.DataFrame, target: str) -> pl.DataFrame:
    lower, upper = predictive.interval(coverage)
    columns = {"mean": predictive.mean, "std": predictive.stddev, "lower": lower, "upper": upper}
    predictions = pl.DataFrame({name: np.asarray(values) for name, values in columns.items()})
    predictions = predictions.with_row_index("row", offset=1)
    return predictions.with_columns(frame[target].alias("target")) if target in frame.columns else predictions


def _plot(
    path: Path,
    fitted: "GPRegressor | MixtureOfExpertsRegressor",
    schema: TableSchema,
    X: NDArray[np.float64],
    predictions: pl.DataFrame,
    coverage: float,
) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("--plot needs matplotlib. Type: pip install 'gpmoe[plot]'.") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    if path.suffix.lstrip(".") not in figure.canvas.get_supported_filetypes():
        raise InputError(f"--plot must end in .png, .pdf or .svg; got {path.name}.")
    ax = figure.subplots()
    if X.shape[1] == 1:
        _draw_band(ax, fitted, schema, X, predictions, coverage)
    else:
        _draw_intervals(ax, schema.target, predictions, coverage)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150)


def _draw_band(
    ax: "Axes",
    fitted: "GPRegressor | MixtureOfExpertsRegressor",
    schema: TableSchema,
    X: NDArray[np.float64],
    predictions: pl.DataFrame,
    coverage: float,
) -> None:
    from gpmoe.plotting import plot_band, posterior_band

    grid = np.linspace(X.min(), X.max(), 300)[:, None]
    levels = (0.5, coverage) if coverage > 0.5 else (coverage,)
    band = posterior_band(fitted, grid, levels=levels, include_latent=False)
    data = (X, predictions["target"].to_numpy()) if "target" in predictions.columns else (None, None)
    plot_band(band, ax, X=data[0], y=data[1], xlabel=schema.columns[0].name, ylabel=schema.target)


def _draw_intervals(ax: "Axes", target: str, predictions: pl.DataFrame, coverage: float) -> None:
    """Intervals against the observed target where the table holds it, else in the order of the means."""
    from gpmoe.plotting.ink import BLUE, GREY, open_axes

    open_axes(ax)
    observed = "target" in predictions.columns
    predictions = predictions if observed else predictions.sort("mean")
    mean = predictions["mean"].to_numpy()
    place = predictions["target"].to_numpy() if observed else np.arange(1, len(mean) + 1)
    below, above = mean - predictions["lower"].to_numpy(), predictions["upper"].to_numpy() - mean
    label = f"mean and {coverage:.0%} interval"
    bounds = np.maximum([below, above], 0.0)  # the mean of a mixture may lie outside a narrow interval
    pale = (BLUE, 0.45)
    ax.errorbar(place, mean, bounds, fmt="o", color=BLUE, ecolor=pale, elinewidth=1.0, markersize=3, label=label)
    if observed:
        ax.axline((float(mean[0]), float(mean[0])), slope=1, color=GREY, linewidth=0.8, label="observed = predicted")
    ax.set(xlabel=f"observed {target}" if observed else "rows, by predicted mean", ylabel=f"predicted {target}")
    ax.legend(frameon=False, fontsize="small")


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("always", GPMoEWarning)
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *place: object) -> None:
            if issubclass(category, GPMoEWarning):
                say(f"note: {message}")
            else:
                show(message, category, *place)  # type: ignore[arg-type]

        warnings.showwarning = note  # type: ignore[assignment]
        yield


def _complain(text: str) -> int:
    say(f"gpmoe: {text}")
    return 2
