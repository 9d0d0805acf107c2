"""Weights of MONAI's diffusion U-Nets, today's, older ones and MAISI's, as `UNet`.

Theirs counts time from data (0) to noise (1000), ours from noise (0) to data (1). An angle that
runs the other way is a rotation of its cosine and sine, so it is folded into the first layer that
reads them. Conditions that a vector carries (a class, MAISI's spacing and regions) are fixed: what
they add is folded into biases.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from medgen.errors import CheckpointError
from medgen.nn.blocks import TIME_SCALE
from medgen.nn.monai import current_names

Time = Literal["rectified_flow", "ddpm"]
_EMBEDDED = ("top_region_index", "bottom_region_index", "spacing")
"""Vectors that MAISI's networks embed, in the order of their embeddings."""


def adapt_unet(
    state: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    *,
    time: Time = "rectified_flow",
    label: int | None = None,
    vectors: Mapping[str, Sequence[float]] | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments and weights of a `UNet` that computes what the original does.

    Channels, blocks, attention and axes are read from the weights' shapes.

    Args:
        state: weights of `DiffusionModelUNet`, of MONAI core or monai-generative, or of
            `DiffusionModelUNetMaisi`.
        settings: `groups` and `head`, which weights do not tell.
        time: what the original's timesteps are: "rectified_flow" runs from 1000 (noise) to 0,
            "ddpm" counts noising steps from 0 to 999.
        label: the class to fix; where the network has classes.
        vectors: "spacing" (mm, three numbers) and "top_region_index", "bottom_region_index" (four
            each) to fix; where the network reads them.

    Raises:
        CheckpointError: the weights are not such a network's, a condition that it reads is not
            given, or `UNet` has no counterpart of a part of it.
    """
    named = {name: tensor.float() for name, tensor in current_names(state).items()}
    if "conv_in.conv.weight" not in named or "time_embed.0.weight" not in named:
        raise CheckpointError(
            "expected the weights of a diffusion U-Net of MONAI, with conv_in and time_embed; got "
            f"{', '.join(list(state)[:3]) or 'nothing'}, ..."
        )
    if any("transformer_blocks" in name for name in named):
        raise CheckpointError(
            "this U-Net attends to a context (with_conditioning=True), which ours does not; a "
            "network without a context fits, or with classes, spacing or a concatenated mask"
        )
    first = named["time_embed.0.weight"].double()
    named["time_embed.0.weight"] = _reverse_time(first, time).float()
    _fix_label(named, label)
    _fix_vectors(named, vectors or {})
    levels = _count(named, r"down_blocks\.(\d+)\.")
    down = [f"down_blocks.{level}" for level in range(levels)]
    blocks = [_count(named, rf"{re.escape(level)}\.resnets\.(\d+)\.") for level in down]
    if len(set(blocks)) > 1:
        raise CheckpointError(f"levels have {blocks} residual blocks, expected as many in each")
    residual = levels > 1 and "down_blocks.0.downsampler.conv1.conv.weight" in named
    arguments = {
        "channels": [len(named[f"{level}.resnets.0.conv1.conv.weight"]) for level in down],
        "blocks": blocks[0],
        "attention": [f"{level}.attentions.0.norm.weight" in named for level in down],
        "resample": "residual" if residual else "convolution",
        **settings,
    }
    return arguments, {f"network.{name}": tensor for name, tensor in named.items()}


def _reverse_time(weight: Tensor, time: Time) -> Tensor:
    """The layer that reads cosines and sines of S - 1000 t, as one that reads those of 1000 t."""
    half = weight.shape[1] // 2
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(half, dtype=weight.dtype) / half)
    turn = (TIME_SCALE if time == "rectified_flow" else TIME_SCALE - 1) * frequency
    cosine, sine, padding = weight.tensor_split((half, 2 * half), dim=1)
    return torch.cat(
        [
            cosine * turn.cos() + sine * turn.sin(),
            cosine * turn.sin() - sine * turn.cos(),
            padding,
        ],
        dim=1,
    )


def _fix_label(named: dict[str, Tensor], label: int | None) -> None:
    """Add the embedding of a class to that of the time."""
    classes = named.pop("class_embedding.weight", None)
    if classes is None:
        if label is not None:
            raise CheckpointError("label: this network has no classes; leave it out")
        return
    if label is None or not 0 <= label < len(classes):
        raise CheckpointError(
            f"this network has {len(classes)} classes; say which to keep, such as --set label=1"
        )
    named["time_embed.2.bias"] = named["time_embed.2.bias"] + classes[label]


def _fix_vectors(named: dict[str, Tensor], vectors: Mapping[str, Sequence[float]]) -> None:
    """Add what fixed vectors bring to every residual block to the bias of the block."""
    brought: list[Tensor] = []
    for kind in _EMBEDDED:
        layer = f"{kind}_layer"
        if f"{layer}.0.weight" not in named:
            if kind in vectors:
                raise CheckpointError(f"{kind}: this network reads none; leave it out")
            continue
        first, bias, second, last = (
            named.pop(f"{layer}.{part}") for part in ("0.weight", "0.bias", "2.weight", "2.bias")
        )
        if len(vectors.get(kind, ())) != first.shape[1]:
            raise CheckpointError(
                f"this network reads {kind}, {first.shape[1]} numbers; say which to keep, such as "
                f"--set {kind}=[{', '.join(['1.0'] * first.shape[1])}]"
            )
        value = torch.tensor(vectors[kind]) * 100  # MAISI's scripts scale them all so
        brought.append(second @ functional.silu(first @ value + bias) + last)
    if not brought:
        return
    fixed = functional.silu(torch.cat(brought))
    for name in [name for name in named if name.endswith("time_emb_proj.weight")]:
        width = named[name].shape[1] - len(fixed)
        own, rest = named[name].tensor_split((width,), dim=1)
        named[name] = own
        bias = name.replace("weight", "bias")
        named[bias] = named[bias] + rest @ fixed


def _count(named: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(found[1]) for name in named if (found := re.match(pattern, name)))
