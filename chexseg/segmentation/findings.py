"""What the masks of a film come to in numbers: areas, probabilities, the cardiothoracic ratio."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from chexseg.data import rle
from chexseg.data.images import fit_shape

COLUMNS = (
    "id",
    "task",
    "area_px",
    "area_cm2",
    "highest_probability",
    "mean_probability",
    "cardiothoracic_ratio",
    "spacing_at",
)
HEART = ("Heart", "Cardiomegaly")  # CheXlocalize's readers outline the whole heart for Cardiomegaly
LUNGS = (("Lungs",), ("Left Lung", "Right Lung"))


def rows(
    image_id: str,
    masks: Mapping[str, Mapping],
    probabilities: np.ndarray,
    thresholds: Sequence[float],
    spacing: tuple[float, float] | None,
    spacing_at: str = "",
) -> list[dict[str, Any]]:
    """One row of `COLUMNS` for each task of a film, None where a number is not known.

    probabilities  (C, S, S) of the padded square, in the order of `masks`
    spacing        millimetres between the film's rows and columns

    The highest probability is the film's; the mean is that over the mask, both at the network's resolution.
    """
    size = next(iter(masks.values()))["size"]
    height, width = fit_shape(size[0], size[1], probabilities.shape[-1])
    ratio = cardiothoracic_ratio(masks)
    found = []
    for (task, mask), plane, threshold in zip(masks.items(), probabilities, thresholds, strict=True):
        film = plane[:height, :width]
        inside = film[film > threshold]
        area = int(rle.area([mask])[0])
        found.append(
            {
                "id": image_id,
                "task": task,
                "area_px": area,
                "area_cm2": None if spacing is None else round(area * spacing[0] * spacing[1] / 100, 3),
                "highest_probability": round(float(film.max()), 4),
                "mean_probability": round(float(inside.mean()), 4) if area and inside.size else None,
                "cardiothoracic_ratio": None if ratio is None else round(ratio, 4),
                "spacing_at": "" if spacing is None else spacing_at or "patient",
            }
        )
    return found


def cardiothoracic_ratio(masks: Mapping[str, Mapping]) -> float | None:
    """Widest extent of the heart, by the widest extent of both lungs together: the inner width of the thorax.

    None where the network knows no lungs, as those trained on CheXlocalize's ten tasks do not, or where a mask is
    empty. Widths are in pixels: a film's columns are equally far apart.
    """
    heart = next((masks[name] for name in HEART if name in masks), None)
    lungs = next(([masks[name] for name in names] for names in LUNGS if all(name in masks for name in names)), None)
    if heart is None or lungs is None or not rle.area([heart, *lungs]).all():
        return None
    boxes = coco.toBbox([heart, *lungs])  # x, y, width, height
    left, right = boxes[1:, 0].min(), (boxes[1:, 0] + boxes[1:, 2]).max()
    return float(boxes[0, 2] / (right - left))
