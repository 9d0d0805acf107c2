"""EchoNet-Dynamic's layout, written from made-up clips."""

import csv

import numpy as np
import pytest
import torch
from toy_clips import toy_frames, toy_masks

from medgen import registry
from medgen.data.clip_export import write_clip
from medgen.data.clips import Clip
from medgen.data.echonet import EchoNet
from medgen.errors import DataError

LIST = [
    "FileName",
    "EF",
    "ESV",
    "EDV",
    "FrameHeight",
    "FrameWidth",
    "FPS",
    "NumberOfFrames",
    "Split",
]


def chords(mask):
    """Long axis, then one chord a row, as tracings are kept."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = [np.flatnonzero(mask[row]) for row in rows]
    long = (columns[0].mean(), rows[0], columns[-1].mean(), rows[-1])
    return [
        long,
        *((c[0] - 0.4, row, c[-1] + 0.4, row) for row, c in zip(rows, columns, strict=True)),
    ]


def write_echonet(folder, videos=4, frames=24, fps=25, **changes):
    (folder / "Videos").mkdir(parents=True)
    listed, traced = [], []
    for k in range(videos):
        name = f"0X{k:04X}"
        clip = toy_frames(frames, 20, 34)
        write_clip(folder / "Videos" / f"{name}.avi", Clip(clip, fps))
        row = [name, 60 - k, 40, 100, 20, 34, fps, frames, ["TRAIN", "TRAIN", "VAL", "TEST"][k % 4]]
        listed.append(dict(zip(LIST, row, strict=True)) | changes)
        masks = toy_masks(frames, 20, 34)
        for frame in (2, frames // 2):  # the disc is larger at frame 2
            traced += [(f"{name}.avi", *chord, frame) for chord in chords(masks[frame])]
    with (folder / "FileList.csv").open("w") as file:
        writer = csv.DictWriter(file, LIST)
        writer.writeheader()
        writer.writerows(listed)
    with (folder / "VolumeTracings.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerows([("FileName", "X1", "Y1", "X2", "Y2", "Frame"), *traced])
    return folder


def test_clips_come_with_volumes_splits_and_time(tmp_path):
    write_echonet(tmp_path / "echo")
    data = registry.build(
        "data", "echonet", {"size": [20, 20, 34], "path": "echo", "rate": 25}, root=tmp_path
    )
    assert [study.split for study in data.studies] == ["train", "train", "validation", "test"]
    assert data.schema.time
    assert data.schema.spacing == (0.04,)
    item = data[1]
    assert item.image.shape == (1, 1, 20, 20, 34)
    assert item.scalar.tolist() == [[59, 100, 40]]
    assert item.mask is None
    shown = ((item.image[0, 0] + 1) * 127.5).round().numpy()
    np.testing.assert_array_equal(shown, toy_frames(24, 20, 34)[:20])


@pytest.mark.parametrize("rate", [25.0, 12.5, 40.0])
def test_masks_stand_on_the_frames_that_were_traced(tmp_path, rate):
    write_echonet(tmp_path)
    frames = round(20 * rate / 25)
    data = EchoNet(tmp_path, (frames, 20, 34), rate=rate, masks=True)
    item = data[0]
    ed, es = (int(value) for value in item.scalar[0, 3:])
    drawn = [place for place in range(frames) if (item.mask[0, place] >= 0).all()]
    assert drawn == sorted([ed, es])
    assert (item.mask[0, [k for k in range(frames) if k not in drawn]] == -1).all()
    truth = toy_masks(24, 20, 34)
    for place, frame in ((ed, 2), (es, 12)):
        assert (item.mask[0, place].numpy() == truth[frame]).mean() > 0.99
        shown = ((item.image[0, 0, place] + 1) * 127.5).round().numpy()
        np.testing.assert_array_equal(shown, toy_frames(24, 20, 34)[frame])
    assert (item.mask[0, ed] == 1).sum() > (item.mask[0, es] == 1).sum()


def test_windows_of_a_clip_belong_to_one_patient(tmp_path):
    data = EchoNet(write_echonet(tmp_path / "e"), (8, 20, 34), rate=25, stride=8, masks=True)
    assert len(data) == 12
    assert len({study.patient for study in data.studies}) == 4
    first = [study.id for study in data.studies][:3]
    assert first == ["0X0000-00000", "0X0000-00008", "0X0000-00016"]
    assert data.scalars[0, 3] == 2  # frame 2 lies in the first window alone
    assert torch.isnan(data.scalars[1:3, 3]).all()


def test_short_clips_are_left_out_and_counted(tmp_path):
    write_echonet(tmp_path)
    write_clip(tmp_path / "Videos" / "0X0000.avi", Clip(toy_frames(6, 20, 34), 25))
    text = (tmp_path / "FileList.csv").read_text()
    (tmp_path / "FileList.csv").write_text(text.replace("25,24,TRAIN", "25,6,TRAIN", 1))
    data = EchoNet(tmp_path, (16, 20, 34), rate=25)
    assert data.left_out == {"shorter than 16 frames at 25 Hz": 1}
    assert len(data) == 3
    with pytest.raises(DataError, match="every clip is shorter than 64 frames"):
        EchoNet(tmp_path, (64, 20, 34), rate=25)


def test_missing_videos_and_swapped_columns_are_refused(tmp_path):
    write_echonet(tmp_path / "a")
    (tmp_path / "a" / "Videos" / "0X0002.avi").unlink()
    with pytest.raises(DataError, match=r"1 video\(s\) of 4 are missing: Videos/0X0002.avi"):
        EchoNet(tmp_path / "a", (8, 20, 34))
    write_echonet(tmp_path / "b", FrameHeight=24, NumberOfFrames=20)
    data = EchoNet(tmp_path / "b", (8, 20, 34))
    with pytest.raises(DataError, match=r"but FileList.csv says \(20, 24, 34\)"):
        data[0]
    write_echonet(tmp_path / "c", FPS=0)
    with pytest.raises(DataError, match="row 1: expected FPS"):
        EchoNet(tmp_path / "c", (8, 20, 34))
    write_echonet(tmp_path / "d", FPS=50)
    with pytest.raises(DataError, match="states 25 frames a second, but 50 was asked for"):
        EchoNet(tmp_path / "d", (8, 20, 34))[0]
