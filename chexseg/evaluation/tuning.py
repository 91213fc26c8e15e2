"""Thresholds of saliency maps and cut-offs of probabilities per task, chosen by IoU on expert masks.

Every threshold is tried at once: an image's pixels are counted by how many thresholds they exceed. Writing what was
chosen, in CheXlocalize's two CSV formats, is here too. Choose on experts' training images only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chexseg.evaluation.metrics import Overlap
from chexseg.runtime.files import atomic

CRITERIA = {
    "pooled": "intersections and unions summed over the images, then divided (CheXseg)",
    "per_image": "mean of the images' IoU (CheXlocalize): of those with both masks for thresholds, of all for cut-offs",
}
THRESHOLDS = tuple(i / 100 for i in range(100))
CUTOFFS = tuple(i / 20 for i in range(20))


def histogram(values: np.ndarray, truth: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> np.ndarray:
    """(2, 1 + thresholds) int64: pixels outside and inside `truth` (h, w) by how many of the ascending thresholds their
    value (h, w) exceeds, strictly. A value that is not finite exceeds none."""
    exceeded = np.searchsorted(np.asarray(thresholds), np.where(np.isfinite(values), values, -np.inf), side="left")
    length = len(thresholds) + 1
    return np.bincount((exceeded + length * (truth > 0)).ravel(), minlength=2 * length).reshape(2, length)


@dataclass
class Curves:
    """Pixel counts of every image, task and threshold: `predicted` and `intersection` (N, T, K) float64, `truth`
    (N, T); NaN where the experts' mask is unknown."""

    images: list[str]
    tasks: tuple[str, ...]
    thresholds: Sequence[float]
    predicted: np.ndarray
    intersection: np.ndarray
    truth: np.ndarray

    @classmethod
    def of(
        cls,
        images: Sequence[str],
        tasks: Sequence[str],
        histograms: np.ndarray,
        thresholds: Sequence[float] = THRESHOLDS,
    ) -> "Curves":
        """From `histogram` of each image and task, (N, T, 2, 1 + K); NaN = unknown."""
        above = histograms[..., ::-1].cumsum(-1)[..., ::-1][..., 1:]  # pixels that exceed the k-th threshold
        inside = histograms[..., 1, :].sum(-1)
        return cls(list(images), tuple(tasks), thresholds, above.sum(-2), above[..., 1, :], inside)

    def only_positive(self) -> "Curves":
        """The same of the images with the finding; all others count as unknown."""
        positive = self.truth > 0
        predicted, both = (np.where(positive[..., None], a, np.nan) for a in (self.predicted, self.intersection))
        truth = np.where(positive, self.truth, np.nan)
        return Curves(self.images, self.tasks, self.thresholds, predicted, both, truth)

    def at(self, chosen: Sequence[int]) -> Overlap:
        """What scores are made of, at one threshold a task, by its place in `thresholds`."""
        columns = np.arange(len(self.tasks))
        predicted, both = self.predicted[:, columns, chosen], self.intersection[:, columns, chosen]
        return Overlap(self.images, self.tasks, both, predicted + self.truth - both, predicted, self.truth)

    def scores(self, criterion: str = "pooled") -> np.ndarray:
        """(T, K) IoU of each task at each threshold; NaN for a task without a mask."""
        columns = [
            score(self.at([k] * len(self.tasks)), criterion, true_positives=True) for k in range(len(self.thresholds))
        ]
        return np.stack(columns, axis=1)


def score(overlap: Overlap, criterion: str = "pooled", *, true_positives: bool = False) -> np.ndarray:
    """(T,) IoU of each task by one of CRITERIA; NaN for a task whose experts' masks are all empty or unknown.

    true_positives: the mean over images of which both masks hold a pixel; a task without such an image has 0.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion {criterion!r}: expected one of {', '.join(CRITERIA)}")
    if criterion == "pooled":
        above, below = np.nansum(overlap.intersection, 0), np.nansum(overlap.union, 0)
    else:
        each = overlap.per_image(true_positives=true_positives)
        above, below = np.nansum(each, 0), (~np.isnan(each)).sum(0).astype(float)
    iou = np.divide(above, below, out=np.zeros(len(overlap.tasks)), where=below > 0)
    return np.where(np.nansum(overlap.truth, 0) > 0, iou, np.nan)


def gated(overlap: Overlap, present: np.ndarray) -> Overlap:
    """The overlap of masks that are empty where `present` (N, T) is False."""
    predicted, both = np.where(present, overlap.predicted, 0), np.where(present, overlap.intersection, 0)
    known = np.isnan(overlap.truth)
    predicted[known], both[known] = np.nan, np.nan
    union = predicted + overlap.truth - both
    return Overlap(overlap.images, overlap.tasks, both, union, predicted, overlap.truth)


def cutoff_scores(
    overlap: Overlap, probabilities: np.ndarray, criterion: str = "pooled", cutoffs: Sequence[float] = CUTOFFS
) -> np.ndarray:
    """(T, cutoffs) IoU where a mask is emptied unless its probability (N, T) lies above the cut-off."""
    return np.stack([score(gated(overlap, probabilities > cutoff), criterion) for cutoff in cutoffs], axis=1)


def best(scores: np.ndarray) -> np.ndarray:
    """(T,) place of the highest of each row's scores, the first of equals; -1 for a row without a score above 0, which
    says nothing about where to cut."""
    known = np.nan_to_num(scores)
    return np.where(known.max(1) > 0, known.argmax(1), -1)


def write_thresholds(path: Path, tasks: Sequence[str], thresholds: Sequence[float], chosen: np.ndarray) -> None:
    """CheXlocalize's `threshold,task`; a task without a choice is left out."""
    rows = [f"{thresholds[place]},{task}" for task, place in zip(tasks, chosen, strict=True) if place >= 0]
    _write(path, ["threshold,task", *rows])


def write_cutoffs(path: Path, tasks: Sequence[str], cutoffs: Sequence[float], scores: np.ndarray) -> None:
    """CheXlocalize's `prob_threshold,mIoU,task`: a row for every cut-off, of which that of the highest mIoU counts. A
    task without a score above 0 is left out, which is to say not gated."""
    rows = [
        f"{cutoff},{value:.6f},{task}"
        for task, values in zip(tasks, scores, strict=True)
        for cutoff, value in zip(cutoffs, values, strict=True)
        if np.nanmax(values, initial=0) > 0
    ]
    _write(path, ["prob_threshold,mIoU,task", *rows])


def _write(path: Path, lines: Sequence[str]) -> None:
    with atomic(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
