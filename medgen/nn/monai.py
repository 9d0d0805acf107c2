"""Names of the weights of MONAI's networks: those of older versions as those of today."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_ATTENTION = re.compile(r"(?<!\.attn)\.(to_[qkv]|proj_attn)\.(weight|bias)$")
_DOUBLED = re.compile(r"\.conv\.conv\.(weight|bias)$")
_UPSAMPLING = re.compile(r"^((?:decoder\.blocks\.\d+|up_blocks\.\d+\.upsampler))\.conv\.conv\.")


def current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names that MONAI core gives them.

    Understood are monai-generative's names (attention's layers stand in its block, an upsampling's
    convolution is called `conv`), MAISI's (a convolution that splits its input wraps another), one
    layer for query, key and value, and attention without an output layer, which gets an identity.

    Source: `load_old_state_dict` of MONAI's `AutoencoderKL` and `DiffusionModelUNet` lists the
        renamings of monai-generative.
    """
    wrapped = "encoder.blocks.0.conv.conv.weight" in state
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if wrapped and not name.startswith(("quant_", "post_quant_")):
            name = _DOUBLED.sub(r".conv.\1", name)
        name = _UPSAMPLING.sub(r"\1.postconv.conv.", name)
        name = _ATTENTION.sub(lambda m: f".attn.{_LAYERS[m[1]]}.{m[2]}", name)
        if name.endswith((".attn.qkv.weight", ".attn.qkv.bias")):
            for layer, part in zip(("to_q", "to_k", "to_v"), tensor.chunk(3), strict=True):
                renamed[name.replace("qkv", layer)] = part
        else:
            renamed[name] = tensor
    for name, tensor in list(renamed.items()):
        if name.endswith(".attn.to_q.weight"):
            out = name.replace("to_q.weight", "out_proj")
            renamed.setdefault(f"{out}.weight", torch.eye(len(tensor), dtype=tensor.dtype))
            renamed.setdefault(f"{out}.bias", torch.zeros(len(tensor), dtype=tensor.dtype))
    return renamed


_LAYERS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "proj_attn": "out_proj"}
