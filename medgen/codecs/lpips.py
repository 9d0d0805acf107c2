"""LPIPS with a trunk read from a local file, for images and for the slices of volumes.

Nothing is ever downloaded.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medgen.errors import CheckpointError, MissingExtraError

SMALLEST = 32
"""Pixels a side that the trunks need."""
EVERY = 5
"""Of the slices of a volume, one in so many is looked at. A codec halves its maps a few times, so a
number that shares no factor with 2 puts slices at every place of their grid."""


def find_trunk(path: Path | None, *, required: bool = False) -> Path | None:
    """The file with a trunk's weights: the given one, else one in torch's hub cache, else None.

    Raises:
        MissingExtraError: a file is named or required, and there is none.
    """
    if path is not None:
        if not path.is_file():
            raise MissingExtraError(f"trunk: there is no file {path} with weights for LPIPS")
        return path
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    for prefix in ("vgg16-", "alexnet-"):
        found = sorted(cache.glob(f"{prefix}*.pth"))
        if found:
            return found[0]
    if required:
        raise MissingExtraError(
            "perceptual: LPIPS needs torchvision's AlexNet or VGG-16 weights, and there are none "
            f"in {cache}; put the .pth file there, or use perceptual: features"
        )
    return None


class Lpips(nn.Module):
    """Distance of deep features, weighed by human judgements. Frozen.

    Volumes are compared slice by slice, along each of their three axes ("2.5-D").

    Args:
        trunk: torchvision's AlexNet or VGG-16 weights, .pth or .safetensors.

    Raises:
        CheckpointError: the file does not hold such weights.

    Source: Zhang et al. 2018, arXiv 1801.03924, version 0.1.
    """

    def __init__(self, trunk: Path) -> None:
        super().__init__()
        import lpips

        weights = _read(trunk)
        kind = _kind(weights, trunk)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torchvision")
            self.net = lpips.LPIPS(net=kind, pnet_rand=True, verbose=False)
        for name, layer in self.net.net.named_modules():
            if isinstance(layer, nn.Conv2d):
                index = name.rsplit(".", 1)[-1]
                layer.load_state_dict(
                    {key: weights[f"features.{index}.{key}"] for key in ("weight", "bias")}
                )
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Lpips:
        """Stays in evaluation mode: its heads have dropout."""
        return super().train(False)

    def forward(self, a: Float[Tensor, "b c *s"], b: Float[Tensor, "b c *s"]) -> Float[Tensor, "b"]:
        """The distance of images in [-1, 1]; channels that are not RGB are compared one by one.

        That of volumes is the mean over planes of the mean over every fifth slice.
        """
        if a.ndim == 4:
            return self._images(a, b)
        planes = [
            self._images(_slices(a, axis), _slices(b, axis)).reshape(len(a), -1).mean(dim=1)
            for axis in (2, 3, 4)
        ]
        return torch.stack(planes).mean(dim=0)

    def _images(self, a: Tensor, b: Tensor) -> Tensor:
        batch, channels = a.shape[:2]
        if channels != 3:
            a = a.reshape(batch * channels, 1, *a.shape[2:]).expand(-1, 3, -1, -1)
            b = b.reshape(batch * channels, 1, *b.shape[2:]).expand(-1, 3, -1, -1)
        return self.net(a, b).reshape(batch, -1).mean(dim=1)


def _slices(volume: Float[Tensor, "b c d h w"], axis: int) -> Float[Tensor, "bn c h w"]:
    """Slices across an axis, evenly spread; those of a volume follow each other."""
    return volume.movedim(axis, 1)[:, EVERY // 2 :: EVERY].flatten(0, 1)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: not readable as weights of LPIPS' trunk: {error}") from None


def _kind(weights: dict[str, Tensor], path: Path) -> str:
    first = weights.get("features.0.weight") if isinstance(weights, dict) else None
    kernel = first.shape[-1] if isinstance(first, Tensor) and first.ndim == 4 else 0
    kind = {11: "alex", 3: "vgg"}.get(kernel)
    last = {"alex": "features.10.weight", "vgg": "features.28.weight"}.get(kind or "")
    if kind is None or last not in weights:
        raise CheckpointError(
            f"{path}: expected torchvision's AlexNet or VGG-16 weights, with features.0.weight; "
            "got something else"
        )
    return kind
