"""Images with their saliency maps, by row: what pseudo masks are made of. Nothing here needs torch.

A film is a chest X-ray. Crops of films with relation labels, which the boundary network trains on, are in `dataset`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from chexseg.classifier.saliency_maps import SaliencyMaps
from chexseg.classifier.saliency_store import open_maps
from chexseg.data import chexpert, hdf5_files
from chexseg.data.images import read_image, resize_square
from chexseg.runtime import provenance


class Film(NamedTuple):
    """pixels (S, S) uint8, maps (T, h, w) float32, and the size (height, width) that masks are wanted in."""

    pixels: np.ndarray
    maps: np.ndarray
    size: tuple[int, int]


class Films(Protocol):
    """A set of films. An instance is small to pickle, and workers open its files themselves."""

    ids: list[str]
    tasks: tuple[str, ...]  # names along the first axis of a film's maps
    size: int  # side of `Film.pixels`
    inputs: list[Path]  # files whose content decides what the films are
    of_one_size: bool  # whether all masks are wanted in the same size

    def __call__(self, row: int) -> Film: ...

    def mask_size(self, row: int) -> tuple[int, int]:
        """`Film.size`, without decoding anything."""
        ...

    def fingerprint(self, row: int) -> str:
        """What else decides the row's film: its id, and the time of change of an image read from elsewhere."""
        ...


class TrainFilms:
    """The images of a run's hdf5_files/train_set; masks at their own size."""

    of_one_size = True

    def __init__(self, run: Path):
        self._file = hdf5_files.open_train_set(run)
        self.ids, self.tasks, self.inputs = hdf5_files.names(self._file), self._file.tasks, [self._file.path]
        self.size = int(self._file["cxr_images"].shape[-1])

    def __call__(self, row: int) -> Film:
        return Film(self._file.row("cxr_images", row), self._file.row("cxr_cams", row), (self.size, self.size))

    def mask_size(self, row: int) -> tuple[int, int]:
        return self.size, self.size

    def fingerprint(self, row: int) -> str:
        return self.ids[row]


class OtherFilms:
    """The images of a run's saliency maps, decoded now, stretched to `size`; masks at the originals' size."""

    of_one_size = False

    def __init__(self, run: Path, tasks: Sequence[str], data_dir: Path, size: int | None):
        self._maps, self._data_dir = open_maps(run), data_dir
        self.ids, self.tasks, self.inputs = self._maps.ids, tuple(tasks), store_files(self._maps)
        self.size = size or self._maps.network_size[0]
        self._rows = self._maps.task_rows(tasks)

    def __call__(self, row: int) -> Film:
        saliency = self._maps[self.ids[row]]
        image = read_image(chexpert.find_image(self._data_dir, self.ids[row]))
        return Film(resize_square(image, self.size), saliency["maps"][self._rows], saliency["size"])

    def mask_size(self, row: int) -> tuple[int, int]:
        return self._maps[self.ids[row]]["size"]

    def fingerprint(self, row: int) -> str:
        return f"{self.ids[row]} {provenance.stat_fingerprint(chexpert.find_image(self._data_dir, self.ids[row]))}"


def store_files(maps: SaliencyMaps) -> list[Path]:
    """The file of a store of maps; nothing for a folder of pickles."""
    return [maps.path] if maps.path.is_file() else []
