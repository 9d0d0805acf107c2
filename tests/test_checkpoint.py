"""Weights on disk: verified, deterministic, never a pickle, never half-written."""

from __future__ import annotations

import json
import pickle
import resource
import struct
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from torch import nn

from medgen.checkpoint import (
    content_digest,
    load_grown,
    load_into,
    read_metadata,
    read_weights,
    write_weights,
)
from medgen.disk import replacing, sweep
from medgen.errors import CheckpointError, OutputError

METADATA = {"recipe": "{}", "schema": "{}", "version": "1", "kind": "generator", "z": "ü"}


def tensors():
    rng = torch.Generator().manual_seed(0)
    return {
        "b.weight": torch.randn(3, 5, generator=rng),
        "a": torch.arange(7),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "half": torch.randn(5, generator=rng).half(),
        "brain": torch.randn(3, generator=rng).bfloat16(),
        "double": torch.randn(2, generator=rng).double(),
        "flags": torch.tensor([True, False, True]),
        "transposed": torch.randn(4, 6, generator=rng).T,
        "byte": torch.arange(3, dtype=torch.uint8),
    }


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    write_weights(path, tensors(), METADATA)
    return path


def test_round_trip(file):
    state, metadata = read_weights(file)
    expected = tensors()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)
    digest = metadata.pop("digest")
    assert metadata == METADATA
    assert digest == content_digest(expected)


def test_folder_or_file_and_metadata_alone(file):
    assert content_digest(read_weights(file.parent)[0]) == content_digest(read_weights(file)[0])
    assert read_metadata(file.parent) == read_weights(file)[1]


def test_others_can_read_it_and_it_reads_others(file, tmp_path):
    theirs = safetensors.torch.load_file(file)
    assert content_digest(theirs) == content_digest(tensors())
    other = tmp_path / "other.safetensors"
    plain = {name: tensor.contiguous() for name, tensor in tensors().items()}
    safetensors.torch.save_file(plain, other)
    state, metadata = read_weights(other)
    assert content_digest(state) == content_digest(plain)
    assert metadata == {}


def test_bytes_do_not_depend_on_the_order_of_anything(file, tmp_path):
    again = tmp_path / "again.safetensors"
    backwards = dict(reversed(tensors().items()))
    write_weights(again, backwards, dict(reversed(METADATA.items())))
    assert again.read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {**state, "a": state["a"] + 1},
        lambda state: {**state, "a": state["a"].int()},
        lambda state: {**state, "b.weight": state["b.weight"].reshape(5, 3)},
        lambda state: {("c" if name == "a" else name): value for name, value in state.items()},
        lambda state: {name: value for name, value in state.items() if name != "empty"},
    ],
    ids=["value", "dtype", "shape", "name", "absent"],
)
def test_digest_sees_every_change(change):
    assert content_digest(change(tensors())) != content_digest(tensors())


def test_wrong_digest_is_refused(file):
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"do not match their digest .*get it again"):
        read_weights(file)


@pytest.mark.parametrize("keep", [0, 5, 8, 40, -1])
def test_truncated_file_is_refused(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged or truncated"):
        read_weights(file)


@pytest.mark.parametrize("claim", [2**62, 10**9, 10**5])
def test_header_that_claims_more_than_the_file_holds(tmp_path, claim):
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", claim) + b'{"a":' + b" " * 100)
    with pytest.raises(CheckpointError, match=f"its header claims {claim} bytes"):
        read_weights(file)


@pytest.mark.parametrize(
    "header",
    [
        b"{" + b"[" * 5000,
        b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,80]}}',
        b'{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":7}',
        b'{"\xff":7}',
        b'{"__metadata__":[]}',
    ],
)
def test_nonsense_headers(tmp_path, header):
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    with pytest.raises(CheckpointError, match="damaged"):
        read_weights(file)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was opened",))


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "model.bin", "model.safetensors"])
@pytest.mark.parametrize("form", ["torch", "protocol 2", "protocol 5"])
def test_pickles_are_refused_unopened(tmp_path, name, form):
    file = tmp_path / name
    if form == "torch":
        torch.save({"a": Bomb()}, file)
    else:
        file.write_bytes(pickle.dumps(Bomb(), protocol=int(form[-1])))
    with pytest.raises(CheckpointError, match=r"is a pickle.*convert it with safetensors"):
        read_weights(file)


def test_folder_with_a_pickle_only(tmp_path):
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt: this is a pickle"):
        read_weights(tmp_path)


