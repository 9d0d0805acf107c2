import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from medgen.assembly import from_pretrained
from medgen.data.folder import Folder
from medgen.data.splits import load
from medgen.errors import CheckpointError, DataError, OutputError
from medgen.synthesis.chain import chained
from medgen.synthesis.draw import synthesize
from medgen.synthesis.masks import read_masks
from medgen.synthesis.plan import (
    describe,
    make_plan,
    plan,
    plan_from_table,
    plan_like,
)
from medgen.synthesis.verify import verify
from medgen.types import Schema

CLASSES = Schema(size=(8, 8), findings=("a", "b", "c"), exclusive=True)
FLAGS = Schema(size=(8, 8), findings=("x", "y"), scalars=("age",))
STATISTICS = {
    "labels": {"rows": [[0, 0], [1, 0], [1, 1]], "counts": [90, 9, 1]},
    "scalars": [list(np.linspace(20, 80, 101))],
    "studies": 100,
    "patients": 80,
}


@pytest.fixture(scope="module")
def factory(trained):
    model = from_pretrained(trained)

    def draw(out, count=10, **options):
        return synthesize(model, plan(model, count=count), out, **{"workers": 1, **options})

    draw.model = model
    return draw


@pytest.fixture(scope="module")
def dataset(factory, tmp_path_factory):
    return factory(tmp_path_factory.mktemp("whole") / "data").folder


def test_balanced_labels_show_every_finding_and_none_equally():
    made = make_plan(FLAGS, STATISTICS, count=300)
    label = made.conditions.label
    assert (label.sum(dim=1) == 0).sum() == 100
    shown = label[label.sum(dim=1) > 0]
    # 100 rows were drawn for y, each 11; those for x are 10 or 11 with odds 9 : 1.
    assert (shown[:, 1] == 1).sum() >= 100
    one_hot = {"labels": {"rows": np.eye(3, dtype=int).tolist(), "counts": [98, 1, 1]}}
    counts = make_plan(CLASSES, one_hot, count=30).conditions.label.sum(dim=0)
    assert counts.tolist() == [10, 10, 10]


def test_prevalence_follows_the_training_studies():
    label = make_plan(FLAGS, STATISTICS, count=4000, labels="prevalence").conditions.label
    share = (label[:, 0] == 1).float().mean()
    assert abs(share - 0.10) < 5 * (0.1 * 0.9 / 4000) ** 0.5  # 5 standard errors
    assert make_plan(FLAGS, STATISTICS, count=9).conditions.scalar.min() >= 20


def test_asked_prevalences():
    label = make_plan(FLAGS, STATISTICS, count=2000, labels={"y": 1.0}).conditions.label
    assert label[:, 1].all()
    assert not label[:, 0].any()
    with pytest.raises(DataError, match="unknown finding 'yy'"):
        make_plan(FLAGS, STATISTICS, count=2, labels={"yy": 0.5})
    with pytest.raises(DataError, match="must sum to 1"):
        make_plan(CLASSES, STATISTICS, count=2, labels={"a": 0.5})


def test_plans_are_functions_of_their_seed():
    one, two = (make_plan(FLAGS, STATISTICS, count=20, seed=3) for _ in range(2))
    other = make_plan(FLAGS, STATISTICS, count=20, seed=4)
    assert one.digest == two.digest != other.digest
    assert len(set(one.seeds) | set(other.seeds)) == 40


def test_a_longer_plan_begins_with_the_same_seeds():
    assert (
        make_plan(FLAGS, STATISTICS, count=30).seeds[:20]
        == make_plan(FLAGS, STATISTICS, count=20).seeds
    )


def test_plan_from_a_table(tmp_path):
    table = tmp_path / "wanted.csv"
    table.write_text("x,y,age,seed\n1,0,50,7\n,1,,\n")
    made = plan_from_table(FLAGS, table)
    assert made.conditions.label.tolist() == [[1, 0], [-1, 1]]
    assert made.conditions.scalar[0, 0] == 50
    assert made.conditions.scalar[1, 0].isnan()
    assert made.seeds[0] == 7


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x,z\n1,0\n", "unknown column 'z'"),
        ("x,y\n2,0\n", "row 2: 'x' is '2'"),
        ("age\nold\n", "row 2: 'age' is 'old'"),
        ("x,y\n", "holds no rows"),
    ],
)
def test_bad_tables(tmp_path, text, says):
    table = tmp_path / "wanted.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=says):
        plan_from_table(FLAGS, table)


