"""`medgen sample` and `medgen verify`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medgen.cli import options

if TYPE_CHECKING:
    from medgen.model import GenerativeModel
    from medgen.protocols import Dataset
    from medgen.synthesis.filters import Filters
    from medgen.synthesis.plan import Plan


@click.command(
    epilog=options.examples(
        "medgen sample runs/cxr/quickstart --out synthetic/quickstart --count 64",
        "medgen sample MODEL --out DIR --conditions wanted.csv",
        "medgen sample MODEL --out DIR --prevalence effusion=0.3 --prevalence nodule=0.1",
        "medgen sample MODEL --out DIR --masks folder/of/masks",
        "medgen sample MODEL --out DIR --count 500 --like ~/studies",
        "medgen sample MODEL --out DIR --spacing 0.8,0.8,2.5",
        "medgen sample runs/echo/long-48 --out DIR --count 16 --frames 64",
        "medgen sample MODEL --out DIR --set sampler.steps=32 --set guidance.type=autoguidance",
        "medgen sample MODEL --out DIR --real ~/studies --no-copies",
        "medgen sample MODEL --out DIR --real ~/studies --set 'filters=[{type: findings}]'",
    )
)
@click.argument("model", type=click.Path(path_type=Path))
@options.out(required=True)
@click.option("--count", type=click.IntRange(1), default=64, show_default=True, help="Samples.")
@click.option(
    "--labels",
    type=click.Choice(["balanced", "prevalence"]),
    default="balanced",
    show_default=True,
    help="Findings in equal parts, or as often as in the training studies.",
)
@click.option("--prevalence", multiple=True, metavar="FINDING=SHARE", help="Ask for a prevalence.")
@click.option("--conditions", type=click.Path(path_type=Path), help="CSV: one sample a row.")
@click.option("--masks", type=click.Path(path_type=Path), help="Folder of masks to ask for (PNG).")
@click.option("--spacing", metavar="MM,...", help="Mm between voxels along each axis.")
@click.option("--field-of-view", metavar="MM,...", help="The same as mm that a study covers.")
@click.option("--orientation", metavar="CODES", default="RAS", help="Of the axes; only RAS.")
@click.option(
    "--like",
    type=click.Path(path_type=Path),
    help="Folder of real studies: ask for what those of its training split hold, masks included.",
)
@click.option(
    "--real",
    type=click.Path(path_type=Path),
    help="Folder of real studies from which the filters learn.",
)
@click.option("--no-copies", is_flag=True, help="Refuse copies of the training studies of --real.")
@click.option(
    "--frames",
    type=click.IntRange(1),
    help="Of clips longer than the generator learned from, by windows that overlap by half.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="All seeds derive from it.")
@click.option("--workers", type=click.IntRange(1), help="Threads on a CPU. Default: its cores.")
@click.option(
    "--memory",
    type=click.FloatRange(0, min_open=True),
    help="GB that decoding may take on each worker; volumes are cut into slabs to stay below it. "
    "Default: 8.",
)
@click.option("--shard", metavar="I/N", help="Draw every N-th part only, beginning with part I.")
@click.option("--sheet", type=click.Path(path_type=Path), help="Also write a contact sheet here.")
@options.overrides
@options.device
def sample(
    model: Path,
    out: Path,
    count: int,
    labels: str,
    prevalence: tuple[str, ...],
    conditions: Path | None,
    masks: Path | None,
    spacing: str | None,
    field_of_view: str | None,
    orientation: str,
    like: Path | None,
    real: Path | None,
    no_copies: bool,
    frames: int | None,
    seed: int,
    workers: int | None,
    memory: float | None,
    shard: str | None,
    sheet: Path | None,
    overrides: tuple[str, ...],
    device: str,
) -> None:
    """Draw a synthetic labelled dataset from MODEL, a checkpoint's or run's folder.

    Run the same command again to resume. Every sample has its own seed, so its bytes do not depend
    on workers, shards or restarts.
    """
    from medgen.assembly import build_dataset, from_pretrained
    from medgen.data.splits import by_split
    from medgen.synthesis.draw import synthesize
    from medgen.training.common import resolve_device

    if like is not None and (conditions is not None or masks is not None or prevalence):
        raise click.UsageError("--like decides all conditions; leave the other options out")
    if (like is not None or conditions is not None) and (spacing or field_of_view):
        raise click.UsageError("--spacing and --field-of-view do not go with --like, --conditions")
    settings = _settings(model, overrides, no_copies)
    filters = _filters(settings, real)
    generator = from_pretrained(
        model,
        device=resolve_device(device),
        sampler=settings["sampler"],
        guidance=settings["guidance"],
        first_frame=_sampled(settings.get("first_frame")),
    )
    _plan_memory(generator, memory)
    wanted = _plan(
        generator,
        count,
        labels=_prevalences(prevalence) or labels,
        conditions=conditions,
        masks=masks,
        like=None if like is None else by_split(build_dataset(settings["data"], like), "train"),
        spacing=_lengths("--spacing", spacing),
        field_of_view=_lengths("--field-of-view", field_of_view),
        orientation=orientation,
        frames=frames,
        seed=seed,
    )
    if generator.first_frame is not None and wanted.conditions.frame is None:
        wanted = _with_first_frames(generator, wanted, out, settings, real=real, workers=workers)
    with options.progress_bar("drawing") as progress:
        drawn = synthesize(
            generator,
            wanted,
            out,
            filters=filters,
            workers=workers,
            shard=_shard(shard),
            progress=progress,
        )
    click.echo(f"{drawn.count} studies drawn, {drawn.rate:.1f} images/s", err=True)
    if sheet is not None:
        _write_sheet(out, sheet)
    click.echo(str(out))


@click.command(
    epilog=options.examples(
        "medgen verify synthetic/quickstart --model runs/cxr/quickstart", "medgen verify DIR"
    )
)
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), help="Checkpoint that drew it.")
@click.option("--count", type=click.IntRange(0), default=8, show_default=True, help="Re-drawn.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which samples to re-draw.")
@options.as_json
def verify(dataset: Path, model: Path | None, count: int, seed: int, as_json: bool) -> None:
    """Check the files of a synthetic DATASET, and draw some samples again to compare.

    Without --model only the files are checked against their manifest, and the manifest against its
    hash chain. Keep the printed end of the chain elsewhere: it tells later whether a line changed.
    """
    from medgen.assembly import from_pretrained
    from medgen.synthesis.unit import FIRST_FRAMES
    from medgen.synthesis.verify import read_dataset
    from medgen.synthesis.verify import verify as check

    generator = None
    if model is not None:
        about, _ = read_dataset(dataset)
        first = None
        if FIRST_FRAMES in about:
            first = _sampled(read_dataset(dataset / FIRST_FRAMES)[0])
        how = {part: about[part] for part in ("sampler", "guidance")}
        generator = from_pretrained(model, **how, first_frame=first)
    result = check(dataset, generator, count=count, seed=seed)
    if as_json:
        click.echo(json.dumps(result.__dict__))
    else:
        for problem in result.problems:
            click.echo(problem)
        verdict = "not as written" if result.problems else "ok"
        click.echo(f"{verdict}: {result.files} files checked, {result.redrawn} samples drawn again")
        click.echo(f"chain: {result.chain}")
    raise click.exceptions.Exit(int(bool(result.problems)))


def _plan_memory(generator: GenerativeModel, gigabytes: float | None) -> None:
    """Hold decoding to a memory, and say how it gets by with it."""
    from medgen.codecs.autoencoder import Autoencoder

    codec = generator.codec
    if not isinstance(codec, Autoencoder):
        if gigabytes is not None:
            raise click.UsageError("--memory: this model's codec has no decoder to cut into slabs")
        return
    if gigabytes is not None:
        codec.memory = int(gigabytes * 2**30)
    click.echo(f"decoding a micro-batch {generator.decoding()}", err=True)


def _plan(
    model: GenerativeModel,
    count: int,
    *,
    labels: str | dict[str, float],
    conditions: Path | None,
    masks: Path | None,
    like: Dataset | None,
    spacing: list[float] | None,
    field_of_view: list[float] | None,
    orientation: str,
    frames: int | None,
    seed: int,
) -> Plan:
    """What the options ask for, of a geometry that the model was trained on."""
    from medgen.synthesis.contract import Geometry
    from medgen.synthesis.long_clips import require_length
    from medgen.synthesis.masks import mask_folder
    from medgen.synthesis.plan import plan, plan_from_table, plan_like

    geometry = Geometry.of(model.schema, model.statistics)
    if geometry is not None:
        geometry.require_orientation(orientation)
    if conditions is not None:
        made = plan_from_table(model.drawn, conditions, geometry=geometry, seed=seed)
    elif like is not None:
        made = plan_like(model, like, count=count, seed=seed)
    else:
        made = plan(
            model,
            count=count,
            labels=labels,
            masks=None if masks is None else mask_folder(masks, model.drawn, geometry),
            spacing=spacing,
            field_of_view=field_of_view,
            seed=seed,
        )
    if frames is None:
        return made
    require_length(model, frames, made.conditions.ecg)
    return replace(made, frames=frames)


def _sampled(section: dict[str, Any] | None) -> dict[str, Any] | None:
    """How a generator is sampled, of its recipe's sections."""
    if section is None:
        return None
    return {part: section[part] for part in ("sampler", "guidance")}


