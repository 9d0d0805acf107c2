"""Reports: words as numbers, a condition, a request, and whether images find them again."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from toy_studies import Studies, discs

from medgen.cli.main import cli
from medgen.conditioners.text import TextConditioner
from medgen.data.simulated import Simulated
from medgen.data.synthetic import SyntheticDataset
from medgen.errors import DataError
from medgen.evaluation.suite import evaluate
from medgen.evaluation.text import TextRetrieval
from medgen.nn.words import word_tokens
from medgen.pipeline import Run
from medgen.recipe import load_recipe
from medgen.simulate.reports import ABSENT, NORMAL, report
from medgen.synthesis.plan import plan_from_table
from medgen.types import Batch, Schema

SCHEMA = Schema(size=(8, 8), text=True)
TINY = [
    "data={type: simulated, count: 40, size: [32, 32], text: true}",
    "backbone.depth=1", "backbone.width=32", "backbone.heads=2", "conditioner.report.width=16",
    "train.images=64", "train.batch=16", "train.warmup=16", "train.checkpoint_every=64",
    "train.validate_every=64", "sampler.steps=2", "sample.count=6", "sample.micro_batch=4",
]  # fmt: skip


def test_words_keep_their_number_and_case_is_ignored():
    numbers, stands = word_tokens(["No effusion.", "effusion", ""], 1000, 5)
    assert stands.tolist() == [[True] * 3 + [False] * 2, [True] + [False] * 4, [False] * 5]
    assert numbers[0, 1] == numbers[1, 0]
    assert word_tokens(["EFFUSION"], 1000, 5)[0][0, 0] == numbers[1, 0]
    assert numbers.max() <= 1000
    assert (numbers[stands] > 0).all()


def test_words_beyond_the_length_are_cut_off():
    numbers, _ = word_tokens(["a b c d"], 1000, 2)
    assert torch.equal(numbers, word_tokens(["a b"], 1000, 2)[0])


@pytest.fixture
def conditioner():
    torch.manual_seed(0)
    return TextConditioner(SCHEMA, width=16, heads=2, length=8)


def test_a_report_enters_alone(conditioner):
    """What stands beside it in a batch changes nothing, not a bit."""
    reports = ("no effusion", "a large effusion on one side and a nodule", "")
    together = conditioner.encode(Batch(text=reports))
    for i, text in enumerate(reports):
        alone = conditioner.encode(Batch(text=(text,)))
        assert torch.equal(together.vector[i], alone.vector[0])
        assert torch.equal(together.mask[i, : alone.mask.shape[1]], alone.mask[0])
    assert together.mask.sum(dim=1).tolist() == [2, 8, 1]


def test_an_empty_report_is_null_and_order_counts(conditioner):
    found = conditioner.encode(Batch(text=("", "no nodule but fluid", "no fluid but nodule")))
    null = conditioner.null(1)
    assert torch.equal(found.vector[0], null.vector[0])
    assert torch.equal(found.tokens[0, :1], null.tokens[0])
    assert not torch.allclose(found.vector[1], found.vector[2], atol=1e-3)


def test_padding_is_not_attended_to(conditioner):
    longer = TextConditioner(SCHEMA, width=16, heads=2, length=20)
    longer.load_state_dict(conditioner.state_dict())
    a, b = (c.encode(Batch(text=("one small nodule",))) for c in (conditioner, longer))
    assert torch.allclose(a.vector, b.vector, atol=1e-5)
    assert torch.allclose(a.tokens[:, :3], b.tokens[:, :3], atol=1e-5)


@pytest.mark.parametrize(
    ("schema", "settings", "says"),
    [
        (Schema(size=(8, 8)), {}, "studies have none"),
        (SCHEMA, {"doors": ()}, "doors"),
        (SCHEMA, {"width": 10, "heads": 4}, "cannot be split"),
    ],
)
def test_what_cannot_be_built_is_refused(schema, settings, says):
    with pytest.raises(ValueError, match=says):
        TextConditioner(schema, **settings)


def test_simulated_reports_are_true():
    rng = np.random.default_rng(0)
    for _ in range(200):
        said = report({"effusion": 800.0}, rng)
        assert "ffusion" in said.replace(ABSENT["effusion"], "") or "luid" in said
        assert "large" in said.lower()
        assert ABSENT["effusion"] not in said
    healthy = {report({}, rng) for _ in range(200)}
    words = set(NORMAL) | set(ABSENT.values())
    assert all(any(each in text for each in words) for text in healthy)
    assert len(healthy) > 10
    data = Simulated(count=6, size=(16, 16), text=True)
    assert data[2].text == Simulated(count=6, size=(16, 16), text=True)[2].text
    assert Simulated(count=6, size=(16, 16))[2].text is None


def described(studies: Studies, *, shuffled: bool = False) -> Studies:
    """Discs with reports that say in words where the disc is."""
    rows, columns = zip(*(np.argwhere(m).mean(0) for m in studies.batch.mask.numpy()), strict=True)
    reports = [
        f"A disc in {'upper' if row < 16 else 'lower'} {'left' if column < 16 else 'right'} part."
        for row, column in zip(rows, columns, strict=True)
    ]
    if shuffled:
        reports = reports[1:] + reports[:1]
    schema = replace(studies.schema, text=True)
    return Studies(schema, studies.studies, replace(studies.batch, text=tuple(reports)))


REAL = described(discs(300))
METRIC = TextRetrieval(steps=80, pool=4)


def test_images_find_the_reports_that_they_show():
    found = METRIC.compute(REAL, described(discs(100, seed=1, synthetic=True)))
    first = found["text_retrieval"]
    assert first.value > 0.8
    assert first.floor.value > 0.8
    assert first.floor.n == sum(study.split == "test" for study in REAL.studies)
    assert found["text_retrieval_5"].value == 1  # of a pool of four


def test_images_find_no_reports_that_they_do_not_show():
    wrong = described(discs(200, seed=1, synthetic=True), shuffled=True)
    first = METRIC.compute(REAL, wrong)["text_retrieval"]
    assert first.low <= 0.27  # of four reports, those of other discs: a quarter
    assert first.high < 0.4


def test_a_report_of_a_real_study_is_looked_up():
    """A dataset names it by study and digest; the judge knows the studies."""
    synthetic = described(discs(60, seed=1, synthetic=True))
    by_report = {text: i for i, text in enumerate(REAL.batch.text)}
    of = [REAL.studies[by_report[text]].id for text in synthetic.batch.text]
    named = tuple(
        replace(p, condition={"report": {"sha256": "0" * 64, "of": study}})
        for p, study in zip(synthetic.batch.provenance, of, strict=True)
    )
    without = replace(synthetic.batch, text=None, provenance=named)
    schema = replace(synthetic.schema, text=False)
    direct = METRIC.compute(REAL, synthetic)["text_retrieval"]
    looked_up = METRIC.compute(REAL, Studies(schema, synthetic.studies, without))["text_retrieval"]
    assert looked_up == direct


def test_what_retrieval_cannot_judge_is_refused():
    plain = discs(60, seed=1, synthetic=True)
    with pytest.raises(DataError, match="not asked for with a report"):
        METRIC.compute(REAL, plain)
    with pytest.raises(DataError, match="smaller `pool`"):
        TextRetrieval(steps=1, pool=9).compute(REAL, described(plain))
    skipped = evaluate(discs(60), plain, metrics=["text_retrieval"])
    assert "no reports" in json.dumps(skipped)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a tiny run that asks for reports."""
    out = tmp_path_factory.mktemp("report") / "run"
    return Run(load_recipe("cxr/report-flow-dit-64", TINY), out, device="cpu").train()


