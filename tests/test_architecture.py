"""The rules of the house: who may import whom, how large things get, which words are used."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "medgen").rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in MODULES]

COMPONENTS = ("data", "codecs", "conditioners", "backbones", "objectives", "samplers")
FLOORS = (
    ("types", "errors", "rng", "settings", "document", "disk"),
    ("protocols",),
    ("registry", "nn", "simulate"),
    COMPONENTS,
    ("model",),
    ("recipe", "recipe_check", "checkpoint", "assembly", "importing"),
    ("augmentation",),
    ("evaluation",),
    ("report", "training", "synthesis"),
    ("evidence",),
    ("pipeline",),
    ("cli",),
)
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}
WIRED = ("schema", "latent", "cond", "root")
BANNED = re.compile(r"^(x_0|x_start|cfg|gen|utils|helper|helpers|manager|misc)$|^(do_|n_)\w+")


def package_of(path: Path) -> str:
    return path.relative_to(ROOT / "medgen").parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("medgen."):
            found.add(node.module.split(".")[1])
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("medgen.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_imports_go_one_way(path):
    mine = package_of(path)
    if mine in ("__init__", "__main__"):
        return
    for other in imported(path) - {mine}:
        if mine == "recipe_check" and other == "codecs":
            continue
        assert FLOOR[other] <= FLOOR[mine], f"{mine} may not import {other}, which stands above it"
        if mine in COMPONENTS:
            assert other not in COMPONENTS, f"{mine} may not import {other}, its neighbour"


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_modules_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (body[-1].end_lineno - body[0].lineno + 1) if body else 0
            assert lines <= 50, f"{node.name} has {lines} lines"
            if node.name == "__init__":
                every = [*node.args.args[1:], *node.args.kwonlyargs]
                arguments = len([a for a in every if a.arg not in WIRED])
                assert arguments <= 9, f"a constructor takes {arguments} arguments"


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_words(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.arg):
            names = [node.arg]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names = [node.id]
        for name in names:
            assert not BANNED.match(name), f"'{name}' is a banned word"


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_no_unsafe_calls(path):
    text = path.read_text()
    unsafe = (
        r"torch\.load\((?![^)]*weights_only=True)|pickle\.load|allow_pickle=True"
        r"|yaml\.load\(|shell=True"
    )
    assert not re.search(unsafe, text)
    assert not re.search(r"\burlopen|requests\.|urllib\.request|hf_hub_download", text)


def test_the_command_line_starts_without_torch():
    program = (
        "import sys; from medgen.cli.main import cli; cli.main(['--help'], standalone_mode=False);"
        "heavy = {'torch', 'monai', 'numpy', 'diffusers'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_import_medgen_is_light():
    program = "import sys, medgen; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
