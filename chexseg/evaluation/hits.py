"""Hit rate: whether the peak of a saliency map lies inside the expert's mask (CheXlocalize's second metric)."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from chexseg.data import rle
from chexseg.data.images import upsample
from chexseg.errors import DataError


class Maps(Protocol):
    """Saliency maps by image id, as `chexseg.classifier.saliency_store` opens them: `maps[image_id]["maps"]` is
    (T, h, w), a row for each of `tasks`."""

    @property
    def tasks(self) -> Sequence[str]: ...

    def __contains__(self, image_id: str, /) -> bool: ...

    def __getitem__(self, image_id: str, /) -> Mapping[str, Any]: ...


def hit(coded: Mapping, saliency: np.ndarray) -> bool:
    """Whether the centre of the map's largest value (h, w), the first of equals, lies inside the mask of the same field
    of view. A map without a positive finite value hits nothing."""
    saliency = np.where(np.isfinite(saliency), saliency, 0)
    if saliency.max() <= 0:
        return False
    peak = np.unravel_index(saliency.argmax(), saliency.shape)
    row, column = ((2 * p + 1) * m // (2 * n) for p, n, m in zip(peak, saliency.shape, coded["size"], strict=True))
    return bool(rle.sample(coded, np.array([row]), np.array([column]))[0, 0])


def hits(
    maps: Maps,
    truth: Mapping[str, Mapping],
    tasks: Sequence[str],
    images: Sequence[str],
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """(images, tasks): 1 where the peak lies in the mask, 0 where not, NaN without ground truth or map.

    The peak is that of the map upsampled to `size`, the classifier's input; None for maps that are stored at it.
    """
    if unknown := [task for task in tasks if task not in maps.tasks]:
        raise DataError(f"no saliency maps of {unknown[0]!r}; there are those of {', '.join(maps.tasks)}")
    found = np.full((len(images), len(tasks)), np.nan)
    rows = [list(maps.tasks).index(task) for task in tasks]
    for line, image in zip(found, images, strict=True):
        if image not in maps:
            continue
        entry, saliency = truth[image], maps[image]["maps"][rows]
        for column, task in enumerate(tasks):
            if task in entry and rle.area([entry[task]])[0]:
                line[column] = hit(entry[task], upsample(saliency[[column]], size or saliency.shape[1:])[0])
    return found
