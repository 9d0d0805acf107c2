import json
from html.parser import HTMLParser

import pytest
import torch
from click.testing import CliRunner
from conftest import TINY

from medgen.assembly import export_checkpoint, from_pretrained
from medgen.checkpoint import read_metadata, read_weights
from medgen.cli.main import cli
from medgen.errors import (
    CheckpointError,
    DataError,
    DeviceError,
    HealthError,
    OutputError,
    RecipeError,
)
from medgen.pipeline import Run
from medgen.recipe import load_recipe
from medgen.synthesis.plan import plan
from medgen.synthesis.verify import verify

QUICK = [*TINY, "prove.steps=8", "prove.fractions=[1.0]", "prove.repeats=2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "quickstart"
    Run(load_recipe("cxr/quickstart", QUICK), out, device="cpu").run()
    return out


def test_a_run_leaves_everything(finished):
    for name in (
        "recipe.yaml",
        "model.safetensors",
        "weak.safetensors",
        "card.md",
        "log.jsonl",
        "evaluation.json",
        "prove.json",
        "report.html",
        "synthetic/manifest.jsonl",
        "samples/000000128.png",
    ):
        assert (finished / name).is_file(), name


def test_the_four_arms_ran_at_equal_steps(finished):
    proof = json.loads((finished / "prove.json").read_text())
    arms = {row["arm"] for row in proof["rows"]}
    assert len(arms) == 4
    assert {row["steps"] for row in proof["rows"]} == {8}
    assert all(row["repeat"] in (0, 1) for row in proof["rows"])
    assert set(proof["verdicts"].values()) <= {"helps", "no evidence", "hurts"}
    assert proof["generator_saw"]["patients"] > 0


def test_every_number_is_an_estimate(finished):
    found = json.loads((finished / "evaluation.json").read_text())
    assert {"frechet", "kid", "precision", "coverage"} <= set(found["metrics"])
    for name, estimate in found["metrics"].items():
        assert estimate["n"] > 0, name
        assert estimate["method"], name


def test_the_report_is_one_page_that_asks_for_nothing(finished):
    page = (finished / "report.html").read_text()
    parser = HTMLParser()
    parser.feed(page)
    assert 'src="http' not in page
    assert "cxr/quickstart" in page


def test_running_again_changes_nothing(finished, digests):
    before = digests(finished)
    Run(load_recipe("cxr/quickstart", QUICK), finished, device="cpu").run()
    assert digests(finished) == before


def test_two_runs_of_one_recipe_are_the_same_model(trained, tmp_path):
    again = Run(load_recipe("cxr/quickstart", TINY), tmp_path / "again", device="cpu").train()
    assert read_metadata(again)["digest"] == read_metadata(trained)["digest"]


def test_a_generator_starts_from_another_and_may_gain_a_condition(trained, tmp_path):
    changes = [f"train.init_from={trained}", "conditioner.anatomy={type: mask}", "train.lr=1e-9"]
    recipe = load_recipe("cxr/quickstart", [*TINY, *changes])
    said: list[str] = []
    out = Run(recipe, tmp_path / "more", device="cpu", say=said.append).train()
    assert any("1 grown, 1 fresh" in line for line in said)
    old, new = read_weights(trained)[0], read_weights(out)[0]
    grown = "backbone.network.conv_in.conv.weight"
    torch.testing.assert_close(new[grown][:, : old[grown].shape[1]], old[grown], atol=1e-6, rtol=0)
    for name in old.keys() - {grown}:
        torch.testing.assert_close(new[name], old[name], atol=1e-6, rtol=0)
    assert read_metadata(out)["start"] == read_metadata(trained)["digest"]
    assert str(trained) not in read_metadata(out)["recipe"]


def test_a_generator_does_not_start_from_just_anything(trained, tmp_path):
    wrong = [
        ("train.init_from=nowhere", "nowhere"),
        (f"train.init_from={trained}", "most of its weights do not fit"),
    ]
    other = ["backbone={type: dit, width: 32, depth: 1, heads: 2}"]
    for place, (change, said) in enumerate(wrong):
        recipe = load_recipe("cxr/quickstart", [*TINY[:2], *TINY[4:], *other, change])
        with pytest.raises(CheckpointError, match=said):
            Run(recipe, tmp_path / str(place), device="cpu").train()


def test_autoguidance_by_a_smaller_network(tmp_path):
    network = "{type: unet, channels: [32], attention: [false], blocks: 1}"
    guidance = (
        f"guidance={{type: autoguidance, scale: 2.0, weak: {{backbone: {network}, images: 64}}}}"
    )
    recipe = load_recipe("cxr/quickstart", [*TINY, guidance])
    run = Run(recipe, tmp_path / "run", device="cpu")
    run.train()
    export_checkpoint(tmp_path / "run", tmp_path / "checkpoint", half=True)
    model = from_pretrained(tmp_path / "run")
    again = from_pretrained(tmp_path / "checkpoint")
    for guided in (model, again):
        assert guided.weak is not None
        sizes = [sum(p.numel() for p in m.backbone.parameters()) for m in (guided, guided.weak)]
        assert sizes[1] < sizes[0]
    plain = from_pretrained(tmp_path / "run", guidance={"type": "none"})
    asked = plan(model, count=2)
    how = {"type": "autoguidance", "scale": 2.0, "weak_conditions": "none"}
    unasked = from_pretrained(tmp_path / "run", guidance=how)
    models = (model, again, plain, unasked)
    images = [m.sample(asked.conditions, list(asked.seeds)).image for m in models]
    torch.testing.assert_close(images[0], images[1], atol=0.02, rtol=0)
    assert not torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[3])
    folder = run.synthesize()
    about = json.loads((folder / "dataset.json").read_text())
    assert about["weak"] == read_metadata(tmp_path / "run" / "weak" / "model.safetensors")["digest"]
    model.weak.source = "sha256:another"
    with pytest.raises(DataError, match="weak"):
        verify(folder, model)


