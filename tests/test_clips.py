"""Clips in and out, their rates, sizes and colours, and files that lie about them."""

import io
import resource
from fractions import Fraction

import numpy as np
import pytest
from toy_clips import toy_frames, toy_masks

from medgen.data.clip_export import check_written, write_clip, write_multiframe
from medgen.data.clips import (
    Clip,
    at_rate,
    fit_clip,
    fit_masks,
    fitted_spacing,
    nearest_frames,
    read_clip,
)
from medgen.data.files import write_png
from medgen.errors import DataError, OutputError
from medgen.types import Provenance

ORIGIN = Provenance("synthetic-000001", synthetic=True, source="sha256:ab", seed=7)


@pytest.mark.parametrize("ending", ["avi", "gif"])
@pytest.mark.parametrize("size", [(12, 20, 34), (5, 33, 21), (2, 1, 7)])
def test_lossless_clips_read_back_equal(tmp_path, ending, size):
    clip = Clip(toy_frames(*size), 25)
    back = read_clip(write_clip(tmp_path / f"one.{ending}", clip))
    np.testing.assert_array_equal(back.frames, clip.frames)
    assert back.rate == 25
    check_written(tmp_path / f"one.{ending}", clip)


def test_masks_survive_and_repeated_frames_stay(tmp_path):
    masks = toy_masks().astype(np.uint8)
    masks[3] = masks[2]
    back = read_clip(write_clip(tmp_path / "one.avi", Clip(masks, 32)))
    np.testing.assert_array_equal(back.frames, masks)


def test_mp4_keeps_frames_size_rate_and_nearly_the_grey_levels(tmp_path):
    clip = Clip(toy_frames(), 50)
    path = write_clip(tmp_path / "one.mp4", clip)
    check_written(path, clip, levels=4)
    with pytest.raises(OutputError, match="grey levels off"):
        check_written(path, Clip(255 - clip.frames, 50), levels=4)
    with pytest.raises(OutputError, match="12 frames of 20 x 34 pixels at 50 Hz, written were 20 "):
        check_written(path, Clip(clip.frames.transpose(1, 0, 2), 50), levels=4)
    with pytest.raises(ValueError, match="even heights and widths, got 21 x 34"):
        write_clip(path, Clip(toy_frames(4, 21, 34), 50))


def test_the_same_clip_gives_the_same_bytes(tmp_path, digests):
    for name in ("a", "b"):
        write_clip(tmp_path / name / "one.avi", Clip(toy_frames(), 32))
        write_clip(tmp_path / name / "one.gif", Clip(toy_frames(), 32))
        write_multiframe(tmp_path / name / "one.dcm", Clip(toy_frames(), 32), ORIGIN)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


@pytest.mark.parametrize("spacing", [None, (0.5, 0.4)])
def test_dicom_keeps_rate_and_spacing_and_says_that_it_is_synthetic(tmp_path, spacing):
    import pydicom

    clip = Clip(toy_frames(5, 21, 33), 48, spacing)
    path = write_multiframe(tmp_path / "one.dcm", clip, ORIGIN)
    check_written(path, clip)
    assert read_clip(path).spacing == pytest.approx(spacing)
    header = pydicom.dcmread(path)
    assert (header.NumberOfFrames, header.Rows, header.Columns) == (5, 21, 33)
    assert header.SyntheticData == "YES"
    assert header.Modality == ("US" if spacing else "OT")
    assert header.PatientID == ORIGIN.id


def test_a_folder_of_frames_needs_a_rate_and_sorts_by_number(tmp_path):
    frames = toy_frames(11)
    for place, pixels in enumerate(frames):
        write_png(tmp_path / f"frame_{place}.png", pixels)
    np.testing.assert_array_equal(read_clip(tmp_path, rate=30).frames, frames)
    with pytest.raises(DataError, match="states no rate"):
        read_clip(tmp_path)
    write_png(tmp_path / "frame_11.png", frames[0][:-1])
    with pytest.raises(DataError, match=r"frame_11.png: 19 x 34 pixels; frames before"):
        read_clip(tmp_path, rate=30)


