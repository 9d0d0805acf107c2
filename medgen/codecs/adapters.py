"""Weights of MONAI's KL autoencoders, today's, older ones and MAISI's, as `Autoencoder`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from medgen.errors import CheckpointError
from medgen.nn.monai import current_names

Stage = tuple[str, int]
"""What an encoder's block is, and how many channels it makes."""


def adapt_autoencoder(
    state: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments and weights of an `Autoencoder` that computes what the original does.

    Channels, blocks, attention and axes are read from the weights' shapes.

    Args:
        state: weights of `AutoencoderKL`, of MONAI core or monai-generative, or of
            `AutoencoderKlMaisi`.
        settings: `groups` and `intensities`, which weights do not tell.

    Raises:
        CheckpointError: the weights are not such a network's, or `Autoencoder` has no counterpart
            of a part of it.
    """
    maisi = "encoder.blocks.0.conv.conv.weight" in state
    named = current_names(state)
    if "encoder.blocks.0.conv.weight" not in named or "quant_conv_mu.conv.weight" not in named:
        raise CheckpointError(
            "expected the weights of a KL autoencoder of MONAI, with encoder.blocks.0 and "
            f"quant_conv_mu; got {', '.join(list(state)[:3]) or 'nothing'}, ..."
        )
    if any(".deconv." in name for name in named):
        raise CheckpointError(
            "this decoder upsamples by transposed convolutions (use_convtranspose), which the "
            "autoencoder here does not; networks with use_convtranspose=False fit"
        )
    levels, middle = _levels(_stages(named))
    blocks = {count for _, count, _ in levels}
    if len(blocks) > 1:
        raise CheckpointError(
            f"levels have {[count for _, count, _ in levels]} residual blocks, expected as many in "
            "each"
        )
    attention = tuple(attends for _, _, attends in levels)
    arguments = {
        "channels": [width for width, _, _ in levels],
        "latent_channels": len(named["quant_conv_mu.conv.weight"]),
        "blocks": blocks.pop(),
        "attention": [*attention, middle] if any(attention) else middle,
        "upsampling": "linear" if maisi else "nearest",
        **settings,
    }
    return arguments, {f"net.{name}": tensor for name, tensor in named.items()}


def _stages(named: Mapping[str, Tensor]) -> list[Stage]:
    """The blocks of the encoder between its first convolution and its last norm."""
    blocks: dict[int, list[str]] = {}
    for name in named:
        if found := re.match(r"encoder\.blocks\.(\d+)\.(.+)", name):
            blocks.setdefault(int(found[1]), []).append(found[2])
    stages = []
    for index in sorted(blocks)[1:-2]:
        prefix = f"encoder.blocks.{index}"
        if "conv2.conv.weight" in blocks[index]:
            stages.append(("residual", len(named[f"{prefix}.conv2.conv.weight"])))
        elif "attn.to_q.weight" in blocks[index]:
            stages.append(("attention", len(named[f"{prefix}.attn.to_q.weight"])))
        elif "conv.conv.weight" in blocks[index]:
            stages.append(("down", len(named[f"{prefix}.conv.conv.weight"])))
        else:
            raise CheckpointError(f"{prefix}: a block of an unknown kind ({blocks[index][0]})")
    return stages


def _levels(stages: list[Stage]) -> tuple[list[tuple[int, int, bool]], bool]:
    """(channels, residual blocks, attends) of every level, and whether the middle attends."""
    kinds = [kind for kind, _ in stages]
    middle = kinds[-3:] == ["residual", "attention", "residual"]
    levels: list[tuple[int, int, bool]] = []
    width, count, attends = 0, 0, False
    for kind, channels in stages[: -3 if middle else None]:
        if kind == "down":
            levels.append((width, count, attends))
            count, attends = 0, False
        else:
            width = channels
            count += kind == "residual"
            attends |= kind == "attention"
    return [*levels, (width, count, attends)], middle
