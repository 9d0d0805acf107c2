"""Synthetic studies drawn while a consumer trains, in a process of their own."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from medgen.assembly import from_pretrained
from medgen.errors import DataError, HealthError
from medgen.rng import derive
from medgen.synthesis.export import condition_of
from medgen.synthesis.plan import Plan
from medgen.synthesis.unit import draw_unit, sample_name, units_of
from medgen.types import Batch, Provenance, Schema, Study

_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class _Source:
    """What draws: a checkpoint and how it is followed."""

    checkpoint: Path | str
    device: str
    sampler: Mapping[str, Any] | None
    guidance: Mapping[str, Any] | None


class OnTheFly:
    """A dataset whose images are drawn anew for every epoch, in a background process.

    Item i always has condition i of the plan; `set_epoch` renews its image. In epoch 0 it is drawn
    from seed i of the plan, and is the same that `synthesize` writes; later from seeds derived of
    it, so every epoch can be drawn again. While one epoch is used the next is drawn; at most two
    epochs of samples are held, in memory, a byte a pixel. All studies are training studies.

    Use it in a `with` block, which ends the process, and mix it as any dataset. Programs that start
    processes need `if __name__ == "__main__":` around what they run.

    Args:
        checkpoint: folder of a trained generator, or the name of a shipped checkpoint.
        plan: conditions and seeds of the samples of one epoch.
        epoch: to begin with.
        device: that draws.
        sampler: another `sampler` section than the checkpoint's.
        guidance: another `guidance` section.

    Raises:
        CheckpointError: there is none, or it holds no generator.
        DataError: used outside its `with` block, or by loader workers that outlive an epoch.
        HealthError: the process died; the text says why.
    """

    schema: Schema
    studies: Sequence[Study]

    def __init__(
        self,
        checkpoint: Path | str,
        plan: Plan,
        *,
        epoch: int = 0,
        device: str = "cpu",
        sampler: Mapping[str, Any] | None = None,
        guidance: Mapping[str, Any] | None = None,
    ) -> None:
        model = from_pretrained(checkpoint, sampler=sampler, guidance=guidance)
        held, asked = model.drawn, plan.conditions
        self.schema = replace(
            held,
            findings=() if asked.label is None else held.findings,
            mask_classes=() if asked.mask is None else held.mask_classes,
            scalars=() if asked.scalar is None else held.scalars,
            text=False,
        )
        self.labels = asked.label
        self.plan = plan
        self.epoch = epoch
        self._source = _Source(checkpoint, device, sampler, guidance)
        self._digest, self._unit = model.source, model.micro_batch
        names = [sample_name(index) for index in range(len(plan))]
        self.studies = tuple(Study(name, name, "train") for name in names)
        self._conditions = [condition_of(asked, i, held) for i in range(len(plan))]
        self._shape = (len(plan), held.channels, *held.size)
        self._images: torch.Tensor | None = None
        self._owner, self._next = os.getpid(), epoch
        self._newest = _SPAWN.Value("q", epoch)
        self._process: Any = None
        self._connection: Connection | None = None

    def __enter__(self) -> OnTheFly:
        self._start(self.epoch)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None, "_connection": None}

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"study {index} of {len(self)}")
        if self._newest.value != self.epoch:
            raise DataError(
                f"a loader's worker still holds epoch {self.epoch} of samples drawn on the fly, "
                f"now it is epoch {self._newest.value}; leave persistent_workers off"
            )
        if self._images is None:
            self.set_epoch(self.epoch)
        assert self._images is not None
        image = self._images[index : index + 1].float() * (2 / 255) - 1
        origin = Provenance(
            self.studies[index].id,
            synthetic=True,
            source=self._digest,
            seed=epoch_seed(self.plan.seeds[index], self.epoch),
            condition=self._conditions[index],
        )
        return replace(self.plan.conditions.select([index]), image=image, provenance=(origin,))

    def set_epoch(self, epoch: int) -> None:
        """Renew the images; waits until all of the epoch are drawn. Epochs count from 0."""
        if epoch == self.epoch and self._images is not None:
            return
        if self._connection is not None and epoch != self._next:
            self._start(epoch)
        self._images = None
        self._images = self._received(epoch)
        self.epoch = self._newest.value = epoch

    def close(self) -> None:
        """End the process; the images of the current epoch stay."""
        if self._connection is not None:
            self._connection.close()
            self._process.terminate()
            self._process.join()
        self._connection = self._process = None

    def _start(self, epoch: int) -> None:
        """Have samples drawn from an epoch on."""
        self.close()
        self._next = epoch
        self._connection, theirs = _SPAWN.Pipe(duplex=False)
        self._process = _SPAWN.Process(
            target=_serve,
            args=(theirs, self._source, self.plan, self._unit, epoch),
            daemon=True,
        )
        self._process.start()
        # With no writer left here, the end of the process is the end of the connection.
        theirs.close()

    def _received(self, epoch: int) -> torch.Tensor:
        """All images of an epoch (n c *s), uint8."""
        if self._connection is None or self._owner != os.getpid():
            raise DataError(
                "samples are drawn on the fly inside a `with` block alone, and an epoch must have "
                "been set or read before a loader with workers reads it"
            )
        images = torch.empty(self._shape, dtype=torch.uint8)
        self._next = -1  # where the process stands is unknown until all is received
        for start in range(0, len(self), self._unit):
            try:
                sent = self._connection.recv()
            except (EOFError, OSError):
                self._process.join()
                raise HealthError(
                    f"the process that draws samples died (exit code {self._process.exitcode}) "
                    f"before epoch {epoch} was drawn; if it was short of memory, make the plan or "
                    "the model smaller"
                ) from None
            if isinstance(sent, str):
                raise HealthError(f"the process that draws samples failed:\n{sent}")
            images[start : start + self._unit] = torch.from_numpy(sent)
        self._next = epoch + 1
        return images


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of a sample in an epoch; in the first it is the plan's."""
    return derive(seed, "epoch", epoch) if epoch else seed


def _serve(
    connection: Connection, source: _Source, plan: Plan, micro_batch: int, epoch: int
) -> None:
    """Draw epoch after epoch, unit by unit, and send the images as uint8, or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    units = units_of(plan, micro_batch)
    waiting: queue.Queue[Any] = queue.Queue(maxsize=len(units))
    sender = threading.Thread(target=_send, args=(waiting, connection), daemon=True)
    sender.start()
    try:
        model = from_pretrained(
            source.checkpoint,
            device=source.device,
            sampler=source.sampler,
            guidance=source.guidance,
        )
        for number in itertools.count(epoch):
            for places in units:
                seeds = [epoch_seed(plan.seeds[index], number) for index in places]
                image = draw_unit(model, plan.conditions.select(places), seeds).image
                assert image is not None
                waiting.put(((image + 1) * 127.5).round().byte().numpy())
    except Exception:
        waiting.put(traceback.format_exc())
        sender.join()


def _send(waiting: queue.Queue[Any], connection: Connection) -> None:
    """Send what is drawn, until it is told of an error."""
    drawn: Any = None
    while not isinstance(drawn, str):
        drawn = waiting.get()
        try:
            connection.send(drawn)
        except OSError:
            os._exit(1)  # nobody listens any more
