"""The phantom's body: outlines of a chest that differ from patient to patient, and what they do to an X-ray beam.

Fields are attenuations along the beam: they add up, and `film` answers with a curve.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

from chexseg.phantom.canvas import LEFT, RIGHT, SIDES, Frame, bulge, ellipse, graded, mirrored, noise, ribbon, spline


@dataclass(frozen=True)
class Patient:
    """Who stands before the detector; fixed over a patient's studies."""

    sex: str
    age: int
    build: float  # 0 lean ... 1 obese
    shape: tuple[float, ...]  # eight unit normals that bend the outlines


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
    fracture_side: int = LEFT
    lungs: dict[int, np.ndarray] = field(default_factory=dict)
    recesses: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bend = self.patient.shape
        self.apex = -0.80 + 0.03 * bend[0]
        self.domes = {RIGHT: 0.63 + 0.035 * bend[1] - self.raised[0], LEFT: 0.68 + 0.035 * bend[1] - self.raised[1]}
        for side in SIDES:
            self.lungs[side], self.recesses[side] = self._lung(side, self.domes[side])
        self.heart, self.silhouette = self._mediastinum()
        self.hila = {RIGHT: (-0.2 + self.shift, 0.06), LEFT: (0.23 + self.shift, 0.0)}

    def _lung(self, side: int, dome: float) -> tuple[np.ndarray, np.ndarray]:
        bend, top = self.patient.shape, self.apex
        angle = max(dome + 0.30 + 0.03 * bend[2], 0.80)
        wide = 1 + 0.02 * bend[3]
        outer = [(0.06, dome + 0.08), (0.06, 0.4), (0.06, 0.0), (0.07, -0.4), (0.15, top + 0.12), (0.26, top + 0.01)]
        outer += [(0.41, top), (0.62, top + 0.10), (0.80, top + 0.33), (0.905, -0.12), (0.965, 0.25)]
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
        floor = [(l * 0.75, low + 0.06), (0.15, low + 0.08), (-r * 0.6, low + 0.05)]
        right_side = [(-r * 0.9, low - 0.14), (-r, 0.42), (-r * 0.80, 0.19)]
        heart = [*left_side, *floor, *right_side, (-0.13, 0.0), (0.12, -0.04)]
        upper_left = [(0.12 * w, self.apex), (0.13 * w, -0.55), (0.10 + knob, -0.34), (0.09 + knob, -0.24)]
        upper_left += [(0.205 * w, -0.13), (0.255, -0.01)]
        upper_right = [(-0.20 * w, 0.02), (-0.18 * w, -0.25), (-0.155 * w, -0.55), (-0.13 * w, self.apex)]
        offset = np.array([self.shift, 0.0])
        silhouette = np.concatenate(
            [spline([*upper_left, *left_side, *floor, *right_side, *upper_right], closed=False)]
        )
        return spline(heart) + offset, silhouette + offset


class Scene:
    """A chest on its way to a picture: fields (H, W) float32 that findings change.

    air       share of the beam's way that is air, per side
    dense     attenuation added to everything: bones, devices, fluid
    vascular  attenuation of vessels and fine structure, which a pneumothorax does not have
    """

    def __init__(self, chest: Chest, frame: Frame, rng: np.random.Generator):
        self.chest, self.frame, self.shape = chest, frame, (frame.height, frame.width)
        self.x, self.y = frame.grid()
        self.lungs = {s: frame.fill(chest.lungs[s]) for s in SIDES}
        outline = frame.fill(chest.silhouette)
        self.silhouette = frame.blur(outline, 0.006)
        # What the eye calls lung: the parts that the mediastinum does not cover.
        self.visible = {s: cv2.subtract(self.lungs[s], outline) for s in SIDES}
        both = cv2.max(self.lungs[RIGHT], self.lungs[LEFT])
        self.depth = frame.depth(both)
        covered = bulge(frame.depth(outline), 0.16)
        covered *= np.float32(0.33)
        covered += np.float32(0.62)
        covered *= graded(self.silhouette)
        recesses = frame.fill(np.stack([chest.recesses[s] for s in SIDES]))
        air = bulge(self.depth, 0.42)
        air *= np.float32(0.55)
        air += np.float32(0.45)
        air *= graded(frame.blur(both, 0.006))
        air *= 1 - covered
        air += graded(frame.blur(recesses, 0.03), 0.13)
        self.air = {RIGHT: air * (self.x < 0), LEFT: air * (self.x >= 0)}
        # Scatter drowns the bones behind the heart.
        self.dense = _bones(chest, frame, rng)
        self.dense *= 1 - np.float32(0.5) * covered
        covered *= np.float32(0.03)
        self.dense += covered
        self.vascular = _vessels(chest, frame, rng)

    def attenuation(self, rng: np.random.Generator) -> np.ndarray:
        """The sum along the beam, (H, W) float32: 0 beside the body, about 0.3 in the lungs, 1 in the abdomen."""
        body = _torso(self, rng)
        lung = self.air[RIGHT] + self.air[LEFT]
        total = self.dense * np.minimum(body * 2, 1)
        total += self.vascular * np.minimum(lung * 2, 1)
        lung *= -np.float32(0.72 - 0.06 * self.chest.patient.build)
        lung += 1
        body *= lung
        total += body
        return total