def encoded(path, frames, *, form="rgb24", times=None, rate=30, sizes=None):
    """A clip by another encoder than the one under test, at given times in 1/1000 s."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "bgr0" if form == "rgb24" else "gray"
        stream.codec_context.time_base = Fraction(1, 1000)
        for place, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=form)
            frame.pts = times[place] if times is not None else place * 1000 // rate
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_colour_is_refused_or_counted(tmp_path):
    grey = toy_frames()
    colour = np.repeat(grey[..., None], 3, axis=-1)
    assert read_clip(encoded(tmp_path / "grey.mkv", colour)).coloured == 0
    colour[4:9, 5:10, 5:10, 0] = 255
    colour[4:9, 5:10, 5:10, 2] = 0
    path = encoded(tmp_path / "doppler.mkv", colour)
    with pytest.raises(DataError, match="5 of 12 frames are in colour"):
        read_clip(path)
    clip = read_clip(path, colour="grey")
    assert clip.coloured == 5
    np.testing.assert_allclose(clip.frames[0], grey[0], atol=1)


def test_uneven_times_are_refused_or_resampled_and_counted(tmp_path):
    times = [0, 20, 40, 60, 120, 140, 160, 180, 200, 220, 225, 240]
    path = encoded(tmp_path / "uneven.mkv", toy_frames(), form="gray", times=times, rate=50)
    with pytest.raises(DataError, match=r"frames are 5 to 60 ms apart"):
        read_clip(path)
    clip = read_clip(path, uneven="resample")
    assert clip.rate == pytest.approx(50)
    assert len(clip.frames) == 13
    assert clip.moved == 3  # two frames fill the hole, one of the crowded is left out
    np.testing.assert_array_equal(clip.frames[[0, 3, 12]], toy_frames()[[0, 3, 11]])


def test_a_stated_rate_must_agree(tmp_path):
    path = write_clip(tmp_path / "one.avi", Clip(toy_frames(), 32))
    assert read_clip(path, rate=32).rate == 32
    with pytest.raises(DataError, match="states 32 frames a second, but 30 was asked for"):
        read_clip(path, rate=30)


@pytest.mark.parametrize(("old", "new", "count"), [(50, 32, 32), (30, 60, 100), (32, 32, 50)])
def test_frames_at_another_rate_are_the_nearest_in_time(old, new, count):
    frames = np.broadcast_to(np.arange(50, dtype=np.uint8)[:, None, None], (50, 2, 2))
    clip = at_rate(Clip(frames, old), new)
    assert clip.frames.shape == (count, 2, 2)
    shown = clip.frames[:-1, 0, 0] / old
    assert np.abs(shown - np.arange(count - 1) / new).max() <= 0.5 / old + 1e-9
    assert nearest_frames(50, old, new).tolist() == clip.frames[:, 0, 0].tolist()


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_masks_stay_on_their_frames_at_another_size(fit):
    frames, masks = toy_masks().astype(np.uint8) * 255, toy_masks()
    fitted, classes = fit_clip(frames, (10, 12), fit), fit_masks(masks, (10, 12), fit)
    assert fitted.shape == classes.shape == (12, 10, 12)
    assert ((fitted > 127) == (classes == 1)).mean() > 0.93
    spacing = fitted_spacing((1, 1), (20, 34), (10, 12), fit)
    area = classes.sum() * spacing[0] * spacing[1]
    assert area == pytest.approx(masks.sum(), rel=0.12)


def hostile(folder, how):
    path = write_clip(folder / "one.avi", Clip(toy_frames(), 32))
    data = path.read_bytes()
    if how == "cut":
        path.write_bytes(data[: len(data) * 2 // 3])
    if how == "noise":
        path.write_bytes(bytes(np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8)))
    if how == "empty":
        path.write_bytes(b"")
    if how == "large":
        places = [i for i in range(len(data) - 8) if data[i : i + 8] == b"\x22\0\0\0\x14\0\0\0"]
        assert places
        for place in places:
            data = data[:place] + b"\0\x20\0\0\0\x20\0\0" + data[place + 8 :]
        path.write_bytes(data)
    if how == "one frame":
        path = write_clip(folder / "one.avi", Clip(toy_frames()[:1], 32))
    if how == "ending":
        path = path.rename(folder / "one.txt")
    if how == "no frames":
        (path := folder / "one").mkdir()
    if how in ("dicom frames", "dicom rate", "dicom cut"):
        path = write_multiframe(folder / "one.dcm", Clip(toy_frames(), 32), ORIGIN)
        import pydicom

        header = pydicom.dcmread(path)
        if how == "dicom frames":
            header.NumberOfFrames = 900_000_000
        elif how == "dicom rate":
            del header.FrameTime
        else:
            header.PixelData = header.PixelData[:1000]
        content = io.BytesIO()
        header.save_as(content)
        path.write_bytes(content.getvalue())
    if how == "missing":
        path = folder / "two.avi"
    return path


HOSTILE = {
    "cut": "damaged or truncated",
    "noise": "damaged or truncated",
    "empty": "empty",
    "large": "promises frames of 8192 x 8192",
    "one frame": "two frames or more",
    "ending": "expected a clip as",
    "no frames": "no PNG frames",
    "dicom frames": "more than .* frames",
    "dicom rate": "states no frame time",
    "dicom cut": "damaged or truncated",
    "missing": "cannot be read",
}


@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_clips_give_one_named_error_and_take_no_memory(tmp_path, how):
    path = hostile(tmp_path, how)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=HOSTILE[how]) as error:
        read_clip(path)
    assert path.name in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_the_real_apical_clip_that_comes_with_pydicom():
    from pydicom.data import get_testdata_file

    path = get_testdata_file("examples_ybr_color.dcm", download=False)
    if path is None:
        pytest.skip("this pydicom comes without the clip, and nothing is downloaded")
    clip = read_clip(str(path))
    assert clip.frames.shape == (30, 240, 320)
    assert clip.rate == 30
    assert clip.coloured == 0  # its marks are in colour, its tissue is not
    assert clip.spacing is None  # its region reaches beyond its frames: they were shrunk
    tissue = clip.frames[:, 40:180, 120:230].astype(float)
    assert tissue.mean() > 20
    assert np.abs(np.diff(tissue, axis=0)).mean() > 1  # it moves
