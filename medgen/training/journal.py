"""What a run tells while it trains: `log.jsonl`, TensorBoard, a progress bar on stderr."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medgen.disk import replacing, unwritable


class Journal:
    """Writes one JSON object a line, mirrors numbers to TensorBoard and moves a progress bar.

    The log holds no clock times: a resumed run leaves the very log of an uninterrupted one.

    Args:
        path: `log.jsonl`; lines of steps after `step` are cut off, they will come again.
        step: steps done so far.
        images: images seen so far.
        total: images of the whole run.
        title: what the progress bar calls the run.
        progress: show the bar.
    """

    def __init__(
        self,
        path: Path,
        *,
        step: int,
        images: int,
        total: int,
        title: str = "training",
        progress: bool = True,
    ) -> None:
        self.path = path
        lines = _kept(path, step)
        with replacing(path) as handle:
            handle.write(b"".join(lines))
        self._file = path.open("ab")
        self._board = _board(path.parent / "tensorboard", images)
        self._bar = _Bar(title, total, images) if progress else None

    def write(
        self, step: int, images: int, **values: float | Sequence[float | None] | None
    ) -> None:
        """Append a line.

        Args:
            step: steps done, counted from 1.
            images: images seen.
            values: what was measured; lists are logged element by element.

        Raises:
            OutputError: the log cannot be written.
        """
        line = {"step": step, "images": images, **values}
        try:
            self._file.write((json.dumps(_finite(line), allow_nan=False) + "\n").encode())
            self._file.flush()
        except OSError as error:
            raise unwritable(self.path, error) from error
        if self._board is not None:
            self._mirror(self._board, images, values)
        if self._bar is not None:
            self._bar.move(images, values.get("loss"))

    def _mirror(self, board: Any, images: int, values: Mapping[str, Any]) -> None:
        try:
            for name, value in _flat(values).items():
                board.add_scalar(name, value, images)
        except OSError as error:
            raise unwritable(self.path.parent / "tensorboard", error) from error

    def sync(self) -> None:
        """Make sure that the lines are on disk, before a state that counts on them is saved.

        Raises:
            OutputError: the log cannot be written.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the log, TensorBoard and the bar."""
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._bar is not None:
            self._bar.close()


class _Bar:
    def __init__(self, title: str, total: int, images: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} images, loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            refresh_per_second=2,
        )
        self._task = self._progress.add_task(title, total=total, completed=images, loss="-")
        self._progress.start()

    def move(self, images: int, loss: object) -> None:
        """Show the images seen and the newest loss."""
        self._progress.update(self._task, completed=images)
        if isinstance(loss, float):
            self._progress.update(self._task, loss=f"{loss:.4f}")

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._progress.stop()


def _kept(path: Path, step: int) -> list[bytes]:
    """The lines up to `step`, without a torn last one."""
    kept: list[bytes] = []
    if not path.is_file():
        return kept
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept.append(line)
    return kept


def _board(folder: Path, images: int) -> Any:
    """A TensorBoard writer that forgets what a killed run wrote after `images`; None without it."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=images + 1, flush_secs=30)


def _finite(value: Any) -> Any:
    """NaN and infinity, which JSON lacks, become null; an fp16 step that was left out has them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _flat(values: Mapping[str, Any]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, list | tuple):
            flat.update({f"{name}/{i}": v for i, v in enumerate(value) if v is not None})
        elif value is not None:
            flat[name] = value
    return flat