def test_masks_are_resized_and_checked(tmp_path):
    file = tmp_path / "m.png"
    Image.fromarray(np.kron([[0, 1], [2, 0]], np.ones((8, 8))).astype(np.uint8)).save(file)
    schema = Schema(size=(4, 4), mask_classes=("background", "lung", "heart"))
    mask = read_masks([file], schema)
    assert mask[0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 0, 0], [2, 2, 0, 0]]
    with pytest.raises(DataError, match="holds class 2"):
        read_masks([file], Schema(size=(4, 4), mask_classes=("background", "lung")))


def test_plan_like_keeps_conditions_of_a_study_together(simulated_folder, factory):
    classes = ("background", "lung", "heart")
    studies = Folder(
        simulated_folder, (32, 32), mask_classes=classes, findings=("cardiomegaly", "effusion")
    )
    everything = load(studies)
    made = plan_like(factory.model, studies, count=100)
    known = {tuple(label.tolist()) for label in everything.label}
    assert {tuple(label.tolist()) for label in made.conditions.label} <= known
    assert made.conditions.mask is None  # this model takes no masks
    statistics = describe(studies, everything.conditions())
    assert sum(statistics["labels"]["counts"]) == len(studies)


def test_a_dataset_is_complete_and_reads_back(dataset, factory):
    about = json.loads((dataset / "dataset.json").read_text())
    lines = [json.loads(line) for line in (dataset / "manifest.jsonl").read_text().splitlines()]
    assert about["count"] == len(lines) == 10
    assert all(line["synthetic"] and line["source"] == factory.model.source for line in lines)
    assert "synthetic" in (dataset / "README.md").read_text()
    assert not (dataset / "parts").exists()
    again = Folder(dataset, (32, 32), findings=("cardiomegaly", "effusion"))
    assert len(again) == 10
    asked = [
        [line["condition"]["findings"][name] for name in again.schema.findings] for line in lines
    ]
    assert load(again).label.tolist() == asked


def test_workers_and_shards_change_no_byte(dataset, factory, tmp_path, digests):
    whole = digests(dataset)
    assert digests(factory(tmp_path / "two", workers=2).folder) == whole
    factory(tmp_path / "parts", shard=(1, 2))
    assert not (tmp_path / "parts" / "dataset.json").exists()
    factory(tmp_path / "parts", shard=(0, 2))
    assert digests(tmp_path / "parts") == whole


def test_a_rerun_draws_only_what_is_missing(dataset, factory, tmp_path, digests):
    out = tmp_path / "data"
    factory(out, shard=(0, 2))
    drawn = factory(out)
    assert drawn.count == 4
    assert digests(out) == digests(dataset)
    assert factory(out).count == 0


def test_another_dataset_is_never_overwritten(dataset, factory, tmp_path, digests):
    out = tmp_path / "data"
    shutil.copytree(dataset, out)
    with pytest.raises(OutputError, match="another plan"):
        factory(out, count=11)
    assert digests(out) == digests(dataset)
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="not empty"):
        factory(other)
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]


def test_a_folder_claimed_by_a_killed_process_is_taken_over(dataset, factory, tmp_path, digests):
    out = tmp_path / "data"
    (out / "parts").mkdir(parents=True)
    (out / "parts" / ".about.json.host.999999.tmp").write_bytes(b"{")
    (out / ".lock").touch()
    assert digests(factory(out).folder) == digests(dataset)


