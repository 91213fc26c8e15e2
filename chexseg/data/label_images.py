"""Masks as PNG files, 255 inside and 0 outside, one for each image and task, and back.

Two layouts: `folders`, <folder>/<task>/<image id>.png, and `flat`, <folder>/<image id>__<task>.png. A file that is all
0 says that the task is absent; a file that is not there, that it is unknown. Ids and tasks become file names as
`image_folder.file_stem` says.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np

from chexseg.data import image_folder, names, rle
from chexseg.data.images import opened
from chexseg.data.mask_files import Masks
from chexseg.errors import DataError
from chexseg.runtime.files import writing

LAYOUTS = ("folders", "flat")
# Four times as fast as OpenCV's own choice, and smaller: a mask is runs of one value.
_RUNS = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
if hasattr(cv2, "IMWRITE_PNG_FILTER"):  # from OpenCV 4.11 on
    _RUNS += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]


def write(folder: Path, image_id: str, entry: Masks, layout: str = "folders") -> None:
    """The files of one image."""
    for task, mask in entry.items():
        path = folder / _place(image_id, task, layout)
        pixels = rle.decode([mask])[0] * np.uint8(255)
        data = cv2.imencode(".png", pixels, _RUNS)[1]
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data.tobytes())


def _place(image_id: str, task: str, layout: str) -> Path:
    """A mask's file below the folder. DataError where the name could not be turned back."""
    stems = image_folder.file_stem(image_id), image_folder.file_stem(task)
    name = "__".join(stems) if layout == "flat" else stems[0]
    found = name.rpartition("__")[::2] if layout == "flat" else stems
    if tuple(map(image_folder.text_of, found)) != (image_id, task) or len(name.encode()) > 240:
        raise DataError(
            f"{image_id[:80]!r}, {task[:80]!r}: no file name that could be turned back"
            f"{'; use --layout folders' if layout == 'flat' else ': too long'}"
        )
    return Path(f"{name}.png") if layout == "flat" else Path(stems[1], f"{name}.png")


class LabelImages(Mapping[str, dict[str, dict]]):
    """A folder of mask PNGs, in either layout, as a mapping of image id -> {task: mask}, read when asked for."""

    def __init__(self, folder: Path, aliases: Mapping[str, str]):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"{folder}: no such folder")
        # File names only, each once: a path for each of a million masks would take a gigabyte.
        self._flat: dict[str, list[str]] = {}
        self._folders = sorted(p.name for p in self.folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        stems: set[str] = set()
        for name in _pngs(self.folder):
            image, between, task = name[:-4].rpartition("__")
            if not between or not image or not task:
                raise DataError(f"{self.folder / name}: expected <image id>__<task>.png, or a folder for each task")
            self._flat.setdefault(image, []).append(name)
        for task in [] if self._flat else self._folders:
            stems.update(name[:-4] for name in _pngs(self.folder / task))
        if self._flat and any(_pngs(self.folder / task) for task in self._folders):
            raise DataError(f"{folder}: PNG files both in it and in its folders; which of them are the masks?")
        self._stems = {names.check_id(image_folder.text_of(stem), folder): stem for stem in sorted(self._flat or stems)}
        if not self._stems:
            raise DataError(f"{folder}: no PNG file in it or in its folders")
        self._aliases = dict(aliases)

    def __len__(self) -> int:
        return len(self._stems)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stems)

    def __getitem__(self, image_id: str) -> dict[str, dict]:
        stem = self._stems[image_id]
        if self._flat:
            files = {name[:-4].rpartition("__")[2]: self.folder / name for name in self._flat[stem]}
        else:
            files = {task: self.folder / task / f"{stem}.png" for task in self._folders}
        masks = {}
        for name, path in files.items():
            if path.is_file():
                task = image_folder.text_of(name)
                task = names.check_task(self._aliases.get(task, task), path)
                if task in masks:
                    raise DataError(f"{path}: {task} occurs twice for this image")
                masks[task] = rle.encode(read_mask(path)[None])[0]
        return masks


def _pngs(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix == ".png" and not p.name.startswith("."))


def read_mask(path: Path) -> np.ndarray:
    """(h, w) bool, True where a pixel is not 0. DataError for a file that is damaged or has more than two values."""
    with opened(path, formats=("PNG",)) as image:
        colour = {"RGBA": "RGB", "LA": "L"}.get(image.mode)
        pixels = np.asarray(image.convert(colour) if colour else image)
    inside = pixels if pixels.ndim == 2 else pixels.max(-1)
    filled = inside != 0
    if not (inside[filled] == inside.max()).all():
        raise DataError(f"{path}: values {np.unique(inside)[:4].tolist()} ...: a mask has 0 and one other value")
    return filled
