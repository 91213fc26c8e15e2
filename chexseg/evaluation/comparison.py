"""Several methods scored on the same images and the same bootstrap draws, so that their differences are paired."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd

from chexseg.errors import DataError, MissingError
from chexseg.evaluation import bootstrap, film_list, metrics
from chexseg.evaluation.methods import HUMAN

MAX_MISSING_NAMES = 20


@dataclass
class Comparison:
    """Scores of all methods on the same images and the same resamples: `scores[protocol][method]`.

    A second reader may lack some of the images: `paired` scores what it is compared with on those that it has.
    """

    tasks: tuple[str, ...]
    images: list[str]
    resamples: bootstrap.Resamples
    seed: int
    overlaps: dict[str, metrics.Overlap]
    scores: dict[str, dict[str, bootstrap.Scores]]
    notes: list[str] = field(default_factory=list)

    @property
    def num_patients(self) -> int:
        return self.resamples.weights.shape[1]

    @property
    def num_replicates(self) -> int:
        return self.resamples.weights.shape[0] - 1

    def paired(self, first: str, second: str, protocol: str) -> tuple[bootstrap.Scores, bootstrap.Scores]:
        """The scores of two methods on the images that both have."""
        has = [~np.isnan(self.overlaps[name].union).all(1) for name in (first, second)]
        if np.array_equal(*has):
            return self.scores[protocol][first], self.scores[protocol][second]
        both = np.logical_and(*has)
        one, other = (
            bootstrap.score(self.overlaps[name].where(both), self.resamples, protocol) for name in (first, second)
        )
        return one, other

    def never_occur(self) -> list[str]:
        """Tasks without a pixel of ground truth: shown, not scored."""
        first = next(iter(self.scores["pooled"].values()))
        return [task for task, count in zip(self.tasks, first.n_positive, strict=False) if not count]


def compare(
    truth: Mapping[str, Mapping],
    methods: Mapping[str, Mapping[str, Mapping]],
    tasks: Sequence[str],
    *,
    num_replicates: int = 1000,
    seed: int = 17,
    films: Collection[str] | None = None,
    patients: Mapping[str, str] | None = None,
) -> Comparison:
    """Score every method under every protocol on the images that have ground truth and a prediction of each method.

    Images without a mask of the second reader stay: only that row, and what is compared with it, is without them.
    What is left out is in `notes`. `films`: all images of the set, those without a finding too (see `film_list`).
    `patients`: whose an image is, where its id does not say so.
    """
    if not methods:
        raise DataError("no method to compare")
    notes = []
    if films is not None:
        whole = film_list.complete(truth, methods, films, tasks, may_lack=[HUMAN])
        truth, methods, notes = whole.truth, whole.methods, whole.notes
    images = list(truth)
    for name, predictions in methods.items():
        if name == HUMAN:
            continue
        absent = [image for image in images if image not in predictions]
        if absent:
            notes.append(
                f"{len(absent)} images have no prediction of {name} and are left out of every row: "
                + metrics.some(absent, MAX_MISSING_NAMES)
            )
            images = [image for image in images if image in predictions]
        if not images:
            raise MissingError(f"{name}: no image is left that has ground truth and a prediction of every method")
    for name, predictions in methods.items():
        extra = [image for image in predictions if image not in truth]
        if extra:
            notes.append(
                f"{len(extra)} images of {name} have no ground truth and are not scored: "
                + metrics.some(extra, MAX_MISSING_NAMES)
            )
    resamples = bootstrap.Resamples(images, num_replicates, seed, patients)
    overlaps: dict[str, metrics.Overlap] = {}
    scores: dict[str, dict[str, bootstrap.Scores]] = {protocol: {} for protocol in bootstrap.PROTOCOLS}
    for name, predictions in methods.items():
        found = overlaps[name] = metrics.overlap(predictions, truth, tasks, images)
        if np.isnan(found.union).all():
            raise DataError(f"{name}: none of its images is among the {len(images)} scored ones")
        notes += [f"{name}: {note}" for note in found.notes]
        for protocol, by_method in scores.items():
            by_method[name] = bootstrap.score(found, resamples, protocol)
    return Comparison(tuple(tasks), images, resamples, seed, overlaps, scores, notes)


def paired_table(comparison: Comparison) -> pd.DataFrame:
    """Every two methods on the same draws: a, b, protocol, task, difference (a - b), lower, upper, p, p_holm.

    p is two-sided and goes with the interval; it cannot fall below 2 / (replicates + 1). Holm's correction is for what
    is looked at together: the mIoU of all pairs under a protocol is a family, and so are the tasks of one pair.
    """
    rows = []
    for protocol in comparison.scores:
        pairs = []
        for a, b in combinations(comparison.overlaps, 2):
            values = bootstrap.difference(*comparison.paired(a, b, protocol))
            figures = [(*bootstrap.interval(column), bootstrap.p_value(column)) for column in values.T]
            pairs.append((a, b, figures, bootstrap.holm([p for *_, p in figures[:-1]])))
        means = bootstrap.holm([figures[-1][-1] for _, _, figures, _ in pairs])
        for (a, b, figures, adjusted), mean in zip(pairs, means, strict=True):
            by_task = zip([*comparison.tasks, "mIoU"], figures, [*adjusted, mean], strict=True)
            rows += [(a, b, protocol, task, *each, p_holm) for task, each, p_holm in by_task]
    columns = ["a", "b", "protocol", "task", "difference", "lower", "upper", "p", "p_holm"]
    return pd.DataFrame(rows, columns=columns)