def test_reports_of_ones_own_are_asked_for_written_and_drawn_again(finished, tmp_path):
    table, out = tmp_path / "wanted.csv", tmp_path / "drawn"
    table.write_text("report,seed\nLarge pleural effusion.,1\nNo acute finding.,2\n,3\n")
    _call("sample", finished, "--out", out, "--conditions", table, "--device", "cpu")
    _call("verify", out, "--model", finished, "--count", "3")
    data = SyntheticDataset(out)
    assert data.schema.text
    assert [data[i].text[0] for i in range(3)] == [
        "Large pleural effusion.",
        "No acute finding.",
        "",
    ]
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("report\nx\n")
    with pytest.raises(DataError, match="unknown column 'report'"):
        plan_from_table(Schema(size=(8, 8), findings=("a",)), wrong)


def test_reports_of_real_studies_stay_where_they_are(finished, tmp_path):
    """A table of real reports with a canary: no output byte holds it, the study's name does."""
    studies, out = tmp_path / "studies", tmp_path / "drawn"
    _call("data", "simulate", "--out", studies, "--count", "12", "--size", "32")
    rows = list(csv.DictReader((studies / "table.csv").open()))
    with (studies / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"report": f"CANARY {i}"} for i, row in enumerate(rows))
    data = "data={type: folder, size: [32, 32], reading: {text: true}}"
    _call(
        "sample", finished, "--out", out, "--count", "4", "--like", studies, "--set", data,
        "--device", "cpu",
    )  # fmt: skip
    files = [file for file in out.rglob("*") if file.is_file()]
    assert files
    assert not any(b"CANARY" in file.read_bytes() for file in files)
    line = json.loads((out / "manifest.jsonl").read_text().splitlines()[0])
    assert set(line["condition"]["report"]) == {"sha256", "of"}
    assert not SyntheticDataset(out).schema.text
    done = CliRunner().invoke(cli, ["verify", str(out), "--model", str(finished)])
    assert done.exit_code == 1
    assert "reports of other studies" in str(done.exception)


def _call(*words):
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == 0, done.output
