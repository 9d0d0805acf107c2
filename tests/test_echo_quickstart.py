"""The quickstart of echo from ECG, from the recipe to a page whose clips play, at a tiny size."""

import base64
import io
import re

import pytest
from PIL import Image

from medgen.data.clips import read_clip
from medgen.data.synthetic import SyntheticDataset
from medgen.pipeline import Run
from medgen.recipe import load_recipe

TINY = [
    "data.count=20",
    "data.size=[8, 32, 32]",
    "data.frames_per_second=8",
    "backbone.depth=2",
    "backbone.width=32",
    "backbone.heads=2",
    "train.images=16",
    "train.batch=8",
    "train.warmup=8",
    "train.validate_every=16",
    "train.checkpoint_every=16",
    "sampler.steps=2",
    "sample.count=7",
    "sample.micro_batch=4",
    "evaluate=[]",
    "prove=null",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "echo"
    job = Run(load_recipe("echo/quickstart", TINY), out, device="cpu")
    return job, job.run()


def test_synthetic_clips_play_beside_the_real_ones_of_their_ecg(finished):
    job, report = finished
    page = report.read_text()
    loops = re.findall(r'<img src="data:image/webp;base64,([^"]+)" alt="Clip: ([^"]+)"', page)
    assert len(loops) == 6
    assert "The first 6 of" not in page
    origins = [origin.condition for origin in SyntheticDataset(job.out / "synthetic").provenance]
    for content, caption in loops:
        picture = Image.open(io.BytesIO(base64.b64decode(content)))
        assert picture.n_frames == 8
        assert picture.width > 2 * 160  # the synthetic clip and the real one
        fraction, of = re.fullmatch(r"ejection fraction (.+), ECG of (.+)", caption).groups()
        scalars = [o["scalars"]["ejection_fraction"] for o in origins if o["ecg"]["of"] == of]
        assert f"{scalars[0]:.3g}" == fraction
    assert "This page holds pictures of real studies" in page
    assert "<h3>no finding" not in page  # none is known: real and synthetic are not set apart
    assert "medgen run echo/quickstart\n" in page  # simulated: no --data-root


def test_loops_are_files_too(finished):
    job, _ = finished
    names = sorted(file.name for file in (job.out / "loops").iterdir())
    assert names == [f"clip-{k:02d}.{ending}" for k in range(1, 7) for ending in ("gif", "mp4")]
    for ending in ("gif", "mp4"):
        clip = read_clip(job.out / "loops" / f"clip-01.{ending}", colour="grey")
        assert (len(clip.frames), round(clip.rate)) == (8, 8)
