"""Saliency maps as all later stages see them, wherever they lie: by image id, of all tasks at once.

`saliency_store.open_maps` opens a run's store, or a folder of CheXlocalize's pickles.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypedDict

import numpy as np

from chexseg.errors import DataError, MissingError


class Saliency(TypedDict):
    """What is known of one image: `maps` (T, h, w) float32, `probabilities` (T,), and the original image's
    `size` (height, width)."""

    maps: np.ndarray
    probabilities: np.ndarray
    size: tuple[int, int]


class SaliencyMaps(ABC):
    """Saliency maps by image id: `maps[image_id]` is a `Saliency`. An instance may cross a fork or a spawn.

    path    the file or folder that holds the maps
    folder  where files made from them go: the folder that was opened, or that of the store's file
    ids     image ids, in order
    tasks   names along the first axis of an image's maps
    """

    path: Path
    folder: Path
    ids: list[str]
    tasks: tuple[str, ...]

    @property
    @abstractmethod
    def network_size(self) -> tuple[int, int]:
        """Height and width of the network's input. Maps are upsampled to it first, then to whatever is wanted."""

    def input_size(self, saliency: Saliency) -> tuple[int, int]:
        """The same of one image's maps."""
        return self.network_size

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash that changes when the maps do."""

    @abstractmethod
    def _read(self, image_id: str) -> Saliency:
        """The maps of an image that is in `ids`."""

    def probabilities(self, ids: Sequence[str]) -> np.ndarray:
        """(N, T) float32 of the given images."""
        return np.stack([self[image_id]["probabilities"] for image_id in ids])

    def known(self, ids: Sequence[str], tasks: Sequence[str]) -> np.ndarray:
        """(N, T) bool: which of `tasks` the images have a map of. What they lack is unknown: its map reads as zero."""
        return np.ones((len(ids), len(tasks)), bool)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Each image's place in `ids`."""
        return {image_id: row for row, image_id in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.rows

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __getitem__(self, image_id: str) -> Saliency:
        self._require([image_id])
        return self._read(image_id)

    def _require(self, ids: Sequence[str]) -> None:
        for image_id in ids:
            if image_id not in self.rows:
                raise MissingError(f"{self.path}: no saliency map of {image_id}; run test.py on a set that has it")

    def task_rows(self, tasks: Sequence[str]) -> list[int]:
        """Where each of `tasks` stands along a map's first axis."""
        for task in tasks:
            if task not in self.tasks:
                raise DataError(f"{self.path}: no maps of {task!r}; it has {', '.join(self.tasks)}")
        return [self.tasks.index(task) for task in tasks]
