"""A frozen ECG encoder from a TorchScript file: what it gives, and what is refused."""

import hashlib

import pytest
import torch
from torch import nn
from toy_hearts import beating

from medgen.conditioners.ecg_program import EcgProgram
from medgen.errors import CheckpointError
from medgen.types import Batch, LatentSpec

LATENT = LatentSpec("continuous", (4, 6, 6), 2)


class Patches(nn.Module):
    """Patches of 25 samples as tokens."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv1d(12, 5, 25, stride=25)

    def forward(self, x):
        return self.embed(x).transpose(1, 2)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("encoder") / "encoder.pt"
    network = Patches().eval()
    torch.jit.script(network).save(str(file))
    return str(file), hashlib.sha256(file.read_bytes()).hexdigest(), network


def test_tokens_are_the_programs_and_a_grid_keeps_their_time(encoder):
    file, digest, network = encoder
    data = beating(2, frames=8)  # 125 samples
    part = EcgProgram(data.schema, LATENT, file, f"sha256:{digest}", 5, channels=3)
    got = part.encode(Batch(ecg=data.batch.ecg))
    torch.testing.assert_close(got.tokens, network(data.batch.ecg))
    assert got.tokens.shape == (2, 5, 5)
    assert got.grid.shape == (2, 3, 4, 6, 6)
    late = data.batch.ecg.clone()
    late[:, :, -20:] += 1
    moved = (part.encode(Batch(ecg=late)).grid - got.grid).abs().amax(dim=(0, 1, 3, 4))
    assert moved[3] > 0
    assert moved[:2].max() == 0
    unknown = torch.full_like(late, float("nan"))
    torch.testing.assert_close(part.encode(Batch(ecg=unknown)).grid, part.null(2).grid)
    got.grid.sum().backward()
    learned = {name for name, value in part.named_parameters() if value.grad is not None}
    assert learned == {"out.weight", "out.bias", "unknown"}  # the program is frozen, and not saved
    assert set(part.state_dict()) == learned


def test_another_rate_is_resampled(encoder):
    file, digest, _ = encoder
    data = beating(1, frames=8)
    part = EcgProgram(data.schema, LATENT, file, digest, 5, rate=500.0)
    assert part.encode(Batch(ecg=data.batch.ecg)).tokens.shape == (1, 10, 5)


def test_a_wrong_file_is_told(encoder, tmp_path):
    file, digest, _ = encoder
    schema = beating(1, frames=8).schema
    with pytest.raises(CheckpointError, match="there is no such file"):
        EcgProgram(schema, LATENT, str(tmp_path / "none.pt"), digest, 5)
    with pytest.raises(CheckpointError, match=f"expected SHA-256 {'0' * 64}, found {digest}"):
        EcgProgram(schema, LATENT, file, "0" * 64, 5)
    with pytest.raises(CheckpointError, match=r"expected tokens \(b n 7\) .* got \(1, 5, 5\)"):
        EcgProgram(schema, LATENT, file, digest, 7)
    with pytest.raises(CheckpointError, match="does not take ECGs of 12 leads and 10 samples"):
        EcgProgram(schema, LATENT, file, digest, 5, rate=20.0)
    text = tmp_path / "text.pt"
    text.write_bytes(b"not a program")
    with pytest.raises(CheckpointError, match="is no TorchScript"):
        EcgProgram(schema, LATENT, str(text), hashlib.sha256(text.read_bytes()).hexdigest(), 5)
