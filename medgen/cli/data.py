"""`medgen data`: check, show and simulate datasets, and list the readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medgen.cli.options import examples

if TYPE_CHECKING:
    from collections.abc import Callable

    from medgen.protocols import Dataset

CHECK_EXAMPLES = examples(
    "medgen data check ~/radiographs",
    "medgen data check ~/radiographs --findings subtype --mask-classes background,lung",
    "medgen data check ~/radiographs --findings effusion,edema --json",
)

SHOW_EXAMPLES = examples(
    "medgen data show ~/radiographs --out sheet.png",
    "medgen data show ~/radiographs --mask-classes background,lung --out sheet.png",
    "medgen data show runs/quickstart/synthetic --count 48 --size 64 --out sheet.png",
    "medgen data show runs/ct/synthetic --count 12 --out slices.gif",
)

LIST_EXAMPLES = examples(
    "medgen data list",
)

SIMULATE_EXAMPLES = examples(
    "medgen data simulate --out simulated --count 500",
    "medgen data simulate --out simulated --count 500 --size 128 --findings effusion,nodule",
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
    """Look at every row and image of DATA, a folder with a table. Exit 1 if a problem is found."""
    from medgen.data.check import check as look

    with _Progress("Reading images") as progress:
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
@click.option("--size", default=192, show_default=True, type=click.IntRange(8, 2048))
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
    size: int,
    channels: int,
    seed: int,
    mip: bool,
) -> None:
    """Write a contact sheet of studies of DATA, drawn evenly by chance, with their findings."""
    from medgen.data.folder import Folder
    from medgen.data.splits import load
    from medgen.data.synthetic import SyntheticDataset
    from medgen.report.pictures import contact_sheet
    from medgen.report.planes import cine, projections
    from medgen.rng import Rng, derive

    dataset: Dataset
    if (folder / "dataset.json").is_file():
        dataset = SyntheticDataset(folder)
    else:
        dataset = Folder(
            folder,
            (size, size),
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
    if (mip or out.suffix == ".gif") and not volumes:
        raise click.UsageError("--mip and a GIF show volumes; these studies are none")
    if out.suffix == ".gif":
        cine(images, out, masks=masks, captions=captions)
    else:
        images, masks = projections(images, masks) if mip else (images, masks)
        contact_sheet(images, captions=captions, masks=masks, path=out, time=time)
    click.echo(f"{out}: {len(chosen)} of {len(dataset)} studies")


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
@click.option("--count", default=500, show_default=True, type=click.IntRange(1))
@click.option("--size", default=64, show_default=True, type=click.IntRange(16, 1024))
@click.option("--findings", help="Findings to simulate: a,b,c; otherwise all that there are.")
@click.option("--seed", default=0, show_default=True)
def simulate(out: Path, count: int, size: int, findings: str | None, seed: int) -> None:
    """Write a folder of simulated chest radiographs with masks, findings and splits."""
    from medgen.data.export import write_folder
    from medgen.registry import find

    chosen = {"findings": _words(findings)} if findings else {}
    simulated = find("data", "simulated")
    dataset: Dataset = simulated(count=count, size=(size, size), seed=seed, **chosen)
    with _Progress("Simulating") as progress:
        write_folder(dataset, out, progress=progress)
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


def _caption(dataset: Dataset, index: int) -> str:
    """The findings that are present in a study, or its name where none are known."""
    label = dataset[index].label
    if label is None:
        return dataset.studies[index].id
    row = zip(dataset.schema.findings, label[0].tolist(), strict=True)
    present = [name for name, value in row if value == 1]
    return ", ".join(present) or ("unknown" if bool((label < 0).all()) else "no finding")
