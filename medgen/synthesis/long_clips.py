"""Clips longer than those a generator learned from, by overlapping windows."""

from __future__ import annotations

from dataclasses import replace

import torch

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
    and every window gets the ECG of its own time.

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
        starts = window_starts(frames // each, window, overlap // each)
    except ValueError as error:
        raise DataError(f"in latent frames, {each} frames each: {error}") from error
    device = next(model.backbone.parameters()).device
    was_training = model.training
    model.eval()
    images = []
    for place, seed in enumerate(seeds):
        asked = conditions.select([place]).to(device)
        parts = [_within(asked, model, start * each, frames) for start in starts]
        rng = Rng([seed])
        fields = [model.guided(part) for part in parts]
        field = windowed(fields, starts, window, blend=blend, rng=rng)
        longer = replace(latent, size=(frames // each, *latent.size[1:]))
        z = model.sampler.sample(field, model.objective.prior(longer, rng).to(device), rng)
        images.append(model.codec.decode(z).clamp(-1, 1).float().cpu())
    model.train(was_training)
    provenance = tuple(
        Provenance(id=f"{seed:016x}", synthetic=True, source=model.source, seed=seed)
        for seed in seeds
    )
    return replace(conditions, image=torch.cat(images), provenance=provenance)


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
