"""A canvas in body coordinates: outlines and strokes become antialiased fields; smooth noise; round thickness.

Body coordinates: x = 0 at the spine and 1 at the inner chest wall of the patient's left (the image's right); y = 0 at
the carina, about -0.8 at the apices and 0.65 at the domes of the diaphragm.

Full-size arithmetic is + - * / sqrt in float32, OpenCV's integer kernels and table look-ups, and no transcendental
function: these give the same bits whatever vector unit the machine has, so the same seed gives the same JPEG.
"""

from dataclasses import dataclass

import cv2
import numpy as np

RIGHT, LEFT = SIDES = -1, 1  # the patient's sides, as signs of x
SUBPIXEL = 4  # bits of OpenCV's fixed-point coordinates
EXACT = cv2.INTER_LINEAR_EXACT  # in integers


@dataclass(frozen=True)
class Frame:
    """The image's size and the affine map (2, 3) from body coordinates to pixels; `scale` in pixels a body unit."""

    height: int
    width: int
    matrix: np.ndarray
    scale: float

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) body -> (..., 2) pixels, float64."""
        (a, b, p), (c, d, q) = self.matrix
        x, y = points[..., 0], points[..., 1]
        placed = np.empty(points.shape)
        placed[..., 0], placed[..., 1] = a * x + b * y + p, c * x + d * y + q
        return placed

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Body coordinates x, y (H, W) float32 of the pixels."""
        (a, b, p), (c, d, q) = self.matrix
        col, row = np.arange(self.width)[None] - p, np.arange(self.height)[:, None] - q
        col, row = col / (a * d - b * c), row / (a * d - b * c)
        x = (d * col).astype(np.float32) - (b * row).astype(np.float32)
        return x, (a * row).astype(np.float32) - (c * col).astype(np.float32)

    def fill(
        self, outlines: np.ndarray, canvas: np.ndarray | None = None, value: int = 255, *, apart=False
    ) -> np.ndarray:
        """Paint closed outlines (..., n, 2) on a (H, W) uint8 canvas, antialiased; `apart`: none overlap."""
        canvas = self.blank() if canvas is None else canvas
        fixed = self._fixed(outlines)
        for group in [list(fixed)] if apart else [[one] for one in fixed]:
            cv2.fillPoly(canvas, group, value, cv2.LINE_AA, SUBPIXEL)
        return canvas

    def strokes(self, paths, width: float, canvas: np.ndarray | None = None, value: int = 255) -> np.ndarray:
        """Paint open paths (..., n, 2) of `width` body units, at least one pixel."""
        canvas = self.blank() if canvas is None else canvas
        thickness = max(1, round(width * self.scale))
        cv2.polylines(canvas, list(self._fixed(paths)), False, value, thickness, cv2.LINE_AA, SUBPIXEL)
        return canvas

    def blank(self) -> np.ndarray:
        return np.zeros((self.height, self.width), np.uint8)

    def _fixed(self, points) -> np.ndarray:
        points = np.asarray(points, np.float64)
        fixed = np.round(self.pixels(points) * (1 << SUBPIXEL)).astype(np.int32)
        return fixed.reshape(-1, *points.shape[-2:])

    def depth(self, mask: np.ndarray) -> np.ndarray:
        """Distance (body units) of every pixel inside `mask` to its border, 0 outside; on a grid half as fine."""
        coarse = distance(cv2.resize(mask, (self.width // 2, self.height // 2), interpolation=EXACT) > 127)
        coarse *= np.float32(64)
        fine = cv2.resize(coarse.astype(np.uint16), (self.width, self.height), interpolation=EXACT)
        return fine * np.float32(1 / (32 * self.scale))

    def blur(self, canvas: np.ndarray, sigma: float) -> np.ndarray:
        """Gaussian blur of a uint8 canvas, `sigma` in body units; wide ones on a coarser grid."""
        sigma = sigma * self.scale
        if sigma < 1.5:  # OpenCV's own small kernels: deviations 0.7 and 1
            return cv2.GaussianBlur(canvas, (3, 3) if sigma < 0.9 else (5, 5), 0)
        factor = 2 if sigma < 4 else 4
        size = self.width // factor, self.height // factor
        coarse = cv2.GaussianBlur(cv2.resize(canvas, size, interpolation=EXACT), (0, 0), sigma / factor)
        return cv2.resize(coarse, (self.width, self.height), interpolation=EXACT)


def distance(mask: np.ndarray) -> np.ndarray:
    """Pixels (H, W) float32 from each True to the nearest False."""
    found = cv2.distanceTransform(mask.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Squares are whole numbers: rounding them undoes what Intel's and OpenCV's own code do differently.
    np.minimum(found, 1000, out=found)  # a mask without an edge is infinitely deep
    found *= found
    return np.sqrt(np.rint(found, out=found), out=found)


def spline(points, closed: bool = True, per_segment: int = 10) -> np.ndarray:
    """Catmull-Rom curves through control points (..., n, 2)."""
    p = np.asarray(points, np.float64)
    before = p[..., -1:, :] if closed else 2 * p[..., :1, :] - p[..., 1:2, :]
    after = p[..., :2, :] if closed else 2 * p[..., -1:, :] - p[..., -2:-1, :]
    q = np.concatenate([before, p, after], axis=-2)
    t = (np.arange(per_segment) / per_segment)[:, None]
    a, b, c, d = (q[..., i : q.shape[-2] - 3 + i, None, :] for i in range(4))
    curve = (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3) / 2
    curve = curve.reshape(*p.shape[:-2], -1, 2)
    return curve if closed else np.concatenate([curve, p[..., -1:, :]], axis=-2)


def ribbon(path: np.ndarray, width) -> np.ndarray:
    """Outlines (..., 2 n, 2) of bands of `width` (a number or one per point) around open paths (..., n, 2)."""
    ends = 2 * path[..., :1, :] - path[..., 1:2, :], path, 2 * path[..., -1:, :] - path[..., -2:-1, :]
    around = np.concatenate(ends, axis=-2)
    tangent = around[..., 2:, :] - around[..., :-2, :]
    normal = tangent[..., ::-1] * (-1, 1) / np.maximum(np.sqrt((tangent**2).sum(-1, keepdims=True)), 1e-9)
    half = normal * (np.broadcast_to(width, path.shape[:-1])[..., None] / 2)
    return np.concatenate([path + half, (path - half)[..., ::-1, :]], axis=-2)


def noise(rng: np.random.Generator, shape: tuple[int, int], cells: int, octaves: int = 1) -> np.ndarray:
    """Smooth noise (H, W) float32, about unit variance: a cubic B-spline over `cells` random cells along each side,
    with a three times coarser one added for each further octave."""
    grid = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32) * np.float32(2.08)
    if octaves > 1:
        grid += noise(rng, grid.shape, max(1, cells // 3), octaves - 1)
    for axis in (1, 0):  # the long axis last: its rows are contiguous
        position = np.arange(shape[axis]) * (cells / shape[axis])
        start = position.astype(int)
        t = (position - start).astype(np.float32)
        weights = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6, t**3 / 6)
        along = (-1, 1) if axis == 0 else (1, -1)
        total = grid.take(start, axis) * weights[0].reshape(along)
        term = np.empty_like(total)
        for k in (1, 2, 3):  # in place: fresh memory costs more than the arithmetic
            np.take(grid, start + k, axis, out=term, mode="clip")
            term *= weights[k].reshape(along)
            total += term
        grid = total
    return grid


def bulge(depth: np.ndarray, radius: float) -> np.ndarray:
    """Thickness of a round-edged body: 0 at its border, 1 from `radius` inwards."""
    t = depth * np.float32(1 / radius)
    np.minimum(t, 1, out=t)
    t *= 2 - t
    return np.sqrt(t, out=t)


def graded(canvas: np.ndarray, full: float = 1.0, empty: float = 0.0) -> np.ndarray:
    """uint8 canvas -> float32 field that is `empty` at 0 and `full` at 255."""
    return cv2.LUT(canvas, (empty + (full - empty) * np.arange(256) / 255).astype(np.float32))


def ellipse(centre, radii, points: int = 32) -> np.ndarray:
    angle = np.arange(points) * (2 * np.pi / points)
    return np.stack([centre[0] + radii[0] * np.cos(angle), centre[1] + radii[1] * np.sin(angle)], axis=1)


def mirrored(points) -> np.ndarray:
    """(n, 2) of the patient's left -> (2, n, 2) of both sides."""
    return np.stack([np.asarray(points) * (s, 1) for s in SIDES])
