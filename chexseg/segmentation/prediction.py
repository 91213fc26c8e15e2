"""Masks at the original size from a trained segmentation network."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from chexseg.data import rle
from chexseg.data.images import fit_shape, fit_square, normalise, read_image
from chexseg.segmentation.model import SegmentationSpec
from chexseg.training.draws import Draw, fixed_slots
from chexseg.training.loader import Loader
from chexseg.training.loop import autocast


class Originals:
    """Images by id, decoded now: a dataset of dicts with `image` (S, S) uint8, `size` (height, width), `id`."""

    def __init__(self, paths: Mapping[str, Path], ids: Sequence[str], image_size: int):
        self.paths, self.ids, self.image_size = paths, list(ids), image_size

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor | str]:
        name = self.ids[draw.index]
        image = read_image(self.paths[name])
        square = torch.from_numpy(fit_square(image, self.image_size))
        return {"image": square, "size": torch.tensor(image.shape), "id": name}


def predict(
    model: nn.Module,
    spec: SegmentationSpec,
    thresholds: Sequence[float],
    dataset: Originals,
    *,
    batch_size: int,
    device: torch.device,
    precision: str = "auto",
    num_workers: int = 0,
    rows: Sequence[int] | None = None,
) -> Iterator[tuple[str, dict[str, dict]]]:
    """(image id, {task: RLE at the original size}) for each image, in order.

    `rows` says where each image of `dataset` stands in the whole set, ascending: it has that place in its batch
    (`draws.fixed_slots`), which others fill up, so that a mask does not depend on how the images were divided.
    """
    rows = range(len(dataset)) if rows is None else rows
    indices = {row: index for index, row in enumerate(rows)}
    plan = [[indices.get(row) for row in batch] for batch in fixed_slots(rows, batch_size)]
    parts = [[place for place, index in enumerate(batch) if index is not None] for batch in plan]
    filling = [next(index for index in batch if index is not None) for batch in plan]
    full = [[Draw(other if i is None else i) for i in batch] for batch, other in zip(plan, filling, strict=True)]
    loader = Loader(dataset, num_workers=num_workers, pin_memory=device.type == "cuda")
    with closing(loader), ThreadPoolExecutor(max(1, min(4, torch.get_num_threads()))) as pool:
        for part, batch in zip(parts, loader(full), strict=True):
            with torch.inference_mode(), autocast(device, precision):
                logits = model(normalise(batch["image"].to(device, non_blocking=True), spec.normalisation))
            probabilities = logits.float().sigmoid().cpu().numpy()
            sizes = [tuple(size) for size in batch["size"].tolist()]
            jobs = [pool.submit(original_masks, probabilities[i], sizes[i], thresholds) for i in part]
            for i, job in zip(part, jobs, strict=True):
                yield batch["id"][i], dict(zip(spec.tasks, job.result(), strict=True))


def original_masks(probabilities: np.ndarray, size: tuple[int, int], thresholds: Sequence[float]) -> list[dict]:
    """(C, S, S) probabilities of a padded square -> C masks of `size` (height, width), as RLE.

    The padding is cut off, the probabilities are resized to `size` (bilinear, pixel centres aligned), and then compared
    with the thresholds: sharper than a mask that is resized after the comparison.
    """
    height, width = fit_shape(*size, probabilities.shape[-1])
    found = []
    for plane, threshold in zip(probabilities[:, :height, :width], thresholds, strict=True):
        mask = np.zeros(size, bool)
        if plane.max() > threshold:  # interpolation never exceeds the maximum
            mask = cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR) > threshold
        found.extend(rle.encode(mask[None]))
    return found
