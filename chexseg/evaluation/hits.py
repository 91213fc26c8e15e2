"""Hit rate: whether the peak of a saliency map lies inside the expert's mask (CheXlocalize's second metric)."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from chexseg.data import rle
from chexseg.data.images import upsample
from chexseg.errors import DataError


class Maps(Protocol):
    """Saliency maps by image id, as `chexseg.classifier.saliency_store` opens them: `maps[image_id]["maps"]` is
    (T, h, w), a row for each of `tasks`; `network_size` is what the classifier saw (`input_size`: of one image, should
    it differ), and maps are upsampled to it first. `known` says of which tasks an image has a map.
    """

    @property
    def tasks(self) -> Sequence[str]: ...

    @property
    def network_size(self) -> tuple[int, int]: ...

    def input_size(self, saliency: Any, /) -> tuple[int, int]: ...

    def known(self, ids: Sequence[str], tasks: Sequence[str], /) -> np.ndarray: ...

    def __contains__(self, image_id: str, /) -> bool: ...

    def __getitem__(self, image_id: str, /) -> Mapping[str, Any]: ...


def rows_of(maps: Maps, tasks: Sequence[str]) -> list[int]:
    """Where each of `tasks` stands along a map's first axis."""
    if unknown := [task for task in tasks if task not in maps.tasks]:
        raise DataError(f"no saliency maps of {unknown[0]!r}; there are those of {', '.join(maps.tasks)}")
    return [list(maps.tasks).index(task) for task in tasks]


def peak(saliency: np.ndarray, size: tuple[int, int]) -> tuple[int, int] | None:
    """Row and column of the largest value, the first of equals, of a map (h, w) upsampled to `size` (bilinear, without
    corner alignment). None for a map without a positive finite value.

    Only where a value as large as the one nearest to the map's own peak can come about is anything computed.
    """
    saliency = np.where(np.isfinite(saliency), saliency, 0).astype(np.float64)
    if saliency.max() <= 0:
        return None
    grids = [_taps(count, source) for count, source in zip(size, saliency.shape, strict=True)]
    top = np.unravel_index(saliency.argmax(), saliency.shape)
    axes = zip(top, size, saliency.shape, strict=True)
    near = [np.array([(2 * at + 1) * count // (2 * source)]) for at, count, source in axes]
    least = _interpolated(saliency, grids, near).item()
    high = saliency >= least * (1 - 1e-12)
    picked = []
    for axis, (low, upper, _) in enumerate(grids):
        within = np.flatnonzero(high.any(1 - axis))
        first, last = within[0], within[-1]
        picked.append(np.flatnonzero((upper >= first) & (low <= last)))
    fine = _interpolated(saliency, grids, picked)
    row, column = np.unravel_index(fine.argmax(), fine.shape)
    return int(picked[0][row]), int(picked[1][column])


def _taps(count: int, source: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each of `count` pixels over `source`: the two source pixels it lies between, and the share of the second."""
    at = np.maximum((np.arange(count) + 0.5) * source / count - 0.5, 0)
    low = np.minimum(at.astype(int), source - 1)
    return low, np.minimum(low + 1, source - 1), at - low


def _interpolated(saliency: np.ndarray, grids: Sequence[tuple], picked: Sequence[np.ndarray]) -> np.ndarray:
    """The upsampled map at the `picked` rows and columns."""
    (top, bottom, down), (left, right, across) = (
        [part[at] for part in grid] for grid, at in zip(grids, picked, strict=True)
    )
    rows = saliency[top] * (1 - down)[:, None] + saliency[bottom] * down[:, None]
    return rows[:, left] * (1 - across) + rows[:, right] * across


def hit(coded: Mapping, saliency: np.ndarray) -> bool:
    """Whether the peak of the map (h, w), upsampled to the mask's size, lies inside the mask of the same field of view.
    A map without a positive finite value hits nothing."""
    height, width = coded["size"]
    at = peak(saliency, (height, width))
    return at is not None and bool(rle.sample(coded, np.array([at[0]]), np.array([at[1]]))[0, 0])


def hits(maps: Maps, truth: Mapping[str, Mapping], tasks: Sequence[str], images: Sequence[str]) -> np.ndarray:
    """(images, tasks): 1 where the peak lies in the mask, 0 where not, NaN without ground truth or map.

    The peak is that of the map upsampled to the classifier's input, the image's own, and from there to the original, as
    in CheXlocalize.
    """
    found = np.full((len(images), len(tasks)), np.nan)
    rows = rows_of(maps, tasks)
    for line, image in zip(found, images, strict=True):
        if image not in maps:
            continue
        entry = truth[image]
        known = maps.known([image], tasks)[0]
        columns = [c for c, task in enumerate(tasks) if known[c] and task in entry and rle.area([entry[task]])[0]]
        if columns:
            found_maps = maps[image]
            large = upsample(found_maps["maps"][[rows[c] for c in columns]], maps.input_size(found_maps))
            line[columns] = [hit(entry[tasks[c]], each) for c, each in zip(columns, large, strict=True)]
    return found
