"""Areas, probabilities and the cardiothoracic ratio by hand."""

import numpy as np
import pytest

from chexseg.data import rle
from chexseg.segmentation import findings


def box(size, top, bottom, left, right):
    mask = np.zeros(size, np.uint8)
    mask[top:bottom, left:right] = 1
    return rle.encode(mask[None])[0]


def test_rows_by_hand():
    size = (20, 10)  # a square of 4 holds it in 4 x 2
    masks = {"Edema": box(size, 0, 10, 0, 5), "Cardiomegaly": rle.empty(size)}
    planes = np.zeros((2, 4, 4), np.float32)
    planes[0, :2, 0] = 0.9, 0.7
    planes[0, :, 2:] = 1  # padding
    planes[1] = 0.25
    first, second = findings.rows("film", masks, planes, [0.5, 0.5], (0.2, 0.5))
    assert first == {
        "id": "film",
        "task": "Edema",
        "area_px": 50,
        "area_cm2": 0.05,  # 50 pixels of 0.1 square millimetres
        "highest_probability": 0.9,
        "mean_probability": 0.8,
        "cardiothoracic_ratio": None,
        "spacing_at": "patient",
    }
    assert second["area_px"] == 0 and second["area_cm2"] == 0
    assert second["highest_probability"] == 0.25 and second["mean_probability"] is None
    assert list(first) == list(findings.COLUMNS)


def test_without_spacing_there_are_no_square_centimetres():
    masks = {"Edema": box((4, 4), 0, 2, 0, 2)}
    (row,) = findings.rows("film", masks, np.ones((1, 4, 4), np.float32), [0.5], None)
    assert row["area_px"] == 4 and row["area_cm2"] is None and row["spacing_at"] == ""
    (row,) = findings.rows("film", masks, np.ones((1, 4, 4), np.float32), [0.5], (1, 1), "detector")
    assert row["spacing_at"] == "detector"


@pytest.mark.parametrize("heart", ["Heart", "Cardiomegaly"])
def test_cardiothoracic_ratio(heart):
    size = (30, 100)
    lungs = {"Left Lung": box(size, 0, 20, 60, 90), "Right Lung": box(size, 2, 25, 10, 40)}
    masks = {heart: box(size, 10, 20, 30, 70), **lungs}
    assert findings.cardiothoracic_ratio(masks) == pytest.approx(40 / 80)
    both = np.maximum(*rle.decode(list(lungs.values())))
    assert findings.cardiothoracic_ratio({heart: masks[heart], "Lungs": rle.encode(both[None])[0]}) == 0.5
    for name in masks:
        assert findings.cardiothoracic_ratio({k: v for k, v in masks.items() if k != name}) is None
        assert findings.cardiothoracic_ratio(masks | {name: rle.empty(size)}) is None
