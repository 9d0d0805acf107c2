"""The KL autoencoder: MONAI's network as a codec with unit-variance latents, 2-D and 3-D."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medgen.codecs.losses import kl_divergence
from medgen.codecs.memory import MEMORY, Plan, make_plan
from medgen.codecs.pixels import block_transform, cosine_basis, inverse_block_transform
from medgen.codecs.slabs import forward_in_slabs
from medgen.codecs.whitening import Whitening
from medgen.protocols import LearnedCodec
from medgen.registry import register
from medgen.rng import Rng
from medgen.types import LatentSpec, Reconstruction, Schema

if TYPE_CHECKING:
    from monai.networks.nets.autoencoderkl import AutoencoderKL

GROUPS = 8
"""Channels are normalised in so many groups."""
_LOGVAR_RANGE = (-30.0, 20.0)


@register("codec", "autoencoder")
class Autoencoder(LearnedCodec):
    """A convolutional encoder to a Gaussian posterior, and a decoder from its mean.

    A latent is smaller than the image by patch * 2^(levels - 1) along every axis: three levels
    give f4. `encode` is the posterior's mean, shifted and scaled per channel to unit variance by
    buffers that `fit` measures after training.

    Where `encode` or `decode` would take more than `memory` bytes, images are taken one by one, and
    in slabs if that is still too much; what comes out is the same but for rounding.

    Args:
        schema: what the studies hold.
        channels: features of every level, the image's resolution first; multiples of 8.
        latent_channels: channels of a latent.
        blocks: residual blocks a level.
        patch: side of the blocks that an orthonormal cosine transform makes channels of before the
            first level, in pixels. With 2 the most costly level is left out: about three times
            faster for the same factor.
        attention: one attention layer at the latent's resolution in encoder and decoder.

    Attributes:
        memory: bytes that `encode` and `decode` may take beyond weights and inputs.

    Raises:
        ValueError: the image is not divisible by the factor, or a setting is out of range.

    Source: Rombach et al. 2022, arXiv 2112.10752; blocks before the first level as in NVIDIA
        2025, arXiv 2501.03575, section 3.
    """

    domain = "continuous"
    basis: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        channels: tuple[int, ...] = (32, 64, 64),
        latent_channels: int = 4,
        blocks: int = 2,
        patch: int = 1,
        attention: bool = False,
    ) -> None:
        super().__init__()
        from monai.networks.nets.autoencoderkl import AutoencoderKL

        counts = {"latent_channels": latent_channels, "blocks": blocks, "patch": patch}
        check_network(schema, channels, counts)

        axes = len(schema.size)
        factor = patch * 2 ** (len(channels) - 1)
        features = schema.channels * patch**axes
        self.schema = schema
        self.patch = patch
        self.factor = factor
        self.latent = LatentSpec(
            "continuous", tuple(side // factor for side in schema.size), channels=latent_channels
        )
        self.net: AutoencoderKL = AutoencoderKL(
            spatial_dims=axes,
            in_channels=features,
            out_channels=features,
            num_res_blocks=blocks,
            channels=channels,
            attention_levels=(False,) * len(channels),
            latent_channels=latent_channels,
            norm_num_groups=GROUPS,
            with_encoder_nonlocal_attn=attention,
            with_decoder_nonlocal_attn=attention,
        )
        self.whitening = Whitening(latent_channels, "channel")
        self.register_buffer("basis", cosine_basis(patch, axes), persistent=False)
        self.memory = MEMORY
        self._plans: dict[tuple[object, ...], Plan] = {}

    def encode(self, image: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
        """The mean of the posterior, of unit variance in every channel once fitted."""
        return self._within_memory("encode", image)

    def decode(self, z: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
        """Images, held to [-1, 1]."""
        return self._within_memory("decode", z)

    def plan(self, direction: Literal["encode", "decode"], shape: tuple[int, ...]) -> Plan:
        """How a batch of images or latents (b, c, *s) is encoded or decoded within `memory`."""
        key = direction, shape, self.memory
        if key not in self._plans:
            rows = shape[2] // (self.factor if direction == "encode" else 1)
            run = Autoencoder._encode if direction == "encode" else Autoencoder._decode
            self._plans[key] = make_plan(self, run, shape, rows=rows, budget=self.memory)
        return self._plans[key]

    def _within_memory(self, direction: Literal["encode", "decode"], x: Tensor) -> Tensor:
        run = self._encode if direction == "encode" else self._decode
        if torch.is_grad_enabled() or x.is_meta:
            return run(x, 1)
        plan = self.plan(direction, tuple(x.shape))
        if plan.batch == len(x):
            return run(x, plan.slabs)
        return torch.cat([run(part, plan.slabs) for part in x.split(plan.batch)])

    def _encode(self, image: Tensor, slabs: int) -> Tensor:
        return self.whitening(self.posterior(image, slabs)[0])

    def _decode(self, z: Tensor, slabs: int) -> Tensor:
        return self.reconstruct(self.whitening.inverse(z), slabs).clamp(-1, 1)

    def forward(self, image: Tensor, rng: Rng | None = None) -> Reconstruction:
        """What training looks at: a reconstruction from a drawn latent, and the KL divergence.

        Args:
            image: (b c *s) in [-1, 1].
            rng: draws the latents from their posteriors; None takes the means.
        """
        mean, logvar = self.posterior(image)
        z = mean
        if rng is not None:
            z = mean + (0.5 * logvar).exp() * rng.normal(self.latent.shape).to(image.device)
        kl = kl_divergence(mean.float(), logvar.float())
        return Reconstruction(self.reconstruct(z), {"kl": kl})

    def posterior(self, image: Float[Tensor, "b c *s"], slabs: int = 1) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent's Gaussian posterior, before whitening.

        Args:
            image: in [-1, 1].
            slabs: into how many its first axis is cut to save memory; no gradients if above 1.
        """
        features = _forward(self.net.encoder, block_transform(image, self.basis, self.patch), slabs)
        logvar = self.net.quant_conv_log_sigma(features)
        return self.net.quant_conv_mu(features), logvar.clamp(*_LOGVAR_RANGE)

    def reconstruct(self, raw: Float[Tensor, "b c *s"], slabs: int = 1) -> Float[Tensor, "b c *s"]:
        """Images of latents before whitening, not held to [-1, 1]; slabs as in `posterior`."""
        features = _forward(self.net.decoder, self.net.post_quant_conv(raw), slabs)
        return inverse_block_transform(features, self.basis, self.patch)

    @property
    def last_layer(self) -> nn.Parameter:
        """Weights of the decoder's last convolution: where losses are balanced."""
        kernels = [value for value in self.net.decoder.parameters() if value.ndim > 1]
        return kernels[-1]

    def fit(self, images: Float[Tensor, "b c *s"]) -> None:
        """Measure every channel's shift and scale on images in [-1, 1], best the training split."""
        self.whitening.fit(images, lambda part: self.posterior(part)[0])