def _with_first_frames(
    generator: GenerativeModel,
    wanted: Plan,
    out: Path,
    settings: dict[str, Any],
    *,
    real: Path | None,
    workers: int | None,
) -> Plan:
    """Draw the first frames of the clips, filtered if there are real studies to learn from."""
    from medgen.assembly import build_dataset
    from medgen.synthesis.cascade import with_first_frames
    from medgen.synthesis.filters import Filters

    first, filters = settings["first_frame"], None
    if first["filters"]:
        if real is None:
            raise click.UsageError(
                "first frames are filtered by what real studies show: give their folder with "
                "--real, or draw without: --set first_frame.filters=[]"
            )
        frames = {**settings["data"], "stills": 1}
        filters = Filters.fitted(first, build_dataset(frames, real))
    with options.progress_bar("drawing first frames") as progress:
        return with_first_frames(
            generator, wanted, out, filters=filters, workers=workers, progress=progress
        )


def _filters(settings: dict[str, Any], real: Path | None) -> Filters | None:
    """The filters asked for, fitted on real studies."""
    from medgen.assembly import build_dataset
    from medgen.synthesis.filters import Filters

    if real is None and settings["filters"]:
        raise click.UsageError(
            "the filters learn from real studies: give their folder with --real, or draw without: "
            "--set filters=[]"
        )
    if real is None:
        return None
    if not settings["filters"]:
        if settings.get("first_frame", {}).get("filters"):
            return None
        raise click.UsageError(
            "--real: there are no filters to learn from it; name some, such as --no-copies or "
            "--set 'filters=[{type: findings}]'"
        )
    return Filters.fitted(settings, build_dataset(settings["data"], real))


