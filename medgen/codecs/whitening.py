"""Shift and scale that give latents zero mean and unit variance; stored with the codec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

Whiten = Literal["global", "half", "channel"]


class Whitening(nn.Module):
    """An invertible affine map of every channel, measured once by `fit` and saved with the weights.

    Until it is fitted it is the identity. "channel" gives every channel unit variance. "global"
    divides all channels by one number, so that their variance is one on average and the ratios
    between channels stay. "half" lies between them: the ratios of the channels' deviations become
    their square roots, and the variance is one on average.

    Args:
        channels: channels of the latents.
        whiten: one scale for all channels, one for each, or their geometric mean.
    """

    shift: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(self, channels: int, whiten: Whiten) -> None:
        super().__init__()
        if whiten not in get_args(Whiten):
            raise ValueError(f"whiten: expected {' or '.join(get_args(Whiten))}, got '{whiten}'")
        self.whiten: Whiten = whiten
        self.register_buffer("shift", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def forward(self, z: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
        """Raw latents to latents of zero mean and unit variance."""
        return (z - self._along(self.shift, z)) / self._along(self.scale, z)

    def inverse(self, z: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
        """Latents of zero mean and unit variance back to raw latents."""
        return z * self._along(self.scale, z) + self._along(self.shift, z)

    @torch.no_grad()
    def fit(
        self,
        images: Float[Tensor, "b c *s"],
        encode: Callable[[Tensor], Tensor],
        *,
        batch: int = 32,
    ) -> None:
        """Measure shift and scale on the raw latents that `encode` makes of the images.

        Args:
            images: in [-1, 1].
            encode: images to raw latents, without whitening.
            batch: images encoded at once.

        Raises:
            ValueError: there are no images.
        """
        if len(images) == 0:
            raise ValueError("expected images to fit the codec's scale on, got none")
        device = self.shift.device
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for part in images.split(batch):
            z = encode(part.to(device)).double().transpose(0, 1).flatten(1).cpu()
            count += z.shape[1]
            total = total + z.sum(dim=1)
            squares = squares + z.square().sum(dim=1)
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        self.shift.copy_(mean)
        self.scale.copy_(_scales(variance, self.whiten))
        self.fitted.fill_(True)

    def _along(self, values: Tensor, z: Tensor) -> Tensor:
        return values.view(-1, *[1] * (z.ndim - 2))


def _scales(variance: Float[Tensor, "c"], whiten: Whiten) -> Float[Tensor, "c"]:
    """What to divide each channel by; 1 where that would be 0."""
    own, common = variance.sqrt(), variance.mean().sqrt().expand_as(variance)
    if whiten == "channel":
        scale = own
    elif whiten == "global":
        scale = common
    else:  # variances are then own * own / scale^2 = own, up to the factor that makes their mean 1
        scale = (own * own.mean()).sqrt()
    return torch.where(scale > 0, scale, torch.ones_like(scale))
