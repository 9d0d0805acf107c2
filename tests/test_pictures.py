import numpy as np
import pytest
import torch
from PIL import Image

from medgen.errors import OutputError
from medgen.report.pictures import OUTLINES, PADDING, PAPER, contact_sheet, filmstrips, planes


def test_the_sheet_shows_every_image_in_its_place():
    levels = torch.tensor([-1.0, 0.0, 1.0, -1.0, 1.0])
    images = levels.view(5, 1, 1, 1).expand(5, 1, 20, 10)
    sheet = np.asarray(contact_sheet(images, columns=3, scale=2))
    assert sheet.shape == (2 * (40 + PADDING) + PADDING, 3 * (20 + PADDING) + PADDING, 3)
    shown = [
        int(sheet[PADDING + 20 + i // 3 * (40 + PADDING), PADDING + 10 + i % 3 * (20 + PADDING), 0])
        for i in range(5)
    ]
    assert shown == [0, 128, 255, 0, 255]
    assert tuple(sheet[0, 0]) == PAPER
    assert tuple(sheet[-10, -10]) == PAPER


def test_colour_stays_and_other_channels_stand_side_by_side():
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert contact_sheet(red, scale=1).getpixel((PADDING + 4, PADDING + 4)) == (255, 0, 0)
    two = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    sheet = contact_sheet(two, scale=1)
    assert sheet.getpixel((PADDING + 4, PADDING + 4)) == (255, 255, 255)
    assert sheet.getpixel((PADDING + 12, PADDING + 4)) == (0, 0, 0)


def test_masks_are_outlined_inside_their_edge_only():
    mask = torch.zeros(1, 12, 12, dtype=torch.int64)
    mask[:, 2:10, 2:6] = 1
    mask[:, 2:10, 6:10] = 2
    sheet = contact_sheet(torch.zeros(1, 1, 12, 12), masks=mask, scale=1)

    def at(row, column):
        return sheet.getpixel((PADDING + column, PADDING + row))

    assert at(2, 3) == at(5, 2) == OUTLINES[0]
    assert at(9, 8) == at(5, 9) == OUTLINES[1]
    assert at(4, 3) == at(1, 3) == at(0, 0) == (128, 128, 128)


def test_captions_add_ink_and_long_ones_are_cut():
    images = torch.zeros(2, 1, 40, 40)
    plain, short = contact_sheet(images), contact_sheet(images, captions=["a", "b"])
    assert short.height > plain.height
    long = contact_sheet(images, captions=["pneumothorax " * 30, "zwei\nZeilen \u00e4"])
    assert long.size == short.size
    ink = np.asarray(long)[-PADDING - 15 : -PADDING, PADDING:-PADDING].max(-1)
    assert (ink > 150).any()
    gap = np.asarray(long)[:, 160 + PADDING : 160 + 2 * PADDING].max(-1)
    assert (gap < 60).all()


def test_small_images_are_enlarged_and_rows_are_even():
    assert contact_sheet(torch.zeros(1, 1, 32, 32)).width == 160 + 2 * PADDING
    sheet = contact_sheet(torch.ones(24, 1, 64, 64))
    assert sheet.size == (6 * (128 + PADDING) + PADDING, 4 * (128 + PADDING) + PADDING)


def test_values_that_are_not_numbers_do_not_break_it():
    images = torch.full((1, 1, 8, 8), float("nan"))
    images[..., 0] = float("inf")
    assert contact_sheet(images, scale=1).getpixel((PADDING + 4, PADDING + 4)) == (0, 0, 0)


def test_it_is_written_at_once(tmp_path):
    sheet = contact_sheet(torch.zeros(1, 1, 8, 8), path=tmp_path / "sheet.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "sheet.png")), np.asarray(sheet))
    with pytest.raises(OutputError, match="cannot write"):
        contact_sheet(torch.zeros(1, 1, 8, 8), path=tmp_path / "sheet.png" / "sheet.png")


@pytest.mark.parametrize(
    ("images", "settings"),
    [
        (torch.zeros(0, 1, 8, 8), {}),
        (torch.zeros(8, 8), {}),
        (torch.zeros(1, 1, 8, 8), {"captions": ["a", "b"]}),
        (torch.zeros(1, 1, 8, 8), {"masks": torch.zeros(1, 4, 4)}),
    ],
)
def test_other_shapes_are_refused(images, settings):
    with pytest.raises(ValueError, match="expected"):
        contact_sheet(images, **settings)


def test_planes_look_at_the_patient_as_radiologists_do():
    volume = -torch.ones(1, 1, 6, 5, 4)
    volume[0, 0, 5, 2, 3] = 0.2  # the patient's right, head
    volume[0, 0, 2, 4, 2] = 0.6  # front
    pictures, masks = planes(volume)
    assert masks is None
    assert pictures.shape == (1, 1, 5, 6 + 6 + 5)
    axial, coronal, sagittal = pictures[0, 0].split([6, 6, 5], dim=1)
    assert (axial == 0.6).nonzero().tolist() == [[0, 3]]
    assert (coronal == 0.2).nonzero().tolist() == [[0, 0]]
    assert (coronal[4] == -1).all()
    mask = torch.zeros(1, 6, 5, 4, dtype=torch.long)
    mask[0, 2, 4, 2] = 1
    pictures, masks = planes(volume, mask)
    axial, coronal, sagittal = pictures[0, 0].split([6, 6, 5], dim=1)
    assert (sagittal == 0.6).nonzero().tolist() == [[1, 0]]
    assert ((pictures[0, 0] == 0.6) == (masks[0] == 1)).all()
    assert contact_sheet(volume.repeat(3, 1, 1, 1, 1), masks=mask.repeat(3, 1, 1, 1)).width > 100


def test_a_clip_is_a_strip_of_its_frames():
    clip = torch.linspace(-1, 1, 12)[None, None, :, None, None].expand(2, 1, 12, 8, 10)
    mask = torch.zeros(2, 12, 8, 10, dtype=torch.int64)
    mask[:, -1] = 1
    strips, masks = filmstrips(clip, mask)
    assert strips.shape == (2, 1, 8, 60)
    assert strips[0, 0, 0, 0] == -1
    assert strips[0, 0, 0, -1] == 1
    assert masks[0, :, :50].sum() == 0
    assert (masks[0, :, 50:] == 1).all()
    sheet = contact_sheet(clip, masks=mask, time=True, scale=1)
    assert sheet.width > 60


def test_signals_are_traces():
    wave = torch.sin(torch.linspace(0, 20, 200)).expand(3, 12, 200)
    sheet = contact_sheet(wave)
    assert np.asarray(sheet).std() > 10
    assert contact_sheet(torch.full((1, 12, 50), torch.nan)).width > 0
