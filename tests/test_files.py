import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from medgen.data import files
from medgen.data.files import read_image, read_mask, to_channels, write_png
from medgen.data.geometry import fit_image, fit_mask
from medgen.errors import DataError, OutputError


def ramp(top, kind):
    return np.linspace(0, top, 12 * 10).astype(kind).reshape(12, 10)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def dicom(path, pixels, **tags):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = CTImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = generate_uid()
    header.Rows, header.Columns = pixels.shape[:2]
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit = 15
    header.PixelRepresentation = 0
    for name, value in tags.items():
        setattr(header, name, value)
    header.PixelData = pixels.tobytes()
    header.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize(("bits", "kind"), [(8, np.uint8), (16, np.uint16)])
def test_png_round_trip_is_exact(tmp_path, bits, kind):
    stored = ramp(2**bits - 1, kind)
    write_png(tmp_path / "a.png", stored, bits=bits)
    read = read_image(tmp_path / "a.png")
    assert read.bits == bits
    assert read.pixels.dtype == np.float32
    assert np.array_equal(np.rint(read.pixels[0] * (2**bits - 1)), stored)
    assert np.array_equal(read_mask(tmp_path / "a.png"), stored)
    write_png(tmp_path / "b.png", read.pixels, bits=bits)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_colour_round_trip_and_luminance(tmp_path):
    colour = np.zeros((3, 4, 5), np.uint8)
    colour[1] = 255
    write_png(tmp_path / "g.png", colour)
    pixels = read_image(tmp_path / "g.png").pixels
    assert np.array_equal(pixels * 255, colour)
    assert np.allclose(to_channels(pixels, 1), 0.587)
    assert np.array_equal(to_channels(pixels[:1], 3), np.zeros((3, 4, 5)))
    with pytest.raises(ValueError, match="2 channel"):
        to_channels(pixels, 2)


@pytest.mark.parametrize(
    ("name", "kind", "top", "close"),
    [
        ("a.jpg", np.uint8, 255, 0.02),
        ("a.tif", np.uint8, 255, 0),
        ("b.tif", np.uint16, 65535, 0),
        ("c.bmp.png", np.uint8, 255, 0),
    ],
)
def test_formats_are_scaled_by_their_own_depth(tmp_path, name, kind, top, close):
    stored = ramp(top, kind)
    Image.fromarray(stored).save(tmp_path / name, quality=95)
    read = read_image(tmp_path / name)
    assert np.abs(read.pixels[0] - stored / top).max() <= close + 1e-6
    assert read.bits == (16 if top > 255 else 8)


def test_one_bit_palette_and_opaque_alpha(tmp_path):
    one = ramp(255, np.uint8) > 100
    Image.fromarray(one).save(tmp_path / "1.png")
    assert set(np.unique(read_image(tmp_path / "1.png").pixels)) == {0.0, 1.0}
    assert np.array_equal(read_mask(tmp_path / "1.png"), one)

    palette = Image.fromarray(ramp(3, np.uint8))
    palette = Image.frombytes("P", palette.size, palette.tobytes())
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    palette.save(tmp_path / "p.png")
    assert np.array_equal(read_mask(tmp_path / "p.png"), ramp(3, np.uint8))
    assert read_image(tmp_path / "p.png").pixels.shape == (3, 12, 10)

    gray = Image.fromarray(ramp(255, np.uint8))
    gray.convert("LA").save(tmp_path / "la.png")
    assert np.array_equal(read_image(tmp_path / "la.png").pixels[0] * 255, ramp(255, np.uint8))
    gray.putalpha(100)
    gray.save(tmp_path / "see-through.png")
    with pytest.raises(DataError, match="transparent"):
        read_image(tmp_path / "see-through.png")


def test_rotation_in_a_jpeg_is_applied(tmp_path):
    about = Image.Exif()
    about[0x0112] = 6
    Image.fromarray(ramp(255, np.uint8)).save(tmp_path / "r.jpg", exif=about)
    assert read_image(tmp_path / "r.jpg").pixels.shape == (1, 10, 12)


