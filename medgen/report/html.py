"""One self-contained page for a run: the verdict, what it rests on, how to make it again."""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from medgen.augmentation.verdict import DUPLICATES, REAL
from medgen.disk import write_bytes
from medgen.report import gallery as pictures
from medgen.report import plots, privacy, provenance, wording
from medgen.report.gallery import Gallery
from medgen.report.quiz import quiz
from medgen.report.rejections import rejections
from medgen.report.results import Proof, RunResults, read_run
from medgen.report.tables import write_figures
from medgen.report.template import fill, text_of
from medgen.types import Estimate

TONES = {
    "helps": ("helps", "▲", "Helps"),
    "hurts": ("hurts", "▼", "Hurts"),
    "no evidence": ("unclear", "●", "No evidence"),
    "mixed": ("unclear", "◆", "Helps and hurts"),
}
"""Verdict -> (style, sign, words): never told by colour alone."""


def write_report(
    run: Path,
    *,
    title: str,
    summary: str = "",
    commands: Sequence[str] = (),
    gallery: Gallery | None = None,
    facts: Mapping[str, object] | None = None,
    limits: Sequence[str] = (),
    out: Path | None = None,
) -> Path:
    """The report of a run, written as one HTML file that needs nothing beside it.

    Its figures are also written for programs, to `report.json` and `report-tables/*.csv`. Sections
    without data are left out and named as not measured. The same inputs give the same bytes.

    Args:
        run: run directory, read as far as it is filled.
        title: first line of the page.
        summary: what was trained on what, in a sentence.
        commands: command lines that make the run again, in order.
        gallery: pictures; without it, synthetic ones are taken from the run directory.
        facts: more lines for the provenance table, such as the recipe's digest and versions.
        limits: more sentences for the section on limits.
        out: where to write; None means `report.html` in the run directory. The figures are named
            after it.

    Raises:
        DataError: a file of the run directory is damaged.
        OutputError: the page cannot be written.
    """
    results = read_run(run)
    page = render(
        results,
        title=title,
        summary=summary,
        commands=commands,
        gallery=gallery,
        facts=facts or {},
        limits=limits,
    )
    target = out or run / "report.html"
    write_bytes(target, page.encode())
    about = {"title": title, "summary": summary, "commands": list(commands)}
    about |= {"provenance": dict(provenance.facts(results, facts or {}))}
    about |= {"limits": [*provenance.limits(results), *limits]}
    write_figures(results, about, target)
    return target


def render(
    results: RunResults,
    *,
    title: str,
    summary: str,
    commands: Sequence[str],
    gallery: Gallery | None,
    facts: Mapping[str, object],
    limits: Sequence[str],
) -> str:
    """The page of a run as text."""
    script = text_of("page.js")
    shown = gallery or pictures.from_dataset(results, provenance.captions(results))
    context = _context(results, shown)
    return fill(
        "page.html",
        title=title,
        summary=summary,
        commands=list(commands),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        facts=provenance.facts(results, facts),
        limits=[*provenance.limits(results), *limits],
        missing=_missing(context),
        **context,
    )


def _context(results: RunResults, gallery: Gallery | None) -> dict[str, Any]:
    tables = {
        kind: _table({n: e for n, e in results.metrics.items() if wording.family(n) == kind})
        for kind in ("fidelity", "condition", "privacy")
    }
    return {
        "benefit": _benefit(results.proof) if results.proof else None,
        "tables": tables,
        "glance": _glance(results, tables),
        "quiz": quiz(gallery),
        "rejections": rejections(results),
        "playing": pictures.playing(gallery),
        "sides": pictures.sides(gallery),
        "neighbours": pictures.neighbours(gallery),
        "shows_real": gallery is not None
        and (
            gallery.real is not None
            or gallery.nearest is not None
            or bool(gallery.studies)
            or any(each.real for each in gallery.loops)
        ),
        "privacy_words": privacy.verdict(results),
        "scores": privacy.scores_chart(results),
        "pairs": pictures.suspicious(results, gallery),
        "pairs_total": len(results.pairs),
        "training": plots.training_chart(results.log),
        "times": plots.time_chart(results.log),
        "previews": pictures.previews(results),
        "asked": provenance.asked(results),
        "recipe": results.recipe,
    }


