import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from medgen.cli.main import cli
from medgen.data.export import write_folder
from medgen.data.simulated import Simulated
from medgen.report.planes import cine, projections


def volumes():
    image = torch.full((2, 1, 6, 5, 4), -1.0)
    image[:, :, 1, 3, 2] = 1.0
    mask = (image[:, 0] > 0).long() * 2
    return image, mask


def test_projections_show_a_bright_voxel_from_all_sides():
    """From above y is up, from the front and the side z; x and y run to the left."""
    pictures, masks = projections(*volumes())
    assert pictures.shape == (2, 1, 5, 6 + 6 + 5)
    places = (pictures[0, 0] == 1).nonzero().tolist()
    assert places == [[1, 4], [1, 6 + 4], [1, 12 + 1]]
    assert torch.equal(masks[0] == 2, pictures[0, 0] == 1)


def test_a_cine_has_a_frame_a_slice(tmp_path):
    image, mask = volumes()
    cine(image, tmp_path / "a.gif", masks=mask, captions=["a", "b"])
    with Image.open(tmp_path / "a.gif") as made:
        assert made.n_frames >= 3
        frames = []
        for k in range(made.n_frames):
            made.seek(k)
            frames.append(np.asarray(made.convert("RGB")).astype(int))
    assert max(np.abs(frames[0] - frame).max() for frame in frames[1:]) > 50
    with pytest.raises(ValueError, match="expected volumes"):
        cine(image[:, :, 0], tmp_path / "b.gif")


def test_projections_of_pictures_are_refused(tmp_path):
    folder = write_folder(Simulated(2, (16, 16)), tmp_path / "in")
    done = CliRunner().invoke(cli, ["data", "show", str(folder), "--mip", "--out", "a.png"])
    assert done.exit_code == 2
    assert "shows volumes" in done.output
