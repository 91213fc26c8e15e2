"""Outlines of masks as short text, for a page that draws them itself: the polygons between a mask's pixels, thinned.

A polygon's corners lie on the borders of pixels, in half pixels from the top left, so that the drawn area is the
mask's. Each is written as the differences to the corner before, x then y, in base-64 digits of six bits, low digit
first: the lowest bit of a number is its sign, the highest of a digit says that another follows. A blank parts
polygons; holes are polygons too, by the even-odd rule.
"""

from collections.abc import Sequence
from typing import Any, cast

import cv2
import numpy as np
from contourpy import FillType, LineType, SerialContourGenerator, ZInterp

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
TOLERANCE = 1.0  # half pixels that a thinned outline may be off, on a film of FINE pixels or more
FINE = 400
_MORE, _LOW = 32, 31


def trace(mask: np.ndarray, tolerance: float | None = None) -> list[np.ndarray]:
    """(h, w), non-zero = inside -> closed polygons (n, 2) of x, y in half pixels, int64.

    tolerance: by default that of the film's size, so that a small one, shown large, keeps its corners. 0 keeps all.
    """
    if tolerance is None:
        tolerance = TOLERANCE * min(1.0, max(mask.shape) / FINE)
    inside = np.asarray(mask) != 0
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        return []
    y, x = rows[0], columns[0]  # the box around the mask: lungs are a quarter of a film, a lesion a hundredth
    padded = np.pad(inside[y : rows[-1] + 1, x : columns[-1] + 1].astype(np.float64), 1)
    polygons = []
    for line in _borders(padded):
        corners = np.rint(2 * (np.asarray(line) + (x, y)) - 1).astype(np.int32)[:-1]  # the last repeats the first
        thinned = cv2.approxPolyDP(corners[:, None], tolerance, True)[:, 0] if tolerance else corners
        polygons.append((thinned if len(thinned) > 2 else corners).astype(np.int64))
    return polygons


def _borders(values: np.ndarray) -> list[np.ndarray]:
    """Closed lines (n, 2) of x, y around what is 1 and not 0. `contourpy.contour_generator` would look for numbers that
    are not finite first, which takes longer than the lines."""
    x, y = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in values.shape[::-1]))
    kinds: Any = {"line_type": LineType.Separate, "fill_type": FillType.OuterOffset, "z_interp": ZInterp.Linear}
    no_mask: Any = None  # the library's types want an array
    generator = SerialContourGenerator(x, y, values, no_mask, corner_mask=True, quad_as_tri=False, **kinds)
    return cast(list[np.ndarray], generator.lines(0.5))  # of this line type


def encode(polygons: Sequence[np.ndarray]) -> str:
    """Polygons as text."""
    return " ".join(_encode_one(np.diff(corners, axis=0, prepend=0).ravel().tolist()) for corners in polygons)


def _encode_one(numbers: Sequence[int]) -> str:
    found = []
    for number in numbers:
        left = -number << 1 | 1 if number < 0 else number << 1
        while left > _LOW:
            found.append(DIGITS[left & _LOW | _MORE])
            left >>= 5
        found.append(DIGITS[left])
    return "".join(found)


def decode(text: str) -> list[np.ndarray]:
    """The polygons of a text, as the page reads them (templates/decode.js)."""
    return [_decode_one(part) for part in text.split()]


def _decode_one(text: str) -> np.ndarray:
    numbers, value, place = [], 0, 0
    for character in text:
        digit = DIGITS.index(character)
        value |= (digit & _LOW) << place
        place += 5
        if not digit & _MORE:
            numbers.append(-(value >> 1) if value & 1 else value >> 1)
            value = place = 0
    return np.cumsum(np.array(numbers, np.int64).reshape(-1, 2), axis=0)
