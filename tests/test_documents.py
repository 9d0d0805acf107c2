"""What the README and the notebook tell a reader to do, done."""

import math
import re
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from medgen.recipe import load_recipe, shipped
from medgen.registry import build
from medgen.rng import Rng

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_notebook_runs():
    notebook = nbformat.read(ROOT / "notebooks" / "tour.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}}).execute()
    printed = "".join(
        output.get("text", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    assert "Did you mean 'images'?" in printed
    assert "problems=()" in printed


@pytest.mark.parametrize("block", blocks("python"))
def test_python_of_the_readme_runs(block, trained, simulated_folder, tmp_path, monkeypatch):
    """The README's names of a checkpoint and of a folder stand for tiny ones."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "cxr-paediatric-64").symlink_to(trained)
    (tmp_path / "studies").symlink_to(simulated_folder)
    block = block.replace('findings="finding"', 'findings=("cardiomegaly", "effusion")')
    block = block.replace("size=(64, 64)", "size=(32, 32)").replace("count=500", "count=8")
    exec(compile(block, "README.md", "exec"), {})


def test_the_component_of_the_contributing_guide_works():
    """Its order on dz/dt = z: half the step, a quarter of the error."""
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    exec(compile(block, "CONTRIBUTING.md", "exec"), {"__name__": "ralston"})
    start = torch.ones(1, 1, dtype=torch.float64)
    errors = []
    for steps in (32, 64):
        sampler = build("sampler", "ralston", {"steps": steps})
        drawn = sampler.sample(lambda z, t: z, start, Rng([0]))
        errors.append(abs(drawn.item() - math.e))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_commands_of_the_readme_exist():
    from click.testing import CliRunner

    from medgen.cli.main import cli

    commands = re.findall(r"^medgen (\w+)", "\n".join(blocks("bash")), re.M)
    assert len(commands) >= 6
    for command in set(commands):
        assert CliRunner().invoke(cli, [command, "--help"]).exit_code == 0, command


def test_recipes_named_in_the_readme_ship():
    named = set(re.findall(r"\b(?:cxr|ct|mr)/[a-z0-9-]+", README))
    assert named <= set(shipped())
    assert named


def test_every_yaml_of_the_readme_checks(tmp_path):
    for number, block in enumerate(blocks("yaml")):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block)
        assert load_recipe(file).kind == "generator"
