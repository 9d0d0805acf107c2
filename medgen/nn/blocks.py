"""Blocks that backbones share: time and position embeddings, the three doors, adaLN-Zero."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from medgen.nn.attention import attention
from medgen.nn.nd import positions
from medgen.types import Conditioning, CondSpec

TIME_SCALE = 1000.0
"""Times in [0, 1] are stretched to the range that sinusoidal embeddings were made for."""


def timestep_embedding(t: Float[Tensor, "b"], width: int) -> Float[Tensor, "b d"]:
    """Cosines and sines of `TIME_SCALE` t at geometric frequencies from 1 to 1/10000.

    Source: Ho et al. 2020, arXiv 2006.11239, after Vaswani et al. 2017.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = (t.float() * TIME_SCALE)[:, None] * torch.exp(-math.log(10_000.0) * exponents)
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return functional.pad(embedding, (0, width % 2))


def mlp(width_in: int, width: int) -> nn.Sequential:
    """Linear, SiLU, linear: how times and condition vectors become modulation."""
    return nn.Sequential(nn.Linear(width_in, width), nn.SiLU(), nn.Linear(width, width))


def sincos_positions(size: Sequence[int], width: int) -> Float[Tensor, "n d"]:
    """Fixed embedding of the places of a grid: an equal share of sines and cosines for each axis.

    Channels that the axes cannot share evenly are zero.

    Source: Vaswani et al. 2017, arXiv 1706.03762; by axis as in Peebles & Xie 2022,
    arXiv 2212.09748.
    """
    half = width // (2 * len(size))
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half, dtype=torch.float64) / half)
    angles = positions(size).double()[..., None] * frequencies  # n axes half
    embedding = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return functional.pad(embedding, (0, width - embedding.shape[1])).float()


