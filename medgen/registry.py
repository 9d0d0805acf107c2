"""Names of components. A component is a class or function; its signature is its schema.

A component registers itself with one line above its definition:

    @register("backbone", "dit")
    class DiT(Backbone): ...

Third parties add components through the entry point group `medgen.components`: each entry names a
module that registers when it is imported.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from medgen.errors import RecipeError, did_you_mean

PACKAGES: dict[str, tuple[str, ...]] = {
    "data": ("medgen.data",),
    "codec": ("medgen.codecs",),
    "conditioner": ("medgen.conditioners",),
    "backbone": ("medgen.backbones",),
    "objective": ("medgen.objectives",),
    "sampler": ("medgen.samplers",),
    "guidance": ("medgen.samplers",),
    "metric": ("medgen.evaluation",),
    "filter": ("medgen.synthesis",),
}
"""Kind of component -> packages whose modules register components of that kind."""

WIRED = frozenset({"schema", "latent", "cond", "causal", "root"})
"""Arguments that come from other components or from the machine; a recipe never writes them."""

_components: dict[tuple[str, str], Callable[..., object]] = {}
_loaded: set[str] = set()
C = TypeVar("C", bound=Callable[..., object])


@dataclass(frozen=True)
class Argument:
    """One argument of a component: its name, type, default and whether it is wired."""

    name: str
    annotation: Any
    default: object
    required: bool
    wired: bool


def register(kind: str, name: str) -> Callable[[C], C]:
    """Register the decorated class or function as component `name` of `kind`.

    Raises:
        ValueError: the kind is unknown or the name is taken by another component.
    """
    if kind not in PACKAGES:
        raise ValueError(f"unknown kind of component '{kind}'. {did_you_mean(kind, PACKAGES)}")

    def add(component: C) -> C:
        taken = _components.get((kind, name))
        if taken is not None and taken.__qualname__ != component.__qualname__:
            raise ValueError(f"{kind} '{name}' is already registered by {taken.__module__}")
        _components[kind, name] = component
        return component

    return add


def names(kind: str) -> list[str]:
    """The registered names of a kind, sorted."""
    _load(kind)
    return sorted(name for other, name in _components if other == kind)


def find(kind: str, name: str) -> Callable[..., Any]:
    """The component `name` of `kind`.

    Raises:
        RecipeError: there is no such component; the text offers the nearest name.
    """
    _load(kind)
    if (kind, name) not in _components:
        raise RecipeError(f"unknown {kind} '{name}'. {did_you_mean(name, names(kind))}")
    return _components[kind, name]


def arguments(component: Callable[..., object]) -> dict[str, Argument]:
    """The arguments of a component, read from its signature."""
    target = component.__init__ if inspect.isclass(component) else component
    hints = typing.get_type_hints(target)
    found: dict[str, Argument] = {}
    for parameter in inspect.signature(component).parameters.values():
        required = parameter.default is inspect.Parameter.empty
        found[parameter.name] = Argument(
            name=parameter.name,
            annotation=hints.get(parameter.name, Any),
            default=None if required else parameter.default,
            required=required,
            wired=parameter.name in WIRED,
        )
    return found


def build(kind: str, name: str, settings: dict[str, Any], **wired: object) -> Any:
    """Build a component from checked settings and those wired arguments that it takes."""
    component = find(kind, name)
    takes = arguments(component)
    values = {key: value for key, value in wired.items() if key in takes}
    return component(**from_plain(component, settings), **values)


def from_plain(component: Callable[..., object], settings: dict[str, Any]) -> dict[str, Any]:
    """Plain YAML values as the types that a component's signature names, such as tuples."""
    from pydantic import TypeAdapter

    takes = arguments(component)
    return {
        key: TypeAdapter(takes[key].annotation).validate_python(value)
        for key, value in settings.items()
    }


def _load(kind: str) -> None:
    """Import every module of the packages of a kind, and third parties' entry points, once."""
    for package in PACKAGES.get(kind, ()):
        if package in _loaded:
            continue
        _loaded.add(package)
        module = importlib.import_module(package)
        for info in pkgutil.iter_modules(module.__path__):
            importlib.import_module(f"{package}.{info.name}")
    if "entry points" not in _loaded:
        _loaded.add("entry points")
        for entry in importlib.metadata.entry_points(group="medgen.components"):
            entry.load()
