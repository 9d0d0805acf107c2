"""The sections of a recipe that are not components: how to train, what to sample and prove.

Their fields are the keys of the recipe's sections `train`, `sample` and `prove`. Lengths are in
images seen, never epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskName = Literal["classification", "segmentation", "regression"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a generator or a codec is trained.

    Args:
        images: length of the run, in images seen.
        batch: images an optimiser step, over all processes.
        micro_batch: images a forward pass on one process; None means the whole share of `batch`.
        lr: peak learning rate of AdamW.
        warmup: images over which the learning rate rises linearly.
        decay: "constant", or "cosine" to zero over the run.
        weight_decay: decoupled weight decay.
        clip: largest norm of the gradient.
        ema_halflife: half-life of the averaged weights, in images.
        precision: arithmetic of the forward pass; "auto" is bf16 where the device is faster in it,
            else fp32, so a run repeats its bits on machines of one kind only.
        seed: all randomness of the run derives from it.
        flip: mirror images left to right, every second time; never where a label names a side.
        checkpoint_every: images between saved states.
        validate_every: images between validations and previews.
        autoencoder_warmup: images before a codec's adversary starts; ignored by generators.
        init_from: checkpoint whose weights a generator starts from, by path or shipped name; None
            means fresh weights.
        freeze: what `init_from` gave stays as it is, and only what is new beside it learns, such as
            a ControlNet, the SPADEs of a mask or another condition; ignored by codecs.
        snapshots: how often two power-function averages of the weights are kept, from which an
            average of any length can be rebuilt after training; 0 keeps none.
        stop_when_memorizing: for small data: end the run when the loss on held-out studies rises
            while that on training studies falls on, and keep the averaged weights of the lowest
            held-out loss; ignored by codecs.
    """

    images: int
    batch: int = 64
    micro_batch: int | None = None
    lr: float = 2e-4
    warmup: int = 5_000
    decay: Literal["constant", "cosine"] = "constant"
    weight_decay: float = 0.0
    clip: float = 1.0
    ema_halflife: int = 20_000
    precision: Precision = "fp32"
    seed: int = 0
    flip: bool = False
    checkpoint_every: int = 20_000
    validate_every: int = 20_000
    autoencoder_warmup: int = 0
    init_from: str | None = None
    freeze: bool = False
    snapshots: int = 0
    stop_when_memorizing: bool = False


@dataclass(frozen=True, kw_only=True)
class WeakSettings:
    """How the weak model of autoguidance is trained: as the model itself, but shorter.

    Args:
        images: length of its run, in images seen.
    """

    images: int


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """What the sample factory draws.

    Args:
        count: number of samples.
        labels: "balanced", or "prevalence" to follow the training split.
        micro_batch: samples a forward pass; part of the determinism contract: another value draws
            another dataset.
        seed: seeds of samples derive from it.
        budget: how often a sample may be drawn until every filter lets it pass.
    """

    count: int = 256
    labels: Literal["balanced", "prevalence"] = "balanced"
    micro_batch: int = 16
    seed: int = 0
    budget: int = 5


@dataclass(frozen=True, kw_only=True)
class ProveSettings:
    """The experiment that answers whether synthetic studies help.

    Args:
        task: "classification" of the findings, "segmentation" of the masks or "regression" of the
            scalars.
        consumer: the network: "medgen" is a small one of its own, else LIBRARY:NAME such as
            torchvision:resnet18, timm:NAME, smp:Unet or monai:UNet, with random weights.
        fractions: shares of the training patients that the consumer may use.
        ratios: synthetic studies for every real one in the mixed arm.
        repeats: paired repeats of every arm.
        controls: further arms: "augmentation" (real studies under strong classical augmentation),
            "pretraining" (half the steps on synthetic studies, then half on real ones) and
            "randomized" (images of random contrast painted from real training masks, instead of
            the generator's samples).
        steps: optimiser steps of every arm, equal for all.
        batch: studies an optimiser step of the consumer.
        seed: all randomness of the experiment derives from it.
    """

    task: TaskName
    consumer: str = "medgen"
    fractions: tuple[float, ...] = (1.0,)
    ratios: tuple[float, ...] = (1.0,)
    repeats: int = 3
    controls: tuple[Literal["augmentation", "pretraining", "randomized"], ...] = ()
    steps: int = 300
    batch: int = 32
    seed: int = 0
