"""Every shipped recipe runs: its parts at a small size, on simulated studies."""

import json

import pytest
from toy_volumes import write

from medgen.checkpoint import read_metadata
from medgen.data.synthetic import SyntheticDataset
from medgen.pipeline import Run
from medgen.recipe import load_recipe, shipped

SMALL = {
    "unet": [
        "backbone.channels=[32, 32]",
        "backbone.attention=[false, false]",
        "backbone.blocks=1",
    ],
    "token_transformer": ["backbone.depth=1", "backbone.width=32", "backbone.heads=2"],
    "tokenizer": [
        "codec.channels=[8, 16]",
        "codec.vocab=16",
        "codec.train.images=32",
        "codec.train.batch=8",
        "codec.train.validate_every=32",
        "codec.train.checkpoint_every=32",
        "codec.train.autoencoder_warmup=16",
        "codec.losses={critic_channels: 8, perceptual: features}",
    ],
    "dit": ["backbone.depth=1", "backbone.width=32", "backbone.heads=2"],
    "autoencoder": [
        "codec.channels=[8, 16]",
        "codec.train.images=32",
        "codec.train.batch=8",
        "codec.train.validate_every=32",
        "codec.train.checkpoint_every=32",
        "codec.train.autoencoder_warmup=16",
        "codec.losses={critic_channels: 8, perceptual: features}",
    ],
    "generator": [
        "train.images=32",
        "train.batch=16",
        "train.warmup=16",
        "train.validate_every=32",
        "train.checkpoint_every=32",
        "sampler.steps=2",
        "sample.count=6",
        "sample.micro_batch=4",
    ],
}


SMALL["frame_tokenizer"], SMALL["frame_autoencoder"] = SMALL["tokenizer"], SMALL["autoencoder"]
SMALL["causal_tokenizer"] = ["codec.channels=[8, 8, 8]", *SMALL["tokenizer"][1:]]
SIZES = {
    "nnunet": (16, 16, 16),
    "simulated_ct": (16, 16, 16),
    "simulated_ecg": (128,),
    "simulated_echo": (8, 32, 32),
}
"""By reader; all others (32, 32)."""
CAUSAL = (9, 32, 32)
"""Of clips for a codec that compresses time but for the first frame."""


def size_of(name: str) -> tuple[int, ...]:
    """Of a study as it is drawn."""
    data = load_recipe(name).sections["data"]
    size = read_size(name)
    return size[1:] if "stills" in data else size


def read_size(name: str) -> tuple[int, ...]:
    """Of a study as it is read."""
    sections = load_recipe(name).sections
    if sections["codec"]["type"].startswith("causal"):
        return CAUSAL
    return SIZES.get(sections["data"]["type"], (32, 32))


def overrides_for(name: str) -> list[str]:
    sections = load_recipe(name).sections
    volumes = sections["data"]["type"] == "nnunet"
    chosen = [f"data.size={list(read_size(name))}"]
    chosen += SMALL.get(sections["codec"]["type"], [])
    if "backbone" in sections:
        chosen += SMALL[sections["backbone"]["type"]] + SMALL["generator"]
        if sections["backbone"].get("factorised"):
            chosen.append("backbone.depth=2")
    if "weak" in sections.get("guidance", {}):
        chosen += [f"guidance.weak.{c}" for c in SMALL["unet"]] + ["guidance.weak.images=32"]
    if "first_frame" in sections:
        inner = SMALL["unet"] + [c for c in SMALL["generator"] if "sample." not in c]
        chosen += [f"first_frame.{each}" for each in [*inner, "sample.micro_batch=4"]]
    data = sections["data"]
    if data["type"].startswith("simulated"):
        slow = ["data.frames_per_second=8"] if "frames_per_second" in data else []
        slow += ["data.spacing=[18, 18, 18]"] if data["type"] == "simulated_ct" else []
        return [*chosen, *slow, "data.count=40"]
    if not volumes and data.get("mask_classes"):
        chosen.append("data.mask_classes=[background, lung, heart]")
    if data.get("findings"):
        chosen.append("data.findings=[cardiomegaly, effusion]")
    return chosen


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_recipe_trains_and_draws(name, simulated_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("medgen.codecs.health.Health.require", lambda self: self)
    recipe = load_recipe(name, overrides_for(name))
    volumes = recipe.sections["data"]["type"] == "nnunet"
    root = write(tmp_path / "volumes", cases=10) if volumes else simulated_folder
    job = Run(recipe, tmp_path / "run", data_root=root, device="cpu")
    assert "studies" in job.describe()
    job.train()
    assert read_metadata(job.out)["kind"] == recipe.kind
    if recipe.kind == "codec":
        return
    drawn = SyntheticDataset(job.synthesize())
    assert len(drawn) == 6
    channels = 12 if recipe.sections["data"]["type"] == "simulated_ecg" else 1
    assert drawn[0].image.shape == (1, channels, *size_of(name))
    asks_for_masks = any(p["type"] == "mask" for p in recipe.sections["conditioner"].values())
    assert (drawn[0].mask is not None) == asks_for_masks
    about = json.loads((job.out / "synthetic" / "dataset.json").read_text())
    assert about["recipe"] == name
