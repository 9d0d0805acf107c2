"""The arms of the experiment, one after the other or in several processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from medgen.augmentation.arms import Arm
from medgen.augmentation.trial import Bench, Part, Trial, finished, run
from medgen.disk import replacing
from medgen.errors import OutputError

STUDIES = "studies.safetensors"
PARTS = ("real", "validation", "test", "synthetic")
Report = Callable[[int, Arm], None]
"""Called with the number of finished arms and the arm that is begun or was finished."""


def sweep(bench: Bench, trials: Sequence[Trial], workers: int, report: Report) -> None:
    """Run what is left of the trials; each leaves one file, so a killed sweep resumes.

    A result depends on its trial alone and, in its last bits, on the threads of a process: with
    one thread each, any number of workers gives the same bytes but for the seconds. The threads
    of this process are shared out among the workers.

    Args:
        bench: what they share.
        trials: one an arm.
        workers: processes; 1 runs everything in this one.
        report: told how far it is.

    Raises:
        MedgenError: of the first trial that fails; those that run then are finished and kept.
        OutputError: a worker was killed.
    """
    left = [trial for trial in trials if finished(bench, trial.arm) is None]
    done = len(trials) - len(left)
    workers = min(workers, len(left))
    if workers <= 1:
        for place, trial in enumerate(left):
            report(done + place, trial.arm)
            run(bench, trial)
        return
    studies = bench.folder / STUDIES
    _write_studies(bench, studies)
    empty = Part(torch.empty(0), torch.empty(0))
    light = replace(bench, masks=None, **dict.fromkeys(PARTS, empty))
    try:
        _side_by_side(light, left, workers, lambda finish, arm: report(done + finish, arm))
    finally:
        studies.unlink()


def _side_by_side(bench: Bench, trials: Sequence[Trial], workers: int, report: Report) -> None:
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(bench, max(1, torch.get_num_threads() // workers)),
    ) as pool:
        try:
            arms = {pool.submit(_run, trial): trial.arm for trial in trials}
            for done, future in enumerate(as_completed(arms), start=1):
                future.result()
                report(done, arms[future])
        except BrokenProcessPool as error:
            raise OutputError(
                f"one of {workers} processes that train the arms was killed, perhaps for want of "
                "memory. Give fewer --workers and run the same command again: it resumes."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_shared: list[Bench] = []
"""The bench of a worker process."""


def _start(bench: Bench, threads: int) -> None:
    """Prepare a worker; it ends with the process that started it, however that ends."""
    torch.set_num_threads(threads)
    threading.Thread(target=_follow, daemon=True).start()
    held = load_file(bench.folder / STUDIES)
    parts = {p: Part(held[f"{p}.images"], held[f"{p}.targets"]) for p in PARTS}
    _shared.append(replace(bench, masks=held.get("masks"), **parts))


def _write_studies(bench: Bench, path: Path) -> None:
    """Studies go to the workers through a file, which they map into memory they share."""
    tensors: dict[str, torch.Tensor] = {}
    for name in PARTS:
        part: Part = getattr(bench, name)
        tensors[f"{name}.images"] = part.images.contiguous()
        tensors[f"{name}.targets"] = part.targets.contiguous()
    if bench.masks is not None:
        tensors["masks"] = bench.masks.clone()  # for a segmenter they are the targets themselves
    with replacing(path) as file:
        file.write(save(tensors))


def _follow() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(trial: Trial) -> None:
    run(_shared[0], trial)
