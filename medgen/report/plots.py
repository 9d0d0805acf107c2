"""The charts of a report: arms, paired differences and training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from medgen.augmentation.verdict import DUPLICATES, MIXED, RANDOMIZED, REAL, SYNTHETIC
from medgen.report.results import Comparison, Proof
from medgen.report.svg import COLOURS, HEIGHT, render
from medgen.report.wording import arm_words, score_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VERDICTS = {"helps": "helps", "hurts": "hurts", "no evidence": "unclear"}
ARM_ROLES = {REAL: "real", DUPLICATES: "duplicates", MIXED: "mixed", SYNTHETIC: "synthetic"}
MARKERS = {REAL: "o", DUPLICATES: "s", MIXED: "D", SYNTHETIC: "^"}
CURVE_POINTS = 240
BOUNDED = ("auroc", "dice", "accuracy", "balanced_accuracy")
"""Scores between 0 and 1: an interval that leaves them is cut off in the chart."""


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
        ratio = row["ratio"] if row["arm"] in (DUPLICATES, MIXED, RANDOMIZED) else math.nan
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
            rank = [p.label for p in points if p.arm == chosen[0].arm].index(label)
            _draw_arm(axes, chosen, fractions, offset, alpha=0.65 ** min(rank, 3))
        if proof.metric.lower() in BOUNDED:
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, 0), min(high, 1))
        axes.set_xticks(range(len(fractions)), [f"{share * 100:g} %" for share in fractions])
        axes.set_xlim(-0.5, len(fractions) - 0.5)
        axes.set_xlabel("share of the real training patients used")
        axes.set_ylabel(f"{score_words(proof.metric)} on test patients")
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, borderaxespad=0.2
        )

    return render("arms", draw, f"{score_words(proof.metric)} of every arm by amount of real data")


def _draw_arm(
    axes: Axes,
    points: Sequence[ArmPoint],
    fractions: Sequence[float],
    offset: float,
    *,
    alpha: float,
) -> None:
    """One arm at every fraction; ratios of one arm share its colour, the larger the fainter."""
    colour = COLOURS[ARM_ROLES.get(points[0].arm, "other")]
    x = np.array([fractions.index(point.fraction) + offset for point in points])
    mean = np.array([point.mean for point in points])
    reach = np.nan_to_num(np.array([[p.mean - p.low, p.high - p.mean] for p in points]).T)
    axes.plot(x, mean, color=colour, linewidth=1, alpha=0.35 * alpha, zorder=1)
    for place, point in zip(x, points, strict=True):
        axes.scatter(
            np.full(len(point.values), place + 0.045),
            point.values,
            s=9,
            color=colour,
            alpha=0.4 * alpha,
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
        alpha=alpha,
        zorder=3,
    )


def difference_chart(proof: Proof, comparisons: Sequence[Comparison]) -> Markup:
    """The paired differences that decide, one line each, with their 95 % intervals around zero."""
    from matplotlib.ticker import MaxNLocator

    many = len({comparison.ratio for comparison in comparisons}) > 1

    def name(comparison: Comparison) -> str:
        share = f"{comparison.fraction * 100:g} %"
        return f"{share}, 1 : {comparison.ratio:g}" if many else share

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
    return render("differences", draw, "Paired differences with 95 % intervals", height=height)


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
    from matplotlib.ticker import LogLocator, MaxNLocator

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
            axes.set_yscale("log", subs=[])
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("images seen")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda value, _: _short(value))
        axes.set_ylabel("loss")
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, borderaxespad=0.2
        )

    return render("training", draw, "Training and validation loss by images seen")


def time_chart(log: Sequence[Mapping[str, Any]]) -> Markup | None:
    """The last validation loss by time, from noise to data; None where the log holds none."""
    found = [line["validation_loss_by_t"] for line in log if line.get("validation_loss_by_t")]
    if not found:
        return None
    width = 1 / len(found[-1])
    parts = [(width * (i + 0.5), v) for i, v in enumerate(found[-1]) if v is not None]

    def draw(axes: Axes) -> None:
        times, losses = [t for t, _ in parts], [loss for _, loss in parts]
        axes.bar(times, losses, width=0.86 * width, color=COLOURS["mixed"], alpha=0.8)
        axes.set_xlim(0, 1)
        axes.set_xlabel("t: noise at 0, data at 1")
        axes.set_ylabel("last validation loss")

    return render("times", draw, "Last validation loss by time") if parts else None


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
