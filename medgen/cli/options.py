"""Options and progress that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

recipe_argument = click.argument("recipe", metavar="RECIPE")
overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe, such as train.images=1000. May be repeated.",
)
data_root = click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    help="Folder of the studies. Default: the folder named by MEDGEN_DATA.",
)
device = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def out(default: str | None = None, *, required: bool = False) -> Callable[[Any], Any]:
    """The --out option."""
    return click.option(
        "--out",
        type=click.Path(path_type=Path),
        default=default,
        required=required,
        help="Folder to write to.",
    )


def examples(*lines: str) -> str:
    """An epilog of examples, one a line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr; yields a function of (done, in all)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
