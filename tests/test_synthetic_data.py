import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from medgen.data.export import write_folder
from medgen.data.files import write_png
from medgen.data.folder import Folder
from medgen.data.mixing import mix
from medgen.data.splits import by_split, load, take_patients
from medgen.data.synthetic import SyntheticDataset
from medgen.errors import DataError, OutputError
from medgen.types import Batch, Provenance, Schema, Study

EXCLUSIVE = Schema((8, 8), findings=("a", "b", "c"), exclusive=True, mask_classes=("bg", "lung"))
MULTI = Schema((8, 8), findings=("a", "b"), scalars=("ratio",))


class Real:
    """Ten studies of a schema; the image of study i is i / 100."""

    def __init__(self, schema, synthetic=False, split="train", count=10):
        self.schema = schema
        self.synthetic = synthetic
        self.studies = [Study(f"r{i}", f"p{i}", split) for i in range(count)]

    def __len__(self):
        return len(self.studies)

    def __getitem__(self, index):
        k = len(self.schema.findings)
        return Batch(
            image=torch.full((1, 1, 8, 8), index / 100),
            mask=torch.ones(1, 8, 8, dtype=torch.int64) if self.schema.mask_classes else None,
            label=torch.eye(k, dtype=torch.int64)[[index % k]],
            scalar=torch.tensor([[float(index)]]) if self.schema.scalars else None,
            provenance=(Provenance(f"r{index}", self.synthetic, "here"),),
        )


def export(folder, schema, rows, columns):
    """A dataset as `medgen sample` writes it; study i holds 10 x i everywhere."""
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    lines, manifest = [",".join(columns)], []
    for i, row in enumerate(rows):
        name = f"synthetic-{i:06d}"
        write_png(folder / f"images/{name}.png", np.full((8, 8), 10 * i, np.uint8))
        write_png(folder / f"masks/{name}.png", np.ones((8, 8), np.uint8))
        known = {"image": f"images/{name}.png", "mask": f"masks/{name}.png"} | row
        known |= {"patient": name, "split": "train"}
        lines.append(",".join(str(known[column]) for column in columns))
        record = asdict(Provenance(name, True, "sha256:ab", i, row)) | {"files": {}}
        manifest.append(json.dumps(record))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "manifest.jsonl").write_text("\n".join(manifest) + "\n")
    about = {"synthetic": True, "schema": asdict(schema)}
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def exclusive(tmp_path):
    rows = [{"finding": name} for name in ("b", "a", "", "b", "b", "a")]
    columns = ["image", "mask", "patient", "split", "finding"]
    return export(tmp_path, EXCLUSIVE, rows, columns)


def test_an_exclusive_dataset_is_read_in_the_order_of_its_schema(exclusive):
    dataset = SyntheticDataset(exclusive)
    batch = load(dataset)
    assert dataset.schema == EXCLUSIVE
    assert batch.label.tolist()[:3] == [[0, 1, 0], [1, 0, 0], [-1, -1, -1]]
    assert torch.allclose(batch.image[:, 0, 0, 0], torch.arange(6) * 10 / 127.5 - 1)
    assert bool((batch.mask == 1).all())
    assert {s.split for s in dataset.studies} == {"train"}
    assert batch.provenance[4].seed == 4
    assert all(p.synthetic and p.source == "sha256:ab" for p in batch.provenance)


def test_a_multi_label_dataset_without_masks(tmp_path):
    rows = [{"a": 1, "b": "", "ratio": 0.5}, {"a": 0, "b": 1, "ratio": ""}]
    columns = ["image", "patient", "split", "a", "b", "ratio"]
    masked = replace(MULTI, mask_classes=("bg", "lung"))
    dataset = SyntheticDataset(export(tmp_path, masked, rows, columns))
    assert dataset.schema == MULTI
    assert load(dataset).label.tolist() == [[1, -1], [0, 1]]
    assert load(dataset).scalar[0].tolist() == [0.5]
    assert load(dataset).mask is None


