"""The phantom's body: outlines of a chest that differ from patient to patient, and the picture an X-ray makes of it.

Body coordinates: x = 0 at the spine and 1 at the inner chest wall of the patient's left (the image's right); y = 0 at
the carina, about -0.8 at the apices and 0.65 at the domes of the diaphragm. Fields are attenuations along the beam:
they add up, and the film answers with a curve. Nothing here knows of labels or files (see `phantom`).

Full-size arithmetic is + - * / sqrt in float32, OpenCV's integer kernels and table look-ups, and no transcendental
function: these give the same bits whatever vector unit the machine has, so the same seed gives the same JPEG.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

RIGHT, LEFT = -1, 1  # the patient's sides, as signs of x
SUBPIXEL = 4  # bits of OpenCV's fixed-point coordinates


@dataclass(frozen=True)
class Patient:
    """Who stands before the detector; fixed over a patient's studies."""

    sex: str
    age: int
    build: float  # 0 lean ... 1 obese
    shape: tuple[float, ...]  # eight unit normals that bend the outlines


@dataclass(frozen=True)
class Frame:
    """The image's size and the affine map (2, 3) from body coordinates to pixels; `scale` in pixels a body unit."""

    height: int
    width: int
    matrix: np.ndarray
    scale: float

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """(n, 2) body -> (n, 2) pixels, float64."""
        return np.stack([(points * row[:2]).sum(1) + row[2] for row in self.matrix], axis=1)

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Body coordinates x, y (H, W) float32 of the pixels."""
        (a, b, p), (c, d, q) = self.matrix
        det = a * d - b * c
        col, row = np.arange(self.width)[None] - p, np.arange(self.height)[:, None] - q
        return ((d * col - b * row) / det).astype(np.float32), ((a * row - c * col) / det).astype(np.float32)

    def fill(self, points: np.ndarray, canvas: np.ndarray | None = None, value: int = 255) -> np.ndarray:
        """Paint a closed outline on a (H, W) uint8 canvas, antialiased."""
        canvas = np.zeros((self.height, self.width), np.uint8) if canvas is None else canvas
        fixed = np.round(self.pixels(points) * (1 << SUBPIXEL)).astype(np.int32)
        cv2.fillPoly(canvas, [fixed], value, cv2.LINE_AA, SUBPIXEL)
        return canvas

    def strokes(self, paths, width: float, canvas: np.ndarray | None = None, value: int = 255) -> np.ndarray:
        """Paint open paths of `width` body units, at least one pixel."""
        canvas = np.zeros((self.height, self.width), np.uint8) if canvas is None else canvas
        fixed = [np.round(self.pixels(p) * (1 << SUBPIXEL)).astype(np.int32) for p in paths]
        cv2.polylines(canvas, fixed, False, value, max(1, round(width * self.scale)), cv2.LINE_AA, SUBPIXEL)
        return canvas

    def depth(self, mask: np.ndarray) -> np.ndarray:
        """Distance (body units) of every pixel inside `mask` to its border; 0 outside."""
        distance = cv2.distanceTransform((mask > 127).astype(np.uint8), cv2.DIST_L2, 5)
        return distance * np.float32(1 / self.scale)

    def blur(self, canvas: np.ndarray, sigma: float) -> np.ndarray:
        """Gaussian blur of a uint8 canvas, `sigma` in body units; OpenCV's exact integer kernel."""
        return cv2.GaussianBlur(canvas, (0, 0), max(sigma * self.scale, 0.3))


def spline(points, closed: bool = True, per_segment: int = 10) -> np.ndarray:
    """Catmull-Rom curve through (n, 2) control points."""
    p = np.asarray(points, np.float64)
    before, after = (p[-1:], p[:2]) if closed else (2 * p[:1] - p[1:2], 2 * p[-1:] - p[-2:-1])
    q = np.concatenate([before, p, after])
    t = (np.arange(per_segment) / per_segment)[None, :, None]
    a, b, c, d = (q[i : len(q) - 3 + i, None] for i in range(4))
    curve = (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3) / 2
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-1:]])