def test_a_folder_of_another_run_is_refused(trained, tmp_path):
    with pytest.raises(OutputError, match="another recipe or of other settings"):
        Run(load_recipe("cxr/quickstart", [*TINY, "train.lr=0.5"]), trained, device="cpu").train()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        Run(load_recipe("cxr/quickstart", TINY), tmp_path, device="cpu").train()


def test_a_run_needs_its_data_and_device(tmp_path, monkeypatch):
    monkeypatch.delenv("MEDGEN_DATA", raising=False)
    recipe = load_recipe("cxr/findings-flow-dit-64")
    with pytest.raises(DataError, match="--data-root"):
        Run(recipe, tmp_path, device="cpu").describe()
    with pytest.raises(DataError, match="no such folder"):
        Run(recipe, tmp_path, data_root=tmp_path / "none", device="cpu").describe()
    with pytest.raises(DeviceError, match="tpu"):
        Run(recipe, tmp_path, device="tpu")


def test_an_unhealthy_codec_stops_a_run(simulated_folder, tmp_path):
    overrides = [
        "data.size=[32, 32]",
        "data.findings=[effusion]",
        "codec.channels=[8, 16]",
        "codec.train.images=16",
        "codec.train.batch=8",
        "codec.losses={critic_channels: 8, perceptual: features}",
    ]
    recipe = load_recipe("cxr/findings-flow-unet-128", overrides)
    with pytest.raises(HealthError, match="PSNR"):
        Run(recipe, tmp_path / "run", data_root=simulated_folder, device="cpu").train()
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_evidence_from_the_command_line(finished, tmp_path):
    dataset = ["--synthetic", str(finished / "synthetic"), "--out", str(tmp_path)]
    metrics = ["--metric", "kid", "--metric", "mask_agreement", "--extractor", "random"]
    done = CliRunner().invoke(cli, ["evaluate", *dataset, *metrics, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "evaluation.json").read_text())
    assert found["metrics"]["kid"]["floor"]["n"] > 0
    assert found["extractor"]["name"] == "random"
    assert "mask_agreement" in found["skipped"]
    few = ["--repeats", "2", "--steps", "4", "--fractions", "1", "--ratios", "0.5"]
    done = CliRunner().invoke(cli, ["prove", *dataset, *few, "--task", "classification"])
    assert done.exit_code == 0, done.output
    assert "against" in done.stdout
    assert (tmp_path / "prove.json").is_file()
    done = CliRunner().invoke(cli, ["prove", *dataset, *few[:-1], "many"])
    assert done.exit_code == 2