def test_the_transform_is_applied(exclusive):
    dataset = SyntheticDataset(exclusive, lambda batch: replace(batch, image=-batch.image))
    assert torch.equal(dataset[3].image, -SyntheticDataset(exclusive)[3].image)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("dataset.json", '"synthetic": true', '"synthetic": false', "synthetic: true"),
        ("dataset.json", "{", "[", "complete dataset"),
        ("manifest.jsonl", '"synthetic": true', '"synthetic": 1', "synthetic: true"),
        ("manifest.jsonl", "{", "", "one JSON object a line"),
        ("manifest.jsonl", '"id": "synthetic-000001"', '"id": "x"', "2 stand in one of them"),
        ("labels.csv", "synthetic-000002,train", "synthetic-000002,test", "training split alone"),
        ("labels.csv", "train,a", "train,z", "finding 'z'"),
    ],
)
def test_what_is_not_a_synthetic_dataset_is_refused(exclusive, file, old, new, message):
    text = (exclusive / file).read_text()
    assert old in text
    (exclusive / file).write_text(text.replace(old, new))
    with pytest.raises(DataError, match=message):
        SyntheticDataset(exclusive)


@pytest.mark.parametrize("file", ["dataset.json", "manifest.jsonl", "labels.csv"])
def test_an_incomplete_dataset_is_refused(exclusive, file):
    (exclusive / file).unlink()
    with pytest.raises(DataError, match=file.replace(".", r"\.")):
        SyntheticDataset(exclusive)


def test_mixing_takes_the_ratio_without_repeats(exclusive):
    real, synthetic = Real(EXCLUSIVE), SyntheticDataset(exclusive)
    mixed = mix(real, synthetic, ratio=0.5, seed=0)
    drawn = [study.id for study in mixed.studies][10:]
    assert len(mixed) == 15
    assert [study.id for study in mixed.studies][:10] == [study.id for study in real.studies]
    assert len(set(drawn)) == 5
    batch = load(mixed)
    assert [p.synthetic for p in batch.provenance] == [False] * 10 + [True] * 5
    assert torch.equal(mixed.labels, batch.label)
    again = mix(real, synthetic, ratio=0.3, seed=0)
    assert [study.id for study in again.studies][10:] == drawn[:3]
    assert (
        len(
            {tuple(s.id for s in mix(real, synthetic, ratio=0.3, seed=i).studies) for i in range(9)}
        )
        > 2
    )
    assert len(mix(real, synthetic, ratio=0, seed=0)) == 10


def test_a_torch_loader_takes_it(exclusive):
    mixed = mix(Real(EXCLUSIVE), SyntheticDataset(exclusive), ratio=0.6, seed=0)
    loader = torch.utils.data.DataLoader(mixed, batch_size=4, collate_fn=Batch.concat)
    assert [len(batch) for batch in loader] == [4, 4, 4, 4]


def test_what_may_not_be_mixed(exclusive):
    synthetic = SyntheticDataset(exclusive)
    with pytest.raises(DataError, match=r"needs 10 synthetic ones.*there are 6: sample 4 more"):
        mix(Real(EXCLUSIVE), synthetic, ratio=1, seed=0)
    with pytest.raises(DataError, match="only training studies"):
        mix(Real(EXCLUSIVE, split="validation"), synthetic, ratio=0.1, seed=0)
    with pytest.raises(DataError, match="'r0' is a synthetic study"):
        mix(Real(EXCLUSIVE, synthetic=True), synthetic, ratio=0.1, seed=0)
    with pytest.raises(DataError, match="is a real study"):
        mix(Real(EXCLUSIVE), Real(EXCLUSIVE), ratio=0.1, seed=0)
    with pytest.raises(DataError, match=r"differ in size: \(16, 16\) and \(8, 8\)"):
        mix(Real(replace(EXCLUSIVE, size=(16, 16))), synthetic, ratio=0.1, seed=0)
    with pytest.raises(ValueError, match="ratio"):
        mix(Real(EXCLUSIVE), synthetic, ratio=-1, seed=0)


