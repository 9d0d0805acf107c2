"""`medgen recipes`: list, show, copy, check, diff and schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from medgen.cli.options import as_json, examples, overrides, recipe_argument


@click.group(epilog=examples("medgen recipes list", "medgen recipes check my-recipe.yaml"))
def recipes() -> None:
    """List, show, check, compare and copy recipes."""


@recipes.command("list", epilog=examples("medgen recipes list", "medgen recipes list --json"))
@as_json
def list_recipes(as_json: bool) -> None:
    """The recipes that come with medgen."""
    from medgen.document import read_yaml
    from medgen.recipe import shipped

    found = {
        name: read_yaml(path.read_text(encoding="utf-8"), str(path)).value["summary"]
        for name, path in shipped().items()
    }
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    width = max(map(len, found))
    for name, summary in found.items():
        click.echo(f"{name:<{width}}  {summary}")


@recipes.command(epilog=examples("medgen recipes show cxr/quickstart"))
@recipe_argument
@click.option("--resolved", is_flag=True, help="With every default written out.")
@overrides
def show(recipe: str, resolved: bool, overrides: tuple[str, ...]) -> None:
    """Print a recipe."""
    from medgen.recipe import find, load_recipe

    if resolved or overrides:
        click.echo(load_recipe(recipe, overrides).to_yaml(), nl=False)
    else:
        click.echo(find(recipe).read_text(encoding="utf-8"), nl=False)


@recipes.command(epilog=examples("medgen recipes copy cxr/quickstart mine.yaml"))
@recipe_argument
@click.argument("file", type=click.Path(path_type=Path))
def copy(recipe: str, file: Path) -> None:
    """Copy a recipe to a file of your own."""
    from medgen.errors import OutputError
    from medgen.recipe import find

    if file.exists():
        raise OutputError(f"{file}: exists already; choose another name")
    file.write_text(find(recipe).read_text(encoding="utf-8"), encoding="utf-8")
    click.echo(str(file))


@recipes.command(epilog=examples("medgen recipes check mine.yaml --set train.images=1000"))
@recipe_argument
@overrides
def check(recipe: str, overrides: tuple[str, ...]) -> None:
    """Check a recipe: every problem at once, with file, line, key and remedy."""
    from medgen.recipe import load_recipe

    checked = load_recipe(recipe, overrides)
    click.echo(f"{checked.name}: ok ({checked.kind}, {checked.digest[:19]})")


@recipes.command(epilog=examples("medgen recipes diff cxr/quickstart mine.yaml"))
@click.argument("first")
@click.argument("second")
def diff(first: str, second: str) -> None:
    """What two resolved recipes differ in; exit code 1 if they do."""
    from medgen.recipe import load_recipe

    a, b = _flat(load_recipe(first).sections), _flat(load_recipe(second).sections)
    changed = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
    for key in changed:
        click.echo(f"{key}: {json.dumps(a.get(key))} -> {json.dumps(b.get(key))}")
    raise click.exceptions.Exit(int(bool(changed)))


@recipes.command(epilog=examples("medgen recipes schema", "medgen recipes schema backbone"))
@click.argument("kind", required=False)
def schema(kind: str | None) -> None:
    """Components and their arguments, as JSON, read from their signatures."""
    from medgen.registry import PACKAGES, arguments, find, names

    described: dict[str, Any] = {}
    for each in [kind] if kind else PACKAGES:
        if each not in PACKAGES:
            raise click.UsageError(f"unknown kind '{each}'; known: {', '.join(PACKAGES)}")
        described[each] = {
            name: {
                argument.name: {
                    "type": str(getattr(argument.annotation, "__name__", argument.annotation)),
                    "required": argument.required,
                    **({} if argument.required else {"default": argument.default}),
                }
                for argument in arguments(find(each, name)).values()
                if not argument.wired
            }
            for name in names(each)
        }
    click.echo(json.dumps(described, indent=2, default=str))


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {path: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{path}.{key}" if path else str(key))
    return flat
