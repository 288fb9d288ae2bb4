"""`gpmoe sweep`: hyperparameters of a function in a file, tried by several processes on one storage."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from gpmoe.cli.files import say

Seed = Annotated[int | None, typer.Option(min=0, max=2**31 - 1, help="Fixes the suggestions of one worker.")]


def sweep(
    objective: Annotated[str, typer.Argument(help="The function to minimise, as file.py:function.")],
    space: Annotated[Path, typer.Option(help="The search space, a .toml or .json file.")],
    trials: Annotated[int, typer.Option(min=1, help="How many trials the study has in the end.")] = 100,
    workers: Annotated[int, typer.Option(min=1, help="How many processes.")] = 1,
    storage: Annotated[str, typer.Option(help="An Optuna storage URL.")] = "sqlite:///sweep.db",
    name: Annotated[str, typer.Option(help="Name of the study.")] = "sweep",
    maximise: Annotated[bool, typer.Option("--maximise", help="Larger values are better.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a study that is there.")] = False,
    seed: Seed = None,
) -> None:
    """Find good hyperparameters of a function of a configuration."""
    import optuna

    from gpmoe.bo.loop import best_of
    from gpmoe.bo.space import Space
    from gpmoe.bo.sweep import load_objective, sweep

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searched = Space.from_file(space)
    load_objective(objective)
    say(f"{trials} trials by {workers} worker{'s' * (workers > 1)} on {storage}; Ctrl-C stops, --resume goes on")
    study = sweep(
        objective,
        searched,
        trials,
        storage=storage,
        name=name,
        maximise=maximise,
        workers=workers,
        resume=resume,
        seed=seed,
    )
    best = best_of(study)
    table = Table()
    table.add_column("parameter")
    table.add_column("best", justify="right")
    for parameter, value in best.configuration.items():
        table.add_row(parameter, f"{value:.6g}" if isinstance(value, float) else str(value))
    Console().print(table)
    states = [trial.state.name.lower() for trial in study.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    typer.echo(f"best value {best.value:.6g}, trial {study.best_trial.number}; {counts}")
