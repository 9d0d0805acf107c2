"""The consumers' networks by name: medgen's own small ones, or any of other libraries."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medgen.augmentation.networks import SmallClassifier, SmallUNet
from medgen.augmentation.video_networks import Framewise, SmallVideoNet
from medgen.errors import MissingExtraError, RecipeError, did_you_mean
from medgen.types import Schema

OWN = "medgen"


def network_for(consumer: str, schema: Schema, outputs: int, *, dense: bool) -> nn.Module:
    """A fresh network, its weights random, its first layer fitted to the images' channels.

    Args:
        consumer: "medgen", or LIBRARY:NAME such as "torchvision:resnet18", "timm:convnext_atto",
            "smp:Unet" or "monai:DenseNet121".
        schema: of the images.
        outputs: logits.
        dense: one set of logits a pixel, not one an image.

    Raises:
        RecipeError: there is no such network, or it does not take these images.
        MissingExtraError: its library is not installed.
    """
    if consumer == OWN:
        return _own(schema, outputs, dense)
    named, _, name = consumer.partition(":")
    if named not in LIBRARIES or not name:
        known = [OWN, *(f"{library}:NAME" for library in LIBRARIES)]
        raise RecipeError(f"unknown consumer '{consumer}'. {did_you_mean(consumer, known)}")
    library = LIBRARIES[named]
    names = library.names(dense)
    if name not in names:
        offer = did_you_mean(name, names)
        offer = offer if len(names) < 99 or offer.startswith("Did") else ""
        kind = "segmentation" if dense else "classification and regression"
        raise RecipeError(f"{named} has no network '{name}' for {kind}. {offer}".strip())
    ask = Asked(schema.channels, outputs, tuple(schema.size), dense)
    try:
        network = Single(library.build(name, ask))
        _check(network, ask)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        size = " x ".join(map(str, (schema.channels, *schema.size)))
        raise RecipeError(
            f"consumer '{consumer}' does not take images of {size} to {outputs} outputs: {error}. "
            "Choose another network, or another data.size."
        ) from error
    return network


def _own(schema: Schema, outputs: int, dense: bool) -> nn.Module:
    """Medgen's own network for clips, or for signals, images and volumes."""
    if schema.time and len(schema.size) == 3:
        own = Framewise if dense else SmallVideoNet
    else:
        own = SmallUNet if dense else SmallClassifier
    return own(schema.channels, outputs, schema.size)


@dataclass(frozen=True)
class Asked:
    """What a network must take and give.

    Args:
        channels: of an image.
        outputs: logits.
        size: of an image.
        dense: logits for every pixel.
    """

    channels: int
    outputs: int
    size: tuple[int, ...]
    dense: bool


@dataclass(frozen=True)
class Library:
    """Where networks come from.

    Args:
        names: of its networks; takes whether they are to be dense.
        build: a network of a name.
    """

    names: Callable[[bool], list[str]]
    build: Callable[[str, Asked], nn.Module]


class Single(nn.Module):
    """A network whose main output is its only one; some also return auxiliary ones.

    Args:
        network: maps images to logits, or to a dictionary or sequence that begins with them.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Images (b c h w) in [-1, 1] to logits."""
        found = self.network(x)
        if isinstance(found, Mapping):
            return found["out"]
        return found[0] if isinstance(found, list | tuple) else found


def _check(network: nn.Module, ask: Asked) -> None:
    """Two images through the network must give what was asked for."""
    network.eval()
    with torch.no_grad():
        given = tuple(network(torch.zeros(2, ask.channels, *ask.size)).shape)
    network.train()
    wanted = (2, ask.outputs, *(ask.size if ask.dense else ()))
    if given != wanted:
        raise ValueError(f"expected outputs of shape {wanted}, got {given}")


def _torchvision_names(dense: bool) -> list[str]:
    from torchvision import models

    return models.list_models(module=models.segmentation if dense else models)


def _torchvision(name: str, ask: Asked) -> nn.Module:
    from torchvision.models import get_model

    backbone = {"weights_backbone": None} if ask.dense else {}
    with warnings.catch_warnings():
        # Inception and GoogLeNet warn that their initial weights will change.
        warnings.simplefilter("ignore", FutureWarning)
        network = get_model(name, weights=None, num_classes=ask.outputs, **backbone)
    return _with_channels(network, ask.channels)


def _with_channels(network: nn.Module, channels: int) -> nn.Module:
    """The network with its first convolution replaced by a fresh one for other channels."""
    convolutions = ((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    name, first = next(convolutions)
    if first.in_channels == channels:
        return network
    shared = ("out_channels", "kernel_size", "stride", "padding", "dilation")
    settings: dict[str, Any] = {key: getattr(first, key) for key in shared}
    fresh = nn.Conv2d(channels, bias=first.bias is not None, **settings)
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, fresh)
    return network


def _timm_names(dense: bool) -> list[str]:
    return [] if dense else _extra("timm").list_models()


def _timm(name: str, ask: Asked) -> nn.Module:
    create, wanted = _extra("timm").create_model, {"in_chans": ask.channels}
    wanted["num_classes"] = ask.outputs
    try:
        return create(name, pretrained=False, img_size=ask.size, **wanted)
    except TypeError:
        # Convolutional networks take any size and have no such argument.
        return create(name, pretrained=False, **wanted)


def _smp_classes() -> dict[str, Callable[..., nn.Module]]:
    classes = _extra("segmentation_models_pytorch").MODEL_ARCHITECTURES_MAPPING.values()
    return {each.__name__: each for each in classes}


def _smp_names(dense: bool) -> list[str]:
    return list(_smp_classes()) if dense else []


def _smp(name: str, ask: Asked) -> nn.Module:
    return _smp_classes()[name](encoder_weights=None, in_channels=ask.channels, classes=ask.outputs)


def _monai_names(dense: bool) -> list[str]:
    """Networks that map images to outputs; which of them are dense their shapes tell."""
    from monai.networks import nets

    classes = {name: each for name, each in vars(nets).items() if inspect.isclass(each)}
    return [
        name
        for name, each in classes.items()
        if each.__name__ == name
        and "in_channels" in (takes := inspect.signature(each).parameters)
        and {"out_channels", "num_classes"} & set(takes)
    ]


def _monai(name: str, ask: Asked) -> nn.Module:
    from monai.networks import nets

    network = getattr(nets, name)
    offered: dict[str, Any] = {
        "spatial_dims": len(ask.size),
        "in_channels": ask.channels,
        "out_channels": ask.outputs,
        "num_classes": ask.outputs,
        "img_size": ask.size,
        "patch_size": 16,
        "channels": (16, 32, 64, 128),
        "strides": (2, 2, 2),
    }
    takes = inspect.signature(network).parameters
    return network(**{key: value for key, value in offered.items() if key in takes})


def _extra(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"consumers of {module} need it installed: pip install 'medgen[consumers]'"
        ) from error


LIBRARIES: dict[str, Library] = {
    "torchvision": Library(_torchvision_names, _torchvision),
    "timm": Library(_timm_names, _timm),
    "smp": Library(_smp_names, _smp),
    "monai": Library(_monai_names, _monai),
}
