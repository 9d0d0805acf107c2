"""Quantizers: vectors to tokens of a codebook and back, by vector-quantize-pytorch."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

QuantizerName = Literal["vq", "fsq", "lfq"]
DECAY = 0.99
"""Share of a code that a step keeps."""
DEAD = 0.1
"""A code that fewer vectors a step than this have chosen, on average, is dead: it is moved onto a
vector of the batch."""


@dataclass(frozen=True)
class Quantized:
    """Vectors and what became of them.

    Args:
        codes: what each vector was replaced by; in training gradients pass on to the vector.
        tokens: the codes' indices.
        penalties: unweighted, by name.
    """

    codes: Float[Tensor, "b d *s"]
    tokens: Int[Tensor, "b *s"]
    penalties: Mapping[str, Float[Tensor, "b"]] = field(default_factory=dict)


class Quantizer(nn.Module, ABC):
    """Replaces every vector of a grid by one of `vocab` codes of `width` channels.

    It computes in float32 whatever surrounds it, and learns nothing outside training mode.
    """

    vocab: int
    width: int

    def forward(self, z: Float[Tensor, "b d *s"]) -> Quantized:
        """The codes nearest to vectors."""
        with torch.autocast(z.device.type, enabled=False):
            codes, tokens, penalties = self.quantize(z.float().flatten(2).transpose(1, 2))
        shape = (len(z), *z.shape[2:])
        grid = codes.transpose(1, 2).reshape(len(z), self.width, *z.shape[2:])
        return Quantized(grid, tokens.long().reshape(shape), penalties)

    def codes(self, tokens: Int[Tensor, "b *s"]) -> Float[Tensor, "b d *s"]:
        """The codes of tokens: exactly what `forward` replaced the vectors by."""
        rows = self.look_up(tokens.flatten(1))
        return rows.transpose(1, 2).reshape(len(tokens), self.width, *tokens.shape[1:])

    @property
    def learned(self) -> dict[str, Tensor]:
        """Tensors that are learned without gradients, by name."""
        return {}

    @abstractmethod
    def quantize(
        self, x: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b n d"], Int[Tensor, "b n"], dict[str, Tensor]]:
        """Codes, tokens and penalties (b,) of rows of vectors."""

    @abstractmethod
    def look_up(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """The codes of rows of tokens."""


class VQ(Quantizer):
    """Codes on the unit sphere that follow a running average of the vectors that choose them.

    The first training batch places them by k-means; a code that dies is moved onto a vector of the
    batch. Gradients reach the vectors by the rotation trick.

    Args:
        vocab: number of codes.
        width: channels of a code.

    Source: van den Oord et al. 2017, arXiv 1711.00937, appendix A.1 (running averages); Yu et al.
        2022, arXiv 2110.04627, sec. 3.2 (unit sphere); Fifty et al. 2024, arXiv 2410.06424.
    """

    def __init__(self, vocab: int = 1024, width: int = 8) -> None:
        super().__init__()
        import vector_quantize_pytorch as library

        self.vocab, self.width = vocab, width
        self.net = library.VectorQuantize(
            dim=width,
            codebook_size=vocab,
            decay=DECAY,
            kmeans_init=True,
            use_cosine_sim=True,
            threshold_ema_dead_code=DEAD,  # pyright: ignore[reportArgumentType]
            commitment_weight=0.0,
            sync_codebook=int(os.environ.get("WORLD_SIZE", "1")) > 1,
        )

    @property
    def learned(self) -> dict[str, Tensor]:
        """The codes; they are averaged like weights, so that decoder and codes stay together."""
        return {"embed": self.net._codebook.embed}

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The penalty "commitment" is the mean squared distance of vectors to their codes."""
        x = functional.normalize(x, dim=-1)
        if self.training:
            codes, tokens, _ = self.net(x)
        else:  # the library's own pass would place the codes anew if they never were
            tokens = (x @ self._codebook.T).argmax(dim=-1)
            codes = self._codebook[tokens]
        return codes, tokens, {"commitment": _distance(x, codes)}

    def look_up(self, tokens: Tensor) -> Tensor:
        """The codes of rows of tokens."""
        return self._codebook[tokens]

    @property
    def _codebook(self) -> Float[Tensor, "v d"]:
        """Codes on the unit sphere, which their average leaves a little."""
        return functional.normalize(self.net.codebook, dim=-1)


