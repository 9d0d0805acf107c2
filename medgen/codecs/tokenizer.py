"""The tokenizer: images and volumes to a grid of tokens and back (VQ-VAE)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from medgen.codecs.autoencoder import GROUPS, check_network
from medgen.codecs.pixels import block_transform, cosine_basis, inverse_block_transform
from medgen.codecs.quantizers import QuantizerName, make_quantizer
from medgen.protocols import LearnedCodec
from medgen.registry import register
from medgen.rng import Rng
from medgen.types import LatentSpec, Reconstruction, Schema


@register("codec", "tokenizer")
class Tokenizer(LearnedCodec):
    """A convolutional encoder whose vectors a quantizer replaces by codes, and a decoder of codes.

    A grid of tokens is smaller than the image by patch * 2^(levels - 1) along every axis, the
    network's levels that is: three give f4.

    Args:
        schema: what the studies hold.
        channels: features of every level, the image's resolution first; multiples of 8.
        blocks: residual blocks a level.
        patch: side of the blocks that an orthonormal cosine transform makes channels of before the
            first level, in pixels.
        attention: one attention layer at the latent's resolution in encoder and decoder.
        quantizer: "vq" learns a codebook; "fsq" rounds every channel to a few levels; "lfq" to -1
            or 1.
        vocab: number of tokens, of "vq" and "lfq"; None means 1024.
        width: channels of a code, of "vq"; None means 8.
        levels: of every channel, of "fsq"; None means 8, 5, 5, 5, which makes 1000 tokens.

    Raises:
        ValueError: the image is not divisible by the factor, or a setting is out of range or has no
            effect.

    Source: van den Oord et al. 2017, arXiv 1711.00937; with perception and a critic as in Esser et
        al. 2021, arXiv 2012.09841. Quantizers: `medgen/codecs/quantizers.py`.
    """

    domain = "tokens"
    basis: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        channels: tuple[int, ...] = (32, 64, 64),
        blocks: int = 2,
        patch: int = 1,
        attention: bool = False,
        quantizer: QuantizerName = "vq",
        vocab: int | None = None,
        width: int | None = None,
        levels: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        from monai.networks.nets.autoencoderkl import Decoder, Encoder

        check_network(schema, channels, {"blocks": blocks, "patch": patch})
        axes = len(schema.size)
        features = schema.channels * patch**axes
        factor = patch * 2 ** (len(channels) - 1)
        self.schema = schema
        self.patch = patch
        self.quantizer = make_quantizer(quantizer, vocab=vocab, width=width, levels=levels)
        size = tuple(side // factor for side in schema.size)
        self.latent = LatentSpec("tokens", size, vocab=self.quantizer.vocab)
        shared = {
            "spatial_dims": axes,
            "channels": channels,
            "num_res_blocks": (blocks,) * len(channels),
            "norm_num_groups": GROUPS,
            "norm_eps": 1e-6,
            "attention_levels": (False,) * len(channels),
            "with_nonlocal_attn": attention,
        }
        inner = self.quantizer.width
        self.encoder = Encoder(in_channels=features, out_channels=inner, **shared)
        self.decoder = Decoder(in_channels=inner, out_channels=features, **shared)
        self.register_buffer("basis", cosine_basis(patch, axes), persistent=False)

    def encode(self, image: Float[Tensor, "b c *s"]) -> Int[Tensor, "b *s"]:
        """Tokens; nothing is learned, whatever the mode."""
        was_training = self.quantizer.training
        tokens = self.quantizer.eval()(self._vectors(image)).tokens
        self.quantizer.train(was_training)
        return tokens

    def decode(self, z: Int[Tensor, "b *s"]) -> Float[Tensor, "b c *s"]:
        """Images, held to [-1, 1]."""
        return self._image(self.quantizer.codes(z)).clamp(-1, 1)

    def forward(self, image: Tensor, rng: Rng | None = None) -> Reconstruction:
        """A reconstruction from the codes; in training mode the codebook learns. Draws nothing."""
        made = self.quantizer(self._vectors(image))
        return Reconstruction(self._image(made.codes), made.penalties, made.tokens)

    def fit(self, images: Float[Tensor, "b c *s"]) -> None:
        """Tokens have no scale, so there is nothing to measure."""

    @property
    def last_layer(self) -> nn.Parameter:
        """Weights of the decoder's last convolution."""
        kernels = [value for value in self.decoder.parameters() if value.ndim > 1]
        return kernels[-1]

    @property
    def averaged(self) -> dict[str, Tensor]:
        """The parameters and the codebook."""
        learned = {f"quantizer.{name}": value for name, value in self.quantizer.learned.items()}
        return super().averaged | learned

    def _vectors(self, image: Tensor) -> Tensor:
        return self.encoder(block_transform(image, self.basis, self.patch))

    def _image(self, codes: Tensor) -> Tensor:
        return inverse_block_transform(self.decoder(codes), self.basis, self.patch)
