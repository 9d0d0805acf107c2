"""The report: honest when parts are missing, safe to open, the same bytes for the same inputs."""

from __future__ import annotations

import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medgen.augmentation.verdict import DUPLICATES, MIXED, REAL, SYNTHETIC
from medgen.errors import DataError, OutputError
from medgen.report.gallery import Gallery
from medgen.report.html import write_report
from medgen.report.plots import arm_points, curves, training_chart
from medgen.report.privacy import flagged
from medgen.report.results import Comparison, read_estimate, read_run
from medgen.report.wording import (
    against_floor,
    headline,
    interval_text,
    value_text,
    verdict_sentence,
)
from medgen.types import Estimate

HOSTILE = "<script>alert('x')</script>\"&'"
VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page, checked to be nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)
        if "table" in self.open and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def estimate(value, low=None, high=None, n=100, **rest):
    return {"value": value, "low": low, "high": high, "n": n, **rest}


def comparison(fraction, value, low, high, verdict, **rest):
    return {
        "fraction": fraction,
        "arm": MIXED,
        "versus": DUPLICATES,
        "ratio": 1.0,
        "estimate": estimate(value, low, high, 624, method="paired bootstrap"),
        "verdict": verdict,
        **rest,
    }


def prove(comparisons):
    rows = [
        {
            "fraction": fraction,
            "arm": arm,
            "ratio": 1.0,
            "repeat": repeat,
            "value": 0.7 + 0.01 * repeat + 0.1 * fraction,
            "steps": 300,
            "seconds": 2.0,
            "real": 60,
            "synthetic": 60,
        }
        for fraction in (0.02, 1.0)
        for arm in (REAL, DUPLICATES, MIXED, SYNTHETIC)
        for repeat in range(3)
    ]
    return {
        "task": "classification",
        "metric": "auroc",
        "higher_is_better": True,
        "rows": rows,
        "comparisons": comparisons,
        "settings": {"steps": 300},
        "generator_saw": {"studies": 3400, "patients": 1820},
        "test": {"studies": 624, "patients": 520},
    }


SCORES = {
    "threshold": 0.5,
    "false_alarm_rate": 0.05,
    "heldout": 40,
    "flagged": 1,
    "heldout_scores": [0.2 + 0.008 * i for i in range(40)],
    "samples": [
        {"synthetic": f"s{i}", "real": HOSTILE, "space": "registered", "distance": 0.1 * i}
        | {"alarm_below": 0.2, "flipped": i == 0, "score": 0.6 - 0.1 * i, "false_alarms": 0.02}
        for i in range(3)
    ],
}


