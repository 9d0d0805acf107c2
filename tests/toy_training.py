"""Tiny phantoms in memory, and a bare loop that trains a tiny generator on them."""

from __future__ import annotations

import numpy as np
import torch

from medgen.codecs.pixels import Pixels
from medgen.conditioners.joint import JointConditioner
from medgen.model import GenerativeModel
from medgen.objectives.flow_matching import FlowMatching
from medgen.registry import build
from medgen.rng import Rng, derive
from medgen.samplers.flows import AB2
from medgen.samplers.guidance import NoGuidance
from medgen.types import Batch, Schema


def balls(count, *, size, spacing, seed=0, radius=(3.5, 4.5), noise=0.1):
    """Bright balls of a radius in mm in dark noise, each at a place of its own.

    Args:
        count: studies.
        size: voxels along each axis.
        spacing: (b axes) mm.
        seed: another seed, other studies.
        radius: smallest and largest, in mm.
        noise: standard deviation of white noise.
    """
    rng = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*[np.arange(side) for side in size], indexing="ij"))
    image, mask = [], []
    for row in np.asarray(spacing, dtype=np.float64):
        middle = (np.array(size) - 1) / 2 + rng.uniform(-1, 1, len(size))
        apart = (places - middle.reshape(-1, *[1] * len(size))) * row.reshape(-1, *[1] * len(size))
        inside = np.sqrt((apart**2).sum(0)) < rng.uniform(*radius)
        image.append(np.where(inside, 0.6, -0.6) + noise * rng.normal(size=size))
        mask.append(inside)
    return Batch(
        image=torch.from_numpy(np.stack(image)).float()[:, None].clamp(-1, 1),
        mask=torch.from_numpy(np.stack(mask)).long(),
        spacing=torch.as_tensor(spacing, dtype=torch.float32),
    )


def built(schema: Schema, studies: Batch, conditioners, *, patch=1, backbone=None, seed=0):
    """A tiny U-Net that learns by flow matching, its codec and conditions fitted on studies."""
    torch.manual_seed(seed)
    codec = Pixels(schema, patch)
    codec.fit(studies.image)
    conditioner = JointConditioner(conditioners(schema, codec.latent))
    conditioner.fit(studies)
    small = {"channels": (16, 32), "blocks": 1, "attention": (False, False), "head": 16}
    network = build(
        "backbone", "unet", small | (backbone or {}), latent=codec.latent, cond=conditioner.spec
    )
    return GenerativeModel(
        schema,
        codec,
        conditioner,
        network,
        objective=FlowMatching(),
        sampler=AB2(steps=12),
        guidance=NoGuidance(),
    )


def train(model: GenerativeModel, studies: Batch, *, steps: int, batch=16, lr=2e-3):
    """Adam with a linear decay; the model as it is at the end."""
    z = model.codec.encode(studies.image)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(learning, lr=lr)
    for step in range(steps):
        chosen = [derive(step, place) % len(studies) for place in range(batch)]
        for group in optimiser.param_groups:
            group["lr"] = lr * (1 - step / steps)
        rng = Rng([derive("train", step, place) for place in range(batch)])
        loss = model.loss(z[chosen], studies.conditions().select(chosen), rng).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()
