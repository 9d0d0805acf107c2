"""Attention kernels agree with each other, choose as told, and fall back once."""

import importlib
import math
import subprocess
import sys
import threading
import warnings

import pytest
import torch

from medgen.errors import DeviceError
from medgen.nn import attention as module
from medgen.nn.attention import VARIABLE, attention, attention_backend, resolved_backend

BATCH, HEADS, QUERIES, KEYS, WIDTH = 2, 3, 7, 5, 8


def _tensors(queries=QUERIES, keys=KEYS, seed=0):
    rng = torch.Generator().manual_seed(seed)
    shapes = [(BATCH, HEADS, length, WIDTH) for length in (queries, keys, keys)]
    return [torch.randn(shape, generator=rng, requires_grad=True) for shape in shapes]


def _mask(kind):
    rng = torch.Generator().manual_seed(1)
    if kind == "bool":
        mask = torch.rand(BATCH, HEADS, QUERIES, KEYS, generator=rng) < 0.6
        mask[..., 0] = True
        return mask
    if kind == "padding":
        return torch.tensor([[True] * 5, [True] * 2 + [False] * 3])[:, None, None, :]
    if kind == "additive":
        return torch.randn(BATCH, 1, QUERIES, KEYS, generator=rng)
    return None


def _by_hand(q, k, v, mask, causal):
    """One query at a time, over the keys it may see only."""
    out = torch.zeros_like(q)
    for b in range(BATCH):
        for h in range(HEADS):
            for i in range(q.shape[2]):
                seen, scores = [], []
                for j in range(k.shape[2]):
                    bias = 0.0
                    if mask is not None:
                        entry = mask.expand(BATCH, HEADS, q.shape[2], k.shape[2])[b, h, i, j]
                        if mask.dtype == torch.bool and not entry:
                            continue
                        bias = 0.0 if mask.dtype == torch.bool else entry
                    if causal and j > i:
                        continue
                    seen.append(j)
                    scores.append((q[b, h, i] * k[b, h, j]).sum() / math.sqrt(WIDTH) + bias)
                weights = torch.stack(scores).exp()
                out[b, h, i] = (weights / weights.sum()) @ v[b, h, seen]
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["none", "bool", "padding", "additive"])
@pytest.mark.parametrize("backend", ["sdpa", "math", "auto"])
def test_kernels_equal_a_loop_forward_and_backward(backend, kind, causal):
    mask, weight = _mask(kind), torch.randn(BATCH, HEADS, QUERIES, WIDTH)
    expected_inputs, inputs = _tensors(), _tensors()
    expected = _by_hand(*expected_inputs, mask, causal)
    out = attention(*inputs, mask=mask, causal=causal, backend=backend)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), expected_inputs)
    gradients = torch.autograd.grad((out * weight).sum(), inputs)
    for mine, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["sdpa", "math"])
def test_a_query_that_sees_nothing_gives_zeros_and_finite_gradients(backend):
    inputs = _tensors()
    mask = torch.ones(BATCH, 1, QUERIES, KEYS, dtype=torch.bool)
    mask[1, :, 3] = False
    out = attention(*inputs, mask=mask, backend=backend)
    assert out[1, :, 3].abs().max() == 0
    assert out[0].abs().min() > 0
    for gradient in torch.autograd.grad(out.square().sum(), inputs):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("backend", ["sdpa", "math"])
def test_scale_replaces_the_square_root(backend):
    q, k, v = _tensors()
    out = attention(q, k, v, scale=0.0, backend=backend)
    torch.testing.assert_close(out, v.mean(dim=2, keepdim=True).expand_as(out))


def test_xformers_on_cpu_falls_back_with_one_warning(monkeypatch):
    monkeypatch.setattr(module, "_warned", set())
    inputs = _tensors()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outputs = [attention(*inputs, backend="xformers") for _ in range(3)]
    assert len(caught) == 1
    assert "runs on CUDA only" in str(caught[0].message)
    for out in outputs:
        assert torch.equal(out, attention(*inputs, backend="sdpa"))


def test_strict_refuses_to_fall_back():
    with pytest.raises(DeviceError, match="does not apply: it runs on CUDA only"):
        attention(*_tensors(), backend="xformers", strict=True)


def test_unknown_backends_are_named(monkeypatch):
    with pytest.raises(ValueError, match="Did you mean 'xformers'"):
        attention(*_tensors(), backend="xformer")
    with pytest.raises(ValueError, match="unknown attention backend"), attention_backend("flash"):
        pass
    monkeypatch.setenv(VARIABLE, "mth")
    with pytest.raises(DeviceError, match=f"{VARIABLE}.*Did you mean 'math'"):
        attention(*_tensors())


def test_argument_beats_context_beats_environment_beats_auto(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert resolved_backend("cpu") == "sdpa"
    monkeypatch.setenv(VARIABLE, "math")
    assert resolved_backend("cpu") == "math"
    with attention_backend("auto"):
        assert resolved_backend("cpu") == "sdpa"
        assert resolved_backend("cpu", "math") == "math"
        with attention_backend("math"):
            assert resolved_backend("cpu") == "math"
        assert resolved_backend("cpu") == "sdpa"
    assert resolved_backend("cpu") == "math"
    assert resolved_backend("cpu", "xformers") == "sdpa"


def test_a_context_ends_with_its_error():
    with pytest.raises(RuntimeError, match="inside"), attention_backend("math"):
        raise RuntimeError("inside")
    assert module._chosen.get() is None


def test_contexts_of_two_threads_do_not_meet(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    both_inside, seen = threading.Barrier(3, timeout=30), {}

    def work(name):
        with attention_backend(name):
            both_inside.wait()
            seen[name] = resolved_backend("cpu")
            both_inside.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("math", "sdpa")]
    for thread in threads:
        thread.start()
    both_inside.wait()
    seen["here"] = resolved_backend("cpu")
    both_inside.wait()
    for thread in threads:
        thread.join()
    assert seen == {"math": "math", "sdpa": "sdpa", "here": "sdpa"}


def test_import_leaves_xformers_alone():
    code = "import sys, medgen.nn.attention; sys.exit('xformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_bias_for_xformers_is_stored_in_rows_of_eight():
    q, k, _ = _tensors()
    mask = _mask("bool")
    bias = module._aligned_bias(mask, q, k)
    assert bias.shape == (BATCH, HEADS, QUERIES, KEYS)
    assert bias.stride(-1) == 1
    assert bias.stride(-2) % 8 == 0
    assert torch.equal(bias == 0, mask)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["none", "bool", "padding", "additive"])
@pytest.mark.parametrize("backend", ["sdpa", "xformers"])
def test_kernels_on_cuda_equal_math(backend, kind, causal):
    if backend == "xformers" and importlib.util.find_spec("xformers") is None:
        pytest.skip("xformers is not installed")
    inputs = [x.detach().cuda().requires_grad_() for x in _tensors()]
    mask = _mask(kind)
    mask = None if mask is None else mask.cuda()
    expected = attention(*inputs, mask=mask, causal=causal, backend="math")
    out = attention(*inputs, mask=mask, causal=causal, backend=backend, strict=True)
    torch.testing.assert_close(out, expected, atol=2e-3, rtol=2e-3)
    expected_gradients = torch.autograd.grad(expected.square().sum(), inputs)
    for mine, theirs in zip(
        torch.autograd.grad(out.square().sum(), inputs), expected_gradients, strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=5e-3, rtol=5e-3)
