"""What our HDF5 files must be, looked at when one is opened, before anything is read.

An HDF5 file can send its reader elsewhere (external links and storage, virtual datasets), and a few bytes of it can
declare any number of rows. Here only hard links to datasets of the declared type and shape pass, stored in this file,
and of no more data than it can hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import h5py
import numpy as np

from chexseg.data.names import check_id, check_tasks, twice
from chexseg.errors import DataError
from chexseg.runtime import plain_json

MAX_ROWS, MAX_ROW = 1 << 28, 1 << 28  # rows of a dataset; bytes of one, and of a chunk
MAX_RATIO = 1100  # of deflate, the best of the filters
MAX_BLOCK = 256 << 20  # bytes of texts that are read at once
_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
_BY_NAME = {"u1": "whole numbers of 8 bits", "f4": "numbers of 32 bits", "i4": "whole numbers", "text": "texts"}


@dataclass(frozen=True)
class Field:
    """A dataset: its type (u1, f4, i4, text), its axes, by letters that stand for one length throughout a file (or by
    their lengths), and what its numbers may be: one of `values`, or from `least` to `most` (NaN is allowed).

    may_be_unwritten  chunks that were never written take no space, so that the file's size is no bound of it
    """

    kind: str
    axes: tuple[str, ...]
    values: tuple[int, ...] | None = None
    least: float | None = None
    most: float | None = None
    may_be_unwritten: bool = False

    def checked(self, found: np.ndarray, where: str) -> np.ndarray:
        """What was read. DataError for numbers that may not be there."""
        if self.values is not None:
            wrong = ~np.isin(found, self.values)
        elif self.least is not None and self.most is not None:
            wrong = (found < self.least) | (found > self.most)
        else:
            return found
        if wrong.any():
            allowed = ", ".join(map(str, self.values)) if self.values else f"{self.least} to {self.most}"
            raise DataError(f"{where}: {found[wrong].flat[0]} is not one of {allowed}; make the file again")
        return found


Schema = Mapping[str, Field]


def check(file: h5py.File, schema: Schema, sizes: Mapping[str, int], size: int) -> dict[str, int]:
    """The length of each letter's axis in an open file of `size` bytes; `sizes` are those that are known already."""
    lengths = dict(sizes)
    for name, field in schema.items():
        link = file.get(name, getlink=True) if name in file else None
        if not isinstance(link, h5py.HardLink):
            what = "no dataset" if link is None else "a link where a dataset belongs,"
            raise DataError(f"{what} {name!r} in it; make the file again")
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise DataError(f"{name!r} in it is a group, no dataset; make the file again")
        if dataset.is_virtual or dataset.external:
            raise DataError(f"the data of {name!r} lie in another file, which is not read; make the file again")
        _check_type(dataset, name, field)
        expected = f"{name!r} has shape {dataset.shape}, expected ({', '.join(field.axes)})"
        if len(dataset.shape) != len(field.axes):
            raise DataError(f"{expected}; make the file again")
        for letter, length in zip(field.axes, dataset.shape, strict=True):
            if lengths.setdefault(letter, int(letter) if letter.isdigit() else length) != length:
                raise DataError(f"{expected} with {letter} = {lengths[letter]}; make the file again")
        _check_room(dataset, name, field, size)
    return lengths


def _check_type(dataset: h5py.Dataset, name: str, field: Field) -> None:
    if field.kind == "text":
        good = h5py.check_string_dtype(dataset.dtype) is not None
    else:
        good = dataset.dtype.newbyteorder("=") == np.dtype(field.kind) and h5py.check_enum_dtype(dataset.dtype) is None
    if not good:
        raise DataError(f"{name!r} holds {dataset.dtype}, expected {_BY_NAME[field.kind]}; make the file again")


def _check_room(dataset: h5py.Dataset, name: str, field: Field, size: int) -> None:
    """DataError for more data than a file of `size` bytes can hold, and for rows and chunks too large for memory."""
    rows, item = dataset.shape[0], max(dataset.dtype.itemsize, 1)
    of_row, of_chunk = prod(dataset.shape[1:]) * item, prod(dataset.chunks or (1,)) * item
    stored, properties = dataset.id.get_storage_size(), dataset.id.get_create_plist()
    filters = [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
    for number in filters:
        if number not in _FILTERS:
            raise DataError(f"{name!r} is packed by filter {number}, which nothing here writes; make the file again")
    packed = any(number in (1, 32000) for number in filters)
    whole = dataset.nbytes <= stored * (MAX_RATIO if packed else 1) and stored <= size
    if rows > MAX_ROWS or of_row > MAX_ROW or of_chunk > MAX_ROW or not (whole or field.may_be_unwritten):
        raise DataError(
            f"{name!r} declares {rows} rows of {of_row} bytes, the file has {size} bytes; it is damaged, make it again"
        )


def attribute(file: h5py.File, name: str) -> Any:
    """The value of a scalar attribute of the whole file."""
    if name not in file.attrs:
        raise DataError(f"does not say {name!r}; make the file again")
    found = file.attrs.get_id(name)
    if found.shape != () or found.dtype.kind not in "iuOS":
        raise DataError(f"{name!r} is no single number or text; make the file again")
    return file.attrs[name]


def names_of_tasks(file: h5py.File, where: object) -> tuple[str, ...]:
    """The tasks that an attribute of the file names, a JSON list."""
    text = attribute(file, "tasks")
    if not isinstance(text, str):
        raise DataError(f"tasks are a {type(text).__name__}, expected a JSON list; make the file again")
    return check_tasks(plain_json.parse(text, f"{where}: tasks"), where)


def unique_ids(file: h5py.File, name: str, schema: Schema, size: int) -> list[str]:
    """The image ids in a dataset of texts, each of which must be there once.

    One long text can stand behind every row, so that they are read in blocks: what the other datasets leave of the
    file is the most that a text can have.
    """
    left = max(size - sum(file[other].id.get_storage_size() for other in schema if other != name), 1)
    step = max(1, min(MAX_BLOCK // left, 1 << 16))
    dataset, ids = file[name], []
    for start in range(0, len(dataset), step):
        for text in dataset[start : start + step]:
            try:
                ids.append(check_id(text.decode() if isinstance(text, bytes) else text, name))
            except UnicodeDecodeError as error:
                raise DataError(f"{name}, row {len(ids)}: not a text in UTF-8; make the file again") from error
    if len(set(ids)) < len(ids):
        raise DataError(f"{name}: {twice(ids)} occurs twice; make the file again")
    return ids
