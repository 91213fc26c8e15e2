"""Bootstrap over patients: intervals of every metric under every protocol, and of differences between methods.

All images of a patient are drawn together, and all methods are scored on the same draws, so that a difference's
interval is that of a paired comparison. A replicate is a row of counts (how often each patient was drawn); times
per-patient sums it gives every score of the replicate at once.

Two things that a plain percentile bootstrap gets wrong where a task is rare are put right here, for both made intervals
miss the truth (`tests/evaluation/test_coverage.py` measures it). A task that nobody in a replicate has keeps its
measured score in that replicate's mean, for leaving it out lifts the mean of the others. And resampling a task of few
patients shows a spread that is not theirs: nothing for one patient, too much for three or four, of whom a replicate may
hold but one. `steadied` gives the replicates the spread that the patients tell of.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from chexseg.data.chexpert import patient_of
from chexseg.evaluation.metrics import Overlap

PROTOCOLS = {
    "pooled": "CheXseg: intersections and unions summed over the images, then divided",
    "per_image": "CheXlocalize: mean of per-image IoU over true positives (both masks non-empty)",
    "per_image_all": "CheXlocalize: mean of per-image IoU, false positives and false negatives counting 0",
}
MAX_WEIGHTS = 1 << 21  # weights in double precision at once: 16 MB
PRIOR_PATIENTS = 2.0  # what the other tasks' spread and score weigh in the spread of a rare one
Z = 1.959964  # of a 95% interval


class Resamples:
    """`num_replicates` draws of as many patients as there are, with replacement; row 0 is the data itself. `whose`:
    an image's patient where its id does not say it."""

    def __init__(self, images: Sequence[str], num_replicates: int = 1000, seed: int = 17, whose: Mapping | None = None):
        names = [patient_of(name, whose) for name in images]
        patients, self.patient_of_row = np.unique(names, return_inverse=True)
        generator = np.random.default_rng(seed)
        self._sums: dict[bytes, np.ndarray] = {}
        self.weights = np.ones((num_replicates + 1, len(patients)), np.uint8)
        for row in range(1, num_replicates + 1):
            drawn = np.bincount(generator.integers(len(patients), size=len(patients)), minlength=len(patients))
            if drawn.max(initial=0) > np.iinfo(self.weights.dtype).max:  # of 10^5 patients one is drawn 9 times or so
                self.weights = self.weights.astype(np.uint16)
            self.weights[row] = drawn

    def per_patient(self, values: np.ndarray) -> np.ndarray:
        """(images, tasks), NaN = leave out -> (patients, tasks): the sum over each patient's images."""
        number = self.weights.shape[1]
        columns = [np.bincount(self.patient_of_row, np.nan_to_num(column), number) for column in values.T]
        return np.stack(columns, 1) if columns else np.zeros((number, 0))

    def sums(self, *values: np.ndarray) -> list[np.ndarray]:
        """For each of (images, tasks), NaN = leave out: (1 + replicates, tasks), the sum over each replicate's images.
        Asked for the same once more (many metrics share a denominator), it is not summed again: do not change it."""
        keys, new = [], {}
        for each in map(np.ascontiguousarray, values):
            content = hashlib.sha256(each.reshape(-1).view(np.uint8).data).digest()
            keys.append(content + f"{each.dtype}{each.shape}".encode())
            if keys[-1] not in self._sums:
                new[keys[-1]] = self.per_patient(each)
                self._sums[keys[-1]] = np.empty((len(self.weights), each.shape[1]))
        # Together: it takes as long to turn the weights into numbers of double precision as to sum.
        rows = max(1, MAX_WEIGHTS // self.weights.shape[1])
        buffer = np.empty((min(rows, len(self.weights)), self.weights.shape[1]))
        for first in range(0, len(self.weights) if new else 0, rows):
            some = self.weights[first : first + rows]
            np.copyto(buffer[: len(some)], some)
            for key, each in new.items():
                self._sums[key][first : first + rows] = buffer[: len(some)] @ each
        return [self._sums[key] for key in keys]

    def means(self, values: np.ndarray) -> np.ndarray:
        """(images, tasks), NaN = leave out -> (1 + replicates, tasks) means; NaN where nothing is left."""
        return _ratio(*self.sums(values, ~np.isnan(values)))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


@dataclass(frozen=True)
class Influence:
    """What each patient does to the scores, from which their variance follows (infinitesimal jackknife, Efron 1982).

    of_patient  (patients, tasks) by how much a score, a ratio of sums, rises with the patient's weight, linearised
    positive    (patients, tasks) who has the task; all others can but add false positives
    share       (tasks,) of the score's denominator that comes from those who have it
    """

    of_patient: np.ndarray
    positive: np.ndarray
    share: np.ndarray

    @classmethod
    def of(cls, above: np.ndarray, below: np.ndarray, score: np.ndarray, positive: np.ndarray) -> "Influence":
        """Of numerators and denominators (patients, tasks)."""
        total = below.sum(0)
        of_patient = _ratio(above - np.nan_to_num(score) * below, np.broadcast_to(total, below.shape))
        share = _ratio(np.where(positive, below, 0).sum(0), total)
        return cls(np.nan_to_num(of_patient), positive, np.nan_to_num(share, nan=1.0))

    def less(self, other: "Influence", factor: float = 1.0) -> "Influence":
        """Of this score less `factor` times another one."""
        share = (self.share + other.share) / 2
        return Influence(self.of_patient - factor * other.of_patient, self.positive & other.positive, share)

    def variance(self, level: np.ndarray | None = None) -> "Variance":
        """The variance of each score.

        Patients who have a task differ from each other in how well it is found; of few that is a guess, moderated by
        the other tasks' (Smyth 2004), as if PRIOR_PATIENTS more had theirs. What tasks have in common is the spread
        beside what false positives dilute (`share`) and, of a score between 0 and 1 with the values `level` (tasks,),
        the spread beside level (1 - level). The rest, how many have it and what false positives add, is known well.
        """
        k = self.positive.sum(0).astype(float)
        mean = np.where(self.positive, self.of_patient, 0).sum(0) / np.maximum(k, 1)
        freedom = np.maximum(k - 1, 0)
        own = (np.where(self.positive, self.of_patient - mean, 0) ** 2).sum(0) * k * k / np.maximum(freedom, 1)
        rest = np.where(self.positive, 0, self.of_patient**2).sum(0) + k * mean**2
        scale = np.maximum(self.share, 1e-9) ** 2
        if level is not None:
            level = np.clip(level / np.maximum(self.share, 1e-9), 0, 1)
            usual = level[k > 0].mean() if k.any() else 0.0
            level = (k * level + PRIOR_PATIENTS * usual) / (k + PRIOR_PATIENTS)
            scale = scale * level * (1 - level)
        common = scale * (freedom * own).sum() / max((freedom * scale).sum(), 1e-300)
        patients = freedom + PRIOR_PATIENTS
        moderated = (freedom * own + PRIOR_PATIENTS * common) / patients / np.maximum(k, 1)
        total = np.where(k > 0, moderated + rest, 0)
        # Satterthwaite's degrees of freedom; of a mean over tasks only what each task itself tells is uncertain.
        doubt, own_doubt = moderated**2 / patients, moderated**2 * freedom / patients**2
        return Variance(total, doubt, own_doubt)


@dataclass(frozen=True)
class Variance:
    """Of each task's score (tasks,), with half the variance of that variance: all of it, and the task's own part."""

    total: np.ndarray
    doubt: np.ndarray
    own_doubt: np.ndarray

    def widths(self) -> np.ndarray:
        """(tasks,) how much wider than a normal distribution's an interval of each task is."""
        return _student(self.total**2 / np.maximum(self.doubt, 1e-300))

    def width_of_mean(self, tasks: np.ndarray) -> float:
        """The same of the mean over `tasks`, a Boolean for each."""
        return float(_student(self.total[tasks].sum() ** 2 / np.maximum(self.own_doubt[tasks].sum(), 1e-300)))


def _student(degrees: np.ndarray) -> np.ndarray:
    """The 97.5% quantile of Student's t over that of a normal distribution, by its expansion in 1 / degrees
    (Abramowitz & Stegun 26.7.5), within 3% from 2 degrees of freedom on."""
    n = np.clip(degrees, PRIOR_PATIENTS, 1e6)
    quantile = Z + (Z**3 + Z) / (4 * n) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * n**2)
    return (quantile + (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / (384 * n**3)) / Z


@dataclass
class Scores:
    """Scores of one method: `values` (1 + replicates, tasks + 1), row 0 as measured, the last column the mean over the
    tasks (mIoU). A task's value is NaN in a replicate in which nobody has it."""

    tasks: tuple[str, ...]
    values: np.ndarray
    n_images: np.ndarray  # (tasks + 1,) images that entered the score
    n_positive: np.ndarray  # (tasks + 1,) images with ground truth
    influence: Influence

    @property
    def n_patients(self) -> np.ndarray:
        """(tasks,) patients whose truth is in the score."""
        return self.influence.positive.sum(0)

    def steadied(self) -> np.ndarray:
        """`values` for intervals (see the function of this name)."""
        measured = np.nan_to_num(self.values[0, :-1])
        return steadied(self.values[:, :-1], self.influence.variance(measured))


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
        return _scores(numerator, denominator, ~np.isnan(overlap.truth), overlap, resamples, never)
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    each = overlap.per_image(true_positives=protocol == "per_image", metric=metric)
    return score_means(each, overlap, resamples, never=never)


def score_means(each: np.ndarray, overlap: Overlap, resamples: Resamples, *, never: float = np.nan) -> Scores:
    """The mean of a score per image and task (images, tasks), NaN = leave out; a hit rate, for example.

    never: the mean of a task that has no value in any image. A replicate that merely drew none has no mean.
    """
    entered = ~np.isnan(each)
    return _scores(each, entered.astype(float), entered, overlap, resamples, never)


def _scores(
    numerator: np.ndarray,
    denominator: np.ndarray,
    entered: np.ndarray,
    overlap: Overlap,
    resamples: Resamples,
    never: float,
) -> Scores:
    """Scores that are ratios of sums over images, of parts (images, tasks); `never`: where a denominator is 0."""
    positive = overlap.truth > 0
    above, below, present = resamples.sums(numerator, denominator, positive)
    values = _ratio(above, below)
    values[:, np.isnan(values[0])] = never
    above, below = (resamples.per_patient(part) for part in (numerator, denominator))
    influence = Influence.of(above, below, values[0], resamples.per_patient(positive & entered) > 0)
    values = np.where(present > 0, values, np.nan)
    scored = positive.any(0)
    return Scores(
        tasks=overlap.tasks,
        values=np.concatenate([values, _mean_over_tasks(values)[:, None]], 1),
        n_images=np.append(entered.sum(0), entered[:, scored].any(1).sum()),
        n_positive=np.append(positive.sum(0), positive.any(1).sum()),
        influence=influence,
    )


def _mean_over_tasks(values: np.ndarray) -> np.ndarray:
    """(1 + replicates, tasks) -> (1 + replicates,): the mean over the tasks of row 0, of which a replicate keeps the
    measured score where it lacks the task itself."""
    occurs = ~np.isnan(values[0])
    if not occurs.any():
        return np.full(len(values), np.nan)
    kept = np.where(np.isnan(values[:, occurs]), values[0, occurs], values[:, occurs])
    return kept.mean(1)


def steadied(values: np.ndarray, variance: Variance, bounds: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """(1 + replicates, tasks) -> (1 + replicates, tasks + 1): replicates as wide as the patients' spread is, and their
    mean over the tasks of row 0.

    Where a task's replicates spread more than its `variance` they are drawn together about the measured score; where
    less, normal noise adds what is lacking, the same for every method. Then all are widened, since the variance too is
    a guess: a task's by its own degrees of freedom, the mean's by all tasks'. With many patients nothing changes.
    """
    measured = values[0]
    noise = np.random.default_rng(0).standard_normal(values.shape)
    deviations = np.where(np.isnan(values), measured, values) - measured
    shown = deviations[1:].var(0) if len(values) > 1 else np.zeros(len(measured))
    tighter = np.sqrt(np.minimum(variance.total / np.maximum(shown, 1e-300), 1))
    lacking = np.sqrt(np.maximum(variance.total - shown, 0))
    deviations = deviations * tighter + noise * lacking
    occurs = ~np.isnan(measured)
    if occurs.any():
        mean = deviations[:, occurs].mean(1) * variance.width_of_mean(occurs)
        centre = np.append(measured, measured[occurs].mean())
    else:
        mean, centre = np.full(len(values), np.nan), np.append(measured, np.nan)
    wide = np.concatenate([deviations * variance.widths(), mean[:, None]], 1)
    wide[0] = 0
    return np.clip(centre + wide, *bounds)


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


def mean(each: Sequence[Scores]) -> Scores:
    """The mean of scores of the same images, tasks and resamples: of one network's trainings, for example."""
    first, influences = each[0], [scores.influence for scores in each]
    of_patient, share = (np.mean([getattr(one, name) for one in influences], 0) for name in ("of_patient", "share"))
    values = np.mean([scores.values for scores in each], 0)
    return replace(first, values=values, influence=replace(first.influence, of_patient=of_patient, share=share))


def difference(a: Scores, b: Scores) -> np.ndarray:
    """a - b in every replicate, (1 + replicates, tasks + 1), for `interval`."""
    variance = a.influence.less(b.influence).variance(_level(a, b))
    values = steadied((a.values - b.values)[:, :-1], variance, (-1.0, 1.0))
    values[0] = a.values[0] - b.values[0]
    return values


def ratio(a: Scores, b: Scores) -> np.ndarray:
    """a's mean over that of b in every replicate, (1 + replicates,), for `interval`; NaN where b is 0.

    A / B is R + (A - R B) / B, with R the measured ratio: the difference is steadied like any other.
    """
    measured = float(_ratio(a.values[:1, -1], b.values[:1, -1])[0])
    if np.isnan(measured):
        return np.full(len(a.values), np.nan)
    variance = a.influence.less(b.influence, measured).variance(_level(a, b))
    apart = steadied((a.values - measured * b.values)[:, :-1], variance, (-np.inf, np.inf))[:, -1]
    apart[0] = 0
    return measured + _ratio(apart, b.steadied()[:, -1])


def _level(a: Scores, b: Scores) -> np.ndarray:
    """(tasks,) the measured scores of two methods, on average."""
    return np.nan_to_num((a.values[0, :-1] + b.values[0, :-1]) / 2)


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
