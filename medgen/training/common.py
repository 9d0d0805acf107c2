"""What every training loop shares: devices, order of studies, schedules, gradients, NaN guard.

Everything random or scheduled is a pure function of the step, so a resumed run needs one integer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from medgen.errors import DeviceError, HealthError, RecipeError, did_you_mean
from medgen.nn.precision import computes_bfloat16
from medgen.rng import derive
from medgen.settings import Precision, TrainSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

Device = Literal["auto", "cpu", "cuda", "mps"]
DEVICES = ("auto", "cpu", "cuda", "mps")
SMALLEST_SCALE = 2.0**-10
"""Below it, float16 gradients overflow at any loss scale: the network itself has diverged."""
Item = TypeVar("Item")


def make_accelerator(device: str = "auto", precision: Precision = "fp32") -> Accelerator:
    """Accelerate's view of devices, processes and precision, made anew.

    Args:
        device: "auto" takes CUDA, then MPS, then the CPU.
        precision: arithmetic of the forward pass; "auto" is bfloat16 where that is faster.

    Raises:
        DeviceError: the device is unknown or absent here, or cannot do float16.
    """
    device = resolve_device(device)
    if precision == "auto":
        precision = "bf16" if computes_bfloat16(device) else "fp32"
    if precision == "fp16" and device != "cuda":
        raise DeviceError(f"precision fp16 needs CUDA, the device is '{device}'; use bf16 or fp32")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # Accelerate keeps the first precision and device of a process for ever; a codec and a generator
    # trained in one process may differ in both.
    AcceleratorState._reset_state(reset_partial_state=True)
    mixed = "no" if precision == "fp32" else precision
    return Accelerator(cpu=device == "cpu", mixed_precision=mixed)


def resolve_device(device: str = "auto") -> str:
    """The name of a device that exists here: "cpu", "cuda" or "mps".

    Raises:
        DeviceError: unknown or absent; the text names those that exist.
    """
    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    if torch.cuda.is_available():
        present.insert(0, "cuda")
    if device not in DEVICES:
        raise DeviceError(f"unknown device '{device}'. {did_you_mean(device, DEVICES)}")
    if device != "auto" and device not in present:
        raise DeviceError(f"device '{device}' is absent here; present: {', '.join(present)}")
    return present[0] if device == "auto" else device


def indices(seed: int, total: int, step: int, batch: int) -> list[int]:
    """Which studies step `step` sees, over all processes: a pure function, so resuming is exact.

    Studies come in an endless sequence of permutations, one an epoch; a batch may span epochs.

    Args:
        seed: of the run.
        total: number of studies.
        step: counted from 0.
        batch: studies a step, over all processes.
    """
    first = step * batch
    return [
        int(_permutation(seed, total, place // total)[place % total])
        for place in range(first, first + batch)
    ]


@lru_cache(maxsize=4)
def _permutation(seed: int, total: int, epoch: int) -> np.ndarray:
    key = derive(seed, "order", epoch)
    return np.random.Generator(np.random.Philox(key=key)).permutation(total)


def step_seeds(seed: int, step: int, batch: int) -> list[int]:
    """One seed for every place of the global batch of a step."""
    return [derive(seed, "step", step, place) for place in range(batch)]


def share(items: Sequence[Item], rank: int, processes: int) -> Sequence[Item]:
    """The equal, contiguous part of a global batch that process `rank` handles.

    Raises:
        RecipeError: the batch cannot be divided equally.
    """
    if len(items) % processes:
        raise RecipeError(
            f"train.batch: {processes} processes cannot share {len(items)} images equally; "
            f"choose a multiple of {processes}"
        )
    part = len(items) // processes
    return items[rank * part : (rank + 1) * part]


def check_settings(settings: TrainSettings) -> None:
    """Refuse settings that make no sense.

    Raises:
        RecipeError: names every such setting.
    """
    least = {
        "images": 1,
        "batch": 1,
        "ema_halflife": 0,
        "warmup": 0,
        "weight_decay": 0,
        "checkpoint_every": 1,
        "validate_every": 1,
        "autoencoder_warmup": 0,
        "snapshots": 0,
    }
    problems = [
        f"train.{name}: expected at least {bound}, got {value}"
        for name, bound in least.items()
        if not (value := getattr(settings, name)) >= bound
    ]
    problems += [
        f"train.{name}: expected more than 0, got {value}"
        for name in ("lr", "clip", "micro_batch")
        if (value := getattr(settings, name)) is not None and not value > 0
    ]
    if settings.freeze and settings.init_from is None:
        problems.append("train.freeze: there is nothing to freeze; name a model in train.init_from")
    if problems:
        raise RecipeError(problems)


def learning_rate(settings: TrainSettings, images: float) -> float:
    """Learning rate after `images` images: linear warm-up, then constant or half a cosine to zero.

    A loop asks for the middle of a step, which is never zero at either end.
    """
    if images < settings.warmup:
        return settings.lr * images / settings.warmup
    if settings.decay == "constant":
        return settings.lr
    left = max(settings.images - settings.warmup, 1)
    done = min((images - settings.warmup) / left, 1.0)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * done))


def due(step: int, batch: int, every: int) -> bool:
    """Whether something that happens every `every` images happens after step `step`."""
    return (step + 1) * batch // every > step * batch // every


def make_optimizer(
    parameters: Iterable[nn.Parameter], settings: TrainSettings
) -> torch.optim.AdamW:
    """AdamW whose weight decay spares biases, gains and other vectors."""
    chosen = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in chosen if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in chosen if p.ndim <= 1], "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps") for p in chosen)
    return torch.optim.AdamW(filled, lr=settings.lr, betas=(0.9, 0.99), fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class Gradients:
    """All gradients of some parameters as one buffer: one sum over processes, one norm.

    Gradients are averaged over processes here rather than by DistributedDataParallel, so a loss may
    use any method of a model, leave parameters unused, and accumulate, with no hook to satisfy.

    Args:
        parameters: those to optimise; each receives a `grad` that is a view of the buffer.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        chosen = [parameter for parameter in parameters if parameter.requires_grad]
        if not chosen:
            raise ValueError("expected parameters that require gradients, got none")
        self.buffer = torch.zeros(sum(p.numel() for p in chosen), device=chosen[0].device)
        start = 0
        for parameter in chosen:
            end = start + parameter.numel()
            parameter.grad = self.buffer[start:end].view_as(parameter)
            start = end

    def zero(self) -> None:
        """Start a step."""
        self.buffer.zero_()

    def average(self, accelerator: Accelerator) -> None:
        """Replace each process' gradients by their mean over processes."""
        if accelerator.num_processes > 1:
            self.buffer.copy_(_mean(accelerator, self.buffer))

    def clip(self, limit: float) -> Tensor:
        """Scale down to a norm of at most `limit`; returns the norm before."""
        norm = self.buffer.norm()
        self.buffer.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
        return norm


