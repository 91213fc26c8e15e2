"""Masks JSON, the file between all stages, written and read as a stream: `{image_id: {task: {"size", "counts"}}}`.
The readers' polygons, `{image_id: {"img_size": [h, w], task: [[[x, y], ...], ...]}}`, are too.

Our own files hold one image a line, so that a million of them can be merged, sampled and read one by one:

    {
    "patient00001_study1_view1_frontal": {"Edema": {"size": [320, 320], "counts": "..."}, ...},
    ...
    }

Any other layout of the same JSON is read too, as one dictionary.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from chexseg.data import json_lines, names, rle
from chexseg.data.json_lines import ImageFile
from chexseg.data.mask_sizes import check_room, check_size, is_size
from chexseg.errors import DataError

T = TypeVar("T")
Masks = Mapping[str, Mapping]  # task -> run-length mask
Polygons = dict[str, list]  # task -> polygons, each a list of (x, y) in pixels


def _plain(entry: Masks) -> dict[str, dict]:
    return {task: {"size": [int(n) for n in coded["size"]], "counts": coded["counts"]} for task, coded in entry.items()}


def write(path: Path, entries: Iterable[tuple[str, Masks]]) -> int:
    """Write (image id, masks) pairs as they come; the file appears when it is whole. Returns how many."""
    count = 0
    with json_lines.writer(path) as add:
        for image_id, entry in entries:
            add(image_id, _plain(entry))
            count += 1
    return count


class MaskShards:
    """Shards of a masks JSON: records are (image id, masks by task), a shard is their lines. Merged, they are the same
    bytes as one `write` of all images."""

    def write(self, records: Sequence[tuple[str, Masks]], path: Path) -> None:
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(json_lines.line(image_id, _plain(entry)) + "\n" for image_id, entry in records)

    def merge(self, parts: Sequence[Path], path: Path) -> None:
        started = False
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write("{")
            for part in parts:
                with open(part, encoding="utf-8", newline="\n") as lines:
                    for line in lines:
                        file.write(("," if started else "") + "\n" + line.rstrip("\n"))
                        started = True
            file.write("\n}\n")


_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9 _()-]{0,98}[A-Za-z0-9)]")
_SIZE = re.compile(rb": \[([1-9]\d{0,5}), ([1-9]\d{0,5})\], ")
_FRAME = ({b": {"}, {b"size"}, {b"counts"}, {b": "})
_MAX_PIXELS = 1 << 28  # of all masks of an image that is read the short way


@lru_cache(maxsize=256)
def _size(text: bytes) -> tuple[int, int] | None:
    match = _SIZE.fullmatch(text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    return size if is_size(*size) else None


def _cut(line: bytes) -> tuple[tuple[bytes, ...], list[tuple[int, int]], list[bytes]] | None:
    """Tasks, sizes and counts of a line in the layout of `write`; None of any other, which may be as valid."""
    if b"\\" in line:  # which JSON doubles
        if b"\\" in line.replace(b"\\\\", b""):
            return None
        line = line.replace(b"\\\\", b"\\")
    parts = line.split(b'"')
    if len(parts) % 8 != 1 or len(parts) < 9 or (parts[0], parts[-1]) != (b"{", b"}}"):
        return None
    if (set(parts[2::8]), set(parts[3::8]), set(parts[5::8]), set(parts[6::8])) != _FRAME:
        return None
    if len(parts) > 9 and set(parts[8:-1:8]) != {b"}, "}:
        return None
    sizes = [size for size in map(_size, parts[4::8]) if size]
    if len(sizes) != len(parts) // 8 or sum(height * width for height, width in sizes) > _MAX_PIXELS:
        return None
    return tuple(parts[1::8]), sizes, parts[7::8]


class _TaskFile(ImageFile[T]):
    """A file whose images have an entry for each task."""

    def _task(self, name: str, image_id: str, others: Mapping) -> str:
        """Our name of a task. DataError for one that is no name, or stands in the image's entry twice."""
        task = self.aliases.get(name, name)
        if task in others:
            raise DataError(f"{self.path}: {image_id}: {task} occurs twice (also as {name!r}); keep one of them")
        return names.check_task(task, f"{self.path}: {image_id}")


