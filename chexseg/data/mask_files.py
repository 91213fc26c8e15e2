"""Masks JSON, the file between all stages, written and read as a stream: `{image_id: {task: {"size", "counts"}}}`.
The readers' polygons, `{image_id: {"img_size": [h, w], task: [[[x, y], ...], ...]}}`, are too.

Our own files hold one image a line, so that a million of them can be merged, sampled and read one by one:

    {
    "patient00001_study1_view1_frontal": {"Edema": {"size": [320, 320], "counts": "..."}, ...},
    ...
    }

Any other layout of the same JSON is read too, as one dictionary.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from chexseg.data import json_lines, names, rle
from chexseg.data.json_lines import ImageFile
from chexseg.data.mask_sizes import check_room, check_size
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

    def _look_ahead(self, entries: Sequence[Any]) -> None:
        objects = [entry for entry in entries if isinstance(entry, dict)]
        vetted = iter(rle.vet(coded for entry in objects for coded in entry.values()))
        for entry in objects:
            entry.update(zip(entry, vetted))  # noqa: B905 (as many as the entry has)

    def _checked(self, image_id: str, entry: Any) -> dict[str, dict]:
        if not isinstance(entry, dict):
            raise DataError(f"{self.path}: {image_id}: {str(entry)[:60]!r} is not an object of tasks")
        masks: dict[str, dict] = {}
        for name, coded in entry.items():
            masks[self._task(name, image_id, masks)] = rle.check(coded, f"{self.path}: {image_id}: {name}")
        check_room((mask["size"] for mask in masks.values()), f"{self.path}: {image_id}")
        return masks


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