@pytest.fixture
def full_run(tmp_path: Path) -> Path:
    """A run directory with everything in it."""
    images = tmp_path / "synthetic" / "images"
    images.mkdir(parents=True)
    (tmp_path / "samples").mkdir()
    picture = np.arange(64, dtype=np.uint8).reshape(8, 8)
    manifest = []
    for index in range(3):
        Image.fromarray(picture + index).save(images / f"s{index}.png")
        condition = {"findings": {HOSTILE: 1, "effusion": 0}}
        line = {"id": f"s{index}", "source": "sha256:ab", "condition": condition}
        manifest.append(json.dumps(line))
    (tmp_path / "synthetic" / "manifest.jsonl").write_text("\n".join(manifest))
    Image.fromarray(picture).save(tmp_path / "samples" / "000100.png")
    log = [
        {
            "images": 64 * i,
            "loss": 1 / (1 + i),
            "validation_loss": 0.5,
            "validation_loss_by_t": [0.1, None],
        }
        for i in range(1, 9)
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(line) for line in log))
    (tmp_path / "recipe.yaml").write_text(f"name: {HOSTILE}\n")
    floor = estimate(0.0001, -0.0004, 0.0005, 50)
    evaluation = {
        "metrics": {
            "kid": estimate(0.0281, 0.0225, 0.0342, 90, higher_is_better=False, floor=floor),
            f"label_agreement/{HOSTILE}": estimate(0.842, 0.815, 0.868, 91, unit="share"),
            "memorization": estimate(0.011, 0.004, 0.019, 92, warning=HOSTILE),
            "odd": estimate(math.nan, math.nan, math.nan, 93),
        },
        "counts": {"real": 50},
        "extractor": {"name": HOSTILE},
        "pairs": SCORES["samples"][:1],
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    judged = {"filters": {"budget": 5, "filters": [{"type": "copies", "share": 0.05}]}}
    (tmp_path / "synthetic" / "dataset.json").write_text(
        json.dumps(judged | {"asked": 4, "unfilled": 1})
    )
    reasons = ["copy", HOSTILE, "copy"]
    (tmp_path / "synthetic" / "rejected.jsonl").write_text(
        "\n".join(json.dumps({"index": 1, "seed": 2, "reason": reason}) for reason in reasons)
    )
    (tmp_path / "reidentification.json").write_text(json.dumps(SCORES))
    comparisons = [
        comparison(0.02, 0.0312, 0.0121, 0.0503, "helps"),
        comparison(1.0, -0.0163, -0.0251, -0.0072, "hurts"),
    ]
    (tmp_path / "prove.json").write_text(json.dumps(prove(comparisons)))
    return tmp_path


def a_gallery() -> Gallery:
    images = np.arange(4 * 16 * 16, dtype=np.uint32).astype(np.uint8).reshape(4, 16, 16)
    return Gallery(
        real=images,
        synthetic=images[:2],
        nearest=images[2:],
        real_captions=[HOSTILE, HOSTILE, "b", "b"],
        synthetic_captions=[HOSTILE, "b"],
        nearest_captions=["distance 1", HOSTILE],
        studies={HOSTILE: images[0]},
        quiz_real=images,
        quiz_synthetic=images[:3],
    )


def report(run: Path, **changes) -> str:
    arguments = {
        "title": f"Title {HOSTILE}",
        "summary": HOSTILE,
        "commands": [f"medgen run a/b --out '{HOSTILE}'"],
        "gallery": a_gallery(),
        "facts": {HOSTILE: HOSTILE},
        "limits": [HOSTILE],
        **changes,
    }
    return write_report(run, **arguments).read_text(encoding="utf-8")


def test_every_section_stands_and_the_page_is_well_formed(full_run):
    page = Page(report(full_run))
    assert page.open == []
    sections = [a["id"] for tag, a in page.tags if tag == "section"]
    assert sections == [
        "verdict",
        "benefit",
        "privacy",
        "fidelity",
        "condition",
        "quiz",
        "gallery",
        "filters",
        "training",
        "provenance",
        "limits",
    ]
    assert "Not measured" not in page.text
    assert sum(tag == "svg" and a.get("class") == "chart" for tag, a in page.tags) == 5
    anchors = {a["href"][1:] for tag, a in page.tags if tag == "a"}
    assert anchors <= set(sections)
    identifiers = [a["id"] for _, a in page.tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))


def test_nothing_is_fetched(full_run):
    text = report(full_run)
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in re.sub(r"url\(#", "", text)
    for _, attributes in Page(text).tags:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            value = attributes.get(name)
            assert not value or value.startswith(("data:", "#"))
    assert "default-src 'none'" in text


def test_hostile_names_are_text(full_run):
    text = report(full_run)
    page = Page(text)
    assert "<script>alert" not in text
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert page.text.count("<script>alert('x')</script>") > 8
    assert not any(name.startswith("on") for _, a in page.tags for name in a)
    assert any(HOSTILE in (a.get("alt") or "") for _, a in page.tags)


def test_same_inputs_give_the_same_bytes(full_run, tmp_path):
    first = report(full_run, out=tmp_path / "a.html")
    assert first == report(full_run, out=tmp_path / "b.html")
    changed = report(full_run, gallery=None, out=tmp_path / "c.html")
    assert changed != first


def test_an_empty_run_says_what_was_not_measured(tmp_path):
    page = Page(report(tmp_path, gallery=None, facts={}))
    sections = [a["id"] for tag, a in page.tags if tag == "section"]
    assert sections == ["verdict", "provenance", "limits"]
    missing = page.text.split("Not measured in this run:")[1]
    for words in ("help a model", "real studies", "asked for", "copied", "training", "recipe"):
        assert words in missing


