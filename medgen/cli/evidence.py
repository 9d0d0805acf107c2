"""`medgen evaluate`, `medgen prove` and `medgen compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medgen.cli import options

if TYPE_CHECKING:
    from medgen.protocols import Dataset
    from medgen.recipe import Recipe

real_option = click.option(
    "--real",
    type=click.Path(path_type=Path),
    help="Folder of the real studies. Default: the folder named by MEDGEN_DATA.",
)
synthetic_option = click.option(
    "--synthetic",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the synthetic dataset.",
)


@click.command(
    epilog=options.examples(
        "medgen evaluate --real ~/studies --synthetic synthetic/cxr --out evidence",
        "medgen evaluate --real ~/studies --synthetic DIR --metric frechet --metric kid",
    )
)
@real_option
@synthetic_option
@options.out()
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    help="May be repeated; with settings by --set 'evaluate=[{type: NAME, ...}]'. Default: all "
    "that apply.",
)
@click.option(
    "--extractor",
    default="classifier",
    show_default=True,
    help="classifier, ssl, efficientnet-lite0, pixels-pca, random, codec@CHECKPOINT, or a network "
    "of torchvision or timm and the file of its weights: resnet50@FILE, timm:NAME@FILE.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="The checkpoint that drew the samples, for the membership attack by loss.",
)
@options.overrides
@options.as_json
def evaluate(
    real: Path | None,
    synthetic: Path,
    out: Path | None,
    metrics: tuple[str, ...],
    extractor: str,
    model: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare synthetic studies with real ones; every number has its interval, n and floor.

    Real studies are read as the generator's recipe read them; --set data.KEY=VALUE changes that.
    """
    from medgen.assembly import from_pretrained
    from medgen.evaluation.suite import evaluate as measure
    from medgen.evidence import write_evaluation

    recipe, studies, drawn = _read(real, synthetic, overrides)
    asked: list[Any] = list(metrics)
    if any(each.startswith("evaluate") for each in overrides):
        asked += recipe.sections["evaluate"]
    with options.progress_bar("evaluating") as progress:
        found = measure(
            studies,
            drawn,
            asked or None,
            extractor=extractor,
            model=None if model is None else from_pretrained(model),
            progress=lambda done, total, name: progress(done, total),
        )
    if out is not None:
        write_evaluation(out, found)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for name, estimate in found["metrics"].items():
        floor = estimate.get("floor") or {}
        click.echo(
            f"{name:<28} {_number(estimate)}  n {estimate['n']}"
            + (f"  real against real {_number(floor)}" if floor else "")
        )
    for name, reason in found["skipped"].items():
        click.echo(f"{name:<28} not measured: {reason}")


