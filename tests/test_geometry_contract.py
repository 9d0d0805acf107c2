"""Spacing is a condition that changes what is drawn; what was never trained is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_studies import Studies
from toy_training import balls, built, train
from toy_volumes import write

from medgen.conditioners.mask import MaskConditioner
from medgen.conditioners.spacing import SpacingConditioner
from medgen.data.geometry import Volume, centred_affine
from medgen.data.nnunet import NnUnet
from medgen.data.synthetic import SyntheticDataset
from medgen.data.volumes import read_geometry, write_volume
from medgen.errors import DataError
from medgen.synthesis.contract import Geometry, asked_spacing, geometry_of, tilt_of
from medgen.synthesis.draw import synthesize
from medgen.synthesis.masks import read_masks
from medgen.synthesis.plan import plan, plan_from_table, plan_like
from medgen.synthesis.verify import verify
from medgen.types import Batch, Provenance, Schema, Study

SIZE = (16, 16, 16)
SCHEMA = Schema(size=SIZE)
FINE, COARSE = (1.0, 1.0, 1.0), (1.6, 1.6, 1.6)


@pytest.fixture(scope="module")
def drawer():
    """A generator of balls of about 4 mm, trained at two spacings."""
    spacing = torch.tensor([FINE, COARSE] * 48)
    studies = balls(96, size=SIZE, spacing=spacing)
    model = built(
        SCHEMA, studies, lambda schema, _: {"spacing": SpacingConditioner(schema, 32)}, patch=2
    )
    train(model, studies, steps=120, batch=8)
    model.statistics = {"studies": 96, "patients": 96, **geometry_of(SCHEMA, studies)}
    model.source = "sha256:toy"
    model.recipe = {"name": "toy", "sampler": {}, "guidance": {}}
    return model


def _radius(images):
    """Voxels, from the volume of what is bright."""
    return ((images > 0).flatten(1).sum(1).float() * 3 / 4 / np.pi).pow(1 / 3)


def test_objects_measure_voxels_by_their_spacing(drawer):
    radii = {}
    for row in (FINE, COARSE):
        asked = plan(drawer, count=12, spacing=row)
        assert (asked.conditions.spacing == torch.tensor(row)).all()
        radii[row] = _radius(drawer.sample(asked.conditions, list(asked.seeds)).image).mean()
    ratio = float(radii[FINE] / radii[COARSE])
    assert abs(ratio / 1.6 - 1) < 0.2
    assert abs(float(radii[FINE]) / 4 - 1) < 0.2


def test_spacings_are_those_of_training_studies_where_none_is_asked_for(drawer):
    asked = plan(drawer, count=8).conditions.spacing
    assert sorted({tuple(round(mm, 3) for mm in row) for row in asked.tolist()}) == [FINE, COARSE]


def test_a_volume_that_follows_a_mask_has_its_spacing(tmp_path):
    """Of studies whose spacing varies, also where the model has no condition on spacing."""
    schema = Schema(size=SIZE, mask_classes=("background", "ball"))
    spacing = torch.tensor([FINE, COARSE] * 3)
    batch = balls(6, size=SIZE, spacing=spacing)
    names = [f"r{i}" for i in range(6)]
    origin = tuple(Provenance(name, synthetic=False, source="toy") for name in names)
    batch = replace(batch, provenance=origin)
    studies = Studies(schema, [Study(name, name, "train") for name in names], batch)
    model = built(schema, batch, lambda s, z: {"anatomy": MaskConditioner(s, z)}, patch=2)
    model.statistics = {"studies": 6, "patients": 6, **geometry_of(schema, batch)}
    model.source, model.recipe = "sha256:toy", {"name": "toy", "sampler": {}, "guidance": {}}
    synthesize(model, plan_like(model, studies, count=6), tmp_path / "drawn", workers=1)
    drawn = SyntheticDataset(tmp_path / "drawn")
    found = [(tuple(item.spacing[0].tolist()), int(item.mask.sum())) for item in drawn]
    assert len(found) == 6
    for mm, voxels in found:  # balls of 4 mm fill 268 voxels of 1 mm, 65 of 1.6 mm
        assert mm == pytest.approx(FINE if voxels > 130 else COARSE)
    assert verify(tmp_path / "drawn", model, count=2).problems == ()


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"spacing": (3.0, 1.0, 1.0)}, "nearest valid spacing is 1.6 x 1 x 1 mm"),
        ({"spacing": (1.0, 1.0, 0.5)}, "nearest valid spacing is 1 x 1 x 1 mm"),
        ({"field_of_view": (64, 16, 16)}, "a field of view of 64 x 16 x 16 mm"),
        ({"field_of_view": (64, 16, 16)}, "of field of view 25.6 x 16 x 16 mm"),
        ({"spacing": (1.0, 1.0)}, "expected a spacing of 3 axes, got 2"),
        ({"spacing": FINE, "field_of_view": SIZE}, "say the same"),
    ],
)
def test_a_geometry_beyond_the_trained_one_is_refused(drawer, asked, named):
    with pytest.raises(DataError, match=named):
        plan(drawer, count=2, **asked)


def test_a_field_of_view_is_a_spacing(drawer):
    asked = plan(drawer, count=1, field_of_view=(20.8, 16, 16)).conditions.spacing
    torch.testing.assert_close(asked, torch.tensor([[1.3, 1.0, 1.0]]))


def test_other_orientations_are_refused(drawer):
    geometry = Geometry.of(SCHEMA, drawer.statistics)
    geometry.require_orientation("ras")
    with pytest.raises(DataError, match="with axes RAS alone"):
        geometry.require_orientation("LPS")
    straight, turned = np.eye(4), np.eye(4)
    turned[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    assert tilt_of(torch.from_numpy(straight[None])) == 0
    assert tilt_of(torch.from_numpy(turned[None])) == pytest.approx(36.87)
    with pytest.raises(DataError, match="turned by 37 degrees"):
        geometry.require_tilt(36.87)


def test_a_fixed_spacing_is_the_only_one():
    geometry = Geometry.of(Schema(size=SIZE, spacing=(1.0, 1.0, 2.0)), {})
    assert asked_spacing(geometry, spacing=(1.0, 1.01, 2.0)) is not None
    with pytest.raises(DataError, match="nearest valid spacing is 1 x 1 x 2 mm"):
        asked_spacing(geometry, spacing=(1.0, 1.0, 1.0))
    with pytest.raises(DataError, match="knew no spacing"):
        asked_spacing(None, spacing=(1.0, 1.0, 1.0))


def test_masks_of_another_spacing_are_refused(tmp_path):
    schema = Schema(size=SIZE, mask_classes=("background", "ball"), spacing=FINE)
    geometry = Geometry.of(schema, {})
    voxels = np.ones((8, 8, 8), np.uint8)
    for name, mm in (("fits", 2.0), ("small", 1.0)):
        affine = centred_affine(voxels.shape, (mm,) * 3)
        write_volume(tmp_path / f"{name}.nii.gz", Volume(voxels, affine))
    assert read_masks([tmp_path / "fits.nii.gz"], schema, geometry).sum() == 16**3
    with pytest.raises(DataError, match=r"small.nii.gz: a spacing of 0.5 x 0.5 x 0.5 mm"):
        read_masks([tmp_path / "small.nii.gz"], schema, geometry)


def test_what_was_asked_for_is_in_files_tables_and_verified(drawer, tmp_path):
    table = tmp_path / "wanted.csv"
    table.write_text("spacing\n1 1 1\n1.6 1.6 1.6\n1 1.3 1\n")
    geometry = Geometry.of(SCHEMA, drawer.statistics)
    asked = plan_from_table(SCHEMA, table, geometry=geometry)
    out = tmp_path / "drawn"
    synthesize(drawer, asked, out, workers=1)
    affine = read_geometry(out / "images" / "synthetic-000002.nii.gz")
    np.testing.assert_allclose(np.diag(affine)[:3], (1, 1.3, 1), rtol=1e-6)
    assert verify(out, drawer, count=3).problems == ()
    table.write_text("spacing\n9 9 9\n")
    with pytest.raises(DataError, match="lies outside"):
        plan_from_table(SCHEMA, table, geometry=geometry)
    table.write_text("spacing\nwide\n")
    with pytest.raises(DataError, match="row 2: 'spacing' is 'wide'"):
        plan_from_table(SCHEMA, table, geometry=geometry)


def test_spacing_conditions_refuse_what_teaches_nothing():
    conditioner = SpacingConditioner(SCHEMA, 8)
    with pytest.raises(ValueError, match="know their spacing"):
        conditioner.fit(Batch(scalar=torch.zeros(2, 1)))
    with pytest.raises(ValueError, match="one spacing"):
        conditioner.fit(Batch(spacing=torch.ones(4, 3)))
    conditioner.fit(Batch(spacing=torch.tensor([[1.0, 1, 1], [1, 1, 3]])))
    vectors = conditioner.encode(Batch(spacing=torch.tensor([[1.0, 1, 1], [1, 1, 2]]))).vector
    assert not torch.allclose(vectors[0], vectors[1])
    unknown = conditioner.encode(Batch(label=torch.zeros(1, 1)))
    assert torch.equal(unknown.vector, conditioner.null(1).vector)


def test_the_reader_keeps_every_volumes_own_spacing_where_asked(tmp_path):
    root = write(tmp_path, cases=3)
    voxels = np.zeros((12, 10, 8), np.int16) + np.arange(8, dtype=np.int16)
    affine = centred_affine(voxels.shape, (0.5, 0.5, 1.0))
    write_volume(root / "imagesTr/case_01_0000.nii.gz", Volume(voxels, affine))
    write_volume(root / "labelsTr/case_01.nii.gz", Volume((voxels > 3).astype(np.uint8), affine))
    own = NnUnet(root, (8, 8, 8), spacing="own")
    assert own.schema.spacing == ()
    assert own[0].spacing.tolist() == [[1, 1, 2]]
    assert own[1].spacing.tolist() == [[0.5, 0.5, 1]]
    resampled = NnUnet(root, (8, 8, 8))
    assert resampled[1].spacing.tolist() == [[1, 1, 2]]
