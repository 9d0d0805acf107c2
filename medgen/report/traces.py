"""Signals as pictures: one trace a lead, in the columns of a printed ECG."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

HEIGHT, WIDTH = 30, 96
"""Pixels of one lead's trace."""
ROWS = 3
LEVELS = (0.15, 0.7, 1.0)
"""Gray of the zero line, of a trace, and how far a trace may reach, as a share of the range."""


def traces(signals: Tensor) -> Tensor:
    """Signals (b c t) in [-1, 1] as gray images (b 1 h w) in [-1, 1].

    Twelve leads stand in three rows of four, I II III in the first column. Time runs on from column
    to column, as on a printed ECG; each study is scaled by its largest swing.
    """
    return torch.stack([_picture(signal) for signal in signals.detach().float().cpu()])


def _picture(signal: Tensor) -> Tensor:
    rows = min(ROWS, len(signal))
    columns = -(-len(signal) // rows)
    picture = Image.new("L", (columns * WIDTH, rows * HEIGHT))
    draw = ImageDraw.Draw(picture)
    swing = max(float(signal.abs().max()), 1e-6)
    parts = np.array_split(np.arange(signal.shape[1]), columns)
    for lead, whole in enumerate(signal.nan_to_num(0).numpy()):
        values = whole[parts[lead // rows]]
        left, middle = lead // rows * WIDTH, (lead % rows + 0.5) * HEIGHT
        zero, ink, reach = LEVELS
        draw.line([(left, middle), (left + WIDTH - 1, middle)], fill=round(255 * zero))
        across = left + np.linspace(0, WIDTH - 1, len(values))
        down = middle - values / swing * reach * HEIGHT / 2
        draw.line([*zip(across.tolist(), down.tolist(), strict=True)], fill=round(255 * ink))
    return torch.from_numpy(np.array(picture)).float()[None] / 127.5 - 1