def _glance(results: RunResults, tables: Mapping[str, Any]) -> list[dict[str, str]]:
    """The other answers in a sentence each, with the section they come from."""
    lines = []
    for section, title in (("fidelity", "Close to real?"), ("condition", "As asked for?")):
        judged = [row for row in tables[section]["rows"] if row["floor"]]
        if judged:
            worse = sum(row["tone"] == "hurts" for row in judged)
            count = f"{worse or 'none'} of {len(judged)} measures"
            words = f"Worse than between two sets of real studies: {count}."
            tone = "hurts" if worse else "unclear"
            lines.append({"section": section, "title": title, "words": words, "tone": tone})
    words, tone = privacy.verdict(results)
    if words:
        title = "Private?"
        lines.append({"section": "privacy", "title": title, "words": words, "tone": tone})
    return lines


def _missing(context: Mapping[str, Any]) -> list[str]:
    """What a full report would say and this one cannot, in the page's order."""
    tables = context["tables"]
    floors = [row for row in tables["fidelity"]["rows"] if row["floor"]]
    present = {
        "whether the synthetic studies help a model": context["benefit"],
        "real studies beside synthetic ones": context["sides"] and context["shows_real"],
        "the nearest real study of each synthetic one": context["neighbours"],
        "how close synthetic studies are to real ones": tables["fidelity"]["rows"],
        "the same distance between two sets of real studies": floors
        or not tables["fidelity"]["rows"],
        "whether samples show what was asked for": tables["condition"]["rows"],
        "whether training studies were copied": tables["privacy"]["rows"],
        "pictures of the most suspicious pairs": context["pairs"],
        "how training went": context["training"],
        "the recipe": context["recipe"],
    }
    return [words for words, value in present.items() if not value]


def _benefit(proof: Proof) -> dict[str, Any]:
    groups = wording.verdicts_by_fraction(proof)
    points = plots.arm_points(proof.rows)
    deciding = [comparison for group in groups.values() for comparison in group]
    return {
        "headline": wording.headline(proof),
        "cards": [_card(fraction, group, proof, points) for fraction, group in groups.items()],
        "score": wording.score_words(proof.metric),
        "task": proof.task,
        "control": any(comparison.versus == DUPLICATES for comparison in deciding),
        "several": any(len(group) > 1 for group in groups.values()),
        "arms_chart": plots.arms_chart(proof) if points else None,
        "difference_chart": plots.difference_chart(proof, deciding) if deciding else None,
        "arms": [_arm(point, proof.metric) for point in points],
        "comparisons": [
            {
                "share": wording.fraction_words(c.fraction),
                "arm": wording.arm_words(c.arm, c.ratio),
                "versus": wording.arm_words(c.versus, c.ratio),
                "value": wording.value_text(c.estimate, signed=True),
                "interval": wording.interval_text(c.estimate, signed=True),
                "n": c.estimate.n,
                "corrected": wording.corrected_text(c),
                "detectable": wording.detectable_text(c),
                "p": "< 0.001" if c.p < 0.001 else wording.number(c.p, 3),
                "tone": TONES.get(c.verdict, TONES["no evidence"])[0],
                "verdict": c.verdict,
            }
            for c in proof.comparisons
        ],
        "method": next((c.estimate.method for c in proof.comparisons if c.estimate.method), ""),
        "warnings": proof.warnings,
        "tested": any(math.isfinite(c.p) for c in proof.comparisons),
        "test": provenance.studies(proof.test),
        "saw": provenance.studies(proof.generator_saw),
        "threshold": wording.number(proof.threshold, 3) if math.isfinite(proof.threshold) else "",
        "settings": [
            (wording.plain(key).replace("_", " "), wording.plain(value))
            for key, value in proof.settings.items()
        ],
    }


