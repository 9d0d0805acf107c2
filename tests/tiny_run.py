"""A real but tiny generator and its studies, and a run of it as a program."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from medgen.backbones.dit import DiT
from medgen.codecs.pixels import Pixels
from medgen.conditioners.joint import JointConditioner
from medgen.conditioners.label import LabelConditioner
from medgen.model import GenerativeModel
from medgen.objectives.flow_matching import FlowMatching
from medgen.samplers.flows import AB2
from medgen.samplers.guidance import NoGuidance
from medgen.settings import TrainSettings
from medgen.training.generator import TrainingData, TrainResult, train_generator
from medgen.types import Batch, Schema

SCHEMA = Schema(size=(8, 8), findings=("left", "right"), exclusive=True)
SETTINGS = TrainSettings(
    images=320,
    batch=8,
    lr=1e-3,
    warmup=40,
    ema_halflife=100,
    checkpoint_every=40,
    validate_every=160,
    snapshots=4,
)


def build(seed: int = 0, *, dropout: float = 0.0) -> GenerativeModel:
    """A model with weights of a seed; the backbone's last layer is not zero, so all parts learn."""
    torch.manual_seed(seed)
    codec = Pixels(SCHEMA)
    conditioner = JointConditioner({"finding": LabelConditioner(SCHEMA, width=16)})
    backbone = DiT(
        codec.latent, conditioner.spec, patch=2, depth=1, width=32, heads=2, dropout=dropout
    )
    for parameter in backbone.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return GenerativeModel(
        SCHEMA,
        codec,
        conditioner,
        backbone,
        objective=FlowMatching(),
        sampler=AB2(steps=4),
        guidance=NoGuidance(),
        dropout=0.1,
    )


def studies(count: int = 44, seed: int = 1) -> TrainingData:
    """Bright left or right halves under noise; the finding says which."""
    rng = torch.Generator().manual_seed(seed)
    side = torch.randint(2, (count,), generator=rng)
    images = torch.randn(count, 1, 8, 8, generator=rng) * 0.1
    images[side == 0, :, :, :4] += 1
    images[side == 1, :, :, 4:] += 1
    label = torch.nn.functional.one_hot(side, 2)
    return TrainingData(images, Batch(label=label), flipped=images.flip(-1))


def run(out: Path, settings: TrainSettings = SETTINGS, **changes: object) -> TrainResult:
    """Train the tiny generator into a folder."""
    return train_generator(
        changes.pop("model", None) or build(),
        studies(),
        studies(12, seed=2),
        settings,
        out,
        metadata={"kind": "generator"},
        device="cpu",
        progress=False,
        **changes,
    )


def main() -> None:
    """Run as a program, which other tests kill or start twice."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=SETTINGS.images)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = replace(SETTINGS, images=arguments.images)
    run(arguments.out, settings)


if __name__ == "__main__":
    main()
