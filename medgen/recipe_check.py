"""Checks of a recipe against the registry and the signatures of its components."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from medgen import registry
from medgen.document import Document
from medgen.document import Path as Key
from medgen.errors import MedgenError, RecipeError, did_you_mean
from medgen.registry import Argument
from medgen.settings import ProveSettings, SampleSettings, TrainSettings, WeakSettings

COMPONENTS = ("data", "codec", "backbone", "objective", "sampler", "guidance")
LISTS = {"evaluate": "metric", "filters": "filter"}
"""Sections that list components, and of which kind."""
DEFAULTS: dict[str, Any] = {
    "conditioner": {},
    "sampler": {"type": "ab2"},
    "guidance": {"type": "none"},
    "sample": {},
    "filters": [],
    "evaluate": [],
    "prove": None,
}


class Checker:
    """Checks one document; collects problems instead of stopping at the first.

    Args:
        document: the recipe, overrides applied.
        within: the section that it is a part of, of a larger recipe; empty for a whole one.
    """

    def __init__(self, document: Document, within: Key = ()) -> None:
        self.document = document
        self.within = within
        self.problems: list[str] = []
        self.parts: dict[str, Any] = {}

    def recipe(self, kind: str, sections: tuple[str, ...]) -> dict[str, Any]:
        """Every section checked and completed; what is wrong is in `problems`."""
        given = self.document.value
        for key in given:
            if key not in sections:
                self.problem(
                    (key,), f"a {kind} recipe has no such key. {did_you_mean(key, sections)}"
                )
        complete: dict[str, Any] = {}
        for section in sections:
            if section in ("generator", "first_frame") and section not in given:
                continue
            if section not in given and section not in DEFAULTS:
                self.problem((), f"'{section}' is missing")
                continue
            value = given.get(section, DEFAULTS.get(section))
            complete[section] = self.section(section, value)
        self._same_domain()
        self._masks_once(complete)
        self._frames_wanted(complete)
        return complete

    def section(self, section: str, value: Any) -> Any:
        """One section checked and completed."""
        if section in ("name", "summary"):
            if not isinstance(value, str):
                self.problem((section,), f"expected text, got {_show(value)}")
            return value
        if section == "generator":
            if not isinstance(value, dict) or set(value) != {"checkpoint"}:
                self.problem((section,), f"expected recipe or checkpoint, got {_show(value)}")
            return value
        if section == "first_frame":
            return self._first_frame(value)
        if section in COMPONENTS:
            return self._component(section, value, (section,))
        if section == "conditioner":
            return self._conditioners(value)
        if section in LISTS:
            return self._list(section, value)
        if section == "prove" and value is None:
            return None
        schema = {"train": TrainSettings, "sample": SampleSettings, "prove": ProveSettings}[section]
        return self._settings(schema, value, (section,))

    def problem(self, path: Key, text: str) -> None:
        """Remember that the value at `path` is wrong."""
        place = self.document.place(path)
        key = ".".join(str(part) for part in (*self.within, *path))
        self.problems.append(": ".join(part for part in (place, key, text) if part))

    def _first_frame(self, value: Any) -> dict[str, Any]:
        """The recipe of the generator of first frames, which has no data of its own."""
        from medgen.recipe import SECTIONS

        if not isinstance(value, dict) or "name" not in value:
            self.problem(("first_frame",), f"expected recipe or checkpoint, got {_show(value)}")
            return {}
        within: Key = (*self.within, "first_frame")
        places = {key[1:]: at for key, at in self.document.places.items() if key[:1] == within[-1:]}
        own = {key: part for key, part in value.items() if key != "checkpoint"}
        checker = Checker(Document(own, places), within)
        complete = checker.recipe("first_frame", SECTIONS["first_frame"])
        self.problems += checker.problems
        return complete | ({} if len(own) == len(value) else {"checkpoint": value["checkpoint"]})

    def _component(self, kind: str, value: Any, path: Key) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.problem(path, f"expected keys such as 'type', got {_show(value)}")
            return {}
        value = dict(value)
        if kind == "codec" and "checkpoint" in value:
            return self._codec_checkpoint(value, path)
        extra = self._extra(kind, value, path)
        name = value.pop("type", DEFAULTS.get(kind, {}).get("type"))
        if not isinstance(name, str):
            self.problem(path, f"'type' is missing. {did_you_mean('', registry.names(kind))}")
            return {}
        try:
            component = registry.find(kind, name)
        except RecipeError as error:
            self.problem((*path, "type"), str(error))
            return {}
        self.parts[kind] = component
        return {
            "type": name,
            **self._arguments(component, value, path, f"{kind} '{name}'"),
            **extra,
        }

    def _codec_checkpoint(self, value: dict[str, Any], path: Key) -> dict[str, Any]:
        """The section of the codec inside a checkpoint, with `checkpoint` beside it."""
        from medgen.checkpoint import read_recipe

        name = value.pop("checkpoint")
        try:
            section = read_recipe(name)["codec"]
        except (MedgenError, TypeError) as error:
            self.problem((*path, "checkpoint"), str(error))
            return {}
        held = {key: item for key, item in section.items() if key not in ("train", "losses")}
        for key, item in value.items():
            if held.get(key) != item:
                self.problem((*path, key), "is decided by the checkpoint; remove it")
        return {**held, "checkpoint": name}

    def _extra(self, kind: str, value: dict[str, Any], path: Key) -> dict[str, Any]:
        """Keys of a section that are not arguments of its component."""
        extra: dict[str, Any] = {}
        if kind == "codec" and "train" in value:
            extra["train"] = self._settings(TrainSettings, value.pop("train"), (*path, "train"))
        if kind == "codec" and "losses" in value:
            from medgen.codecs.losses import CodecLosses

            extra["losses"] = self._settings(CodecLosses, value.pop("losses"), (*path, "losses"))
        if kind == "data" and "joint" in value:
            extra["joint"] = value.pop("joint")
            if not isinstance(extra["joint"], bool):
                self.problem((*path, "joint"), f"expected true or false, got {_show(extra)}")
        if kind == "data" and "stills" in value:
            extra["stills"] = value.pop("stills")
            if type(extra["stills"]) is not int or extra["stills"] < 1:
                self.problem((*path, "stills"), f"expected frames a clip, got {_show(extra)}")
        if kind == "guidance":
            extra["dropout"] = self._dropout(value.pop("dropout", 0.1), (*path, "dropout"))
            if "weak" in value:
                extra["weak"] = self._weak(value.pop("weak"), value.get("type"), (*path, "weak"))
        return extra

    def _weak(self, value: Any, guidance: Any, path: Key) -> dict[str, Any]:
        """Network and length of a weak model of its own; the network is the recipe's by default."""
        if guidance != "autoguidance":
            self.problem(path, "only autoguidance has a weak model; remove it")
        if not isinstance(value, dict):
            self.problem(path, f"expected keys, got {_show(value)}")
            return {}
        value = dict(value)
        network = value.pop("backbone", self.document.value.get("backbone"))
        return {
            "backbone": self._component("backbone", network, (*path, "backbone")),
            **self._settings(WeakSettings, value, path),
        }

    def _dropout(self, value: Any, path: Key) -> Any:
        """A share for all conditions, or one a named condition."""
        given = value if isinstance(value, dict) else {"": value}
        names = list(self.document.value.get("conditioner") or {})
        for name, share in given.items():
            place = (*path, name) if name else path
            if name and name not in names:
                self.problem(place, f"there is no such condition. {did_you_mean(name, names)}")
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
                self.problem(place, f"expected a share below 1, got {_show(share)}")
        return value

    def _conditioners(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.problem(("conditioner",), f"expected named conditions, got {_show(value)}")
            return {}
        return {
            name: self._component("conditioner", part, ("conditioner", name))
            for name, part in value.items()
        }

    def _list(self, section: str, value: Any) -> list[Any]:
        kind = LISTS[section]
        if not isinstance(value, list):
            self.problem((section,), f"expected a list of {kind}s, got {_show(value)}")
            return []
        return [self._component(kind, v, (section, i)) for i, v in enumerate(value)]

    def _settings(self, schema: type, value: Any, path: Key) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.problem(path, f"expected keys, got {_show(value)}")
            return {}
        return self._arguments(schema, value, path, f"section '{path[-1]}'")

    def _arguments(
        self, component: Callable[..., Any], value: dict[str, Any], path: Key, what: str
    ) -> dict[str, Any]:
        takes = registry.arguments(component)
        open_names = [name for name, argument in takes.items() if not argument.wired]
        for key in value:
            if key in registry.WIRED and key in takes:
                self.problem((*path, key), "comes from other components; remove it")
            elif key not in takes:
                hint = did_you_mean(key, open_names)
                self.problem((*path, key), f"{what} has no argument '{key}'. {hint}")
        complete: dict[str, Any] = {}
        for name in open_names:
            complete[name] = self._argument(takes[name], value, path, what)
        return complete

    def _argument(self, argument: Argument, value: dict[str, Any], path: Key, what: str) -> Any:
        adapter = (
            TypeAdapter(argument.annotation, config=ConfigDict(arbitrary_types_allowed=True))
            if not _has_own_config(argument.annotation)
            else TypeAdapter(argument.annotation)
        )
        if argument.name not in value:
            if argument.required:
                self.problem(path, f"{what} needs '{argument.name}'")
                return None
            return adapter.dump_python(argument.default, mode="json")
        given = value[argument.name]
        try:
            checked = adapter.validate_json(json.dumps(given), strict=True)
        except ValidationError as error:
            detail = error.errors()[0]
            inner = tuple(part for part in detail["loc"] if isinstance(part, int | str))
            text = f"{detail['msg']}, got {_show(given)}"
            choices = get_args(argument.annotation)
            if isinstance(given, str) and choices and all(isinstance(c, str) for c in choices):
                text += f". {did_you_mean(given, choices)}"
            self.problem((*path, argument.name, *inner[:1]), text)
            return None
        return adapter.dump_python(checked, mode="json")

    def _masks_once(self, complete: dict[str, Any]) -> None:
        """Masks are drawn with the images or asked for, never both."""
        if not (complete.get("data") or {}).get("joint"):
            return
        for name, part in complete.get("conditioner", {}).items():
            if part and "mask" in registry.find("conditioner", part["type"]).reads:  # pyright: ignore
                self.problem(
                    ("conditioner", name),
                    "with data.joint masks are drawn with the images; remove one of the two",
                )

    def _frames_wanted(self, complete: dict[str, Any]) -> None:
        """First frames are drawn of clips that are asked for by their first frame."""
        if "first_frame" not in complete:
            return
        parts = [part for part in complete.get("conditioner", {}).values() if part]
        if not any("frame" in registry.find("conditioner", part["type"]).reads for part in parts):  # pyright: ignore
            self.problem(("first_frame",), "no condition reads it; add one of type: frame")
        if "stills" in (complete.get("data") or {}):
            self.problem(("data", "stills"), "first frames are of clips; remove one of the two")

    def _same_domain(self) -> None:
        kinds = ("codec", "backbone", "objective", "sampler", "guidance")
        domains = {k: getattr(self.parts.get(k), "domain", None) for k in kinds}
        domains = {kind: domain for kind, domain in domains.items() if domain is not None}
        if len(set(domains.values())) > 1:
            listed = ", ".join(f"{kind} is {domain}" for kind, domain in domains.items())
            self.problem(("backbone",), f"these parts do not go together: {listed}")
            return
        orders = {k: getattr(self.parts.get(k), "causal", None) for k in ("objective", "sampler")}
        if None not in orders.values() and orders["objective"] != orders["sampler"]:
            learned = "one after the other" if orders["objective"] else "in any order"
            fitting = "autoregressive" if orders["objective"] else "maskgit"
            self.problem(
                ("sampler",),
                f"tokens are learned {learned}, but not drawn so; use type: {fitting}",
            )


def _has_own_config(annotation: Any) -> bool:
    return hasattr(annotation, "__dataclass_fields__") or hasattr(annotation, "model_config")


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
