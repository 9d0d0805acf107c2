"""Samplers of tokens: many at once by confidence (MaskGIT), or one after the other.

The token after the vocabulary's last is the mask. Tokens that the prior already holds stay, so a
part of a study, such as the first frame of a clip, can be given.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medgen.nn.masking import lowest, masked_share
from medgen.protocols import Domain
from medgen.registry import register
from medgen.rng import Rng
from medgen.types import Field

Grammar = Bool[Tensor, "*s v"]
"""True where a token may stand at a place; broadcasts to (*s, v)."""


@register("sampler", "maskgit")
class MaskGIT:
    """All masked tokens are drawn at once, and those of least confidence masked again.

    After step k of S exactly floor(N cos(pi k / 2 S)) of the N unknown tokens are masked. The
    confidence of a token is its log-probability, plus Gumbel noise that fades as t goes to 1.

    Args:
        steps: evaluations of the network.
        temperature: of the tokens that are drawn; 0 takes the likeliest.
        noise: of the confidence at the first step; 0 always keeps the surest tokens, which makes
            samples alike.

    Attributes:
        grammar: tokens that may stand at each place; None allows all everywhere.

    Raises:
        ValueError: no step, or a negative temperature or noise.

    Source: Chang et al. 2022, arXiv 2202.04200, sec. 3.2; noise as in the authors' code.
    """

    domain: Domain = "tokens"
    causal = False

    def __init__(self, steps: int = 12, *, temperature: float = 1.0, noise: float = 4.5) -> None:
        if steps < 1:
            raise ValueError(f"steps: expected 1 or more, got {steps}")
        self.steps = steps
        self.temperature = _least("temperature", temperature)
        self.noise = _least("noise", noise)
        self.grammar: Grammar | None = None

    def sample(self, field: Field, z: Int[Tensor, "b *s"], rng: Rng) -> Int[Tensor, "b *s"]:
        """Fill the masked tokens of z, in `steps` evaluations."""
        rng = rng.child("maskgit")
        flat, unknown = z.flatten(1), None
        for step in range(self.steps):
            t = torch.full((len(z),), step / self.steps, device=z.device)
            log_p = log_probabilities(field(flat.view(z.shape), t), self.grammar)
            hidden = flat == log_p.shape[-1]
            unknown = hidden.sum(1) if unknown is None else unknown
            drawn = draw(log_p, rng.uniform(flat.shape[1:]).to(z.device), self.temperature)
            flat = torch.where(hidden, drawn, flat)
            after = (step + 1) / self.steps
            sure = log_p.gather(-1, drawn[..., None])[..., 0]
            sure = sure + self.noise * (1 - after) * gumbel(rng.uniform(flat.shape[1:])).to(sure)
            count = (unknown.cpu() * masked_share(torch.tensor(after))).floor().to(z.device)
            again = lowest(sure.masked_fill(~hidden, math.inf), count)
            flat = flat.masked_fill(again, log_p.shape[-1])
        return flat.view(z.shape)


@register("sampler", "autoregressive")
class Autoregressive:
    """Tokens are drawn one after the other, the last axis fastest; t is the share that is known.

    A field may answer with the logits of all places (b *s v), or, if it keeps what it computed for
    the tokens before, with those of the next one alone (b 1 v).

    Args:
        temperature: 0 takes the likeliest token.
        top_k: draw among so many of the likeliest tokens; None among all.

    Attributes:
        grammar: tokens that may stand at each place; None allows all everywhere.

    Raises:
        ValueError: a negative temperature, or no token to draw.
    """

    domain: Domain = "tokens"
    causal = True

    def __init__(self, *, temperature: float = 1.0, top_k: int | None = None) -> None:
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k: expected 1 or more, got {top_k}")
        self.temperature = _least("temperature", temperature)
        self.top_k = top_k
        self.grammar: Grammar | None = None

    def sample(self, field: Field, z: Int[Tensor, "b *s"], rng: Rng) -> Int[Tensor, "b *s"]:
        """Fill the masked tokens of z, with one evaluation a token."""
        uniform = rng.child("autoregressive").uniform(z.shape[1:]).flatten(1).to(z.device)
        flat = z.flatten(1).clone()
        length = flat.shape[1]
        for place in range(length):
            t = torch.full((len(z),), place / length, device=z.device)
            logits = field(flat.view(z.shape), t).flatten(1, -2)
            logits = logits[:, place if logits.shape[1] == length else 0]
            allowed = None
            if self.grammar is not None:
                allowed = self.grammar.expand(*z.shape[1:], -1).flatten(0, -2)[place]
            log_p = log_probabilities(logits, allowed)
            if self.top_k is not None and self.top_k < log_p.shape[-1]:
                least = log_p.topk(self.top_k, dim=-1).values[..., -1:]
                log_p = log_p.masked_fill(log_p < least, -math.inf)
            drawn = draw(log_p[:, None], uniform[:, place, None], self.temperature)[:, 0]
            now = flat[:, place]
            flat[:, place] = torch.where(now == log_p.shape[-1], drawn, now)
        return flat.view(z.shape)


def log_probabilities(
    logits: Float[Tensor, "b *s v"], grammar: Grammar | None
) -> Float[Tensor, "b n v"]:
    """Of every token at every place, in wide arithmetic; -inf where the grammar forbids it.

    Raises:
        ValueError: the grammar is of another shape, or leaves a place without any token.
    """
    wide = logits.float() if logits.device.type == "mps" else logits.double()
    if grammar is not None:
        if grammar.shape[-1] != logits.shape[-1] or not bool(grammar.any(-1).all()):
            raise ValueError(
                f"grammar: expected at least one of {logits.shape[-1]} tokens at every place"
            )
        wide = wide.masked_fill(~grammar.to(logits.device), -math.inf)
    log_p = wide.log_softmax(dim=-1)
    return log_p.flatten(1, -2) if log_p.ndim > 2 else log_p


def draw(
    log_p: Float[Tensor, "b n v"], uniform: Float[Tensor, "b n"], temperature: float
) -> Int[Tensor, "b n"]:
    """A token at every place, from one number in [0, 1) each; an impossible one never comes."""
    if temperature == 0:
        return log_p.argmax(dim=-1)
    below = (log_p / temperature).softmax(dim=-1).cumsum(dim=-1)
    last = below[..., -1:]
    aim = torch.minimum(uniform.to(below)[..., None] * last, last.nextafter(torch.zeros_like(last)))
    return torch.searchsorted(below, aim, right=True)[..., 0]


def gumbel(uniform: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Standard Gumbel noise of numbers in [0, 1), in float64."""
    tiny = torch.finfo(torch.float64).tiny
    return -(-uniform.double().clamp_min(tiny).log()).log()


def _least(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}: expected a number of 0 or more, got {value}")
    return value
