"""The charts of a report: vector pictures by matplotlib that take their colours from the page.

Text stays text and every colour is a variable of the page's style sheet, so that one picture is
readable on a light and on a dark page and in print. The same data give the same bytes.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from medgen.report.results import Comparison, Proof
from medgen.report.wording import arm_words, score_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 4.7, 3.2
"""Inches of a chart; narrow, so that its text is readable on a phone."""

ROLES = ("ink", "muted", "grid", "paper", "real", "duplicates", "mixed", "synthetic", "other")
VERDICTS = {"helps": "helps", "hurts": "hurts", "no evidence": "unclear"}
COLOURS = {
    role: f"#{index:02x}fe{index:02x}"
    for index, role in enumerate((*ROLES, *VERDICTS.values()), start=1)
}
"""Stand-ins that the page's variables replace; no other colour has these values."""

MARKERS = {"real": "o", "duplicates": "s", "mixed": "D", "synthetic": "^"}
CURVE_POINTS = 240


@dataclass(frozen=True)
class ArmPoint:
    """An arm of the experiment at one fraction, over its repeats.

    Args:
        fraction: share of the training patients.
        arm: name of the arm.
        ratio: synthetic studies for every real one; NaN where it has no meaning.
        values: the score of every repeat.
        mean: over repeats.
        low: lower end of the 95 % interval of the mean; NaN below two repeats.
        high: upper end.
        real: real studies trained on.
        synthetic: synthetic studies trained on.
        seconds: spent on all repeats.
    """

    fraction: float
    arm: str
    ratio: float
    values: tuple[float, ...]
    mean: float
    low: float
    high: float
    real: int | None
    synthetic: int | None
    seconds: float

    @property
    def label(self) -> str:
        """The arm in plain words."""
        return arm_words(self.arm, self.ratio)


