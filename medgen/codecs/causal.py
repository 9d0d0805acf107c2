"""Codecs of clips that compress time and never look ahead: the first frame can be decoded alone.

Of 1 + c k frames, c the compression of time, the first becomes a latent frame of its own and every
c further ones another. A latent frame depends on the frames up to its own, and a decoded frame on
the latent frames up to its own; so an image is a clip of one frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from medgen.codecs.autoencoder import GROUPS, check_network
from medgen.codecs.losses import apart, is_clip, kl_divergence
from medgen.codecs.quantizers import QuantizerName, make_quantizer
from medgen.codecs.whitening import Whitening
from medgen.nn.nd import depth_to_space, space_to_depth
from medgen.protocols import LearnedCodec
from medgen.registry import register
from medgen.rng import Rng
from medgen.types import LatentSpec, Reconstruction, Schema

_LOGVAR_RANGE = (-30.0, 20.0)


class CausalConvolution(nn.Module):
    """A convolution that sees the frame itself and those before it; before the first is the first.

    Args:
        width_in: channels that enter.
        width: channels that leave.
        time: frames that it sees.
        side: rows and columns that it sees.
        stride: of frames, and of rows and columns.

    Source: Yu et al. 2024, MAGVIT-v2, arXiv 2310.05737, sec. 3.2.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        time: int = 3,
        side: int = 3,
        stride: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        self.before = time - 1
        self.convolution = nn.Conv3d(
            width_in,
            width,
            (time, side, side),
            stride=(stride[0], stride[1], stride[1]),
            padding=(0, side // 2, side // 2),
        )

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t2 h2 w2"]:
        """Frames to frames, or to every so many of them."""
        if self.before:
            x = torch.cat([x[:, :, :1].expand(-1, -1, self.before, -1, -1), x], dim=2)
        return self.convolution(x)


class _Norm(nn.Module):
    """Channels normalised in groups within each frame, lest later frames tell on earlier ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width, eps=1e-6)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        return self.norm(apart(x)).unflatten(0, (len(x), -1)).transpose(1, 2)


class _Residual(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _Norm(width_in),
            nn.SiLU(),
            CausalConvolution(width_in, width),
            _Norm(width),
            nn.SiLU(),
            CausalConvolution(width, width),
        )
        self.skip = CausalConvolution(width_in, width, 1, 1) if width_in != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.layers(x)


class _Grow(nn.Module):
    """Rows and columns doubled, and frames after the first where `time` says so."""

    def __init__(self, width: int, time: bool) -> None:
        super().__init__()
        self.time = time
        self.convolution = CausalConvolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")
        if self.time:
            x = x.repeat_interleave(2, dim=2)[:, :, 1:]
        return self.convolution(x)


def _encoder(
    pixels: int, channels: Sequence[int], blocks: int, out: int, halvings: int
) -> nn.Module:
    """Frames to vectors; the last `halvings` levels halve time as well."""
    layers: list[nn.Module] = [CausalConvolution(pixels, channels[0])]
    width, steps = channels[0], len(channels) - 1
    for level, wanted in enumerate(channels):
        for _ in range(blocks):
            layers.append(_Residual(width, wanted))
            width = wanted
        if level < steps:
            stride = (2 if level >= steps - halvings else 1, 2)
            layers.append(CausalConvolution(width, width, stride=stride))
    return nn.Sequential(*layers, _Norm(width), nn.SiLU(), CausalConvolution(width, out))


def _decoder(
    pixels: int, channels: Sequence[int], blocks: int, inner: int, halvings: int
) -> nn.Module:
    """Vectors to frames, the other way."""
    width, steps = channels[-1], len(channels) - 1
    layers: list[nn.Module] = [CausalConvolution(inner, width)]
    for level, wanted in reversed(list(enumerate(channels))):
        for _ in range(blocks):
            layers.append(_Residual(width, wanted))
            width = wanted
        if level:
            layers.append(_Grow(width, time=level > steps - halvings))
    return nn.Sequential(*layers, _Norm(width), nn.SiLU(), CausalConvolution(width, pixels))


class _Causal(LearnedCodec):
    """What the two codecs share: encoder, decoder and the shape of what lies between.

    Args:
        schema: of clips.
        channels: features of every level.
        blocks: residual blocks a level.
        patch: side of the blocks of pixels.
        time: compression of time.
        inner: channels that leave the encoder and that enter the decoder.
    """

    def __init__(
        self,
        schema: Schema,
        channels: tuple[int, ...],
        *,
        blocks: int,
        patch: int,
        time: int,
        inner: tuple[int, int],
    ) -> None:
        super().__init__()
        _check(schema, channels, blocks, patch, time)
        self.schema = schema
        self.patch = (1, patch, patch)
        factor = patch * 2 ** (len(channels) - 1)
        rows, columns = (side // factor for side in schema.size[1:])
        self.size = (1 + (schema.size[0] - 1) // time, rows, columns)
        pixels, halvings = schema.channels * patch**2, time.bit_length() - 1
        self.encoder = _encoder(pixels, channels, blocks, inner[0], halvings)
        self.decoder = _decoder(pixels, channels, blocks, inner[1], halvings)

    @property
    def last_layer(self) -> nn.Parameter:
        """Weights of the decoder's last convolution."""
        return [value for value in self.decoder.parameters() if value.ndim > 1][-1]

    def _vectors(self, image: Tensor) -> Tensor:
        return self.encoder(space_to_depth(image, self.patch))

    def _image(self, vectors: Tensor) -> Tensor:
        return depth_to_space(self.decoder(vectors), self.patch)


@register("codec", "causal_tokenizer")
class CausalTokenizer(_Causal):
    """Tokens of clips: fewer in space by patch * 2^(levels - 1), and in time by `time`.

    Args:
        schema: of clips of 1 + `time` k frames.
        channels: features of every level, the clip's resolution first; multiples of 8.
        blocks: residual blocks a level.
        patch: side of the blocks of pixels that become channels before the first level.
        time: compression of time: 1, 2 or 4.
        quantizer: "vq", "fsq" or "lfq", as for the codec "tokenizer", as all that follows.
        vocab: number of tokens, of "vq" and "lfq".
        width: channels of a code, of "vq".
        levels: of every channel, of "fsq".

    Raises:
        ValueError: the clips do not divide so, or a setting is out of range or has no effect.

    Source: Yu et al. 2024, MAGVIT-v2, arXiv 2310.05737; of echo as in Li et al. 2024, ECHOPulse,
        arXiv 2410.03143.
    """

    domain = "tokens"

    def __init__(
        self,
        schema: Schema,
        *,
        channels: tuple[int, ...] = (32, 64, 64),
        blocks: int = 1,
        patch: int = 2,
        time: int = 4,
        quantizer: QuantizerName = "vq",
        vocab: int | None = None,
        width: int | None = None,
        levels: tuple[int, ...] | None = None,
    ) -> None:
        codes = make_quantizer(quantizer, vocab=vocab, width=width, levels=levels)
        inner = (codes.width, codes.width)
        super().__init__(schema, channels, blocks=blocks, patch=patch, time=time, inner=inner)
        self.quantizer = codes
        self.latent = LatentSpec("tokens", self.size, vocab=codes.vocab)

    def encode(self, image: Float[Tensor, "b c t h w"]) -> Int[Tensor, "b t2 h2 w2"]:
        """Tokens; nothing is learned, whatever the mode."""
        was_training = self.quantizer.training
        tokens = self.quantizer.eval()(self._vectors(image)).tokens
        self.quantizer.train(was_training)
        return tokens

    def decode(self, z: Int[Tensor, "b t2 h2 w2"]) -> Float[Tensor, "b c t h w"]:
        """Clips, held to [-1, 1]; of the first latent frames alone, the first frames."""
        return self._image(self.quantizer.codes(z)).clamp(-1, 1)

    def forward(self, image: Tensor, rng: Rng | None = None) -> Reconstruction:
        """A reconstruction from the codes; in training mode the codebook learns. Draws nothing."""
        made = self.quantizer(self._vectors(image))
        return Reconstruction(self._image(made.codes), made.penalties, made.tokens)

    def fit(self, images: Tensor) -> None:
        """Tokens have no scale, so there is nothing to measure."""

    @property
    def averaged(self) -> dict[str, Tensor]:
        """The parameters and the codebook."""
        learned = {f"quantizer.{name}": value for name, value in self.quantizer.learned.items()}
        return super().averaged | learned


@register("codec", "causal_autoencoder")
class CausalAutoencoder(_Causal):
    """Latents of clips: smaller in space by patch * 2^(levels - 1), and in time by `time`.

    Args:
        schema: of clips of 1 + `time` k frames.
        channels: features of every level, the clip's resolution first; multiples of 8.
        latent_channels: channels of a latent.
        blocks: residual blocks a level.
        patch: side of the blocks of pixels that become channels before the first level.
        time: compression of time: 1, 2 or 4.

    Raises:
        ValueError: the clips do not divide so, or a setting is out of range.

    Source: Yang et al. 2024, CogVideoX, arXiv 2408.06072, sec. 2.1.
    """

    domain = "continuous"

    def __init__(
        self,
        schema: Schema,
        *,
        channels: tuple[int, ...] = (32, 64, 64),
        latent_channels: int = 4,
        blocks: int = 1,
        patch: int = 2,
        time: int = 4,
    ) -> None:
        inner = (2 * latent_channels, latent_channels)
        super().__init__(schema, channels, blocks=blocks, patch=patch, time=time, inner=inner)
        self.latent = LatentSpec("continuous", self.size, channels=latent_channels)
        self.whitening = Whitening(latent_channels, "channel")

    def encode(self, image: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t2 h2 w2"]:
        """The mean of the posterior, of unit variance in every channel once fitted."""
        return self.whitening(self._posterior(image)[0])

    def decode(self, z: Float[Tensor, "b d t2 h2 w2"]) -> Float[Tensor, "b c t h w"]:
        """Clips, held to [-1, 1]; of the first latent frames alone, the first frames."""
        return self._image(self.whitening.inverse(z)).clamp(-1, 1)

    def forward(self, image: Tensor, rng: Rng | None = None) -> Reconstruction:
        """A reconstruction from latents drawn by `rng`, None takes the means, and the penalty."""
        mean, logvar = self._posterior(image)
        z = mean
        if rng is not None:
            z = mean + (0.5 * logvar).exp() * rng.normal(self.latent.shape).to(image.device)
        return Reconstruction(self._image(z), {"kl": kl_divergence(mean.float(), logvar.float())})

    def fit(self, images: Tensor) -> None:
        """Measure every channel's shift and scale on clips in [-1, 1], best the training split."""
        self.whitening.fit(images, lambda part: self._posterior(part)[0])

    def _posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self._vectors(image).chunk(2, dim=1)
        return mean, logvar.clamp(*_LOGVAR_RANGE)


def _check(schema: Schema, channels: tuple[int, ...], blocks: int, patch: int, time: int) -> None:
    if not is_clip(schema):
        raise ValueError(f"a causal codec takes clips (time, height, width), got {schema.size}")
    frames = Schema(size=schema.size[1:])
    check_network(frames, channels, {"blocks": blocks, "patch": patch, "groups": GROUPS})
    if time not in (1, 2, 4) or time > 2 ** (len(channels) - 1):
        raise ValueError(
            f"time: expected 1, 2 or 4, and a level in `channels` for each halving, got {time} for "
            f"{len(channels)} levels"
        )
    if (left := (schema.size[0] - 1) % time) or schema.size[0] < 1 + time:
        raise ValueError(
            f"time: clips of {schema.size[0]} frames are not one frame and whole groups of {time}; "
            f"use {max(schema.size[0] - left, 1 + time)} frames"
        )
