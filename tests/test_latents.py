"""The cache of latents: equal to encoding, never stale, mended when damaged."""

import logging
from dataclasses import replace

import pytest
import torch

from medgen.codecs.pixels import Pixels
from medgen.data import latents as module
from medgen.data.latents import cached_latents
from medgen.errors import DataError, OutputError
from medgen.types import Batch, Provenance, Schema, Study


class Grains:
    """Studies of noise in memory, which count how often they are read."""

    def __init__(self, count: int = 5, *, seed: int = 0, gain: float = 1.0, source: str = "grains"):
        generator = torch.Generator().manual_seed(seed)
        self.images = gain * (torch.rand(count, 1, 8, 8, generator=generator) - 0.5)
        self.schema = Schema(size=(8, 8))
        self.studies = [Study(f"s{i}", f"p{i}", "train") for i in range(count)]
        self.source = source
        self.reads = 0

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Batch:
        self.reads += 1
        provenance = (Provenance(self.studies[index].id, False, self.source),)
        return Batch(image=self.images[index : index + 1], provenance=provenance)


@pytest.fixture
def codec():
    codec = Pixels(Schema(size=(8, 8)), 2)
    codec.fit(Grains(20).images)
    return codec


def test_equals_encoding_and_is_read_back(codec, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PROBES", 2)
    dataset = Grains(5)
    fresh = cached_latents(dataset, codec, digest="a", cache_dir=tmp_path / "new", batch=2)
    torch.testing.assert_close(fresh, codec.encode(dataset.images), atol=0, rtol=0)
    assert dataset.reads == 5 + 1 + 2
    again = cached_latents(dataset, codec, digest="a", cache_dir=tmp_path / "new")
    assert torch.equal(again, fresh)
    assert dataset.reads == 8 + 1 + 2  # the key only: nothing was encoded
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_mirrored_latents_are_entries_of_their_own(codec, tmp_path):
    dataset = Grains()
    plain = cached_latents(dataset, codec, digest="a", cache_dir=tmp_path)
    mirrored = cached_latents(dataset, codec, digest="a", cache_dir=tmp_path, flip=True)
    assert torch.equal(mirrored, codec.encode(dataset.images.flip(-1)))
    assert not torch.equal(mirrored, plain)
    assert len(list(tmp_path.iterdir())) == 2


def test_half_precision(codec, tmp_path):
    half = cached_latents(Grains(), codec, digest="a", cache_dir=tmp_path, dtype=torch.float16)
    full = cached_latents(Grains(), codec, digest="a", cache_dir=tmp_path)
    assert half.dtype == torch.float16
    assert torch.equal(half, full.half())


@pytest.mark.parametrize(
    "other",
    [
        lambda: (Grains(), "b"),
        lambda: (Grains(source="elsewhere"), "a"),
        lambda: (Grains(gain=0.5), "a"),
        lambda: (Grains(4), "a"),
    ],
    ids=["codec", "source", "preprocessing", "studies"],
)
def test_another_codec_source_preprocessing_or_set_of_studies_misses(codec, tmp_path, other):
    cached_latents(Grains(), codec, digest="a", cache_dir=tmp_path)
    dataset, digest = other()
    latents = cached_latents(dataset, codec, digest=digest, cache_dir=tmp_path)
    assert torch.equal(latents, codec.encode(dataset.images))
    assert len(list(tmp_path.iterdir())) == 2


def test_another_schema_misses(codec, tmp_path):
    cached_latents(Grains(), codec, digest="a", cache_dir=tmp_path)
    renamed = Grains()
    renamed.schema = replace(renamed.schema, findings=("nodule",))
    cached_latents(renamed, codec, digest="a", cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
def test_a_damaged_entry_is_made_anew(codec, tmp_path, damage, caplog):
    fresh = cached_latents(Grains(), codec, digest="a", cache_dir=tmp_path)
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    broken = {
        "truncated": whole[:-7],
        "flipped": whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:],
        "emptied": b"",
    }[damage]
    entry.write_bytes(broken)
    with caplog.at_level(logging.WARNING, logger="medgen"):
        assert torch.equal(cached_latents(Grains(), codec, digest="a", cache_dir=tmp_path), fresh)
    assert "damaged latents" in caplog.text
    assert entry.read_bytes() == whole


def test_codec_mode_is_restored(codec, tmp_path):
    codec.train()
    cached_latents(Grains(), codec, digest="a", cache_dir=tmp_path)
    assert codec.training


def test_user_mistakes(codec, tmp_path):
    with pytest.raises(DataError, match="no studies"):
        cached_latents(Grains(0), codec, digest="a", cache_dir=tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(OutputError, match=r"cannot write .*choose another folder"):
        cached_latents(Grains(), codec, digest="a", cache_dir=blocked)
    bare = Grains()
    bare.images = None
    bare.__class__ = type("Bare", (Grains,), {"__getitem__": lambda self, i: Batch()})
    with pytest.raises(DataError, match="'s0' carries no image"):
        cached_latents(bare, codec, digest="a", cache_dir=tmp_path)
