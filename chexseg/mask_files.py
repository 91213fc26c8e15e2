"""Masks JSON, the file between all stages, written and read as a stream: `{image_id: {task: {"size", "counts"}}}`.

Our own files hold one image a line, so that a million of them can be merged, sampled and read one by one:

    {
    "patient00001_study1_view1_frontal": {"Edema": {"size": [320, 320], "counts": "..."}, ...},
    ...
    }

Any other layout of the same JSON is read too, as one dictionary.
"""

import json
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from chexseg import masks
from chexseg.errors import DataError
from chexseg.shards import atomic

Masks = Mapping[str, Mapping]  # task -> run-length mask
_DECODER = json.JSONDecoder()


def _line(image_id: str, entry: Masks) -> str:
    plain = {task: {"size": [int(n) for n in rle["size"]], "counts": rle["counts"]} for task, rle in entry.items()}
    return f"{json.dumps(image_id)}: {json.dumps(plain)}"


def write(path: Path, entries: Iterable[tuple[str, Masks]]) -> int:
    """Write (image id, masks) pairs as they come; the file appears when it is whole. Returns how many."""
    count = 0
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write("{")
        for image_id, entry in entries:
            file.write(("," if count else "") + "\n" + _line(image_id, entry))
            count += 1
        file.write("\n}\n")
    return count


def write_part(entries: Sequence[tuple[str, Masks]], path: Path) -> None:
    """One shard for `shards.build`: the lines of some images."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(_line(image_id, entry) + "\n" for image_id, entry in entries)


def merge_parts(parts: Sequence[Path], path: Path) -> None:
    """Join shards in order: the same bytes as one `write` of all their images."""
    started = False
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("{")
        for part in parts:
            with open(part, encoding="utf-8", newline="\n") as lines:
                for line in lines:
                    file.write(("," if started else "") + "\n" + line.rstrip("\n"))
                    started = True
        file.write("\n}\n")


class MaskFile(Mapping[str, dict]):
    """A masks JSON as a mapping of image id -> {task: mask}; each image is parsed and checked when it is asked for.

    A file in our layout is memory-mapped and known by its lines' places (some 100 bytes an image); an instance may
    cross a fork or a spawn. Raises DataError that names file, image, task and value for a mask that is not one.
    """

    def __init__(self, path: Path, aliases: Mapping[str, str] | None = None):
        """`aliases` maps other names of a task to ours."""
        self.path, self.aliases = Path(path), dict(aliases or {})
        self._whole: dict[str, Mapping] = {}
        self._bytes: mmap.mmap | None = None
        try:
            data = self._map()
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such masks file") from error
        except ValueError as error:  # an empty file cannot be mapped
            raise DataError(f"{path}: the file is empty") from error
        lines = _index_lines(data)
        if lines is None:
            self._whole, lines = self._read_foreign(), ([], [])
        self._rows = {image_id: row for row, image_id in enumerate(lines[0])}
        self._places = np.array(lines[1], np.int64).reshape(-1, 2)
        if len(self._rows) < len(self._places):
            raise DataError(f"{path}: {_twice(lines[0])} occurs twice")

    def _map(self) -> mmap.mmap:
        """The file's bytes. A forked process shares the mapping, a spawned one makes its own."""
        if self._bytes is None:
            with open(self.path, "rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._bytes

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_bytes": None}

    def _read_foreign(self) -> dict:
        try:
            with open(self.path, encoding="utf-8") as file:
                content = json.load(file, object_pairs_hook=_distinct)
        except _Twice as error:
            raise DataError(f"{self.path}: {error} occurs twice") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path}: not whole JSON ({error}); fetch or make the file again") from error
        if not isinstance(content, dict):
            raise DataError(f"{self.path}: expected an object of image ids, found a {type(content).__name__}")
        return content

    def __len__(self) -> int:
        return len(self._rows) or len(self._whole)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows or self._whole)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._rows or image_id in self._whole

    def __getitem__(self, image_id: str) -> dict[str, dict]:
        if image_id in self._whole:
            return self._checked(image_id, self._whole[image_id])
        start, stop = self._places[self._rows[image_id]]
        try:
            entry = json.loads(self._map()[start:stop])
        except ValueError as error:
            raise DataError(f"{self.path}: {image_id}: damaged line ({error}); make the file again") from error
        return self._checked(image_id, entry)

    def _checked(self, image_id: str, entry: object) -> dict[str, dict]:
        if not isinstance(entry, dict):
            raise DataError(f"{self.path}: {image_id}: {str(entry)[:60]!r} is not an object of tasks")
        found = {}
        for name, rle in entry.items():
            task = self.aliases.get(name, name)
            if task in found:
                raise DataError(f"{self.path}: {image_id}: {task} occurs twice (also as {name!r})")
            found[task] = masks.check(rle, f"{self.path}: {image_id}: {name}")
        return found


class _Twice(Exception):
    """A name that stands twice in one JSON object."""


def _twice(names: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))


def _distinct(pairs: list[tuple[str, object]]) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise _Twice(_twice([name for name, _ in pairs]))
    return content


def _index_lines(data: mmap.mmap) -> tuple[list[str], list[int]] | None:
    """Image ids, and (start, stop) of each one's masks, for our layout; None for any other."""
    size = len(data)
    if data[:2] != b"{\n" or data[max(0, size - 3) :] != b"\n}\n":
        return None
    names: list[str] = []
    places: list[int] = []
    start, last = 2, size - 3
    while start <= last:
        end = data.find(b"\n", start)
        stop = end if end == last else end - 1
        if data[stop - 1 : stop] != b"}" or (end != last and data[stop : stop + 1] != b","):
            return None
        try:
            image_id, length = _key(data, start, stop)
        except ValueError:
            return None
        names.append(image_id)
        places += start + length + 2, stop
        start = end + 1
    return names, places


def _key(data: mmap.mmap, start: int, stop: int) -> tuple[str, int]:
    """The image id that a line begins with, and its length in bytes."""
    colon = data.find(b'": {', start, stop)
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


def read_polygons(path: Path, aliases: Mapping[str, str]) -> Iterator[tuple[str, tuple[int, int], dict[str, list]]]:
    """CheXlocalize's annotations: (image id, (height, width), {task: polygons}) of each image."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such annotation file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not whole JSON ({error}); fetch the file again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object of image ids, found a {type(content).__name__}")
    for image_id, entry in content.items():
        try:
            height, width = (int(n) for n in entry["img_size"])
        except (TypeError, KeyError, ValueError) as error:
            raise DataError(f"{path}: {image_id}: no img_size [height, width]") from error
        if height < 1 or width < 1:
            raise DataError(f"{path}: {image_id}: img_size cannot be {height} x {width}")
        polygons: dict[str, list] = {}
        for name, outlines in entry.items():
            if name != "img_size":
                if not isinstance(outlines, list):
                    raise DataError(f"{path}: {image_id}: {name}: {str(outlines)[:60]!r} is not a list of polygons")
                polygons.setdefault(aliases.get(name, name), []).extend(outlines)
        yield image_id, (height, width), polygons
