"""Saliency maps against expert masks at every threshold, for `evaluation.tuning`; in any process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chexseg.classifier.saliency_maps import SaliencyMaps
from chexseg.data import rle
from chexseg.data.images import upsample
from chexseg.evaluation import tuning
from chexseg.evaluation.tuning import Curves
from chexseg.runtime.workers import ordered_map


@dataclass(frozen=True)
class MapCounter:
    """image id -> (T, 2, 1 + K) pixel counts of its maps, stretched to 0..1 as in CheXlocalize, against its masks.

    Maps and masks are compared at the size of the network's input, to which either is resized: the choice is the same
    as at the original size, in a fiftieth of the time. NaN for a task that `truth` does not know of the image. An
    image that `truth` lacks shows no finding.
    """

    maps: SaliencyMaps
    truth: Mapping[str, Mapping[str, Mapping]]
    tasks: tuple[str, ...]

    def __call__(self, image_id: str) -> np.ndarray:
        size = self.maps.network_size
        counts = np.full((len(self.tasks), 2, len(tuning.THRESHOLDS) + 1), np.nan)
        experts = self.truth[image_id] if image_id in self.truth else None
        known = [row for row, task in enumerate(self.tasks) if experts is None or task in experts]
        if not known:
            return counts
        tasks = [self.tasks[row] for row in known]
        if experts is None:
            masks = np.zeros((len(tasks), *size), np.uint8)
        else:
            masks = rle.resize([experts[task] for task in tasks], size)
        large = upsample(self.maps[image_id]["maps"][self.maps.task_rows(tasks)], size)
        low, high = large.min((1, 2), keepdims=True), large.max((1, 2), keepdims=True)
        stretched = (large - low) / np.where(high > low, high - low, 1)
        for row, values, mask in zip(known, stretched, masks, strict=True):
            # A constant map becomes 0 throughout, which is above no threshold.
            counts[row] = tuning.histogram(values, mask)
        return counts


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
