"""What all commands share: checks of files to write, a progress bar, notes on stderr."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gpmoe.errors import InputError

_TABLE_ENDINGS = (".csv", ".tsv", ".parquet")

Delimiter = Annotated[
    str | None, typer.Option(help="Divides columns, '\\t' for a tab; by default a comma, in .tsv a tab.")
]


def expect_table_ending(option: str, path: Path) -> None:
    """Refuse a file that can't hold a table by its name."""
    if path.suffix not in _TABLE_ENDINGS:
        raise InputError(f"{option} must end in {', '.join(_TABLE_ENDINGS)}; got {path.name}.")


def expect_fraction(option: str, value: float) -> None:
    """Refuse what is not strictly between 0 and 1."""
    if not 0.0 < value < 1.0:
        raise InputError(f"{option} must lie between 0 and 1, such as 0.2 or 0.9; got {value}.")


def expect_output(option: str, path: Path, *inputs: Path | None) -> None:
    """Refuse a file whose folder is not there, and one that is read from."""
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to write {path.name} into. Make it: mkdir -p {path.parent}")
    if path.is_dir():
        raise InputError(f"{path} is a folder. Name a file in it.")
    if path.resolve() in [source.resolve() for source in inputs if source]:
        raise InputError(f"{option} {path} is a file to read from. Name another, or it would be overwritten.")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place once written whole, and vanishes if it is not."""
    partial = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr; calling what it yields names the next of `total` steps."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, completed=-1)
        yield lambda description: bar.update(task, description=description, advance=1)


def say(text: str) -> None:
    """One line on stderr."""
    typer.echo(" ".join(text.split()), err=True)
