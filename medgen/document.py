"""YAML 1.2 scalars with line numbers, and nothing else of YAML: no tags, anchors or merges.

Stock PyYAML follows YAML 1.1: it reads `1e-4` as a string, `no` as False and `1:30` as 90. Only its
parser is used here; what a scalar means is decided by the patterns below.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from medgen.errors import RecipeError

Path = tuple[str | int, ...]

_INT = re.compile(r"[-+]?\d+(_\d+)*", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.\d+|\d+(_\d+)*(\.\d*)?)([eE][-+]?\d+)?", re.ASCII)
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}


@dataclass
class Document:
    """Plain values of a YAML text, and where each of them stands.

    Args:
        value: dictionaries, lists and scalars.
        places: path of a value -> "file:line" where its key stands.
    """

    value: Any
    places: dict[Path, str] = field(default_factory=dict)

    def place(self, path: Path) -> str:
        """Where the value at `path` stands, or the nearest value that holds it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "")


def read_yaml(text: str, source: str) -> Document:
    """Read a YAML text.

    Args:
        text: the YAML text.
        source: what to call it in messages, such as a file name.

    Raises:
        RecipeError: it is no YAML, or holds tags, anchors or duplicate keys.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise RecipeError(f"{source}:{line}: this is not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{source}: this is not YAML: {error}") from error
    document = Document(None)
    reader = _Reader(source, document.places)
    document.value = reader.value(root, ()) if root is not None else None
    if reader.problems:
        raise RecipeError(reader.problems)
    return document


def dump_yaml(value: Any) -> str:
    """Plain values as YAML that `read_yaml` reads back equal; keys keep their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)


def parse_scalar(text: str) -> Any:
    """What a plain YAML 1.2 scalar means; underscores may group digits."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


class _Reader:
    def __init__(self, source: str, places: dict[Path, str]) -> None:
        self.source = source
        self.places = places
        self.problems: list[str] = []
        self._seen: set[int] = set()

    def value(self, node: yaml.Node, path: Path) -> Any:
        place = f"{self.source}:{node.start_mark.line + 1}"
        self.places.setdefault(path, place)
        if id(node) in self._seen:
            self.problems.append(f"{place}: aliases (*name) are not allowed; write the value out")
            return None
        self._seen.add(id(node))
        if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
            self.problems.append(f"{place}: tags ({node.tag}) are not allowed")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return parse_scalar(node.value) if node.style is None else node.value

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            place = f"{self.source}:{key_node.start_mark.line + 1}"
            if key in found:
                self.problems.append(f"{place}: '{key}' is written twice; keep one")
            self.places[(*path, key)] = place
            found[key] = self.value(value_node, (*path, key))
        return found


class _Dumper(yaml.SafeDumper):
    """Quotes strings that would read back as something else; writes short lists flat."""


def _string(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    plain = isinstance(parse_scalar(value), str)
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else "'")


def _list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.SequenceNode:
    flat = not any(isinstance(item, dict | list) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat)


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value)
    if "." not in text:  # PyYAML's own pattern wants a point, else it would quote the number
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(str, _string)
_Dumper.add_representer(list, _list)
_Dumper.add_representer(float, _float)
