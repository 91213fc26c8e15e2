"""Random variants of a training image and its masks. Never mirrored: the heart is on the left."""

from dataclasses import dataclass

import cv2
import numpy as np

MAX_ZOOM, MAX_SHIFT, MAX_CONTRAST = 0.1, 0.05, 0.2


@dataclass(frozen=True)
class Augmentation:
    """How far an image may be changed, beyond the bounds above.

    degrees       it is turned by at most this
    brightness    grey levels are raised or lowered by at most this
    pivot         the grey level that a change of contrast leaves as it is
    is_padded     True: black surrounds the film, stays black, and moves in from outside.
                  False: the film fills the image, and its edge goes on outside
    centre        the middle of a row of pixels that is `side` long is at side / 2 - centre
    """

    degrees: float
    brightness: float
    pivot: float
    is_padded: bool
    centre: float


# Images as the classifier sees them, stretched to a square; and padded ones, for segmentation.
STRETCHED = Augmentation(degrees=5, brightness=25, pivot=128, is_padded=False, centre=0)
PADDED = Augmentation(degrees=10, brightness=20, pivot=0, is_padded=True, centre=0.5)


def augment(
    image: np.ndarray, masks: np.ndarray, rng: np.random.Generator, how: Augmentation
) -> tuple[np.ndarray, np.ndarray]:
    """A turned, zoomed, shifted and re-exposed copy of image (S, S) uint8 and masks (C, S, S) of 0 and 1."""
    side = len(image)
    degrees, zoom = rng.uniform(-how.degrees, how.degrees), 1 + rng.uniform(-MAX_ZOOM, MAX_ZOOM)
    matrix = cv2.getRotationMatrix2D((side / 2 - how.centre,) * 2, degrees, zoom)
    matrix[:, 2] += rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * side
    contrast = 1 + rng.uniform(-MAX_CONTRAST, MAX_CONTRAST)
    brightness = rng.uniform(-how.brightness, how.brightness)
    levels = np.clip((np.arange(256) - how.pivot) * contrast + how.pivot + brightness, 0, 255)
    if how.is_padded:
        levels = levels.round().astype(np.uint8)
        levels[0] = 0
        image = cv2.warpAffine(cv2.LUT(image, levels), matrix, (side, side), flags=cv2.INTER_LINEAR)
    else:
        image = cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        image = cv2.LUT(image, levels.astype(np.uint8))
    moved = np.zeros_like(masks)
    for channel in np.flatnonzero(masks.any((1, 2))):
        moved[channel] = cv2.warpAffine(masks[channel], matrix, (side, side), flags=cv2.INTER_NEAREST)
    return image, moved
