"""The classifier's side of the data: which images, their labels, batches of pixels, predictions."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from chexseg.classifier.labelled import LabelledImages
from chexseg.classifier.models import Classifier
from chexseg.data.chexpert import ImageSet
from chexseg.data.images import normalise, read_image, resize_square
from chexseg.evaluation import metrics
from chexseg.runtime import distributed
from chexseg.training import draws
from chexseg.training.loader import start_worker, started


class _Pixels(Dataset):
    """Decoded, resized images; black where the name is None."""

    def __init__(self, images: ImageSet, names: Sequence[str | None], size: int):
        self.paths, self.size = [None if name is None else images.path(name) for name in names], size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, tuple[int, int]]:
        path = self.paths[index]
        if path is None:
            return torch.zeros(self.size, self.size, dtype=torch.uint8), (0, 0)
        image = read_image(path)
        return torch.from_numpy(resize_square(image, self.size).copy()), image.shape


def _collate(samples) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    return torch.stack([pixels for pixels, _ in samples]), [size for _, size in samples]


def read_batches(
    images: ImageSet, ids: Sequence[str], size: int, batch_size: int, num_workers: int
) -> Iterator[tuple[list[str | None], torch.Tensor, list[tuple[int, int]]]]:
    """Batches of (ids, pixels (batch_size, size, size) uint8, original sizes) in order. An image has the same slot of a
    batch in every run (`draws.fixed_slots`); an empty slot has the id None. Workers decode while the network runs."""
    plan = draws.fixed_slots([images.rows[name] for name in ids], batch_size)
    names = [None if row is None else images.ids[row] for batch in plan for row in batch]
    loader = DataLoader(
        _Pixels(images, names, size),
        batch_size,
        num_workers=num_workers,
        collate_fn=_collate,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="spawn" if num_workers and torch.cuda.is_available() else None,
    )
    for start, (pixels, sizes) in enumerate(started(loader)):
        yield names[start * batch_size : (start + 1) * batch_size], pixels, sizes


@torch.no_grad()
def predict(model: Classifier, dataset: LabelledImages, batch_size: int, device: torch.device) -> np.ndarray:
    """Probabilities (N, T) of all images, on every rank; each rank works on its share."""
    probabilities = torch.zeros(len(dataset), len(model.spec.tasks), dtype=torch.float64)
    ranks = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    for batch in draws.in_order(len(dataset), batch_size, **ranks):
        pixels = torch.from_numpy(np.stack([dataset.pixels[draw.index].image for draw in batch])).to(device)
        logits = model.logits_from_features(model.features(normalise(pixels, model.spec.normalisation)))
        # In bf16 a sigmoid near 1 has steps of 0.004: ties that AUROC would count as halves.
        probabilities[[draw.index for draw in batch]] = logits.double().sigmoid().cpu()
    return distributed.all_reduce_sum(probabilities).numpy()


def aurocs(probabilities: np.ndarray, labels: np.ndarray, tasks: Sequence[str]) -> dict[str, float]:
    """AUROC of each task that occurs both present (1) and absent (0); other labels do not count."""
    certain = np.where(np.isin(labels, (0, 1)), labels, np.nan)
    scores = (metrics.auroc(p, y) for p, y in zip(probabilities.T, certain.T, strict=True))
    return {task: score for task, score in zip(tasks, scores, strict=True) if not np.isnan(score)}