def test_each_absent_file_is_named(full_run):
    (full_run / "prove.json").unlink()
    page = Page(report(full_run, gallery=None))
    assert "help a model was not measured" in page.text
    missing = page.text.split("Not measured in this run:")[1].split(".")[0]
    assert "whether the synthetic studies help a model" in missing
    assert "the nearest real study" in missing
    assert "how close" not in missing
    assert "holds pictures of real studies" not in page.text


def test_every_estimate_shown_has_its_interval_and_n(full_run):
    page = Page(report(full_run))
    cells = [[re.sub(r"\s+", " ", cell).strip() for cell in row] for row in page.rows]
    measures = {row[0].split(" ")[0]: row for row in cells if len(row) == 7 and row[3].isdigit()}
    kid = measures["Kernel"]
    assert kid[1:4] == ["0.028", "0.022 to 0.034", "90"]
    assert kid[4].replace(" ", "") == "0.0001−0.0004to0.0005n=50"
    assert kid[6] == "worse than real"
    assert measures["Findings"][1:4] == ["84.2 %", "81.5 to 86.8 %", "91"]
    assert measures["Odd"][1:4] == ["not available", "not available", "93"]
    assert "nan" not in page.text.lower().split()
    arms = [row for row in cells if len(row) == 8 and row[4] == "3"]
    assert len(arms) == 8
    assert all(" to " in row[3] for row in arms)
    differences = [row for row in cells if len(row) == 7 and row[5] == "624"]
    assert [row[3:5] for row in differences] == [
        ["+0.031", "+0.012 to +0.050"],
        ["−0.016", "−0.025 to −0.007"],
    ]


def test_verdicts_come_first_in_plain_words(full_run):
    text = Page(report(full_run)).text.replace("\N{NO-BREAK SPACE}", " ")
    answer = "Adding the synthetic studies helped with 2 % of the patients and hurt with all"
    assert answer in text
    assert "AUROC rises by 0.031 (95 % interval +0.012 to +0.050; n = 624) against the same" in text
    assert "AUROC falls by 0.016 (95 % interval −0.025 to −0.007; n = 624)" in text
    assert text.index("duplicates control") < text.index("What was generated")


def test_no_evidence_says_what_stays_possible(tmp_path):
    values = prove([comparison(1.0, 0.004, -0.011, 0.019, "no evidence")])
    (tmp_path / "prove.json").write_text(json.dumps(values))
    proof = read_run(tmp_path).proof
    assert headline(proof).startswith("There is no evidence")
    before, effect, after = verdict_sentence(proof.comparisons[0], proof)
    assert "AUROC" in before
    assert effect.startswith("changes by +0.004")
    assert "anything from −0.011 to +0.019 may be true" in after


@pytest.mark.parametrize(
    ("values", "value", "interval"),
    [
        ((0.8123, 0.7911, 0.8333), "0.812", "0.791 to 0.833"),
        ((14.21, 12.9, 16.02), "14.2", "12.9 to 16.0"),
        ((1234.0, 1000.0, 1400.0), "1234", "1000 to 1400"),
        ((-0.00001, -0.01, 0.01), "0.000", "−0.010 to 0.010"),
        ((0.5, 0.5, 0.5), "0.500", "0.500 to 0.500"),
        ((0.5, math.nan, math.nan), "0.500", "not available"),
        ((math.inf, 0.0, math.inf), "not available", "not available"),
    ],
)
def test_digits_follow_the_interval(values, value, interval):
    measured = Estimate(*values, n=10)
    assert value_text(measured) == value
    assert interval_text(measured) == interval


