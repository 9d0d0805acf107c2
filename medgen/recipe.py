"""YAML to a checked recipe: names from the registry, arguments from signatures.

A recipe is data. It names components and their arguments; it holds no paths, code, inheritance or
environment variables. `load_recipe` reads one, applies overrides, checks everything, reports every
problem at once and fills in defaults, so a recipe in hand is complete, and its digest says all that
decides what a run gives.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from medgen.document import Document, dump_yaml, read_yaml
from medgen.document import Path as Key
from medgen.errors import MedgenError, RecipeError, did_you_mean

SECTIONS = {
    "generator": (
        "name", "summary", "generator", "data", "first_frame", "codec", "conditioner", "backbone",
        "objective", "sampler", "guidance", "train", "sample", "filters", "evaluate", "prove",
    ),
    "first_frame": (
        "name", "codec", "conditioner", "backbone", "objective", "sampler", "guidance", "train",
        "sample", "filters",
    ),
    "codec": ("name", "summary", "data", "codec"),
}  # fmt: skip
"""Keys of a recipe that trains a generator, of its part that draws first frames, and of one that
trains a codec, in order."""
TRAINED = ("codec", "conditioner", "backbone", "objective", "train")
SAMPLED = ("sampler", "guidance")
"""Sections that decide a generator's weights, and how it is sampled."""
LAID = ("data", "first_frame", *TRAINED, *SAMPLED)
"""Sections that a recipe takes from the one that trains its generator."""


@dataclass(frozen=True)
class Recipe:
    """A checked recipe with every default written out.

    Args:
        sections: plain values by section, as they would be written in YAML.
        kind: what a run of it trains.
    """

    sections: dict[str, Any] = field(repr=False)
    kind: Literal["generator", "codec"]

    @property
    def name(self) -> str:
        """Such as "cxr/quickstart"."""
        return self.sections["name"]

    @property
    def summary(self) -> str:
        """One sentence."""
        return self.sections["summary"]

    @property
    def digest(self) -> str:
        """SHA-256 of the resolved content, whatever its formatting."""
        return digest(self.sections)

    @property
    def weak(self) -> Recipe | None:
        """What trains the weak model of autoguidance; None where the recipe gives it no network."""
        given = self.sections.get("guidance", {}).get("weak")
        if given is None:
            return None
        changed = {
            "backbone": given["backbone"],
            "guidance": {"type": "none", "dropout": self.sections["guidance"]["dropout"]},
            "train": self.sections["train"]
            | {"images": given["images"], "init_from": None, "freeze": False},
        }
        return Recipe({**self.sections, **changed}, "generator")

    @property
    def first_frame(self) -> Recipe | None:
        """What trains the generator of first frames, on those of this recipe's clips; or None."""
        given = self.sections.get("first_frame")
        if given is None:
            return None
        rest = {key: part for key, part in given.items() if key != "checkpoint"}
        taken = {"generator": {"checkpoint": given["checkpoint"]}} if len(rest) < len(given) else {}
        clips = {key: part for key, part in self.sections["data"].items() if key != "joint"}
        shared = {"summary": f"First frames of {self.name}.", "data": clips | {"stills": 1}}
        return Recipe({**rest, **taken, **shared, "evaluate": [], "prove": None}, "generator")

    def to_yaml(self) -> str:
        """The resolved recipe; `load_recipe` of it gives an equal recipe."""
        return dump_yaml(self.sections)

    def settings(self, section: str) -> dict[str, Any]:
        """The arguments of the component or settings in `section`, without `type`."""
        return {k: v for k, v in (self.sections.get(section) or {}).items() if k != "type"}


def digest(value: Any) -> str:
    """`sha256:...` of a plain value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def shipped() -> dict[str, Path]:
    """Name -> file of every recipe that comes with medgen."""
    packaged = Path(str(resources.files("medgen"))) / "_recipes"
    root = packaged if packaged.is_dir() else Path(__file__).parents[1] / "recipes"
    return {str(p.relative_to(root).with_suffix("")): p for p in sorted(root.rglob("*.yaml"))}


def find(name: str) -> Path:
    """The file of a shipped recipe by name, or of a path.

    Raises:
        RecipeError: there is neither.
    """
    if name in shipped():
        return shipped()[name]
    path = Path(name)
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if path.is_file():
        return path
    raise RecipeError(f"there is no recipe '{name}'. {did_you_mean(name, shipped())}")


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override, check and complete a recipe.

    Args:
        name: a shipped recipe's name, or a path.
        overrides: "key=value" with a dotted key and a YAML value, such as "train.images=1000".

    Raises:
        RecipeError: with every problem found, each with file, line, key and remedy.
    """
    path = find(str(name))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    document = read_yaml(text, str(path))
    if not isinstance(document.value, dict):
        raise RecipeError(f"{path}:1: expected keys such as 'name' and 'data', got none")
    for override in overrides:
        _apply(document, override)
    _expand_generator(document)
    _expand_first_frame(document)
    _expand_codec(document)
    return check(document)


def override(sections: Mapping[str, Any], overrides: Sequence[str]) -> Recipe:
    """A checked recipe with overrides laid over it.

    Raises:
        RecipeError: an override is wrong.
    """
    document = Document(copy.deepcopy(dict(sections)))
    for text in overrides:
        _apply(document, text)
    return check(document)