def ribbon(path: np.ndarray, width) -> np.ndarray:
    """Outline of a band of `width` (a number or one per point) around an open path."""
    tangent = np.gradient(path, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1) / np.maximum(np.hypot(*tangent.T), 1e-9)[:, None]
    half = normal * np.broadcast_to(np.asarray(width) / 2, len(path))[:, None]
    return np.concatenate([path + half, (path - half)[::-1]])


def noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth noise (H, W) float32, about unit variance: a cubic B-spline over `cells` random cells along each side."""
    grid = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32) * np.float32(2.08)
    for axis, length in enumerate(shape):
        position = np.arange(length) * (cells / length)
        start = position.astype(int)
        t = (position - start).astype(np.float32)
        weights = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6, t**3 / 6)
        along = (-1, 1) if axis == 0 else (1, -1)
        grid = sum(w.astype(np.float32).reshape(along) * grid.take(start + k, axis) for k, w in enumerate(weights))
    return grid


def bulge(depth: np.ndarray, radius: float) -> np.ndarray:
    """Thickness of a round-edged body: 0 at its border, 1 from `radius` inwards."""
    t = np.minimum(depth * np.float32(1 / radius), np.float32(1))
    return np.sqrt(t * (2 - t))


@dataclass
class Chest:
    """Outlines in body coordinates. `enlarged` scales the heart, `widened` the upper mediastinum, `raised` lifts the
    domes (right, left), `missing` is how far inspiration falls short."""

    patient: Patient
    ap: bool
    right: float
    left: float
    widened: float
    raised: tuple[float, float]
    shift: float  # of the mediastinum, by rotation or a scoliotic spine
    fractures: int = 0
    lungs: dict[int, np.ndarray] = field(default_factory=dict)
    recesses: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bend = self.patient.shape
        self.apex = -0.80 + 0.03 * bend[0]
        self.domes = {RIGHT: 0.63 + 0.035 * bend[1] - self.raised[0], LEFT: 0.68 + 0.035 * bend[1] - self.raised[1]}
        for side in (RIGHT, LEFT):
            self.lungs[side], self.recesses[side] = self._lung(side, self.domes[side])
        self.heart, self.silhouette = self._mediastinum()
        self.hila = {RIGHT: (-0.2 + self.shift, 0.06), LEFT: (0.23 + self.shift, 0.0)}

    def _lung(self, side: int, dome: float) -> tuple[np.ndarray, np.ndarray]:
        bend, top = self.patient.shape, self.apex
        angle = max(dome + 0.30 + 0.03 * bend[2], 0.80)
        wide = 1 + 0.02 * bend[3]
        outer = [(0.06, dome + 0.08), (0.06, 0.4), (0.06, 0.0), (0.07, -0.4), (0.15, top + 0.12), (0.26, top + 0.01)]
        outer += [(0.40, top - 0.01), (0.59, top + 0.10), (0.76, top + 0.34), (0.87, -0.12), (0.945, 0.25)]
        outer += [(0.985 * wide, 0.6), (0.99 * wide, angle)]
        floor = [(0.99 * wide, angle), (0.94, angle - 0.12), (0.83, dome + 0.075), (0.66, dome + 0.005)]
        floor += [(0.47, dome - 0.01), (0.28, dome + 0.02), (0.06, dome + 0.08)]
        sulcus = [(0.97, angle - 0.02), (0.7, angle + 0.02), (0.4, angle), (0.12, angle - 0.08)]
        edge = spline(floor, closed=False)
        outline = np.concatenate([spline(outer, closed=False), edge[1:-1]])
        recess = np.concatenate([edge, spline(sulcus[::-1], closed=False)])
        return outline * (side, 1), recess * (side, 1)

    def _mediastinum(self) -> tuple[np.ndarray, np.ndarray]:
        r, l, w = self.right, self.left, self.widened  # noqa: E741
        bend = self.patient.shape
        low = (self.domes[RIGHT] + self.domes[LEFT]) / 2 + 0.07
        knob = (0.14 + 0.05 * (self.patient.age > 55) + 0.02 * bend[4]) * w
        left_side = [(l * 0.5, 0.1), (l * 0.74, 0.23), (l * 0.92, 0.4), (l, low - 0.17), (l * 0.97, low - 0.05)]
        floor = [(l * 0.75, low + 0.03), (0.15, low + 0.03), (-r * 0.6, low)]
        right_side = [(-r * 0.9, low - 0.14), (-r, 0.40), (-r * 0.84, 0.17)]
        heart = [*left_side, *floor, *right_side, (-0.13, 0.0), (0.12, -0.04)]
        upper_left = [(0.12 * w, self.apex), (0.13 * w, -0.55), (0.10 + knob, -0.34), (0.09 + knob, -0.24)]
        upper_left += [(0.19 * w, -0.14), (0.245, -0.02)]
        upper_right = [(-0.185 * w, 0.03), (-0.18 * w, -0.25), (-0.155 * w, -0.55), (-0.13 * w, self.apex)]
        offset = np.array([self.shift, 0.0])
        silhouette = np.concatenate(
            [spline([*upper_left, *left_side, *floor, *right_side, *upper_right], closed=False)]
        )
        return spline(heart) + offset, silhouette + offset


class Scene:
    """A chest on its way to a picture: fields (H, W) float32 that findings change before `expose` turns them to grey.

    air        attenuation that the lungs take away, per side
    dense      attenuation added to everything, bones and devices included
    vascular   attenuation of vessels and lung texture, which a pneumothorax does not have
    """

    def __init__(self, chest: Chest, frame: Frame, rng: np.random.Generator):
        self.chest, self.frame, self.shape = chest, frame, (frame.height, frame.width)
        self.x, self.y = frame.grid()
        self.lungs = {s: frame.fill(chest.lungs[s]) for s in (RIGHT, LEFT)}
        self.silhouette = frame.blur(frame.fill(chest.silhouette), 0.006)
        self.heart = frame.fill(chest.heart)
        self.depths = {s: frame.depth(self.lungs[s]) for s in (RIGHT, LEFT)}
        # What the eye calls lung: the parts that the mediastinum does not cover.
        self.visible = {s: self.lungs[s] - cv2.min(self.lungs[s], self.silhouette) for s in (RIGHT, LEFT)}
        covered = (0.55 + 0.4 * bulge(frame.depth(self.silhouette), 0.16)) * _unit(self.silhouette)
        self.air = {}
        for side in (RIGHT, LEFT):
            inside = _unit(frame.blur(self.lungs[side], 0.006)) * (0.45 + 0.55 * bulge(self.depths[side], 0.42))
            recess = _unit(frame.blur(frame.fill(chest.recesses[side]), 0.03)) * np.float32(0.16)
            self.air[side] = inside * (1 - covered) + recess
        self.dense = np.zeros(self.shape, np.float32)
        self.vascular = _vessels(chest, frame, rng, self.shape)
        _bones(self, rng)

    def expose(self, rng: np.random.Generator) -> np.ndarray:
        """The picture (H, W) uint8."""
        patient, frame = self.chest.patient, self.frame
        body = _torso(self, rng)
        lung = sum(self.air.values())
        texture = self.vascular * np.minimum(lung * 2, 1)
        total = (
            body * (1 - np.float32(0.70 - 0.06 * patient.build) * lung) + texture + self.dense * np.minimum(body * 2, 1)
        )
        # Scatter veils the picture; quanta are fewest where the body is densest.
        level = np.clip(total * np.float32(160), 0, 255).astype(np.uint8)
        veil = _unit(
            cv2.resize(frame.blur(level[::4, ::4], 0.06), self.shape[::-1], interpolation=cv2.INTER_LINEAR_EXACT)
        )
        total = total * np.float32(0.86) + veil * np.float32(0.14 * 255 / 160)
        grain = rng.standard_normal(self.shape, dtype=np.float32)
        grain[1:] += grain[:-1] * np.float32(0.5)
        amount = rng.uniform(0.004, 0.013) * (1 + patient.build)
        total += grain * (np.float32(amount) * (0.4 + total))
        dark, bright = rng.uniform(0.16, 0.30), rng.uniform(1.08, 1.28)
        gamma, toe = rng.uniform(0.75, 1.15), rng.uniform(0.0, 0.08)
        steps = np.clip((np.arange(4096) / 2048 - dark * 0.6) / (bright - dark * 0.6), 0, 1)
        curve = steps**gamma
        curve = np.round(
            255 * (toe * (curve > 0) + (1 - toe) * (0.55 * curve + 0.45 * curve * curve * (3 - 2 * curve)))
        )
        return curve.astype(np.uint8)[np.clip(total * np.float32(2048), 0, 4095).astype(np.uint16)]


def _unit(canvas: np.ndarray) -> np.ndarray:
    return canvas * np.float32(1 / 255)


def _torso(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Soft tissue thickness: neck, shoulders, arms, flanks, breasts, abdomen."""
    chest, frame = scene.chest, scene.frame
    build, bend = chest.patient.build, chest.patient.shape
    flank = 1.10 + 0.22 * build
    raised = 0.12 if chest.ap else 0.0
    half = [(0.30, -3.0), (0.29, -1.25 - raised), (0.42, -1.02), (0.9, -0.93 - raised), (1.35, -0.82 - raised)]
    half += [(1.62, -0.55), (1.72, 0.0), (1.70, 0.6)]
    pit = [(1.42, 0.3), (flank + 0.05, -0.05), (flank, 0.4), (flank + 0.02, 0.9), (flank + 0.03, 3.0)]
    side = np.array([*half, *pit])
    outline = np.concatenate([spline(side, closed=False), spline(side * (-1, 1), closed=False)[::-1]])
    body = bulge(frame.depth(frame.blur(frame.fill(outline), 0.02)), 0.30) * np.float32(0.80 + 0.12 * build)
    belly = np.clip((scene.y - np.float32(0.55)) * np.float32(1.6), 0, 1)
    body *= 1 + belly * np.float32(0.12)
    if chest.patient.sex == "Female":
        size = 0.34 + 0.12 * build + 0.03 * bend[5]
        for sign in (RIGHT, LEFT):
            angle = np.linspace(0, 2 * np.pi, 40)
            disc = np.stack([sign * 0.56 + 1.05 * size * np.cos(angle), 0.50 + size * np.sin(angle)], 1)
            body += bulge(frame.depth(frame.fill(disc)), size * 0.9) * np.float32(0.09 + 0.06 * build)
    return body * (1 + noise(rng, scene.shape, 5) * np.float32(0.02))


