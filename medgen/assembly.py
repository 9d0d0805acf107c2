"""Recipes and checkpoints to built objects."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from medgen import registry
from medgen.checkpoint import (
    CARD,
    FIRST_FRAME,
    RECIPE,
    WEAK,
    WEIGHTS,
    find_checkpoint,
    load_grown,
    load_into,
    read_metadata,
    read_weights,
    write_weights,
)
from medgen.conditioners.joint import JointConditioner
from medgen.data.joint import Joint
from medgen.data.stills import Stills
from medgen.disk import write_bytes
from medgen.document import Document, dump_yaml
from medgen.errors import CheckpointError, DataError, OutputError, RecipeError
from medgen.model import GenerativeModel
from medgen.protocols import Codec, Dataset
from medgen.recipe import Recipe, check
from medgen.settings import ProveSettings, TrainSettings
from medgen.types import Schema

CONTROL = "backbone.control."
"""Tensors of a ControlNet begin so."""


def build_dataset(section: dict[str, Any], root: Path | None) -> Dataset:
    """The dataset of a recipe's `data` section.

    Args:
        section: the checked section; with `stills`, images that are so many frames of each clip.
        root: where data lives on this machine; None means the folder named by MEDGEN_DATA.

    Raises:
        DataError: the reader needs a folder and none was given.
    """
    reader = registry.find("data", section["type"])
    if "root" in registry.arguments(reader):
        named = os.environ.get("MEDGEN_DATA")
        root = root or (Path(named) if named else None)
        if root is None:
            raise DataError(
                f"data '{section['type']}' reads studies from a folder: give it with --data-root, "
                "or set MEDGEN_DATA"
            )
        if not root.is_dir():
            raise DataError(f"{root}: there is no such folder of studies")
    around = ("joint", "stills")
    settings = {k: v for k, v in _arguments(section).items() if k not in around}
    dataset = registry.build("data", section["type"], settings, root=root)
    return Stills(dataset, section["stills"]) if "stills" in section else dataset


def taught(dataset: Dataset, section: dict[str, Any]) -> Dataset:
    """What a generator learns of a dataset: with `joint`, images that carry their masks."""
    return Joint(dataset) if section.get("joint") else dataset


def build_codec(section: dict[str, Any], schema: Schema) -> Codec:
    """The codec of a checked `codec` section, its weights fresh."""
    left_out = ("train", "losses", "checkpoint")
    settings = {k: v for k, v in _arguments(section).items() if k not in left_out}
    return registry.build("codec", section["type"], settings, schema=schema)


def build_model(sections: dict[str, Any], schema: Schema, codec: Codec) -> GenerativeModel:
    """The generative model of checked recipe sections, its weights fresh.

    Args:
        sections: all sections of a generator's recipe.
        schema: what the studies hold.
        codec: ready to use; its latents decide the backbone's shape.
    """
    conditioners = {
        name: registry.build(
            "conditioner", part["type"], _arguments(part), schema=schema, latent=codec.latent
        )
        for name, part in sections["conditioner"].items()
    }
    conditioner = JointConditioner(conditioners)
    parts = {
        kind: registry.build(
            kind, sections[kind]["type"], _arguments(sections[kind]), latent=codec.latent
        )
        for kind in ("objective", "sampler")
    }
    backbone = registry.build(
        "backbone",
        sections["backbone"]["type"],
        _arguments(sections["backbone"]),
        latent=codec.latent,
        cond=conditioner.spec,
        causal=getattr(parts["objective"], "causal", False),
    )
    left_out = ("dropout", "weak")
    guidance = {k: v for k, v in _arguments(sections["guidance"]).items() if k not in left_out}
    return GenerativeModel(
        schema,
        codec,
        conditioner,
        backbone,
        objective=parts["objective"],
        sampler=parts["sampler"],
        guidance=registry.build("guidance", sections["guidance"]["type"], guidance),
        dropout=sections["guidance"]["dropout"],
        micro_batch=sections["sample"]["micro_batch"],
    )


def from_pretrained(
    path: str | Path,
    *,
    device: str = "cpu",
    sampler: Mapping[str, Any] | None = None,
    guidance: Mapping[str, Any] | None = None,
    first_frame: Mapping[str, Any] | None = None,
) -> GenerativeModel:
    """The generative model of a checkpoint's folder, or of a run's.

    Args:
        path: a folder with model.safetensors, or the name of a shipped checkpoint.
        device: where to put it.
        sampler: another `sampler` section than that of the recipe, such as {"type": "heun"}.
        guidance: another `guidance` section, such as {"type": "classifier_free", "scale": 2.0}.
        first_frame: other `sampler` and `guidance` sections of its generator of first frames.

    Raises:
        CheckpointError: there is none, it is damaged, or it holds no generator.
        RecipeError: sampler or guidance are wrong.
    """
    folder = find_checkpoint(path)
    others = {"sampler": sampler, "guidance": guidance}
    asked = {name: dict(section) for name, section in others.items() if section is not None}
    model = _generator(folder / WEIGHTS, asked)
    if model.guided_by_weak:
        model.weak = _weak_model(folder / WEAK, model).to(device).eval()
    if "first_frame" in model.recipe:
        model.first_frame = _generator(folder / FIRST_FRAME, first_frame or {}).to(device).eval()
    return model.to(device).eval()


def _generator(file: Path, asked: Mapping[str, Any]) -> GenerativeModel:
    """The generative model of a file of weights, sampled as its recipe says or as is asked."""
    if not file.is_file():
        raise CheckpointError(f"{file.parent}: its recipe needs {file.name}, which is not there")
    state, metadata = read_weights(file)
    if metadata.get("kind") != "generator":
        raise CheckpointError(f"{file}: holds a {metadata.get('kind')}, expected a generator")
    held = json.loads(metadata["recipe"])
    sections = check(Document(held | {part: dict(asked[part]) for part in asked})).sections
    schema = Schema.from_dict(json.loads(metadata["schema"]))
    model = build_model(sections, schema, build_codec(sections["codec"], schema))
    load_into(model, state, source=str(file))
    model.source = metadata["digest"]
    model.recipe = sections
    model.statistics = json.loads(metadata.get("statistics", "{}"))
    return model


def _weak_model(path: Path, strong: GenerativeModel) -> GenerativeModel:
    """The weak model of autoguidance, on the codec of the strong one."""
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: autoguidance needs {path.name}, which is not there")
    state, metadata = read_weights(path)
    weak = build_model(json.loads(metadata["recipe"]), strong.schema, strong.codec)
    load_into(weak, state, source=str(path))
    weak.source = metadata["digest"]
    return weak


def load_codec(path: str | Path) -> Codec:
    """The codec of a checkpoint: a codec's own, or the one inside a generator.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    folder = find_checkpoint(path)
    if read_metadata(folder).get("kind") == "generator":
        return from_pretrained(folder).codec
    state, metadata = read_weights(folder)
    if metadata.get("kind") != "codec":
        raise CheckpointError(f"{folder}: holds a {metadata.get('kind')}, expected a codec")
    schema = Schema.from_dict(json.loads(metadata["schema"]))
    codec = build_codec(json.loads(metadata["recipe"])["codec"], schema)
    load_into(codec, state, source=str(folder))
    return codec.eval()


