"""Attention: the one door to its kernels (PyTorch's fused, xformers', and plain arithmetic)."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from medgen.errors import DeviceError, did_you_mean

Backend = Literal["auto", "sdpa", "xformers", "math"]
VARIABLE = "MEDGEN_ATTENTION"
"""Environment variable that names the backend where neither an argument nor a context does."""

_chosen: ContextVar[Backend | None] = ContextVar("medgen_attention", default=None)
_warned: set[str] = set()
_XFORMERS_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_LARGEST_HEAD = 256


def attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m d"],
    *,
    mask: Bool[Tensor, "... n m"] | Float[Tensor, "... n m"] | None = None,
    causal: bool = False,
    scale: float | None = None,
    backend: Backend | None = None,
    strict: bool = False,
) -> Float[Tensor, "b h n d"]:
    """Scaled dot-product attention; a query that may attend to nothing gives zeros.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: broadcasts to (b h n m); Boolean: True = attend, floating: added to the scores.
        causal: query i attends to keys 0 ... i only, together with `mask`.
        scale: factor of the scores; None means d ** -0.5.
        backend: the kernel; None means the context's, else the environment's, else "auto" (SDPA).
        strict: raise where the backend does not apply, instead of falling back to SDPA.

    Raises:
        ValueError: unknown backend.
        DeviceError: `strict`, and the backend does not apply; or the environment names an unknown
            backend.

    Source: Vaswani et al. 2017, arXiv 1706.03762, eq. 1.
    """
    name = _resolve(backend)
    factor = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    if name == "math":
        return _math(q, k, v, _merge(mask, causal, q, k), factor)
    if name == "xformers":
        reason = _obstacle(q, v)
        if reason is None:
            return _xformers(q, k, v, mask, causal, factor)
        if strict:
            raise DeviceError(f"attention backend 'xformers' does not apply: {reason}")
        _warn_once(reason)
    if mask is not None and causal:
        mask, causal = _merge(mask, causal, q, k), False
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=factor
    )


@contextlib.contextmanager
def attention_backend(name: Backend) -> Iterator[None]:
    """Every `attention` call inside uses this backend, in this thread or task only.

    Raises:
        ValueError: unknown backend.
    """
    token = _chosen.set(_known(name))
    try:
        yield
    finally:
        _chosen.reset(token)


def resolved_backend(device: torch.device | str, backend: Backend | None = None) -> str:
    """The kernel `attention` uses on a device, for the record: "sdpa", "xformers" or "math"."""
    name = _resolve(backend)
    if name != "xformers":
        return name
    unusable = torch.device(device).type != "cuda" or isinstance(_import_xformers(), str)
    return "sdpa" if unusable else "xformers"


def _known(name: str) -> Backend:
    if name not in get_args(Backend):
        raise ValueError(
            f"unknown attention backend '{name}'. {did_you_mean(name, get_args(Backend))}"
        )
    return cast(Backend, name)


def _resolve(backend: Backend | None) -> Literal["sdpa", "xformers", "math"]:
    name = _known(backend) if backend is not None else _chosen.get()
    if name is None:
        try:
            name = _known(os.environ.get(VARIABLE) or "auto")
        except ValueError as error:
            raise DeviceError(f"environment variable {VARIABLE}: {error}") from None
    return "sdpa" if name == "auto" else name


def _merge(mask: Tensor | None, causal: bool, q: Tensor, k: Tensor) -> Tensor | None:
    """The mask with the causal triangle in it."""
    if not causal:
        return mask
    triangle = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    if mask is None:
        return triangle
    return mask & triangle if mask.dtype == torch.bool else mask.masked_fill(~triangle, -math.inf)


def _math(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = (q @ k.transpose(-2, -1)).float() * scale  # b h n m
    if mask is None:
        return scores.softmax(dim=-1).to(v.dtype) @ v
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    alone = (scores == -math.inf).all(dim=-1, keepdim=True)
    weights = scores.masked_fill(alone, 0.0).softmax(dim=-1).masked_fill(alone, 0.0)
    return weights.to(v.dtype) @ v


def _import_xformers() -> Any:
    """The module `xformers.ops`, or the reason why it cannot be imported."""
    try:
        return importlib.import_module("xformers.ops")
    except (ImportError, OSError) as error:
        return f"it cannot be imported ({error}); install medgen[gpu]"


def _obstacle(q: Tensor, v: Tensor) -> str | None:
    """Why xformers does not apply to these tensors; None if it does."""
    head = q.shape[-1]
    if q.device.type != "cuda":
        return f"it runs on CUDA only, the tensors are on {q.device.type}"
    if q.dtype not in _XFORMERS_DTYPES:
        return f"it takes float16, bfloat16 and float32, not {str(q.dtype).removeprefix('torch.')}"
    if head % 8 or head > _LARGEST_HEAD or v.shape[-1] != head:
        return f"it takes heads of a multiple of 8 up to {_LARGEST_HEAD} channels, not {head}"
    operators = _import_xformers()
    return operators if isinstance(operators, str) else None


def _xformers(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> Tensor:
    operators = _import_xformers()
    bias = operators.LowerTriangularMask() if causal and mask is None else None
    if mask is not None:
        bias = _aligned_bias(cast(Tensor, _merge(mask, causal, q, k)), q, k)
    sides = [x.to(v.dtype).transpose(1, 2) for x in (q, k, v)]  # b n h d
    out = operators.memory_efficient_attention(*sides, attn_bias=bias, scale=scale).transpose(1, 2)
    if mask is None or mask.dtype != torch.bool:
        return out
    reachable = _merge(mask, causal, q, k)
    return out * cast(Tensor, reachable).any(dim=-1, keepdim=True)


def _aligned_bias(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """An additive (b h n m) bias; xformers needs its rows stored padded to a multiple of 8."""
    keys = k.shape[-2]
    shape = (*q.shape[:-1], keys)
    if mask.dtype == torch.bool:
        lowest = torch.finfo(q.dtype).min
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, lowest)
    padded = functional.pad(mask.to(q.dtype).expand(shape), (0, -keys % 8))
    return padded[..., :keys]


def _warn_once(reason: str) -> None:
    if reason in _warned:
        return
    _warned.add(reason)
    text = f"attention backend 'xformers' does not apply, using 'sdpa': {reason}"
    warnings.warn(text, RuntimeWarning, stacklevel=3)