@pytest.mark.parametrize("schema", [EXCLUSIVE, MULTI])
def test_what_is_exported_is_read_back_equal(tmp_path, schema):
    real = Real(schema)
    out = write_folder(real, tmp_path / "out")
    findings = "finding" if schema.exclusive else schema.findings
    back = Folder(
        out, (8, 8), findings=findings, mask_classes=schema.mask_classes, scalars=schema.scalars
    )
    mine, theirs = load(real), load(back)
    assert back.schema == schema
    assert torch.equal(mine.label, theirs.label)
    assert (mine.image - theirs.image).abs().max() <= 1 / 255 + 1e-6
    assert schema.mask_classes == () or torch.equal(mine.mask, theirs.mask)
    assert schema.scalars == () or torch.equal(mine.scalar, theirs.scalar)
    assert [s.patient for s in back.studies] == [s.patient for s in real.studies]
    assert len(by_split(back, "train")) == 10
    assert len(take_patients(back, 0.3, seed=0)) == 3


class Breaks(Real):
    def __getitem__(self, index):
        if index == 7:
            raise OSError(28, "No space left on device")
        return super().__getitem__(index)


def test_an_export_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(OutputError, match="No space left"):
        write_folder(Breaks(MULTI), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="not an empty folder"):
        write_folder(Real(MULTI), tmp_path / "full")
    assert [path.name for path in tmp_path.rglob("*.txt")] == ["mine.txt"]


def share(mixed, epoch):
    """How many synthetic studies an epoch shows; every one is shown at most once."""
    shown = [i for i in mixed.sampler.indices(epoch) if i >= 10]
    assert len(set(shown)) == len(shown)
    return len(shown)


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [("constant", [6] * 5), ("curriculum", [0, 2, 4, 6, 6]), ("anneal", [6, 4, 2, 0, 0])],
)
def test_the_share_of_synthetic_studies_follows_its_schedule(exclusive, schedule, shares):
    real, synthetic = Real(EXCLUSIVE), SyntheticDataset(exclusive)
    mixed = mix(real, synthetic, ratio=0.6, seed=0, schedule=schedule, epochs=4)
    assert [share(mixed, epoch) for epoch in range(5)] == shares
    for epoch in range(5):
        order = mixed.sampler.indices(epoch)
        assert len(order) == len(mixed.sampler) == 16
        counts = np.bincount(order, minlength=16)[:10]
        assert counts.min() >= 1
        assert counts.max() - counts.min() <= 1
    again = mix(real, synthetic, ratio=0.6, seed=0, schedule=schedule, epochs=4)
    assert again.sampler.indices(2) == mixed.sampler.indices(2) != mixed.sampler.indices(3)
    other = mix(real, synthetic, ratio=0.6, seed=1, schedule=schedule, epochs=4)
    assert other.sampler.indices(2) != mixed.sampler.indices(2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_moves_from_epoch_to_epoch(exclusive, workers):
    mixed = mix(
        Real(EXCLUSIVE),
        SyntheticDataset(exclusive),
        ratio=0.6,
        seed=0,
        schedule="curriculum",
        epochs=4,
    )
    loader = torch.utils.data.DataLoader(
        mixed, batch_size=8, sampler=mixed.sampler, collate_fn=Batch.concat, num_workers=workers
    )

    def shown():
        return sum(p.synthetic for batch in loader for p in batch.provenance)

    assert [shown() for _ in range(4)] == [0, 2, 4, 6]
    mixed.sampler.set_epoch(1)
    assert [shown(), shown()] == [2, 4]


def test_schedules_that_are_none(exclusive):
    synthetic = SyntheticDataset(exclusive)
    with pytest.raises(ValueError, match="Did you mean 'curriculum'"):
        mix(Real(EXCLUSIVE), synthetic, ratio=0.1, seed=0, schedule="curiculum", epochs=4)
    with pytest.raises(ValueError, match="anneal takes 2 epochs or more, got 1"):
        mix(Real(EXCLUSIVE), synthetic, ratio=0.1, seed=0, schedule="anneal")


def test_synthetic_studies_of_another_split_are_not_mixed(exclusive):
    astray = Real(EXCLUSIVE, synthetic=True, split="test")
    with pytest.raises(DataError, match="10 are in another split: r0"):
        mix(Real(EXCLUSIVE), astray, ratio=0.1, seed=0)