def start_from(
    model: GenerativeModel, path: str, say: Callable[[str], None], *, freeze: bool = False
) -> str:
    """Give conditioner and backbone the weights of another generator, as far as they fit.

    An imported backbone is taken as it is: it says nothing of a codec or of conditions.
    A ControlNet that the other did not have becomes a copy of the network that it controls.

    Args:
        model: freshly built, on its own codec.
        path: the other generator's checkpoint, or an imported backbone's.
        say: told one sentence about what was taken.
        freeze: what was copied does not learn.

    Returns:
        Content digest of the checkpoint.

    Raises:
        CheckpointError: it is absent, damaged, a codec's, was trained on latents of another codec,
            most of the backbone does not fit, or nothing is left to learn.
    """
    folder = find_checkpoint(path)
    state, metadata = read_weights(folder)
    if metadata.get("kind") not in ("generator", "backbone"):
        raise CheckpointError(f"{folder}: holds a {metadata.get('kind')}, expected a generator")
    trained = model.codec.named_parameters() if metadata["kind"] == "generator" else ()
    for name, parameter in trained:
        old = state.get(f"codec.{name}")
        if old is None or old.shape != parameter.shape or not torch.equal(old.float(), parameter):
            raise CheckpointError(
                f"{folder}: was trained on latents of another codec; take its codec too, with "
                f"codec: {{checkpoint: {path}}}"
            )
    own = {name: tensor for name, tensor in state.items() if not name.startswith("codec.")}
    learning = torch.nn.ModuleDict({"conditioner": model.conditioner, "backbone": model.backbone})
    found = load_grown(learning, own)
    base = [name for name in learning.state_dict() if _of_base(name)]
    fresh = sum(_of_base(name) for name in found["fresh"])
    if 2 * fresh > len(base):
        raise CheckpointError(
            f"{folder}: most of its weights do not fit the backbone of the recipe; give both the "
            "same backbone, or leave train.init_from out"
        )
    control: Any = getattr(model.backbone, "control", None)
    if control is not None and not any(name.startswith(CONTROL) for name in own):
        control.copy_from(model.backbone)
    if freeze:
        _freeze(learning, found["copied"], folder)
    say(
        f"Starting from {folder}: {len(found['copied'])} tensors copied, "
        f"{len(found['grown'])} grown, {len(found['fresh'])} fresh"
    )
    return metadata["digest"]


