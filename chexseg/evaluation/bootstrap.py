"""Bootstrap over patients: intervals of every metric under every protocol, and of differences between methods.

All images of a patient are drawn together, and all methods are scored on the same draws, so that a difference's
interval is that of a paired comparison. A replicate is a row of counts (how often each patient was drawn); times
per-patient sums it gives every score of the replicate at once.

Two things that a plain percentile bootstrap gets wrong where a task is rare are put right here, for both made intervals
miss the truth (`tests/evaluation/test_coverage.py` measures it). A task that nobody in a replicate has keeps its
measured score in that replicate's mean, for leaving it out lifts the mean of the others. And resampling a task of k
patients shows too little of its spread (nothing at all for k = 1): `steadied` adds what is missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
PRIOR_PATIENTS = 2.0  # what the other tasks' spread weighs in the spread of a rare one


class Resamples:
    """`num_replicates` draws of as many patients as there are, with replacement; row 0 is the data itself.

    patient_of_image: whose an image is, where its id does not say so (`chexpert.patient_of`).
    """

    def __init__(
        self,
        images: Sequence[str],
        num_replicates: int = 1000,
        seed: int = 17,
        patient_of_image: Mapping[str, str] | None = None,
    ):
        names = [patient_of(name, patient_of_image) for name in images]
        patients, self.patient_of_row = np.unique(names, return_inverse=True)
        generator = np.random.default_rng(seed)
        self.weights = np.ones((num_replicates + 1, len(patients)), np.uint16)
        for row in self.weights[1:]:
            drawn = generator.integers(len(patients), size=len(patients))
            row[:] = np.bincount(drawn, minlength=len(patients))

    def per_patient(self, values: np.ndarray) -> np.ndarray:
        """(images, tasks), NaN = leave out -> (patients, tasks): the sum over each patient's images."""
        total = np.zeros((self.weights.shape[1], values.shape[1]))
        np.add.at(total, self.patient_of_row, np.nan_to_num(values))
        return total

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(images, tasks), NaN = leave out -> (1 + replicates, tasks): the sum over each replicate's images."""
        per_patient = self.per_patient(values)
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
    """Scores of one method: `values` (1 + replicates, tasks + 1), row 0 as measured, the last column the mean over the
    tasks (mIoU). A task's value is NaN in a replicate in which nobody has it."""

    tasks: tuple[str, ...]
    values: np.ndarray
    n_images: np.ndarray  # (tasks + 1,) images that entered the score
    n_positive: np.ndarray  # (tasks + 1,) images with ground truth
    n_patients: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (tasks,) patients whose truth is in the score

    def steadied(self) -> np.ndarray:
        """`values` for intervals (see the function of this name)."""
        return steadied(self.values[:, :-1], self.n_patients)


def score(overlap: Overlap, resamples: Resamples, protocol: str, metric: str = "iou") -> Scores:
    """A metric (`metrics.METRICS`) per task and its mean, as measured and in every replicate.

    A task without a pixel of ground truth is not scored (NaN), in the data or in a replicate. The mean is over the
    tasks that occur in the data; a replicate that lacks one keeps its measured score.
    """
    # A method that predicts nothing of a task has no precision, one that never finds it no true positive to average: 0
    # there, not a gap in its mean. Only an image without a pixel beside the finding has no specificity.
    never = np.nan if metric == "specificity" else 0
    if protocol == "pooled":
        numerator, denominator = overlap.parts(metric)
        values = _ratio(resamples.sums(numerator), resamples.sums(denominator))
        values[:, np.isnan(values[0])] = never
        return _scores(values, ~np.isnan(overlap.truth), overlap, resamples)
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    each = overlap.per_image(true_positives=protocol == "per_image", metric=metric)
    return score_means(each, overlap, resamples, never=never)


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
        values=np.concatenate([values, _mean_over_tasks(values)[:, None]], 1),
        n_images=np.append(entered.sum(0), entered[:, scored].any(1).sum()),
        n_positive=np.append(positive.sum(0), positive.any(1).sum()),
        n_patients=(resamples.per_patient(positive & entered) > 0).sum(0),
    )


