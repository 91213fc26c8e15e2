"""Stage 2: masks from saliency maps, by a threshold on each map, and the per-task thresholds of others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from chexseg.classifier.choices import PROTOCOLS
from chexseg.classifier.saliency_maps import SaliencyMaps
from chexseg.data import csv_tables, names, rle
from chexseg.data.images import upsample
from chexseg.errors import DataError
from chexseg.runtime.workers import ordered_map

MAX_UPSAMPLED = 1 << 24  # pixels upsampled at once: 64 MB of float32


@dataclass(frozen=True)
class MaskMaker:
    """image id -> (image id, {task: run-length mask}), in this process or another.

    original_size  masks of the original image's size instead of the network's input
    thresholds, cutoffs  one per task, NaN = none; see `threshold_maps`
    """

    maps: SaliencyMaps
    tasks: tuple[str, ...]
    original_size: bool
    protocol: str = "chexseg"
    thresholds: np.ndarray | None = None
    cutoffs: np.ndarray | None = None

    def __call__(self, image_id: str) -> tuple[str, dict]:
        saliency, rows = self.maps[image_id], self.maps.task_rows(self.tasks)
        stack = threshold_maps(
            saliency["maps"][rows],
            saliency["size"] if self.original_size else self.maps.network_size,
            protocol=self.protocol,
            network_size=self.maps.network_size,
            thresholds=self.thresholds,
            probabilities=saliency["probabilities"][rows],
            cutoffs=self.cutoffs,
        )
        return image_id, dict(zip(self.tasks, rle.encode(stack), strict=True))

    def process(self, ids: Sequence[str], *, num_workers: int = 0) -> Iterator[tuple[str, dict]]:
        """The masks of many images, in order, made by `num_workers` processes."""
        return ordered_map(self, ids, num_workers)


def threshold_maps(
    maps: np.ndarray,
    size: tuple[int, int],
    *,
    protocol: str = "chexseg",
    network_size: tuple[int, int] | None = None,
    thresholds: np.ndarray | None = None,
    probabilities: np.ndarray | None = None,
    cutoffs: np.ndarray | None = None,
) -> np.ndarray:
    """Saliency maps (T, h, w) -> masks (T, *size) uint8.

    network_size  upsample to this first: the original's maps on disk have the network's input size
    protocol      `chexseg`: uint8(255 map), Otsu, filled outer contours; a map above 1 is clipped, not wrapped.
                  `chexlocalize`: the map is stretched to 0..1 first, so that a faint one is treated like a strong one
    thresholds    (T,) chexlocalize only: inside where the stretched map is above it; NaN = Otsu
    cutoffs       (T,) chexlocalize only: a task whose probability is not above it gets an empty mask; NaN = none

    A map that is zero throughout, or nowhere finite, gives an empty mask; under chexlocalize any constant map does.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    stretch = protocol == "chexlocalize"
    finite = np.where(np.isfinite(maps), maps, 0)
    present = finite.max((1, 2)) > (finite.min((1, 2)) if stretch else 0)
    if stretch and cutoffs is not None:
        present &= np.isnan(cutoffs) | (probabilities > cutoffs)
    masks = np.zeros((len(maps), *size), np.uint8)
    rows = np.flatnonzero(present)
    step = max(1, MAX_UPSAMPLED // (size[0] * size[1]))
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        large = upsample(upsample(maps[chunk], network_size) if network_size else maps[chunk], size)
        if stretch:
            low, high = large.min((1, 2), keepdims=True), large.max((1, 2), keepdims=True)
            large = (large - low) / np.where(high > low, high - low, 1)
        grey = (np.clip(large, 0, 1) * 255).astype(np.uint8)
        for row, values, quantised in zip(chunk, large, grey, strict=True):
            if stretch and thresholds is not None and not np.isnan(thresholds[row]):
                masks[row] = values > thresholds[row]
            elif quantised.any():
                masks[row] = otsu(quantised)
    return masks


def otsu(image: np.ndarray) -> np.ndarray:
    """(h, w) uint8 -> (h, w) uint8: above Otsu's threshold, holes filled.

    Filling the outer contours gives what PIL's polygon fill (outline included) gives for them, and the same as for
    all contours (RETR_TREE, CheXlocalize): contours of holes and of islands in holes lie inside an outer one.
    The original drops contours of a single pixel; here the pixel stays.
    """
    _, binary = cv2.threshold(image, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    contours, _ = cv2.findContours(binary, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    filled = np.zeros_like(binary)
    cv2.drawContours(filled, contours, -1, 1, cv2.FILLED)
    return filled


def read_task_values(path: Path, column: str, tasks: Sequence[str], aliases: Mapping[str, str]) -> np.ndarray:
    """(T,) `column` of CheXlocalize's CSV of a value per task (`threshold,task` or `prob_threshold,mIoU,task`);
    NaN for a task that it lacks. A file with `mIoU` may have several rows a task, as CheXlocalize's has: the first of
    the highest mIoU counts. DataError for anything but numbers, and for a task that occurs twice without one."""
    import pandas as pd  # half a second of importing that runs without such a file need not wait for

    frame = csv_tables.frame(path, (column, "task"), texts=("task",), empty=True)
    values = csv_tables.numbers(frame[column])
    wrong = frame[column].notna() & ~np.isfinite(values)
    if wrong.any():
        line = int(np.flatnonzero(wrong)[0]) + 2
        value = names.shown(frame[column][wrong].iloc[0])
        raise DataError(f"{path}: line {line}: {value} is no number; correct the file")
    tasks_there = [names.check_task(aliases.get(name, name), f"{path}: {name!r}"[:200]) for name in frame["task"]]
    found = pd.Series(tasks_there, index=frame.index, dtype=object)
    if "mIoU" in frame.columns:
        best = csv_tables.numbers(frame["mIoU"]).fillna(-1).groupby(found).transform("idxmax") == frame.index
        values, found = values[best], found[best]
    if found.duplicated().any():
        raise DataError(f"{path}: {found[found.duplicated()].iloc[0]!r} occurs twice; keep one row of it")
    return pd.Series(values.to_numpy(), index=found).reindex(list(tasks)).to_numpy(np.float64)
