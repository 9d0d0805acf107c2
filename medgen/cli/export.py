"""`medgen export`."""

from __future__ import annotations

from pathlib import Path

import click

from medgen.cli import options

FORMS = ("dicom", "echonet", "mp4", "nnunet", "wfdb")


@click.command(
    epilog=options.examples(
        "medgen export synthetic/cxr --to dicom --out dicom",
        "medgen export synthetic/echo --to echonet --out echonet",
        "medgen export synthetic/ecg --to wfdb --out records",
        "medgen export DIR --to nnunet --real ~/studies --out nnUNet_raw/Dataset501_Lungs",
    )
)
@click.argument("synthetic", type=click.Path(path_type=Path))
@options.out(required=True)
@click.option("--to", "form", required=True, type=click.Choice(FORMS))
@click.option(
    "--real", type=click.Path(path_type=Path), help="Folder of the real studies, for nnunet."
)
@options.overrides
def export(
    synthetic: Path, out: Path, form: str, real: Path | None, overrides: tuple[str, ...]
) -> None:
    """Write a SYNTHETIC dataset in the formats of other tools; clips and ECGs are read back.

    dicom: images, clips (multi-frame) and ECGs (waveforms) that say they are synthetic. echonet:
    clips as EchoNet-Dynamic keeps them. mp4: clips and a table. wfdb: ECGs as PhysioNet keeps them.

    For nnU-Net the real training and validation studies stand beside the synthetic ones, which are
    in the training part of every fold only; real test studies become imagesTs.
    """
    from medgen.assembly import build_dataset
    from medgen.data import timed_exchange as timed
    from medgen.data.exchange import write_dicom, write_nnunet
    from medgen.data.splits import Subset, by_split
    from medgen.data.synthetic import SyntheticDataset
    from medgen.recipe import load_recipe

    drawn = SyntheticDataset(synthetic)
    with options.progress_bar("exporting") as progress:
        if form != "nnunet":
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
            write_nnunet(Subset(studies, mine), test, drawn, out, progress=progress)
    click.echo(str(out))