def _forward(network: nn.Module, x: Tensor, slabs: int) -> Tensor:
    blocks = network.blocks
    assert isinstance(blocks, nn.ModuleList)
    return network(x) if slabs == 1 else forward_in_slabs(blocks, x, slabs)


def check_network(schema: Schema, channels: tuple[int, ...], counts: Mapping[str, int]) -> None:
    """Refuse settings with which a convolutional encoder and decoder cannot be built.

    Args:
        schema: of the images.
        channels: features of every level.
        counts: settings that must be 1 or more, by name; `patch` among them.

    Raises:
        ValueError: the image is not divisible by the factor, or a setting is out of range.
    """
    if len(schema.size) not in (2, 3):
        raise ValueError(f"size: expected images of 2 or 3 axes, got {schema.size}")
    if not channels or any(width < 1 or width % GROUPS for width in channels):
        raise ValueError(f"channels: expected multiples of {GROUPS}, got {channels}")
    small = [name for name, value in counts.items() if value < 1]
    if small:
        raise ValueError(f"{', '.join(small)}: expected 1 or more")
    factor = counts["patch"] * 2 ** (len(channels) - 1)
    if any(side % factor for side in schema.size):
        fitting = tuple(math.ceil(side / factor) * factor for side in schema.size)
        raise ValueError(
            f"channels: {len(channels)} levels with patch {counts['patch']} shrink images by "
            f"{factor}, but {schema.size} is not divisible by {factor}; use images of {fitting} or "
            "fewer levels"
        )
