"""Masks as COCO annotations, which CVAT, FiftyOne, Label Studio and pycocotools read, and back.

One category a task; one annotation for each image and task that has a pixel. What COCO itself cannot say, which tasks
were looked for and are absent, stands where LVIS puts it: an image's `neg_category_ids`. A task with neither an
annotation nor a place in that list is unknown. An image's id in a masks JSON stands in its field `name`, beside the
`file_name` that annotation tools look for; a file of another tool has ids by its file names (`image_folder`).

With `segmentation="rle"` a mask is COCO's compressed run lengths, with `polygons` it is a list of polygons along its
pixels' edges, which also those tools edit that know no run lengths. Both come back to the pixel.
"""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from pycocotools import mask as coco

from chexseg.data import image_folder, outlines, rle
from chexseg.data.mask_files import Masks
from chexseg.data.mask_sizes import check_room, check_size, common_size
from chexseg.data.names import check_id, check_task
from chexseg.errors import DataError
from chexseg.runtime import plain_json
from chexseg.runtime.files import atomic

log = logging.getLogger(__name__)
SEGMENTATIONS = ("rle", "polygons")


def write(
    path: Path,
    entries: Iterable[tuple[str, Masks]],
    tasks: Sequence[str],
    *,
    segmentation: str = "rle",
    file_names: Mapping[str, str] | None = None,
) -> int:
    """Write (image id, masks) pairs as they come; returns how many images.

    `tasks` take the categories 1, 2, ...; other tasks follow as they turn up. `file_names` says what an image's file is
    called, by id; else it is the id with the suffix .jpg.
    """
    categories = {task: number for number, task in enumerate(tasks, 1)}
    seen: set[str] = set()
    count = annotated = 0
    # Images and annotations are two lists of one file: the second grows beside the first.
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        with TemporaryFile("w+", encoding="utf-8", newline="\n", dir=path.parent) as second:
            file.write('{"info": {"description": "CheXseg masks"}, "licenses": [],\n"images": [')
            for image_id, entry in entries:
                height, width = common_size(entry, f"{path}: {image_id}")
                numbers = [categories.setdefault(task, len(categories) + 1) for task in entry]
                areas, boxes = rle.area(list(entry.values())), coco.toBbox(list(entry.values()))
                absent = []
                count += 1
                for number, mask, area, box in zip(numbers, entry.values(), areas, boxes, strict=True):
                    if not area:
                        absent.append(number)
                        continue
                    annotated += 1
                    annotation = {
                        "id": annotated,
                        "image_id": count,
                        "category_id": number,
                        "segmentation": _polygons(mask) if segmentation == "polygons" else _plain(mask),
                        "area": int(area),
                        "bbox": box.tolist(),
                        "iscrowd": 0,
                    }
                    second.write(("," if annotated > 1 else "") + "\n" + json.dumps(annotation))
                seen.update(entry)
                named = (file_names or {}).get(image_id, image_folder.file_stem(image_id) + ".jpg")
                image = {"id": count, "name": image_id, "file_name": named, "width": width, "height": height}
                line = json.dumps(image | {"neg_category_ids": absent})
                file.write(("," if count > 1 else "") + "\n" + line)
            file.write('\n],\n"annotations": [')
            second.seek(0)
            shutil.copyfileobj(second, file)
        used = [
            {"id": number, "name": task, "supercategory": ""} for task, number in categories.items() if task in seen
        ]
        file.write('\n],\n"categories": ' + json.dumps(used) + "}\n")
    return count


def _plain(mask: Mapping) -> dict:
    return {"size": [int(n) for n in mask["size"]], "counts": mask["counts"]}


def _polygons(mask: Mapping) -> list[list[int]]:
    return [loop.ravel().tolist() for loop in outlines.along_edges(rle.decode([mask])[0])]


