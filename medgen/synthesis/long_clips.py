"""Clips longer than those a generator learned from, by overlapping windows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from medgen.conditioners.memory import MemoryConditioner
from medgen.errors import DataError
from medgen.model import GenerativeModel
from medgen.rng import Rng
from medgen.samplers.windows import Blend, window_starts, windowed
from medgen.types import Batch, Provenance


@torch.no_grad()
def sample_long(
    model: GenerativeModel,
    conditions: Batch,
    seeds: list[int],
    *,
    frames: int,
    overlap: int | None = None,
    blend: Blend = "random",
) -> Batch:
    """Draw one long clip for every condition, one at a time: sample i depends on its seed alone.

    Findings, scalars and a first frame hold for the whole clip; an ECG must be as long as the clip,
    and every window gets the ECG of its own time. A model with a memory is asked twice: for one
    window after the other, each told the last frames and an anchor of what was drawn before it, and
    then for all windows together, which are blended.

    Args:
        model: of clips, with continuous latents whose frames are equal parts of a clip.
        conditions: what is asked for.
        seeds: one a condition.
        frames: of a long clip.
        overlap: frames that successive windows share; None is half a window.
        blend: how windows are joined, see `windowed`.

    Raises:
        DataError: the model makes no clips, windows of it do not cover so many frames, or an ECG is
            not as long as the clip.
    """
    latent = model.codec.latent
    each, starts = _windows(model, frames, overlap)
    device = next(model.backbone.parameters()).device
    was_training = model.training
    model.eval()
    images = []
    for place, seed in enumerate(seeds):
        asked = conditions.select([place]).to(device)
        parts = [_within(asked, model, start * each, frames) for start in starts]
        longer = replace(latent, size=(frames // each, *latent.size[1:]))
        noise = model.objective.prior(longer, Rng([seed])).to(device)
        if "memory" in model.conditioner.reads:
            parts = _remembering(model, parts, noise, starts, seed)
        rng = Rng([seed])
        fields = [model.guided(part) for part in parts]
        field = windowed(fields, starts, latent.size[0], blend=blend, rng=rng)
        z = model.sampler.sample(field, noise, rng)
        images.append(model.codec.decode(z).clamp(-1, 1).float().cpu())
    model.train(was_training)
    provenance = tuple(
        Provenance(id=f"{seed:016x}", synthetic=True, source=model.source, seed=seed)
        for seed in seeds
    )
    return replace(conditions, image=torch.cat(images), provenance=provenance)


def require_length(model: GenerativeModel, frames: int, ecg: Tensor | None = None) -> None:
    """Refuse a length that clips of a model cannot have, before anything is drawn.

    Args:
        model: of clips.
        frames: of a long clip.
        ecg: that clips are asked for with (b leads samples).

    Raises:
        DataError: as `sample_long`.
    """
    _windows(model, frames, None)
    if ecg is not None:
        _within(Batch(ecg=ecg), model, 0, frames)


def _windows(model: GenerativeModel, frames: int, overlap: int | None) -> tuple[int, list[int]]:
    """Frames of a latent frame, and the first latent frames of the windows of a long clip."""
    schema, latent = model.schema, model.codec.latent
    if not schema.time or len(latent.size) != 3 or latent.domain != "continuous":
        raise DataError("long clips need a generator of clips with continuous latents")
    whole, window = schema.size[0], latent.size[0]
    each, left = divmod(whole, window)
    overlap = whole // 2 if overlap is None else overlap
    if left or frames % each or overlap % each:
        raise DataError(
            f"a latent frame is {whole}/{window} frames; clip and overlap must be made of "
            "whole ones"
        )
    try:
        return each, window_starts(frames // each, window, overlap // each)
    except ValueError as error:
        raise DataError(f"in latent frames, {each} frames each: {error}") from error


def _remembering(
    model: GenerativeModel, parts: list[Batch], noise: Tensor, starts: list[int], seed: int
) -> list[Batch]:
    """The conditions of the windows with what each shall remember of those before it.

    The windows are drawn one after the other from their parts of the noise: each remembers the
    first frames that it shares with the one before, and the middle frame of the first as its
    anchor. Later windows know no first frame, which is the first one's.
    """
    whole, window = model.schema.size[0], model.codec.latent.size[0]
    conditioners = model.conditioner.parts.values()
    count = max(part.frames for part in conditioners if isinstance(part, MemoryConditioner))
    each = whole // window
    clips: list[Tensor] = []
    known = [parts[0]]
    for place, start in enumerate(starts):
        if place:
            first = (start - starts[place - 1]) * each
            memory = [
                clips[-1][:, :, first : first + count],
                clips[0][:, :, whole // 2][:, :, None],
            ]
            if memory[0].shape[2] < count:
                raise DataError(
                    f"windows that share {whole - first} frames cannot remember {count}; let them "
                    "share more"
                )
            memory = torch.cat(memory, dim=2)
            known.append(replace(parts[place], frame=None, memory=memory))
        z = noise[:, :, start : start + window]
        z = model.sampler.sample(model.guided(known[-1]), z, Rng([seed]))
        clips.append(model.codec.decode(z).clamp(-1, 1))
    return known


def _within(conditions: Batch, model: GenerativeModel, start: int, frames: int) -> Batch:
    """The conditions of the window that begins at frame `start` of a clip of `frames`."""
    if conditions.mask is not None:
        inside = conditions.mask[:, start : start + model.schema.size[0]]
        conditions = replace(conditions, mask=inside)
    if conditions.ecg is None:
        return conditions
    schema = model.schema
    samples = schema.spacing[0] * schema.ecg_rate
    expected, held = round(frames * samples), conditions.ecg.shape[2]
    if held != expected:
        raise DataError(f"a clip of {frames} frames needs ECGs of {expected} samples, got {held}")
    first = min(round(start * samples), expected - round(schema.size[0] * samples))
    last = first + round(schema.size[0] * samples)
    return replace(conditions, ecg=conditions.ecg[:, :, first:last])