@click.command(
    epilog=options.examples(
        "medgen prove --task classification --real ~/studies --synthetic DIR --out evidence",
        "medgen prove --real ~/studies --synthetic DIR --out DIR2 --fractions 0.1,1 --repeats 5",
    )
)
@real_option
@synthetic_option
@options.out(required=True)
@click.option("--task", type=click.Choice(["classification", "segmentation", "regression"]))
@click.option(
    "--consumer",
    help="The network: medgen (default), or such as torchvision:resnet18, timm:NAME, smp:Unet, "
    "monai:UNet.",
)
@click.option("--fractions", help="Shares of the training patients, such as 0.02,0.1,1.")
@click.option("--ratios", help="Synthetic studies for every real one, such as 0.5,1.")
@click.option("--repeats", type=click.IntRange(1))
@click.option("--steps", type=click.IntRange(1))
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes that train arms side by side.",
)
@click.option(
    "--control",
    "controls",
    multiple=True,
    type=click.Choice(["augmentation", "pretraining", "randomized"]),
    help="A further arm; may be repeated.",
)
@options.overrides
@options.as_json
def prove(
    real: Path | None,
    synthetic: Path,
    out: Path,
    task: str | None,
    consumer: str | None,
    fractions: str | None,
    ratios: str | None,
    repeats: int | None,
    steps: int | None,
    workers: int,
    controls: tuple[str, ...],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Does synthetic data help a classifier, segmenter or regressor? Equal steps, paired intervals.

    The arms: real studies, the same repeated, real and synthetic, synthetic alone, and --control.

    Run the same command again to resume.
    """
    from medgen.assembly import prove_settings
    from medgen.augmentation.experiment import prove as experiment

    asked = {"task": task, "consumer": consumer, "repeats": repeats, "steps": steps}
    asked |= {"fractions": _numbers(fractions), "ratios": _numbers(ratios)}
    asked |= {"controls": list(controls) or None}
    recipe, studies, drawn = _read(real, synthetic, overrides)
    settings = prove_settings(
        recipe.sections["prove"], {key: value for key, value in asked.items() if value is not None}
    )
    saw = json.loads((synthetic / "dataset.json").read_text()).get("generator_saw", {})
    with options.progress_bar("proving") as progress:
        result = experiment(
            studies,
            drawn,
            settings,
            out=out,
            generator_saw=saw,
            workers=workers,
            progress=lambda done, total, name: progress(done, total),
        )
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
        return
    _show(result.to_dict())


@click.command(
    epilog=options.examples(
        "medgen compare runs/a runs/b",
        "medgen compare evidence-1 evidence-2 --html comparison.html --csv comparison.csv",
    )
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--csv", "table", type=click.Path(path_type=Path), help="Also write a table.")
@click.option("--html", "page", type=click.Path(path_type=Path), help="Also write a page.")
@options.as_json
def compare(runs: tuple[Path, ...], table: Path | None, page: Path | None, as_json: bool) -> None:
    """Set what was measured on several runs side by side, and say where it does not compare."""
    import csv
    import io

    from medgen.disk import write_bytes
    from medgen.report.compare import as_dict, compare_runs
    from medgen.report.compare_page import compare_page, compare_text

    rows = compare_runs(runs)
    found = as_dict(rows, runs)
    if page is not None:
        write_bytes(page, compare_page(rows, runs).encode())
    if table is not None:
        text = io.StringIO()
        columns = ["measure", "caution", "run", "value", "low", "high", "n", "verdict"]
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for row in found:
            shared = {"measure": row["measure"], "caution": row["caution"]}
            writer.writerows(shared | run for run in row["runs"])
        write_bytes(table, text.getvalue().encode())
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(compare_text(rows, runs))


def _read(
    real: Path | None, synthetic: Path, overrides: tuple[str, ...]
) -> tuple[Recipe, Dataset, Dataset]:
    """The generator's recipe, the real studies read as it says, and the synthetic ones."""
    from medgen.assembly import build_dataset
    from medgen.data.synthetic import SyntheticDataset
    from medgen.recipe import load_recipe

    drawn = SyntheticDataset(synthetic)
    recipe = load_recipe(synthetic / "recipe.yaml", overrides)
    return recipe, build_dataset(recipe.sections["data"], real), drawn


def _show(result: dict[str, Any]) -> None:
    """The arms and their cost, the differences, what could have been seen, the verdicts."""
    click.echo(f"{result['metric']} of every arm")
    for arm in result["arms"]:
        click.echo(
            f"{arm['fraction']:>6.4g}  {arm['arm']:<22} ratio {arm['ratio']:<5g}"
            f"{_rounded(arm['value'])}  {arm['seconds']:.0f} s, {arm['repeats']} repeats"
        )
    click.echo("\nDifferences (95 % interval; in brackets after Holm's correction over the ratios)")
    for each in result["comparisons"]:
        holm = f"[{each['holm']['low']:.4g} to {each['holm']['high']:.4g}]"
        click.echo(
            f"{each['fraction']:>6.4g}  {each['arm']} against {each['versus']}, "
            f"ratio {each['ratio']:g}: {_number(each['estimate'])} {holm} "
            f"p {each['p']:.3g} [{each['p_holm']:.3g}]  {each['verdict']}\n"
            f"        {each['power']}"
        )
    click.echo("")
    for note in result["warnings"]:
        click.echo(f"Note: {note}")
    for fraction, verdict in result["verdicts"].items():
        click.echo(f"With {float(fraction):.4g} of the training patients: {verdict}")


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.UsageError(f"'{text}': expected numbers with commas between") from None


def _rounded(value: float | None) -> str:
    return "not available" if value is None else f"{value:.4g}"


def _number(estimate: dict[str, float]) -> str:
    if any(estimate.get(key) is None for key in ("value", "low", "high")):
        return "not available"
    return f"{estimate['value']:.4g} ({estimate['low']:.4g} to {estimate['high']:.4g})"
