"""`medgen export`."""

from __future__ import annotations

from pathlib import Path

import click

from medgen.cli import options

FORMS = ("dicom", "echonet", "monai", "mp4", "nnunet", "wfdb")
BESIDE_REAL = ("monai", "nnunet")


@click.command(
    epilog=options.examples(
        "medgen export synthetic/cxr --to dicom --out dicom",
        "medgen export synthetic/echo --to echonet --out echonet",
        "medgen export synthetic/ecg --to wfdb --out records",
        "medgen export DIR --to nnunet --real ~/studies --out nnUNet_raw/Dataset501_Lungs",
        "medgen export runs/hippocampus/synthetic --to monai --real ~/studies --out monai",
    )
)
@click.argument("synthetic", type=click.Path(path_type=Path))
@options.out(required=True)
@click.option("--to", "form", required=True, type=click.Choice(FORMS))
@click.option(
    "--real",
    type=click.Path(path_type=Path),
    help="Folder of the real studies, for nnunet and monai.",
)
@options.overrides
def export(
    synthetic: Path, out: Path, form: str, real: Path | None, overrides: tuple[str, ...]
) -> None:
    """Write a SYNTHETIC dataset in the formats of other tools; clips and ECGs are read back.

    dicom: images, clips (multi-frame) and ECGs (waveforms) that say they are synthetic. echonet:
    clips as EchoNet-Dynamic keeps them. mp4: clips and a table. wfdb: ECGs as PhysioNet keeps them.

    Images become DICOM secondary captures, CT volumes a series and a segmentation each. For nnunet
    and monai the real training and validation studies stand beside the synthetic ones, which are in
    the training part of every fold only; real test studies become imagesTs or `testing`.
    """
    from medgen.assembly import build_dataset
    from medgen.data import timed_exchange as timed
    from medgen.data.exchange import write_dicom, write_nnunet
    from medgen.data.monai_datalist import write_monai
    from medgen.data.splits import Subset, by_split
    from medgen.data.synthetic import SyntheticDataset
    from medgen.recipe import load_recipe

    drawn = SyntheticDataset(synthetic)
    with options.progress_bar("exporting") as progress:
        if form not in BESIDE_REAL:
            writers = {
                "dicom": timed.write_timed_dicom if drawn.schema.time else write_dicom,
                "echonet": timed.write_echonet,
                "mp4": timed.write_mp4,
                "wfdb": timed.write_records,
            }
            writers[form](drawn, out, progress=progress)
        else:
            recipe = load_recipe(synthetic / "recipe.yaml", overrides)
            studies = build_dataset(recipe.sections["data"], real)
            mine = [i for i, study in enumerate(studies.studies) if study.split != "test"]
            test = by_split(studies, "test")
            write = write_nnunet if form == "nnunet" else write_monai
            write(Subset(studies, mine), test, drawn, out, progress=progress)
    click.echo(str(out))
