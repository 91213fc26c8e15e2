"""The two HDF5 files that IRNet trains on, and reading them at random from any process.

train_set: cxr_images (N, S, S) uint8, cxr_cams (N, T, h, w) float32 at the network's resolution, cxr_base_names (N,).
ir_labels: ir_labels (N, T, S, S) uint8 in {0 background, 1 foreground, 255 ignore}, compressed, one chunk per image and
task. A chunk of a finding that is absent, all 255, is never written: it takes no space, and reading it no time.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from chexseg.errors import DataError

IGNORE = 255
TRAIN_SET, IR_LABELS = Path("hdf5_files/train_set"), Path("hdf5_files/ir_labels")


class Hdf5File:
    """An HDF5 file opened at first use in each process, so that it may be forked, spawned and shared.

    `tasks` are the names along the second axis; `file[dataset]` is an h5py dataset.
    """

    def __init__(self, path: Path, made_by: str):
        self.path, self._made_by = Path(path), made_by
        self._pid, self._file = None, None
        if not self.path.is_file():
            raise DataError(f"{path}: no such file; make it with {made_by}")
        try:
            self.tasks = tuple(json.loads(self._opened().attrs["tasks"]))
        except KeyError as error:
            raise DataError(f"{path}: does not say which tasks are in it; make it with {made_by}") from error

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
        return self._opened()[dataset]


def open_train_set(run: Path) -> Hdf5File:
    return Hdf5File(run / TRAIN_SET, "IRNet/convert_to_hdf5.py")


def open_ir_labels(run: Path) -> Hdf5File:
    return Hdf5File(run / IR_LABELS, "IRNet/cam_to_ir_label_hdf5.py")


def names(train_set: Hdf5File) -> list[str]:
    """The image ids of a train_set, in order."""
    return [name.decode() for name in train_set["cxr_base_names"][:]]


def write_train_part(records: Sequence[tuple[str, np.ndarray, np.ndarray]], path: Path) -> None:
    """A shard of train_set: (image id, image (S, S), maps (T, h, w))."""
    ids, images, cams = zip(*records, strict=True)
    with open(path, "wb") as file:
        np.savez(file, ids=np.array([i.encode() for i in ids]), images=np.stack(images), cams=np.stack(cams))


def merge_train_parts(parts: Sequence[Path], path: Path, *, tasks: Sequence[str], count: int) -> None:
    """Join the shards of a train_set of `count` images."""
    with h5py.File(path, "w") as file:
        file.attrs["tasks"] = json.dumps(list(tasks))
        found: list[bytes] = []
        for part in parts:
            start = len(found)
            with np.load(part) as shard:
                columns = {"cxr_images": shard["images"], "cxr_cams": shard["cams"]}
                found += shard["ids"].tolist()
            if start == 0:
                file.create_dataset("cxr_images", (count, *columns["cxr_images"].shape[1:]), np.uint8)
                file.create_dataset("cxr_cams", (count, *columns["cxr_cams"].shape[1:]), np.float32)
            for name, rows in columns.items():
                file[name][start : len(found)] = rows
        # Strings last and at once: where HDF5 puts them depends on how they come.
        file.create_dataset("cxr_base_names", data=np.array(found, object), dtype=h5py.string_dtype())


def write_label_part(records: Sequence[np.ndarray], path: Path) -> None:
    """A shard of ir_labels: one (T, S, S) uint8 per image."""
    with open(path, "wb") as file:
        np.savez_compressed(file, labels=np.stack(records))


def merge_label_parts(parts: Sequence[Path], path: Path, *, tasks: Sequence[str], count: int, image_size: int) -> None:
    """Join the shards of ir_labels of `count` images; what is all 255 is left out."""
    shape = (len(tasks), image_size, image_size)
    with h5py.File(path, "w") as file:
        file.attrs["tasks"] = json.dumps(list(tasks))
        labels = file.create_dataset(
            "ir_labels",
            (count, *shape),
            np.uint8,
            chunks=(1, 1, image_size, image_size),
            compression="gzip",
            compression_opts=4,
            fillvalue=IGNORE,
        )
        row = 0
        for part in parts:
            with np.load(part) as shard:
                for image in shard["labels"]:
                    for task in np.flatnonzero((image != IGNORE).any((1, 2))):
                        labels[row, task] = image[task]
                    row += 1