def arm_points(rows: Sequence[Mapping[str, Any]]) -> list[ArmPoint]:
    """The rows of an experiment, summarised by fraction, arm and ratio, in reading order.

    The interval is Student's, over repeats: it speaks of chance in training, not of the patients.
    """
    groups: dict[tuple[float, str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        ratio = float(row["ratio"]) if row["arm"] == "mixed" else math.nan
        key = (row["fraction"], row["arm"], ratio if math.isfinite(ratio) else -1.0)
        groups.setdefault(key, []).append(row)
    order = {arm: position for position, arm in enumerate(MARKERS)}
    keys = sorted(groups, key=lambda k: (k[0], order.get(k[1], len(order)), k[1], k[2]))
    return [_arm_point(*key, groups[key]) for key in keys]


def _arm_point(
    fraction: float, arm: str, ratio: float, rows: Sequence[Mapping[str, Any]]
) -> ArmPoint:
    values = np.array([row["value"] for row in rows if math.isfinite(row["value"])])
    mean, reach = float(values.mean()) if len(values) else math.nan, math.nan
    if len(values) > 1:
        from scipy.stats import t as student

        error = float(values.std(ddof=1)) / math.sqrt(len(values))
        reach = float(student.ppf(0.975, len(values) - 1)) * error
    return ArmPoint(
        fraction=fraction,
        arm=arm,
        ratio=ratio if ratio >= 0 else math.nan,
        values=tuple(values.tolist()),
        mean=mean,
        low=mean - reach,
        high=mean + reach,
        real=_largest(rows, "real"),
        synthetic=_largest(rows, "synthetic"),
        seconds=sum(float(row.get("seconds") or 0) for row in rows),
    )


def _largest(rows: Sequence[Mapping[str, Any]], key: str) -> int | None:
    counts = [int(row[key]) for row in rows if row.get(key) is not None]
    return max(counts) if counts else None


def arms_chart(proof: Proof) -> Markup:
    """The score of every arm by the share of training patients: means, 95 % intervals, repeats."""
    points = arm_points(proof.rows)
    fractions = sorted({point.fraction for point in points})
    labels = list(dict.fromkeys(point.label for point in points))

    def draw(axes: Axes) -> None:
        for position, label in enumerate(labels):
            chosen = [point for point in points if point.label == label]
            offset = (position - (len(labels) - 1) / 2) * min(0.14, 0.7 / len(labels))
            _draw_arm(axes, chosen, fractions, offset)
        axes.set_xticks(range(len(fractions)), [f"{share * 100:g} %" for share in fractions])
        axes.set_xlim(-0.5, len(fractions) - 0.5)
        axes.set_xlabel("share of the real training patients used")
        axes.set_ylabel(f"{score_words(proof.metric)} on test patients")
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, borderaxespad=0.2
        )

    return _render("arms", draw, f"{score_words(proof.metric)} of every arm by amount of real data")


def _draw_arm(
    axes: Axes, points: Sequence[ArmPoint], fractions: Sequence[float], offset: float
) -> None:
    colour = COLOURS.get(points[0].arm, COLOURS["other"])
    x = np.array([fractions.index(point.fraction) + offset for point in points])
    mean = np.array([point.mean for point in points])
    reach = np.nan_to_num(np.array([[p.mean - p.low, p.high - p.mean] for p in points]).T)
    axes.plot(x, mean, color=colour, linewidth=1, alpha=0.35, zorder=1)
    for place, point in zip(x, points, strict=True):
        axes.scatter(
            np.full(len(point.values), place + 0.045),
            point.values,
            s=9,
            color=colour,
            alpha=0.4,
            linewidths=0,
            zorder=2,
        )
    axes.errorbar(
        x,
        mean,
        yerr=reach,
        fmt=MARKERS.get(points[0].arm, "v"),
        color=colour,
        markersize=7,
        markeredgecolor=COLOURS["paper"],
        markeredgewidth=0.8,
        elinewidth=1.8,
        capsize=0,
        label=points[0].label,
        zorder=3,
    )


def difference_chart(proof: Proof, comparisons: Sequence[Comparison]) -> Markup:
    """The paired differences that decide, one line each, with their 95 % intervals around zero."""
    from matplotlib.ticker import MaxNLocator

    many = len({comparison.ratio for comparison in comparisons}) > 1

    def name(comparison: Comparison) -> str:
        share = f"{comparison.fraction * 100:g} %"
        return f"{share}, {comparison.ratio:g} : 1" if many else share

    def draw(axes: Axes) -> None:
        for row, comparison in enumerate(comparisons):
            _draw_difference(axes, row, comparison)
        axes.axvline(0, color=COLOURS["ink"], linewidth=1, zorder=1)
        axes.set_yticks(range(len(comparisons)), [name(c) for c in comparisons])
        axes.set_ylim(len(comparisons) - 0.4, -0.6)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(visible=True, axis="x", color=COLOURS["grid"], linewidth=0.8)
        axes.grid(visible=False, axis="y")
        good = "right of zero: helps" if proof.higher_is_better else "left of zero: helps"
        axes.set_xlabel(f"paired difference in {score_words(proof.metric)}  ({good})")

    height = max(HEIGHT, 0.95 + 0.42 * len(comparisons))
    return _render("differences", draw, "Paired differences with 95 % intervals", height=height)


def _draw_difference(axes: Axes, row: int, comparison: Comparison) -> None:
    estimate = comparison.estimate
    if not math.isfinite(estimate.value):
        return
    colour = COLOURS[VERDICTS.get(comparison.verdict, "unclear")]
    if math.isfinite(estimate.high - estimate.low):
        axes.plot(
            [estimate.low, estimate.high],
            [row, row],
            color=colour,
            linewidth=2.6,
            solid_capstyle="round",
            zorder=2,
        )
    axes.plot(
        [estimate.value],
        [row],
        marker="D",
        markersize=6.5,
        color=colour,
        markeredgecolor=COLOURS["paper"],
        markeredgewidth=1,
        zorder=3,
    )
    axes.annotate(
        comparison.verdict,
        (estimate.value, row),
        xytext=(0, 8),
        textcoords="offset points",
        ha="center",
        fontsize=9.5,
        bbox={"facecolor": COLOURS["paper"], "edgecolor": "none", "pad": 1},
        color=colour,
    )


def curves(log: Sequence[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The losses of a log by name: (images seen, loss), finite values only, training's first."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in log:
        seen = next((line[key] for key in ("images", "images_seen", "seen") if key in line), None)
        if not isinstance(seen, (int, float)):
            continue
        for name, value in line.items():
            wanted = "loss" in name or name.startswith("validation")
            if wanted and isinstance(value, (int, float)) and math.isfinite(value):
                found.setdefault(name, []).append((float(seen), float(value)))
    names = sorted(found, key=lambda name: ("validation" in name, name))
    return {name: (lambda a: (a[:, 0], a[:, 1]))(np.array(found[name])) for name in names}


def training_chart(log: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Training and validation loss by images seen; None where the log holds none."""
    lines = {name: curve for name, curve in curves(log).items() if len(curve[0]) > 1}
    if not lines:
        return None

    def draw(axes: Axes) -> None:
        palette = ("real", "mixed", "synthetic", "duplicates", "other")
        training = [name for name in lines if "validation" not in name]
        for position, (name, (seen, loss)) in enumerate(lines.items()):
            colour = COLOURS[palette[min(position, len(palette) - 1)]]
            x, y = _thin(seen, loss)
            style = "-" if name in training else "o-"
            axes.plot(
                x,
                y,
                style,
                color=colour,
                linewidth=1.6,
                markersize=3.2,
                label=name.replace("_", " "),
            )
        every = np.concatenate([_thin(*curve)[1] for curve in lines.values()])
        if every.min() > 0 and every.max() / every.min() > 8:
            axes.set_yscale("log")
        axes.set_xlabel("images seen")
        axes.xaxis.set_major_formatter(lambda value, _: _short(value))
        axes.set_ylabel("loss")
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, borderaxespad=0.2
        )

    return _render("training", draw, "Training and validation loss by images seen")


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A long curve as the means of equal runs of points."""
    if len(x) <= CURVE_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), CURVE_POINTS)
    return np.array([x[part].mean() for part in parts]), np.array(
        [y[part].mean() for part in parts]
    )


def _short(value: float) -> str:
    for size, letter in ((1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _render(
    name: str, draw: Callable[[Axes], None], title: str, *, height: float = HEIGHT
) -> Markup:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink, muted = COLOURS["ink"], COLOURS["muted"]
    style = {
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
