"""Masks JSON, the file between all stages, written and read as a stream: `{image_id: {task: {"size", "counts"}}}`.
The readers' polygons, `{image_id: {"img_size": [h, w], task: [[[x, y], ...], ...]}}`, are too.

Our own files hold one image a line, so that a million of them can be merged, sampled and read one by one:

    {
    "patient00001_study1_view1_frontal": {"Edema": {"size": [320, 320], "counts": "..."}, ...},
    ...
    }

Any other layout of the same JSON is read too, as one dictionary.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from chexseg.data import json_lines, names, rle
from chexseg.data.json_lines import ImageFile
from chexseg.data.mask_columns import MaskColumns
from chexseg.data.mask_sizes import check_room, check_size, is_size
from chexseg.errors import DataError

T = TypeVar("T")
Masks = Mapping[str, Mapping]  # task -> run-length mask
Polygons = dict[str, list]  # task -> polygons, each a list of (x, y) in pixels


def _text(entry: Masks) -> str:
    """The JSON of an image's masks. What a file told in the same form need not be looked at again: JSON only doubles
    the backslashes of its run lengths."""
    if all(type(coded) is rle.Vetted for coded in entry.values()):
        masks = [
            f'{_quoted(task)}: {{"size": {coded["size"]}, "counts": "{_doubled(coded["counts"])}"}}'
            for task, coded in entry.items()
        ]
        return f"{{{', '.join(masks)}}}"
    masks_ = {t: {"size": [int(n) for n in coded["size"]], "counts": coded["counts"]} for t, coded in entry.items()}
    return json.dumps(masks_)


_quoted = lru_cache(maxsize=1024)(json.dumps)


def _doubled(counts: str) -> str:
    return counts.replace("\\", "\\\\")


def write(path: Path, entries: Iterable[tuple[str, Masks]]) -> int:
    """Write (image id, masks) pairs as they come; the file appears when it is whole. Returns how many."""
    count = 0
    with json_lines.writer(path) as add:
        for image_id, entry in entries:
            add(image_id, _text(entry))
            count += 1
    return count


class MaskShards:
    """Shards of a masks JSON: records are (image id, masks by task), a shard is their lines. Merged, they are the same
    bytes as one `write` of all images."""

    def write(self, records: Sequence[tuple[str, Masks]], path: Path) -> None:
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(json_lines.line(image_id, _text(entry)) + "\n" for image_id, entry in records)

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
_MASK = (b": {", b"size", b": [h, w], ", b"counts", b": ", b"...")  # what follows a task, cut at the quotes
_MAX_PIXELS = 1 << 28  # of all masks of an image that is read the short way
_MAX_NAMES = 4096  # sets of tasks that are remembered


@lru_cache(maxsize=256)
def _size(text: bytes) -> tuple[int, int]:
    """Height and width as they are written; (0, 0) for what is no size."""
    match = _SIZE.fullmatch(text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    return size if is_size(*size) else (0, 0)


@dataclass(frozen=True)
class _Cut:
    """Lines with the same number of masks, cut: names of each line's tasks; sizes (lines, masks, 2); run lengths of
    each mask, line by line."""

    names: list[tuple[bytes, ...]]
    sizes: np.ndarray
    counts: list[bytes]


def _cut(lines: Sequence[bytes], quotes: int) -> _Cut | None:
    """Lines in the layout of `write`, each of so many quotes, cut at these; None where one has another layout, which
    may be as valid."""
    text = b'"'.join(lines)
    if backslashes := text.count(b"\\"):  # which JSON doubles
        if backslashes != 2 * text.count(b"\\\\"):
            return None
        text = text.replace(b"\\\\", b"\\")
    parts, step, number = text.split(b'"'), quotes + 1, len(lines)
    if parts[::step].count(b"{") < number or parts[quotes::step].count(b"}}") < number:
        return None
    for first in range(1, quotes, 8):
        for place, frame in enumerate(_MASK, first + 1):
            if place not in (first + 3, first + 6) and parts[place::step].count(frame) < number:
                return None
        if first > 1 and parts[first - 1 :: step].count(b"}, ") < number:
            return None

    def column(place: int) -> Iterator[tuple[bytes, ...]]:
        return zip(*(parts[first + place :: step] for first in range(1, quotes, 8)), strict=True)

    written = list(chain(*column(3)))
    if len(set(written)) == 1:
        sizes = np.tile(np.array(_size(written[0]), np.int64), (number, quotes // 8, 1))
    else:
        sizes = np.array([_size(text) for text in written], np.int64).reshape(number, -1, 2)
    if sizes.min() == 0 or sizes.prod(-1).sum(-1).max() > _MAX_PIXELS:
        return None
    return _Cut(list(column(0)), sizes, list(chain(*column(6))))


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
        found: dict[int, dict[str, dict]] = {}
        for rows, tasks, cut, areas in self._whole_lines(ids):
            sizes, areas_, step = cut.sizes.tolist(), areas.tolist(), areas.shape[1]
            for number, row in enumerate(rows):
                counts = cut.counts[number * step : (number + 1) * step]
                if tasks[number]:
                    masks = map(rle.vetted, sizes[number], counts, areas_[number])
                    found[row] = dict(zip(tasks[number], masks, strict=True))
        for row, image_id in enumerate(ids):
            yield found.get(row) or self[image_id]

    def columns(self, ids: Sequence[str], tasks: Sequence[str]) -> MaskColumns:
        """The masks of some images as arrays (see `mask_columns.read`)."""
        found, left = MaskColumns.empty(len(ids), len(tasks)), set(range(len(ids)))
        for rows, of_lines, cut, areas in self._whole_lines(ids):
            counts = np.array(cut.counts, object).reshape(areas.shape)
            for alike in set(of_lines) - {()}:
                numbers = [number for number, of_line in enumerate(of_lines) if of_line == alike]
                ours = [alike.index(task) for task in tasks if task in alike]
                to = np.ix_([rows[number] for number in numbers], [i for i, task in enumerate(tasks) if task in alike])
                of = np.ix_(numbers, ours)
                found.area[to], found.size[to], found.counts[to] = areas[of], cut.sizes[of], counts[of]
                left -= {rows[number] for number in numbers}
        for row in sorted(left):
            found.put(row, self[ids[row]], tasks)
        return found

    def show(self, ids: Iterable[str]) -> Iterator[bool]:
        """Whether an image has a mask with a pixel, for each of `ids`."""
        for block in json_lines.blocks(ids):
            found: dict[int, bool] = {}
            for rows, tasks, _, areas in self._whole_lines(block):
                shown = zip(rows, tasks, areas.max(1).tolist(), strict=True)
                found |= {row: area > 0 for row, of_line, area in shown if of_line}
            for row, image_id in enumerate(block):
                yield found[row] if row in found else bool(rle.area(list(self[image_id].values())).any())

    def _whole_lines(self, ids: Sequence[str]) -> Iterator[tuple[list[int], list[tuple[str, ...]], _Cut, np.ndarray]]:
        """Lines that look as `write` makes them are cut at their quotes, many at once, and their run lengths looked at
        together: rows of `ids`; our names of each one's tasks, none where something is wrong with its line; what stands
        in the lines; areas (rows, masks). What is left has another layout, or something is wrong with it."""
        lines = self._lines(ids)
        alike: dict[int, list[int]] = {}
        for row, line in enumerate(lines):
            alike.setdefault(line.count(b'"'), []).append(row)
        waiting = [(quotes, rows) for quotes, rows in alike.items() if quotes and quotes % 8 == 0]
        while waiting:
            quotes, rows = waiting.pop()
            cut = _cut([lines[row] for row in rows], quotes)
            if cut is None:
                waiting += [(quotes, [row]) for row in rows] if len(rows) > 1 else []  # it is one of them, perhaps
                continue
            areas = rle.areas(cut.sizes.prod(-1).reshape(-1), cut.counts).reshape(len(rows), -1)
            whole = areas.min(1) >= 0
            tasks = [
                self._tasks(of_line, ids[row]) if is_whole else ()
                for of_line, row, is_whole in zip(cut.names, rows, whole.tolist(), strict=True)
            ]
            yield rows, tasks, cut, areas

    def _tasks(self, names: tuple[bytes, ...], image_id: str) -> tuple[str, ...]:
        """Our names of an image's tasks, checked as those of any file; empty where that is to be done."""
        if names not in self._names:
            tasks: tuple[str, ...] = ()
            if len(self._names) < _MAX_NAMES and all(map(_NAME.fullmatch, names)):
                with suppress(DataError):  # which the image's own turn will tell
                    tasks = tuple(self._checked(image_id, {n.decode("ascii"): rle.empty((1, 1)) for n in names}))
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