def start_codec_from(codec: Codec, path: str, say: Callable[[str], None]) -> str:
    """Give a codec the weights of another one; its shift and scale are measured anew.

    Args:
        codec: freshly built.
        path: the other codec's checkpoint, or an imported one's.
        say: told one sentence about what was taken.

    Returns:
        Content digest of the checkpoint.

    Raises:
        CheckpointError: it is absent, damaged, no codec's, or its weights do not all fit.
    """
    folder = find_checkpoint(path)
    state, metadata = read_weights(folder)
    if metadata.get("kind") != "codec":
        raise CheckpointError(f"{folder}: holds a {metadata.get('kind')}, expected a codec")
    load_into(codec, state, source=str(folder))
    say(f"Starting from {folder}: {len(state)} tensors copied")
    return metadata["digest"]


def _of_base(name: str) -> bool:
    """Whether a tensor is the backbone's own, not that of a ControlNet beside it."""
    return name.startswith("backbone.") and not name.startswith(CONTROL)


def _freeze(learning: torch.nn.Module, names: list[str], folder: Path) -> None:
    """Let the tensors of these names learn no more."""
    parameters = dict(learning.named_parameters())
    for name in set(names) & parameters.keys():
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise CheckpointError(
            f"{folder}: train.freeze leaves nothing to learn, the recipe's model is the same; add "
            "a condition or a ControlNet, or leave train.freeze out"
        )


def checkpoint_metadata(
    kind: str, recipe: Recipe, schema: Schema, statistics: dict[str, Any], *, start: str = ""
) -> dict[str, str]:
    """What a checkpoint says about itself.

    Args:
        kind: "generator" or "codec".
        recipe: that trains it.
        schema: of the training studies.
        statistics: of their labels and scalars; empty for a codec.
        start: digest of the checkpoint that training started from; empty for fresh weights.
    """
    from medgen import __version__

    sections = recipe.sections
    if start:
        # The path of this machine says nothing to others; the digest does.
        sections = {**sections, "train": {**sections["train"], "init_from": start}}
    started = {"start": start} if start else {}
    return started | {
        "kind": kind,
        "recipe": json.dumps(sections),
        "recipe_digest": recipe.digest,
        "schema": json.dumps(asdict(schema)),
        "statistics": json.dumps(statistics),
        "version": __version__,
    }


def train_settings(section: dict[str, Any]) -> TrainSettings:
    """A checked `train` section as settings."""
    return TrainSettings(**registry.from_plain(TrainSettings, section))


def export_checkpoint(run: str | Path, out: Path, *, half: bool = False) -> str:
    """Write weights, recipe and card of a run into a new folder; returns the weights' digest.

    The weak model goes with them where the recipe guides by it, and the generator of first frames.

    Args:
        run: a checkpoint's or run's folder.
        out: a new or empty folder.
        half: store floating-point weights in 16 bits; they are read back as 32.

    Raises:
        CheckpointError: there is no checkpoint.
        OutputError: the folder holds something or cannot be written.
    """
    folder = find_checkpoint(run)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: is not empty; choose another folder with --out")
    sections = json.loads(read_metadata(folder)["recipe"])
    if (folder / CARD).is_file():
        write_bytes(out / CARD, (folder / CARD).read_bytes())
    write_bytes(out / RECIPE, dump_yaml(sections).encode())
    if sections.get("guidance", {}).get("type") == "autoguidance":
        _export_weights(folder / WEAK, out / WEAK, half)
    if "first_frame" in sections:
        _export_weights(folder / FIRST_FRAME, out / FIRST_FRAME, half)
    return _export_weights(folder, out / WEIGHTS, half)


def _export_weights(path: Path, out: Path, half: bool) -> str:
    """Copy weights, perhaps in 16 bits; returns their digest."""
    state, metadata = read_weights(path)
    if half:
        state = {
            name: tensor.half() if tensor.is_floating_point() and tensor.ndim else tensor
            for name, tensor in state.items()
        }
    return write_weights(out, state, metadata)


def prove_settings(section: dict[str, Any] | None, asked: dict[str, Any]) -> ProveSettings:
    """A checked `prove` section as settings, what a user asks for laid over it.

    Raises:
        RecipeError: neither says which task.
    """
    merged = {**(section or {}), **asked}
    if "task" not in merged:
        raise RecipeError(
            "the recipe proves nothing; say --task classification, segmentation or regression"
        )
    return ProveSettings(**registry.from_plain(ProveSettings, merged))


def _arguments(section: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != "type"}