def seed_global(seed: int, device: torch.device) -> None:
    """Seed the generators that dropout draws from: the CPU's and the device's.

    `torch.manual_seed` does so for every kind of device, which costs a millisecond a step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def kept_random_state(device: torch.device) -> AbstractContextManager[None]:
    """Leaves torch's global generators as they were, whatever is drawn from them inside."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def average_scalar(accelerator: Accelerator, value: Tensor) -> float:
    """Mean of a number over all processes."""
    return float(_mean(accelerator, value.detach().float()))


def _mean(accelerator: Accelerator, value: Tensor) -> Tensor:
    mean = accelerator.reduce(value, reduction="mean")
    assert isinstance(mean, Tensor)
    return mean


def optimizer_step(
    accelerator: Accelerator, optimizer: torch.optim.Optimizer, gradients: Gradients, clip: float
) -> float:
    """Average, unscale and clip the gradients, then step; returns their norm before clipping.

    With float16 a step whose gradients overflow is left out and the loss scale is halved; the norm
    then is infinite.

    Raises:
        HealthError: float16 gradients overflow at the smallest loss scale.
    """
    gradients.average(accelerator)
    scaler = accelerator.scaler
    if scaler is None:
        norm = float(gradients.clip(clip))
        optimizer.step()
        return norm
    scaler.unscale_(optimizer)
    norm = float(gradients.clip(clip))
    scaler.step(optimizer)
    scaler.update()
    if scaler.get_scale() < SMALLEST_SCALE:
        raise HealthError("float16 gradients overflow whatever the loss scale; use bf16 or fp32")
    return norm


def require_finite(
    values: Mapping[str, float], *, step: int, images: int, kept: int | None
) -> None:
    """Stop a run whose loss or gradient is NaN or infinite, before it touches anything on disk.

    Args:
        values: named losses and norms of the step.
        step: the step they belong to.
        images: images seen up to the end of the step.
        kept: images seen at the last saved state; None if none was saved.

    Raises:
        HealthError: names the value, the step and the state that is kept.
    """
    broken = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    if broken:
        state = "no state had been saved" if kept is None else f"the state at {kept} images is kept"
        raise HealthError(
            f"training broke at step {step} ({images} images): {', '.join(broken)}; {state}. "
            "Lower train.lr, lengthen train.warmup, or use precision fp32 or bf16"
        )


def broadcast_module(accelerator: Accelerator, module: nn.Module) -> None:
    """Give every process the weights of the first."""
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast

        for tensor in module.state_dict().values():
            tensor.copy_(broadcast(tensor.clone(), from_process=0))
