"""Frames of clips as images: the right ones, with their masks, by the clips' patients."""

import pytest
import torch
from toy_hearts import beating

from medgen.assembly import build_dataset
from medgen.data.stills import Stills
from medgen.errors import DataError, RecipeError
from medgen.recipe import load_recipe


def test_each_still_is_its_frame_and_mask():
    clips = beating(4, frames=12)
    stills = Stills(clips, 3)
    assert (len(stills), stills.schema.size, stills.schema.spacing) == (12, (24, 24), (1.0, 1.0))
    assert not stills.schema.time
    assert not stills.schema.leads
    item = stills[7]  # clip 2, the second of frames 0, 4, 8
    assert torch.equal(item.image, clips.batch.image[2:3, :, 4])
    assert torch.equal(item.mask, clips.batch.mask[2:3, 4])
    assert torch.equal(item.scalar, clips.batch.scalar[2:3])
    assert item.ecg is None
    assert item.provenance[0].id == stills.studies[7].id == f"{clips.studies[2].id}-f004"
    for place, still in enumerate(stills.studies):
        clip = clips.studies[place // 3]
        assert (still.patient, still.split) == (clip.patient, clip.split)
    assert torch.equal(stills[-1].image, stills[11].image)
    assert torch.equal(Stills(clips, 1)[3].image, clips.batch.image[3:4, :, 0])


def test_what_has_no_frames_is_refused():
    clips = beating(2, frames=12)
    with pytest.raises(DataError, match="expected 1 to 12 frames, got 13"):
        Stills(clips, 13)
    with pytest.raises(DataError, match="needs clips"):
        Stills(Stills(clips, 1), 1)


def test_a_recipe_asks_for_stills():
    section = load_recipe("echo/sdm-48", ["data.count=4"]).sections["data"]
    assert len(build_dataset(section, None)) == 4 * section["stills"]
    with pytest.raises(RecipeError, match=r"data\.stills: expected frames a clip"):
        load_recipe("echo/sdm-48", ["data.stills=all"])