def rotary_angles(size: Sequence[int], head: int) -> Float[Tensor, "n d2"]:
    """Angles by which pairs of channels of a head turn at each place of a grid.

    Pairs are shared evenly between the axes; pairs left over do not turn.

    Source: Su et al. 2021, arXiv 2104.09864; by axis with base 100 as in Heo et al. 2024,
    arXiv 2403.13298.
    """
    each = head // 2 // len(size)
    frequencies = 100.0 ** (-torch.arange(each, dtype=torch.float32) / max(each, 1))
    angles = (positions(size)[..., None] * frequencies).flatten(1)
    return functional.pad(angles, (0, head // 2 - angles.shape[1]))


def rotate(
    x: Float[Tensor, "b h n d"], cos: Float[Tensor, "n d2"], sin: Float[Tensor, "n d2"]
) -> Float[Tensor, "b h n d"]:
    """Turn channel pairs (i, i + d/2) of every token by its angles."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def check_doors(spec: CondSpec, cond: Conditioning, size: Sequence[int] | None = None) -> None:
    """Refuse conditions that do not fit the doors a backbone was built with.

    Args:
        spec: what it was built for.
        cond: what it is given.
        size: of the latent, which a grid must have too; None is not checked.

    Raises:
        ValueError: a door is missing, was not built, or has another width or size.
    """
    given = {
        "vector": 0 if cond.vector is None else cond.vector.shape[-1],
        "tokens": 0 if cond.tokens is None else cond.tokens.shape[-1],
        "grid": 0 if cond.grid is None else cond.grid.shape[1],
    }
    for door, width in given.items():
        expected = getattr(spec, door)
        if width != expected:
            raise ValueError(
                f"the backbone was built for a {door} condition of width {expected}, got {width}; "
                "build it with the spec of the conditioner that encodes"
            )
    if cond.grid is not None and size is not None and cond.grid.shape[2:] != torch.Size(size):
        raise ValueError(
            f"expected a grid condition of the latent's size {tuple(size)}, got "
            f"{tuple(cond.grid.shape[2:])}"
        )


def modulate(
    x: Float[Tensor, "b n d"], shift: Float[Tensor, "b 1 d"], scale: Float[Tensor, "b 1 d"]
) -> Float[Tensor, "b n d"]:
    """Shift and scale, the identity when both are zero."""
    return torch.addcmul(x + shift, x, scale)


class RMSNorm(nn.Module):
    """Vectors divided by their root mean square, then weighted; in the type of the input.

    Args:
        width: channels of a vector.

    Source: Zhang & Sennrich 2019, arXiv 1910.07467.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Normalise the last axis."""
        return functional.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), eps=1e-6)


class Attention(nn.Module):
    """Multi-head attention of tokens to themselves or to a context.

    Args:
        width: channels of the tokens.
        heads: number of heads.
        context: channels of the context; None means self-attention.
        qk_norm: normalise queries and keys by their root mean square.
        dropout: share of the output channels dropped in training.

    Source: Vaswani et al. 2017, arXiv 1706.03762; query-key norm: Dehghani et al. 2023,
    arXiv 2302.05442.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        context: int | None = None,
        qk_norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width if context is None else context, 2 * width)
        self.out = nn.Linear(width, width)
        self.query_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.key_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        context: Float[Tensor, "b m c"] | None = None,
        mask: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        causal: bool = False,
        cache: KeyValues | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Attend.

        Args:
            x: tokens that ask.
            context: tokens that answer; None means `x`.
            mask: (b m), True where a context token stands, False where it is padding.
            rotary: cosines and sines of `rotary_angles`.
            causal: a token attends to itself and those before it only.
            cache: of the tokens before `x`, which `x` attends to as well; it takes up those of `x`.
        """
        k, v = self._split(self.key_value(x if context is None else context), 2)
        (q,) = self._split(self.query(x), 1)
        q, k = self.query_norm(q), self.key_norm(k)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        allowed = None if mask is None else mask[:, None, None, :]
        if cache is not None:
            k, v = cache.extend(k, v)
            if causal and q.shape[2] > 1:
                before = k.shape[2] - q.shape[2]
                allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
                allowed = allowed.tril(before)
            causal = False
        y = attention(q.to(v.dtype), k.to(v.dtype), v, mask=allowed, causal=causal)
        return self.dropout(self.out(y.transpose(1, 2).flatten(2)))

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        batch, length, _ = x.shape
        x = x.view(batch, length, parts, self.heads, -1)  # b n parts h d
        return x.permute(2, 0, 3, 1, 4).unbind(0)


class KeyValues:
    """Keys and values of the tokens that a causal attention has seen, (b h n d) each."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take up those of further tokens; returns all."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat([self.keys, keys], dim=2)
            values = torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values


class GELU(nn.Sequential):
    """A feed-forward layer with GELU in the middle, four times as wide.

    Source: Hendrycks & Gimpel 2016, arXiv 1606.08415, tanh form.
    """

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        hidden = 4 * width
        super().__init__(
            nn.Linear(width, hidden),
            nn.GELU(approximate="tanh"),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
        )


class SwiGLU(nn.Module):
    """A gated feed-forward layer with as many weights as `GELU`.

    Source: Shazeer 2020, arXiv 2002.05202.
    """

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = -(-8 * width // 3 // 32) * 32
        self.gate_value = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Gate the values and mix them back."""
        gate, value = self.gate_value(x).chunk(2, dim=-1)
        return self.dropout(self.out(functional.silu(gate) * value))


class TransformerBlock(nn.Module):
    """Self-attention and a gated feed-forward layer, each behind a norm.

    Args:
        width: channels of the tokens.
        heads: number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, qk_norm=True)
        self.feed_forward = SwiGLU(width)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        rotary: tuple[Tensor, Tensor] | None = None,
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Tokens to tokens.

        Args:
            x: tokens.
            rotary: cosines and sines of `rotary_angles`.
            mask: True where a token stands, False where it is padding.
        """
        x = x + self.attention(self.first(x), rotary=rotary, mask=mask)
        return x + self.feed_forward(self.second(x))


class AdaLNZeroBlock(nn.Module):
    """A transformer block modulated by a vector; the identity when it is new.

    Args:
        width: channels of the tokens and of the vector.
        heads: number of heads.
        context: channels of the condition tokens that are attended to; 0 for none.
        modern: SwiGLU and query-key norm instead of GELU and none.
        dropout: share of channels dropped in training after attention and feed-forward.

    Source: Peebles & Xie 2022, arXiv 2212.09748, fig. 3 (adaLN-Zero); cross-attention placed as in
    Chen et al. 2023, arXiv 2310.00426.
    """

    def __init__(
        self, width: int, heads: int, *, context: int = 0, modern: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention: nn.Module = Attention(width, heads, qk_norm=modern, dropout=dropout)
        self.cross = None
        if context:
            self.cross = Attention(width, heads, context=context, dropout=dropout)
            nn.init.zeros_(self.cross.out.weight)
            nn.init.zeros_(self.cross.out.bias)
        self.feed_forward = SwiGLU(width, dropout) if modern else GELU(width, dropout)
        self.modulation = zero_linear(width, 6 * width)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        vector: Float[Tensor, "b d"] | Float[Tensor, "b n d"],
        *,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        causal: bool = False,
        cache: KeyValues | None = None,
    ) -> Float[Tensor, "b n d"]:
        """One block; `vector` is already activated: one a sample (b d), or one a token (b n d)."""
        parts = self.modulation(vector if vector.ndim == 3 else vector[:, None]).chunk(6, dim=-1)
        shift, scale, gate, shift_two, scale_two, gate_two = parts
        y = modulate(self.norm(x), shift, scale)
        x = x + gate * self.attention(y, rotary=rotary, causal=causal, cache=cache)
        if self.cross is not None:
            x = x + self.cross(self.norm(x), context=context, mask=mask)
        return x + gate_two * self.feed_forward(modulate(self.norm(x), shift_two, scale_two))


def zero_linear(width_in: int, width_out: int) -> nn.Linear:
    """A linear layer whose output is zero until it has learned."""
    layer = nn.Linear(width_in, width_out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def initialise(module: nn.Module) -> None:
    """Xavier weights and no bias, except where a block wants zeros; for `nn.Module.apply`."""
    if isinstance(module, nn.Linear) and module.weight.any():
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def standing_context(
    always: Float[Tensor, "1 1 d"] | None, cond: Conditioning
) -> tuple[Tensor | None, Tensor | None]:
    """Condition tokens and their mask behind a learned token that always stands.

    So all others may be padding. None and None where there is no door for tokens.
    """
    if cond.tokens is None or cond.mask is None or always is None:
        return None, None
    standing = always.to(cond.tokens.dtype).expand(len(cond.tokens), -1, -1)
    mask = functional.pad(cond.mask, (1, 0), value=True)
    return torch.cat([standing, cond.tokens], dim=1), mask
