"""`medgen data`: check, show and simulate datasets, and list the readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medgen.cli.options import examples

if TYPE_CHECKING:
    from collections.abc import Callable

    from medgen.protocols import Dataset

CHECK_EXAMPLES = examples(
    "medgen data check ~/radiographs",
    "medgen data check ~/radiographs --findings subtype --mask-classes background,lung",
    "medgen data check ~/radiographs --findings effusion,edema --json",
    "medgen data check ~/EchoNet-Dynamic",
)

SHOW_EXAMPLES = examples(
    "medgen data show ~/radiographs --out sheet.png",
    "medgen data show ~/radiographs --mask-classes background,lung --out sheet.png",
    "medgen data show runs/quickstart/synthetic --count 48 --size 64 --out sheet.png",
    "medgen data show ~/EchoNet-Dynamic --count 6 --out sheet.png --gif loops.gif",
    "medgen data show runs/ct/synthetic --count 12 --out sheet.png --gif slices.gif",
)

KINDS = ("radiograph", "echo", "ecg")
PLAYED = 12
"""Clips of a loop at most."""

LIST_EXAMPLES = examples(
    "medgen data list",
)

SIMULATE_EXAMPLES = examples(
    "medgen data simulate --out simulated --count 500",
    "medgen data simulate --out simulated --count 500 --size 128 --findings effusion,nodule",
    "medgen data simulate --kind echo --out echo --count 200 --size 112 --seconds 2",
    "medgen data simulate --kind ecg --out ecg --count 1000",
    "medgen data check simulated",
)


@click.group(epilog=examples("medgen data check FOLDER", "medgen data show FOLDER --out sheet.png"))
def data() -> None:
    """Check, show and simulate datasets."""


@data.command(epilog=CHECK_EXAMPLES)
@click.argument("folder", metavar="DATA", type=click.Path(path_type=Path))
@click.option("--table", help="Name of the table; otherwise table or labels, .csv or .json.")
@click.option("--findings", help="A column of classes, or several of 0 and 1: a,b,c.")
@click.option("--mask-classes", help="Names of the mask's values 0, 1, ...: background,lung.")
@click.option("--json", "as_json", is_flag=True, help="The whole report as JSON.")
def check(
    folder: Path, table: str | None, findings: str | None, mask_classes: str | None, as_json: bool
) -> None:
    """Look at every row and file of DATA. Exit 1 if a problem is found.

    DATA is a folder of images with a table, clips as EchoNet-Dynamic or CAMUS keep them, WFDB
    records, or a table of pairs of `clip` and `ecg`.
    """
    from medgen.data.check import check as look
    from medgen.data.check_timed import check_timed
    from medgen.data.layouts import layout_of

    layout = layout_of(folder)
    if layout and (table or findings or mask_classes):
        raise click.UsageError(
            f"--table, --findings and --mask-classes go with images; {folder} is {layout}"
        )
    with _Progress("Reading files") as progress:
        if layout:
            report = check_timed(folder, layout, progress=progress)
        else:
            report = look(
                folder,
                table=table,
                findings=_findings(findings),
                mask_classes=_words(mask_classes),
                progress=progress,
            )
    text = json.dumps(report.to_dict(), indent=2) if as_json else "\n".join(report.lines())
    click.echo(text)
    if report.problems:
        click.get_current_context().exit(1)


@data.command(epilog=SHOW_EXAMPLES)
@click.argument("folder", metavar="DATA", type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="PNG to write; of volumes also a GIF that walks through the slices.",
)
@click.option("--table", help="Name of the table; otherwise table or labels, .csv or .json.")
@click.option("--findings", help="A column of classes, or several of 0 and 1: a,b,c.")
@click.option("--mask-classes", help="Outline masks of these classes: background,lung.")
@click.option("--count", default=24, show_default=True, type=click.IntRange(1, 400))
@click.option(
    "--size", type=click.IntRange(8, 2048), help="Side in pixels. Default: 192, clips 112."
)
@click.option(
    "--gif",
    type=click.Path(path_type=Path),
    help="Also clips as loops, volumes slice by slice: GIF, clips also MP4.",
)
@click.option("--channels", default=1, show_default=True, type=click.Choice([1, 3]))
@click.option("--seed", default=0, show_default=True, help="Another seed, other studies.")
@click.option("--mip", is_flag=True, help="Maximum projections of volumes, not three slices.")
def show(
    folder: Path,
    out: Path,
    table: str | None,
    findings: str | None,
    mask_classes: str | None,
    count: int,
    size: int | None,
    gif: Path | None,
    channels: int,
    seed: int,
    mip: bool,
) -> None:
    """Write a contact sheet of studies of DATA, drawn evenly by chance, with their findings.

    Clips are strips of frames, ECGs traces, volumes three slices; --gif plays the first dozen clips
    beside each other, or goes through the volumes' slices.
    """
    from medgen.data.folder import Folder
    from medgen.data.layouts import layout_of, open_layout
    from medgen.data.splits import load
    from medgen.data.synthetic import SyntheticDataset
    from medgen.report.pictures import contact_sheet
    from medgen.report.planes import cine, projections
    from medgen.rng import Rng, derive

    if gif is not None and gif.suffix.lower() not in {".gif", ".mp4"}:
        raise click.UsageError(f"--gif: expected a name that ends in .gif or .mp4, got {gif.name}")
    dataset: Dataset
    if (folder / "dataset.json").is_file():
        dataset = SyntheticDataset(folder)
    elif layout := layout_of(folder):
        dataset = open_layout(folder, layout, size or 112)
    else:
        dataset = Folder(
            folder,
            (size or 192, size or 192),
            table=table,
            findings=_findings(findings),
            mask_classes=_words(mask_classes),
            channels=channels,
        )
    order = Rng([derive(seed, "show")]).uniform((len(dataset),))[0].argsort()[:count]
    chosen = sorted(order.tolist())
    studies = load(dataset, chosen)
    assert studies.image is not None
    captions = [_caption(dataset, index) for index in chosen]
    time, images, masks = dataset.schema.time, studies.image, studies.mask
    volumes = images.ndim == 5 and not time
    if mip and not volumes:
        raise click.UsageError("--mip shows volumes; these studies are none")
    shown = projections(images, masks) if mip else (images, masks)
    contact_sheet(shown[0], captions=captions, masks=shown[1], path=out, time=time)
    click.echo(f"{out}: {len(chosen)} of {len(dataset)} studies")
    if gif is not None and volumes and gif.suffix.lower() != ".gif":
        raise click.UsageError("--gif: volumes go slice by slice into a .gif")
    if gif is not None and volumes:
        cine(images, gif, masks=masks, captions=captions)
        click.echo(f"{gif}: the slices of {len(chosen)} volumes")
    elif gif is not None:
        played = _play(dataset, chosen[:PLAYED], gif)
        click.echo(f"{gif}: {played} clips")


@data.command("list", epilog=LIST_EXAMPLES)
def list_readers() -> None:
    """List the readers of data and the arguments that a recipe may give them."""
    from medgen.registry import arguments, find, names

    for name in names("data"):
        reader = find("data", name)
        click.echo(f"{name}: {(reader.__doc__ or '').strip().splitlines()[0]}")
        for argument in arguments(reader).values():
            if not argument.wired:
                kind = getattr(argument.annotation, "__name__", None)
                kind = kind if isinstance(argument.annotation, type) else str(argument.annotation)
                default = "required" if argument.required else repr(argument.default)
                click.echo(f"  {argument.name}: {kind} = {default}")


@data.command(epilog=SIMULATE_EXAMPLES)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder.")
@click.option("--kind", default="radiograph", show_default=True, type=click.Choice(KINDS))
@click.option("--count", default=500, show_default=True, type=click.IntRange(1))
@click.option(
    "--size", type=click.IntRange(16, 1024), help="Side in pixels. Default: 64, echo 112."
)
@click.option("--seconds", type=click.FloatRange(1, 60), help="Default: echo 2, ecg 10.")
@click.option("--findings", help="Findings to simulate: a,b,c; otherwise all that there are.")
@click.option("--seed", default=0, show_default=True)
def simulate(
    out: Path,
    kind: str,
    count: int,
    size: int | None,
    seconds: float | None,
    findings: str | None,
    seed: int,
) -> None:
    """Write a folder of simulated studies with findings, scalars and splits by patient.

    radiograph: chest radiographs with masks and reports, for the `folder` reader. echo: apical
    clips at 16 frames a second with masks and 12-lead ECGs, for `echo_ecg`. ecg: 12-lead WFDB
    records at 250 Hz, for `wfdb`.
    """
    from medgen.data import timed_exchange
    from medgen.data.export import write_folder
    from medgen.registry import find

    if (kind == "radiograph" and seconds is not None) or (kind == "ecg" and size is not None):
        raise click.UsageError("--seconds goes with echo and ecg, --size with radiograph and echo")
    side = size or (112 if kind == "echo" else 64)
    chosen: dict[str, Any] = {"count": count, "seed": seed}
    sizes = {
        "radiograph": (side, side),
        "echo": (round(16 * (seconds or 2)), side, side),
        "ecg": (round(250 * (seconds or 10)),),
    }
    if findings:
        chosen["findings"] = _words(findings)
    if kind == "ecg":
        chosen["rate"] = 250.0
    if kind == "radiograph":
        chosen["text"] = True
    name = "simulated" if kind == "radiograph" else f"simulated_{kind}"
    dataset: Dataset = find("data", name)(size=sizes[kind], **chosen)
    writers = {"echo": timed_exchange.write_pairs, "ecg": timed_exchange.write_records}
    with _Progress("Simulating") as progress:
        writers.get(kind, write_folder)(dataset, out, progress=progress)
    click.echo(f"{out}: {len(dataset)} simulated studies of {_patients(dataset)} patients")
    click.echo(f"Next: medgen data check {out}")


class _Progress:
    """A bar on stderr that is told (done, in all)."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __enter__(self) -> Callable[[int, int], None]:
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(self._text, total=None)
        self._bar.start()
        return lambda done, total: self._bar.update(self._task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",")) if text else ()


