"""Samples for segmentation networks: images and masks of one or several masks JSONs, decoded once, moved alike.

Imports no torch: whether a cache is up to date must cost nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from chexseg.data import rle, sample_cache
from chexseg.data.chexpert import locate
from chexseg.data.images import fit_shape, fit_square, read_image
from chexseg.data.mask_files import MaskFile
from chexseg.data.sample_cache import Sample, SampleCache
from chexseg.errors import DataError
from chexseg.runtime import provenance
from chexseg.training.draws import Draw

if TYPE_CHECKING:
    from torch import Tensor

# Bounds of the optional augmentation. No mirror image: the heart is on the left.
MAX_DEGREES, MAX_ZOOM, MAX_SHIFT, MAX_CONTRAST, MAX_BRIGHTNESS = 10.0, 0.1, 0.05, 0.2, 20.0


def prepare(item: tuple[Path, Sequence[dict | None]], image_size: int) -> Sample:
    """Decode an image file and its masks (None: empty), both moved alike: longer side `image_size`, padded to a square.

    The image's shape decides: a mask may be stored at another size, stretched (the classifier's square input, say).
    """
    path, rles = item
    image = read_image(path)
    original = image.shape[0], image.shape[1]
    height, width = fit_shape(*original, image_size)
    squares = np.zeros((len(rles), image_size, image_size), np.uint8)
    there = {channel: coded for channel, coded in enumerate(rles) if coded is not None}
    squares[list(there), :height, :width] = rle.resize(list(there.values()), (height, width))
    return Sample(fit_square(image, image_size), squares, original)


def build_cache(
    folder: Path,
    records: MaskFile,
    splits: Sequence[str],
    *,
    data_dir: Path,
    tasks: Sequence[str],
    image_size: int,
    num_workers: int = 0,
) -> SampleCache:
    """The decoded samples of a masks JSON, in a file below `folder` that is made where it is missing or stale. A task
    that an image's record lacks is an empty mask.

    splits: where to look for the images, in this order.
    """
    ids = sorted(records)
    if not ids:
        raise DataError(f"{records.path}: no image in it")
    paths = {name: locate(data_dir, name, splits) for name in ids}

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
        given=item,
        image_size=image_size,
        num_masks=len(tasks),
        record=provenance.describe({}, code=__file__),
        item_fingerprint=fingerprint,
        num_workers=num_workers,
    )


def build_caches(
    folder: Path, sets: Sequence[tuple[Path, Sequence[str]]], aliases: Mapping[str, str], **options: Any
) -> list[SampleCache]:
    """`build_cache` of several masks files, each with the splits in which to look for its images."""
    files = [(MaskFile(path, aliases), splits) for path, splits in sets]
    return [build_cache(folder, records, splits, **options) for records, splits in files]


class SegmentationSet:
    """Caches one after the other, as a dataset of `draws.Draw`: dicts of `image` (S, S), `masks` (C, S, S) and `id`.

    With `augment`, a draw that has a key is turned, zoomed, shifted and relit by random numbers of its own.
    """

    def __init__(self, caches: Sequence[SampleCache], *, augment: bool = False):
        self.caches, self.augment = list(caches), augment
        self._starts = np.cumsum([0, *map(len, self.caches)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, draw: Draw) -> dict[str, Tensor | str]:
        import torch

        which = int(np.searchsorted(self._starts, draw.index, side="right")) - 1
        source, index = self.caches[which], draw.index - int(self._starts[which])
        image, inside, _ = source[index]
        if self.augment and draw.key:
            image, inside = augmented(image, inside, np.random.default_rng(draw.key))
        return {"image": torch.from_numpy(image), "masks": torch.from_numpy(inside), "id": source.ids[index]}


def augmented(image: np.ndarray, inside: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A slightly turned, zoomed, shifted and relit copy of image (S, S) and masks (C, S, S); masks stay 0 and 1."""
    size = len(image)
    degrees, zoom = rng.uniform(-MAX_DEGREES, MAX_DEGREES), 1 + rng.uniform(-MAX_ZOOM, MAX_ZOOM)
    matrix = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), degrees, zoom)
    matrix[:, 2] += rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * size
    contrast, brightness = 1 + rng.uniform(-MAX_CONTRAST, MAX_CONTRAST), rng.uniform(-MAX_BRIGHTNESS, MAX_BRIGHTNESS)
    levels = np.clip(np.arange(256) * contrast + brightness, 0, 255).round().astype(np.uint8)
    levels[0] = 0  # what lies outside the film stays black
    image = cv2.warpAffine(cv2.LUT(image, levels), matrix, (size, size), flags=cv2.INTER_LINEAR)
    moved = np.zeros_like(inside)
    for channel in np.flatnonzero(inside.any((1, 2))):
        moved[channel] = cv2.warpAffine(inside[channel], matrix, (size, size), flags=cv2.INTER_NEAREST)
    return image, moved