def _bones(scene: Scene, rng: np.random.Generator) -> None:
    chest, frame = scene.chest, scene.frame
    bend, old = chest.patient.shape, (chest.patient.age - 20) / 70
    back, front = np.zeros(scene.shape, np.uint8), np.zeros(scene.shape, np.uint8)
    tilt = 0.02 * bend[6]
    for side in (RIGHT, LEFT):
        for k in range(10):
            y = -0.84 + 0.165 * k + rng.normal(0, 0.008)
            reach = min(0.50 + 0.17 * k, 1.0) if k < 3 else min(0.86 + 0.035 * k, 1.03)
            drop = 0.10 + 0.035 * k + tilt
            path = [(0.10, y), (0.22, y - 0.05), (0.45 * reach, y - 0.045), (0.78 * reach, y + 0.3 * drop)]
            path = np.array([*path, (reach, y + drop + 0.12)])
            _rib(frame, spline(path * (side, 1), closed=False, per_segment=7), 0.062, back, 210)
            if k < 7:
                turn = np.array([(reach, y + drop + 0.1), (0.93 * reach, y + drop + 0.26)])
                end = np.array([(0.72 * reach, y + drop + 0.37), (0.48 * reach, y + drop + 0.42 - 0.02 * k)])
                path = np.concatenate([turn, end])
                _rib(frame, spline(path * (side, 1), closed=False, per_segment=7), 0.066, front, 170)
    ribs = _unit(frame.blur(back, 0.006)) + _unit(frame.blur(front, 0.008))
    misc = np.zeros(scene.shape, np.uint8)
    for side in (RIGHT, LEFT):
        lift = 0.10 if chest.ap else 0.0
        path = [
            (0.13, -0.60),
            (0.30, -0.67 - lift * 0.4),
            (0.55, -0.74 - lift),
            (0.85, -0.76 - lift),
            (1.12, -0.86 - lift),
        ]
        path = spline(np.array(path) * (side, 1) + (chest.shift, 0.01 * bend[7] * side), closed=False)
        width = 0.065 + 0.03 * np.linspace(-1, 1, len(path)) ** 2
        frame.fill(ribbon(path, width), misc, 190)
        frame.fill(ribbon(path, width * 0.6), misc, 140)
        angle = np.linspace(0, 2 * np.pi, 30)
        frame.fill(np.stack([side * 1.38 + 0.16 * np.cos(angle), -0.66 + 0.17 * np.sin(angle)], 1), misc, 150)
        inner = 0.90 if chest.ap else 1.04
        blade = [(inner, -0.52), (inner - 0.05, -0.1), (inner + 0.06, 0.32), (inner + 0.2, -0.05), (inner + 0.34, -0.5)]
        scene.dense += _unit(frame.blur(frame.fill(spline(np.array(blade) * (side, 1))), 0.008)) * np.float32(0.045)
    spine = np.zeros(scene.shape, np.uint8)
    for k in range(22):
        y, half = -1.5 + 0.145 * k, 0.105 + 0.0015 * k
        box = np.array(
            [
                (-half, y - 0.055),
                (half, y - 0.055),
                (half * 0.9, y),
                (half, y + 0.055),
                (-half, y + 0.055),
                (-half * 0.9, y),
            ]
        )
        frame.fill(box + (chest.shift * 0.4, 0), spine, 200)
        for side in (RIGHT, LEFT):
            pedicle = np.array([(0.055, y - 0.03), (0.075, y - 0.03), (0.075, y + 0.015), (0.055, y + 0.015)]) * (
                side,
                1,
            )
            frame.fill(pedicle + (chest.shift * 0.4, 0), spine, 255)
    windpipe = spline(
        np.array([(0.0, -1.4), (0.0, -0.6), (-0.01 + chest.shift, -0.2), (-0.01 + chest.shift, -0.03)]), closed=False
    )
    bronchi = [np.array([(chest.shift, -0.05), (s * 0.16 + chest.shift, 0.08)]) for s in (RIGHT, LEFT)]
    tube = frame.strokes(bronchi, 0.05, frame.strokes([windpipe], 0.085))
    bubble = np.stack([0.50 + 0.2 * np.cos(angle), 0.10 + chest.domes[LEFT] + 0.09 * np.sin(angle)], 1)
    gas = frame.blur(frame.fill(bubble), 0.012)
    mineral = np.float32(1.1 - 0.35 * old)
    scene.dense += ribs * (np.float32(0.085) * mineral) + _unit(frame.blur(misc, 0.006)) * (np.float32(0.13) * mineral)
    scene.dense += _unit(frame.blur(spine, 0.008)) * np.float32(0.10)
    scene.dense -= _unit(frame.blur(tube, 0.012)) * np.float32(0.13) + _unit(gas) * np.float32(rng.uniform(0, 0.22))


