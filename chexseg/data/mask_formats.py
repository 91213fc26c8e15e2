"""Masks JSON and what other tools read: each format is read as image id -> {task: mask}, and written from it.

    masks      masks JSON, the file between all stages
    polygons   CheXlocalize's polygons JSON: exact to the pixel (`outlines`)
    coco       COCO annotations JSON (`coco_files`): exact
    png        a folder of label PNGs (`label_images`): exact
    dicom      a folder of DICOM SEG files (`dicom_seg`): exact

In every one a task can be absent (an empty mask) or unknown (no mask). Files of other tools often cannot tell the two
apart; what they leave out is unknown unless `unlisted_absent` is given.
"""

import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from chexseg.data.mask_sizes import check_size, common_size
from chexseg.errors import DataError
from chexseg.runtime.files import locked

log = logging.getLogger(__name__)
FORMATS = ("masks", "polygons", "coco", "png", "dicom")

Source = Mapping[str, Mapping[str, Mapping]]  # image id -> task -> run-length mask


def read(
    kind: str, path: Path, aliases: Mapping[str, str], tasks: Sequence[str], *, unlisted_absent: bool = False
) -> Source:
    """The masks of a file or folder, each image read when it is asked for. `tasks`: those that are absent where a
    polygons JSON leaves them out, with `unlisted_absent`."""
    if kind == "masks":
        from chexseg.data.mask_files import MaskFile

        return MaskFile(path, aliases)
    if kind == "polygons":
        return PolygonMasks(path, aliases, tasks if unlisted_absent else ())
    if kind == "coco":
        from chexseg.data.coco_files import CocoFile

        return CocoFile(path, aliases, unlisted_absent=unlisted_absent)
    if kind == "png":
        from chexseg.data.label_images import LabelImages

        return LabelImages(path, aliases)
    from chexseg.data.dicom_seg import SegFiles

    return SegFiles(path, aliases)


