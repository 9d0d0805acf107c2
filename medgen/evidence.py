"""The stages of a run after sampling: evaluation, proof, report, card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgen.assembly import from_pretrained, prove_settings
from medgen.checkpoint import CARD, read_metadata
from medgen.data.splits import Subset, by_split, load
from medgen.data.synthetic import SyntheticDataset
from medgen.disk import write_bytes
from medgen.protocols import Dataset
from medgen.recipe import Recipe
from medgen.report.loops import Loop, beside, is_clip, loop, write_loop
from medgen.report.pictures import flat
from medgen.rng import derive
from medgen.synthesis.export import condition_of
from medgen.types import Progress, Schema

EVALUATION = "evaluation.json"
REIDENTIFICATION = "reidentification.json"
SYNTHETIC = "synthetic"
PROOF = "prove.json"
SHOWN = 24
"""Real and synthetic studies in the report's gallery."""
PLAYING = 6
"""Clips of the report that play, and files in `loops/`."""
ASKED = 8
"""Further ones of each kind in its quiz."""


def evaluate_run(
    out: Path, studies: Dataset, metrics: list[dict[str, Any]], progress: Progress
) -> None:
    """Measure a run's synthetic studies against the real ones, into `evaluation.json`.

    Args:
        out: the run's folder.
        studies: real ones, all three splits.
        metrics: the recipe's section `evaluate`.
        progress: shows how far it is.
    """
    from medgen.evaluation.suite import evaluate

    if not metrics or (out / EVALUATION).is_file():
        return
    with progress("evaluating") as step:
        found = evaluate(
            studies,
            SyntheticDataset(out / SYNTHETIC),
            metrics,
            model=from_pretrained(out),
            progress=lambda done, total, name: step(done, total),
        )
    write_evaluation(out, found)


def write_evaluation(out: Path, found: dict[str, Any]) -> None:
    """Write what `evaluate` gave: the scores of single samples in a file of their own.

    Args:
        out: receives evaluation.json and, if samples were scored, reidentification.json.
        found: what `medgen.evaluation.suite.evaluate` gave.
    """
    scores = found.get("reidentification")
    if scores is not None:
        write_json(out / REIDENTIFICATION, scores)
    write_json(out / EVALUATION, {k: v for k, v in found.items() if k != "reidentification"})


def check_proof(section: dict[str, Any] | None, schema: Schema) -> None:
    """Refuse a `prove` section that these studies cannot serve, before anything is trained.

    Raises:
        DataError: the task needs what the studies lack.
        RecipeError: the consumer is unknown or does not take these images.
    """
    from medgen.augmentation.tasks import task_for

    if section:
        settings = prove_settings(section, {})
        task_for(settings.task, schema, settings.consumer).network()


def prove_run(
    out: Path, studies: Dataset, section: dict[str, Any] | None, progress: Progress
) -> None:
    """Does training on a run's synthetic studies help? Into `prove.json`.

    Args:
        out: the run's folder.
        studies: real ones, all three splits.
        section: the recipe's section `prove`; None proves nothing.
        progress: shows how far it is.
    """
    from medgen.augmentation.experiment import prove

    if not section or (out / PROOF).is_file():
        return
    train = by_split(studies, "train")
    saw = {"studies": len(train), "patients": len({study.patient for study in train.studies})}
    with progress("proving") as step:
        prove(
            studies,
            SyntheticDataset(out / SYNTHETIC),
            prove_settings(section, {}),
            out=out,
            generator_saw=saw,
            progress=lambda done, total, name: step(done, total),
        )


def report_run(out: Path, recipe: Recipe, studies: Dataset) -> Path:
    """The page that tells what a run found, and the checkpoint's card.

    Args:
        out: the run's folder.
        recipe: of the run.
        studies: real ones, all three splits.
    """
    from medgen import __version__
    from medgen.report.html import write_report

    metadata = read_metadata(out)
    about = json.loads((out / SYNTHETIC / "dataset.json").read_text())
    facts = {
        "recipe digest": recipe.digest,
        "checkpoint digest": metadata["digest"],
        "medgen": __version__,
        "torch": torch.__version__,
        "device": about["device"],
    }
    simulated = recipe.sections["data"]["type"].startswith("simulated")
    where = "" if simulated else " --data-root FOLDER"
    commands = [
        f"medgen run {recipe.name}{where}",
        "medgen sample RUN --out DIR --count 1000",
        "medgen verify RUN/synthetic --model RUN",
    ]
    train = by_split(studies, "train")
    gallery = _gallery(out, train)
    for place, each in enumerate(gallery.loops, 1):
        for ending in ("gif", "mp4"):
            write_loop(out / "loops" / f"clip-{place:02d}.{ending}", each)
    write_bytes(out / CARD, card(recipe, studies.schema, metadata, _figures(out)).encode())
    return write_report(
        out,
        title=recipe.name,
        summary=recipe.summary,
        commands=commands,
        gallery=gallery,
        facts=facts,
    )


