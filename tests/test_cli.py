import csv
import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from conftest import TINY

from medgen.cli.main import COMMANDS, cli
from medgen.errors import MedgenError
from medgen.recipe import shipped


def invoke(*arguments):
    return CliRunner().invoke(cli, list(arguments))


def as_user(*arguments, **environment):
    """Run the real command; returns (exit code, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-m", "medgen", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_shows_examples(command):
    done = invoke(command, "--help")
    assert done.exit_code == 0
    assert "Examples:" in done.output
    assert f"medgen {command}" in done.output


def test_recipes_are_listed_shown_and_compared(tmp_path):
    assert set(json.loads(invoke("recipes", "list", "--json").output)) == set(shipped())
    assert "name: cxr/quickstart" in invoke("recipes", "show", "cxr/quickstart").output
    mine = tmp_path / "mine.yaml"
    assert invoke("recipes", "copy", "cxr/quickstart", str(mine)).exit_code == 0
    assert invoke("recipes", "diff", "cxr/quickstart", str(mine)).exit_code == 0
    mine.write_text(mine.read_text().replace("lr: 1e-3", "lr: 2e-3"))
    done = invoke("recipes", "diff", "cxr/quickstart", str(mine))
    assert done.exit_code == 1
    assert "train.lr: 0.001 -> 0.002" in done.output
    assert "ab2" in json.loads(invoke("recipes", "schema", "sampler").output)["sampler"]


def test_a_mistake_is_one_message_and_exit_code_1(tmp_path):
    code, out, error = as_user("run", "cxr/quickstrat", "--out", tmp_path / "x")
    assert (code, out) == (1, "")
    assert error == "Error: there is no recipe 'cxr/quickstrat'. Did you mean 'cxr/quickstart'?\n"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sample", "nowhere", "--out", "x"], "nowhere"),
        (["run", "cxr/quickstart", "--device", "tpu"], "unknown device 'tpu'"),
        (["run", "cxr/quickstart", "--set", "train.imags=3"], "Did you mean 'images'?"),
        (["verify", "nowhere"], "holds no complete synthetic dataset"),
        (["recipes", "check", "nothing.yaml"], "there is no recipe"),
    ],
)
def test_mistakes(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke(*arguments)
    assert isinstance(done.exception, MedgenError)
    assert says in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_wrong_usage_is_exit_code_2():
    assert invoke("rnu").exit_code == 2
    assert "Did you mean 'run'?" in invoke("rnu").output
    assert invoke("sample").exit_code == 2


def test_an_unwritable_folder_is_one_message(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    code, _, error = as_user("train", "cxr/quickstart", "--out", file / "run", "--set", TINY[0])
    assert code == 1
    assert "Traceback" not in error
    assert str(file) in error


def test_sample_and_verify(trained, tmp_path):
    out = tmp_path / "drawn"
    sheet = tmp_path / "sheet.png"
    done = invoke("sample", str(trained), "--out", str(out), "--count", "6", "--sheet", str(sheet))
    assert done.exit_code == 0, done.output
    assert sheet.is_file()
    done = invoke("verify", str(out), "--model", str(trained), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["redrawn"] == 6
    (out / "images" / "synthetic-000000.png").unlink()
    assert invoke("verify", str(out)).exit_code == 1


@pytest.mark.parametrize(
    "settings",
    [
        ["sampler.type=heun", "sampler.steps=3"],
        ["guidance={type: classifier_free, scale: 1.0e+7, interval: [0.2, 0.9]}"],
        ["guidance={type: autoguidance, scale: 300.0}"],
    ],
)
def test_sampler_and_guidance_can_be_asked_for(trained, tmp_path, settings):
    out = tmp_path / "drawn"
    chosen = [part for text in settings for part in ("--set", text)]
    done = invoke("sample", str(trained), "--out", str(out), "--count", "4", *chosen)
    assert done.exit_code == 0, done.output
    done = invoke("verify", str(out), "--model", str(trained), "--json")
    found = json.loads(done.stdout)
    # Four images and three tables.
    assert (found["files"], found["redrawn"], found["problems"]) == (7, 4, [])
    assert found["chain"] == json.loads((out / "dataset.json").read_text())["chain"]
    usual = tmp_path / "usual"
    invoke("sample", str(trained), "--out", str(usual), "--count", "4")
    names = [f"images/synthetic-{index:06d}.png" for index in range(4)]
    assert any((usual / name).read_bytes() != (out / name).read_bytes() for name in names)
    done = invoke("sample", str(trained), "--out", "x", "--set", "train.images=3")
    assert done.exit_code == 2


def test_sample_from_a_table(trained, tmp_path):
    table = tmp_path / "wanted.csv"
    table.write_text("cardiomegaly,effusion\n1,0\n0,1\n")
    out = tmp_path / "drawn"
    done = invoke("sample", str(trained), "--out", str(out), "--conditions", str(table))
    assert done.exit_code == 0, done.output
    rows = (out / "labels.csv").read_text().splitlines()
    assert rows[0] == "image,patient,split,cardiomegaly,effusion"
    assert rows[1].startswith("images/synthetic-000000.png,synthetic-000000,train,1,0")


def test_sample_what_real_studies_hold(trained, simulated_folder, tmp_path):
    out = tmp_path / "drawn"
    folder = "data={type: folder, size: [32, 32], findings: [cardiomegaly, effusion]}"
    asked = ("--count", "6", "--like", str(simulated_folder), "--set", folder)
    done = invoke("sample", str(trained), "--out", str(out), *asked)
    assert done.exit_code == 0, done.output
    drawn = {row.split(",", 3)[3] for row in (out / "labels.csv").read_text().splitlines()[1:]}
    table = csv.DictReader((simulated_folder / "table.csv").read_text().splitlines())
    held = {f"{row['cardiomegaly']},{row['effusion']}" for row in table if row["split"] == "train"}
    assert drawn <= held
    done = invoke("sample", str(trained), "--out", "x", *asked, "--masks", str(tmp_path))
    assert done.exit_code == 2
    assert "--like decides all conditions" in done.output


def test_checkpoints_show_and_verify(trained):
    assert invoke("checkpoints", "verify", str(trained)).exit_code == 0
    shown = json.loads(invoke("checkpoints", "show", str(trained), "--json").output)
    assert shown["kind"] == "generator"
    assert shown["schema"]["findings"] == ["cardiomegaly", "effusion"]


def test_an_exported_checkpoint_draws_nearly_the_same(trained, tmp_path):
    from medgen.assembly import from_pretrained
    from medgen.synthesis.plan import plan

    out = tmp_path / "half"
    done = invoke("checkpoints", "export", str(trained), "--out", str(out), "--half")
    assert done.exit_code == 0, done.output
    assert sorted(file.name for file in out.iterdir()) == ["model.safetensors", "recipe.yaml"]
    full, half = from_pretrained(trained), from_pretrained(out)
    asked = plan(full, count=4)
    drawn = [m.sample(asked.conditions, list(asked.seeds)).image for m in (full, half)]
    assert (drawn[0] - drawn[1]).abs().max() < 0.05  # images span 2; half keeps 11 bits
    size = (out / "model.safetensors").stat().st_size
    assert size < 0.7 * (trained / "model.safetensors").stat().st_size
    assert isinstance(
        invoke("checkpoints", "export", str(trained), "--out", str(out)).exception, MedgenError
    )


def test_dry_run_writes_nothing(tmp_path):
    out = tmp_path / "run"
    overrides = [part for text in TINY for part in ("--set", text)]
    done = invoke("run", "cxr/quickstart", "--dry-run", "--out", str(out), *overrides)
    assert done.exit_code == 0, done.output
    assert "M parameters" in done.output
    assert not out.exists()


def test_doctor():
    assert json.loads(invoke("doctor", "--json").output)["cores"] >= 1