def _settings(model: Path, overrides: tuple[str, ...], no_copies: bool) -> dict[str, Any]:
    """The sections of a generator's recipe, as they are to be sampled."""
    from medgen.checkpoint import read_recipe
    from medgen.recipe import override

    settings = override(read_recipe(model), _sampling_only(overrides)).sections
    if no_copies and all(each["type"] != "copies" for each in settings["filters"]):
        chosen = [*settings["filters"], {"type": "copies"}]
        settings = override(settings, [f"filters={json.dumps(chosen)}"]).sections
    return settings


def _sampling_only(overrides: tuple[str, ...]) -> tuple[str, ...]:
    for text in overrides:
        section = text.partition("=")[0].partition(".")[0]
        if section == "first_frame":
            section = text.partition(".")[2].partition("=")[0].partition(".")[0]
        if section not in ("data", "sampler", "guidance", "filters") and "budget" not in text:
            raise click.UsageError(
                f"--set {text}: sampling can change sampler, guidance, filters and their "
                "sample.budget alone, and with data how --like and --real are read"
            )
    return overrides


def _prevalences(given: tuple[str, ...]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for text in given:
        name, _, share = text.rpartition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            raise click.UsageError(f"--prevalence {text}: expected FINDING=SHARE") from None
    return shares


def _lengths(option: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        expected = "expected mm along each axis, such as 1,1,2.5"
        raise click.UsageError(f"{option} {text}: {expected}") from None


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 1
    first, _, second = text.partition("/")
    if not (first.isdigit() and second.isdigit() and int(first) < int(second)):
        raise click.UsageError(f"--shard {text}: expected I/N with I < N, such as 0/2")
    return int(first), int(second)


def _write_sheet(dataset: Path, file: Path) -> None:
    from medgen.data.splits import load
    from medgen.data.synthetic import SyntheticDataset
    from medgen.report.pictures import contact_sheet

    drawn = SyntheticDataset(dataset)
    batch = load(drawn, range(min(len(drawn), 64)))
    assert batch.image is not None
    contact_sheet(batch.image, masks=batch.mask, path=file, time=drawn.schema.time)
    click.echo(f"contact sheet: {file}", err=True)
