"""Files that are either whole or absent, whatever kills the writer."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from medgen.errors import OutputError

HOST = platform.node().replace(".", "-") or "host"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` only when it is whole: temporary file, fsync, rename.

    Missing folders are made. If anything fails, `path` stays as it was.

    Raises:
        OutputError: the folder is unwritable or full.
    """
    temporary = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A folder that becomes `folder` only when all that is written into it is whole.

    Raises:
        OutputError: `folder` holds something, is unwritable or full.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder}: is not an empty folder; choose another with --out")
    unfinished: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        yield unfinished
        unfinished.chmod(0o755)
        unfinished.replace(folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; a killed one lets go. A missing folder is made.

    Raises:
        OutputError: the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise unwritable(path, error) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sweep(folder: Path) -> None:
    """Remove what `replacing` left below a folder where a process of this machine was killed."""
    for file in folder.rglob(f".*.{HOST}.*.tmp"):
        process = file.name.split(".")[-2]
        if process.isdecimal() and not _alive(int(process)):
            with suppress(OSError):
                file.unlink()


def unwritable(path: Path, error: OSError) -> OutputError:
    """What to tell a user whose file cannot be written."""
    advice = "choose another folder with --out"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        advice = "free some space and run the same command again: it resumes"
    return OutputError(f"cannot write {path}: {error.strerror or error}; {advice}")


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file at once or not at all; missing folders are made.

    Raises:
        OutputError: the folder is unwritable or full.
    """
    with replacing(Path(path)) as file:
        file.write(content)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