def test_dicom_rescale_window_inversion_and_spacing(tmp_path):
    stored = ramp(4000, np.uint16)
    plain = read_image(dicom(tmp_path / "a.dcm", stored, PixelSpacing=[0.5, 0.7]))
    assert plain.spacing == (0.5, 0.7)
    assert plain.bits == 16
    assert np.allclose(plain.pixels[0], stored / 4000, atol=1e-6)
    dark = read_image(dicom(tmp_path / "b", stored, PhotometricInterpretation="MONOCHROME1"))
    assert np.allclose(dark.pixels, 1 - plain.pixels, atol=1e-6)
    window = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 0, "WindowWidth": 201}
    shown = read_image(dicom(tmp_path / "c.dcm", stored, **window)).pixels[0]
    hu = stored.astype(float) - 1024
    assert np.allclose(shown, np.clip((hu + 0.5) / 200 + 0.5, 0, 1), atol=1e-6)
    exact = read_image(
        dicom(tmp_path / "d.dcm", stored, **window, VOILUTFunction="LINEAR_EXACT")
    ).pixels[0]
    assert np.allclose(exact, np.clip(hu / 201 + 0.5, 0, 1), atol=1e-6)


def test_dicom_padding_does_not_set_the_range(tmp_path):
    stored = ramp(100, np.uint16) + np.uint16(100)
    stored[0] = 60000
    read = read_image(dicom(tmp_path / "a.dcm", stored, PixelPaddingValue=60000)).pixels[0]
    assert np.allclose(read[1:], (stored[1:] - 108.0) / 92, atol=0.01)


@pytest.mark.parametrize(
    "tags",
    [{"Rows": 60000, "Columns": 60000}, {"NumberOfFrames": "2000000"}, {"Rows": 13}],
)
def test_dicom_headers_that_lie(tmp_path, tags):
    with pytest.raises(DataError, match=r"lie\.dcm"):
        read_image(dicom(tmp_path / "lie.dcm", ramp(9, np.uint16), **tags))


@pytest.mark.parametrize("count", [0, 20, 60, 200, 400])
def test_truncated_dicom(tmp_path, count):
    data = dicom(tmp_path / "a.dcm", ramp(9, np.uint16)).read_bytes()
    (tmp_path / "cut.dcm").write_bytes(data[:count])
    with pytest.raises(DataError, match=r"cut\.dcm"):
        read_image(tmp_path / "cut.dcm")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_no_truncation_is_read_as_an_image(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    for share in (0.0, 0.01, 0.3, 0.9):
        (tmp_path / name).write_bytes(data[: int(len(data) * share)])
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            read_image(tmp_path / name)


def test_text_under_an_image_name(tmp_path):
    (tmp_path / "a.png").write_text("hello, I am a picture")
    with pytest.raises(DataError, match=r"a\.png: not a PNG"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("side", [8_000, 60_000, 2**31 - 1])
def test_a_bomb_is_refused_from_its_header(tmp_path, side, monkeypatch):
    decoded = []
    monkeypatch.setattr(Image.Image, "load", lambda self: decoded.append(self))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b""))
    with pytest.raises(DataError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png")
    assert not decoded


def test_a_huge_file_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    (tmp_path / "a.png").write_bytes(bytes(1001))
    with pytest.raises(DataError, match="MiB"):
        read_image(tmp_path / "a.png")


def test_what_cannot_be_read_faithfully_is_refused(tmp_path):
    Image.fromarray(ramp(1, np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match=r"float\.tif.*mode F"):
        read_image(tmp_path / "float.tif")
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(26)))
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b""))
    with pytest.raises(DataError, match="16-bit colour"):
        read_image(tmp_path / "deep.png")
    pages = [Image.fromarray(ramp(255, np.uint8))] * 3
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match="3 frames"):
        read_image(tmp_path / "pages.tif")
    Image.new("CMYK", (4, 4)).save(tmp_path / "ink.jpg")
    with pytest.raises(DataError, match="CMYK"):
        read_image(tmp_path / "ink.jpg")
    for name in ("absent.png", "."):
        with pytest.raises(DataError, match=r"cannot be read|expected a file"):
            read_image(tmp_path / name)


