"""Every error that a user can cause, in one tree.

MedgenError                  the command line prints its text and exits with code 1
├── RecipeError              a recipe, override or component argument is wrong
├── DataError                a study, table or folder cannot be read as asked
│   └── LeakageError         one patient stands in two splits
├── CheckpointError          a checkpoint is missing, damaged or not what it says
├── OutputError              an output folder is unwritable, full, or holds something else
├── HealthError              a codec or a run is too broken to build on (gate failed, NaN)
├── DeviceError              an unknown or absent device was asked for
└── MissingExtraError        an optional dependency is needed; the text names the extra

A message says what was expected, what was found, where, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MedgenError(Exception):
    """The base of all errors that a user can mend."""


class RecipeError(MedgenError):
    """A recipe or an override is wrong; holds every problem found, one a line."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(MedgenError):
    """A study, a table or a folder of studies cannot be read as asked."""


class LeakageError(DataError):
    """A patient stands in more than one split."""


class CheckpointError(MedgenError):
    """A checkpoint is missing, damaged, or not what it says it is."""


class OutputError(MedgenError):
    """An output folder is unwritable, full, or holds something else."""


class HealthError(MedgenError):
    """A codec or a training run is too broken to build on."""


class DeviceError(MedgenError):
    """An unknown or absent device was asked for."""


class MissingExtraError(MedgenError):
    """An optional dependency is not installed; the text names the extra."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that offers the nearest known word, or lists the known ones if none is near."""
    choices = sorted(known)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if near:
        return f"Did you mean '{near[0]}'?"
    return f"Known: {', '.join(choices)}." if choices else "None is known."
