"""A report as tokens to attend to and as a vector, from a small transformer over its words."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medgen.nn.blocks import TransformerBlock, rotary_angles
from medgen.nn.words import word_tokens
from medgen.protocols import Conditioner
from medgen.registry import register
from medgen.types import Batch, Conditioning, CondSpec, Schema

Door = Literal["tokens", "vector"]


@register("conditioner", "text")
class TextConditioner(Conditioner):
    """A small transformer over the words of a report, trained with the generator.

    It begins with no language of its own: it learns what the reports of the training studies say
    of their images. "tokens" are attended to, one a word; a "vector" is their mean. An empty
    report is unknown, and has a learned value.

    Args:
        schema: of studies with reports.
        width: channels of a token and of the vector.
        depth: transformer blocks.
        heads: attention heads; divides `width` into even parts.
        words: numbers that words are hashed to.
        length: words of a report that are read; the rest is cut off.
        doors: which of "tokens" and "vector" the report enters by.

    Raises:
        ValueError: the studies have no reports, or the arguments do not fit each other.

    Source: a text encoder trained with its generator, as RoentGen's is (Bluethgen et al. 2024,
    arXiv:2211.12737), which starts from CLIP's instead.
    """

    reads = frozenset({"text"})

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        words: int = 4096,
        length: int = 64,
        doors: tuple[Door, ...] = ("tokens", "vector"),
    ) -> None:
        super().__init__()
        if not schema.text:
            raise ValueError(
                "a text conditioner needs reports, the studies have none; see `text` of `data`"
            )
        if not doors or len(set(doors)) < len(doors):
            raise ValueError(f"doors: expected one or both of tokens, vector, got {doors}")
        if width % heads or (width // heads) % 2:
            raise ValueError(f"width {width} cannot be split into {heads} heads of an even width")
        self.words, self.length, self.doors = words, length, doors
        self.spec = CondSpec(
            vector=width if "vector" in doors else 0, tokens=width if "tokens" in doors else 0
        )
        self.embed = nn.Embedding(words + 1, width, padding_idx=0)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.unknown = nn.Parameter(torch.randn(1, 1, width))
        angles = rotary_angles((length,), width // heads)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def encode(self, batch: Batch) -> Conditioning:
        """The report of every study by the doors asked for; an empty one as null."""
        if batch.text is None or not any(batch.text):
            return self.null(len(batch))
        numbers, stands = word_tokens(batch.text, self.words, self.length)
        device = self.unknown.device
        numbers, stands = numbers.to(device), stands.to(device)
        known = stands.any(dim=1)
        seen = stands | ~known[:, None]  # attention over nothing is undefined
        x = self.embed(numbers)
        for block in self.blocks:
            x = block(x, rotary=(self.cos, self.sin), mask=seen)
        return self._by_doors(self.norm(x), stands).where(known, self.null(len(batch)))

    def null(self, count: int) -> Conditioning:
        """The learned report of which nothing is known."""
        stands = torch.ones(count, 1, dtype=torch.bool, device=self.unknown.device)
        return self._by_doors(self.unknown.expand(count, -1, -1), stands)

    def _by_doors(
        self, tokens: Float[Tensor, "b n d"], stands: Bool[Tensor, "b n"]
    ) -> Conditioning:
        weights = stands[..., None].to(tokens.dtype)
        mean = (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return Conditioning(
            vector=mean if "vector" in self.doors else None,
            tokens=tokens if "tokens" in self.doors else None,
            mask=stands if "tokens" in self.doors else None,
        )
