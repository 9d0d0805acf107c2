"""Runs side by side: told apart, in the order of what readers ask, safe to open."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from test_report import HOSTILE, Page, comparison, estimate, prove

from medgen.cli.main import cli
from medgen.report.compare_page import run_names


@pytest.fixture
def runs(tmp_path):
    floor = estimate(0.1, 0.05, 0.15, 50)
    for name, value in (("small", 0.3), ("large", 0.12)):
        folder = tmp_path / name
        folder.mkdir()
        kid = estimate(value, value - 0.05, value + 0.05, 90, higher_is_better=False, floor=floor)
        metrics = {"kid": kid, "memorization": estimate(0.05, 0.01, 0.1, 90, unit="share")}
        if name == "large":
            metrics[f"label_agreement/{HOSTILE}"] = estimate(0.8, 0.7, 0.9, 90, unit="share")
        (folder / "evaluation.json").write_text(json.dumps({"metrics": metrics}))
    proof = prove([comparison(1.0, 0.03, 0.01, 0.05, "helps")])
    (tmp_path / "large" / "prove.json").write_text(json.dumps(proof))
    return [str(tmp_path / "small"), str(tmp_path / "large")]


def test_a_terminal_gets_benefit_first_and_a_line_a_run(runs):
    done = CliRunner().invoke(cli, ["compare", *runs])
    assert done.exit_code == 0, done.output
    text = done.stdout
    titles = [
        "DOES IT HELP?",
        "HOW CLOSE TO REAL?",
        "DO SAMPLES SHOW",
        "DOES IT GIVE PATIENTS AWAY?",
    ]
    assert [text.index(title) for title in titles] == sorted(text.index(t) for t in titles)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "small not measured" in lines
    assert "large +0.030 +0.010 to +0.050 n 624 helps" in lines
    assert "small 0.30 0.25 to 0.35 n 90 worse than real" in lines
    assert "large 0.12 0.07 to 0.17 n 90 no difference seen" in lines
    assert max(map(len, text.splitlines())) <= 100


def test_the_page_says_the_same(runs, tmp_path):
    out = tmp_path / "page.html"
    done = CliRunner().invoke(cli, ["compare", *runs, "--html", str(out)])
    assert done.exit_code == 0, done.output
    text = out.read_text()
    page = Page(text)
    assert page.open == []
    assert "<script>" not in text
    assert "https://" not in text
    assert HOSTILE in page.text
    for words in ("helps", "worse than real", "no difference seen", "not measured", "small, large"):
        assert words in page.text


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    same = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "other"]
    assert run_names(same) == [str(same[0]), str(same[1]), "other"]