def card(recipe: Recipe, schema: Schema, metadata: dict[str, str], figures: list[str]) -> str:
    """A model card: what was trained on what, what it gave, what it is not for."""
    statistics = json.loads(metadata["statistics"])
    lines = [
        f"# {recipe.name}",
        "",
        recipe.summary,
        "",
        f"- trained on: {statistics['studies']} studies of {statistics['patients']} patients "
        f"(`{recipe.sections['data']['type']}`)",
        f"- findings: {', '.join(schema.findings) or 'none'}",
        f"- images seen: {recipe.sections['train']['images']}",
        f"- digest: `{metadata['digest']}`",
        "",
        "Samples are synthetic: for research and to train models, never for diagnosis, never in a",
        "validation or test set.",
        "",
        *figures,
    ]
    return "\n".join(lines) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write plain values as indented JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def _figures(out: Path) -> list[str]:
    """The measured figures of a run as lines of Markdown."""
    lines: list[str] = []
    if (out / EVALUATION).is_file():
        found = json.loads((out / EVALUATION).read_text())
        lines += ["## Measured", "", "| measure | value (95 % interval) | n | real against real |"]
        lines += ["|---|---|---|---|"]
        for name, estimate in found["metrics"].items():
            floor = _interval(estimate["floor"]) if estimate.get("floor") else ""
            lines.append(f"| {name} | {_interval(estimate)} | {estimate['n']} | {floor} |")
        lines.append("")
    if (out / PROOF).is_file():
        proof = json.loads((out / PROOF).read_text())
        lines += ["## Does it help?", ""]
        for fraction, verdict in proof["verdicts"].items():
            share = f"{float(fraction):.0%} of the training patients"
            lines.append(f"- {proof['task']} with {share}: {verdict}")
    return lines


def _interval(estimate: dict[str, Any]) -> str:
    numbers = [estimate[key] for key in ("value", "low", "high")]
    if any(number is None for number in numbers):
        return "not available"
    value, low, high = (f"{number:.3g}" for number in numbers)
    return f"{value} ({low} to {high})"


def _gallery(out: Path, train: Subset) -> Any:
    """Real beside synthetic studies, and synthetic beside their nearest real ones."""
    from medgen.report.gallery import Gallery

    synthetic, time = SyntheticDataset(out / SYNTHETIC), train.schema.time
    order = np.random.default_rng(derive("gallery")).permutation(len(train)).tolist()
    order, asked_real = order[:SHOWN], order[SHOWN:][:ASKED]
    places = np.linspace(0, len(synthetic) - 1, min(SHOWN, len(synthetic))).astype(int).tolist()
    others = [i for i in range(len(synthetic)) if i not in set(places)]
    asked = others[:: max(1, len(others) // ASKED)][:ASKED]
    drawn = load(synthetic, places).image
    everything = load(train).image
    assert drawn is not None
    assert everything is not None
    distance = torch.cdist(drawn.flatten(1), everything.flatten(1)) / drawn[0].numel() ** 0.5
    nearest = distance.argmin(dim=1)
    return Gallery(
        real=_pixels(everything[order], time),
        synthetic=_pixels(drawn, time),
        nearest=_pixels(everything[nearest], time),
        real_captions=_captions(train, order),
        synthetic_captions=_captions(synthetic, places),
        nearest_captions=[f"RMS distance {value:.3f}" for value in distance.amin(dim=1)],
        studies=_suspects(out, synthetic, train),
        quiz_real=_pixels(everything[asked_real], time),
        quiz_synthetic=_pixels(_images(synthetic, asked), time),
        loops=_loops(synthetic, places[:PLAYING], train),
    )


def _loops(synthetic: Dataset, places: list[int], train: Subset) -> list[Loop]:
    """Synthetic clips, each beside the real one whose ECG or first frame it was asked for."""
    if not is_clip(synthetic.schema):
        return []
    held = {study.id: index for index, study in enumerate(train.studies)}
    shown = []
    for place in places:
        study = synthetic[place]
        asked = condition_of(study, 0, synthetic.schema).get("scalars", {})
        words = [f"{name.replace('_', ' ')} {value:.3g}" for name, value in asked.items()]
        clips = [loop(study, synthetic.schema, title="synthetic")]
        origin = study.provenance[0].condition if study.provenance else None
        for what, name in (("ecg", "ECG"), ("frame", "first frame")):
            of = (origin or {}).get(what, {}).get("of")
            if of in held and len(clips) == 1:
                clips.append(
                    loop(train[held[of]], train.schema, title=f"real, same {name}", real=True)
                )
                words.append(f"{name} of {of}")
        shown.append(
            replace(beside(clips), caption=", ".join(words) or synthetic.studies[place].id)
        )
    return shown


def _images(dataset: Dataset, places: list[int]) -> Tensor:
    image = load(dataset, places).image if places else torch.zeros(0, 1, 1, 1)
    assert image is not None
    return image


def _suspects(out: Path, synthetic: Dataset, train: Subset) -> dict[str, np.ndarray]:
    """Pictures of the studies that suspicious pairs name, of both sides."""
    if not (out / EVALUATION).is_file():
        return {}
    pairs = json.loads((out / EVALUATION).read_text()).get("pairs", [])
    shown: dict[str, np.ndarray] = {}
    for side, dataset in (("real", train), ("synthetic", synthetic)):
        wanted = {pair[side] for pair in pairs}
        for place, study in enumerate(dataset.studies):
            if study.id in wanted:
                shown[study.id] = _pixels(_images(dataset, [place]), dataset.schema.time)[0]
    return shown


def _pixels(images: Tensor, time: bool) -> np.ndarray:
    images = flat(images, time=time)[0]
    gray = images.mean(dim=1) if images.shape[1] != 3 else images.movedim(1, -1)
    return ((gray.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


def _captions(dataset: Dataset, places: list[int]) -> list[str]:
    conditions = load(dataset, places).conditions()
    captions = []
    for index in range(len(places)):
        asked = condition_of(conditions, index, dataset.schema)
        if "finding" in asked:
            captions.append(asked["finding"] or "unknown")
        elif asked.get("findings"):
            present = [name for name, value in asked["findings"].items() if value]
            captions.append(", ".join(present) or "no finding")
        else:
            captions.append("")
    return captions if any(captions) else []
