"""`medgen export`."""

from __future__ import annotations

from pathlib import Path

import click

from medgen.cli import options


@click.command(
    epilog=options.examples(
        "medgen export synthetic/cxr --to dicom --out dicom",
        "medgen export DIR --to nnunet --real ~/studies --out nnUNet_raw/Dataset501_Lungs",
        "medgen export runs/hippocampus/synthetic --to monai --real ~/studies --out monai",
    )
)
@click.argument("synthetic", type=click.Path(path_type=Path))
@options.out(required=True)
@click.option("--to", "form", required=True, type=click.Choice(["dicom", "nnunet", "monai"]))
@click.option(
    "--real",
    type=click.Path(path_type=Path),
    help="Folder of the real studies, for nnunet and monai.",
)
@options.overrides
def export(
    synthetic: Path, out: Path, form: str, real: Path | None, overrides: tuple[str, ...]
) -> None:
    """Write a SYNTHETIC dataset for other tools: flagged DICOM files, nnU-Net, MONAI.

    Images become DICOM secondary captures, CT volumes a series and a segmentation each. For nnU-Net
    and MONAI the real training and validation studies stand beside the synthetic ones, which are in
    the training part of every fold only; real test studies become imagesTs or `testing`.
    """
    from medgen.assembly import build_dataset
    from medgen.data.exchange import write_dicom, write_nnunet
    from medgen.data.monai_datalist import write_monai
    from medgen.data.splits import Subset, by_split
    from medgen.data.synthetic import SyntheticDataset
    from medgen.recipe import load_recipe

    drawn = SyntheticDataset(synthetic)
    with options.progress_bar("exporting") as progress:
        if form == "dicom":
            write_dicom(drawn, out, progress=progress)
        else:
            recipe = load_recipe(synthetic / "recipe.yaml", overrides)
            studies = build_dataset(recipe.sections["data"], real)
            mine = [i for i, study in enumerate(studies.studies) if study.split != "test"]
            test = by_split(studies, "test")
            write = write_nnunet if form == "nnunet" else write_monai
            write(Subset(studies, mine), test, drawn, out, progress=progress)
    click.echo(str(out))
