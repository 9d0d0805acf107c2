"""The stages of a run after sampling: evaluation, proof, report, card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from medgen.assembly import prove_settings
from medgen.checkpoint import CARD, read_metadata
from medgen.data.splits import Subset, load
from medgen.data.synthetic import SyntheticDataset
from medgen.disk import write_bytes
from medgen.protocols import Dataset
from medgen.rng import derive
from medgen.synthesis.export import condition_of

if TYPE_CHECKING:
    from medgen.pipeline import Run

EVALUATION = "evaluation.json"
PROOF = "prove.json"
SHOWN = 24
"""Real and synthetic studies in the report's gallery."""


def evaluate_run(run: Run) -> None:
    """Measure the run's synthetic studies against its real ones, into `evaluation.json`."""
    from medgen.evaluation.suite import evaluate

    metrics = run.recipe.sections["evaluate"]
    if not metrics or (run.out / EVALUATION).is_file():
        return
    run.say("Evaluating")
    with run.progress("evaluating") as progress:
        found = evaluate(
            run.studies,
            SyntheticDataset(run.out / "synthetic"),
            metrics,
            progress=lambda done, total, name: progress(done, total),
        )
    write_json(run.out / EVALUATION, found)


def prove_run(run: Run) -> None:
    """Does training on the run's synthetic studies help? Into `prove.json`."""
    from medgen.augmentation.experiment import prove

    section = run.recipe.sections["prove"]
    if not section or (run.out / PROOF).is_file():
        return
    run.say("Proving")
    train = run.split("train")
    saw = {"studies": len(train), "patients": len({study.patient for study in train.studies})}
    with run.progress("proving") as progress:
        prove(
            run.studies,
            SyntheticDataset(run.out / "synthetic"),
            prove_settings(section, {}),
            out=run.out,
            generator_saw=saw,
            progress=lambda done, total, name: progress(done, total),
        )


def report_run(run: Run) -> Path:
    """The page that tells what the run found, and the checkpoint's card."""
    from medgen import __version__
    from medgen.report.html import write_report

    metadata = read_metadata(run.out)
    facts = {
        "recipe digest": run.recipe.digest,
        "checkpoint digest": metadata["digest"],
        "medgen": __version__,
        "torch": torch.__version__,
        "device": run.device,
    }
    where = f" --data-root {run.data_root.name}" if run.data_root is not None else ""
    commands = [
        f"medgen run {run.recipe.name}{where}",
        "medgen sample RUN --out DIR --count 1000",
        "medgen verify RUN/synthetic --model RUN",
    ]
    write_bytes(run.out / CARD, card(run, metadata).encode())
    return write_report(
        run.out,
        title=run.recipe.name,
        summary=run.recipe.summary,
        commands=commands,
        gallery=_gallery(run),
        facts=facts,
    )


def card(run: Run, metadata: dict[str, str]) -> str:
    """A model card: what was trained on what, what it gave, what it is not for."""
    statistics = json.loads(metadata["statistics"])
    schema = run.studies.schema
    lines = [
        f"# {run.recipe.name}",
        "",
        run.recipe.summary,
        "",
        f"- trained on: {statistics['studies']} studies of {statistics['patients']} patients "
        f"(`{run.recipe.sections['data']['type']}`)",
        f"- findings: {', '.join(schema.findings) or 'none'}",
        f"- images seen: {run.recipe.sections['train']['images']}",
        f"- digest: `{metadata['digest']}`",
        "",
        "Samples are synthetic: for research and to train models, never for diagnosis, never in a",
        "validation or test set.",
        "",
        *_figures(run.out),
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


def _gallery(run: Run) -> Any:
    """Real beside synthetic studies, and synthetic beside their nearest real ones."""
    from medgen.report.gallery import Gallery

    train = run.split("train")
    synthetic = SyntheticDataset(run.out / "synthetic")
    order = np.random.default_rng(derive("gallery")).permutation(len(train))[:SHOWN].tolist()
    places = np.linspace(0, len(synthetic) - 1, min(SHOWN, len(synthetic))).astype(int).tolist()
    drawn = load(synthetic, places).image
    everything = load(train).image
    assert drawn is not None
    assert everything is not None
    distance = torch.cdist(drawn.flatten(1), everything.flatten(1)) / drawn[0].numel() ** 0.5
    nearest = distance.argmin(dim=1)
    return Gallery(
        real=_pixels(everything[order]),
        synthetic=_pixels(drawn),
        nearest=_pixels(everything[nearest]),
        real_captions=_captions(train, order),
        synthetic_captions=_captions(synthetic, places),
        nearest_captions=[f"RMS distance {value:.3f}" for value in distance.amin(dim=1)],
        studies=_suspects(run, train, everything),
    )


def _suspects(run: Run, train: Subset, images: Tensor) -> dict[str, np.ndarray]:
    """Pictures of the real studies that suspicious pairs name."""
    if not (run.out / EVALUATION).is_file():
        return {}
    pairs = json.loads((run.out / EVALUATION).read_text()).get("pairs", [])
    wanted = {pair["real"] for pair in pairs}
    found = {study.id: i for i, study in enumerate(train.studies) if study.id in wanted}
    return {name: _pixels(images[i : i + 1])[0] for name, i in found.items()}


def _pixels(images: Tensor) -> np.ndarray:
    gray = images.mean(dim=1) if images.shape[1] != 3 else images.movedim(1, -1)
    return ((gray.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


def _captions(dataset: Dataset, places: list[int]) -> list[str]:
    conditions = load(dataset, places).conditions()
    captions = []
    for index in range(len(places)):
        asked = condition_of(conditions, index, dataset.schema)
        if "finding" in asked:
            captions.append(asked["finding"] or "unknown")
        elif "findings" in asked:
            present = [name for name, value in asked["findings"].items() if value]
            captions.append(", ".join(present) or "no finding")
        else:
            captions.append("")
    return captions if any(captions) else []