def _torso(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Soft tissue thickness: neck, shoulders, arms, flanks, breasts, abdomen."""
    chest, frame = scene.chest, scene.frame
    build, bend = chest.patient.build, chest.patient.shape
    flank, lift = 1.10 + 0.22 * build, 0.12 * chest.ap
    half = [(0.30, -3.0), (0.29, -1.20 - lift), (0.42, -1.00), (0.9, -0.90 - lift), (1.35, -0.82 - lift)]
    half += (
        [(1.62, -0.55), (1.80, 0.0), (1.80, 0.9), (1.50, 1.0)] if chest.ap else [(1.75, -0.5), (1.95, 0.1), (1.8, 0.3)]
    )
    half += [
        (1.26 + 0.2 * build, 0.25 + 0.06 * bend[0]),
        (flank + 0.02, 0.05),
        (flank - 0.01, 0.45),
        (flank, 0.9),
        (flank + 0.03, 3.0),
    ]
    left, right = spline(mirrored(half), closed=False)[::-1]
    outline = np.concatenate([left, right[::-1]])
    filled = frame.blur(frame.fill(outline), 0.02)
    body = bulge(frame.depth(filled), 0.24) * graded(filled, 0.82 + 0.10 * build)
    belly = np.clip((scene.y - np.float32(0.5)) * np.float32(1.6), 0, 1)
    body *= 1 + belly * np.float32(0.24)
    if chest.patient.sex == "Female":
        size = 0.34 + 0.12 * build + 0.03 * bend[5]
        for disc in mirrored(ellipse((0.56, 0.50 + 0.05 * bend[5]), (1.1 * size, size), 40)):
            body += bulge(frame.depth(frame.fill(disc)), size * 0.8) * np.float32(0.08 + 0.06 * build)
    return body * (1 + noise(rng, scene.shape, 5) * np.float32(0.025))


def _bones(chest: Chest, frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """Attenuation (H, W) of ribs, clavicles, shoulders and spine, less the gas of trachea and stomach."""
    bend, old = chest.patient.shape, (chest.patient.age - 20) / 70
    back, front, other, gas = frame.blank(), frame.blank(), frame.blank(), frame.blank()
    rib = np.arange(10)
    for side in SIDES:
        y: np.ndarray = -0.80 + 0.165 * rib + rng.normal(0, 0.008, 10)
        reach = np.where(rib < 3, np.minimum(0.50 + 0.18 * rib, 1.0), np.minimum(0.90 + 0.03 * rib, 1.03))
        drop = 0.12 + 0.030 * rib + 0.02 * bend[6]
        level = (0 * y + 0.10, y), (0 * y + 0.22, y - 0.045), (0.45 * reach, y - 0.04), (0.78 * reach, y + 0.35 * drop)
        end = (reach, y + drop + 0.10), (0.97 * reach, y + drop + 0.24)
        paths = np.stack([np.stack(p, -1) for p in (*level, *end)], axis=1) * (side, 1)
        curves = spline(paths, closed=False, per_segment=6)
        for k in np.flatnonzero(rng.random(10) < 0.5)[: chest.fractures if side == chest.fracture_side else 0]:
            curves[k, 14:] += (0.0, 0.045)  # a step where the rib broke
        _paint_ribs(frame, curves, 0.074, back, 140)
        wide, below = reach[:7], y[:7] + drop[:7]
        rise = (wide, below + 0.08), (0.95 * wide, below + 0.22), (0.76 * wide, below + 0.35)
        cartilage = 0.50 * wide, below + 0.42 - 0.015 * rib[:7]
        paths = np.stack([np.stack(p, -1) for p in (*rise, cartilage)], axis=1) * (side, 1)
        _paint_ribs(frame, spline(paths, closed=False, per_segment=6), 0.078, front, 98)
    y = -1.6 + 0.145 * np.arange(24)[:, None]
    half = 0.100 + 0.001 * np.arange(24)[:, None]
    x = half * (-1, 1, 0.88, 1, -1, -0.88) + chest.shift * 0.4
    frame.fill(np.stack([x, y + (-0.055, -0.055, 0, 0.055, 0.055, 0)], -1), other, 85, apart=True)
    pedicle = np.stack([0 * y + (0.055, 0.075, 0.075, 0.055), y + (-0.03, -0.03, 0.015, 0.015)], -1)
    frame.fill(np.stack([pedicle * (s, 1) for s in SIDES]), other, 115, apart=True)
    lift = 0.10 * chest.ap
    path = [(0.11, -0.50), (0.28, -0.56 - 0.4 * lift), (0.55, -0.62 - lift), (0.85, -0.66 - lift), (1.15, -0.78 - lift)]
    paths = spline(mirrored(path) + (chest.shift, 0.012 * bend[7]), closed=False)
    width = 0.062 + 0.03 * np.linspace(-1, 1, paths.shape[1]) ** 2
    inner = 0.92 if chest.ap else 1.05
    blade = [(inner, -0.52), (inner - 0.06, -0.1), (inner + 0.06, 0.32), (inner + 0.2, -0.05), (inner + 0.34, -0.5)]
    frame.fill(spline(mirrored(blade)), other, 60, apart=True)
    humerus = [(1.42, -0.62), (1.62, 0.2), (1.68, 1.0)] if chest.ap else [(1.45, -0.62), (1.75, -0.2), (2.0, 0.3)]
    frame.fill(ribbon(spline(mirrored(humerus), closed=False), 0.2), other, 150)
    frame.fill(mirrored(ellipse((1.38, -0.66), (0.16, 0.17))), other, 150)
    frame.fill(ribbon(paths, width), other, 190)
    frame.fill(ribbon(paths, width * 0.6), other, 140)
    amount = rng.choice([0, 110, 255])
    bubble = ellipse((0.48, 0.10 + chest.domes[LEFT]), (0.16 + 0.03 * bend[4], 0.07 + 0.02 * bend[1]))
    frame.fill(bubble, gas, int(amount))
    trachea, *bronchi = _bronchi(chest)
    frame.strokes(np.stack(bronchi), 0.05, frame.strokes(trachea[None], 0.085, gas, 150), 150)
    mineral = 1.1 - 0.3 * old
    bones = graded(frame.blur(cv2.add(back, front), 0.0075), 0.207 * mineral)
    bones += graded(frame.blur(other, 0.007), 0.16 * mineral)
    bones -= graded(frame.blur(gas, 0.012), 0.22)
    return bones


def _bronchi(chest: Chest) -> list[np.ndarray]:
    """Trachea and main bronchi: paths in body coordinates."""
    x = chest.shift
    trachea = spline([(0.0, -1.5), (0.0, -0.7), (-0.01 + x, -0.25), (x, -0.03)], closed=False)
    return [trachea, np.array([(x, -0.05), (x - 0.15, 0.07)]), np.array([(x, -0.05), (x + 0.19, 0.07)])]


def _paint_ribs(frame: Frame, paths: np.ndarray, width: float, canvas: np.ndarray, value: int) -> None:
    """Bands with bright cortex and a fainter marrow."""
    frame.fill(ribbon(paths, width), canvas, value)
    frame.fill(ribbon(paths, width * 0.55), canvas, int(value * 0.72))


def _vessels(chest: Chest, frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """Attenuation (H, W) of arteries and veins that branch from the hila, and of the lung's fine structure."""
    canvas, count = frame.blank(), 12
    for side in SIDES:
        start = np.array(chest.hila[side]) + rng.normal(0, (0.02, 0.05), (count, 2))
        angle = np.concatenate([rng.uniform(-1.5, 0.0, 5), rng.uniform(0.1, 1.45, count - 5)])
        length = rng.uniform(0.12, 0.30, count)
        for width, value in ((0.036, 200), (0.024, 170), (0.015, 140), (0.008, 125), (0.008, 80)):
            t = np.linspace(0, 1, 6)[None]
            heading = angle[:, None] + rng.normal(0, 0.35, len(angle))[:, None] * t
            step = np.stack([side * np.cos(heading), np.sin(heading)], -1) * (length / 6)[:, None, None]
            paths = start[:, None] + np.concatenate([np.zeros((len(angle), 1, 2)), step.cumsum(1)], 1)
            frame.strokes(paths, width, canvas, value)
            fork = rng.normal(0.36, 0.15, (2, len(angle))) * [[1], [-1]]
            keep = rng.random(2 * len(angle)) < 0.8
            start = np.tile(paths[:, -1], (2, 1))[keep]
            angle = (heading[:, -1] + fork).reshape(-1)[keep]
            length = (np.tile(length, 2) * rng.uniform(0.6, 0.95, 2 * len(length)))[keep]
    for side in SIDES:  # the hilum itself
        frame.fill(
            spline(np.array([(0, -0.10), (0.07, -0.03), (0.05, 0.1), (-0.02, 0.16)]) * (side, 1) + chest.hila[side]),
            canvas,
            190,
        )
    fine = noise(rng, canvas.shape, max(canvas.shape) // 8, octaves=2) * np.float32(0.008)
    fine += graded(frame.blur(canvas, 0.009), 0.13)
    return fine
