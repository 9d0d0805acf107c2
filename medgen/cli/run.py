"""`medgen run` and `medgen train`."""

from __future__ import annotations

from pathlib import Path

import click

from medgen.cli import options


@click.command(
    epilog=options.examples(
        "medgen run cxr/quickstart",
        "medgen run cxr/findings-flow-unet-128 --data-root ~/studies --out runs/mine",
        "medgen run cxr/quickstart --set train.images=50000 --dry-run",
    )
)
@options.recipe_argument
@options.out()
@options.data_root
@options.overrides
@click.option(
    "-n", "--dry-run", is_flag=True, help="Check recipe and data, say what would be done."
)
@options.device
def run(
    recipe: str,
    out: Path | None,
    data_root: Path | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    device: str,
) -> None:
    """Train, sample, evaluate, prove and report, from one RECIPE.

    Run the same command again to resume.
    """
    from medgen.pipeline import Run
    from medgen.recipe import load_recipe

    checked = load_recipe(recipe, overrides)
    job = Run(checked, out or Path("runs") / checked.name, data_root=data_root, device=device)
    if dry_run:
        click.echo(job.describe())
        return
    job.progress = options.progress_bar
    job.say = lambda text: click.echo(text, err=True)
    click.echo(str(job.run()))


@click.command(
    epilog=options.examples(
        "medgen train cxr/kl-f4 --data-root ~/studies",
        "medgen train cxr/findings-flow-dit-64 --data-root ~/studies --device cuda",
    )
)
@options.recipe_argument
@options.out()
@options.data_root
@options.overrides
@options.device
def train(
    recipe: str,
    out: Path | None,
    data_root: Path | None,
    overrides: tuple[str, ...],
    device: str,
) -> None:
    """Train a generator or a codec from RECIPE.

    Run the same command again to resume: the result is the same as without the interruption.
    """
    from medgen.pipeline import Run
    from medgen.recipe import load_recipe

    checked = load_recipe(recipe, overrides)
    job = Run(checked, out or Path("runs") / checked.name, data_root=data_root, device=device)
    job.progress = options.progress_bar
    job.say = lambda text: click.echo(text, err=True)
    click.echo(str(job.train()))