def test_safetensors_whose_length_looks_like_a_pickle(tmp_path):
    """A header of 0x280 bytes starts the file like a pickle of protocol 2."""
    file = tmp_path / "model.safetensors"
    write_weights(file, {"a": torch.ones(1)}, {"filler": ""})
    missing = 0x280 - struct.unpack("<Q", file.read_bytes()[:8])[0]
    write_weights(file, {"a": torch.ones(1)}, {"filler": "x" * missing})
    assert file.read_bytes()[:2] == b"\x80\x02"
    assert read_weights(file)[0]["a"] == 1


def test_missing(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_weights(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors in this folder"):
        read_weights(tmp_path)


def test_dtype_that_cannot_be_held(tmp_path):
    file = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match=r"'a' is torch\.complex64"):
        write_weights(file, {"a": torch.zeros(1, dtype=torch.complex64)}, {})
    assert not list(tmp_path.iterdir())


def test_load_into_names_every_misfit():
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    state = network.state_dict()
    wrong = {**state, "0.weight": torch.zeros(5, 2), "extra": torch.zeros(1)}
    del wrong["1.bias"]
    with pytest.raises(CheckpointError) as caught:
        load_into(network, wrong, "checkpoints/x")
    text = str(caught.value)
    assert text.startswith("checkpoints/x: the weights do not fit")
    assert "missing: 1.bias" in text
    assert "unexpected: extra" in text
    assert "of another shape: 0.weight (expected 3x2, got 5x2)" in text


def test_load_into_copies():
    network, other = nn.Linear(2, 3), nn.Linear(2, 3)
    load_into(network, other.state_dict())
    assert content_digest(network.state_dict()) == content_digest(other.state_dict())


def test_load_grown_copies_grows_and_leaves_fresh():
    old = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1))
    new = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(5, 2), nn.Linear(2, 1))
    fresh = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    found = load_grown(new, old.state_dict())
    assert found["copied"] == ["0.bias", "1.weight", "1.bias"]
    assert found["grown"] == ["0.weight", "2.bias"]
    assert found["fresh"] == ["2.weight", "3.weight", "3.bias"]  # 2.weight grew along two axes
    assert torch.equal(new[0].weight[:, :2], old[0].weight)
    assert not new[0].weight[:, 2:].any()
    seen = torch.randn(5, 4)
    torch.testing.assert_close(new[:2](seen), old[:2](seen[:, :2]))
    for name in found["fresh"]:
        assert torch.equal(new.state_dict()[name], fresh[name])


def test_long_lists_of_names_are_cut():
    with pytest.raises(CheckpointError, match=r"missing: 0\.weight, .* and 15 more"):
        load_into(nn.Sequential(*[nn.Linear(1, 1) for _ in range(10)]), {})


# writing


def test_failed_write_leaves_the_old_file_and_nothing_else(file):
    before = file.read_bytes()

    def fail():
        with replacing(file) as handle:
            handle.write(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_sweep_removes_what_the_dead_left_and_nothing_else(file):
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path\n"
            "from medgen.disk import replacing\n"
            "with replacing(Path(sys.argv[1])) as file:\n"
            "    print(flush=True); time.sleep(60)",
            str(file),
        ],
        stdout=subprocess.PIPE,
    )
    writer.stdout.readline()
    (file.parent / ".notes.tmp").write_text("somebody's")
    sweep(file.parent)
    assert len(list(file.parent.iterdir())) == 3  # its writer lives
    writer.kill()
    writer.wait()
    assert len(list(file.parent.iterdir())) == 3
    sweep(file.parent)
    assert sorted(path.name for path in file.parent.iterdir()) == [".notes.tmp", file.name]


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*choose another folder with --out"):
        write_weights(tmp_path / "file" / "model.safetensors", tensors(), {})


def test_full_disk(file):
    """A limit on the size of files stands in for a full disk."""
    script = (
        "import signal, sys, torch\n"
        "from pathlib import Path\n"
        "from medgen.checkpoint import write_weights\n"
        "from medgen.errors import OutputError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try:\n"
        "    write_weights(Path(sys.argv[1]), {'a': torch.zeros(10**6)}, {})\n"
        "except OutputError as error:\n"
        "    print(error)\n"
    )

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    before = file.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", script, str(file)],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "free some space and run the same command again" in done.stdout
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_header_is_aligned(file):
    length = struct.unpack("<Q", file.read_bytes()[:8])[0]
    assert length % 8 == 0
    header = json.loads(file.read_bytes()[8 : 8 + length])
    assert all(
        entry["data_offsets"][0] % {"F64": 8, "I64": 8, "F32": 4}.get(entry["dtype"], 1) == 0
        for name, entry in header.items()
        if name != "__metadata__"
    )
