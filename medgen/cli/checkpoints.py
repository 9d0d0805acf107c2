"""`medgen checkpoints`: list, show, verify, export, import."""

from __future__ import annotations

import json
from pathlib import Path

import click

from medgen.cli.options import as_json, examples


@click.group(epilog=examples("medgen checkpoints list", "medgen checkpoints show NAME"))
def checkpoints() -> None:
    """List, show, verify, export and import checkpoints."""


@checkpoints.command("list", epilog=examples("medgen checkpoints list"))
@as_json
def list_checkpoints(as_json: bool) -> None:
    """The checkpoints that come with medgen."""
    from medgen.checkpoint import read_metadata, shipped_checkpoints

    found = {
        folder.name: {
            "recipe": json.loads(read_metadata(folder)["recipe"])["name"],
            "megabytes": round(sum(f.stat().st_size for f in folder.iterdir()) / 1e6, 1),
        }
        for folder in shipped_checkpoints()
    }
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for name, about in found.items():
        click.echo(f"{name}  {about['recipe']}  {about['megabytes']} MB")


@checkpoints.command(epilog=examples("medgen checkpoints show runs/cxr/quickstart"))
@click.argument("checkpoint", type=click.Path(path_type=Path))
@as_json
def show(checkpoint: Path, as_json: bool) -> None:
    """What a checkpoint says about itself."""
    from medgen.checkpoint import CARD, find_checkpoint, read_metadata

    folder = find_checkpoint(checkpoint)
    metadata = read_metadata(folder)
    if as_json:
        parsed = {
            key: json.loads(value) if value[:1] in "{[" else value
            for key, value in metadata.items()
        }
        click.echo(json.dumps(parsed, indent=2))
        return
    card = folder / CARD
    if card.is_file():
        click.echo(card.read_text(encoding="utf-8"))
    click.echo(f"digest: {metadata.get('digest')}")


@checkpoints.command(epilog=examples("medgen checkpoints verify runs/cxr/quickstart"))
@click.argument("checkpoint", type=click.Path(path_type=Path))
def verify(checkpoint: Path) -> None:
    """Check the digest of a checkpoint, and that its weights fit its recipe."""
    from medgen.assembly import from_pretrained
    from medgen.checkpoint import find_checkpoint, read_metadata

    folder = find_checkpoint(checkpoint)
    if read_metadata(folder).get("kind") == "generator":
        from_pretrained(folder)
    else:
        from medgen.checkpoint import read_weights

        read_weights(folder)
    click.echo(f"ok: {folder}")


@checkpoints.command(
    epilog=examples("medgen checkpoints export runs/cxr/quickstart --out mine --half")
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--half", is_flag=True, help="Store weights in 16 bits: half the size.")
def export(run: Path, out: Path, half: bool) -> None:
    """Write what others need of a RUN: weights, recipe and card, without data, state and log."""
    from medgen.assembly import export_checkpoint

    click.echo(export_checkpoint(run, out, half=half))


@checkpoints.command(
    "import",
    epilog=examples(
        "medgen checkpoints import vae.pt --kind autoencoder --out vae --set size=[64,64,64]",
        "medgen checkpoints import vae.pt --kind autoencoder --out vae --set size=[64,64,64] "
        "--set groups=16 --set intensities=signed",
        "medgen checkpoints import unet.safetensors --kind unet --out unet --set head=32",
        "medgen checkpoints import maisi.pt --kind unet --out maisi --set head=32 --set label=1 "
        "--set spacing=[1.5,1.5,2.0]",
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--kind", required=True, help="autoencoder or unet.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option(
    "--set",
    "told",
    multiple=True,
    metavar="KEY=VALUE",
    help="What weights do not tell. autoencoder: size, groups (32), intensities (unit or signed), "
    "window, scale. unet: groups (32), head (8), time (rectified_flow or ddpm), and the conditions "
    "to fix: label, spacing, top_region_index, bottom_region_index.",
)
def import_(file: Path, kind: str, out: Path, told: tuple[str, ...]) -> None:
    """Write the weights of one of MONAI's networks as a checkpoint.

    Taken are AutoencoderKL and DiffusionModelUNet of MONAI core and of monai-generative, and those
    of MAISI (NV-Generate). Use the result as `codec: {checkpoint: DIR}` or `train.init_from`.
    """
    from medgen.importing import facts_of, import_checkpoint

    click.echo(import_checkpoint(file, out, facts_of(kind, told)))
