"""Scores: IoU pooled over a set at many thresholds, IoU between mask files, AUROC. Intervals are in `bootstrap`.

Two protocols, never mixed. *Pooled* (CheXseg): intersections and unions are summed over the set, then divided.
*Per image* (CheXlocalize): the mean of the images' IoUs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from pycocotools import mask as coco

from chexseg import distributed, masks
from chexseg.errors import DataError

NUM_THRESHOLDS = 20
THRESHOLDS = tuple(i / NUM_THRESHOLDS for i in range(NUM_THRESHOLDS))  # 0, 0.05 ... 0.95
_BINS = NUM_THRESHOLDS + 1
_SLICE = 1 << 22  # pixels counted at once: float32 counts are exact up to 2^24


class PooledIoU:
    """IoU of each class at every threshold of THRESHOLDS, pooled over all that `update` saw.

    A pixel is predicted where its probability is *strictly above* the threshold, as in the original; compared in double
    precision, so threshold 0 means any positive probability. Each pixel is looked at once, whatever the number of
    thresholds: `counts` (classes, 2, 21) is a histogram by ground truth (0, 1) and by how many thresholds the
    probability exceeds. It can be summed over ranks. A NaN probability is never above a threshold.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self.counts = torch.zeros(num_classes, 2, _BINS, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, probabilities: torch.Tensor, targets: torch.Tensor) -> None:
        """Add a batch: probabilities (B, C, h, w) floating, targets (B, C, h, w) in {0, 1}, both on one device."""
        if probabilities.shape != targets.shape or probabilities.shape[1] != len(self.counts):
            raise ValueError(f"{tuple(probabilities.shape)} and {tuple(targets.shape)} for {len(self.counts)} classes")
        probabilities, targets = probabilities.detach().flatten(2), targets.flatten(2) > 0
        count = _count_on_cpu if probabilities.device.type == "cpu" else _count
        self.counts += count(probabilities, targets).to(self.counts.device)

    def all_reduce(self) -> None:
        """Sum over ranks, once all batches are in."""
        distributed.all_reduce_sum(self.counts)

    def iou(self) -> torch.Tensor:
        """(classes, 20) float64 on the CPU; NaN for a class without a pixel of ground truth."""
        counts = self.counts.cpu()
        # From the top: pixels that exceed threshold j are those that exceed more than j thresholds.
        above = counts.flip(-1).cumsum(-1).flip(-1)[:, :, 1:]
        truth = counts[:, 1].sum(-1, keepdim=True)
        iou = above[:, 1].double() / (truth + above[:, 0]).double()
        return torch.where(truth > 0, iou, torch.nan)

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(IoU, threshold) of each class at its best threshold, the lowest of equals; NaN and 0.5 where it never
        occurs."""
        iou = self.iou()
        best, index = iou.nan_to_num(-1).max(-1)
        # torch.max promises no order among equals.
        index = (iou == best[:, None]).to(torch.uint8).argmax(-1)
        occurs = ~iou.isnan().all(-1)
        thresholds = torch.tensor(THRESHOLDS, dtype=torch.float64)[index]
        return torch.where(occurs, best, torch.nan), torch.where(occurs, thresholds, 0.5)

    def at(self, thresholds: Sequence[float]) -> torch.Tensor:
        """(classes,) IoU at each class's own threshold, one of THRESHOLDS (thresholds chosen on other data)."""
        columns = [round(value * NUM_THRESHOLDS) for value in thresholds]
        for value, column in zip(thresholds, columns, strict=True):
            if not 0 <= column < NUM_THRESHOLDS or abs(THRESHOLDS[column] - value) > 1e-6:
                raise DataError(f"threshold {value}: expected one of 0, 0.05 ... 0.95")
        return self.iou()[torch.arange(len(self.counts)), torch.tensor(columns)]


def mean_iou(iou: torch.Tensor | np.ndarray) -> float:
    """Mean over the classes that occur (not NaN); NaN when none does."""
    iou = np.asarray(iou, np.float64)
    return float(iou[~np.isnan(iou)].mean()) if (~np.isnan(iou)).any() else float("nan")