class MaskFile(_TaskFile[dict[str, dict]]):
    """A masks JSON as a mapping of image id -> {task: mask}."""

    what = "masks file"

    def __init__(self, path: Path, aliases: Mapping[str, str] | None = None):
        self._names: dict[tuple[bytes, ...], tuple[str, ...]] = {}
        super().__init__(path, aliases)

    def _read_block(self, ids: Sequence[str]) -> Iterator[dict[str, dict]]:
        """Lines that look as `write` makes them are cut at their quotes, and their run lengths looked at together."""
        cut = [_cut(line) for line in self._lines(ids)]
        sizes = [size for parts in cut if parts for size in parts[1]]
        counts = [each for parts in cut if parts for each in parts[2]]
        areas, first = rle.areas(sizes, counts).tolist(), 0
        for image_id, parts in zip(ids, cut, strict=True):
            masks: dict[str, dict] = {}
            if parts:
                names, first, begin = self._tasks(parts[0], image_id), first + len(parts[0]), first
                if names and min(areas[begin:first]) >= 0:
                    for name, (height, width), coded, area in zip(names, *parts[1:], areas[begin:first], strict=True):
                        masks[name] = mask = rle.Vetted(size=[height, width], counts=coded.decode("ascii"))
                        mask.area = area
            yield masks or self[image_id]

    def _tasks(self, names: tuple[bytes, ...], image_id: str) -> tuple[str, ...]:
        """Our names of an image's tasks, checked as those of any file; empty where that is to be done."""
        if names not in self._names:
            self._names[names] = ()
            if all(map(_NAME.fullmatch, names)):
                entry = {name.decode("ascii"): rle.empty((1, 1)) for name in names}
                tasks = tuple(self._checked(image_id, entry))
                self._names[names] = tasks if len(tasks) == len(names) else ()
        return self._names[names]

    def _checked(self, image_id: str, entry: Any) -> dict[str, dict]:
        if not isinstance(entry, dict):
            raise DataError(f"{self.path}: {image_id}: {str(entry)[:60]!r} is not an object of tasks")
        masks: dict[str, dict] = {}
        for name, coded in entry.items():
            masks[self._task(name, image_id, masks)] = rle.check(coded, f"{self.path}: {image_id}: {name}")
        check_room((mask["size"] for mask in masks.values()), f"{self.path}: {image_id}")
        return masks


class PointFile(_TaskFile[dict[str, list[tuple[float, float]]]]):
    """A reader's most representative points, CheXlocalize's hb_salient_pt_*.json, as a mapping of image id ->
    {task: [(x, y), ...]} in pixels."""

    what = "file of points"

    def _checked(self, image_id: str, entry: Any) -> dict[str, list[tuple[float, float]]]:
        try:
            points: dict[str, list[tuple[float, float]]] = {}
            for name, given in entry.items():
                if name != "img_size":
                    points[self._task(name, image_id, points)] = [(float(x), float(y)) for x, y in given]
            if not all(math.isfinite(value) for given in points.values() for point in given for value in point):
                raise ValueError("a coordinate is not a number")
        except (AttributeError, TypeError, ValueError) as error:
            raise DataError(f"{self.path}: {image_id}: not points by task {{task: [[x, y], ...]}} ({error})") from error
        return points


class PolygonFile(_TaskFile[tuple[tuple[int, int], Polygons]]):
    """A reader's outlines, CheXlocalize's or ours, as a mapping of image id -> (height, width), {task: polygons}."""

    what = "annotation file"

    def _checked(self, image_id: str, entry: Any) -> tuple[tuple[int, int], Polygons]:
        if not isinstance(entry, dict) or "img_size" not in entry:
            raise DataError(f"{self.path}: {image_id}: no img_size [height, width]")
        size = check_size(entry["img_size"], f"{self.path}: {image_id}: img_size")
        polygons: Polygons = {}
        for name, outlines in entry.items():
            if name != "img_size":
                if not isinstance(outlines, list):
                    raise DataError(
                        f"{self.path}: {image_id}: {name}: {str(outlines)[:60]!r} is not a list of polygons"
                    )
                polygons[self._task(name, image_id, polygons)] = outlines
        check_room([size] * len(polygons), f"{self.path}: {image_id}")
        return size, polygons