@pytest.mark.parametrize(
    ("low", "high", "better", "words"),
    [
        (0.5, 0.6, True, "better than real"),
        (0.5, 0.6, False, "worse than real"),
        (0.5, 0.6, None, "differs from real"),
        (0.1, 0.6, True, "no difference seen"),
        (0.0, 0.05, True, "worse than real"),
        (math.nan, 0.6, True, "not decided: an interval is missing"),
    ],
)
def test_the_reading_follows_the_intervals(low, high, better, words):
    floor = Estimate(0.2, 0.1, 0.3, n=10)
    measured = Estimate((low + high) / 2, low, high, 10, higher_is_better=better, floor=floor)
    assert against_floor("kid", measured)[0] == words


def test_arm_intervals_are_students():
    rows = [
        {"fraction": 1.0, "arm": MIXED, "ratio": 2.0, "value": value} for value in (1.0, 2.0, 3.0)
    ]
    (point,) = arm_points(rows)
    assert point.mean == pytest.approx(2.0)
    assert point.high - point.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    (single,) = arm_points(rows[:1])
    assert math.isnan(single.low)


def test_curves_take_losses_only_and_skip_what_is_missing():
    log = [
        {"step": 1, "images": 64, "loss": 1.0, "gradient_norm": 3.0, "validation": None},
        {"step": 2, "images": 128, "loss": None, "validation": 0.5, "validation_by_t": [1, 2]},
        {"step": 3, "loss": 0.1},
    ]
    found = curves(log)
    assert list(found) == ["loss", "validation"]
    assert found["loss"][0].tolist() == [64.0]
    assert found["validation"][1].tolist() == [0.5]


def test_losses_over_decades_have_plain_ticks():
    """A page without the formulas of matplotlib, and a tick even where no power of ten is."""
    for losses in ([0.9, 0.11], [20.0, 0.03]):
        log = [{"images": 64 * (i + 1), "loss": loss} for i, loss in enumerate(losses)]
        chart = training_chart(log)
        assert chart
        assert "mathdefault" not in chart
        assert ">0.2<" in chart