def test_a_mask_in_colour_is_refused(tmp_path):
    gray = np.stack([ramp(5, np.uint8)] * 3, -1)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    assert np.array_equal(read_mask(tmp_path / "gray.png"), ramp(5, np.uint8))
    gray[0, 0, 2] += 1
    Image.fromarray(gray).save(tmp_path / "colour.png")
    with pytest.raises(DataError, match=r"colour\.png.*grayscale"):
        read_mask(tmp_path / "colour.png")


def test_random_bytes_after_a_good_start_never_escape(tmp_path):
    rng = np.random.default_rng(1)
    buffer = io.BytesIO()
    Image.fromarray(ramp(255, np.uint8)).save(buffer, "PNG")
    good = np.frombuffer(buffer.getvalue(), np.uint8)
    for _ in range(200):
        bad = good.copy()
        bad[rng.integers(8, len(bad), 3)] = rng.integers(0, 256, 3)
        (tmp_path / "a.png").write_bytes(bad.tobytes())
        with contextlib.suppress(DataError):
            assert read_image(tmp_path / "a.png").pixels.max() <= 1


@pytest.mark.parametrize(
    ("pixels", "bits"),
    [
        (np.zeros((2, 3, 3)), 8),
        (np.zeros((3, 3, 3)), 16),
        (np.full((3, 3), 1.2), 8),
        (np.full((3, 3), np.nan), 8),
        (np.full((3, 3), 256), 8),
        (np.zeros((0, 3)), 8),
    ],
)
def test_writing_refuses_what_it_would_have_to_clip(tmp_path, pixels, bits):
    with pytest.raises(ValueError, match="expected"):
        write_png(tmp_path / "a.png", pixels, bits=bits)
    assert not list(tmp_path.iterdir())


def test_writing_is_all_or_nothing(tmp_path):
    write_png(tmp_path / "b.png", np.zeros((3, 3)))
    with pytest.raises(OutputError, match="cannot write"):
        write_png(tmp_path / "b.png" / "a.png", np.zeros((3, 3)))
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OutputError, match=r"a\.png"):
        write_png(tmp_path / "a.png", np.zeros((3, 3)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_resizing_by_whole_steps_is_the_mean_of_blocks():
    image = np.random.default_rng(0).random((2, 8, 12)).astype(np.float32)
    blocks = image.reshape(2, 4, 2, 4, 3).mean((2, 4))
    assert np.allclose(fit_image(image, (4, 4), "squash"), blocks, atol=1e-6)
    assert np.array_equal(fit_image(image, (8, 12)), image)


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("size", [(5, 7), (30, 11), (9, 40)])
def test_a_constant_stays_constant(fit, size):
    constant = np.full((1, 13, 10), 0.7, np.float32)
    assert np.allclose(fit_image(constant, size, fit), 0.7, atol=1e-5)


def test_squashing_keeps_the_mean():
    image = np.random.default_rng(0).random((1, 37, 23)).astype(np.float32)
    assert abs(fit_image(image, (8, 9), "squash").mean() - image.mean()) < 1e-6


def test_crop_takes_the_centre_and_pad_adds_black():
    image = np.zeros((1, 4, 8), np.float32)
    image[:, :, 2:6] = 1
    assert (fit_image(image, (4, 4), "crop") == 1).all()
    padded = fit_image(image, (8, 8), "pad")
    assert (padded[0, :2] == 0).all()
    assert (padded[0, 6:] == 0).all()
    assert np.allclose(padded[0, 2:6], image[0])


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("size", [(10, 10), (16, 8), (40, 64)])
def test_masks_land_where_their_images_do(fit, size):
    disc = ((np.indices((40, 60)) - np.array([18, 33])[:, None, None]) ** 2).sum(0) < 150
    mask = fit_mask(disc.astype(np.int64), size, fit)
    image = fit_image(disc[None].astype(np.float32), size, fit)[0]
    assert mask.shape == size
    assert set(np.unique(mask)) == {0, 1}
    overlap = 2 * (mask * image).sum() / (mask.sum() + image.sum())
    assert overlap > 0.8
    middle = [(np.indices(size) * each).sum((1, 2)) / each.sum() for each in (mask, image)]
    assert np.abs(middle[0] - middle[1]).max() < 0.35
