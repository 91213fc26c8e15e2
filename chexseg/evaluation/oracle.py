"""The oracle protocol: positives only, each task at the threshold that is best on the test masks themselves.

Some papers report it. It is no result of a test but an upper bound, and everything here says so: which films show the
finding and where to cut is known to nobody who reads a new film.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from chexseg.data import rle
from chexseg.data.images import upsample
from chexseg.evaluation import bootstrap, metrics
from chexseg.evaluation.hits import Maps, rows_of

ORACLE = "oracle_upper_bound"
MEANING = "UPPER BOUND, no test result: mean IoU of the positive images alone, at the threshold best on the test masks"
THRESHOLDS = np.arange(20) / 20
SIDE = 320  # maps and masks are compared at this many pixels


def stretched(saliency: np.ndarray) -> np.ndarray:
    """A map of any scale, stretched to 0..1; one that is the same everywhere says nothing and is 0."""
    low, high = float(saliency.min()), float(saliency.max())
    return (saliency - low) / (high - low) if high > low else np.zeros_like(saliency)


def tally(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(h, w) in 0..1 and (h, w) in {0, 1} -> (20,) IoU of the pixels above each of THRESHOLDS."""
    # How many thresholds a pixel exceeds; strictly, as everywhere.
    exceeded = np.searchsorted(THRESHOLDS, values, side="left")
    inside = np.bincount(exceeded[mask > 0], minlength=len(THRESHOLDS) + 1)
    outside = np.bincount(exceeded[mask == 0], minlength=len(THRESHOLDS) + 1)
    above = [counts[::-1].cumsum()[::-1][1:] for counts in (inside, outside)]
    return above[0] / np.maximum(inside.sum() + above[1], 1)


def ious(maps: Maps, truth: Mapping[str, Mapping], tasks: Sequence[str], images: Sequence[str]) -> np.ndarray:
    """(images, tasks, 20) IoU at each threshold; NaN without ground truth or map."""
    found = np.full((len(images), len(tasks), len(THRESHOLDS)), np.nan)
    rows = rows_of(maps, tasks)
    for line, image in zip(found, images, strict=True):
        if image not in maps:
            continue
        entry = truth[image]
        known = maps.known([image], tasks)[0]
        columns = [column for column in positive_tasks(entry, tasks) if known[column]]
        if columns:
            saliency = upsample(maps[image]["maps"][[rows[c] for c in columns]], (SIDE, SIDE))
            line[columns] = tallies([stretched(each) for each in saliency], [entry[tasks[c]] for c in columns])
    return found


def positive_tasks(entry: Mapping, tasks: Sequence[str]) -> list[int]:
    """Places of the tasks of which an image's ground truth has a pixel."""
    return [c for c, task in enumerate(tasks) if task in entry and rle.area([entry[task]])[0]]


def tallies(values: Sequence[np.ndarray], masks: Sequence[Mapping]) -> list[np.ndarray]:
    """`tally` of several tasks of an image, values (SIDE, SIDE) each."""
    decoded = rle.resize(list(masks), (SIDE, SIDE))
    return [tally(each, mask) for each, mask in zip(values, decoded, strict=True)]


def score(
    each: np.ndarray, overlap: metrics.Overlap, resamples: bootstrap.Resamples
) -> tuple[bootstrap.Scores, np.ndarray]:
    """Scores at each task's best threshold, and these (tasks,), NaN for a task that never occurs.

    The threshold is chosen once, on the data: choosing in each replicate anew would move the bound, not its interval.
    """
    counted = (~np.isnan(each)).any((0, 2))
    mean = np.where(counted[:, None], np.nansum(each, 0) / np.maximum((~np.isnan(each)).sum(0), 1), -1)
    best = mean.argmax(-1)
    chosen = np.take_along_axis(each, best[None, :, None], 2)[..., 0]
    return bootstrap.score_means(chosen, overlap, resamples), np.where(counted, THRESHOLDS[best], np.nan)
