"""HDF5 files written so that a full disk is an error like any other.

The HDF5 library keeps parts of a file in memory until it is closed, and crashes the interpreter where it cannot write
them then. So it writes to a file object in which writing never fails: what finds no room is kept in memory, the block
ends at the next `check`, and the library closes a file that it believes to be whole. The caller removes that file.
"""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py


class _Output(io.RawIOBase):
    """A new file at `path`. `error` is the first one of writing; from there on what is written stays in memory."""

    def __init__(self, path: Path):
        self._file = open(path, "w+b", buffering=0)
        self._position = self._length = 0
        self._kept: list[tuple[int, bytes]] = []
        self.error: OSError | None = None

    def _attempt(self, write: Callable[[], Any]) -> None:
        if self.error is None:
            try:
                write()
            except OSError as error:
                self.error = error

    def write(self, data: Any) -> int:
        content = memoryview(data).cast("B")

        def write() -> None:
            done = 0
            while done < len(content):
                done += os.pwrite(self._file.fileno(), content[done:], self._position + done)

        self._attempt(write)
        if self.error is not None:
            self._kept.append((self._position, bytes(content)))
        self._position += len(content)
        self._length = max(self._length, self._position)
        return len(content)

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        start, count = self._position, max(0, min(len(target), self._length - self._position))
        content = os.pread(self._file.fileno(), count, start).ljust(count, b"\0")
        target[:count] = content
        for place, kept in self._kept:
            first, last = max(start, place), min(start + count, place + len(kept))
            if first < last:
                target[first - start : last - start] = kept[first - place : last - place]
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self._length = self._position if size is None else size
        self._attempt(lambda: os.truncate(self._file.fileno(), self._length))
        return self._length

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self.error = self.error or error
        super().close()

    def check(self) -> None:
        if self.error is not None:
            raise self.error


@contextmanager
def create(path: Path) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """Give a new HDF5 file at `path`, and a function to call after every few megabytes: it raises the OSError of a disk
    that is full, as the end of the block does."""
    with _Output(path) as output:
        with h5py.File(output, "w") as file:
            yield file, output.check
        output.check()
    output.check()
