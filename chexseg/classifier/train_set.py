"""Stage 3a: training images and their saliency maps, as records of hdf5_files/train_set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chexseg.classifier.saliency_maps import SaliencyMaps
from chexseg.data import chexpert
from chexseg.data.images import read_image, resize_square
from chexseg.errors import DataError, MissingError
from chexseg.runtime import provenance
from chexseg.runtime.workers import ordered_map


@dataclass(frozen=True)
class TrainSetMaker:
    """image id -> (image id, image (S, S) uint8, maps (T, h, w) float32 of `tasks`), in this process or another."""

    maps: SaliencyMaps
    tasks: Sequence[str]
    data_dir: Path
    image_size: int
    listing: Path | None = None  # the file that lists the images, for errors

    def __call__(self, image_id: str) -> tuple[str, np.ndarray, np.ndarray]:
        image = resize_square(read_image(self._path(image_id)), self.image_size)
        return image_id, image, self.maps[image_id]["maps"][self.maps.task_rows(self.tasks)]

    def process(self, ids: Sequence[str], *, num_workers: int = 0) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """The records of many images, in order, made by `num_workers` processes."""
        return ordered_map(self, ids, num_workers)

    def fingerprint(self, image_id: str) -> str:
        """Of the image's file, by size and time of change."""
        return provenance.stat_fingerprint(self._path(image_id))

    def _path(self, image_id: str) -> Path:
        try:
            return chexpert.locate(self.data_dir, image_id, ("train",))
        except DataError as error:
            raise MissingError(f"{self.listing or self.data_dir}: {error}; make the list again with test.py") from error
