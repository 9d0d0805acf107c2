import gzip
import resource
import struct

import nibabel
import numpy as np
import pytest

from medgen.data import volumes
from medgen.data.geometry import Volume, from_unit, regrid, spacing_of, to_unit
from medgen.data.volumes import read_volume, write_volume
from medgen.errors import DataError

AXIAL = np.array([[0.8, 0, 0, -20], [0, 0.8, 0, 15], [0, 0, 2.5, -300], [0, 0, 0, 1.0]])


def block(shape=(6, 5, 4), kind=np.int16):
    return np.arange(np.prod(shape)).reshape(shape).astype(kind)


def nifti(path, voxels=None, affine=AXIAL, **header):
    image = nibabel.Nifti1Image(block() if voxels is None else voxels, affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def patched(path, place, data):
    """The same file with other bytes at a place of its header."""
    held = bytearray(path.read_bytes())
    held[place : place + len(data)] = data
    path.write_bytes(bytes(held))
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32])
def test_what_is_written_is_read_back_equal(tmp_path, name, kind):
    volume = Volume(block(kind=kind), AXIAL)
    write_volume(tmp_path / name, volume)
    first = (tmp_path / name).read_bytes()
    read = read_volume(tmp_path / name)
    assert read.voxels.dtype == kind
    np.testing.assert_array_equal(read.voxels, volume.voxels)
    np.testing.assert_allclose(read.affine, AXIAL, atol=1e-5)
    np.testing.assert_allclose(read.spacing, [0.8, 0.8, 2.5], atol=1e-6)
    write_volume(tmp_path / name, volume)
    assert (tmp_path / name).read_bytes() == first
    np.testing.assert_array_equal(nibabel.load(tmp_path / name).get_fdata(), volume.voxels)


def test_every_orientation_becomes_ras(tmp_path):
    landmark = np.array([1, 3, 2])
    for codes in ("LPS", "PIR", "SAL", "RAS"):
        order = nibabel.orientations.axcodes2ornt(codes)
        base = nibabel.Nifti1Image(block(), AXIAL)
        stored = base.as_reoriented(
            nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), order)
        )
        nibabel.save(stored, tmp_path / "a.nii.gz")
        read = read_volume(tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(read.voxels, block())
        world = AXIAL @ [*landmark, 1]
        np.testing.assert_allclose(read.affine @ [*landmark, 1], world, atol=1e-4)


def test_scaled_and_big_endian_files_give_their_numbers(tmp_path):
    path = nifti(tmp_path / "a.nii", scl_slope=2.0, scl_inter=-1024.0)
    raw = nibabel.load(path).dataobj.get_unscaled()
    patched(path, 112, struct.pack("<ff", 2.0, -1024.0))
    np.testing.assert_array_equal(read_volume(path).voxels, raw * 2.0 - 1024)
    assert read_volume(path).voxels.dtype == np.float32
    image = nibabel.Nifti1Image(block(), AXIAL, nibabel.Nifti1Header(endianness=">"))
    nibabel.save(image, tmp_path / "b.nii.gz")
    read = read_volume(tmp_path / "b.nii.gz").voxels
    np.testing.assert_array_equal(read, block())
    assert read.dtype.isnative


def test_nifti_2_metres_and_a_trailing_axis(tmp_path):
    image = nibabel.Nifti2Image(block()[..., None], AXIAL)
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "a.nii.gz")
    read = read_volume(tmp_path / "a.nii.gz")
    assert read.voxels.shape == (6, 5, 4)
    np.testing.assert_allclose(read.spacing, [800, 800, 2500])


def test_no_header_field_is_carried(tmp_path):
    write_volume(tmp_path / "a.nii", Volume(block(), AXIAL))
    header = nibabel.load(tmp_path / "a.nii").header
    for name in ("descrip", "aux_file", "intent_name", "db_name"):
        assert bytes(header[name]).strip(b"\0") == b""


