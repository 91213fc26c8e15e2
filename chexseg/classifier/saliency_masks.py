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
    """image id -> (image id, {task: run-length mask}), in this process or another. A task that the image has no map of
    is left out: unknown, not absent.

    original_size  masks of the original image's size instead of the network's input
    thresholds, cutoffs, smoothing  see `threshold_maps`; of the first two one per task, NaN = none
    """

    maps: SaliencyMaps
    tasks: tuple[str, ...]
    original_size: bool
    protocol: str = "chexseg"
    thresholds: np.ndarray | None = None
    cutoffs: np.ndarray | None = None
    smoothing: int = 0

    def __call__(self, image_id: str) -> tuple[str, dict]:
        saliency, rows = self.maps[image_id], self.maps.task_rows(self.tasks)
        stack = threshold_maps(
            saliency["maps"][rows],
            saliency["size"] if self.original_size else self.maps.network_size,
            protocol=self.protocol,
            network_size=self.maps.input_size(saliency),
            thresholds=self.thresholds,
            probabilities=saliency["probabilities"][rows],
            cutoffs=self.cutoffs,
            smoothing=self.smoothing,
        )
        known = self.maps.known([image_id], self.tasks)[0]
        coded = zip(self.tasks, rle.encode(stack), known, strict=True)
        return image_id, {task: mask for task, mask, there in coded if there}

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
    smoothing: int = 0,
) -> np.ndarray:
    """Saliency maps (T, h, w) -> masks (T, *size) uint8.

    network_size  upsample to this first: the original's maps on disk have the network's input size
    protocol      `chexseg`: uint8(255 map), Otsu, filled outer contours; a map above 1 is clipped, not wrapped.
                  `chexlocalize`: the map is stretched to 0..1 first, so that a faint one is treated like a strong one,
                  and a pixel on its own, which is no contour to it, is left out
    thresholds    (T,) chexlocalize only: inside where the stretched map is above it; NaN = Otsu
    cutoffs       (T,) chexlocalize only: a task whose probability is below it gets an empty mask; NaN = none
    smoothing     chexlocalize with Otsu only: side of the box that `smoothed` averages over; 0 = not at all

    A map that is zero throughout, or nowhere finite, gives an empty mask; under chexlocalize any constant map does.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    stretch = protocol == "chexlocalize"
    finite = np.where(np.isfinite(maps), maps, 0)
    present = finite.max((1, 2)) > (finite.min((1, 2)) if stretch else 0)
    if stretch and cutoffs is not None:
        present &= ~(probabilities < cutoffs)
    masks = np.zeros((len(maps), *size), np.uint8)
    rows = np.flatnonzero(present)
    step = max(1, MAX_UPSAMPLED // (size[0] * size[1]))
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        large = upsample(upsample(maps[chunk], network_size) if network_size else maps[chunk], size)
        large = stretched(large) if stretch else large
        grey = (np.clip(large, 0, 1) * 255).astype(np.uint8)
        for row, values, quantised in zip(chunk, large, grey, strict=True):
            if stretch and thresholds is not None and not np.isnan(thresholds[row]):
                masks[row] = values > thresholds[row]
            elif quantised.any():
                image = smoothed(quantised, smoothing) if smoothing and stretch else quantised
                masks[row] = otsu(image, lone_pixels=not stretch)
    return masks


def stretched(maps: np.ndarray) -> np.ndarray:
    """(T, h, w) -> (T, h, w): each map's values from 0 to 1; a constant map becomes 0."""
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return (maps - low) / np.where(high > low, high - low, 1)


def smoothed(image: np.ndarray, side: int) -> np.ndarray:
    """(h, w) uint8 -> (h, w) uint8: what CheXlocalize's box filter makes of a map.

    The map is drawn in the colours of OpenCV's Jet, red taken for blue; what is averaged over side x side pixels, and
    turned round, is their brightness. That is no rising function of the map: both its ends are dark.
    """
    jet = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_JET)
    brightness = cv2.cvtColor(jet, cv2.COLOR_RGB2GRAY).ravel()
    return 255 - cv2.blur(brightness[image], (side, side))


def otsu(image: np.ndarray, *, lone_pixels: bool = True) -> np.ndarray:
    """(h, w) uint8 -> (h, w) uint8: above Otsu's threshold, holes filled.

    Filling the outer contours gives what PIL's polygon fill (outline included) gives for them, and the same as for
    all contours (RETR_TREE, CheXlocalize): contours of holes and of islands in holes lie inside an outer one.
    The original drops contours of a single pixel; here the pixel stays, but without `lone_pixels`.
    """
    _, binary = cv2.threshold(image, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    contours, _ = cv2.findContours(binary, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    contours = [contour for contour in contours if lone_pixels or len(contour) > 1]
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
