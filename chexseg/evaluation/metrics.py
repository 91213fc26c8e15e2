"""Scores: IoU between mask files, AUROC. Intervals are in `bootstrap`, IoU at many thresholds in `pooled_iou`, the hit
rate of saliency maps in `hits`.

Two protocols, never mixed. *Pooled* (CheXseg): intersections and unions are summed over the set, then divided.
*Per image* (CheXlocalize): the mean of the images' IoUs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pycocotools import mask as coco

from chexseg.data import mask_columns, rle
from chexseg.data.mask_columns import MaskColumns
from chexseg.errors import DataError

# What is counted of a pair of masks, each a ratio of pixels. Specificity needs the image's size.
METRICS = ("iou", "dice", "precision", "recall", "specificity")


def mean_iou(iou: Sequence[float] | np.ndarray) -> float:
    """Mean over the classes that occur (not NaN); NaN when none does."""
    iou = np.asarray(iou, np.float64)
    return float(iou[~np.isnan(iou)].mean()) if (~np.isnan(iou)).any() else float("nan")


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
    pixels: np.ndarray = field(default_factory=lambda: np.array(np.nan))  # of the whole image; NaN where not known

    def __post_init__(self) -> None:
        shape = len(self.images), len(self.tasks)
        self.pixels = np.broadcast_to(self.pixels, shape)
        for name in ("intersection", "union", "predicted", "truth"):
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected {shape}")

    def parts(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Numerator and denominator of a metric (of METRICS) in pixels, (images, tasks) each."""
        if metric == "iou":
            return self.intersection, self.union
        if metric == "dice":
            return 2 * self.intersection, self.predicted + self.truth
        if metric == "precision":
            return self.intersection, self.predicted
        if metric == "recall":
            return self.intersection, self.truth
        if metric == "specificity":
            return self.pixels - self.union, self.pixels - self.truth
        raise ValueError(f"metric {metric!r}: expected one of {', '.join(METRICS)}")

    def where(self, images: np.ndarray) -> "Overlap":
        """The same with other images than `images` (a Boolean for each) left unscored."""

        def kept(counts: np.ndarray) -> np.ndarray:
            return np.where(images[:, None], counts, np.nan)

        return replace(
            self,
            intersection=kept(self.intersection),
            union=kept(self.union),
            predicted=kept(self.predicted),
            truth=kept(self.truth),
            pixels=kept(self.pixels),
        )

    def per_image(self, *, true_positives: bool, metric: str = "iou") -> np.ndarray:
        """The metric of each pair, (images, tasks). NaN, which no mean counts, where its denominator is 0 (IoU: both
        masks are empty); with `true_positives` (CheXlocalize's default) also where one of the masks is empty."""
        numerator, denominator = self.parts(metric)
        values = np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator > 0)
        if true_positives:
            values[(self.predicted == 0) | (self.truth == 0)] = np.nan
        return values


def overlap(
    predictions: Mapping[str, Mapping],
    truth: Mapping[str, Mapping],
    tasks: Sequence[str],
    images: Iterable[str],
    *,
    unknown_is_empty: bool = True,
) -> Overlap:
    """Compare the masks of `images`, which all have ground truth, without decoding one.

    An image without prediction is not scored (NaN); one task missing in its ground truth was not annotated and is not
    scored; one missing in its prediction counts as an empty mask, so that no method gains by silence, or, with
    `unknown_is_empty` False (pseudo masks, which may be unknown), is not scored either. All of this is told in `notes`.
    Raises DataError where the masks of a pair differ in size.
    """
    images = list(images)
    counts = np.full((5, len(images), len(tasks)), np.nan)
    unannotated, unpredicted = np.zeros((2, len(tasks)), np.int64)
    rows = np.array([row for row, image in enumerate(images) if image in predictions], np.int64)
    names, done = [images[row] for row in rows], 0
    blocks = (mask_columns.read(masks, names, tasks) for masks in (predictions, truth))
    for ours, true in zip(*blocks, strict=True):
        of_block, done = rows[done : done + len(ours.area)], done + len(ours.area)
        annotated, given = true.area >= 0, ours.area >= 0
        unannotated += (~annotated).sum(0)
        unpredicted += (annotated & ~given).sum(0)
        for row, column in np.argwhere(annotated & given & (ours.size != true.size).any(-1)):
            our, their = _size(ours.size[row, column]), _size(true.size[row, column])
            raise DataError(
                f"{images[of_block[row]]}: {tasks[column]}: prediction is {our}, ground truth is {their}; "
                "both must have the original film's: make again the one that has not (a prediction: "
                "pred_segmentation.py --phase test; ground truth: gt_segmentation.py)"
            )
        scored = annotated if unknown_is_empty else annotated & given
        counts[:, of_block] = np.where(scored, _pixel_counts(ours, true), np.nan)
    absent = [image for image in images if image not in predictions]
    notes = [f"no prediction of {len(absent)} images, not scored: {some(absent)}"] if absent else []
    notes += [
        f"{task}: not annotated in {n} images, not scored there"
        for task, n in zip(tasks, unannotated, strict=True)
        if n
    ]
    how = "counted as empty" if unknown_is_empty else "not scored there"
    notes += [f"{task}: no prediction in {n} images, {how}" for task, n in zip(tasks, unpredicted, strict=True) if n]
    intersection, union, predicted, annotated, pixels = counts
    return Overlap(images, tuple(tasks), intersection, union, predicted, annotated, notes, pixels)


def some(names: Sequence[str], count: int = 5) -> str:
    """The first names of a list, for a message."""
    return ", ".join(list(names)[:count]) + (", ..." if len(names) > count else "")


def _size(size: np.ndarray) -> str:
    return f"{size[0]} x {size[1]}"


def _pixel_counts(ours: MaskColumns, true: MaskColumns) -> np.ndarray:
    """Intersection, union, predicted, true and all pixels of each pair of masks, (5, images, tasks); of no use where
    the truth is lacking."""
    truth, predicted = true.area, np.maximum(ours.area, 0)
    intersection, both = np.zeros_like(truth), (predicted > 0) & (truth > 0)
    pairs = zip(ours.masks(both), true.masks(both), strict=True)
    intersection[both] = rle.area([coco.merge(list(pair), intersect=True) for pair in pairs])
    return np.stack([intersection, predicted + truth - intersection, predicted, truth, true.size.prod(-1)])


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
