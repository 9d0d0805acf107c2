"""A transformer over a grid of tokens: masked, or causal with a cache of keys and values."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from medgen.backbones.dit import TIME_WIDTH
from medgen.nn.blocks import (
    AdaLNZeroBlock,
    KeyValues,
    check_doors,
    initialise,
    mlp,
    modulate,
    rotary_angles,
    sincos_positions,
    standing_context,
    timestep_embedding,
    zero_linear,
)
from medgen.nn.space_time import factorise
from medgen.protocols import Backbone
from medgen.registry import register
from medgen.types import Conditioning, CondSpec, LatentSpec, Net


@register("backbone", "token_transformer")
class TokenTransformer(Backbone):
    """The logits of every token of a grid of one, two or three axes.

    Its blocks are those of the `dit`. A vector is added to the time embedding and modulates them,
    tokens are attended to (with one learned token that always stands, so that all others may be
    padding), a grid is added to the embedding of the token at its place. All tokens are equally
    likely when it is new.

    Under a masked objective every token sees every other, and number `vocab` is the mask. Under a
    causal one a token sees those before it, the last axis fastest, and neither itself nor the time;
    number `vocab` stands before the first.

    Args:
        latent: what it produces.
        cond: widths of the conditions.
        causal: whether the objective is causal.
        depth: number of blocks.
        width: channels of the tokens.
        heads: attention heads; divides `width`.
        dropout: share of channels dropped in training.
        factorised: for clips (time, height, width): blocks attend in turn within every frame and,
            at every place, over the frames.

    Raises:
        ValueError: the latent is continuous, the width cannot be split into heads of an even width,
            or there is nothing to factorise.

    Source: Chang et al. 2022, arXiv 2202.04200; causal: Esser et al. 2021, arXiv 2012.09841;
        factorised: Bertasius et al. 2021, arXiv 2102.05095.
    """

    domain = "tokens"
    places: Tensor
    angles: Tensor | None

    def __init__(
        self,
        latent: LatentSpec,
        cond: CondSpec,
        causal: bool = False,
        *,
        depth: int = 8,
        width: int = 256,
        heads: int = 4,
        dropout: float = 0.0,
        factorised: bool = False,
    ) -> None:
        super().__init__()
        _check(latent, width, heads, factorised and causal)
        self.cond, self.causal = cond, causal
        self.size, self.vocab = latent.size, latent.vocab
        self.embed = nn.Embedding(latent.vocab + 1, width)
        self.time = mlp(TIME_WIDTH, width)
        self.vector = mlp(cond.vector, width) if cond.vector else None
        self.grid = nn.Linear(cond.grid, width) if cond.grid else None
        self.always = nn.Parameter(torch.randn(1, 1, cond.tokens) * 0.02) if cond.tokens else None
        self.blocks = nn.ModuleList(
            AdaLNZeroBlock(width, heads, context=cond.tokens, dropout=dropout) for _ in range(depth)
        )
        if factorised:
            factorise(self.blocks, latent.size, width // heads)
        self.apply(initialise)
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = zero_linear(width, 2 * width)
        self.out = zero_linear(width, latent.vocab)
        self.register_buffer("places", sincos_positions(latent.size, width), persistent=False)
        angles = None if factorised else rotary_angles(latent.size, width // heads)
        self.register_buffer("angles", angles, persistent=False)

    def forward(self, z: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Tokens (b *s) at times (b,) in [0, 1] to logits (b *s v).

        Raises:
            ValueError: the conditions do not fit the doors that were built.
        """
        tokens = z.flatten(1)
        if self.causal:
            tokens = functional.pad(tokens[:, :-1], (1, 0), value=self.vocab)
        return self.logits(tokens, t, cond).unflatten(1, self.size)

    def bind(self, cond: Conditioning) -> Net:
        """The network under conditions; a causal one keeps keys and values from token to token."""
        return CausalNet(self, cond) if self.causal else super().bind(cond)

    def logits(
        self,
        tokens: Tensor,
        t: Tensor,
        cond: Conditioning,
        *,
        start: int = 0,
        caches: list[KeyValues] | None = None,
    ) -> Tensor:
        """Logits (b m v) at m places of the grid in a row.

        Args:
            tokens: what each place sees of itself (b m): the masked token, or the one before.
            t: times (b,).
            cond: conditions of the whole grid.
            start: the first of the places.
            caches: one a block, of all places before; None for none.
        """
        check_doors(self.cond, cond)
        now = slice(start, start + tokens.shape[1])
        x = self.embed(tokens) + self.places[now]
        if self.grid is not None and cond.grid is not None:
            x = x + self.grid(cond.grid.to(x.dtype).flatten(2).transpose(1, 2)[:, now])
        time = torch.zeros_like(t) if self.causal else t
        vector = self.time(timestep_embedding(time, TIME_WIDTH).to(x.dtype))
        if self.vector is not None and cond.vector is not None:
            vector = vector + self.vector(cond.vector.to(x.dtype))
        vector = functional.silu(vector)
        context, mask = standing_context(self.always, cond)
        angles = None if self.angles is None else self.angles[now]
        rotary = None if angles is None else (angles.cos(), angles.sin())
        for place, block in enumerate(self.blocks):
            x = block(
                x,
                vector,
                context=context,
                mask=mask,
                rotary=rotary,
                causal=self.causal,
                cache=None if caches is None else caches[place],
            )
        shift, scale = self.modulation(vector)[:, None].chunk(2, dim=-1)
        return self.out(modulate(self.norm(x), shift, scale))


class CausalNet:
    """A causal network under conditions, asked for the tokens of a grid one after the other.

    The place that is asked for is t times the number of tokens. Each place is computed once; those
    that were not asked for are caught up on.

    Args:
        network: the causal transformer.
        cond: conditions.
    """

    def __init__(self, network: TokenTransformer, cond: Conditioning) -> None:
        self.network, self.cond = network, cond
        self.caches: list[KeyValues] = []
        self.done = 0

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """Tokens (b *s), of which those before the place are known, to its logits (b 1 v).

        Raises:
            ValueError: the place was asked for before.
        """
        place = round(float(t[0]) * math.prod(self.network.size))
        if place == 0:
            self.caches, self.done = [KeyValues() for _ in self.network.blocks], 0
        if place < self.done:
            raise ValueError(f"expected a place from {self.done} on, got {place}")
        before = functional.pad(z.flatten(1), (1, 0), value=self.network.vocab)
        tokens = before[:, self.done : place + 1]
        logits = self.network.logits(tokens, t, self.cond, start=self.done, caches=self.caches)
        self.done = place + 1
        return logits[:, -1:]


def _check(latent: LatentSpec, width: int, heads: int, clash: bool) -> None:
    if latent.domain != "tokens":
        raise ValueError("a token_transformer takes tokens, the codec makes continuous latents")
    if width % heads or (width // heads) % 2:
        raise ValueError(f"width {width} cannot be split into {heads} heads of an even width")
    if clash:
        raise ValueError("factorised: a causal network sees all tokens before; leave it out")
