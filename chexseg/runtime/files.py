"""Files that are whole or not there: atomic writing, locks, and what a kill left behind. Linux and macOS (`fcntl`)."""

import errno
import fcntl
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO

from chexseg.errors import DataError
from chexseg.runtime import distributed

# What PyTorch, HDF5 and others say of a disk that is full, in errors that have no number.
_NOT_WRITTEN = (
    "inline_container",
    "iostream error",
    "Can't decrement id ref count",
    "file write failed",
    "No space left on device",
    "Disk quota exceeded",
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NODE = re.sub(r"\W", "_", platform.node())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What is written in the block goes to `path`: an error of a full disk becomes a DataError that says so."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DataError) or not _is_full(error):
            raise
        said = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise DataError(
            f"{path}: could not be written{said}; is the disk full, or a quota reached?{_free(Path(path))} "
            "Make room and run the same command again"
        ) from error


def _is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, is that of a full disk."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if isinstance(error, (OSError, RuntimeError)) and any(sign in str(error) for sign in _NOT_WRITTEN):
            return True
        error = error.__cause__ or error.__context__
    return False


def _free(path: Path) -> str:
    """How much room there is, for people; empty where nobody knows."""
    try:
        existing = next(parent for parent in path.absolute().parents if parent.exists())
        return f" {shutil.disk_usage(existing).free / 1e6:.1f} MB are free."
    except (OSError, StopIteration):
        return ""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success flush it to disk and rename it, on any error remove it."""
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent.absolute())
        temporary = path.with_name(f".{path.name}.{_NODE}-{os.getpid()}.tmp")
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def replace(path: Path, data: bytes) -> None:
    """Write one of many small files, whole or not at all for whoever looks at the name; not flushed to disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@cache
def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files left by dead processes on this host, once per folder."""
    for path in folder.glob(f".*.{_NODE}-*.tmp"):
        number = path.name.removesuffix(".tmp").rpartition("-")[2]
        if number.isdecimal() and not _is_alive(int(number)):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold `path` as a lock file, rank 0 on behalf of all ranks. A second run waits, or is refused with a DataError."""
    if not distributed.is_main():
        yield
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "a")
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise DataError(f"{path}: another run is writing here; wait for it to end, or stop it") from error
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)
    # The file stays: removing it would let two later runs lock two different files of this name.


_held: set[IO] = set()


def _let_go() -> None:
    """In a forked worker, which may outlive a killed run by seconds: it must not hold the run's locks."""
    for file in _held:
        os.close(file.fileno())
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def check_room(path: Path, size: int) -> None:
    """Reserve `size` bytes at `path`, or raise OSError: HDF5 fails badly when a disk fills up in mid-file."""
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    with open(path, "wb") as file:
        file.truncate(size)


def remove_temporaries(path: Path) -> None:
    """Remove temporary files for `path` that a kill left, on whatever machine. Only under the lock of `path`."""
    for other in path.parent.iterdir():
        if re.fullmatch(rf"\.{re.escape(path.name)}\.[\w-]+\.tmp", other.name):
            other.unlink(missing_ok=True)
