"""CAMUS's layout, written from made-up clips."""

import nibabel
import numpy as np
import pytest
from toy_clips import toy_frames, toy_masks

from medgen import registry
from medgen.data.camus import Camus
from medgen.errors import DataError


def save(path, array, spacing=(0.3, 0.5)):
    """(t h w) or (h w) as CAMUS stores them: x first, then y, then time."""
    stored = array.astype(np.uint8).T
    affine = np.diag([-spacing[1], -spacing[0], 1, 1])
    image = nibabel.Nifti1Image(stored, affine)
    image.header.set_zooms((spacing[1], spacing[0], 1)[: stored.ndim])
    nibabel.save(image, path)


def write_camus(
    folder, patients=5, frames=10, *, sequence_masks=True, rate=True, views=("2CH", "4CH")
):
    clip, masks = toy_frames(2 * frames, 30, 20)[:frames], toy_masks(2 * frames, 30, 20)[:frames]
    for k in range(1, patients + 1):
        name = f"patient{k:04d}"
        (folder / name).mkdir(parents=True)
        for view in views:
            stem = str(folder / name / f"{name}_{view}")
            save(f"{stem}_half_sequence.nii.gz", clip)
            save(f"{stem}_ED.nii.gz", clip[0])
            save(f"{stem}_ED_gt.nii.gz", masks[0])
            save(f"{stem}_ES_gt.nii.gz", masks[-1] * 2)
            if sequence_masks:
                save(f"{stem}_half_sequence_gt.nii.gz", masks)
            lines = [
                "ED: 1",
                f"ES: {frames}",
                f"NbFrame: {frames}",
                "Sex: F",
                "Age: 56",
                "EF: 61.5",
            ]
            lines += ["FrameRate: 50.0"] * rate
            (folder / name / f"Info_{view}.cfg").write_text("\n".join(lines))
    return folder


def test_half_cycles_come_with_masks_views_and_millimetres(tmp_path):
    write_camus(tmp_path / "database")
    data = registry.build(
        "data", "camus", {"size": [8, 30, 20], "path": "database", "rate": 50.0}, root=tmp_path
    )
    assert len(data) == 10
    by_patient = {study.patient: study.split for study in data.studies}
    assert all(by_patient[study.patient] == study.split for study in data.studies)
    item = data[0]
    np.testing.assert_array_equal(
        ((item.image[0, 0] + 1) * 127.5).round().numpy(), toy_frames(20, 30, 20)[:8]
    )
    np.testing.assert_array_equal(item.mask[0].numpy(), toy_masks(20, 30, 20)[:8])
    np.testing.assert_allclose(item.spacing[0], [0.02, 0.3, 0.5])
    assert data.labels[:2].tolist() == [[1, 0], [0, 1]]
    assert data.schema.findings == ("apical_two_chamber", "apical_four_chamber")
    np.testing.assert_array_equal(item.scalar[0], [61.5, np.nan, np.nan, 56, 0])


def test_without_masks_of_the_sequence_two_moments_have_one(tmp_path):
    data = Camus(write_camus(tmp_path, 3, sequence_masks=False), (5, 30, 20), rate=25.0)
    mask = data[0].mask[0]
    drawn = [place for place in range(5) if (mask[place] >= 0).all()]
    assert drawn == [0, 4]
    assert set(mask[4].unique().tolist()) == {0, 2}
    np.testing.assert_array_equal(
        ((data[0].image[0, 0, 4] + 1) * 127.5).round().numpy(), toy_frames(20, 30, 20)[9]
    )


def test_a_rate_must_be_known_and_short_cycles_are_counted(tmp_path):
    write_camus(tmp_path / "a", 3, rate=False)
    with pytest.raises(DataError, match="has no FrameRate"):
        Camus(tmp_path / "a", (5, 30, 20))
    assert len(Camus(tmp_path / "a", (5, 30, 20), source_rate=50.0)) == 6
    with pytest.raises(DataError, match="every half cycle is shorter than 6 frames at 25 Hz"):
        Camus(tmp_path / "a", (6, 30, 20), source_rate=50.0)
    write_camus(tmp_path / "b", 3)
    info = tmp_path / "b" / "patient0001" / "Info_2CH.cfg"
    info.write_text(info.read_text().replace("FrameRate: 50.0", "FrameRate: 80.0"))
    data = Camus(tmp_path / "b", (5, 30, 20))
    assert data.left_out == {"shorter than 5 frames at 25 Hz": 1}
    assert len(data) == 5


def test_what_is_not_camus_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no patientXXXX"):
        Camus(tmp_path, (5, 30, 20))
    write_camus(tmp_path / "a", 3)
    save(
        tmp_path / "a" / "patient0001" / "patient0001_2CH_half_sequence_gt.nii.gz",
        toy_masks(10, 8, 9),
    )
    with pytest.raises(DataError, match=r"its masks are \(8, 9\)"):
        Camus(tmp_path / "a", (5, 30, 20))[0]
    info = tmp_path / "a" / "patient0002" / "Info_4CH.cfg"
    info.write_text(info.read_text().replace("NbFrame: 10", "NbFrame: 12"))
    data = Camus(tmp_path / "a", (5, 30, 20))
    place = [study.id for study in data.studies].index("patient0002_4CH")
    with pytest.raises(DataError, match=r"10 frames, but Info_4CH.cfg says NbFrame 12"):
        data[place]
