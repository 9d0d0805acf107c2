"""Filters: as strict as stated on real studies, blind to no planted fault, exactly once."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from toy_studies import discs

from medgen.assembly import from_pretrained
from medgen.cli.main import cli
from medgen.data.folder import Folder
from medgen.data.splits import by_split, load
from medgen.data.synthetic import SyntheticDataset
from medgen.errors import DataError, OutputError, RecipeError
from medgen.evaluation.neighbours import nearest_distance, pixel_rows
from medgen.recipe import load_recipe
from medgen.registry import build, names
from medgen.synthesis.draw import synthesize
from medgen.synthesis.filters import Filters
from medgen.synthesis.plan import plan
from medgen.synthesis.verify import verify

REAL = discs(800, noise=0.3, scalars=True)
FRESH = discs(300, seed=1, noise=0.3, scalars=True).batch


def swapped(batch):
    return replace(batch, label=1 - batch.label)


def other_masks(batch):
    return replace(batch, mask=batch.mask.flip(1))


def other_rows(batch):
    return replace(batch, scalar=32 - batch.scalar)


def brighter(batch):
    return replace(batch, image=batch.image + 0.8)


def static(batch):
    return replace(batch, image=torch.rand(batch.image.shape) * 2 - 1)


def copied(batch):
    train = load(by_split(REAL, "train")).image[: len(batch)]
    return replace(batch, image=(0.9 * train + 0.05).flip(-1))


def repeated(batch):
    """Twelve images over and over, mirrored every other time, under other exposures and noise."""
    image = batch.image[torch.arange(len(batch)) % 12].clone()
    image[12::2] = image[12::2].flip(-1)
    exposure = torch.linspace(0.7, 1, len(batch))[:, None, None, None]
    return replace(batch, image=image * exposure + 0.01 * torch.randn(image.shape))


FAULTS = {
    "duplicates": repeated,
    "findings": swapped,
    "masks": other_masks,
    "scalars": other_rows,
    "exposure": brighter,
    "outliers": static,
    "copies": copied,
}


@pytest.fixture(scope="module", params=sorted(FAULTS))
def fitted(request):
    settings = {"steps": 120} if request.param in ("findings", "masks", "scalars") else {}
    judge = build("filter", request.param, {"share": 0.1, **settings})
    judge.fit(REAL)
    return request.param, judge


def test_every_filter_has_its_fault():
    assert sorted(FAULTS) == names("filter")


def test_unseen_real_studies_pass_as_often_as_stated(fitted):
    _, judge = fitted
    rejected = np.mean([bool(reason) for reason in judge.reasons(FRESH)])
    assert 0.02 < rejected < 0.25


def test_planted_faults_are_rejected(fitted):
    name, judge = fitted
    torch.manual_seed(0)
    reasons = judge.reasons(FAULTS[name](FRESH))
    assert np.mean([reason == judge.reason for reason in reasons]) > 0.9


@pytest.mark.parametrize(
    ("name", "nothing"),
    [
        ("findings", {"label": torch.full_like(FRESH.label, -1)}),
        ("scalars", {"scalar": torch.full_like(FRESH.scalar, torch.nan)}),
    ],
)
def test_what_was_not_asked_for_is_not_judged(name, nothing):
    judge = build("filter", name, {"steps": 2})
    judge.fit(REAL)
    assert set(judge.reasons(replace(FRESH, **nothing))) == {""}


class Dark:
    """Rejects images that are bright on the whole."""

    def fit(self, real):
        return "none"

    def reasons(self, samples):
        return ["bright" * bool(image.mean() > self.limit) for image in samples.image]


@pytest.fixture(scope="module")
def factory(trained):
    model = from_pretrained(trained)

    def draw(out, limit, count=10, **options):
        judge = Dark()
        judge.limit = limit
        filters = Filters([judge], [{"type": "dark"}], ["none"], budget=3)
        return synthesize(
            model, plan(model, count=count), out, filters=filters, **{"workers": 1, **options}
        ).folder

    draw.model = model
    return draw


@pytest.fixture(scope="module")
def means(factory, tmp_path_factory):
    """Means of ten samples, none rejected."""
    out = factory(tmp_path_factory.mktemp("all") / "data", np.inf)
    return load(SyntheticDataset(out)).image.mean(dim=(1, 2, 3))


def test_rejected_samples_are_drawn_again_and_nothing_is_padded(factory, means, tmp_path, digests):
    limit = float(means.median())
    out = factory(tmp_path / "data", limit)
    about = json.loads((out / "dataset.json").read_text())
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    records = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert about["asked"] == 10
    assert about["unfilled"] == 10 - len(records)
    assert about["rejected"] == {"bright": len(lines)}
    assert len(lines) >= 4
    assert {len({x["seed"] for x in lines if x["index"] == i}) for i in range(10)} <= {0, 1, 2, 3}
    drawn = load(SyntheticDataset(out))
    assert (drawn.image.mean(dim=(1, 2, 3)) <= limit + 0.01).all()
    assert len(drawn) == len(records)
    again = sum(record["seed"] in {x["seed"] for x in lines} for record in records)
    assert again == 0
    assert verify(out, factory.model, count=10).problems == ()
    whole = digests(out)
    assert digests(factory(tmp_path / "workers", limit, workers=2)) == whole
    factory(tmp_path / "shards", limit, shard=(1, 2))
    assert digests(factory(tmp_path / "shards", limit, shard=(0, 2))) == whole


def test_a_filtered_dataset_is_not_taken_for_an_unfiltered_one(factory, tmp_path):
    out = factory(tmp_path / "data", np.inf, count=4)
    with pytest.raises(OutputError, match="another filters"):
        synthesize(factory.model, plan(factory.model, count=4), out, workers=1)
    plain = synthesize(factory.model, plan(factory.model, count=4), tmp_path / "plain", workers=1)
    with pytest.raises(OutputError, match="another filters"):
        factory(plain.folder, np.inf, count=4)


def test_filters_that_let_nothing_pass_say_so(factory, tmp_path):
    with pytest.raises(DataError, match="let none of 4 samples pass, at 3 draws each"):
        factory(tmp_path / "none", -np.inf, count=4)


def test_filters_of_a_recipe_and_of_the_command_line(trained, simulated_folder, tmp_path):
    chosen = "filters=[{type: copies, share: 0.5}, {type: exposure}]"
    recipe = load_recipe("cxr/quickstart", [chosen])
    assert [each["type"] for each in recipe.sections["filters"]] == ["copies", "exposure"]
    with pytest.raises(RecipeError, match="Did you mean 'copies'"):
        load_recipe("cxr/quickstart", ["filters=[{type: copys}]"])
    folder = "data={type: folder, size: [32, 32], findings: [cardiomegaly, effusion]}"
    out = tmp_path / "drawn"
    asked = ["sample", str(trained), "--out", str(out), "--count", "6", "--set", chosen]
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 2
    assert "--real" in done.output
    changed = ["--real", str(simulated_folder), "--set", folder, "--set", "sample.budget=40"]
    loose = ["--set", "filters=[{type: copies, share: 0}]"]
    done = CliRunner().invoke(cli, [*asked[:-2], *changed, *loose])
    assert done.exit_code == 0, done.output
    about = json.loads((out / "dataset.json").read_text())
    assert about["filters"]["budget"] == 40
    assert about["filters"]["filters"][0]["type"] == "copies"
    refusing = ["--no-copies", *changed, "--set", "filters=[]"]
    asked = ["sample", str(trained), "--out", str(tmp_path / "uncopied"), "--count", "2"]
    assert "--real" in CliRunner().invoke(cli, [*asked, "--no-copies"]).output
    done = CliRunner().invoke(cli, [*asked, *refusing])
    assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "uncopied" / "dataset.json").read_text())
    [chosen] = about["filters"]["filters"]
    assert (chosen["type"], chosen["share"]) == ("copies", 0.05)


@pytest.fixture(scope="module")
def unrepeated(factory, simulated_folder):
    """A function that draws samples and refuses those nearer to an earlier one than a threshold."""
    real = Folder(simulated_folder, (32, 32), findings=("cardiomegaly", "effusion"))
    judge = build("filter", "duplicates", {"share": 0.0})
    judge.fit(real)

    def draw(out, threshold, count=14, budget=3, **options):
        judge.threshold = threshold
        filters = Filters([judge], [{"type": "duplicates"}], [str(threshold)], budget=budget)
        wanted = plan(factory.model, count=count)
        options = {"workers": 1, **options}
        return synthesize(factory.model, wanted, out, filters=filters, **options).folder

    return draw


def spread(out):
    """Distance of every sample to the nearest before it, the first left out."""
    image = load(SyntheticDataset(out)).image
    rows, mirrored = pixel_rows(image), pixel_rows(image.flip(-1))
    return np.array(
        [nearest_distance(rows[[i]], mirrored[[i]], rows[:i])[0] for i in range(1, len(rows))]
    )


def test_samples_that_repeat_others_are_drawn_again(unrepeated, factory, tmp_path, digests):
    plain = unrepeated(tmp_path / "plain", 0.0)
    threshold = float(np.median(spread(plain)))
    out = unrepeated(tmp_path / "whole", threshold)
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    records = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    about = json.loads((out / "dataset.json").read_text())
    assert spread(out).min() >= threshold
    assert {line["reason"] for line in lines} == {"near-duplicate of another sample"}
    again = [r for r in records if r["index"] in {line["index"] for line in lines}]
    assert again
    assert about["unfilled"] == 14 - len(records) == 14 - len(list((out / "images").iterdir()))
    assert about["rejected"] == {"near-duplicate of another sample": len(lines)}
    assert verify(out, factory.model, count=14).problems == ()
    whole = digests(out)
    first = {f"images/synthetic-{index:06d}.png" for index in range(14)}
    kept = {name: digest for name, digest in digests(plain).items() if name in first}
    assert sum(whole.get(name) == digest for name, digest in kept.items()) >= 5
    unrepeated(tmp_path / "shards", threshold, shard=(1, 2), workers=2)
    assert digests(unrepeated(tmp_path / "shards", threshold, shard=(0, 2))) == whole


@pytest.mark.parametrize("after", range(2))
def test_an_interrupted_pass_ends_alike(unrepeated, tmp_path, digests, monkeypatch, after):
    """The disk fails while refused samples are replaced or removed; then the command runs again."""
    threshold = float(np.median(spread(unrepeated(tmp_path / "plain", 0.0))))
    whole = digests(unrepeated(tmp_path / "whole", threshold))
    moved = Path.replace
    left = [after]

    def failing(source, target):
        if "fresh" in source.parts and not source.name.startswith("."):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(5, "Input/output error")
        return moved(source, target)

    monkeypatch.setattr(Path, "replace", failing)
    out = tmp_path / "data"
    with pytest.raises(OSError, match="Input/output"):
        unrepeated(out, threshold)
    monkeypatch.undo()
    assert (out / "parts" / "decision.json").is_file()
    assert digests(unrepeated(out, threshold)) == whole


def test_two_that_finish_at_once_assemble_once(unrepeated, tmp_path, digests):
    whole = digests(unrepeated(tmp_path / "whole", 0.0))
    out = tmp_path / "data"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda k: unrepeated(out, 0.0, shard=(k, 2)), range(2)))
    assert digests(out) == whole
    (out / ".lock").touch()
    (out / "parts").mkdir()
    assert digests(unrepeated(out, 0.0)) == whole
    assert not (out / "parts").exists()
