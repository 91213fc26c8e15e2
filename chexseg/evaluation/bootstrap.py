"""Bootstrap over patients: intervals of IoU under both protocols, and of differences between methods.

All images of a patient are drawn together, and all methods are scored on the same draws, so that a difference's
interval is that of a paired comparison. A replicate is a row of counts (how often each patient was drawn); times
per-patient sums it gives every score of the replicate at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexseg.data.chexpert import patient_of
from chexseg.evaluation.metrics import Overlap

PROTOCOLS = {
    "pooled": "CheXseg: intersections and unions summed over the images, then divided",
    "per_image": "CheXlocalize: mean of per-image IoU over true positives (both masks non-empty)",
    "per_image_all": "CheXlocalize: mean of per-image IoU, false positives and false negatives counting 0",
}
MAX_WEIGHTS = 1 << 23  # weights in double precision at once: 64 MB


class Resamples:
    """`num_replicates` draws of as many patients as there are, with replacement; row 0 is the data itself."""

    def __init__(self, images: Sequence[str], num_replicates: int = 1000, seed: int = 17):
        patients, self.patient_of_row = np.unique([patient_of(name) for name in images], return_inverse=True)
        generator = np.random.default_rng(seed)
        self.weights = np.ones((num_replicates + 1, len(patients)), np.uint16)
        for row in self.weights[1:]:
            drawn = generator.integers(len(patients), size=len(patients))
            row[:] = np.bincount(drawn, minlength=len(patients))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(images, tasks), NaN = leave out -> (1 + replicates, tasks): the sum over each replicate's images."""
        per_patient = np.zeros((self.weights.shape[1], values.shape[1]))
        np.add.at(per_patient, self.patient_of_row, np.nan_to_num(values))
        rows = max(1, MAX_WEIGHTS // self.weights.shape[1])
        chunks = [
            self.weights[i : i + rows].astype(np.float64) @ per_patient for i in range(0, len(self.weights), rows)
        ]
        return np.concatenate(chunks)

    def means(self, values: np.ndarray) -> np.ndarray:
        """(images, tasks), NaN = leave out -> (1 + replicates, tasks) means; NaN where nothing is left."""
        return _ratio(self.sums(values), self.sums(~np.isnan(values)))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


@dataclass
class Scores:
    """IoU of one method: `values` (1 + replicates, tasks + 1), row 0 as measured, the last column mIoU."""

    tasks: tuple[str, ...]
    values: np.ndarray
    n_images: np.ndarray  # (tasks + 1,) images that entered the score
    n_positive: np.ndarray  # (tasks + 1,) images with ground truth


def score(overlap: Overlap, resamples: Resamples, protocol: str) -> Scores:
    """IoU per task and mIoU, as measured and in every replicate.

    A task without a pixel of ground truth is not scored (NaN), in the data or in a replicate, and mIoU is the mean over
    the tasks that are.
    """
    if protocol == "pooled":
        values = _ratio(resamples.sums(overlap.intersection), resamples.sums(overlap.union))
        return _scores(values, ~np.isnan(overlap.truth), overlap, resamples)
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    # A method that never finds a task has no true positive to average: it gets 0 there, not a gap in its mean.
    return score_means(overlap.per_image(true_positives=protocol == "per_image"), overlap, resamples, never=0)


def score_means(each: np.ndarray, overlap: Overlap, resamples: Resamples, *, never: float = np.nan) -> Scores:
    """The mean of a score per image and task (images, tasks), NaN = leave out; a hit rate, for example.

    never: the mean of a task that has no value in any image. A replicate that merely drew none has no mean.
    """
    means = resamples.means(each)
    means[:, np.isnan(means[0])] = never
    return _scores(means, ~np.isnan(each), overlap, resamples)


def _scores(values: np.ndarray, entered: np.ndarray, overlap: Overlap, resamples: Resamples) -> Scores:
    positive = overlap.truth > 0
    values = np.where(resamples.sums(positive) > 0, values, np.nan)
    scored = positive.any(0)
    return Scores(
        tasks=overlap.tasks,
        values=np.concatenate([values, _nan_mean(values)[:, None]], 1),
        n_images=np.append(entered.sum(0), entered[:, scored].any(1).sum()),
        n_positive=np.append(positive.sum(0), positive.any(1).sum()),
    )


def _nan_mean(values: np.ndarray) -> np.ndarray:
    return _ratio(np.nan_to_num(values).sum(1), (~np.isnan(values)).sum(1).astype(float))


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """(1 + replicates,) -> (value, lower, upper): as measured, and the percentile interval of the replicates."""
    replicates = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]) or not len(replicates):
        return float(values[0]), float("nan"), float("nan")
    lower, upper = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(values[0]), float(lower), float(upper)


def table(scores: Scores, protocol: str) -> pd.DataFrame:
    """A row per task and one for mIoU: protocol, task, iou, lower, upper, n_images, n_positive."""
    intervals = np.array([interval(column) for column in scores.values.T])
    columns = {"protocol": protocol, "task": [*scores.tasks, "mIoU"]}
    columns |= dict(zip(("iou", "lower", "upper"), intervals.T, strict=True))
    return pd.DataFrame(columns | {"n_images": scores.n_images, "n_positive": scores.n_positive})


def difference(a: Scores, b: Scores) -> np.ndarray:
    """a - b in every replicate, (1 + replicates, tasks + 1), for `interval`."""
    return a.values - b.values


def ratio(a: Scores, b: Scores) -> np.ndarray:
    """a / b in every replicate, (1 + replicates, tasks + 1); NaN where b is 0."""
    return _ratio(a.values, b.values)
