"""Samples decoded once, then read at the cost of a memory copy: images as bytes, masks as bits, in one mapped file.

A row of the file is a sample: original height and width (two int32), which of C masks are known and which have a pixel
(C bits each, in whole bytes), the image (S, S) uint8, and C masks of S x S bits.
Rows are made in shards, so that several runs and several processes can ask for the same cache at once, and each row is
tied to its inputs: an image or mask that changes is decoded again. A cache is safe to delete.
"""

import hashlib
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chexseg.runtime import shards
from chexseg.runtime.workers import LazySequence, ordered_map

SIZE = 8  # bytes of height and width


class Sample(NamedTuple):
    """image (S, S) uint8, masks (C, S, S) of 0 and 1, size (height, width) of the original image.

    known (C,) Boolean: which masks somebody drew, or found to be empty; the others say nothing. None: all.
    """

    image: np.ndarray
    masks: np.ndarray
    size: tuple[int, int]
    known: np.ndarray | None = None


class SampleCache:
    """`cache[i]` is the i-th sample, `cache.ids[i]` its name. Opened on first use, so it may be forked and pickled."""

    def __init__(self, path: Path, ids: Sequence[str], image_size: int, num_masks: int):
        self.path, self.ids, self.image_size, self.num_masks = Path(path), list(ids), image_size, num_masks
        self._map: mmap.mmap | None = None
        self._start = 0

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict:
        return vars(self) | {"_map": None}

    def _read(self, index: int, count: int) -> np.ndarray:
        """The first `count` bytes of a row. Their pages are let go at once, so that memory does not grow with what was
        read; the system's cache keeps them."""
        if self._map is None:
            with open(self.path, "rb") as file:
                np.lib.format.read_magic(file)
                np.lib.format.read_array_header_1_0(file)
                self._start = file.tell()
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = self._start + index * row_bytes(self.image_size, self.num_masks)
        content = np.frombuffer(self._map[start : start + count], np.uint8)
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, first, start + count - first)
        return content

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of the original image."""
        return _size(self._read(index, SIZE))

    def bits(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(known, present), each (C,) Boolean: masks that somebody drew, and those with a pixel. Reads no mask."""
        return _bits(self._read(index, header_bytes(self.num_masks)), self.num_masks)

    def __getitem__(self, index: int) -> Sample:
        row, area = self._read(index, row_bytes(self.image_size, self.num_masks)), self.image_size**2
        start = header_bytes(self.num_masks)
        shape = (self.num_masks, self.image_size, self.image_size)
        image = np.array(row[start : start + area]).reshape(shape[1:])
        packed = row[start + area :].reshape(self.num_masks, -(-area // 8))
        masks = np.unpackbits(packed, axis=1, count=area, bitorder="little").reshape(shape)
        return Sample(image, masks, _size(row), _bits(row, self.num_masks)[0])


def header_bytes(num_masks: int) -> int:
    """Length of what precedes a row's image."""
    return SIZE + 2 * -(-num_masks // 8)


def row_bytes(image_size: int, num_masks: int) -> int:
    """Length of a sample's row."""
    return header_bytes(num_masks) + image_size**2 + num_masks * -(-(image_size**2) // 8)


def _size(row: np.ndarray) -> tuple[int, int]:
    height, width = row[:SIZE].view("<i4").tolist()
    return height, width


def _bits(row: np.ndarray, num_masks: int) -> tuple[np.ndarray, np.ndarray]:
    packed = row[SIZE : header_bytes(num_masks)].reshape(2, -1)
    known, present = np.unpackbits(packed, axis=1, count=num_masks, bitorder="little").astype(bool)
    return known, present


@dataclass(frozen=True)
class SampleShards:
    """Rows of bytes as .npy files; the whole cache is one of `count` rows of `width` bytes."""

    count: int
    width: int

    def write(self, records: Sequence[np.ndarray], path: Path) -> None:
        with open(path, "wb") as file:
            np.save(file, np.stack(records))

    def merge(self, parts: Sequence[Path], path: Path) -> None:
        with open(path, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, self.width)}
            np.lib.format.write_array_header_1_0(file, header)
            for part in parts:
                np.load(part, mmap_mode="r").tofile(file)


def build(
    path: Path,
    ids: Sequence[str],
    *,
    prepare: Callable[[Any], Sample],
    inputs_of: Callable[[str], Any] = str,
    image_size: int,
    num_masks: int,
    record: dict,
    item_fingerprint: Callable[[str], str],
    num_workers: int = 0,
) -> SampleCache:
    """Make the cache `path` (.npy) of the samples `prepare(inputs_of(id))`, unless it is there and nothing changed.

    `inputs_of` runs here, `prepare` (picklable) in the workers. `record` (`provenance.describe`) holds what all samples
    depend on, `item_fingerprint` what one does. A second run on the same cache waits for the first.
    """
    path, width = Path(path), row_bytes(image_size, num_masks)

    def process(items: Sequence[str]) -> Iterator[np.ndarray]:
        for name, sample in zip(items, ordered_map(prepare, LazySequence(items, inputs_of), num_workers), strict=True):
            yield _pack(name, sample, image_size, num_masks)

    layout = {"image_size": image_size, "num_masks": num_masks, "header": header_bytes(num_masks)}
    shards.build(
        path,
        ids,
        process=process,
        shard_format=SampleShards(len(ids), width),
        record=record | {"arguments": {**record["arguments"], **layout}},
        label=f"samples for {path.name}",
        item_fingerprint=item_fingerprint,
        on_lock="wait",
    )
    return SampleCache(path, ids, image_size, num_masks)


def _pack(name: str, sample: Sample, image_size: int, num_masks: int) -> np.ndarray:
    """A sample as one row of bytes."""
    shape = (image_size, image_size)
    if sample.image.shape != shape or sample.masks.shape != (num_masks, *shape):
        raise ValueError(f"{name}: image {sample.image.shape} and masks {sample.masks.shape} do not fit {shape}")
    known = np.ones(num_masks, bool) if sample.known is None else np.asarray(sample.known, bool)
    if known.shape != (num_masks,):
        raise ValueError(f"{name}: known {known.shape} does not go with {num_masks} masks")
    masks = sample.masks.reshape(num_masks, image_size**2).astype(bool)
    header = np.packbits(np.stack([known, masks.any(1)]), axis=1, bitorder="little").reshape(-1)
    bits = np.packbits(masks, axis=1, bitorder="little").reshape(-1)
    size = np.array(sample.size, "<i4").view(np.uint8)
    return np.concatenate([size, header, np.ascontiguousarray(sample.image).reshape(-1), bits])


def cache_name(stem: str, ids: Sequence[str], *what) -> str:
    """A file name that tells the caches of different sets of images, or of different arguments, apart."""
    digest = hashlib.sha256(repr((list(ids), what)).encode()).hexdigest()
    return f"{stem}_{digest[:12]}.npy"
