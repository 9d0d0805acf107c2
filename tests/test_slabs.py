"""A codec in slabs gives what the whole gives, in the memory that the plan foretold."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from medgen.codecs.autoencoder import Autoencoder
from medgen.codecs.memory import GIGABYTE, Plan, peak_memory
from medgen.codecs.slabs import forward_in_slabs
from medgen.types import Schema


def autoencoder(size, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Autoencoder(Schema(size=size), **({"channels": (8, 16), "blocks": 1} | settings))
    return made.eval()


def noise(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("slabs", [2, 3, 5, 64])
@pytest.mark.parametrize("rows", [8, 11, 13])
@torch.no_grad()
def test_slabs_are_the_whole_in_double_precision(rows, slabs):
    """No row is missing at any seam: what differs is rounding, here below 1e-12."""
    net = autoencoder((8, 8, 8), channels=(8, 8, 16)).double().net
    image, z = noise(2, 1, rows, 8, 9, dtype=torch.float64), noise(1, 4, rows, 3, 2).double()
    for part, x in ((net.encoder, image), (net.decoder, z)):
        found = forward_in_slabs(part.blocks, x, slabs)
        torch.testing.assert_close(found, part(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((16, 8, 8), {"blocks": 2}),
        ((24, 8, 8), {"patch": 2, "attention": True}),
        ((20, 12), {"channels": (8, 16, 8)}),
    ],
)
@torch.no_grad()
def test_a_small_budget_changes_no_result(size, settings):
    codec = autoencoder(size, **settings)
    images = noise(3, 1, *size).clamp(-1, 1)
    z = codec.encode(images)
    decoded = codec.decode(z)
    codec.memory = 1
    for direction, x in (("encode", images), ("decode", z)):
        plan = codec.plan(direction, tuple(x.shape))
        assert plan.batch == 1
        assert plan.slabs > 1
    torch.testing.assert_close(codec.encode(images), z, atol=1e-5, rtol=0)
    torch.testing.assert_close(codec.decode(z), decoded, atol=1e-5, rtol=0)


@torch.no_grad()
def test_input_is_left_as_it_is():
    net = autoencoder((8, 8, 8)).net
    z = noise(1, 4, 4, 4, 4)
    kept = z.clone()
    forward_in_slabs(net.decoder.blocks, z, 3)
    assert torch.equal(z, kept)


def test_gradients_pass_whatever_the_budget():
    codec = autoencoder((8, 8, 8))
    codec.memory = 1
    z = noise(1, 4, 4, 4, 4).requires_grad_()
    codec.decode(z).sum().backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0


def test_an_unknown_block_is_refused():
    with pytest.raises(TypeError, match="BatchNorm3d cannot be computed in slabs"):
        forward_in_slabs([torch.nn.BatchNorm3d(4)], noise(1, 4, 4, 4, 4), 2)


class TestPlan:
    def test_peak_of_a_chain_whose_sizes_are_known(self):
        """Two maps of 4000 bytes live at once; the result is one of them."""
        peak, result = peak_memory(lambda x: (x + 1) * 2 + 1, (10, 100))
        assert (peak, result) == (8000, 4000)

    def test_takes_no_more_slabs_than_needed(self):
        codec = autoencoder((64, 32, 32), blocks=2)
        shape = (4, *codec.latent.shape)
        whole = codec.plan("decode", shape)
        assert (whole.batch, whole.slabs, whole.cuts) == (4, 1, False)
        codec.memory = whole.peak - 1
        one = codec.plan("decode", shape)
        assert (one.batch, one.slabs, one.cuts) == (1, 1, True)
        codec.memory = one.peak - 1
        cut = codec.plan("decode", shape)
        assert (cut.batch, cut.slabs) == (1, 2)
        assert cut.peak < one.peak < whole.peak

    def test_says_what_it_takes(self):
        plan = Plan(1, 6, int(11.2 * GIGABYTE), 30 * GIGABYTE, 12 * GIGABYTE)
        assert str(plan) == "fits in 11.2 GB one at a time, with 6 slabs instead of 30 GB"
        assert "more than the 8 GB allowed" in str(replace(plan, budget=8 * GIGABYTE))

    def test_costs_neither_memory_nor_time(self):
        """256^3 with MAISI's widths: 40 GB in truth, told in well under a second of work."""
        codec = autoencoder((256, 256, 256), channels=(64, 128, 256), blocks=2)
        codec.memory = 16 * GIGABYTE
        plan = codec.plan("decode", (1, *codec.latent.shape))
        assert plan.slabs > 1
        assert plan.peak <= codec.memory < plan.whole


MEASURE = """
import torch
from medgen.codecs.autoencoder import Autoencoder
from medgen.types import Schema

def kilobytes(name):
    lines = open("/proc/self/status").read().splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith(name)][0]

torch.set_num_threads(1)
codec = Autoencoder(Schema(size=(72, 72, 72)), channels=(32, 32), blocks=1).eval()
with torch.no_grad():
    codec.decode(torch.randn(1, 4, 4, 4, 4))
    codec.memory = 150 * 2**20
    z = torch.randn(1, *codec.latent.shape)
    plan = codec.plan("decode", tuple(z.shape))
    before = kilobytes("VmRSS")
    codec.decode(z)
print(plan.slabs, plan.peak, (kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_the_plan_foretells_the_peak():
    # A fixed threshold: by default glibc keeps up to 64 MB of what tensors gave back, which is much
    # of so small a run.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, env=env
    )
    slabs, told, taken = map(int, done.stdout.split())
    assert slabs > 1
    assert told == pytest.approx(taken, rel=0.15)
