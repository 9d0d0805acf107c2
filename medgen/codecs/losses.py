"""What a codec is trained on: reconstruction, perception, a critic of patches, its penalties.

Every loss is one value an image, (b,); the caller reduces.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from medgen.codecs.lpips import SMALLEST, Lpips, find_trunk
from medgen.types import Schema

logger = logging.getLogger(__name__)

Perceptual = Literal["auto", "lpips", "features", "none"]
_WINDOW = 7
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


@dataclass(frozen=True, kw_only=True)
class CodecLosses:
    """The weights of a codec's losses; a weight of 0 leaves a loss out.

    Args:
        reconstruction: mean error of the pixels, "l1" or "mse".
        perceptual: "lpips" needs the weights of its trunk on disk and looks at the slices of
            volumes in three planes; "features" compares structure at several scales and needs none;
            "auto" is LPIPS where its trunk is found, else features.
        perceptual_weight: times the perceptual loss.
        adversarial_weight: times the adversary's part, once it has started.
        adaptive: scale the adversary so that its gradient on the decoder's last layer is as long as
            that of the other losses.
        kl_weight: times the KL divergence per latent number; autoencoders only.
        commitment_weight: times the squared distance of latents to their codes; tokenizers only.
        entropy_weight: times the lack of use of a codebook; lookup-free tokenizers only.
        critic_channels: features of the critic's first layer, a multiple of 8.
        critic_lr: peak learning rate of the critic; it follows the schedule of the autoencoder's.
    """

    reconstruction: Literal["l1", "mse"] = "l1"
    perceptual: Perceptual = "auto"
    perceptual_weight: float = 0.5
    adversarial_weight: float = 0.1
    adaptive: bool = True
    kl_weight: float = 1e-6
    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    critic_channels: int = 32
    critic_lr: float = 2e-4


class AutoencoderLoss(nn.Module):
    """Reconstruction + perception + the codec's own penalties: everything but the adversary.

    Args:
        schema: what the studies hold.
        settings: which losses, and how much each weighs.
        trunk: file with the torchvision weights of LPIPS' trunk; None looks in torch's hub cache.

    Raises:
        MissingExtraError: LPIPS is asked for and its trunk is not on disk.
    """

    def __init__(self, schema: Schema, settings: CodecLosses, *, trunk: Path | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.frames = is_clip(schema)
        self.kind, found = _perception(schema, settings, trunk)
        self.lpips = Lpips(found) if found is not None else None

    def forward(
        self, reconstruction: Tensor, image: Tensor, penalties: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The weighted parts by name, each (b,); their sum is what the autoencoder minimises."""
        settings = self.settings
        error = F.l1_loss if settings.reconstruction == "l1" else F.mse_loss
        parts = {
            "reconstruction": _per_image(error(reconstruction, image, reduction="none")),
            **{name: getattr(settings, f"{name}_weight") * p for name, p in penalties.items()},
        }
        if self.lpips is not None:
            parts["perceptual"] = settings.perceptual_weight * self.lpips(reconstruction, image)
        elif self.kind == "features":
            pair = reconstruction, image
            structure = structure_loss(*[apart(each) if self.frames else each for each in pair])
            structure = structure.unflatten(0, (len(image), -1)).mean(dim=1)
            parts["perceptual"] = settings.perceptual_weight * structure
        return parts


def is_clip(schema: Schema) -> bool:
    """Whether the studies are clips, whose frames perception and critic judge one by one."""
    return schema.time and len(schema.size) == 3


def apart(clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "bt c h w"]:
    """The frames of clips as images."""
    return clips.transpose(1, 2).flatten(0, 1)


def kl_divergence(
    mean: Float[Tensor, "b c *s"], logvar: Float[Tensor, "b c *s"]
) -> Float[Tensor, "b"]:
    """KL divergence of a diagonal Gaussian from the standard normal, mean over latent numbers."""
    return _per_image(0.5 * (mean.square() + logvar.exp() - 1 - logvar))


def ms_ssim(a: Float[Tensor, "b c *s"], b: Float[Tensor, "b c *s"]) -> Float[Tensor, "b"]:
    """Multi-scale structural similarity of images in [-1, 1], with as many scales as fit.

    Windows are boxes, which a pooling makes ten times faster than Gaussians: this is a loss. What
    is reported has Gaussian windows, by torchmetrics.

    Source: Wang, Simoncelli, Bovik 2003, Multiscale structural similarity; box windows as advised
        by Venkataramanan et al. 2021, A hitchhiker's guide to structural similarity.
    """
    pool = F.avg_pool2d if a.ndim == 4 else F.avg_pool3d
    a, b = (a + 1) / 2, (b + 1) / 2
    side = min(a.shape[2:])
    scales = 1 + sum(side >> scale >= _WINDOW for scale in range(1, len(_SCALES)))
    total = sum(_SCALES[:scales])
    similarity = torch.ones(len(a), device=a.device)
    for scale in range(scales):
        luminance, contrast = _structure(a, b, min(_WINDOW, side))
        term = _per_image(luminance * contrast if scale == scales - 1 else contrast)
        # A power of zero has no gradient, so dissimilar images stop just above it.
        similarity = similarity * term.clamp_min(1e-3) ** (_SCALES[scale] / total)
        a, b = pool(a, 2), pool(b, 2)
    return similarity


