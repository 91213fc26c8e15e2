"""Saliency maps against expert masks at every threshold, for `evaluation.tuning`; in any process."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chexseg.classifier.saliency_maps import SaliencyMaps
from chexseg.classifier.saliency_masks import MaskMaker, stretched
from chexseg.data import rle
from chexseg.data.images import upsample
from chexseg.evaluation import film_list, metrics, tuning
from chexseg.evaluation.tuning import Curves
from chexseg.runtime.files import atomic
from chexseg.runtime.workers import ordered_map

# What CheXlocalize's two scripts try.
THRESHOLDS, CUTOFFS = tuple(i / 10 for i in range(2, 9)), tuple(i / 10 for i in range(9))


@dataclass(frozen=True)
class MapCounter:
    """image id -> (T, 2, 1 + K) pixel counts of its maps, stretched to 0..1 as in CheXlocalize, against its masks.

    Maps and masks are compared at the size of the network's input, to which either is resized: the choice is the same
    as at the original size, in a fiftieth of the time. NaN for a task that `truth` does not know of the image, or that
    it has no map of. An image that `truth` lacks shows no finding.
    """

    maps: SaliencyMaps
    truth: Mapping[str, Mapping[str, Mapping]]
    tasks: tuple[str, ...]

    def __call__(self, image_id: str) -> np.ndarray:
        size = self.maps.network_size
        counts = np.full((len(self.tasks), 2, len(tuning.THRESHOLDS) + 1), np.nan)
        experts = self.truth[image_id] if image_id in self.truth else None
        there = self.maps.known([image_id], self.tasks)[0]
        known = [row for row, task in enumerate(self.tasks) if there[row] and (experts is None or task in experts)]
        if not known:
            return counts
        tasks = [self.tasks[row] for row in known]
        if experts is None:
            masks = np.zeros((len(tasks), *size), np.uint8)
        else:
            masks = rle.resize([experts[task] for task in tasks], size)
        large = upsample(self.maps[image_id]["maps"][self.maps.task_rows(tasks)], size)
        for row, values, mask in zip(known, stretched(large), masks, strict=True):
            # A constant map becomes 0 throughout, which is above no threshold.
            counts[row] = tuning.histogram(values, mask)
        return counts


def chexlocalize_thresholds(
    maps: SaliencyMaps, truth: Mapping[str, Mapping[str, Mapping]], tasks: Sequence[str]
) -> np.ndarray:
    """(T,) the first of CheXlocalize's thresholds with the highest mean IoU over images of which both masks have a
    pixel, at the size of the films; the lowest for a task without such an image."""
    images = [image for image in truth if image in maps]
    scores = np.full((len(images), len(tasks), len(THRESHOLDS)), np.nan)
    for each, image in zip(scores, images, strict=True):
        entry, saliency = truth[image], maps[image]
        for column, task in enumerate(tasks):
            if task not in entry or not rle.area([entry[task]])[0] or not maps.known([image], [task]).all():
                continue
            small = upsample(saliency["maps"][maps.task_rows([task])], maps.input_size(saliency))
            values = stretched(upsample(small, saliency["size"]))[0]
            counted = tuning.histogram(values, rle.decode([entry[task]])[0], THRESHOLDS)
            above = counted[:, ::-1].cumsum(1)[:, ::-1][:, 1:]  # outside and inside, at each threshold
            union = above[0] + counted[1].sum()
            each[column] = np.where(above.sum(0) > 0, above[1] / union, np.nan)
    means = np.nan_to_num(_means(scores.reshape(len(images), -1)).reshape(len(tasks), -1), nan=-1)
    return np.take(THRESHOLDS, means.argmax(1))


def chexlocalize_cutoffs(
    maps: SaliencyMaps, truth: Mapping[str, Mapping[str, Mapping]], tasks: Sequence[str]
) -> list[tuple[float, float, str]]:
    """(cut-off, mean IoU, task) of Otsu's masks that are emptied unless the probability lies above the cut-off, over
    all images that have maps: one that `truth` lacks shows nothing. Of Lung Lesion, of which its validation set has a
    single one, 0 is not tried."""
    made = _Made(MaskMaker(maps, tuple(tasks), True, "chexlocalize"), maps.ids)
    whole = film_list.complete({i: truth[i] for i in maps.ids if i in truth}, {"": made}, maps.ids, tasks)
    images = list(whole.truth)
    found = metrics.overlap(whole.methods[""], whole.truth, tasks, images)
    probabilities = maps.probabilities(images)[:, maps.task_rows(tasks)]
    scores = np.array([_means(tuning.gated(found, probabilities > c).per_image(true_positives=False)) for c in CUTOFFS])
    return [
        (cutoff, round(float(scores[row, column]), 3), task)
        for column, task in sorted(enumerate(tasks), key=lambda pair: pair[1])
        for row, cutoff in enumerate(CUTOFFS)
        if cutoff > 0 or task != "Lung Lesion"
    ]


def write_as_chexlocalize(
    maps: SaliencyMaps,
    truth: Mapping[str, Mapping[str, Mapping]],
    tasks: Sequence[str],
    cutoffs: Path,
    thresholds: Path,
) -> None:
    """Write `cutoffs` (prob_threshold,mIoU,task) and `thresholds` (threshold,task) as its scripts do."""
    rows = chexlocalize_cutoffs(maps, truth, tasks)
    chosen = zip(chexlocalize_thresholds(maps, truth, tasks), tasks, strict=True)
    of_tasks = sorted(chosen, key=lambda row: row[1])
    for path, header, table in (
        (cutoffs, "prob_threshold,mIoU,task", rows),
        (thresholds, "threshold,task", of_tasks),
    ):
        with atomic(path) as temporary:
            temporary.write_text(
                "\n".join([header, *(",".join(map(str, row)).replace("nan", "") for row in table)]) + "\n"
            )


def _means(values: np.ndarray) -> np.ndarray:
    """(N, T) -> (T,) means of what is not NaN."""
    count = (~np.isnan(values)).sum(0)
    return np.where(count > 0, np.nansum(values, 0) / np.maximum(count, 1), np.nan)


class _Made(Mapping[str, Mapping]):
    """The masks of maps, each image's made when it is asked for."""

    def __init__(self, maker: MaskMaker, images: Sequence[str]):
        self.maker, self.images = maker, dict.fromkeys(images)

    def __getitem__(self, image: str) -> Mapping:
        return self.maker(image)[1]

    def __contains__(self, image: object) -> bool:
        return image in self.images

    def __iter__(self) -> Iterator[str]:
        return iter(self.images)

    def __len__(self) -> int:
        return len(self.images)


def curves(
    maps: SaliencyMaps,
    truth: Mapping[str, Mapping[str, Mapping]],
    tasks: Sequence[str],
    images: Sequence[str],
    num_workers: int = 0,
) -> Curves:
    """Counts of all `images` at every threshold."""
    counter = MapCounter(maps, truth, tuple(tasks))
    return Curves.of(images, tasks, np.stack(list(ordered_map(counter, images, num_workers))))
