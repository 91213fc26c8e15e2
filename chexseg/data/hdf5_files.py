"""HDF5 files that any process may read at random, and the two of them that IRNet trains on.

train_set: cxr_images (N, S, S) uint8, cxr_cams (N, T, h, w) float32 at the network's resolution, cxr_base_names (N,).
ir_labels: ir_labels (N, T, S, S) uint8 in {0 background, 1 foreground, 255 ignore}, compressed, one chunk per image and
task. A chunk of a finding that is absent, all 255, is never written: it takes no space, and reading it no time.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from chexseg.data.hdf5_output import create
from chexseg.data.hdf5_schema import Field, Schema, attribute, check, names_of_tasks, unique_ids
from chexseg.errors import DataError, MissingError
from chexseg.runtime.shard_format import read_arrays, write_arrays

IGNORE = 255
TRAIN_SCHEMA: Schema = {
    "cxr_images": Field("u1", ("N", "S", "S")),
    "cxr_cams": Field("f4", ("N", "T", "h", "w")),
    "cxr_base_names": Field("text", ("N",)),
}
LABEL_SCHEMA: Schema = {"ir_labels": Field("u1", ("N", "T", "S", "S"), values=(0, 1, IGNORE), may_be_unwritten=True)}
TRAIN_SET, IR_LABELS = Path("hdf5_files/train_set"), Path("hdf5_files/ir_labels")


class Hdf5File:
    """An HDF5 file that is opened at first use in each process, so that an instance may cross a fork or a spawn.

    `tasks` are the names along a dataset's second axis; `file[dataset]` is an h5py dataset, `row` and `whole` read from
    one. DataError where the file is missing, not HDF5, or not as `schema` has it (`hdf5_schema.check`); it says which
    script (`made_by`) makes the file.
    """

    def __init__(self, path: Path, made_by: str, schema: Schema):
        self.path, self._made_by, self._schema = Path(path), made_by, schema
        self._pid: int | None = None
        self._file: h5py.File | None = None
        if not self.path.is_file():
            raise MissingError(f"{path}: no such file; make it with {made_by}")
        with self._named():
            file = self._opened()
            self.tasks = names_of_tasks(file, self.path)
            self.sizes = check(file, schema, {"T": len(self.tasks)}, self.path.stat().st_size)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_pid": None, "_file": None}

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Every fault inside is one of this file."""
        try:
            yield
        except DataError as error:
            raise DataError(f"{self.path}: {str(error).removeprefix(f'{self.path}: ')}") from error
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
            said = " ".join(str(error).split())[:200]
            made_by = f"make it again with {self._made_by}"
            raise DataError(f"{self.path}: not a readable HDF5 file ({said}); {made_by}") from error

    def _opened(self) -> h5py.File:
        if self._pid != os.getpid() or self._file is None:
            self._file = h5py.File(self.path, "r")
            self._pid = os.getpid()
        return self._file

    def __getitem__(self, dataset: str) -> h5py.Dataset:
        with self._named():
            return self._opened()[dataset]

    def row(self, dataset: str, index: int) -> np.ndarray:
        """One row of a dataset, its values as the schema has them."""
        with self._named():
            return self._schema[dataset].checked(self._opened()[dataset][index], f"{dataset}, row {index}")

    def whole(self, dataset: str) -> np.ndarray:
        """All rows of a small dataset."""
        with self._named():
            return self._schema[dataset].checked(self._opened()[dataset][:], dataset)

    def number(self, name: str, most: int) -> int:
        """A whole number from 1 to `most` in an attribute of the file."""
        with self._named():
            value = attribute(self._opened(), name)
            if not isinstance(value, (int, np.integer)) or not 1 <= value <= most:
                raise DataError(f"{name} is {str(value)[:60]!r}, expected 1 to {most}; make it with {self._made_by}")
            return int(value)

    def ids(self, dataset: str) -> list[str]:
        """A dataset of image ids, whole; each must be there once."""
        with self._named():
            return unique_ids(self._opened(), dataset, self._schema, self.path.stat().st_size)


def open_train_set(run: Path) -> Hdf5File:
    return Hdf5File(run / TRAIN_SET, "IRNet/convert_to_hdf5.py", TRAIN_SCHEMA)


def open_ir_labels(run: Path) -> Hdf5File:
    return Hdf5File(run / IR_LABELS, "IRNet/cam_to_ir_label_hdf5.py", LABEL_SCHEMA)


def open_pair(run: Path) -> tuple[Hdf5File, Hdf5File]:
    """The images and the relation labels of a run folder. DataError where they are not of each other."""
    train_set, labels = open_train_set(run), open_ir_labels(run)
    if any(train_set.sizes[axis] != labels.sizes[axis] for axis in "NS") or train_set.tasks != labels.tasks:
        raise DataError(f"{labels.path}: not of the images in {train_set.path}; run cam_to_ir_label_hdf5.py again")
    return train_set, labels


def names(train_set: Hdf5File) -> list[str]:
    """The image ids of a train_set, in order."""
    return train_set.ids("cxr_base_names")


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
