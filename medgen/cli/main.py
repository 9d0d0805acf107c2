"""The `medgen` command: commands are imported when they are called, errors become one message."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Any

import click

COMMANDS = {
    "run": ("medgen.cli.run:run", "Train, sample, evaluate, prove and report, from one recipe."),
    "train": ("medgen.cli.run:train", "Train a generator or a codec from a recipe."),
    "sample": ("medgen.cli.sample:sample", "Draw a synthetic labelled dataset from a checkpoint."),
    "verify": ("medgen.cli.sample:verify", "Check a synthetic dataset; draw some of it again."),
    "export": ("medgen.cli.export:export", "Write a synthetic dataset as DICOM or for nnU-Net."),
    "evaluate": ("medgen.cli.evidence:evaluate", "Compare synthetic studies with real ones."),
    "prove": ("medgen.cli.evidence:prove", "Does synthetic data help a classifier or segmenter?"),
    "compare": ("medgen.cli.evidence:compare", "Set the results of several runs side by side."),
    "recipes": ("medgen.cli.recipes:recipes", "List, show, check, compare and copy recipes."),
    "data": ("medgen.cli.data:data", "Check, show and simulate datasets."),
    "checkpoints": ("medgen.cli.checkpoints:checkpoints", "List, show and verify checkpoints."),
    "doctor": ("medgen.cli.doctor:doctor", "What this machine and installation can do."),
}
"""Command -> where it is, and its line of help; read without importing it."""


class LazyGroup(click.Group):
    """A group that imports a command only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name][0].split(":")
        return getattr(importlib.import_module(module), name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command, or say which one was probably meant."""
        from medgen.errors import did_you_mean

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no such command '{args[0]}'. {did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands' lines of help, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: medgen run cxr/quickstart",
)
@click.version_option(package_name="medgen")
@click.option("-v", "--verbose", is_flag=True, help="Say on stderr what is being done.")
def cli(verbose: bool) -> None:
    """Synthetic medical studies from a recipe, and evidence of whether they help."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s"
    )


def main() -> None:
    """Run the command line: exit code 0 done, 1 a medgen error, 2 wrong usage."""
    from medgen.errors import MedgenError

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        code = cli.main(standalone_mode=False)
    except MedgenError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except click.exceptions.Abort:
        click.echo("Stopped. Run the same command again to resume.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"Error: {where}{error.strerror or error}", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
