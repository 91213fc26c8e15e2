"""Samples for segmentation networks: images and masks of one or several masks JSONs, decoded once, moved alike."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chexseg.data import chexpert, rle, sample_cache
from chexseg.data.augmentation import PADDED, augment
from chexseg.data.images import fit_shape, fit_square, read_image
from chexseg.data.mask_files import MaskFile
from chexseg.data.sample_cache import Sample, SampleCache
from chexseg.errors import DataError
from chexseg.runtime import provenance
from chexseg.training.draws import Draw


def locate(data_dir: Path, image_id: str, splits: Sequence[str]) -> Path:
    """The image's file, looked for in `splits` in turn. DataError where there is none."""
    for split in splits:
        try:
            return chexpert.find_image(data_dir, image_id, split)
        except DataError:
            continue
    return chexpert.find_image(data_dir, image_id)


def prepare(given: tuple[Path, Sequence[dict | None]], image_size: int) -> Sample:
    """Decode an image and its masks (None: empty), both moved alike: longer side `image_size`, padded to a square.

    The image's shape decides: a mask may be stored at another size, stretched (the classifier's square input, say).
    """
    path, rles = given
    image = read_image(path)
    height, width = fit_shape(*image.shape, image_size)
    squares = np.zeros((len(rles), image_size, image_size), np.uint8)
    present = [channel for channel, coded in enumerate(rles) if coded is not None]
    squares[present, :height, :width] = rle.resize([rles[channel] for channel in present], (height, width))
    return Sample(fit_square(image, image_size), squares, image.shape)


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
    """The decoded samples of a masks JSON, below `folder`. A task that an image's record lacks is an empty mask."""
    ids = sorted(records)
    if not ids:
        raise DataError(f"{records.path}: no image in it")
    paths = {name: locate(data_dir, name, splits) for name in ids}

    def given(image_id: str) -> tuple[Path, list[dict | None]]:
        record = records[image_id]
        return paths[image_id], [record.get(task) for task in tasks]

    def fingerprint(image_id: str) -> str:
        path, rles = given(image_id)
        return f"{provenance.stat_fingerprint(path)}:{hashlib.sha256(json.dumps(rles).encode()).hexdigest()}"

    return sample_cache.build(
        folder
        / sample_cache.cache_name(f"{records.path.stem}_{image_size}", ids, tasks, records.path.absolute().parent.name),
        ids,
        prepare=partial(prepare, image_size=image_size),
        given=given,
        image_size=image_size,
        num_masks=len(tasks),
        record=provenance.describe({}, code=__file__),
        item_fingerprint=fingerprint,
        num_workers=num_workers,
    )


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
        which = int(np.searchsorted(self._starts, draw.index, side="right")) - 1
        source, index = self.caches[which], draw.index - int(self._starts[which])
        image, inside, _ = source[index]
        if self.augment and draw.key:
            image, inside = augment(image, inside, np.random.default_rng(draw.key), PADDED)
        return {"image": torch.from_numpy(image), "masks": torch.from_numpy(inside), "id": source.ids[index]}
