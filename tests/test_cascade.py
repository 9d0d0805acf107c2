"""First frames before clips: drawn, filtered, recorded, and drawn again from the manifest."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from medgen.assembly import export_checkpoint, from_pretrained
from medgen.checkpoint import FIRST_FRAME
from medgen.cli.main import cli
from medgen.data.splits import load
from medgen.data.synthetic import SyntheticDataset
from medgen.errors import CheckpointError, DataError, RecipeError
from medgen.pipeline import Run
from medgen.recipe import load_recipe
from medgen.synthesis.cascade import with_first_frames
from medgen.synthesis.draw import synthesize
from medgen.synthesis.filters import Filters
from medgen.synthesis.plan import plan
from medgen.synthesis.verify import verify

UNET = ["backbone.channels=[16, 16]", "backbone.attention=[false, false]", "backbone.head=8"]
TRAINED = ["images=32", "batch=16", "warmup=16", "validate_every=32", "checkpoint_every=32"]
TINY = [
    "data={type: simulated_echo, count: 20, size: [8, 32, 32], frames_per_second: 8, findings: [],"
    " scalars: [ejection_fraction]}",
    "conditioner.rhythm={type: ecg, width: 16, heads: 2, doors: [grid]}",
    "guidance.dropout=0.1", "backbone.depth=2", "backbone.width=24", "backbone.heads=2",
    "sampler.steps=2", "sample={count: 5, micro_batch: 4}",
    *(f"train.{each}" for each in TRAINED),
    *(f"first_frame.{each}" for each in UNET), "first_frame.backbone.blocks=1",
    *(f"first_frame.train.{each}" for each in TRAINED), "first_frame.sampler.steps=2",
    "first_frame.sample={micro_batch: 3, budget: 2}",
]  # fmt: skip
BARE = ["--set", "first_frame.filters=[]"]


def call(*arguments):
    return CliRunner().invoke(cli, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("cascade") / "run"
    return Run(load_recipe("echo/echonet-synthetic-48", TINY), out, device="cpu").train()


@pytest.fixture(scope="module")
def drawn(finished, tmp_path_factory):
    """Four clips with the ECGs and fractions of training studies, and frames of the cascade."""
    out = tmp_path_factory.mktemp("drawn") / "clips"
    done = call("sample", finished, "--out", out, "--count", 4, "--like", finished, *BARE)
    assert done.exit_code == 0, done.output
    return out


def lines(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_clips_are_asked_for_by_the_frames_that_were_drawn(finished, drawn):
    frames, clips = SyntheticDataset(drawn / "first_frames"), SyntheticDataset(drawn)
    assert len(frames) == len(clips) == 4
    held = load(frames)
    about = json.loads((drawn / "dataset.json").read_text())
    painted = json.loads((drawn / "first_frames" / "dataset.json").read_text())
    assert about["first_frames"]["chain"] == painted["chain"]
    model = from_pretrained(finished)
    assert painted["checkpoint"] == model.first_frame.source != about["checkpoint"]
    for place, line in enumerate(lines(drawn)):
        kept = load_file(drawn / line["files"]["condition"]["path"])
        assert torch.equal(kept["frame"], held.image[place])
        assert line["condition"]["frame"]["of"] == held.provenance[place].id
        assert line["condition"]["ecg"]["of"].startswith("s0000")  # of a study, not of the frame


def test_both_stages_are_drawn_again(finished, drawn):
    done = call("verify", drawn, "--model", finished, "--count", 3, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert (found["redrawn"], found["problems"]) == (6, [])
    assert found["files"] == 4 * 3 + 3 + 4 + 3  # clips, ECGs, conditions; frames; tables of each


def test_a_changed_condition_or_frame_is_found(finished, drawn, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(drawn, copy)
    (copy / lines(drawn)[0]["files"]["condition"]["path"]).unlink()
    frame = copy / "first_frames" / lines(drawn / "first_frames")[1]["files"]["image"]["path"]
    frame.write_bytes(frame.read_bytes() + b"0")
    done = call("verify", copy)
    assert done.exit_code == 1
    assert "is missing" in done.output
    assert "first_frames: " in done.output
    assert "has other bytes" in done.output


def test_it_resumes_and_depends_on_nothing_else(finished, drawn, tmp_path):
    again = tmp_path / "again"
    command = ["sample", finished, "--out", again, "--count", 4, "--like", finished, *BARE]
    for shard in ("0/2", "1/2"):
        done = call(*command, "--shard", shard, "--workers", 2)
        assert done.exit_code == 0, done.output
    assert call(*command).exit_code == 0
    assert [x["files"] for x in lines(again)] == [x["files"] for x in lines(drawn)]


class Bright:
    """A filter that rejects pictures brighter than a threshold."""

    def __init__(self, threshold):
        self.threshold = threshold

    def fit(self, real):
        """Nothing to learn."""
        return ""

    def reasons(self, samples):
        """Why each is rejected."""
        return ["bright" if x.mean() > self.threshold else "" for x in samples.image]


def test_long_clips_with_their_ecgs_are_drawn_once_and_again(finished, tmp_path):
    command = ["sample", finished, "--count", 3, "--like", finished, "--frames", 16, *BARE]
    short = call(*command, "--out", tmp_path / "short")
    assert isinstance(short.exception, DataError)
    assert "needs ECGs of 500 samples, got 250" in str(short.exception)
    folders = [tmp_path / "one", tmp_path / "two"]
    longer = ["--set", "data.size=[16, 32, 32]"]
    for folder, shards in zip(folders, [["0/1"], ["1/2", "0/2"]], strict=True):
        for shard in shards:
            done = call(*command, *longer, "--out", folder, "--shard", shard)
            assert done.exit_code == 0, done.output
    assert [x["files"] for x in lines(folders[0])] == [x["files"] for x in lines(folders[1])]
    clips = SyntheticDataset(folders[0])
    assert clips[0].image.shape == (1, 1, 16, 32, 32)
    found = verify(folders[0], from_pretrained(finished), count=2)
    assert (found.redrawn, found.problems) == (4, ())


def test_rejected_frames_are_recorded_and_their_clips_left_out(finished, tmp_path):
    model = from_pretrained(finished)
    wanted = plan(model, count=8)
    alone = with_first_frames(model, wanted, tmp_path / "all")
    means = alone.conditions.frame.mean(dim=(1, 2, 3))
    middle = float(means.sort().values[3:5].mean())
    filters = Filters([Bright(middle)], [{"type": "bright"}], [""], budget=1)
    out = tmp_path / "filtered"
    asked = with_first_frames(model, wanted, out, filters=filters)
    passed = (means <= middle).nonzero()[:, 0].tolist()
    assert len(passed) == 4
    assert torch.equal(asked.conditions.frame, alone.conditions.frame[passed])
    assert torch.equal(asked.conditions.scalar, wanted.conditions.scalar[passed])
    assert asked.seeds == tuple(wanted.seeds[place] for place in passed)
    synthesize(model, asked, out, workers=1)
    frames = json.loads((out / "first_frames" / "dataset.json").read_text())
    assert (frames["asked"], frames["unfilled"], frames["rejected"]) == (8, 4, {"bright": 4})
    rejected = (out / "first_frames" / "rejected.jsonl").read_text().splitlines()
    assert {json.loads(line)["index"] for line in rejected} == set(range(8)) - set(passed)
    assert len(SyntheticDataset(out)) == 4
    assert verify(out, model, count=4).problems == ()


def test_frames_are_filtered_unless_told_otherwise(finished, tmp_path):
    done = call("sample", finished, "--out", tmp_path / "x", "--count", 2)
    assert done.exit_code == 2
    assert "--set first_frame.filters=[]" in done.output


def test_an_exported_checkpoint_draws_frames_too(finished, tmp_path):
    export_checkpoint(finished, tmp_path / "export")
    assert from_pretrained(tmp_path / "export").first_frame is not None
    (tmp_path / "export" / FIRST_FRAME).unlink()
    with pytest.raises(CheckpointError, match=r"needs first_frame\.safetensors"):
        from_pretrained(tmp_path / "export")


def test_a_checkpoint_draws_the_frames_of_another_cascade(finished):
    stills = finished / "first_frame"
    recipe = load_recipe(
        "echo/echonet-synthetic-48",
        [f"first_frame={{checkpoint: {stills}, sampler: {{steps: 3}}}}"],
    )
    assert recipe.first_frame.sections["generator"] == {"checkpoint": str(stills)}
    assert recipe.first_frame.sections["sampler"]["steps"] == 3
    with pytest.raises(RecipeError, match=r"first_frame\.train: is decided by the checkpoint"):
        load_recipe(
            "echo/echonet-synthetic-48",
            [f"first_frame={{checkpoint: {stills}, train: {{images: 3}}}}"],
        )


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("first_frame={recipe: echo/vq-frames-48}", "does not train a generator"),
        ("first_frame={recipe: no/such}", "there is no recipe"),
        ("first_frame={}", r"first_frame: expected recipe or checkpoint"),
        ("first_frame.train.imagez=1", r"first_frame\.train\.imagez: .* Did you mean 'images'"),
        ("data.stills=2", "first frames are of clips"),
        ("conditioner={}", "no condition reads it"),
    ],
)
def test_a_wrong_cascade_is_told(override, text):
    with pytest.raises(RecipeError, match=text):
        load_recipe("echo/echonet-synthetic-48", [override])
