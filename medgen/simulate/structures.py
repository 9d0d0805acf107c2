"""Names of what a simulated CT shows, and how they nest: what a label map may be asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medgen.errors import did_you_mean

PARENTS: dict[str, str] = {
    "body": "background",
    "bone": "body",
    "lung": "body",
    "lung_upper_lobe_left": "lung",
    "lung_lower_lobe_left": "lung",
    "lung_upper_lobe_right": "lung",
    "lung_middle_lobe_right": "lung",
    "lung_lower_lobe_right": "lung",
    "lung_vessel": "lung",
    "airway": "body",
    "heart": "body",
    "heart_myocardium": "heart",
    "heart_atrium_left": "heart",
    "heart_ventricle_left": "heart",
    "heart_atrium_right": "heart",
    "heart_ventricle_right": "heart",
    "aorta": "body",
    "superior_vena_cava": "body",
    "inferior_vena_cava": "body",
    "pulmonary_artery": "body",
    "liver": "body",
    "spleen": "body",
    "stomach": "body",
    "kidney": "body",
    "effusion": "body",
    "pneumothorax": "body",
    "consolidation": "lung",
    "nodule": "lung",
}
"""Each structure's larger one; "background" holds all. Words as TotalSegmentator's, where it has
them (Wasserthal et al. 2023, doi 10.1148/ryai.230024)."""

STRUCTURES = ("background", *PARENTS)
"""Values of a full label map: indices of these names."""
CODE = {name: code for code, name in enumerate(STRUCTURES)}
LOBES = tuple(name for name in STRUCTURES if "_lobe_" in name)


def grouped(classes: Sequence[str]) -> NDArray[np.uint8]:
    """For every structure its class among those named: itself or the nearest that holds it.

    Args:
        classes: names of structures; the background is class 0, named or not.

    Raises:
        ValueError: a name is unknown or stands twice.
    """
    named = [name for name in classes if name != "background"]
    for name in named:
        if name not in PARENTS:
            raise ValueError(f"unknown structure '{name}'. {did_you_mean(name, PARENTS)}")
    if len(set(named)) != len(named):
        raise ValueError(f"a structure stands twice in {list(classes)}")
    values = {"background": 0} | {name: value + 1 for value, name in enumerate(named)}
    table = np.zeros(len(STRUCTURES), np.uint8)
    for code, name in enumerate(STRUCTURES):
        holder = name
        while holder not in values:
            holder = PARENTS[holder]
        table[code] = values[holder]
    return table