def _card(
    fraction: float,
    group: Sequence[Any],
    proof: Proof,
    points: Sequence[plots.ArmPoint],
) -> dict[str, Any]:
    tone, sign, words = TONES[wording.overall(group)]
    counts = {point.real for point in points if point.fraction == fraction and point.arm == REAL}
    real = counts.pop() if len(counts) == 1 else None
    share = wording.fraction_words(fraction)
    return {
        "share": share[:1].upper() + share[1:],
        "real": wording.count_words(real, "real study", "real studies") if real else "",
        "tone": tone,
        "sign": sign,
        "words": words,
        "sentences": [wording.verdict_sentence(comparison, proof) for comparison in group],
        "warnings": list(dict.fromkeys(c.estimate.warning for c in group if c.estimate.warning)),
    }


def _arm(point: plots.ArmPoint, metric: str) -> dict[str, Any]:
    estimate = Estimate(point.mean, point.low, point.high, len(point.values))
    known = {"real": point.real, "synthetic": point.synthetic}
    return {
        "share": wording.fraction_words(point.fraction),
        "arm": point.label,
        "score": metric,
        "value": wording.value_text(estimate),
        "interval": wording.interval_text(estimate),
        "repeats": len(point.values),
        "seconds": f"{point.seconds:.0f}" if point.seconds else wording.MISSING,
        **{key: wording.MISSING if value is None else value for key, value in known.items()},
    }


def _table(metrics: Mapping[str, Estimate]) -> dict[str, Any]:
    """The rows of one table; what holds for most of them is said once, below."""
    keys = {"features": "extractor", "interval": "method"}
    common = {words: _usual(metrics, key) for words, key in keys.items()}
    warning = _usual(metrics, "warning")
    rows = []
    for name, estimate in metrics.items():
        own = {words: getattr(estimate, key) for words, key in keys.items()}
        own = {words: text for words, text in own.items() if text != common[words]}
        row = {**_measure(name, estimate), "how": _how(own)}
        rows.append({**row, "warning": "" if row["warning"] == warning else row["warning"]})
    return {"rows": rows, "common": _how(common), "warning": warning}


def _usual(metrics: Mapping[str, Estimate], key: str) -> str:
    """What more than half of the estimates say; empty where they differ."""
    said = Counter(getattr(estimate, key) for estimate in metrics.values())
    text, count = said.most_common(1)[0] if said else ("", 0)
    return text if len(metrics) > 1 and 2 * count > len(metrics) else ""


def _how(parts: Mapping[str, str]) -> str:
    return "; ".join(f"{words}: {text}" for words, text in parts.items() if text)


def _measure(name: str, estimate: Estimate) -> dict[str, Any]:
    title, meaning = wording.metric_words(name)
    floor = estimate.floor
    reading, tone = wording.against_floor(name, estimate)
    return {
        "title": title,
        "meaning": meaning,
        "direction": wording.direction_words(estimate),
        "value": wording.value_text(estimate),
        "unit": "" if estimate.unit in ("", "share") else estimate.unit,
        "interval": wording.interval_text(estimate),
        "n": estimate.n,
        "chance": wording.chance_text(name),
        "floor": wording.value_text(floor) if floor else "",
        "floor_interval": wording.interval_text(floor) if floor else "",
        "floor_n": floor.n if floor else 0,
        "glyph": _glyph(estimate),
        "reading": reading,
        "tone": tone,
        "warning": estimate.warning,
    }


def _glyph(estimate: Estimate) -> Markup:
    """The estimate and its floor on one small axis; empty where there is no interval to draw."""
    floor = estimate.floor
    ends = [estimate.low, estimate.high, estimate.value]
    ends += [floor.low, floor.high, floor.value] if floor else []
    span = max(ends) - min(ends)
    if not all(math.isfinite(end) for end in ends) or span <= 0:
        return Markup("")

    def x(value: float) -> str:
        return f"{6 + 108 * (value - min(ends)) / span:.1f}"

    band = ""
    if floor:
        width = max(1.5, 108 * (floor.high - floor.low) / span)
        band = f'<rect class="floor" x="{x(floor.low)}" y="2" width="{width:.1f}" height="14"/>'
    return Markup(
        '<svg class="glyph" viewBox="0 0 120 18" aria-hidden="true">'
        f'<path class="axis" d="M4 9H116"/>{band}'
        f'<path class="reach" d="M{x(estimate.low)} 9H{x(estimate.high)}"/>'
        f'<circle cx="{x(estimate.value)}" cy="9" r="3.6"/></svg>'
    )
