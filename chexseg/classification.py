"""The classifier's side of the data: which images, their labels under an uncertainty policy, batches of pixels."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from chexseg import data, provenance


class ImageSet:
    """The images of a label table: `ids`, and for each its file, found once."""

    def __init__(self, data_dir: Path, frame: pd.DataFrame, csv: Path):
        self.data_dir, self.frame, self.csv = Path(data_dir), frame, Path(csv)
        self.ids = list(frame.index)
        self._prefix: str | None = None

    def path(self, image_id: str) -> Path:
        """The image's file. The first one shows where the label file's paths start; others are tried there first."""
        listed = self.frame.at[image_id, "Path"]
        if self._prefix is not None:
            guess = Path(self._prefix + listed)
            if guess.is_file():
                return guess
        found = data.csv_image_path(self.data_dir, listed)
        if str(found).endswith(listed):
            self._prefix = str(found).removesuffix(listed)
        return found

    def fingerprint(self, image_id: str) -> str:
        return provenance.stat_fingerprint(self.path(image_id))


class _Pixels(Dataset):
    """Decoded, resized images; the last batch is filled up with black, so that every batch has the same shape and an
    image's result cannot depend on how many others came with it."""

    def __init__(self, images: ImageSet, ids: Sequence[str], size: int, batch_size: int):
        self.paths, self.size = [images.path(name) for name in ids], size
        self.length = -(-len(ids) // batch_size) * batch_size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, tuple[int, int]]:
        if index >= len(self.paths):
            return torch.zeros(self.size, self.size, dtype=torch.uint8), (0, 0)
        image = data.read_image(self.paths[index])
        return torch.from_numpy(data.resize_square(image, self.size).copy()), image.shape


def _collate(samples) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    return torch.stack([pixels for pixels, _ in samples]), [size for _, size in samples]


def read_batches(
    images: ImageSet, ids: Sequence[str], size: int, batch_size: int, num_workers: int
) -> Iterator[tuple[list[str], torch.Tensor, list[tuple[int, int]]]]:
    """(ids, pixels (batch_size, size, size) uint8, original sizes) in order; the last batch's pixels may outnumber
    its ids. Workers decode while the network runs."""
    loader = DataLoader(
        _Pixels(images, ids, size, batch_size),
        batch_size,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="spawn" if num_workers and torch.cuda.is_available() else None,
    )
    for start, (pixels, sizes) in enumerate(loader):
        yield list(ids[start * batch_size : (start + 1) * batch_size]), pixels, sizes


def label_array(frame: pd.DataFrame, tasks: Sequence[str]) -> np.ndarray:
    """(N, T) float32 of 1, 0, -1 and NaN, as the label file has them."""
    return frame[list(tasks)].to_numpy(np.float32)
