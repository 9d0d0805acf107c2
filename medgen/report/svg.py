"""Inline vector pictures by matplotlib that take their colours from the page.

Text stays text and every colour is a variable of the page's style sheet, so that one picture is
readable on a light and on a dark page and in print. The same data give the same bytes.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 4.7, 3.2
"""Inches of a chart; narrow, so that its text is readable on a phone."""

ROLES = (
    *("ink", "muted", "grid", "paper"),
    *("real", "duplicates", "mixed", "synthetic", "other"),
    *("helps", "hurts", "unclear"),
)
COLOURS = {role: f"#{index:02x}fe{index:02x}" for index, role in enumerate(ROLES, start=1)}
"""Stand-ins that the page's variables replace; no other colour has these values."""


def render(
    name: str, draw: Callable[[Axes], None], title: str, *, height: float = HEIGHT
) -> Markup:
    """A chart as an inline picture.

    Args:
        name: unique in its page; starts the ids inside the picture.
        draw: fills the axes, with colours of `COLOURS` only.
        title: read out where the picture cannot be seen.
        height: inches.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink, muted = COLOURS["ink"], COLOURS["muted"]
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"medgen-{name}",
        "font.size": 10,
        "axes.labelsize": 10,
        "text.color": ink,
        "axes.labelcolor": muted,
        "axes.edgecolor": COLOURS["grid"],
        "xtick.color": muted,
        "ytick.color": muted,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.axisbelow": True,
        "legend.fontsize": 10,
        "legend.handletextpad": 0.4,
        "legend.columnspacing": 1.4,
        "text.parse_math": False,
        "axes.formatter.use_mathtext": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.grid(visible=True, axis="y", color=COLOURS["grid"], linewidth=0.8)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    return Markup(_themed(buffer.getvalue(), name, title))


def _themed(svg: str, name: str, title: str) -> str:
    """Matplotlib's document as an inline picture: no addresses, unique ids, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'<svg[^>]*viewBox="([^"]*)"[^>]*>', _opening(r"\1", title), svg, count=1)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r'\sid="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font(-family)?: [^;\"]*?'DejaVu Sans'[^;\"]*", _font, svg)
    for role, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{role})")
    return svg


def _opening(box: str, title: str) -> str:
    label = html.escape(title, quote=True).replace("\\", "\\\\")
    return f'<svg class="chart" viewBox="{box}" role="img" aria-label="{label}">'


def _font(match: re.Match[str]) -> str:
    size = re.search(r"[\d.]+px", match[0])
    return f"font-size: {size[0]}" if size else "font-family: inherit"
