"""The classifier's side of the data: which images, their labels, batches of pixels, predictions."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from chexseg.classifier.models import Classifier
from chexseg.data import sample_cache
from chexseg.data.chexpert import ImageSet
from chexseg.data.images import normalise, read_image, resize_square
from chexseg.data.sample_cache import Sample, SampleCache
from chexseg.evaluation import metrics
from chexseg.runtime import distributed, provenance
from chexseg.training import draws
from chexseg.training.draws import Draw
from chexseg.training.loader import watch_parent


class _Pixels(Dataset):
    """Decoded, resized images; black where the name is None."""

    def __init__(self, images: ImageSet, names: Sequence[str | None], size: int):
        self.paths, self.size = [None if name is None else images.path(name) for name in names], size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, tuple[int, int]]:
        if self.paths[index] is None:
            return torch.zeros(self.size, self.size, dtype=torch.uint8), (0, 0)
        image = read_image(self.paths[index])
        return torch.from_numpy(resize_square(image, self.size).copy()), image.shape


def _collate(samples) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    return torch.stack([pixels for pixels, _ in samples]), [size for _, size in samples]


def read_batches(
    images: ImageSet, ids: Sequence[str], size: int, batch_size: int, num_workers: int
) -> Iterator[tuple[list[str | None], torch.Tensor, list[tuple[int, int]]]]:
    """(ids, pixels (batch_size, size, size) uint8, original sizes) in order. Each image is at the place that it has in
    any run (`draws.fixed_slots`); the id is None where there is none. Workers decode while the network runs."""
    plan = draws.fixed_slots([images.rows[name] for name in ids], batch_size)
    names = [None if row is None else images.ids[row] for batch in plan for row in batch]
    loader = DataLoader(
        _Pixels(images, names, size),
        batch_size,
        num_workers=num_workers,
        collate_fn=_collate,
        worker_init_fn=watch_parent,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="spawn" if num_workers and torch.cuda.is_available() else None,
    )
    for start, (pixels, sizes) in enumerate(loader):
        yield names[start * batch_size : (start + 1) * batch_size], pixels, sizes


def label_array(frame: pd.DataFrame, tasks: Sequence[str]) -> np.ndarray:
    """(N, T) float32 of 1, 0, -1 and NaN, as the label file has them."""
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
        given=images.path,
        image_size=size,
        num_masks=0,
        record=record,
        item_fingerprint=images.fingerprint,
        num_workers=num_workers,
    )


class LabelledImages(Dataset):
    """Cached images with their labels, indexed by `draws.Draw`: image (S, S) uint8, labels (T,), id."""

    def __init__(self, pixels: SampleCache, labels: np.ndarray, *, augment: bool):
        self.pixels, self.labels, self.augment = pixels, labels, augment

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, draw: Draw) -> dict:
        image = self.pixels[draw.index].image
        if self.augment and draw.key:
            image = jitter(image, np.random.default_rng(draw.key))
        return {
            "image": torch.from_numpy(image),
            "labels": torch.from_numpy(self.labels[draw.index]),
            "id": self.pixels.ids[draw.index],
        }


def jitter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A shifted, turned, scaled and re-exposed X-ray (S, S) uint8: up to 5% of its side, 5 degrees, 10% and 20%.

    Never mirrored: the heart is on the left.
    """
    side = image.shape[0]
    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), rng.uniform(-5, 5), rng.uniform(0.9, 1.1))
    matrix[:, 2] += rng.uniform(-0.05, 0.05, 2) * side
    moved = cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    levels = (np.arange(256) - 128) * rng.uniform(0.8, 1.2) + 128 + rng.uniform(-25, 25)
    return cv2.LUT(moved, np.clip(levels, 0, 255).astype(np.uint8))


@torch.no_grad()
def predict(model: Classifier, dataset: LabelledImages, batch_size: int, device: torch.device) -> np.ndarray:
    """Probabilities (N, T) of all images, on every rank; each rank works on its share."""
    found = torch.zeros(len(dataset), len(model.spec.tasks), dtype=torch.float64)
    ranks = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    for batch in draws.in_order(len(dataset), batch_size, **ranks):
        pixels = torch.stack([dataset[draw]["image"] for draw in batch]).to(device)
        logits = model.logits_from_features(model.features(normalise(pixels, model.spec.normalisation)))
        # In bf16 a sigmoid near 1 has steps of 0.004: ties that AUROC would count as halves.
        found[[draw.index for draw in batch]] = logits.double().sigmoid().cpu()
    return distributed.all_reduce_sum(found).numpy()


def aurocs(probabilities: np.ndarray, labels: np.ndarray, tasks: Sequence[str]) -> dict[str, float]:
    """AUROC of each task that occurs both present (1) and absent (0); other labels do not count."""
    certain = np.where(np.isin(labels, (0, 1)), labels, np.nan)
    scores = (metrics.auroc(p, y) for p, y in zip(probabilities.T, certain.T, strict=True))
    return {task: score for task, score in zip(tasks, scores, strict=True) if not np.isnan(score)}
