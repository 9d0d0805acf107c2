"""Networks of other libraries by name: random weights, any channels, one clear error."""

import sys
from dataclasses import replace

import pytest
import torch
from toy_studies import discs

from medgen.augmentation.consumers import network_for
from medgen.augmentation.experiment import prove
from medgen.augmentation.tasks import task_for, train_consumer
from medgen.errors import MissingExtraError, RecipeError
from medgen.settings import ProveSettings

SCHEMA = discs(2).schema


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("consumer", ["medgen", "torchvision:resnet18", "monai:DenseNet121"])
def test_classifiers_take_any_channels(consumer, channels):
    schema = replace(SCHEMA, channels=channels)
    network = network_for(consumer, schema, 5, dense=False)
    assert network(torch.zeros(2, channels, 32, 32)).shape == (2, 5)
    assert network.training


@pytest.mark.parametrize(
    "consumer", ["medgen", "torchvision:lraspp_mobilenet_v3_large", "monai:UNet"]
)
def test_segmenters_take_any_channels(consumer):
    network = network_for(consumer, replace(SCHEMA, channels=2), 4, dense=True)
    assert network(torch.zeros(2, 2, 32, 32)).shape == (2, 4, 32, 32)


def test_libraries_that_are_extras():
    pytest.importorskip("timm")
    pytest.importorskip("segmentation_models_pytorch")
    images = torch.zeros(2, 1, 32, 32)
    for name in ("timm:resnet10t", "timm:vit_tiny_patch16_224"):
        assert network_for(name, SCHEMA, 3, dense=False)(images).shape == (2, 3)
    assert network_for("smp:Unet", SCHEMA, 3, dense=True)(images).shape == (2, 3, 32, 32)


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"medgen\[consumers\]"):
        network_for("timm:resnet10t", SCHEMA, 3, dense=False)


@pytest.mark.parametrize(
    ("consumer", "dense", "says"),
    [
        ("torchvison:resnet18", False, "unknown consumer 'torchvison:resnet18'"),
        ("resnet18", False, "unknown consumer 'resnet18'"),
        ("torchvision:", False, "unknown consumer"),
        ("torchvision:resnet19", False, r"has no network 'resnet19' .*Did you mean 'resnet1\d\d?'"),
        ("torchvision:resnet18", True, "no network 'resnet18' for segmentation"),
        ("monai:Unett", True, "Did you mean 'UNet'"),
        ("monai:UNet", False, r"expected outputs of shape \(2, 2\), got \(2, 2, 32, 32\)"),
        ("monai:DynUNet", True, "kernel_size"),
        ("torchvision:vit_b_16", False, "does not take images of 1 x 32 x 32 .*Wrong image height"),
    ],
)
def test_what_cannot_be_had_is_said(consumer, dense, says):
    with pytest.raises(RecipeError, match=says):
        network_for(consumer, SCHEMA, 2, dense=dense)


def test_the_same_seed_trains_the_same_foreign_network():
    studies = discs(24)
    task = task_for("classification", studies.schema, "torchvision:resnet18")
    images, targets = studies.batch.image, studies.batch.label
    first, second = (train_consumer(task, images, targets, steps=2, batch=8) for _ in range(2))
    assert torch.equal(first.logits(images), second.logits(images))


def test_the_experiment_takes_a_foreign_consumer(tmp_path):
    real, synthetic = discs(40), discs(20, seed=1, synthetic=True)
    saw = {"studies": 10, "patients": 10}
    settings = ProveSettings(
        task="segmentation", consumer="monai:UNet", repeats=1, steps=2, batch=4
    )
    found = prove(real, synthetic, settings, out=tmp_path / "a", generator_saw=saw)
    assert found.settings["consumer"] == "monai:UNet"
    wrong = replace(settings, consumer="monai:Unett")
    with pytest.raises(RecipeError, match="Did you mean 'UNet'"):
        prove(real, synthetic, wrong, out=tmp_path / "b", generator_saw=saw)
    assert not (tmp_path / "b").exists()