def test_null_reads_as_not_available():
    read = read_estimate({"value": None, "low": None, "high": None, "n": 3})
    assert isinstance(read, Estimate)
    assert value_text(read) == interval_text(read) == "not available"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("evaluation.json", "{", "expected JSON"),
        ("evaluation.json", "[]", "JSON object"),
        ("evaluation.json", '{"metrics": {"kid": {"value": 1}}}', "not as medgen writes it"),
        ("prove.json", '{"task": "classification"}', "not as medgen writes it"),
        ("log.jsonl", "{]\n{}\n", "log.jsonl:1"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=re.escape(words)):
        report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_log_cut_off_by_a_kill_is_read(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"images": 1, "loss": 1.0}\n{"images": 2, "lo')
    assert len(read_run(tmp_path).log) == 1


def test_an_unwritable_target_is_a_clear_error(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    with pytest.raises(OutputError, match="cannot write"):
        report(tmp_path, out=blocked / "report.html")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_manifest_cannot_reach_outside_the_dataset(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "secret.png")
    (tmp_path / "run" / "synthetic" / "images").mkdir(parents=True)
    assert read_run(tmp_path / "run").synthetic_image("../../../secret") is None


def test_a_gallery_refuses_what_it_cannot_draw():
    images = np.zeros((2, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="uint8"):
        Gallery(real=images.astype(np.float32))
    with pytest.raises(ValueError, match="captions"):
        Gallery(real=images, real_captions=["one"])
    with pytest.raises(ValueError, match="more pictures"):
        Gallery(synthetic=images[:1], nearest=images)


def test_what_the_experiment_could_have_seen_is_told(tmp_path):
    power = "With 104 test patients, a difference under 0.026 would be missed."
    seen = {"power": power, "detectable": 0.0262, "p_holm": 0.062}
    seen |= {"holm": {"low": -0.0021, "high": 0.041, "level": 0.975}}
    narrow = comparison(1.0, 0.02, 0.001, 0.039, "no evidence", **seen)
    (tmp_path / "prove.json").write_text(json.dumps(prove([narrow])))
    page = Page(report(tmp_path, gallery=None))
    assert "its interval widens to −0.002 to +0.041. With 104 test patients" in page.text
    [row] = [row for row in page.rows if row[-1].strip() == "no evidence"]
    assert row[-4:-1] == ["0.062", "−0.002 to +0.041", "0.026"]


def test_several_ratios_are_all_shown(tmp_path):
    comparisons = [
        comparison(1.0, 0.03, 0.01, 0.05, "helps", ratio=1.0),
        comparison(1.0, -0.03, -0.05, -0.01, "hurts", ratio=4.0),
    ]
    (tmp_path / "prove.json").write_text(json.dumps(prove(comparisons)))
    text = Page(report(tmp_path, gallery=None)).text
    assert "1 for every real one" in text
    assert "4 for every real one" in text
    assert "Helps and hurts" in text


def test_comparisons_are_read_as_written(full_run):
    first = read_run(full_run).proof.comparisons[0]
    assert isinstance(first, Comparison)
    assert (first.arm, first.versus, first.ratio) == (MIXED, DUPLICATES, 1.0)
    assert first.estimate.n == 624


def test_a_report_without_a_gallery_shows_synthetic_studies_from_all_over(tmp_path):
    images = tmp_path / "synthetic" / "images"
    images.mkdir(parents=True)
    lines = []
    for index in range(60):
        finding = "normal" if index < 30 else "effusion"
        lines.append(json.dumps({"id": f"s{index}", "condition": {"finding": finding}}))
        Image.fromarray(np.full((4, 4), index, np.uint8)).save(images / f"s{index}.png")
    (tmp_path / "synthetic" / "manifest.jsonl").write_text("\n".join(lines))
    page = Page(report(tmp_path, gallery=None))
    shown = [a["alt"] for tag, a in page.tags if tag == "img" and a.get("alt")]
    assert shown.count("Synthetic: normal") == shown.count("Synthetic: effusion") == 12


def test_the_other_answers_stand_beside_the_verdict(full_run):
    page = Page(report(full_run))
    verdict = page.text[: page.text.index("Does it help?")]
    assert "Worse than between two sets of real studies: 1 of 1 measures." in verdict
    assert "1 of 3 samples are closer to a training study than all but 5" in verdict
    assert "less than one would be by chance. That is no more than chance may give" in verdict


def test_more_copies_than_by_chance_are_called_copying(full_run):
    evaluation = json.loads((full_run / "evaluation.json").read_text())
    floor = estimate(0.05, 0.04, 0.06, 40)
    share = estimate(0.4, 0.3, 0.5, 92, higher_is_better=False, floor=floor)
    evaluation["metrics"]["memorization"] = share
    (full_run / "evaluation.json").write_text(json.dumps(evaluation))
    assert "more than chance explains: the generator copies" in Page(report(full_run)).text


def test_a_pair_tells_why_it_is_suspicious(full_run):
    text = Page(report(full_run)).text.replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "alike after alignment, mirrored, score 0.60, at most 2 % of unseen studies score so high"
        in text
    )


def test_a_pair_of_clips_shows_both(full_run):
    """The files of clips are no pictures: what is shown of them comes with the gallery."""
    pair = SCORES["samples"][0]
    (full_run / "synthetic" / "images" / f"{pair['synthetic']}.png").unlink()
    frames = np.zeros((16, 96), np.uint8)
    assert "no picture" in report(full_run, gallery=Gallery(studies={pair["real"]: frames}))
    both = {pair["real"]: frames, pair["synthetic"]: frames}
    assert "no picture" not in report(full_run, gallery=Gallery(studies=both))


def test_rejections_are_counted_by_reason(full_run):
    page = Page(report(full_run))
    assert "Of 6 draws the filters rejected 3 and kept 3 of 4 asked for" in page.text
    assert "1 could not be filled and is missing" in page.text
    rows = [[cell.strip() for cell in row] for row in page.rows]
    assert ["copy", "2 draws, 33.3\N{NO-BREAK SPACE}%"] in rows
    assert "copies (share 0.05)" in page.text


def test_the_quiz_is_fair_and_its_answers_are_right(full_run):
    text = report(full_run)
    page = Page(text)
    tiles = re.findall(r'<li data-real="(.)"><img src="([^"]+)" alt="Picture (\d+)">', text)
    assert len(tiles) == 6
    assert sorted(real for real, _, _ in tiles) == ["0"] * 3 + ["1"] * 3
    assert [int(number) for _, _, number in tiles] == [1, 2, 3, 4, 5, 6]
    answers = page.text[page.text.index("The answers") :]
    for name, wanted in (("Real", "1"), ("Synthetic", "0")):
        listed = re.search(rf"{name}: ([\d, ]+)\.", answers).group(1).split(", ")
        assert listed == [number for real, _, number in tiles if real == wanted]
    assert "between 1 and 5 right" in page.text


def test_without_further_pictures_there_is_no_quiz(full_run):
    assert 'id="quiz"' not in report(full_run, gallery=None)


def test_every_figure_is_written_for_programs(full_run, tmp_path):
    report(full_run, out=tmp_path / "page.html")
    found = json.loads((tmp_path / "page.json").read_text())
    assert found["commands"] == [f"medgen run a/b --out '{HOSTILE}'"]
    assert found["verdicts"] == [
        {"fraction": 0.02, "verdict": "helps"},
        {"fraction": 1.0, "verdict": "hurts"},
    ]
    measures = {row["measure"]: row for row in found["measures"]}
    assert measures["kid"]["value"] == 0.0281
    assert measures["kid"]["floor_high"] == 0.0005
    assert measures["kid"]["reading"] == "worse than real"
    assert measures["odd"]["value"] is None
    assert found["privacy"]["flagged"] == 1
    assert found["samples"] == SCORES["samples"]
    assert [row["count"] for row in found["rejections"]] == [2, 1]
    assert len(found["runs"]) == 24
    for name in ("measures", "arms", "comparisons", "runs", "samples", "rejections"):
        with (tmp_path / "page-tables" / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(found[name])
        assert list(rows[0]) == list(found[name][0])


def test_a_run_without_figures_has_no_tables(tmp_path):
    report(tmp_path, gallery=None)
    assert json.loads((tmp_path / "report.json").read_text())["measures"] == []
    assert not (tmp_path / "report-tables").exists()


def test_few_copies_among_many_samples_are_not_called_chance(full_run):
    """Five of 100 above all of 100 unseen studies: (100 ... 96) / (200 ... 196) = 0.03."""
    line = SCORES["samples"][0]
    scores = [0.9] * 5 + [0.3] * 95
    judged = {**SCORES, "heldout": 100, "heldout_scores": [0.2] * 99 + [0.4]}
    judged["samples"] = [{**line, "score": score} for score in scores]
    (full_run / "reidentification.json").write_text(json.dumps(judged))
    assert flagged(read_run(full_run))["beyond_p"] == pytest.approx(0.0297, abs=1e-4)
    text = Page(report(full_run)).text
    assert "5 samples score above every one of 100 unseen studies" in text
    judged["samples"] = judged["samples"][3:]
    (full_run / "reidentification.json").write_text(json.dumps(judged))
    assert "no more than chance may give" in Page(report(full_run)).text


def test_attacks_are_read_against_chance():
    leaks = Estimate(0.58, 0.52, 0.65, 150)
    assert against_floor("membership_auc/loss", leaks) == ("better than chance: leaks", "hurts")
    coin = Estimate(0.5, 0.43, 0.56, 150)
    assert against_floor("membership_auc/loss", coin) == ("no better than chance", "unclear")


def test_what_most_rows_say_is_said_once(full_run):
    evaluation = json.loads((full_run / "evaluation.json").read_text())
    common = {"warning": "only 90 studies a side", "extractor": "classifier"}
    evaluation["metrics"] = {
        name: estimate(0.5, 0.4, 0.6, 90, **(common if name != "odd" else {"extractor": "pixels"}))
        for name in ("kid", "frechet", "odd")
    }
    (full_run / "evaluation.json").write_text(json.dumps(evaluation))
    text = Page(report(full_run)).text
    assert text.count("only 90 studies a side") == 1
    assert text.count("features: classifier") == 1
    assert text.count("features: pixels") == 1
