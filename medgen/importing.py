"""Weights that other libraries trained, as checkpoints of medgen."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from medgen import registry
from medgen.backbones.adapters import Time, adapt_unet
from medgen.checkpoint import RECIPE, WEIGHTS, load_into, read_weights, write_weights
from medgen.codecs.adapters import adapt_autoencoder
from medgen.codecs.autoencoder import Autoencoder
from medgen.disk import write_bytes
from medgen.document import dump_yaml, read_yaml
from medgen.errors import CheckpointError, OutputError, did_you_mean
from medgen.types import CondSpec, LatentSpec, Schema

LARGEST = 32 * 2**30
"""Bytes of a file; no network that fits here is larger."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderFacts:
    """What the weights of an autoencoder do not tell.

    Args:
        size: of the images that it is to encode, in voxels.
        groups: of its norms (`norm_num_groups`).
        intensities: what it was trained on: [0, 1] ("unit") or [-1, 1] ("signed").
        window: the intensities (HU for CT) that the ends of that range stand for.
        scale: what its latents are multiplied by for a generator (`scale_factor`); None measures
            shift and scale on the studies of the first run that uses it.
    """

    size: tuple[int, ...]
    groups: int = 32
    intensities: Literal["unit", "signed"] = "unit"
    window: tuple[float, float] | None = None
    scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class UNetFacts:
    """What the weights of a diffusion U-Net do not tell, and the conditions to fix in it.

    Args:
        groups: of its norms (`norm_num_groups`).
        head: channels of an attention head (`num_head_channels`).
        time: "rectified_flow" (timesteps from 1000, noise, to 0) or "ddpm" (noising steps).
        label: the class to fix, where it has classes.
        spacing: mm to fix, where it reads a spacing.
        top_region_index: to fix, where it reads one.
        bottom_region_index: to fix, where it reads one.
    """

    groups: int = 32
    head: int = 8
    time: Time = "rectified_flow"
    label: int | None = None
    spacing: tuple[float, ...] | None = None
    top_region_index: tuple[float, ...] | None = None
    bottom_region_index: tuple[float, ...] | None = None


FACTS = {"autoencoder": AutoencoderFacts, "unet": UNetFacts}
"""What can be imported, and what has to be told about it."""


def facts_of(kind: str, told: Sequence[str]) -> AutoencoderFacts | UNetFacts:
    """Facts of a kind from lines "key=value" with a YAML value.

    Raises:
        CheckpointError: the kind cannot be imported, or a line is wrong.
    """
    if kind not in FACTS:
        raise CheckpointError(
            f"kind: nothing here takes a '{kind}'; what fits is {' or '.join(FACTS)}: MONAI's "
            "AutoencoderKL or DiffusionModelUNet, of core, monai-generative or MAISI"
        )
    facts, given = FACTS[kind], {}
    names = [field.name for field in fields(facts)]
    for line in told:
        key, sign, text = line.partition("=")
        if not sign or key not in names:
            raise CheckpointError(f"--set {line}: expected KEY=VALUE. {did_you_mean(key, names)}")
        given[key] = read_yaml(text, f"--set {line}").value
    try:
        return facts(**registry.from_plain(facts, given))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"--kind {kind}: {error}") from None