def _mean_over_tasks(values: np.ndarray) -> np.ndarray:
    """(1 + replicates, tasks) -> (1 + replicates,): the mean over the tasks of row 0, of which a replicate keeps the
    measured score where it lacks the task itself."""
    occurs = ~np.isnan(values[0])
    if not occurs.any():
        return np.full(len(values), np.nan)
    kept = np.where(np.isnan(values[:, occurs]), values[0, occurs], values[:, occurs])
    return kept.mean(1)


def steadied(values: np.ndarray, n_patients: np.ndarray, bounds: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """(1 + replicates, tasks) -> (1 + replicates, tasks + 1): replicates as wide as the patients' spread is, and their
    mean.

    Of k patients with a task the bootstrap shows a variance of s^2 (k - 1) / k^2 where s^2 / k is meant; and s^2 of few
    patients is itself a guess. So s^2 is moderated by the other tasks' (as if PRIOR_PATIENTS more patients had theirs),
    and normal noise makes up the difference, the same for every method. With many patients nothing changes.
    """
    noise = np.random.default_rng(0).standard_normal(values.shape)
    k = np.asarray(n_patients, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        shown = np.nan_to_num(_variance(values[1:]))
        spread = np.where(k > 1, shown * k * k / (k - 1), 0)
        freedom = np.maximum(k - 1, 0)
        common = (freedom * spread).sum() / max(freedom.sum(), 1)
        moderated = (freedom * spread + PRIOR_PATIENTS * common) / (freedom + PRIOR_PATIENTS)
        lacking = np.sqrt(np.nan_to_num(np.maximum(moderated / k - shown, 0), posinf=0))
    wide = np.clip(values + noise * lacking, *bounds)
    wide[0] = values[0]
    return np.concatenate([wide, _mean_over_tasks(wide)[:, None]], 1)


def _variance(replicates: np.ndarray) -> np.ndarray:
    """(replicates, tasks) -> (tasks,), NaN left out and where nothing is left."""
    number = (~np.isnan(replicates)).sum(0)
    mean = np.nansum(replicates, 0) / number
    return np.nansum((replicates - mean) ** 2, 0) / number


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """(1 + replicates,) -> (value, lower, upper): as measured, and the percentile interval of the replicates."""
    replicates = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]) or not len(replicates):
        return float(values[0]), float("nan"), float("nan")
    lower, upper = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(values[0]), float(lower), float(upper)


def intervals(scores: Scores) -> np.ndarray:
    """(tasks + 1, 3): value, lower and upper of each task and of their mean."""
    return np.array([interval(column) for column in scores.steadied().T])


def table(scores: Scores, protocol: str) -> pd.DataFrame:
    """A row per task and one for mIoU: protocol, task, iou, lower, upper, n_images, n_positive."""
    columns = {"protocol": protocol, "task": [*scores.tasks, "mIoU"]}
    columns |= dict(zip(("iou", "lower", "upper"), intervals(scores).T, strict=True))
    return pd.DataFrame(columns | {"n_images": scores.n_images, "n_positive": scores.n_positive})


def difference(a: Scores, b: Scores) -> np.ndarray:
    """a - b in every replicate, (1 + replicates, tasks + 1), for `interval`."""
    values = steadied((a.values - b.values)[:, :-1], np.minimum(a.n_patients, b.n_patients), (-1.0, 1.0))
    values[0] = a.values[0] - b.values[0]
    return values


def ratio(a: Scores, b: Scores) -> np.ndarray:
    """a / b in every replicate, (1 + replicates, tasks + 1); NaN where b is 0."""
    return _ratio(a.values, b.values)


def p_value(differences: np.ndarray) -> float:
    """Two-sided p of (1 + replicates,) differences: how small a level's interval is that just reaches 0.

    At least 2 / (replicates + 1), since no more can be told from so many; NaN where there is none.
    """
    replicates = differences[1:][~np.isnan(differences[1:])]
    if np.isnan(differences[0]) or not len(replicates):
        return float("nan")
    smaller = min((replicates <= 0).sum(), (replicates >= 0).sum())
    return min(1.0, 2 * (int(smaller) + 1) / (len(replicates) + 1))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p adjusted for a family of tests (Holm 1979), in the given order; a NaN is no test and stays one."""
    p = np.asarray(p_values, float)
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p, kind="stable")[: int((~np.isnan(p)).sum())]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else steps
    return adjusted