def guess(path: Path) -> str:
    """Which of the JSON formats a file seems to have, from its first words; `masks` where nothing tells."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            start = file.read(1 << 16)
    except OSError:
        return "masks"  # whose reader says what is wrong
    if re.match(r'\s*\{\s*"((images|annotations|categories|licenses)"\s*:\s*\[|info"\s*:\s*\{[^{}]*\}\s*,)', start):
        return "coco"
    return "polygons" if re.match(r'\s*\{\s*"([^"\\]|\\.)*"\s*:\s*\{\s*"([^"\\]|\\.)*"\s*:\s*\[', start) else "masks"


class PolygonMasks(Mapping[str, dict[str, dict]]):
    """A polygons JSON as a mapping of image id -> {task: mask}. `absent`: tasks that get an empty mask where an image
    does not list them."""

    def __init__(self, path: Path, aliases: Mapping[str, str], absent: Sequence[str] = ()):
        from chexseg.data.mask_files import PolygonFile

        self.path, self.file, self.absent = path, PolygonFile(path, aliases), tuple(absent)

    def __len__(self) -> int:
        return len(self.file)

    def __iter__(self) -> Iterator[str]:
        return iter(self.file)

    def __getitem__(self, image_id: str) -> dict[str, dict]:
        from chexseg.data import rle

        size, polygons = self.file[image_id]
        where = f"{self.file.path}: {image_id}"
        check_size(size, where)
        polygons = polygons | {task: [] for task in self.absent if task not in polygons}
        return {
            task: rle.encode(rle.from_polygons(outlines, size, f"{where}: {task}")[None])[0]
            for task, outlines in polygons.items()
        }


class OnlyTasks(Mapping[str, dict[str, Mapping]]):
    """The masks of some tasks: what nobody drew may stand in a file as empty masks, which would say absent."""

    def __init__(self, source: Source, tasks: Sequence[str]):
        self.source, self.tasks = source, frozenset(tasks)

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __getitem__(self, image_id: str) -> dict[str, Mapping]:
        return {task: mask for task, mask in self.source[image_id].items() if task in self.tasks}


def polygons_entry(entry: Mapping[str, Mapping], where: str) -> dict[str, Any]:
    """The masks of an image as its record of a polygons JSON."""
    from chexseg.data import outlines, rle

    if "img_size" in entry:
        raise DataError(f"{where}: no task can be called 'img_size' in a polygons JSON")
    loops = {task: outlines.through_centres(rle.decode([mask])[0]) for task, mask in entry.items()}
    size = list(common_size(entry, where))
    return {"img_size": size, **{task: [loop.tolist() for loop in found] for task, found in loops.items()}}


def write(
    kind: str,
    path: Path,
    source: Source,
    tasks: Sequence[str],
    *,
    images: Mapping[str, Path] | None = None,
    image_names: Mapping[str, str] | None = None,
    layout: str = "folders",
    segmentation: str = "rle",
    keep_patient: bool = False,
    manual: bool = False,
    num_workers: int = 0,
) -> int:
    """Write all images of `source`, each read when its turn comes; returns how many. The file or folder appears when it
    is whole.

    images: their files by id, for `dicom`, of which those that are DICOM are referred to; image_names: their paths by
    id, for `coco`; layout: of `png`; segmentation: of `coco`; keep_patient, manual: of `dicom`. An image of which no
    task is known has no size, which only `masks` does without: it is left out, and a log line says how many are.
    """
    from chexseg.data import json_lines, mask_files
    from chexseg.runtime.workers import ordered_map

    ids, left_out = list(source), 0

    def made(function) -> Iterator[tuple[str, Any]]:
        nonlocal left_out
        for image_id, result in zip(ids, ordered_map(function, ids, num_workers), strict=True):
            if result is None:
                left_out += 1
            else:
                yield image_id, result

    if kind == "masks":
        count = mask_files.write(path, made(source.__getitem__))
    elif kind == "polygons":
        count = 0
        with json_lines.writer(path) as add:
            for image_id, entry in made(partial(_as_polygons, source, path)):
                add(image_id, entry)
                count += 1
    elif kind == "coco":
        from chexseg.data import coco_files

        entries = made(partial(_known, source))
        count = coco_files.write(path, entries, tasks, segmentation=segmentation, file_names=image_names)
    else:
        with new_folder(path) as temporary:
            options = {"layout": layout} if kind == "png" else {"keep_patient": keep_patient, "manual": manual}
            job = partial(_into_folder, source, temporary, kind, images or {}, options)
            count = sum(1 for _ in made(job))
    if left_out:
        log.warning("%s: %d images left out, of which no task is known", path, left_out)
    return count


def _known(source: Source, image_id: str) -> Mapping[str, Mapping] | None:
    return source[image_id] or None


def _as_polygons(source: Source, path: Path, image_id: str) -> dict[str, Any] | None:
    entry = source[image_id]
    return polygons_entry(entry, f"{path}: {image_id}") if entry else None


def _into_folder(source: Source, folder: Path, kind: str, images: Mapping[str, Path], options: dict, image_id: str):
    """The files of one image; None where no task is known."""
    entry = source[image_id]
    if not entry:
        return None
    common_size(entry, image_id)
    if kind == "png":
        from chexseg.data import label_images

        label_images.write(folder, image_id, entry, **options)
        return image_id
    from chexseg.data import dicom_seg, image_folder

    stem, listed = image_folder.file_stem(image_id), images.get(image_id)
    if image_folder.text_of(stem) != image_id:
        raise DataError(f"{image_id[:80]!r}: too long for a file name")
    is_dicom = listed is not None and listed.suffix.lower() in (".dcm", ".dicom")
    dicom_seg.write(folder / f"{stem}.dcm", image_id, entry, source=listed if is_dicom else None, **options)
    return image_id


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill, which takes the name `path` when the block ends without an error. DataError where `path`
    already has something in it: a file of an earlier run would say what this one does not."""
    path = Path(path)
    if path.is_file() or path.is_dir() and any(path.iterdir()):
        raise DataError(f"{path}: already there and not empty; name a new folder, or remove it")
    temporary = path.with_name(f".{path.name}.partial")
    with locked(path.with_name(f".{path.name}.lock")):
        shutil.rmtree(temporary, ignore_errors=True)  # what a kill left
        temporary.mkdir(parents=True)
        try:
            yield temporary
            if path.is_dir():
                path.rmdir()
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
