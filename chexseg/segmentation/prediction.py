"""Masks at the original size from a trained segmentation network."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from chexseg.data import rle
from chexseg.data.images import fit_shape, fit_square, normalise, read_image
from chexseg.segmentation.model import SegmentationSpec, load_model
from chexseg.segmentation.prediction_gate import PredictionGate
from chexseg.segmentation.thresholds import read_thresholds
from chexseg.training.draws import Draw, fixed_slots
from chexseg.training.loader import Loader
from chexseg.training.loop import autocast

Entry = tuple[str, dict[str, dict]]  # image id, {task: run-length mask}


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


def predict_originals(
    ids: Sequence[str],
    *,
    model_path: Path,
    thresholds_path: Path,
    paths: Mapping[str, Path],
    device: torch.device,
    batch_size: int,
    gate: PredictionGate | None = None,
    precision: str = "auto",
    num_workers: int = 0,
) -> Iterator[Entry]:
    """(image id, {task: RLE at the original size}) of some images of a set, in order, by the network in `model_path`.

    ids    the images wanted, in the order in which they stand in `paths`
    paths  where the images of the whole set lie; an image's place among them is its place in a batch (`predict`)
    gate   empties masks of findings that the classifier thinks unlikely
    """
    network, spec, _ = load_model(model_path)
    row_of = {name: row for row, name in enumerate(paths)}
    return predict(
        network.to(device),
        spec,
        read_thresholds(thresholds_path, len(spec.tasks)),
        Originals(paths, ids, spec.image_size),
        batch_size=batch_size,
        device=device,
        precision=precision,
        num_workers=num_workers,
        rows=[row_of[name] for name in ids],
        present=gate.present(ids, spec.tasks) if gate else None,
    )


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
    present: np.ndarray | None = None,
) -> Iterator[Entry]:
    """(image id, {task: RLE at the original size}) for each image, in order.

    `rows` says where each image of `dataset` stands in the whole set, ascending. Fixed-size batches: row r always
    occupies slot r % batch_size, and a copy of the batch's first image fills each empty slot, so that a mask does not
    depend on how the images were divided. Where `present` (images of `dataset`, T) is False a mask is empty.
    """
    if present is None:
        present = np.ones((len(dataset), len(spec.tasks)), bool)
    limits = iter(np.where(present, thresholds, np.inf))  # the samples come in order
    options: dict[str, Any] = {"batch_size": batch_size, "precision": precision, "num_workers": num_workers}
    with ThreadPoolExecutor(max(1, min(4, torch.get_num_threads()))) as pool:
        for samples in probabilities(model, spec, dataset, rows=rows, device=device, **options):
            jobs = [
                pool.submit(original_masks, planes, tuple(sample["size"].tolist()), next(limits))
                for sample, planes in samples
            ]
            for (sample, _), job in zip(samples, jobs, strict=True):
                yield sample["id"], dict(zip(spec.tasks, job.result(), strict=True))


def probabilities(
    model: nn.Module,
    spec: SegmentationSpec,
    dataset: Originals,
    *,
    batch_size: int,
    device: torch.device,
    precision: str = "auto",
    num_workers: int = 0,
    rows: Sequence[int] | None = None,
) -> Iterator[list[tuple[dict, np.ndarray]]]:
    """For each batch of `predict`: its samples, as `dataset` gives them, with their probabilities (C, S, S)."""
    rows = range(len(dataset)) if rows is None else rows
    index_of = {row: index for index, row in enumerate(rows)}
    batches = [[None if row is None else index_of[row] for row in slots] for slots in fixed_slots(rows, batch_size)]
    in_use = [[slot for slot, index in enumerate(slots) if index is not None] for slots in batches]
    firsts = [next(index for index in slots if index is not None) for slots in batches]
    plan = [[Draw(first if i is None else i) for i in slots] for slots, first in zip(batches, firsts, strict=True)]
    loader = Loader(dataset, num_workers=num_workers, pin_memory=device.type == "cuda")
    with closing(loader):
        for used, batch in zip(in_use, loader(plan), strict=True):
            with torch.inference_mode(), autocast(device, precision):
                logits = model(normalise(batch["image"].to(device, non_blocking=True), spec.normalisation))
            planes = logits.float().sigmoid().cpu().numpy()
            yield [({key: values[i] for key, values in batch.items()}, planes[i]) for i in used]


def original_masks(
    probabilities: np.ndarray, size: tuple[int, int], thresholds: Sequence[float] | np.ndarray
) -> list[dict]:
    """(C, S, S) probabilities of a padded square -> C masks of `size` (height, width), as RLE.

    The padding is cut off, the probabilities are resized to `size` (bilinear, pixel centres aligned), and then compared
    with the thresholds: sharper than a mask that is resized after the comparison.
    """
    shape = fit_shape(*size, probabilities.shape[-1])
    large, masks = None, []
    for plane, threshold in zip(probabilities[:, : shape[0], : shape[1]], thresholds, strict=True):
        above = plane > threshold
        if not above.any():  # interpolation never exceeds the maximum
            masks.append(rle.empty(size))
            continue
        large = cv2.resize(plane, size[::-1], dst=large, interpolation=cv2.INTER_LINEAR)  # one piece of memory for all
        (top, bottom), (left, right) = (
            _reach(np.flatnonzero(above.any(1 - axis)), shape[axis], size[axis]) for axis in (0, 1)
        )
        mask = large[top:bottom, left:right] > threshold
        # Run lengths go down the columns: transposed by blocks, four times as fast as NumPy's copy.
        masks.append(rle.encode_box(cv2.transpose(mask.view(np.uint8)), top, left, size))
    return masks


def _reach(above: np.ndarray, source: int, target: int) -> tuple[int, int]:
    """Which of `target` pixels, from and to, may have one of the pixels `above` of `source` as a neighbour: all others
    lie between pixels that are not above the threshold, and so are not above it either."""
    scale = target / source
    first, last = int((above[0] - 0.5) * scale) - 2, int((above[-1] + 1.5) * scale) + 2
    return max(0, first), min(target, last)
