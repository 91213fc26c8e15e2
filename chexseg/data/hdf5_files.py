"""HDF5 files that any process may read at random, and the two of them that IRNet trains on.

train_set: cxr_images (N, S, S) uint8, cxr_cams (N, T, h, w) float32 at the network's resolution, cxr_base_names (N,).
ir_labels: ir_labels (N, T, S, S) uint8 in {0 background, 1 foreground, 255 ignore}, compressed, one chunk per image and
task. A chunk of a finding that is absent, all 255, is never written: it takes no space, and reading it no time.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from chexseg.data.hdf5_output import create
from chexseg.errors import DataError
from chexseg.runtime.shard_format import read_arrays, write_arrays

IGNORE = 255
TRAIN_SET, IR_LABELS = Path("hdf5_files/train_set"), Path("hdf5_files/ir_labels")


class Hdf5File:
    """An HDF5 file that is opened at first use in each process, so that an instance may cross a fork or a spawn.

    `tasks` are the names along a dataset's second axis; `file[dataset]` is an h5py dataset. DataError where the file
    is missing, not HDF5, or lacks what is asked for; it says which script (`made_by`) makes the file.
    """

    def __init__(self, path: Path, made_by: str):
        self.path, self._made_by = Path(path), made_by
        self._pid: int | None = None
        self._file: h5py.File | None = None
        if not self.path.is_file():
            raise DataError(f"{path}: no such file; make it with {made_by}")
        self.tasks: tuple[str, ...] = tuple(json.loads(self.attribute("tasks")))

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_pid": None, "_file": None}

    def _opened(self) -> h5py.File:
        if self._pid != os.getpid():
            try:
                self._file = h5py.File(self.path, "r")
            except OSError as error:
                raise DataError(f"{self.path}: not a readable HDF5 file; make it again with {self._made_by}") from error
            self._pid = os.getpid()
        return self._file

    def __getitem__(self, dataset: str) -> h5py.Dataset:
        try:
            return self._opened()[dataset]
        except KeyError as error:
            raise DataError(f"{self.path}: no dataset {dataset!r} in it; make it with {self._made_by}") from error

    def attribute(self, name: str) -> Any:
        """The value of an attribute of the whole file."""
        try:
            return self._opened().attrs[name]
        except KeyError as error:
            raise DataError(f"{self.path}: does not say {name!r}; make it with {self._made_by}") from error

    def strings(self, dataset: str) -> list[str]:
        """A dataset of text, whole."""
        return [text.decode() for text in self[dataset][:]]


def open_train_set(run: Path) -> Hdf5File:
    return Hdf5File(run / TRAIN_SET, "IRNet/convert_to_hdf5.py")


def open_ir_labels(run: Path) -> Hdf5File:
    return Hdf5File(run / IR_LABELS, "IRNet/cam_to_ir_label_hdf5.py")


def names(train_set: Hdf5File) -> list[str]:
    """The image ids of a train_set, in order."""
    return train_set.strings("cxr_base_names")


def write_strings(file: h5py.File, dataset: str, texts: Sequence[bytes]) -> None:
    """Add a dataset of text. Do it last and at once: where HDF5 puts strings depends on how they come."""
    file.create_dataset(dataset, data=np.array(texts, object), dtype=h5py.string_dtype())


@dataclass(frozen=True)
class TrainShards:
    """Shards of a train_set of `count` images: records are (image id, image (S, S) uint8, maps (T, h, w) float32)."""

    tasks: Sequence[str]
    count: int

    def write(self, records: Sequence[tuple[str, np.ndarray, np.ndarray]], path: Path) -> None:
        ids, images, cams = zip(*records, strict=True)
        write_arrays(path, ids=np.array([i.encode() for i in ids]), images=np.stack(images), cams=np.stack(cams))

    def merge(self, parts: Sequence[Path], path: Path) -> None:
        with create(path) as (file, check):
            file.attrs["tasks"] = json.dumps(list(self.tasks))
            ids: list[bytes] = []
            for rows, shard in read_arrays(parts):
                columns = {"cxr_images": shard["images"], "cxr_cams": shard["cams"]}
                if rows.start == 0:
                    file.create_dataset("cxr_images", (self.count, *columns["cxr_images"].shape[1:]), np.uint8)
                    file.create_dataset("cxr_cams", (self.count, *columns["cxr_cams"].shape[1:]), np.float32)
                for name, values in columns.items():
                    file[name][rows] = values
                ids += shard["ids"].tolist()
                check()
            write_strings(file, "cxr_base_names", ids)


@dataclass(frozen=True)
class LabelShards:
    """Shards of ir_labels of `count` images with sides of `image_size`: a record is an image's labels (T, S, S) uint8.
    What is all 255 is left out of the file."""

    tasks: Sequence[str]
    count: int
    image_size: int

    def write(self, records: Sequence[np.ndarray], path: Path) -> None:
        write_arrays(path, compress=True, labels=np.stack(records))

    def merge(self, parts: Sequence[Path], path: Path) -> None:
        with create(path) as (file, check):
            file.attrs["tasks"] = json.dumps(list(self.tasks))
            labels = file.create_dataset(
                "ir_labels",
                (self.count, len(self.tasks), self.image_size, self.image_size),
                np.uint8,
                chunks=(1, 1, self.image_size, self.image_size),
                compression="gzip",
                compression_opts=4,
                fillvalue=IGNORE,
            )
            for rows, shard in read_arrays(parts):
                for row, image in enumerate(shard["labels"], start=rows.start):
                    for task in np.flatnonzero((image != IGNORE).any((1, 2))):
                        labels[row, task] = image[task]
                    check()