class TestHostileFiles:
    def test_a_header_alone_that_promises_gigabytes(self, tmp_path):
        path = nifti(tmp_path / "a.nii")
        patched(path, 40, struct.pack("<8h", 3, 1200, 1200, 1200, 1, 1, 1, 1))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(DataError, match="cannot hold them"):
            read_volume(path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB

    def test_more_than_is_ever_read(self, tmp_path):
        path = nifti(tmp_path / "a.nii")
        patched(path, 40, struct.pack("<8h", 3, 32000, 32000, 32000, 1, 1, 1, 1))
        with pytest.raises(DataError, match="at most 4 GiB"):
            read_volume(path)

    def test_a_compressed_bomb_is_read_no_further_than_its_header_says(self, tmp_path):
        path = nifti(tmp_path / "a.nii")
        bomb = path.read_bytes() + bytes(300 * 2**20)
        (tmp_path / "b.nii.gz").write_bytes(gzip.compress(bomb, 9))
        del bomb
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        np.testing.assert_array_equal(read_volume(tmp_path / "b.nii.gz").voxels, block())
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB

    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
    def test_truncated_at_any_place(self, tmp_path, name):
        rng = np.random.default_rng(0)
        whole = nifti(tmp_path / name, rng.integers(0, 999, (9, 9, 9), np.int16)).read_bytes()
        for length in np.linspace(0, len(whole) - 9, 12).astype(int):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(DataError, match=str(tmp_path)):
                read_volume(tmp_path / name)

    def test_a_damaged_compressed_file_fails_its_check_sum(self, tmp_path):
        path = nifti(tmp_path / "a.nii.gz", block(kind=np.int16) % 7)
        held = bytearray(path.read_bytes())
        held[len(held) - 6] ^= 1
        path.write_bytes(bytes(held))
        with pytest.raises(DataError, match="damaged"):
            read_volume(path)

    @pytest.mark.parametrize(
        ("place", "data", "text"),
        [
            (280, struct.pack("<4f", np.nan, 0, 0, 0), "not a geometry"),
            (280, struct.pack("<4f", 0, 0, 0, 0), "not a geometry"),
            (280, struct.pack("<4f", 0.8, 0.8, 0, 0), "right angles"),
            (70, struct.pack("<hh", 128, 24), "one number a voxel"),
            (70, struct.pack("<hh", 32, 64), "one number a voxel"),
            (70, struct.pack("<hh", 999, 16), "damaged"),
            (108, struct.pack("<f", np.inf), "cannot hold"),
            (108, struct.pack("<f", -99), "cannot hold"),
            (112, struct.pack("<ff", 2, np.nan), "scl_inter"),
            (344, b"ni1\0", "not a NIfTI file of one part"),
            (40, struct.pack("<8h", 2, 6, 20, 1, 1, 1, 1, 1), "three axes"),
            (40, struct.pack("<8h", 4, 6, 5, 2, 2, 1, 1, 1), "three axes"),
            (40, struct.pack("<8h", 3, 6, -5, 4, 1, 1, 1, 1), "three axes"),
        ],
    )
    def test_headers_that_lie(self, tmp_path, place, data, text):
        affine = AXIAL.copy()
        image = nibabel.Nifti1Image(block(), affine)
        image.set_sform(affine, 1)
        nibabel.save(image, tmp_path / "a.nii")
        with pytest.raises(DataError, match=text):
            read_volume(patched(tmp_path / "a.nii", place, data))

    def test_values_that_are_not_finite(self, tmp_path):
        voxels = block(kind=np.float32)
        voxels[0, 0, 0] = np.nan
        with pytest.raises(DataError, match="1 voxels are NaN"):
            read_volume(nifti(tmp_path / "a.nii", voxels))

    def test_what_is_no_file(self, tmp_path):
        (tmp_path / "text.nii").write_text("hello" * 200)
        for path in (tmp_path, tmp_path / "absent.nii", tmp_path / "text.nii"):
            with pytest.raises(DataError, match=str(path)):
                read_volume(path)


class TestRegrid:
    def test_a_landmark_keeps_its_place_in_the_world(self):
        x, y, z = np.meshgrid(*[np.arange(n) for n in (20, 18, 9)], indexing="ij")
        at = np.array([9.0, 7.0, 4.0])
        spot = np.exp(-(((x - at[0]) ** 2 + (y - at[1]) ** 2) / 8 + (z - at[2]) ** 2 / 2))
        volume = Volume(spot.astype(np.float32), AXIAL)
        moved = regrid(volume, (24, 16, 20), (1.0, 1.1, 1.3))
        np.testing.assert_allclose(moved.spacing, [1, 1.1, 1.3])
        grid = np.stack(np.meshgrid(*[np.arange(n) for n in moved.voxels.shape], indexing="ij"))
        mean = (grid * moved.voxels).sum(axis=(1, 2, 3)) / moved.voxels.sum()
        world = (moved.affine @ [*mean, 1])[:3]
        np.testing.assert_allclose(world, (AXIAL @ [*at, 1])[:3], atol=0.1)

    def test_the_same_grid_changes_nothing(self):
        volume = Volume(block(kind=np.float32), AXIAL)
        same = regrid(volume, (6, 5, 4), (0.8, 0.8, 2.5))
        np.testing.assert_allclose(same.voxels, volume.voxels, atol=1e-4)
        np.testing.assert_allclose(same.affine, AXIAL)

    def test_crops_and_pads_around_a_centre(self):
        volume = Volume(block(kind=np.int16), AXIAL)
        cut = regrid(volume, (2, 2, 2), centre=np.array([2.5, 1.5, 0.5]), labels=True)
        np.testing.assert_array_equal(cut.voxels, volume.voxels[2:4, 1:3, 0:2])
        wide = regrid(volume, (8, 7, 6), labels=True, fill=-7)
        np.testing.assert_array_equal(wide.voxels[1:-1, 1:-1, 1:-1], volume.voxels)
        assert (wide.voxels[0] == -7).all()
        np.testing.assert_allclose(wide.affine @ [1, 1, 1, 1], AXIAL @ [0, 0, 0, 1])

    def test_classes_are_never_mixed(self):
        rng = np.random.default_rng(0)
        labels = Volume(rng.choice([0, 3, 9], (8, 8, 8)).astype(np.uint8), np.eye(4))
        finer = regrid(labels, (20, 20, 20), (0.4, 0.4, 0.4), labels=True)
        assert set(np.unique(finer.voxels)) == {0, 3, 9}
        assert finer.voxels.dtype == np.uint8


def test_windows_invert():
    hounsfield = np.linspace(-1000, 400, 50)
    unit = to_unit(hounsfield, (-1000, 400))
    assert unit.min() == -1
    assert unit.max() == 1
    np.testing.assert_allclose(from_unit(unit, (-1000, 400)), hounsfield, atol=1e-3)
    assert to_unit(np.array([-2000.0, 900.0]), (-1000, 400)).tolist() == [-1, 1]
    np.testing.assert_allclose(spacing_of(AXIAL), [0.8, 0.8, 2.5])
    assert volumes.MAX_BYTES == 4 * 2**30