def _count(probabilities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(B, C, n) -> (C, 2, 21) in one histogram, for any device."""
    classes = probabilities.shape[1]
    bins = (probabilities.double() * NUM_THRESHOLDS).ceil_().nan_to_num_(0, NUM_THRESHOLDS, 0)
    index = bins.clamp_(0, NUM_THRESHOLDS).long().add_(targets, alpha=_BINS)
    index += 2 * _BINS * torch.arange(classes, device=index.device)[:, None]
    return torch.bincount(index.flatten(), minlength=classes * 2 * _BINS).view(classes, 2, _BINS)


def _count_on_cpu(probabilities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The same, slice by slice within the cache: OpenCV's histogram of bytes takes a third of torch's time."""
    found = np.zeros((probabilities.shape[1], 2 * _BINS), np.int64)
    probabilities, targets = probabilities.float().numpy(), targets.numpy().view(np.uint8)
    for image, truth in zip(probabilities, targets, strict=True):
        for row, values, inside in zip(found, image, truth, strict=True):
            for start in range(0, len(values), _SLICE):
                bins = np.multiply(values[start : start + _SLICE], NUM_THRESHOLDS, dtype=np.float64)
                np.fmax(np.ceil(bins, out=bins), 0, out=bins)  # NaN -> 0
                index = np.minimum(bins, NUM_THRESHOLDS, out=bins).astype(np.uint8)
                index += inside[start : start + _SLICE] * np.uint8(_BINS)
                histogram = cv2.calcHist([index.reshape(1, -1)], [0], None, [2 * _BINS], [0, 2 * _BINS])
                row += histogram.ravel().astype(np.int64)
    return torch.from_numpy(found.reshape(-1, 2, _BINS))


@dataclass
class Overlap:
    """Pixel counts of predicted against true masks, (images, tasks) float64; NaN where a pair is not scored."""

    images: list[str]
    tasks: tuple[str, ...]
    intersection: np.ndarray
    union: np.ndarray
    predicted: np.ndarray
    truth: np.ndarray
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape = len(self.images), len(self.tasks)
        for name in ("intersection", "union", "predicted", "truth"):
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected {shape}")

    def per_image(self, *, true_positives: bool) -> np.ndarray:
        """IoU of each pair, (images, tasks). NaN, which no mean counts, where both masks are empty; with
        `true_positives` (CheXlocalize's default) also where one of them is."""
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = self.intersection / self.union
        if true_positives:
            iou[(self.predicted == 0) | (self.truth == 0)] = np.nan
        return iou


def overlap(
    predictions: Mapping[str, Mapping], truth: Mapping[str, Mapping], tasks: Sequence[str], images: Iterable[str]
) -> Overlap:
    """Compare the masks of `images`, which all have ground truth, without decoding one.

    An image without prediction is not scored (NaN); a task missing in an image's prediction counts as an empty mask;
    one missing in its ground truth was not annotated and is not scored. All of this is told in `notes`. Raises
    DataError where the masks of a pair differ in size.
    """
    images = list(images)
    counts = np.full((4, len(images), len(tasks)), np.nan)
    unpredicted, unannotated = dict.fromkeys(tasks, 0), dict.fromkeys(tasks, 0)
    absent = [image for image in images if image not in predictions]
    for row, image in enumerate(images):
        if image not in predictions:
            continue
        ours, true = predictions[image], truth[image]
        for task in tasks:
            unannotated[task] += task not in true
            unpredicted[task] += task in true and task not in ours
        columns = [column for column, task in enumerate(tasks) if task in true]
        pairs = [(ours.get(tasks[c]), true[tasks[c]]) for c in columns]
        for column, (predicted, annotated) in zip(columns, pairs, strict=True):
            if predicted is not None and list(predicted["size"]) != list(annotated["size"]):
                raise DataError(
                    f"{image}: {tasks[column]}: prediction is {_size(predicted)}, ground truth is {_size(annotated)}; "
                    "make the prediction at the original's size (pred_segmentation.py --phase test)"
                )
        counts[:, row, columns] = _pair_counts(pairs)
    notes = [f"no prediction of {len(absent)} images, not scored: {some(absent)}"] if absent else []
    notes += [f"{task}: not annotated in {n} images, not scored there" for task, n in unannotated.items() if n]
    notes += [f"{task}: no prediction in {n} images, counted as empty" for task, n in unpredicted.items() if n]
    return Overlap(images, tuple(tasks), *counts, notes)


def some(names: Sequence[str], count: int = 5) -> str:
    """The first names of a list, for a message."""
    return ", ".join(list(names)[:count]) + (", ..." if len(names) > count else "")


def _size(rle: Mapping) -> str:
    return f"{rle['size'][0]} x {rle['size'][1]}"


def _pair_counts(pairs: Sequence[tuple[Mapping | None, Mapping]]) -> np.ndarray:
    """Intersection, union, predicted and true pixels of each pair, (4, pairs)."""
    truth = masks.area([true for _, true in pairs]) if pairs else np.zeros(0, np.int64)
    there = [i for i, (predicted, _) in enumerate(pairs) if predicted is not None]
    predicted = np.zeros_like(truth)
    if there:
        predicted[there] = masks.area([pairs[i][0] for i in there])
    both = np.flatnonzero((predicted > 0) & (truth > 0))
    intersection = np.zeros_like(truth)
    if len(both):
        intersection[both] = masks.area([coco.merge(list(pairs[i]), intersect=True) for i in both])
    return np.stack([intersection, predicted + truth - intersection, predicted, truth])


def hit(rle: Mapping, saliency: np.ndarray) -> bool:
    """Whether the centre of the map's largest value (h, w), the first of equals, lies inside the mask of the same field
    of view. A map without a positive finite value hits nothing."""
    saliency = np.where(np.isfinite(saliency), saliency, 0)
    if saliency.max() <= 0:
        return False
    peak = np.unravel_index(saliency.argmax(), saliency.shape)
    row, column = ((2 * p + 1) * m // (2 * n) for p, n, m in zip(peak, saliency.shape, rle["size"], strict=True))
    return bool(masks.sample(rle, np.array([row]), np.array([column]))[0, 0])


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in order, ties counting half (Mann-Whitney).

    Pairs with a NaN score or label are left out. NaN without both kinds of label.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    known = ~(np.isnan(scores) | np.isnan(labels))
    scores, positive = scores[known], labels[known] > 0
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))