def check(document: Document) -> Recipe:
    """Check a recipe's content and fill in defaults.

    Raises:
        RecipeError: with every problem found.
    """
    from medgen.recipe_check import Checker

    trains_generator = {"backbone", "generator"} & document.value.keys()
    kind: Literal["generator", "codec"] = "generator" if trains_generator else "codec"
    checker = Checker(document)
    sections = checker.recipe(kind, SECTIONS[kind])
    if checker.problems:
        raise RecipeError(sorted(checker.problems, key=_line))
    return Recipe(sections, kind)


def _line(problem: str) -> tuple[str, int]:
    parts = problem.split(":")
    return parts[0], int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0


def _expand_codec(document: Document) -> None:
    """Replace `codec: {recipe: NAME, ...}` by the codec of that recipe, other keys laid over it."""
    section = document.value.get("codec")
    if isinstance(section, dict) and "recipe" in section:
        document.value["codec"] = {key: part for key, part in section.items() if key != "recipe"}
        _lay_under(document, _other(document, "codec", section["recipe"]), ("codec",))


def _expand_generator(document: Document) -> None:
    """Write out what trains the generator of `generator: {recipe: NAME}` or `{checkpoint: PATH}`.

    A recipe's sections are laid under those beside it; a checkpoint's are as they are, but for how
    it is sampled.
    """
    section = document.value.get("generator")
    if not isinstance(section, dict) or len(section) != 1:
        return
    if "recipe" in section:
        del document.value["generator"]
        other = _other(document, "generator", section["recipe"])
        _lay_under(document, other, LAID)
    elif "checkpoint" in section:
        held = _held(document, "generator", section["checkpoint"])
        _lay_under(document, Document(held), LAID)


def _expand_first_frame(document: Document) -> None:
    """Write out the generator of `first_frame: {recipe: NAME, ...}` or `{checkpoint: PATH, ...}`.

    What stands beside is laid over it. It learns from the first frames of this recipe's own clips.
    """
    section = document.value.get("first_frame")
    named = {"recipe", "checkpoint"} & section.keys() if isinstance(section, dict) else ()
    if len(named) != 1 or "name" in section:  # wrong, which the check tells, or written out before
        return
    (source,) = named
    taken = section.pop(source)
    if source == "recipe":
        other = _other(document, "first_frame", taken)
        _expand_generator(other)
        _expand_codec(other)
    else:
        other = Document(_held(document, "first_frame", taken))
        section["checkpoint"] = taken
    keys = [key for key in SECTIONS["first_frame"] if key in other.value]
    document.value["first_frame"] = _merge({key: other.value[key] for key in keys}, section)
    for key, where in other.places.items():
        document.places.setdefault(("first_frame", *key), where)


def _held(document: Document, section: str, path: Any) -> dict[str, Any]:
    """The recipe of the checkpoint that a section names; what made its weights stays."""
    from medgen.checkpoint import read_recipe

    try:
        held = read_recipe(path)
    except MedgenError as error:
        place = document.place((section, "checkpoint"))
        raise RecipeError(f"{place}: {section}.checkpoint: {error}") from error
    where: Key = () if section == "generator" else (section,)
    above = document.value[section] if where else document.value
    for key in TRAINED:
        if key in above and above[key] != held.get(key):
            place, name = document.place((*where, key)), ".".join(map(str, (*where, key)))
            raise RecipeError(f"{place}: {name}: is decided by the checkpoint; remove it")
    return held


def _other(document: Document, section: str, name: Any) -> Document:
    """The recipe that a section names as what trains its codec or generator."""
    place = document.place((section, "recipe"))
    kind = "codec" if section == "codec" else "generator"
    try:
        path = find(str(name))
    except RecipeError as error:
        raise RecipeError(f"{place}: {section}.recipe: {error}") from error
    other = read_yaml(path.read_text(encoding="utf-8"), str(path))
    trains = isinstance(other.value, dict) and ("backbone" in other.value) == (kind == "generator")
    if not trains:
        raise RecipeError(f"{place}: {section}.recipe: '{name}' does not train a {kind}")
    return other


def _lay_under(document: Document, other: Document, sections: Sequence[str]) -> None:
    """Sections of another recipe, those of the document laid over them."""
    for section in sections:
        if section in other.value:
            mine = document.value.get(section, {})
            document.value[section] = _merge(other.value[section], mine)
    for key, where in other.places.items():
        if key[:1] in {(section,) for section in sections}:
            document.places.setdefault(key, where)


def _merge(below: Any, above: Any) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return copy.deepcopy(above)
    merged = dict(below)
    for key, value in above.items():
        merged[key] = _merge(below.get(key), value)
    return merged


def _apply(document: Document, override: str) -> None:
    key, sign, text = override.partition("=")
    source = f"--set {override}"
    if not sign or not key:
        raise RecipeError(f"{source}: expected KEY=VALUE, such as train.images=1000")
    parsed = read_yaml(text, source)
    path: Key = tuple(key.split("."))
    target = document.value
    for depth, part in enumerate(path[:-1]):
        if target.get(part) is None:
            target[part] = {}
        target = target[part]
        if not isinstance(target, dict):
            raise RecipeError(f"{source}: '{'.'.join(map(str, path[: depth + 1]))}' has no keys")
    target[path[-1]] = parsed.value
    for known in [k for k in document.places if k[: len(path)] == path]:
        del document.places[known]
    document.places[path] = source
