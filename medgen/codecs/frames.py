"""Codecs of clips that see one frame at a time, so that the first frame can be decoded alone."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from medgen.codecs.autoencoder import Autoencoder
from medgen.codecs.losses import apart, is_clip
from medgen.codecs.quantizers import QuantizerName
from medgen.codecs.tokenizer import Tokenizer
from medgen.protocols import LearnedCodec
from medgen.registry import register
from medgen.rng import Rng, derive
from medgen.types import LatentSpec, Reconstruction, Schema


class Frames(LearnedCodec):
    """A codec of images, over every frame of a clip; time is not compressed.

    Args:
        schema: of clips (time, height, width).
        image: a codec of such frames.
    """

    def __init__(self, schema: Schema, image: LearnedCodec) -> None:
        super().__init__()
        self.schema = schema
        self.image = image
        inner = image.latent
        size = (schema.size[0], *inner.size)
        self.latent = LatentSpec(inner.domain, size, channels=inner.channels, vocab=inner.vocab)

    def encode(self, image: Tensor) -> Tensor:
        """Latents (b c t h w), or tokens (b t h w), of clips (b c t h w)."""
        return _clips(self.image.encode(apart(image)), len(image))

    def decode(self, z: Tensor) -> Tensor:
        """Clips (b c t h w), held to [-1, 1], of latents or tokens of any number of frames."""
        tokens = self.latent.domain == "tokens"
        return _clips(self.image.decode(z.flatten(0, 1) if tokens else apart(z)), len(z))

    def forward(self, image: Tensor, rng: Rng | None = None) -> Reconstruction:
        """A reconstruction of clips; penalties are means over their frames."""
        count, frames = len(image), image.shape[2]
        each = None
        if rng is not None:
            each = Rng([derive(seed, "frame", k) for seed in rng.seeds for k in range(frames)])
        made = self.image(apart(image), each)
        penalties = {
            name: value.unflatten(0, (count, frames)).mean(dim=1)
            for name, value in made.penalties.items()
        }
        tokens = None if made.tokens is None else _clips(made.tokens, count)
        return Reconstruction(_clips(made.image, count), penalties, tokens)

    @property
    def last_layer(self) -> nn.Parameter:
        """Weights of the decoder's last convolution."""
        return self.image.last_layer

    @property
    def averaged(self) -> dict[str, Tensor]:
        """The tensors that training averages, by name."""
        return {f"image.{name}": value for name, value in self.image.averaged.items()}

    def fit(self, images: Tensor) -> None:
        """Measure the latents' shift and scale on clips in [-1, 1], best the training split."""
        self.image.fit(apart(images))


@register("codec", "frame_autoencoder")
class FrameAutoencoder(Frames):
    """The KL autoencoder of images, frame by frame.

    Args:
        schema: of clips (time, height, width).
        channels: features of every level, as for the codec "autoencoder", as all that follows.
        latent_channels: channels of a latent.
        blocks: residual blocks a level.
        patch: side of the blocks that a cosine transform makes channels of.
        attention: one attention layer at the latent's resolution.

    Raises:
        ValueError: the studies are no clips, or the autoencoder refuses the settings.

    Source: Reynaud et al. 2024, EchoNet-Synthetic, arXiv 2406.00808, for clips of echo.
    """

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
        image = Autoencoder(
            _of_frames(schema),
            channels=channels,
            latent_channels=latent_channels,
            blocks=blocks,
            patch=patch,
            attention=attention,
        )
        super().__init__(schema, image)


@register("codec", "frame_tokenizer")
class FrameTokenizer(Frames):
    """The tokenizer of images, frame by frame.

    Args:
        schema: of clips (time, height, width).
        channels: features of every level, as for the codec "tokenizer", as all that follows.
        blocks: residual blocks a level.
        patch: side of the blocks that a cosine transform makes channels of.
        quantizer: "vq", "fsq" or "lfq".
        vocab: number of tokens, of "vq" and "lfq".
        width: channels of a code, of "vq".
        levels: of every channel, of "fsq".

    Raises:
        ValueError: the studies are no clips, or the tokenizer refuses the settings.

    Source: van den Oord et al. 2017, arXiv 1711.00937; the first frame stands alone as in
        Villegas et al. 2022, Phenaki, arXiv 2210.02399, the others do here too.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        channels: tuple[int, ...] = (32, 64, 64),
        blocks: int = 2,
        patch: int = 1,
        quantizer: QuantizerName = "vq",
        vocab: int | None = None,
        width: int | None = None,
        levels: tuple[int, ...] | None = None,
    ) -> None:
        image = Tokenizer(
            _of_frames(schema),
            channels=channels,
            blocks=blocks,
            patch=patch,
            quantizer=quantizer,
            vocab=vocab,
            width=width,
            levels=levels,
        )
        super().__init__(schema, image)


def _of_frames(schema: Schema) -> Schema:
    if not is_clip(schema):
        raise ValueError(
            f"a codec of frames takes clips (time, height, width), got studies of {schema.size}"
        )
    return replace(schema, size=schema.size[1:], spacing=schema.spacing[1:], time=False)


def _clips(images: Tensor, count: int) -> Tensor:
    """Images (b*t c h w) as clips (b c t h w), or tokens (b*t h w) as (b t h w)."""
    clips = images.unflatten(0, (count, -1))
    return clips.transpose(1, 2) if clips.ndim == 5 else clips
