"""Tokens: learn those that are masked, or the next one."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from medgen.nn.masking import lowest, masked_share
from medgen.protocols import Domain
from medgen.registry import register
from medgen.rng import Rng
from medgen.types import Field, LatentSpec, Net


@register("objective", "masked_tokens")
class MaskedTokens:
    """Cross-entropy of the masked tokens, a share of which falls as a cosine of t.

    The token after the vocabulary's last, number `vocab`, is the mask.

    Args:
        latent: of the codec.
        dynamic_weight: what a token counts that differs from the first frame's at its place, where
            the latent's first axis is time; the others count 1. Above 1 keeps static tokens, which
            are most of a clip, from owning the loss.

    Raises:
        ValueError: the latent is continuous, or the weight is out of range or has no effect.

    Source: Chang et al. 2022, arXiv 2202.04200, eq. 1.
    """

    domain: Domain = "tokens"
    causal = False

    def __init__(self, latent: LatentSpec, *, dynamic_weight: float = 1.0) -> None:
        _check(latent)
        if not dynamic_weight > 0:
            raise ValueError(f"dynamic_weight: expected more than 0, got {dynamic_weight}")
        if dynamic_weight != 1 and len(latent.size) < 3:
            raise ValueError(f"dynamic_weight: latents of {latent.size} have no time; leave it out")
        self.vocab = latent.vocab
        self.dynamic_weight = dynamic_weight

    def prior(self, latent: LatentSpec, rng: Rng) -> Int[Tensor, "b *s"]:
        """Nothing but masks."""
        return _masks(latent, rng)

    def loss(self, net: Net, z: Int[Tensor, "b *s"], rng: Rng) -> Float[Tensor, "b"]:
        """Weighted mean over the masked tokens of every sample, in nats, in float32 or wider."""
        t = rng.uniform()
        hidden = self.hide(z, t, rng).to(z.device)
        logits = net(z.masked_fill(hidden, self.vocab), t.to(z.device))
        weight = hidden * self.weight(z)
        error = cross_entropy(logits, z)
        return (weight * error).flatten(1).sum(1) / weight.flatten(1).sum(1)

    def field(self, net: Net) -> Field:
        """The logits of every token."""
        return net

    def hide(self, z: Int[Tensor, "b *s"], t: Float[Tensor, "b"], rng: Rng) -> Bool[Tensor, "b *s"]:
        """True at the tokens that are masked at t, one at least; on the CPU."""
        count = (masked_share(t) * z[0].numel()).ceil().clamp(min=1)
        order = rng.uniform(z.shape[1:])
        return lowest(order.flatten(1), count).view(z.shape)

    def weight(self, z: Int[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
        """What every token counts, if it is masked."""
        if self.dynamic_weight == 1:
            return torch.ones(z.shape, device=z.device)
        return torch.where(z != z[:, :1], self.dynamic_weight, 1.0)


@register("objective", "next_token")
class NextToken:
    """Cross-entropy of every token, given those before it in the grid, the last axis fastest.

    The network is a causal one; it sees no time.

    Args:
        latent: of the codec.

    Raises:
        ValueError: the latent is continuous.

    Source: van den Oord et al. 2017, arXiv 1711.00937, sec. 3.3; Esser et al. 2021,
        arXiv 2012.09841, sec. 3.2.
    """

    domain: Domain = "tokens"
    causal = True

    def __init__(self, latent: LatentSpec) -> None:
        _check(latent)

    def prior(self, latent: LatentSpec, rng: Rng) -> Int[Tensor, "b *s"]:
        """Nothing but masks: no token is known."""
        return _masks(latent, rng)

    def loss(self, net: Net, z: Int[Tensor, "b *s"], rng: Rng) -> Float[Tensor, "b"]:
        """Mean over the tokens of every sample, in nats; draws nothing."""
        logits = net(z, torch.zeros(len(z), device=z.device))
        return cross_entropy(logits, z).flatten(1).mean(1)

    def field(self, net: Net) -> Field:
        """The logits of every token, given those before it."""
        return net


def cross_entropy(logits: Float[Tensor, "b *s v"], z: Int[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
    """Of every token, in nats, in float32 or wider."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(wide.movedim(-1, 1), z, reduction="none")


def _masks(latent: LatentSpec, rng: Rng) -> Tensor:
    _check(latent)
    return torch.full((len(rng), *latent.size), latent.vocab)


def _check(latent: LatentSpec) -> None:
    if latent.domain != "tokens":
        raise ValueError(f"expected a latent of tokens, got one of '{latent.domain}'")