def _findings(text: str | None) -> str | tuple[str, ...] | None:
    """One name is a column of classes, several are columns of 0 and 1."""
    names = _words(text)
    return None if not names else names[0] if len(names) == 1 else names


def _patients(dataset: Dataset) -> int:
    return len({study.patient for study in dataset.studies})


def _play(dataset: Dataset, places: list[int], path: Path) -> int:
    """Write clips beside each other as one loop; returns how many."""
    from medgen.errors import DataError
    from medgen.report.loops import beside, is_clip, loop, write_loop

    if not is_clip(dataset.schema):
        raise DataError("--gif plays clips; these studies are none, or state no frame rate")
    loops = [
        loop(dataset[place], dataset.schema, title=_caption(dataset, place)) for place in places
    ]
    write_loop(path, beside(loops, columns=min(len(loops), 4)))
    return len(loops)


def _caption(dataset: Dataset, index: int) -> str:
    """The findings that are present in a study, or its name where none are known; with its EF."""
    item = dataset[index]
    label, names = item.label, dataset.schema.scalars
    if item.scalar is not None and "ejection_fraction" in names:
        fraction = float(item.scalar[0, names.index("ejection_fraction")])
        if fraction == fraction:
            return f"{dataset.studies[index].id}, EF {fraction:.0f} %"
    if label is None:
        return dataset.studies[index].id
    row = zip(dataset.schema.findings, label[0].tolist(), strict=True)
    present = [name for name, value in row if value == 1]
    return ", ".join(present) or ("unknown" if bool((label < 0).all()) else "no finding")
