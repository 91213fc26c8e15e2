"""A reader's polygons as a mask, as the tests of the phantom draw them."""

import cv2
import numpy as np


def to_mask(polygons, shape) -> np.ndarray:
    """(H, W) bool."""
    mask = np.zeros(shape, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(mask, [np.round(polygon).astype(np.int32)], 1)
    return mask > 0