class FSQ(Quantizer):
    """Every channel of a vector is bounded and rounded to a few levels; no codebook to learn.

    Args:
        levels: of every channel, 3 or more; their product is the vocabulary.

    Raises:
        ValueError: a channel has fewer than 3 levels.

    Source: Mentzer et al. 2023, arXiv 2309.15505.
    """

    def __init__(self, levels: tuple[int, ...] = (8, 5, 5, 5)) -> None:
        super().__init__()
        import vector_quantize_pytorch as library

        if not levels or min(levels) < 3:
            raise ValueError(f"levels: expected 3 or more a channel, got {levels}")
        self.vocab, self.width = math.prod(levels), len(levels)
        self.net = library.FSQ(list(levels))

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """No penalties."""
        return *self.net(x), {}

    def look_up(self, tokens: Tensor) -> Tensor:
        """The codes of rows of tokens."""
        return self.net.indices_to_codes(tokens)


class LFQ(Quantizer):
    """Every channel of a vector becomes -1 or 1; a penalty keeps all combinations in use.

    Args:
        vocab: a power of 2; its logarithm is the number of channels.

    Raises:
        ValueError: the vocabulary is no power of 2.

    Source: Yu et al. 2024, arXiv 2310.05737, eq. 5.
    """

    def __init__(self, vocab: int = 1024) -> None:
        super().__init__()
        import vector_quantize_pytorch as library

        if vocab & (vocab - 1):
            raise ValueError(f"vocab: lookup-free tokens are a power of 2, got {vocab}")
        self.vocab, self.width = vocab, vocab.bit_length() - 1
        self.net = library.LFQ(dim=self.width, codebook_size=vocab, entropy_loss_weight=1.0)

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The penalties are "commitment", and "entropy": doubt about each less use of all codes.

        The use of codes is one of the batch, so every image carries the same entropy.
        """
        codes, tokens, entropy = self.net(x)
        return codes, tokens, {"commitment": _distance(x, codes), "entropy": entropy.expand(len(x))}

    def look_up(self, tokens: Tensor) -> Tensor:
        """The codes of rows of tokens."""
        return self.net.indices_to_codes(tokens)


def make_quantizer(
    name: QuantizerName,
    *,
    vocab: int | None = None,
    width: int | None = None,
    levels: tuple[int, ...] | None = None,
) -> Quantizer:
    """A quantizer by name; None takes its default.

    Raises:
        ValueError: a setting is out of range, or is set where it has no effect.
    """
    settings = {"vocab": vocab, "width": width, "levels": levels}
    given: dict = {key: value for key, value in settings.items() if value is not None}
    kinds = {"vq": (VQ, ("vocab", "width")), "fsq": (FSQ, ("levels",)), "lfq": (LFQ, ("vocab",))}
    if name not in kinds:
        raise ValueError(f"quantizer: expected {', '.join(kinds)}, got '{name}'")
    kind, takes = kinds[name]
    for key, value in given.items():
        if key not in takes:
            raise ValueError(f"{key}: '{name}' has none; it takes {' and '.join(takes)}")
        if key != "levels" and value < 2:
            raise ValueError(f"{key}: expected 2 or more, got {value}")
    return kind(**given)


def codebook_use(tokens: Int[Tensor, "..."], vocab: int) -> tuple[float, float]:
    """Share of the codebook that occurs, and the perplexity of the tokens, at most `vocab`."""
    counts = torch.bincount(tokens.flatten().cpu(), minlength=vocab).double()
    shares = counts[counts > 0] / counts.sum()
    return len(shares) / vocab, float((-(shares * shares.log()).sum()).exp())


def _distance(x: Tensor, codes: Tensor) -> Float[Tensor, "b"]:
    return (x - codes.detach()).square().flatten(1).mean(dim=1)