class CocoFile(Mapping[str, dict[str, dict]]):
    """A COCO file as a mapping of image id -> {task: mask}. The file is held in memory.

    An image without `neg_category_ids` does not say which of its categories are absent: they are unknown, or absent
    with `unlisted_absent`. Annotations of one image and category are one mask. DataError names file, annotation and
    value for what is not as it should be.
    """

    def __init__(self, path: Path, aliases: Mapping[str, str], *, unlisted_absent: bool = False):
        self.path, self.unlisted_absent = Path(path), unlisted_absent
        content = _load(self.path)
        names = {_key(c, "id", self.path): _text(c, "name", self.path) for c in content["categories"]}
        self._tasks = {number: check_task(aliases.get(name, name), path) for number, name in names.items()}
        if len(names) < len(content["categories"]):
            raise DataError(f"{path}: two categories have one id")
        if len(set(self._tasks.values())) < len(names):
            raise DataError(f"{path}: two categories have one name; categories: {', '.join(names.values())[:200]}")
        self._images: dict[str, dict] = {}
        ids: dict[Any, str] = {}
        for image in content["images"]:
            number = _key(image, "id", self.path)
            name = image["name"] if "name" in image else _text(image, "file_name", self.path)
            if not isinstance(name, str):
                raise DataError(f"{path}: image {number}: name {str(name)[:60]!r} is not a text")
            name = name if "name" in image else image_folder.image_id(PurePosixPath(name.replace("\\", "/")))
            check_id(name, path)
            if number in ids or name in self._images:
                raise DataError(f"{path}: image {number}, {name!r}, occurs twice")
            ids[number] = name
            self._images[name] = image
        self._annotations: dict[str, list[dict]] = {name: [] for name in self._images}
        for annotation in content["annotations"]:
            number = _key(annotation, "image_id", self.path)
            if number not in ids:
                raise DataError(
                    f"{path}: annotation {annotation.get('id')!r} is of image {number!r}: no image has that id"
                )
            self._annotations[ids[number]].append(annotation)
        silent = sum("neg_category_ids" not in image for image in self._images.values())
        if silent and not unlisted_absent:
            log.warning(
                "%s: %d of %d images have no neg_category_ids: a category without an annotation counts there as "
                "unknown; with --unlisted absent it counts as absent",
                path,
                silent,
                len(self._images),
            )

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[str]:
        return iter(self._images)

    def __getitem__(self, image_id: str) -> dict[str, dict]:
        image = self._images[image_id]
        where = f"{self.path}: {image_id}"
        size = check_size((image.get("height"), image.get("width")), where)
        absent = image.get("neg_category_ids")
        if absent is None:
            absent = list(self._tasks) if self.unlisted_absent else []
        if not isinstance(absent, list):
            raise DataError(f"{where}: neg_category_ids {str(absent)[:60]!r} is not a list")
        parts: dict[str, list[dict]] = {}
        for annotation in self._annotations[image_id]:
            named = f"{where}: annotation {annotation.get('id')!r}"
            task = self._task(annotation.get("category_id"), named)
            parts.setdefault(task, []).append(_mask(annotation.get("segmentation"), size, named))
        nothing = rle.empty(size)
        known = {*parts, *(self._task(number, where) for number in absent)}
        check_room([size] * len(known), where)
        masks = {}
        for task in (task for task in self._tasks.values() if task in known):
            merged = coco.merge(parts[task]) if task in parts else nothing
            counts = merged["counts"]
            masks[task] = {"size": list(size), "counts": counts.decode() if isinstance(counts, bytes) else counts}
        return masks

    def _task(self, number: Any, where: str) -> str:
        try:
            return self._tasks[number]
        except (KeyError, TypeError) as error:
            raise DataError(f"{where}: category {str(number)[:60]!r} is not in the file's categories") from error


def _mask(segmentation: Any, size: tuple[int, int], where: str) -> dict:
    """A segmentation, polygons or run lengths, as pycocotools' run lengths."""
    if isinstance(segmentation, Mapping):
        found = rle.check(segmentation, where)
        if tuple(found["size"]) != size:
            raise DataError(f"{where}: a mask of {found['size']} in an image of {list(size)} (height, width)")
        return {"size": found["size"], "counts": found["counts"].encode()}
    try:
        polygons = [np.asarray(polygon, np.float64) for polygon in segmentation]
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{where}: segmentation {str(segmentation)[:60]!r} is no mask and no list of polygons"
        ) from error
    reach = max(size)
    for polygon in polygons:
        if polygon.ndim != 1 or len(polygon) < 6 or len(polygon) % 2:
            raise DataError(f"{where}: a polygon is x, y, x, y, ... of three points or more, not {polygon.shape}")
        if not np.isfinite(polygon).all() or np.abs(polygon).max() > 3 * reach:
            raise DataError(f"{where}: a polygon reaches far out of its image of {list(size)} (height, width)")
    if not polygons:
        raise DataError(f"{where}: no segmentation; a box alone is no mask")
    return coco.merge(coco.frPyObjects([polygon.tolist() for polygon in polygons], *size))


def _load(path: Path) -> dict[str, list]:
    try:
        content = plain_json.parse(Path(path).read_bytes(), path, "fetch or export the file again")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    for key in ("images", "annotations", "categories"):
        records = content.get(key) if isinstance(content, dict) else None
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise DataError(f"{path}: not a COCO file: it has no list of {key}")
    return content


def _key(record: Mapping, key: str, path: Path) -> int | str:
    value = record.get(key)
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise DataError(f"{path}: {key} {str(value)[:60]!r} is neither a number nor a text, in {str(record)[:80]}")
    return value


def _text(record: Mapping, key: str, path: Path) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise DataError(f"{path}: {key} {str(value)[:60]!r} is not a text, in {str(record)[:80]}")
    return value
