"""Clips that play: what a loop shows, at which time, and what its files hold."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from toy_hearts import beating

from medgen.data.clips import read_clip
from medgen.report.gallery import Gallery, playing
from medgen.report.loops import CURSOR, CURVE, STRIP, TRACE, Loop, beside, loop, webp, write_loop
from medgen.types import Batch, Schema


@pytest.fixture(scope="module")
def hearts():
    return beating(2, frames=20)


def coloured(picture, colour, slack=30):
    return (np.abs(picture.astype(int) - colour) <= slack).all(axis=-1)


def test_one_cursor_moves_through_all_strips_with_the_frame(hearts):
    shown = loop(hearts[0], hearts.schema)
    assert shown.rate == 16
    assert shown.frames.shape[0] == 20
    clip = shown.frames.shape[1] - 4 * STRIP  # M-mode is two strips high, ECG and volume one each
    width = shown.frames.shape[2]
    for place, frame in enumerate(shown.frames):
        lines = (frame[clip:] == CURSOR).all(axis=(0, 2))
        assert np.flatnonzero(lines).tolist() == [int((place + 0.5) / 20 * width)]
    assert coloured(shown.frames[0], TRACE).any()
    assert coloured(shown.frames[0], CURVE).any()


def test_strips_stand_only_for_what_is_known(hearts):
    study = hearts[0]
    alone = loop(Batch(image=study.image), hearts.schema)
    full = loop(study, hearts.schema)
    assert full.frames.shape[1] - alone.frames.shape[1] == 2 * STRIP
    assert not coloured(alone.frames[0], TRACE).any()


def test_the_m_mode_is_the_middle_line_over_time():
    clip = torch.full((1, 1, 12, 22, 22), -1.0)
    for frame in range(12):
        clip[..., frame, 4 + frame, 11] = 1.0  # sinks by a row a frame
    shown = loop(Batch(image=clip), Schema(size=(12, 22, 22), time=True, spacing=(0.1,)))
    strip = shown.frames[0, -2 * STRIP :, :, 0].astype(float)
    strip[:18] = 0  # the label
    strip[:, (shown.frames[0, -2 * STRIP :] == CURSOR).all(axis=(0, 2))] = 0
    for frame in (5, 8, 11):
        column = strip[:, int((frame + 0.5) / 12 * strip.shape[1])]
        assert abs(column.argmax() - (4.5 + frame) / 22 * 2 * STRIP) <= 3


def test_end_diastole_and_end_systole_are_marked_where_the_masks_say():
    masks = torch.zeros(1, 10, 24, 24, dtype=torch.int64)
    for frame, side in enumerate((6, 7, 8, 10, 9, 8, 6, 4, 5, 6)):
        masks[0, frame, 4 : 4 + side, 4 : 4 + side] = 1
    masks[0, 9] = -1  # nobody drew it
    schema = Schema((10, 24, 24), time=True, spacing=(0.1, 1.0, 1.0), mask_classes=("b", "cavity"))
    shown = loop(Batch(image=torch.zeros(1, 1, 10, 24, 24), mask=masks), schema)
    strip = shown.frames[0, -STRIP:]
    marks = np.flatnonzero(coloured(strip, CURSOR).any(axis=0))
    width = strip.shape[1]
    for frame in (3, 7):
        assert np.abs(marks - (frame + 0.5) / 10 * width).min() <= 1
    cursor = int(0.5 / 10 * width)
    apart = np.abs(marks[:, None] - np.array([cursor, 3.5 / 10 * width, 7.5 / 10 * width]))
    assert (apart.min(axis=1) <= 4).all()
    without = Batch(image=torch.zeros(1, 1, 10, 24, 24), mask=torch.full_like(masks, -1))
    assert loop(without, schema).frames.shape == shown.frames.shape


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_files_keep_frames_and_time(hearts, tmp_path, ending):
    shown = loop(hearts[0], hearts.schema)
    shown = Loop(shown.frames[:, :-1, :-1], 12.0)  # odd sides, and no whole number of ms
    back = read_clip(write_loop(tmp_path / f"clip.{ending}", shown), colour="grey")
    assert len(back.frames) == 20
    assert back.rate == pytest.approx(12.0, rel=0.01)
    luminance = shown.frames.astype(float) @ [0.299, 0.587, 0.114]
    held = back.frames[:, : luminance.shape[1], : luminance.shape[2]]
    assert np.abs(held - luminance).mean() < 4
    assert all(side % 2 == 0 for side in back.frames.shape[1:]) or ending == "gif"


def test_webp_keeps_frames_and_time(hearts):
    picture = Image.open(io.BytesIO(webp(Loop(loop(hearts[0], hearts.schema).frames, 12.0))))
    durations = []
    for place in range(picture.n_frames):
        picture.seek(place)
        picture.load()
        durations.append(picture.info["duration"])
    assert len(durations) == 20
    assert sum(durations) == round(20 / 12 * 1000)


def test_loops_stand_beside_each_other_at_one_time(hearts):
    loops = [loop(hearts[i], hearts.schema, real=i == 0) for i in range(2)]
    both = beside(loops)
    width = loops[0].frames.shape[2]
    assert both.real
    np.testing.assert_array_equal(both.frames[:, :, :width], loops[0].frames)
    np.testing.assert_array_equal(both.frames[:, :, -width:], loops[1].frames)
    assert beside(loops, columns=1).frames.shape[2] == width


def test_what_cannot_play_is_refused(hearts, tmp_path):
    signal = Batch(image=torch.zeros(1, 2, 50))
    with pytest.raises(ValueError, match="expected one clip"):
        loop(signal, Schema((50,), channels=2, time=True, spacing=(0.01,)))
    with pytest.raises(ValueError, match="expected one clip"):
        loop(Batch(image=torch.zeros(2, 1, 4, 8, 8)), Schema((4, 8, 8), time=True, spacing=(0.1,)))
    shown = loop(hearts[0], hearts.schema)
    with pytest.raises(ValueError, match="one length and one rate"):
        beside([shown, Loop(shown.frames[:4], shown.rate)])
    with pytest.raises(ValueError, match=r"expected a name that ends in \.gif, \.mp4, \.webp"):
        write_loop(tmp_path / "clip.png", shown)


def test_the_page_holds_only_as_many_loops_as_fit(hearts, monkeypatch):
    loops = [loop(hearts[i], hearts.schema, caption=f"clip {i}") for i in range(2)]
    found = playing(Gallery(loops=loops))
    assert [tile["caption"] for tile in found["tiles"]] == ["clip 0", "clip 1"]
    assert all(tile["uri"].startswith("data:image/webp;base64,") for tile in found["tiles"])
    held = sum(len(tile["uri"]) + len(tile["still"]) for tile in found["tiles"])
    monkeypatch.setattr("medgen.report.gallery.PLAYING", held * 3 // 4 * 3 // 4)
    assert len(playing(Gallery(loops=loops))["tiles"]) == 1
    assert playing(Gallery(loops=loops))["total"] == 2
    assert playing(None) == {"tiles": [], "total": 0}
