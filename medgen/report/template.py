"""The pages' templates, filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

FOLDER = Path(__file__).parent


def text_of(name: str) -> str:
    """A file that stands beside the templates, such as "page.js"."""
    return (FOLDER / name).read_text("utf-8")


def fill(name: str, **context: Any) -> str:
    """A template with its style and what it is about; every name that it uses must be given."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(style=Markup(text_of("page.css")), **context)
