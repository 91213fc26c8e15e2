"""Small masks by hand, which several test modules share."""

import numpy as np

from chexseg.data import rle

TASKS = ("Edema", "Airspace Opacity", "Fracture")


def name(i):
    return f"patient{i:05d}_study1_view1_frontal"


def entry(*areas, size=(30, 40), tasks=TASKS):
    """Masks of `areas` pixels, filled row by row from the top."""
    stack = np.zeros((len(areas), size[0] * size[1]), np.uint8)
    for row, count in zip(stack, areas, strict=True):
        row[:count] = 1
    return dict(zip(tasks, rle.encode(stack.reshape(-1, *size)), strict=False))


# Pooled IoU by hand: Edema, Airspace Opacity of 100 + 300 and 200 true pixels; Fracture never occurs.
TRUTH = {name(1): entry(100, 200, 0), name(2): entry(300, 0, 0), name(3): entry(0, 0, 0)}
METHODS = {
    "weak_cam": {i: entry(40, 20, 7) for i in TRUTH},  # 80/440, 20/240 -> mean 0.132576
    "weak_irnet": {name(1): entry(50, 100, 0), name(2): entry(150, 0, 0), name(3): entry(0, 0, 0)},  # 0.5, 0.5
    "full": {name(1): entry(100, 150, 0), name(2): entry(200, 0, 0), name(3): entry(0, 0, 0)},  # 0.75, 0.75
    "chexseg": {name(1): entry(100, 200, 0), name(2): entry(300, 0, 0), name(3): entry(0, 50, 0)},  # 1, 0.8
    "radiologist": dict(TRUTH),
}
