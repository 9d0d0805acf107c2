import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from medgen.cli.data import data
from medgen.data.check import check
from medgen.data.duplicates import exact_groups, near_pairs, pixel_hash, thumbnail
from medgen.data.files import read_image, write_png
from medgen.data.simulated import Simulated


@pytest.fixture(scope="module")
def radiographs():
    dataset = Simulated(count=8, size=(64, 64), seed=3)
    return [((dataset[i].image[0].numpy() + 1) / 2).clip(0, 1) for i in range(0, 8)]


def write(folder, pixels, **columns):
    names = [f"{i}.png" for i in range(len(pixels))]
    for name, each in zip(names, pixels, strict=True):
        write_png(folder / name, each)
    lines = [",".join(["image", *columns])]
    lines += [",".join(row) for row in zip(names, *columns.values(), strict=True)]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_clean_folder(tmp_path, radiographs):
    kinds, people = list("abababab"), [f"p{i // 2}" for i in range(8)]
    report = check(write(tmp_path, radiographs, patient=people, kind=kinds), findings="kind")
    assert report.problems == []
    assert report.near == report.exact == []
    assert report.images == report.rows == 8
    assert report.patients == 4
    assert sum(report.splits.values()) == 8
    assert report.sizes == {"64 x 64": 8}
    assert report.modes == {"L": 8}
    assert report.labels == {"kind": {"a": 4, "b": 4}}
    assert "0 problem(s)" in report.lines()[-1]


def test_planted_faults_are_all_found_at_once(tmp_path, radiographs):
    pixels = [*radiographs[:4], radiographs[0], radiographs[1]]
    people = ["a", "a", "b", "c", "d", "a"]
    splits = ["train", "test", "train", "train", "train", "test"]
    write(tmp_path, pixels, patient=people, split=splits, mask=["m0", "m1", "", "", "", ""])
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "3.png").unlink()
    write_png(tmp_path / "m0", np.full((64, 64), 3))
    write_png(tmp_path / "m1", np.zeros((8, 8)))
    table = (tmp_path / "table.csv").read_text()
    (tmp_path / "table.csv").write_text(table + "0.png,a,train,\n../x.png,e,train,\n")
    report = check(tmp_path, mask_classes=("background", "lung"), findings="kind")
    for planted in (
        "image '0.png' stands in two rows",
        "no column 'kind'",
        "patient 'a' stands in test and train",
        "2.png: damaged or truncated",
        "3.png: cannot be read",
        "the mask has values [3]",
        "the mask is (8, 8)",
        "'../x.png' is not inside",
        "equal images under two patients: 0.png, 4.png",
    ):
        assert any(planted in problem for problem in report.problems), planted
    assert set(report.unreadable) == {"2.png", "3.png", "m0", "m1", "../x.png"}
    assert report.images == 5
    assert ["1.png", "5.png"] in report.exact


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"image\n", b"picture\nx.png\n"])
def test_without_a_usable_table_there_is_one_problem(tmp_path, content):
    if content is not None:
        (tmp_path / "table.csv").write_bytes(content)
    assert len(check(tmp_path).problems) == 1


def test_equal_images_in_two_splits(tmp_path, radiographs):
    pixels = [radiographs[0], radiographs[1], radiographs[0]]
    write(tmp_path, pixels, patient=["a", "b", "c"], split=["train", "train", "test"])
    assert check(tmp_path).problems == ["equal images in two splits: 0.png, 2.png"]


def altered(pixels, how, folder):
    if how == "jpeg":
        Image.fromarray((pixels[0] * 255).astype(np.uint8)).save(folder / "a.jpg", quality=50)
        return read_image(folder / "a.jpg").pixels
    if how == "noise":
        noise = np.random.default_rng(0).normal(0, 0.02, pixels.shape)
        return (pixels + noise).clip(0, 1).astype(np.float32)
    if how == "half":
        return pixels.reshape(1, 32, 2, 32, 2).mean((2, 4))
    return pixels * 0.9 + 0.05


@pytest.mark.parametrize("how", ["jpeg", "noise", "half", "contrast"])
def test_a_near_copy_is_found_and_nothing_else(tmp_path, radiographs, how):
    pixels = [*radiographs, altered(radiographs[3], how, tmp_path)]
    pairs = near_pairs(np.stack([thumbnail(each) for each in pixels]))
    assert [pair[:2] for pair in pairs] == [(3, 8)]
    assert exact_groups([pixel_hash(each) for each in pixels]) == []


def test_blank_images_match_nothing():
    assert near_pairs(np.stack([thumbnail(np.full((1, 40, 40), v)) for v in (0.1, 0.5)])) == []
    assert near_pairs(np.zeros((0, 32, 32), np.float32)) == []


def test_the_shape_is_part_of_the_hash():
    ones = np.ones((1, 4, 9), np.float32)
    assert pixel_hash(ones) != pixel_hash(ones.reshape(1, 9, 4))
    assert pixel_hash(ones) == pixel_hash(ones.copy())


def test_the_command_exits_with_1_and_speaks_json(tmp_path, radiographs):
    write(tmp_path, radiographs[:3], patient=["a", "b", "c"], kind=["x", "y", ""])
    run = CliRunner().invoke(data, ["check", str(tmp_path), "--json"])
    assert run.exit_code == 0
    assert json.loads(run.stdout)["labels"]["kind"] == {"(blank)": 1, "x": 1, "y": 1}
    (tmp_path / "1.png").write_bytes(b"")
    run = CliRunner().invoke(data, ["check", str(tmp_path)])
    assert run.exit_code == 1
    assert "1.png: the file is empty" in run.stdout


def test_simulated_folders_are_clean_and_read_back(tmp_path):
    out = tmp_path / "simulated"
    options = ["--count", "6", "--size", "32", "--findings", "effusion,nodule"]
    run = CliRunner().invoke(data, ["simulate", "--out", str(out), *options])
    assert run.exit_code == 0, run.output
    assert sorted(path.name for path in out.iterdir()) == ["images", "masks", "table.csv"]
    assert check(out, findings=("effusion", "nodule")).problems == []
    again = CliRunner().invoke(data, ["simulate", "--out", str(out), *options])
    assert "is not an empty folder" in str(again.exception)
    sheet = tmp_path / "sheet.png"
    run = CliRunner().invoke(data, ["show", str(out), "--out", str(sheet), "--count", "4"])
    assert run.exit_code == 0, run.output
    assert Image.open(sheet).size[0] > 192
    assert "4 of 6 studies" in run.stdout


def test_readers_are_listed_with_their_arguments():
    run = CliRunner().invoke(data, ["list"])
    assert run.exit_code == 0
    assert "folder: Images in a folder" in run.stdout
    assert "  findings: str | tuple[str, ...] | None = None" in run.stdout
    assert "root" not in run.stdout
