"""Samples for segmentation networks: images and masks of one or several masks JSONs, decoded once, moved alike.

Imports no torch: whether a cache is up to date must cost nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from chexseg.data import mask_formats, rle, sample_cache
from chexseg.data.augmentation import PADDED, augment
from chexseg.data.chexpert import locate
from chexseg.data.images import fit_shape, fit_square, read_image
from chexseg.data.mask_files import MaskFile
from chexseg.data.mask_formats import PolygonMasks
from chexseg.data.sample_cache import Sample, SampleCache
from chexseg.errors import DataError
from chexseg.runtime import provenance
from chexseg.runtime.progress import Progress
from chexseg.training.draws import Draw

if TYPE_CHECKING:
    from torch import Tensor

    from chexseg.data.coco_files import CocoFile


def prepare(item: tuple[Path, Sequence[dict | None]], image_size: int) -> Sample:
    """Decode an image file and its masks (None: unknown), both moved alike: longer side `image_size`, padded to a
    square.

    The image's shape decides: a mask may be stored at another size, stretched (the classifier's square input, say).
    """
    path, rles = item
    image = read_image(path)
    original = image.shape[0], image.shape[1]
    height, width = fit_shape(*original, image_size)
    squares = np.zeros((len(rles), image_size, image_size), np.uint8)
    there = {channel: coded for channel, coded in enumerate(rles) if coded is not None}
    squares[list(there), :height, :width] = rle.resize(list(there.values()), (height, width))
    known = np.array([coded is not None for coded in rles], bool)
    return Sample(fit_square(image, image_size), squares, original, known)


def locate_all(data_dir: Path, ids: Sequence[str], splits: Sequence[str], masks: Path) -> dict[str, Path]:
    """The files of images by id: in CheXpert's layout, looked for in `splits` in turn, else anywhere below `data_dir`
    (`chexpert.find_image`). DataError, which names the file `masks` that lists them, where there is none."""
    paths = {}
    with Progress(f"images of {masks.name}, found", len(ids), patience=2.0) as progress:
        for name in ids:
            try:
                paths[name] = locate(data_dir, name, splits)
            except DataError as error:
                raise type(error)(f"{masks}: {error}; see --image_dir") from error
            progress.update()
    return paths


def build_cache(
    folder: Path,
    records: MaskFile | PolygonMasks | CocoFile,
    splits: Sequence[str],
    *,
    data_dir: Path,
    tasks: Sequence[str],
    image_size: int,
    num_workers: int = 0,
) -> SampleCache:
    """The decoded samples of a masks file, in a file below `folder` that is made where it is missing or stale. A task
    that an image's entry lacks is unknown, not absent; an empty mask says absent.

    splits: where to look for the images, in this order (see `locate_all`).
    """
    ids = sorted(records)
    if not ids:
        raise DataError(f"{records.path}: no image in it")
    paths = locate_all(data_dir, ids, splits, records.path)

    def item(image_id: str) -> tuple[Path, list[dict | None]]:
        record = records[image_id]
        return paths[image_id], [record.get(task) for task in tasks]

    def fingerprint(image_id: str) -> str:
        path, rles = item(image_id)
        return f"{provenance.stat_fingerprint(path)}:{hashlib.sha256(json.dumps(rles).encode()).hexdigest()}"

    stem, folder_of_masks = f"{records.path.stem}_{image_size}", records.path.absolute().parent.name
    return sample_cache.build(
        folder / sample_cache.cache_name(stem, ids, tasks, folder_of_masks),
        ids,
        prepare=partial(prepare, image_size=image_size),
        inputs_of=item,
        image_size=image_size,
        num_masks=len(tasks),
        record=provenance.describe({}, code=__file__),
        item_fingerprint=fingerprint,
        num_workers=num_workers,
    )


def build_caches(
    folder: Path, sets: Sequence[tuple[Path, Sequence[str]]], aliases: Mapping[str, str], **options: Any
) -> list[SampleCache]:
    """`build_cache` of several masks files, each with the splits in which to look for its images.

    A masks JSON, a reader's polygons (a task that an image does not list is absent, as in CheXlocalize), or COCO
    annotations (there it is unknown, unless the image says that it is not; see `convert_masks.py --unlisted`).
    """
    files: list[tuple[Any, Sequence[str]]] = []
    for path, splits in sets:
        kind = mask_formats.guess(path)
        records = mask_formats.read(kind, path, aliases, options["tasks"], unlisted_absent=kind == "polygons")
        files.append((records, splits))
    return [build_cache(folder, records, splits, **options) for records, splits in files]


def inputs_of(*sets: Sequence[SampleCache], source: Path | None) -> list[Path | None]:
    """The files that a network depends on, for `provenance.describe`: caches, which stand for the masks and images they
    were made from, and the weights of its encoder. None ends a set: a file that moves to the next is another run."""
    return [*(path for caches in sets for path in [*(cache.path for cache in caches), None]), source]


class TaskCounts(NamedTuple):
    """Images of a set in which a task is present, absent, and unknown, (C,) each."""

    present: np.ndarray
    absent: np.ndarray
    unknown: np.ndarray


class SegmentationSet:
    """Caches one after the other, as a dataset of `draws.Draw`: dicts of `image` (S, S), `masks` (C, S, S), `known`
    (C,) and `id`.

    With `augment`, a draw that has a key is turned, zoomed, shifted and relit by random numbers of its own.
    """

    def __init__(self, caches: Sequence[SampleCache], *, augment: bool = False):
        self.caches, self.augment = list(caches), augment
        self._starts = np.cumsum([0, *map(len, self.caches)])
        self._counts: TaskCounts | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _place(self, index: int) -> tuple[int, int]:
        """Which cache a sample is in, and its place there."""
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        return which, index - int(self._starts[which])

    def __getitem__(self, draw: Draw) -> dict[str, Tensor | str]:
        import torch

        which, index = self._place(draw.index)
        source = self.caches[which]
        image, inside, _, known = source[index]
        if self.augment and draw.key:
            image, inside = augment(image, inside, np.random.default_rng(draw.key), PADDED)
        known = np.ones(len(inside), bool) if known is None else known
        tensors = {"image": image, "masks": inside, "known": known}
        return {**{name: torch.from_numpy(array) for name, array in tensors.items()}, "id": source.ids[index]}

    def ids(self) -> list[str]:
        """The images' names, in order."""
        return [name for cache in self.caches for name in cache.ids]

    def counts(self) -> TaskCounts:
        """How many images show each task, lack it, or do not say."""
        if self._counts is None:
            bits = [cache.bits(i) for cache in self.caches for i in range(len(cache))]
            known, present = (np.array(rows, bool) for rows in zip(*bits, strict=True))
            self._counts = TaskCounts((known & present).sum(0), (known & ~present).sum(0), (~known).sum(0))
        return self._counts
