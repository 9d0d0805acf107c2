"""The privacy section: how many samples are suspicious, set beside how many would be by chance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from medgen.report import wording
from medgen.report.results import Pair, RunResults
from medgen.report.svg import COLOURS, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPACES: Mapping[str, str] = {
    "pixels": "alike pixel by pixel",
    "features": "alike in features",
    "registered": "alike after alignment",
}
BINS = 24
LEVEL = 0.05
"""Below it, samples above every unseen study are more than chance gives."""


def flagged(results: RunResults) -> dict[str, Any]:
    """How many samples the audit flags, and how many it would flag by chance; empty without it."""
    judged = results.reidentification
    if not judged:
        return {}
    count, rate = len(judged["samples"]), float(judged["false_alarm_rate"])
    return {
        "flagged": int(judged["flagged"]),
        "samples": count,
        "by_chance": rate * count,
        "false_alarm_rate": rate,
        "threshold": float(judged["threshold"]),
        "heldout": int(judged["heldout"]),
        **_beyond(judged),
    }


def _beyond(judged: Mapping[str, Any]) -> dict[str, Any]:
    """Samples that score above every unseen study, and how likely so many are by chance.

    Were samples and unseen studies alike, any order of their scores would be as likely: the first k
    of N + H are all samples with probability N / (N + H) (N - 1) / (N + H - 1) ... over k terms.
    """
    highest = max(judged["heldout_scores"], default=0.0)
    count = sum(line["score"] > highest for line in judged["samples"])
    samples, everyone = len(judged["samples"]), len(judged["samples"]) + int(judged["heldout"])
    chance = math.prod((samples - i) / (everyone - i) for i in range(count))
    return {"beyond": count, "beyond_p": chance}


def verdict(results: RunResults) -> tuple[str, str]:
    """The audit's finding in a sentence, and its tone; empty where nothing was audited."""
    found = flagged(results)
    if not found:
        return "", "unclear"
    share = results.metrics.get("memorization")
    excess = share is not None and wording.against_floor("memorization", share)[1] == "hurts"
    chance = f"{found['by_chance']:.0f}" if found["by_chance"] >= 1 else "less than one"
    rate = f"{100 * found['false_alarm_rate']:g}{wording.PERCENT}"
    words = (
        f"{found['flagged']} of {found['samples']} samples are closer to a training study than "
        f"all but {rate} of unseen real studies; {chance} would be by chance. "
    )
    if excess:
        return words + "That is more than chance explains: the generator copies.", "hurts"
    if found["beyond_p"] < LEVEL:
        beyond = wording.count_words(found["beyond"], "sample scores", "samples score")
        words += f"{beyond} above every one of {found['heldout']} unseen studies, which chance "
        return words + "hardly explains: look at those pairs.", "hurts"
    return (
        words + "That is no more than chance may give; look at the pairs all the same.",
        "unclear",
    )


def pair_words(pair: Pair) -> str:
    """Why a pair is suspicious, and how often an unseen study would look as bad."""
    words = [SPACES.get(pair.space, pair.space)] if pair.space else []
    words += ["mirrored"] if pair.flipped else []
    if math.isfinite(pair.score):
        words.append(f"score {wording.number(pair.score, 2)}")
    elif math.isfinite(pair.distance):
        words.append(f"distance {wording.number(pair.distance, 3)}")
    if math.isfinite(pair.false_alarms):
        rate = f"{100 * pair.false_alarms:.2g}{wording.PERCENT}"
        words.append(f"at most {rate} of unseen studies score so high")
    return ", ".join(words)


def scores_chart(results: RunResults) -> Markup | None:
    """Re-identification scores of samples and of unseen real studies; None without an audit."""
    judged = results.reidentification
    if not judged.get("samples") or not judged.get("heldout_scores"):
        return None
    drawn = [float(line["score"]) for line in judged["samples"]]
    held = [float(score) for score in judged["heldout_scores"]]
    edges = np.linspace(min(0.2, *drawn, *held), 1, BINS + 1)
    sides = (("unseen real studies", held, "real"), ("synthetic studies", drawn, "synthetic"))

    def draw(axes: Axes) -> None:
        for label, scores, colour in sides:
            share = np.histogram(scores, edges)[0] / len(scores) * 100
            axes.stairs(share, edges, color=COLOURS[colour], linewidth=1.8, label=label)
            axes.stairs(share, edges, color=COLOURS[colour], fill=True, alpha=0.15)
        axes.axvline(float(judged["threshold"]), color=COLOURS["hurts"], linewidth=1.2)
        axes.set_xlabel("re-identification score (right of the line: flagged; 1: a copy)")
        axes.set_ylabel("studies, %")
        axes.set_xlim(edges[0], 1)
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, borderaxespad=0.2
        )

    return render("scores", draw, "Re-identification scores of synthetic and unseen real studies")