def test_runs_side_by_side(finished, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    found = json.loads((finished / "evaluation.json").read_text())
    found["metrics"]["kid"] |= {"n": 1, "value": 0.25}
    del found["metrics"]["precision"]
    (other / "evaluation.json").write_text(json.dumps(found))
    table = tmp_path / "table.csv"
    done = CliRunner().invoke(
        cli, ["compare", str(finished), str(other), "--json", "--csv", str(table)]
    )
    assert done.exit_code == 0, done.output
    rows = {row["measure"]: row for row in json.loads(done.output)}
    assert rows["kid"]["caution"] == "different numbers of studies"
    assert rows["kid"]["runs"][1]["value"] == 0.25
    assert rows["precision"]["runs"][1]["value"] is None
    assert not rows["frechet"]["caution"]
    proved = next(row for name, row in rows.items() if name.startswith("prove classification"))
    assert proved["runs"][0]["verdict"] in ("helps", "no evidence", "hurts")
    assert proved["runs"][1]["value"] is None
    assert len(table.read_text().splitlines()) == 1 + 2 * len(rows)
    empty = CliRunner().invoke(cli, ["compare", str(tmp_path)])
    assert "holds neither evaluation.json nor prove.json" in str(empty.exception)


def test_a_recipe_takes_its_generator_from_a_recipe_or_a_checkpoint(trained, tmp_path):
    wanted = "name: mine\nsummary: Mine.\ngenerator: {GENERATOR}\nsample: {count: 3}\n"
    file = tmp_path / "mine.yaml"
    file.write_text(wanted.replace("GENERATOR", "recipe: cxr/quickstart"))
    inline = load_recipe(file, TINY)
    theirs = load_recipe("cxr/quickstart", TINY).sections
    for section in ("data", "codec", "backbone", "train", "guidance"):
        assert inline.sections[section] == theirs[section]
    assert inline.sections["prove"] is None
    file.write_text(wanted.replace("GENERATOR", f"checkpoint: {trained}"))
    taken = load_recipe(file, ["sampler.steps=3"])
    assert taken.sections["train"]["images"] == 128
    run = Run(taken, tmp_path / "run", device="cpu")
    run.train()
    assert read_metadata(run.out)["digest"] == read_metadata(trained)["digest"]
    about = json.loads((run.synthesize() / "dataset.json").read_text())
    assert about["sampler"]["steps"] == 3
    assert about["count"] == 3
    assert load_recipe(run.out / "recipe.yaml").digest == taken.digest


def test_a_checkpoint_that_does_not_fit_is_refused(trained, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"name: mine\nsummary: Mine.\ngenerator: {{checkpoint: {trained}}}\n")
    other = load_recipe(file, ["data.size=[64, 64]"])
    with pytest.raises(DataError, match="another schema"):
        Run(other, tmp_path / "run", device="cpu").train()
    said: list[str] = []
    Run(
        load_recipe(file, ["data.count=60"]), tmp_path / "more", device="cpu", say=said.append
    ).train()
    assert any("the evidence is worthless" in line for line in said)
    with pytest.raises(RecipeError, match="train: is decided by the checkpoint"):
        load_recipe(file, ["train.lr=1.0"])
    for wrong, words in (
        ("{}", "expected recipe or checkpoint"),
        ("{recipe: cxr/kl-f4}", "generator"),
    ):
        file.write_text(f"name: mine\nsummary: Mine.\ngenerator: {wrong}\n")
        with pytest.raises(RecipeError, match=words):
            load_recipe(file)
    file.write_text("name: mine\nsummary: Mine.\ngenerator: {checkpoint: nowhere}\n")
    with pytest.raises(RecipeError, match=r"generator\.checkpoint: .*nowhere"):
        load_recipe(file)