def import_checkpoint(file: Path, out: Path, facts: AutoencoderFacts | UNetFacts) -> str:
    """Write another library's weights as a checkpoint; returns one sentence about it.

    Args:
        file: .safetensors, or .pt and the like, of which only tensors are read.
        out: a new or empty folder.
        facts: what network it is, and what its weights do not tell.

    Raises:
        CheckpointError: the file is unsafe, damaged, holds another network, or one that has no
            counterpart here.
        OutputError: the folder holds something or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: is not empty; choose another folder with --out")
    try:
        state = read_tensors(file)
        if isinstance(facts, AutoencoderFacts):
            kind, (section, weights, more) = "codec", _autoencoder(state, facts)
        else:
            kind, (section, weights, more) = "backbone", _unet(state, facts)
    except (CheckpointError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from None
    from medgen import __version__

    recipe = {
        "name": f"imported/{out.name}",
        "summary": f"{section['type']} imported from {file.name}",
        kind: section,
    }
    about = {"kind": kind, "recipe": json.dumps(recipe), "statistics": "{}"}
    write_bytes(out / RECIPE, dump_yaml(recipe).encode())
    digest = write_weights(out / WEIGHTS, weights, about | {"version": __version__} | more)
    numbers = sum(tensor.numel() for tensor in weights.values())
    return f"{kind} of {numbers / 1e6:.1f} M numbers, {section}, {digest[:19]}"


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Tensors by name of a file that another library wrote; nothing in it is run.

    Names lose the prefix that data-parallel training gives them.

    Raises:
        CheckpointError: it is missing, damaged, larger than allowed, holds more than tensors, or
            several networks.
    """
    if file.suffix == ".safetensors":
        found: Any = read_weights(file)[0]
    else:
        _check_archive(file)
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever its unpickler meets
            raise CheckpointError(
                f"not readable without running code that it may hold ({error}); save its "
                "state_dict() with safetensors.torch.save_file and import that"
            ) from None
    state = _only_network(found)
    if any(_larger_than_stored(tensor) for tensor in state.values()):
        raise CheckpointError("tensors claim more numbers than the file holds")
    prefix = "module."
    if all(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _check_archive(file: Path) -> None:
    """Refuse files that are no archive of torch, or whose parts would grow when they are read."""
    if not file.is_file():
        raise CheckpointError("there is no such file")
    size = file.stat().st_size
    if size > LARGEST:
        raise CheckpointError(f"holds {size:,} bytes, more than the {LARGEST:,} of any network")
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(
            f"is not an archive as torch.save writes it ({error}); load it where it came from and "
            "save its state_dict() with safetensors.torch.save_file"
        ) from None
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise CheckpointError("holds compressed parts, which torch.save does not write")
    if sum(part.file_size for part in parts) > size:
        raise CheckpointError(f"its parts claim more bytes than the {size:,} of the file")


def _larger_than_stored(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def _only_network(found: Any) -> dict[str, Tensor]:
    """The one table of tensors in what a file holds, at its top or one step below."""
    if not isinstance(found, dict):
        raise CheckpointError(f"expected a table of tensors, got a {type(found).__name__}")
    below = {key: value for key, value in found.items() if _is_network(value)}
    if _is_network(found) or (not below and any(isinstance(v, Tensor) for v in found.values())):
        return {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    if len(below) != 1:
        listed = ", ".join(map(str, below)) or "none"
        raise CheckpointError(
            f"expected the weights of one network, found {len(below)} tables of them ({listed}); "
            "save the one you want alone"
        )
    return dict(next(iter(below.values())))


def _is_network(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 1
        and all(isinstance(each, Tensor) and isinstance(key, str) for key, each in value.items())
    )


def _autoencoder(
    state: dict[str, Tensor], facts: AutoencoderFacts
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
    """Recipe section, weights and further metadata of an autoencoder."""
    known = {"groups": facts.groups, "intensities": facts.intensities}
    arguments, weights = adapt_autoencoder(state, known)
    channels = weights["net.encoder.blocks.0.conv.weight"].shape[1]
    axes = weights["net.encoder.blocks.0.conv.weight"].ndim - 2
    if len(facts.size) != axes:
        raise ValueError(f"size: expected {axes} sides, got {facts.size}")
    schema = Schema(size=facts.size, channels=channels, window=facts.window)
    codec = registry.build("codec", "autoencoder", arguments, schema=schema)
    assert isinstance(codec, Autoencoder)
    whitening = codec.whitening
    if facts.scale is not None:
        whitening.scale.fill_(1 / facts.scale)
        whitening.fitted.fill_(True)
    weights |= {f"whitening.{name}": value for name, value in whitening.state_dict().items()}
    load_into(codec, weights, "the network")
    about = {"schema": json.dumps(asdict(schema))}
    return {"type": "autoencoder", **arguments}, codec.state_dict(), about


def _unet(
    state: dict[str, Tensor], facts: UNetFacts
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
    """Recipe section, weights and further metadata of a U-Net."""
    vectors = {
        name: values
        for name in ("spacing", "top_region_index", "bottom_region_index")
        if (values := getattr(facts, name)) is not None
    }
    known = {"groups": facts.groups, "head": facts.head}
    arguments, weights = adapt_unet(
        state, known, time=facts.time, label=facts.label, vectors=vectors
    )
    first, last = weights["network.conv_in.conv.weight"], weights["network.out.2.conv.weight"]
    smallest = 2 ** (len(arguments["channels"]) - 1)
    latent = LatentSpec("continuous", (smallest,) * (first.ndim - 2), channels=len(last))
    cond = CondSpec(grid=first.shape[1] - len(last))
    backbone = registry.build("backbone", "unet", arguments, latent=latent, cond=cond)
    load_into(backbone, weights, "the network")
    about = {"latent": json.dumps(asdict(latent))}
    named = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    return {"type": "unet", **arguments}, named, about