@pytest.mark.parametrize("delay", [0.0, 0.4, 1.0])
def test_kill_and_rerun_give_the_same_bytes(trained, tmp_path, digests, delay):
    command = [sys.executable, "-m", "medgen", "sample", str(trained), "--count", "40"]
    command += ["--device", "cpu", "--workers", "2", "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = tmp_path / "whole"
    if delay == 0.0:
        subprocess.run([*command, str(whole)], check=True, env=environment, capture_output=True)
        assert verify(whole, from_pretrained(trained), count=40).problems == ()
        return
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [*command, str(out)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while not list(out.glob("parts/0*.json")) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(delay / 10)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([*command, str(out)], check=True, env=environment, capture_output=True)
    model = from_pretrained(trained)
    assert verify(out, model, count=40).problems == ()
    assert sorted(digests(out)) == sorted(
        [f"images/synthetic-{i:06d}.png" for i in range(40)]
        + ["README.md", "dataset.json", "labels.csv", "manifest.jsonl", "recipe.yaml"]
    )


def test_verify_finds_planted_faults(dataset, factory, tmp_path):
    assert verify(dataset, factory.model, count=10).problems == ()
    out = tmp_path / "data"
    shutil.copytree(dataset, out)
    image = out / "images" / "synthetic-000003.png"
    pixels = np.array(Image.open(image))
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(image)
    (out / "images" / "synthetic-000004.png").unlink()
    problems = verify(out, None).problems
    assert any("000003" in p and "other bytes" in p for p in problems)
    assert any("000004" in p and "missing" in p for p in problems)
    lines = (dataset / "manifest.jsonl").read_text().splitlines()
    record = json.loads(lines[5])
    record["seed"] += 1
    lines[5] = json.dumps(record, sort_keys=True)
    (out / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    problems = verify(out, factory.model, count=10).problems
    assert any("synthetic-000005" in p and "another image" in p for p in problems)
    assert "manifest.jsonl line 6 (synthetic-000005): was edited" in problems


def edited(lines):
    lines[4] = lines[4].replace('"synthetic": true', '"synthetic": false')


def removed(lines):
    del lines[4]


def cut(lines):
    del lines[-1]


def swapped(lines):
    lines[3], lines[4] = lines[4], lines[3]


def repeated(lines):
    lines.append(lines[-1])


FOLLOWS = "does not follow the line before it"
PLANTED = {
    edited: ["line 5 (synthetic-000004): was edited"],
    removed: [f"line 5 (synthetic-000005): {FOLLOWS}"],
    cut: ["does not end as dataset.json says"],
    swapped: [
        f"line 4 (synthetic-000004): {FOLLOWS}",
        f"line 5 (synthetic-000003): {FOLLOWS}",
        f"line 6 (synthetic-000005): {FOLLOWS}",
    ],
    repeated: [f"line 11 (synthetic-000009): {FOLLOWS}"],
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_the_chain_finds_and_names_what_was_changed(dataset, tmp_path, plant):
    out = tmp_path / "data"
    shutil.copytree(dataset, out)
    lines = (out / "manifest.jsonl").read_text().splitlines()
    plant(lines)
    (out / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    problems = verify(out, None).problems
    assert len(problems) == len(PLANTED[plant])
    for problem, part in zip(problems, PLANTED[plant], strict=True):
        assert part in problem


def test_the_chain_ends_in_what_was_written_down(dataset, tmp_path):
    """Whoever rewrites all links gives the chain another end."""
    out = tmp_path / "data"
    shutil.copytree(dataset, out)
    about = json.loads((out / "dataset.json").read_text())
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    plain = [{k: v for k, v in line.items() if k not in ("sha256", "chain")} for line in lines]
    assert chained(plain, about["plan"]) == lines
    plain[2]["condition"] = {}
    forged = chained(plain, about["plan"])
    (out / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in forged))
    assert any("does not end as dataset.json says" in p for p in verify(out, None).problems)
    (out / "dataset.json").write_text(json.dumps({**about, "chain": forged[-1]["chain"]}))
    assert verify(out, None).problems == ()
    assert verify(out, None).chain != verify(dataset, None).chain == about["chain"]


def test_tables_are_verified_and_older_datasets_refused(dataset, tmp_path):
    out = tmp_path / "data"
    shutil.copytree(dataset, out)
    text = (out / "labels.csv").read_text()
    (out / "labels.csv").write_text(
        text.replace("train,0", "train,1").replace("train,1", "train,0")
    )
    assert verify(out, None).problems == ("labels.csv: has other bytes than were written",)
    about = json.loads((out / "dataset.json").read_text())
    del about["chain"]
    (out / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="no hash chain"):
        verify(out, None)


def test_a_sample_does_not_depend_on_its_batch(factory):
    model = factory.model
    made = make_plan(model.schema, STATISTICS | {"scalars": [[0.4, 0.5]]}, count=7)
    together = model.sample(made.conditions, list(made.seeds)).image
    assert torch.equal(
        together[4:], model.sample(made.conditions.select([4, 5, 6]), list(made.seeds[4:])).image
    )


def test_checkpoints_that_are_not(trained, tmp_path):
    with pytest.raises(CheckpointError, match="no"):
        from_pretrained(tmp_path / "nothing")
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError, match="pickle"):
        from_pretrained(tmp_path)
    whole = (trained / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-4] + b"\0\0\0\1")
    with pytest.raises(CheckpointError, match="digest"):
        from_pretrained(tmp_path)
