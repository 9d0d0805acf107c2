"""Made-up clips whose frames, axes and masks are known."""

import numpy as np


def toy_frames(frames=12, height=20, width=34) -> np.ndarray:
    """Grey levels (t h w) that differ along every axis: a bright disc that shrinks and grows."""
    t, y, x = np.ogrid[:frames, :height, :width]
    radius = (0.32 + 0.1 * np.cos(2 * np.pi * t / frames)) * min(height, width)
    disc = (y - height / 2) ** 2 + (x - width / 3) ** 2 < radius**2
    return (disc * 150 + y * 3 + x + np.zeros_like(t)).clip(0, 255).astype(np.uint8)


def toy_masks(frames=12, height=20, width=34) -> np.ndarray:
    """Classes (t h w) of that disc: 1 inside, 0 outside."""
    return (toy_frames(frames, height, width) >= 150).astype(np.int64)