def _structure(a: Tensor, b: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure terms of every window, for images in [0, 1]."""
    pool = F.avg_pool2d if a.ndim == 4 else F.avg_pool3d
    means = pool(torch.cat([a, b, a * a, b * b, a * b]), window, stride=1)
    mean_a, mean_b, square_a, square_b, product = means.chunk(5)
    both = mean_a.square() + mean_b.square()
    luminance = (2 * mean_a * mean_b + 0.01**2) / (both + 0.01**2)
    covariance = product - mean_a * mean_b
    return luminance, (2 * covariance + 0.03**2) / (square_a + square_b - both + 0.03**2)


def gradient_loss(
    a: Float[Tensor, "b c *s"], b: Float[Tensor, "b c *s"], *, scales: int = 3
) -> Float[Tensor, "b"]:
    """Mean absolute difference of the images' finite differences, over a pyramid of halvings.

    Source: Mathieu, Couprie, LeCun 2016, arXiv 1511.05440, eq. 6, with exponent 1.
    """
    pool = F.avg_pool2d if a.ndim == 4 else F.avg_pool3d
    total, used = torch.zeros(len(a), device=a.device), 0
    while used < scales and min(a.shape[2:]) >= 2:
        difference = a - b
        along = [_per_image(difference.diff(dim=axis).abs()) for axis in range(2, a.ndim)]
        total = total + torch.stack(along).mean(dim=0)
        a, b, used = pool(a, 2), pool(b, 2), used + 1
    return total / max(used, 1)


def structure_loss(a: Float[Tensor, "b c *s"], b: Float[Tensor, "b c *s"]) -> Float[Tensor, "b"]:
    """Lost structure: 1 - MS-SSIM, plus the error of the gradients; needs no trained features."""
    return 1 - ms_ssim(a, b) + gradient_loss(a, b)


def hinge_critic(real: Tensor, fake: Tensor) -> Float[Tensor, "b"]:
    """What the critic minimises: mean max(0, 1 - real) + max(0, 1 + fake) over the patches.

    Source: Lim, Ye 2017, arXiv 1705.02894; the halving follows Esser et al. 2021, arXiv 2012.09841.
    """
    return 0.5 * (_per_image(F.relu(1 - real)) + _per_image(F.relu(1 + fake)))


def hinge_generator(fake: Tensor) -> Float[Tensor, "b"]:
    """What the autoencoder minimises: -fake, linear, so that its gradient never dies."""
    return -_per_image(fake)


def balance(
    loss: Tensor,
    adversarial: Tensor,
    weights: Tensor,
    *,
    average: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Tensor:
    """How much to scale the adversary for a gradient as long as the loss's; held below 10^4.

    Args:
        loss: scalar, the sum of the other losses.
        adversarial: scalar.
        weights: the decoder's last layer.
        average: mean of a gradient over processes.

    Source: Esser et al. 2021, arXiv 2012.09841, eq. 7.
    """
    ours = average(torch.autograd.grad(loss, weights, retain_graph=True)[0]).norm()
    theirs = average(torch.autograd.grad(adversarial, weights, retain_graph=True)[0]).norm()
    return (ours / (theirs + 1e-6)).clamp(max=1e4).detach()


class Critic(nn.Module):
    """A PatchGAN: one logit for every patch of an image or frame; MONAI's network with group norm.

    Group norm, because batch norm would let the critic tell real from reconstructed batches by
    their statistics, and make an image's loss depend on the images beside it.

    Args:
        schema: what the studies hold.
        channels: features of the first layer, a multiple of 8.

    Source: Isola et al. 2017, arXiv 1611.07004.
    """

    def __init__(self, schema: Schema, *, channels: int = 32) -> None:
        super().__init__()
        from monai.networks.nets.patchgan_discriminator import PatchDiscriminator

        self.frames = is_clip(schema)
        size = schema.size[1:] if self.frames else schema.size
        layers = 3 if min(size) >= 64 else 2
        if min(size) < 16:
            raise ValueError(
                f"the critic needs images of at least 16 pixels, got {size}; set "
                "adversarial_weight to 0"
            )
        self.net = PatchDiscriminator(
            spatial_dims=len(size),
            channels=channels,
            in_channels=schema.channels,
            num_layers_d=layers,
            norm=("GROUP", {"num_groups": 8}),
        )

    def forward(self, image: Float[Tensor, "b c *s"]) -> Float[Tensor, "b ..."]:
        """Logits of every patch, of clips in every frame: above 0 looks real."""
        if not self.frames:
            return self.net(image)[-1]
        return self.net(apart(image))[-1].unflatten(0, (len(image), -1))


def _per_image(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1)


def _perception(
    schema: Schema, settings: CodecLosses, trunk: Path | None
) -> tuple[Literal["lpips", "features", "none"], Path | None]:
    asked = "none" if settings.perceptual_weight == 0 else settings.perceptual
    if asked in ("features", "none"):
        return asked, None
    if schema.time or len(schema.size) not in (2, 3) or min(schema.size) < SMALLEST:
        if asked == "lpips":
            raise ValueError(
                f"perceptual: LPIPS looks at images and volumes of at least {SMALLEST} pixels a "
                f"side, these are {'clips of ' if schema.time else ''}{schema.size}; use 'features'"
            )
        return "features", None
    found = find_trunk(trunk, required=asked == "lpips")
    if found is None:
        logger.warning(
            "perceptual loss: no LPIPS trunk on disk, so structure at several scales (MS-SSIM and "
            "gradients) is compared instead; for LPIPS, put torchvision's AlexNet or VGG-16 "
            "weights in torch's hub cache"
        )
        return "features", None
    return "lpips", found
