"""A JSON object of images written and read as a stream: one image a line, so that a million of them take no memory.

    {
    "patient00001_study1_view1_frontal": {...},
    ...
    }

Any other layout of the same JSON is read too, as one dictionary. What stands in the braces is `mask_files`' business.
"""

import json
import mmap
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from chexseg.data import names
from chexseg.errors import DataError, MissingError
from chexseg.runtime import plain_json
from chexseg.runtime.files import atomic

T = TypeVar("T")
_PLAIN = re.compile(rb'"[ !#-\[\]-~]*')  # a text that JSON holds as it is
BLOCK = 64  # images that `read` looks at together


def line(image_id: str, entry: Mapping | str) -> str:
    """An image's line, without a comma or an end. `entry` is what stands in it, or that as JSON."""
    return f"{json.dumps(image_id)}: {entry if isinstance(entry, str) else json.dumps(entry)}"


@contextmanager
def writer(path: Path) -> Iterator[Callable[[str, Mapping | str], None]]:
    """Give a function that writes one image's line; the file appears, whole, when the block ends without an error."""
    started = False
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:

        def add(image_id: str, entry: Mapping | str) -> None:
            nonlocal started
            file.write(("," if started else "") + "\n" + line(image_id, entry))
            started = True

        file.write("{")
        yield add
        file.write("\n}\n")


class ImageFile(Mapping[str, T]):
    """A JSON object of images as a mapping; each image is parsed and checked when it is asked for.

    A file in our layout is memory-mapped and known by its lines' places (some 100 bytes an image); an instance may
    cross a fork or a spawn. Raises DataError that names file, image, task and value for what is not as it should be.
    """

    what = "file"

    def __init__(self, path: Path, aliases: Mapping[str, str] | None = None):
        """`aliases` maps other names of a task to ours."""
        self.path = Path(path)
        self.aliases: dict[str, str] = dict(aliases or {})
        self._whole: dict[str, Mapping] = {}
        self._bytes: mmap.mmap | None = None
        try:
            data = self._map()
        except FileNotFoundError as error:
            raise MissingError(f"{path}: no such {self.what}") from error
        except ValueError as error:  # an empty file cannot be mapped
            raise DataError(f"{path}: the file is empty") from error
        lines = _index_lines(data)
        if lines is None:
            self._whole, lines = self._read_foreign(), ([], [])
        self._rows = {image_id: row for row, image_id in enumerate(lines[0])}
        self._places = np.array(lines[1], np.int64).reshape(-1, 2)
        if len(self._rows) < len(self._places):
            raise DataError(f"{path}: {names.twice(lines[0])} occurs twice")
        for image_id in self:
            names.check_id(image_id, path)

    def _map(self) -> mmap.mmap:
        """The file's bytes. A forked process shares the mapping, a spawned one makes its own."""
        if self._bytes is None:
            with open(self.path, "rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._bytes

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_bytes": None}

    def _read_foreign(self) -> dict:
        content = plain_json.parse(self._map()[:], self.path)
        if not isinstance(content, dict):
            raise DataError(f"{self.path}: expected an object of image ids, found a {type(content).__name__}")
        return content

    def __len__(self) -> int:
        return len(self._rows) or len(self._whole)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows or self._whole)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._rows or image_id in self._whole

    def __getitem__(self, image_id: str) -> T:
        return self._checked(image_id, self._parsed(image_id))

    def read(self, ids: Iterable[str]) -> Iterator[T]:
        """The entries of many images, in the order of `ids`: what `self[id]` gives, in less time."""
        for block in blocks(ids):
            yield from self._read_block(block)

    def _read_block(self, ids: Sequence[str]) -> Iterable[T]:
        return map(self.__getitem__, ids)

    def _lines(self, ids: Sequence[str]) -> list[bytes]:
        """The entries as they stand in the file; empty ones of a file that has another layout than ours."""
        if not self._rows:
            return [b""] * len(ids)
        data = self._map()
        places = self._places[[self._rows[image_id] for image_id in ids]].tolist()
        lines = [data[start:stop] for start, stop in places]
        data.madvise(mmap.MADV_DONTNEED)
        return lines

    def _parsed(self, image_id: str) -> Any:
        """The image's entry as it stands in the file."""
        if image_id in self._whole:
            return self._whole[image_id]
        start, stop = self._places[self._rows[image_id]]
        data = self._map()
        line = data[start:stop]
        data.madvise(mmap.MADV_DONTNEED)  # else all that was ever read counts as this process's memory
        return plain_json.parse(line, f"{self.path}: {image_id}: damaged line")

    @abstractmethod
    def _checked(self, image_id: str, entry: Any) -> T:
        """The image's entry in the one form that the rest of the code expects; DataError where it is not one."""


def blocks(ids: Iterable[str]) -> Iterator[list[str]]:
    """`ids` in the order that they have, `BLOCK` at a time."""
    rest = iter(ids)
    while block := list(islice(rest, BLOCK)):
        yield block


def read(images: Mapping[str, T], ids: Iterable[str]) -> Iterator[T]:
    """`images[id]` of each id, in order; of a file as fast as it can be read (`ImageFile.read`)."""
    return images.read(ids) if hasattr(images, "read") else map(images.__getitem__, ids)


def _index_lines(data: mmap.mmap) -> tuple[list[str], list[int]] | None:
    """Image ids, and (start, stop) of each one's masks, for our layout; None for any other."""
    size = len(data)
    if data[:2] != b"{\n" or data[max(0, size - 3) :] != b"\n}\n":
        return None
    ids: list[str] = []
    places: list[int] = []
    start, last, released = 2, size - 3, 0
    while start <= last:
        end = data.find(b"\n", start)
        stop = end if end == last else end - 1
        if data[stop - 1 : stop] != b"}" or (end != last and data[stop : stop + 1] != b","):
            return None
        try:
            image_id, length = _key(data, start, stop)
        except ValueError:
            return None
        ids.append(image_id)
        places += start + length + 2, stop
        start = end + 1
        if start - released > 1 << 20:  # what was looked at need not stay in memory
            data.madvise(mmap.MADV_DONTNEED)
            released = start
    return ids, places


def _key(data: mmap.mmap, start: int, stop: int) -> tuple[str, int]:
    """The image id that a line begins with, and its length in bytes."""
    colon = data.find(b'": {', start, stop)
    if colon >= 0 and _PLAIN.fullmatch(plain := data[start:colon]):
        return plain[1:].decode("ascii"), colon + 1 - start
    while colon >= 0:
        try:
            key = json.loads(data[start : colon + 1])
        except ValueError:  # an escaped quote inside the id
            colon = data.find(b'": {', colon + 1, stop)
            continue
        if isinstance(key, str):
            return key, colon + 1 - start
        break
    raise ValueError("no image id")
