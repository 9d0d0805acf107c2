"""Train a generator of medical studies, sample a labelled dataset, learn whether it helps."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "Batch": "medgen.types",
    "Dictionaries": "medgen.data.plugins",
    "OnTheFly": "medgen.synthesis.on_the_fly",
    "RandSyntheticd": "medgen.data.plugins",
    "Run": "medgen.pipeline",
    "Schema": "medgen.types",
    "SyntheticDataset": "medgen.data.synthetic",
    "evaluate": "medgen.evaluation.suite",
    "from_pretrained": "medgen.assembly",
    "load_recipe": "medgen.recipe",
    "mix": "medgen.data.mixing",
    "plan": "medgen.synthesis.plan",
    "prove": "medgen.augmentation.experiment",
    "register": "medgen.registry",
    "subjects": "medgen.data.plugins",
    "synthesize": "medgen.synthesis.draw",
    "verify": "medgen.synthesis.verify",
}
"""Public name -> the module it is imported from when it is used (PEP 562)."""

if TYPE_CHECKING:
    from medgen.assembly import from_pretrained
    from medgen.augmentation.experiment import prove
    from medgen.data.mixing import mix
    from medgen.data.plugins import Dictionaries, RandSyntheticd, subjects
    from medgen.data.synthetic import SyntheticDataset
    from medgen.evaluation.suite import evaluate
    from medgen.pipeline import Run
    from medgen.recipe import load_recipe
    from medgen.registry import register
    from medgen.synthesis.draw import synthesize
    from medgen.synthesis.on_the_fly import OnTheFly
    from medgen.synthesis.plan import plan
    from medgen.synthesis.verify import verify
    from medgen.types import Batch, Schema

__all__ = [
    "Batch",
    "Dictionaries",
    "OnTheFly",
    "RandSyntheticd",
    "Run",
    "Schema",
    "SyntheticDataset",
    "evaluate",
    "from_pretrained",
    "load_recipe",
    "mix",
    "plan",
    "prove",
    "register",
    "subjects",
    "synthesize",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'medgen' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
