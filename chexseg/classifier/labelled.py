"""What the classifier trains on: the images of a label file, decoded once, with their labels.

Imports no torch: whether a finished training is up to date must cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from chexseg.data import chexpert, label_files, sample_cache
from chexseg.data.augmentation import STRETCHED, augment
from chexseg.data.chexpert import ImageSet
from chexseg.data.images import read_image, resize_square
from chexseg.data.sample_cache import Sample, SampleCache
from chexseg.errors import DataError
from chexseg.runtime import provenance
from chexseg.training.draws import Draw

if TYPE_CHECKING:
    import torch


class LabelledImages:
    """Cached images with their labels, indexed by `draws.Draw`: image (S, S) uint8, labels (T,), id."""

    def __init__(self, pixels: SampleCache, labels: np.ndarray, *, augment: bool):
        self.pixels, self.labels, self.augment = pixels, labels, augment

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, draw: Draw) -> dict[str, torch.Tensor | str]:
        import torch

        sample = self.pixels[draw.index]
        image = sample.image
        if self.augment and draw.key:
            image, _ = augment(image, sample.masks, np.random.default_rng(draw.key), STRETCHED)
        return {
            "image": torch.from_numpy(image),
            "labels": torch.from_numpy(self.labels[draw.index]),
            "id": self.pixels.ids[draw.index],
        }


def read_labelled(
    csv: Path,
    tasks: Sequence[str],
    *,
    aliases: Mapping[str, str],
    data_dir: Path,
    cache_dir: Path,
    image_size: int,
    augment: bool = False,
    scored: bool = False,
    views: str = "frontal",
    split: str | None = None,
    num_workers: int = 0,
) -> LabelledImages:
    """The images of a label file, of some `views` and, where it lists several sets, of `split`, stretched to
    (image_size, image_size).

    DataError where there is none, or, with `scored`, where no AUROC could be had from the labels.
    """
    frame = label_files.of_views(chexpert.read_labels(csv, tasks, aliases, split), views)
    if frame.empty:
        raise DataError(f"{csv}: no {'' if views == 'all' else views + ' '}image in it (see --views)")
    if scored and not any({0, 1} <= set(frame[task]) for task in tasks):
        columns = ", ".join(tasks)
        raise DataError(f"{csv}: no column has both a 1 and a 0, so that no AUROC can choose an epoch: {columns}")
    pixels = cached_pixels(ImageSet(data_dir, frame, csv=csv), cache_dir, image_size, num_workers)
    return LabelledImages(pixels, label_array(frame, tasks), augment=augment)


def label_array(frame: pd.DataFrame, tasks: Sequence[str]) -> np.ndarray:
    """(N, T) float32 of 1, 0, -1, NaN and NO_COLUMN, as `read_labels` gives them."""
    return frame[list(tasks)].to_numpy(np.float32)


def _decode(size: int, path: Path) -> Sample:
    image = read_image(path)
    return Sample(resize_square(image, size), np.zeros((0, size, size), np.uint8), image.shape)


def cached_pixels(images: ImageSet, folder: Path, size: int, num_workers: int) -> SampleCache:
    """The set's images, stretched to (size, size), decoded once."""
    record = provenance.describe({"image_size": size}, code=__file__)
    return sample_cache.build(
        folder / sample_cache.cache_name(f"classifier_{size}", images.frame["Path"].tolist()),
        images.ids,
        prepare=partial(_decode, size),
        inputs_of=images.path,
        image_size=size,
        num_masks=0,
        record=record,
        item_fingerprint=images.fingerprint,
        num_workers=num_workers,
    )