def _rib(frame: Frame, path: np.ndarray, width: float, canvas: np.ndarray, value: int) -> None:
    """A band with bright cortex and a fainter marrow."""
    frame.fill(ribbon(path, width), canvas, value)
    frame.fill(ribbon(path, width * 0.55), canvas, int(value * 0.72))


def _vessels(chest: Chest, frame: Frame, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Arteries and veins that branch from the hila, with the fine texture of the lung."""
    canvas = np.zeros(shape, np.uint8)
    for side in (RIGHT, LEFT):
        root = np.array(chest.hila[side])
        trunk_angle = np.concatenate([rng.uniform(-1.35, 0.1, 5), rng.uniform(0.2, 1.35, 7)])
        start, angle, length = np.tile(root, (12, 1)), trunk_angle, rng.uniform(0.25, 0.45, 12)
        for width, value in ((0.032, 230), (0.020, 190), (0.012, 150), (0.007, 110)):
            bend = rng.normal(0, 0.22, len(angle))
            t = np.linspace(0, 1, 6)[None]
            heading = angle[:, None] + bend[:, None] * t
            step = np.stack([side * np.cos(heading), np.sin(heading)], -1) * (length / 6)[:, None, None]
            paths = start[:, None] + np.concatenate([np.zeros((len(angle), 1, 2)), step.cumsum(1)], 1)
            frame.strokes(paths, width, canvas, value)
            fork = rng.normal(0.38, 0.14, (2, len(angle))) * [[1], [-1]]
            start = np.tile(paths[:, -1], (2, 1))
            angle = (heading[:, -1] + fork).reshape(-1)
            length = np.tile(length, 2) * rng.uniform(0.55, 0.85, 2 * len(bend))
    fine = noise(rng, shape, max(shape) // 8) * np.float32(0.010) + noise(rng, shape, max(shape) // 24) * np.float32(
        0.008
    )
    return _unit(frame.blur(canvas, 0.006)) * np.float32(0.15) + fine


def lateral(chest: Chest, frame: Frame, hazy: bool, rng: np.random.Generator) -> np.ndarray:
    """A side view (H, W) uint8: sternum to the left, spine to the right. Findings are hinted at, never outlined."""
    bend = chest.patient.shape
    dome = chest.domes[LEFT]
    body = spline(
        [(-0.62, -1.4), (-0.85, -0.5), (-0.95, 0.4), (-0.85, 1.6), (0.9, 1.6), (1.02, 0.4), (0.95, -0.4), (0.6, -1.4)]
    )
    lung = spline(
        [(-0.1, -0.85), (-0.6, -0.55), (-0.72, 0.1), (-0.7, dome - 0.05), (-0.1, dome - 0.12), (0.6, dome + 0.25)]
        + [(0.78, 0.4), (0.8, -0.2), (0.55, -0.75)]
    )
    heart = spline(
        [
            (-0.65, 0.2),
            (-0.3, 0.05),
            (0.15, 0.2),
            (0.25 * (1 + chest.left - 0.5), 0.5),
            (0.1, dome + 0.1),
            (-0.62, dome + 0.05),
        ]
    )
    arch = spline([(-0.25, 0.1), (-0.2, -0.3), (0.1, -0.4), (0.35, -0.2), (0.42, 0.8)], closed=False)
    thick = bulge(frame.depth(frame.fill(body)), 0.35)
    air = _unit(frame.blur(frame.fill(lung), 0.01)) * (0.4 + 0.6 * bulge(frame.depth(frame.fill(lung)), 0.3))
    air = air * (1 - _unit(frame.blur(frame.fill(heart), 0.02)) * np.float32(0.75))
    air = air * (1 - _unit(frame.blur(frame.strokes([arch], 0.16), 0.02)) * np.float32(0.4))
    if hazy:
        air = air * np.clip(0.75 + noise(rng, (frame.height, frame.width), 7) * np.float32(0.3), 0.2, 1)
    bones = np.zeros((frame.height, frame.width), np.uint8)
    for k in range(14):
        y = -1.0 + 0.17 * k
        frame.fill(np.array([(0.62, y), (0.80, y - 0.02), (0.82, y + 0.11), (0.64, y + 0.12)]), bones, 150)
        rib = spline([(0.85, y - 0.05), (0.5, y + 0.03), (0.0, y + 0.3), (-0.5, y + 0.55)], closed=False)
        _rib(frame, rib, 0.05, bones, 80 + 5 * (k % 3))
    frame.fill(ribbon(spline([(-0.72, -0.55), (-0.8, 0.0), (-0.82, 0.4)], closed=False), 0.05), bones, 160)
    total = thick * (1 - np.float32(0.62) * air) + _unit(frame.blur(bones, 0.006)) * np.float32(0.14 + 0.01 * bend[0])
    total += noise(rng, total.shape, max(total.shape) // 10) * np.float32(0.008)
    total += rng.standard_normal(total.shape, dtype=np.float32) * np.float32(0.01)
    return np.clip((total - np.float32(0.12)) * np.float32(255 / rng.uniform(0.95, 1.15)), 0, 255).astype(np.uint8)
