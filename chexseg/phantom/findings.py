"""The ten findings: each changes a `Scene` so that the picture shows it, and says where a radiologist would outline it.

Lung opacities follow CheXpert's label hierarchy: `images.render` makes Airspace Opacity the union of patchy opacity,
edema, consolidation, atelectasis and lesions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

from chexseg.phantom.anatomy import Scene
from chexseg.phantom.canvas import LEFT, RIGHT, SIDES, bulge, ellipse, graded, noise, ribbon, spline
from chexseg.phantom.patients import (
    ATELECTASIS,
    CONSOLIDATION,
    DEVICES,
    EDEMA,
    EFFUSION,
    HEART,
    LESION,
    MEDIASTINUM,
    OPACITY,
    PNEUMOTHORAX,
)

OUTLINED_BAND, OUTLINED_PIXELS = 0.034, 4  # a device is outlined at least this wide (body units, pixels)


@dataclass
class Drawn:
    """What was drawn: `mask` (H, W) uint8, or closed `outlines` (n, 2) in body coordinates, one a device."""

    mask: np.ndarray | None = None
    outlines: list[np.ndarray] = field(default_factory=list)


def _cut(mask: np.ndarray, region: np.ndarray) -> np.ndarray:
    return cv2.min(mask, region)


def _texture(scene: Scene, rng: np.random.Generator, cells: int) -> np.ndarray:
    field = noise(rng, scene.shape, cells)
    field *= np.float32(0.3)
    field += 1
    return np.clip(field, 0.2, 1.5, out=field)


def _blob(centre, radii, rng: np.random.Generator, rough: float = 0.12) -> np.ndarray:
    """An irregular closed outline."""
    angle = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    radius = 1 + rng.normal(0, rough, 14)
    return spline(
        np.stack([centre[0] + radii[0] * radius * np.cos(angle), centre[1] + radii[1] * radius * np.sin(angle)], 1)
    )


def _place(scene: Scene, side: int, rng: np.random.Generator) -> tuple[float, float]:
    """A point of the lung where the mediastinum does not hide what is there."""
    for _ in range(20):
        point = np.array([side * rng.uniform(0.3, 0.82), rng.uniform(-0.5, 0.55)])
        column, row = scene.frame.pixels(point).astype(int)
        if scene.visible[side][row, column] > 127:
            break
    return float(point[0]), float(point[1])


def draw_heart(scene: Scene, rng: np.random.Generator) -> Drawn:
    return Drawn(scene.frame.fill(scene.chest.heart))


def draw_mediastinum(scene: Scene, rng: np.random.Generator) -> Drawn:
    return Drawn(scene.frame.fill(scene.chest.silhouette))


def draw_edema(scene: Scene, rng: np.random.Generator) -> Drawn:
    """Bilateral perihilar haze, patchy, with thick vessels; outlined where at least a third of its peak."""
    mask, core = scene.frame.blank(), scene.frame.blank()
    strength = np.float32(rng.uniform(0.45, 0.75))
    ragged = 0.38 + noise(rng, scene.shape, 9) * np.float32(0.07)
    patches = _texture(scene, rng, 26)
    for side in SIDES:
        x, y = scene.chest.hila[side]
        reach = rng.uniform(0.36, 0.52, 2)
        dx = (scene.x - np.float32(x + side * 0.12)) * np.float32(1 / reach[0])
        dy = (scene.y - np.float32(y + 0.12)) * np.float32(0.8 / reach[1])
        haze = np.maximum(1 - (dx * dx + dy * dy) * ragged, 0)
        haze *= haze * patches
        scene.air[side] *= 1 - np.minimum(haze * strength, np.float32(0.9))
        np.copyto(core, np.minimum(haze * np.float32(400), 255), casting="unsafe")
        mask = cv2.max(mask, _cut(scene.frame.blur(core, 0.05), scene.visible[side]))
    scene.vascular *= np.float32(1.35)
    return Drawn(mask)


def draw_consolidation(scene: Scene, rng: np.random.Generator) -> Drawn:
    """A dense lobe or part of one: sharp at its fissure, soft elsewhere, with air bronchograms."""
    side, frame = SIDES[rng.integers(2)], scene.frame
    is_upper = rng.random() < 0.45
    sign = -1 if is_upper else 1
    fissure = 0.10 + rng.normal(0, 0.04)
    edge = spline(
        [(-0.1, fissure + 0.03), (0.35, fissure), (0.7, fissure - 0.015), (1.2, fissure + 0.07)], closed=False
    )
    beyond = np.concatenate([edge, [(1.2, -9 * sign), (-0.1, -9 * sign)]]) * (side, 1)
    centre = (side * rng.uniform(0.45, 0.7), fissure + sign * rng.uniform(0.08, 0.24))
    lobe = _blob(centre, (rng.uniform(0.3, 0.5), rng.uniform(0.3, 0.46)), rng, 0.16)
    mask = _cut(cv2.subtract(frame.fill(lobe), frame.fill(beyond)), scene.lungs[side])
    soft = cv2.subtract(frame.blur(frame.fill(lobe), 0.05), frame.fill(beyond))
    inside = graded(frame.blur(soft, 0.006), rng.uniform(0.7, 0.88))
    scene.air[side] *= 1 - np.minimum(inside * _texture(scene, rng, 14), np.float32(0.95))
    root = np.array(scene.chest.hila[side])
    ends = centre + rng.normal(0, 0.16, (4, 2))
    paths = np.stack([np.tile(root, (4, 1)), (root + ends) / 2 + rng.normal(0, 0.04, (4, 2)), ends], axis=1)
    bronchi = _cut(frame.strokes(spline(paths, closed=False), 0.016), mask)
    scene.dense -= graded(frame.blur(bronchi, 0.006), 0.08)
    return Drawn(_cut(mask, scene.visible[side]))


def draw_patchy(scene: Scene, rng: np.random.Generator) -> Drawn:
    """Two to six patches that may run together."""
    mask = scene.frame.blank()
    sides = ((RIGHT, LEFT) if rng.random() < 0.5 else (SIDES[rng.integers(2)],)) * int(rng.integers(1, 4))
    texture = _texture(scene, rng, 22)
    for side in sides:
        patch = scene.frame.fill(_blob(_place(scene, side, rng), rng.uniform(0.12, 0.26, 2), rng, 0.2))
        patch = _cut(patch, scene.lungs[side])
        share = graded(scene.frame.blur(patch, 0.045), rng.uniform(0.45, 0.75)) * texture
        scene.air[side] *= 1 - np.minimum(share, np.float32(0.9))
        mask = cv2.max(mask, _cut(patch, scene.visible[side]))
    return Drawn(mask)


def draw_atelectasis(scene: Scene, rng: np.random.Generator) -> Drawn:
    """Plates above the diaphragm, or a wedge of collapse at the base, or both; the dome above them is raised."""
    mask, chest, frame = scene.frame.blank(), scene.chest, scene.frame
    lifted = RIGHT if chest.raised[0] > chest.raised[1] else LEFT
    has_wedge = rng.random() < 0.6
    for k in range(int(rng.integers(1 - has_wedge, 4 - has_wedge))):
        side = lifted if k < 2 else -lifted
        start = np.array([rng.uniform(0.30, 0.45), chest.domes[side] - rng.uniform(0.08, 0.32)])
        end = start + [rng.uniform(0.30, 0.50), rng.normal(0.03, 0.07)]
        path = spline(
            np.stack([start, (start + end) / 2 + [0, rng.normal(-0.01, 0.02)], end]) * (side, 1), closed=False
        )
        width = rng.uniform(0.03, 0.06) * np.sin(np.linspace(0.3, np.pi - 0.3, len(path)))
        band = frame.blur(frame.fill(ribbon(path, width)), 0.011)
        scene.air[side] *= graded(band, 1 - rng.uniform(0.55, 0.8), 1)
        mask = cv2.max(mask, _cut(frame.fill(ribbon(path, width + 0.05)), scene.visible[side]))
    if has_wedge:
        dome, side = chest.domes[lifted], lifted
        tip = (chest.left * 0.8 if side == LEFT else 0.25, dome - rng.uniform(0.32, 0.5))
        far = (rng.uniform(0.75, 0.92), dome + 0.04)
        wedge = [tip, ((tip[0] + far[0]) / 2 + 0.03, (tip[1] + far[1]) / 2), far, (0.5, dome + 0.12), (0.1, dome + 0.1)]
        filled = _cut(frame.fill(spline(np.array(wedge) * (side, 1))), scene.lungs[side])
        share = graded(frame.blur(filled, 0.025), rng.uniform(0.5, 0.7)) * _texture(scene, rng, 18)
        scene.air[side] *= 1 - np.minimum(share, np.float32(0.9))
        mask = cv2.max(mask, _cut(filled, scene.visible[side]))
    return Drawn(mask)


def draw_lesion(scene: Scene, rng: np.random.Generator) -> Drawn:
    """One to three nodules or a mass, solid spheres with a slightly irregular border."""
    mask = scene.frame.blank()
    mass = rng.random() < 0.4
    for _ in range(1 if mass else int(rng.integers(1, 4))):
        side = SIDES[rng.integers(2)]
        radius = rng.uniform(0.13, 0.2) if mass else rng.uniform(0.06, 0.11)
        ball = _cut(scene.frame.fill(_blob(_place(scene, side, rng), (radius, radius), rng, 0.06)), scene.visible[side])
        solid = 0.4 + 0.6 * bulge(scene.frame.depth(ball), radius)
        density = graded(scene.frame.blur(ball, 0.014), rng.uniform(0.6, 0.9))
        scene.air[side] *= 1 - density * solid
        mask = cv2.max(mask, ball)
    return Drawn(mask)


def draw_pneumothorax(scene: Scene, rng: np.random.Generator) -> Drawn:
    """The lung has sunk from the chest wall: a lucent crescent without vessels, and the pleura as a thin line."""
    side, frame = SIDES[rng.integers(2)], scene.frame
    outline = scene.chest.lungs[side]
    sunk = outline * (rng.uniform(0.84, 0.95), 1)
    top, low = outline[:, 1].min(), outline[:, 1].max()
    drop = rng.uniform(0.10, 0.28)
    sunk[:, 1] += drop * ((low - outline[:, 1]) / (low - top)) ** 1.5
    lung = frame.fill(sunk)
    crescent = cv2.subtract(scene.visible[side], lung)
    gap = frame.blur(crescent, 0.006)
    scene.air[side] += graded(gap, 0.22)
    scene.air[side] -= graded(frame.blur(_cut(lung, scene.lungs[side]), 0.01), 0.08)
    scene.vascular *= graded(gap, 0, 1)
    edge = frame.strokes([np.concatenate([sunk, sunk[:1]])], 0.012)
    near = cv2.dilate(crescent, np.ones((5, 5), np.uint8))
    scene.dense += graded(frame.blur(_cut(edge, near), 0.004), 0.10)
    return Drawn(crescent)


def draw_effusion(scene: Scene, rng: np.random.Generator) -> Drawn:
    """Fluid that hides the dome and the angle under a meniscus that climbs the chest wall."""
    mask = scene.frame.blank()
    first = SIDES[rng.integers(2)]
    for side in SIDES if rng.random() < 0.4 else (first,):
        angle = scene.chest.lungs[side][:, 1].max()
        height = rng.choice([-0.12, 0.02, 0.2, 0.45], p=[0.3, 0.35, 0.25, 0.1]) + rng.normal(0, 0.03)
        level = scene.chest.domes[side] - height
        climb = rng.uniform(0.14, 0.28)
        across = np.linspace(0.0, 1.06, 16)
        surface = level - climb * np.clip((across - 0.45) / 0.55, 0, None) ** 2.2 - 0.06 * (1 - across) ** 4
        body = np.stack([across, surface], 1)
        body = np.concatenate([body, [(1.06, angle + 0.2), (0.0, angle + 0.2)]]) * (side, 1)
        cavity = cv2.max(scene.lungs[side], scene.frame.fill(scene.chest.recesses[side]))
        layer = scene.frame.fill(body)
        fluid = _cut(layer, cavity)
        scene.air[side] *= graded(scene.frame.blur(layer, 0.02), 0.07, 1)
        scene.dense += graded(scene.frame.blur(fluid, 0.03), 0.05)
        mask = cv2.max(mask, cv2.subtract(fluid, _cut(fluid, scene.silhouette)))
    return Drawn(mask)


def _wire(scene: Scene, drawn: Drawn, points, width: float, amount: float, *, is_hollow: bool = False) -> np.ndarray:
    path = spline(points, closed=False)
    canvas = scene.frame.strokes(path[None], width)
    if is_hollow:
        scene.frame.strokes(path[None], width * 0.45, canvas, 90)
    scene.dense += graded(scene.frame.blur(canvas, 0.004), amount)
    drawn.outlines.append(ribbon(path, max(width, OUTLINED_BAND, OUTLINED_PIXELS / scene.frame.scale)))
    return path


def _plate(scene: Scene, drawn: Drawn, outline: np.ndarray, amount: float) -> None:
    scene.dense += graded(scene.frame.blur(scene.frame.fill(outline), 0.005), amount)
    drawn.outlines.append(outline)


def draw_devices(scene: Scene, rng: np.random.Generator) -> Drawn:
    """One to four of: endotracheal tube, feeding tube, central line, port, pacemaker, chest tube, electrodes, wires."""
    drawn, chest = Drawn(), scene.chest
    kinds = [_tubes, _line, _pacemaker, _chest_tube, _electrodes, _feeding_tube, _sternotomy]
    bedside, walking = (0.2, 0.28, 0.14, 0.06, 0.18, 0.2, 0.1), (0, 0.3, 0.35, 0.02, 0.05, 0.02, 0.26)
    weights = np.array(bedside if chest.ap else walking)
    count = 1 + rng.binomial(2, 0.45 if chest.ap else 0.15)
    for k in rng.choice(len(kinds), count, replace=False, p=weights / weights.sum()):
        kinds[k](scene, drawn, rng)
    return drawn


def _tubes(scene: Scene, drawn: Drawn, rng: np.random.Generator) -> None:
    tip = -0.08 - rng.uniform(0.05, 0.25)
    points = [(0.01, -1.6), (rng.normal(0, 0.02), -0.8), (scene.chest.shift, tip)]
    _wire(scene, drawn, points, 0.055, 0.11, is_hollow=True)


def _feeding_tube(scene: Scene, drawn: Drawn, rng: np.random.Generator) -> None:
    dome = scene.chest.domes[LEFT]
    points = [(-0.02, -1.6), (0.03, -0.7), (0.02, 0.1), (0.06, dome - 0.1), (0.2, dome + 0.12), (0.42, dome + 0.2)]
    _wire(scene, drawn, np.array(points) + rng.normal(0, 0.02, (6, 2)), 0.024, 0.15)


def _line(scene: Scene, drawn: Drawn, rng: np.random.Generator) -> None:
    side, cava = SIDES[rng.integers(2)], (-0.13 + scene.chest.shift, rng.uniform(0.0, 0.25))
    if rng.random() < 0.5:  # from the neck
        points = [
            (side * 0.30, -1.25),
            (side * 0.2, -0.8),
            (-0.12 if side == RIGHT else 0.02, -0.5),
            (-0.14, -0.25),
            cava,
        ]
    else:  # from the arm, under the clavicle
        points = [
            (side * 1.25, -0.35),
            (side * 0.95, -0.62),
            (side * 0.5, -0.66),
            (side * 0.2, -0.55),
            (-0.12, -0.35),
            cava,
        ]
    path = _wire(scene, drawn, np.array(points) + rng.normal(0, 0.012, (len(points), 2)), 0.016, 0.20)
    if rng.random() < 0.3:  # a port under the skin
        _plate(scene, drawn, ellipse((side * 0.62, -0.42), (0.075, 0.075)), 0.2)
        _wire(scene, drawn, [(side * 0.62, -0.42), (side * 0.55, -0.6), path[len(path) // 2]], 0.016, 0.17)


def _pacemaker(scene: Scene, drawn: Drawn, rng: np.random.Generator) -> None:
    side, chest = (LEFT, RIGHT)[int(rng.random() < 0.15)], scene.chest
    box = np.array([side * rng.uniform(0.68, 0.8), -0.45 + rng.normal(0, 0.04)])
    can = [(-0.9, -0.75), (-0.2, -1.0), (0.9, -0.7), (1.0, 0.1), (0.6, 0.85), (-0.3, 1.0), (-0.95, 0.6), (-1.0, 0.0)]
    _plate(scene, drawn, box + spline(np.array(can) * (0.125 * side, 0.12)), 0.42)
    start = box + [-side * 0.05, -0.11]
    vein = [start, (side * 0.4, -0.60), (-0.08, -0.42), (-0.15, -0.05), (-0.16, 0.22)]
    low = chest.domes[LEFT]
    _wire(scene, drawn, [*vein, (0.0, low - 0.08), (chest.left * 0.65, low - 0.09)], 0.016, 0.24)
    if rng.random() < 0.6:
        _wire(scene, drawn, [*vein[:4], (-0.2, 0.28), (-0.12, 0.17)], 0.016, 0.24)


def _chest_tube(scene: Scene, drawn: Drawn, rng: np.random.Generator) -> None:
    side = SIDES[rng.integers(2)]
    points = [(side * 1.25, 0.55), (side * 0.93, 0.32), (side * 0.6, -0.1), (side * rng.uniform(0.3, 0.5), -0.5)]
    _wire(scene, drawn, points, 0.05, 0.14, is_hollow=True)


def _electrodes(scene: Scene, drawn: Drawn, rng: np.random.Generator) -> None:
    for x, y in ((-0.75, -0.55), (0.75, -0.55), (0.85, 0.62)):
        place = np.array([x, y]) + rng.normal(0, 0.07, 2)
        _plate(scene, drawn, ellipse(place, (0.045, 0.045)), 0.16)
        away = np.array(
            [place, place + [0.1, 0.25], place + [rng.normal(0, 0.3), 0.7], place + [rng.normal(0, 0.3), 1.6]]
        )
        _wire(scene, drawn, away, 0.012, 0.15)


def _sternotomy(scene: Scene, drawn: Drawn, rng: np.random.Generator) -> None:
    for k in range(5):
        y, x = -0.42 + 0.19 * k, scene.chest.shift + rng.normal(0, 0.012)
        loop = spline([(x - 0.045, y), (x - 0.01, y - 0.03), (x + 0.045, y + 0.005), (x, y + 0.028)])
        _wire(scene, Drawn(), loop, 0.010, 0.24)
        drawn.outlines.append(loop + (loop - loop.mean(0)) * 0.25)


DRAW: dict[str, Callable[[Scene, np.random.Generator], Drawn]] = {
    HEART: draw_heart,
    MEDIASTINUM: draw_mediastinum,
    EDEMA: draw_edema,
    OPACITY: draw_patchy,
    CONSOLIDATION: draw_consolidation,
    ATELECTASIS: draw_atelectasis,
    LESION: draw_lesion,
    PNEUMOTHORAX: draw_pneumothorax,
    EFFUSION: draw_effusion,
    DEVICES: draw_devices,
}


def imagined(task: str, scene: Scene, rng: np.random.Generator) -> Drawn:
    """What a reader outlines where there is nothing."""
    if task in (HEART, MEDIASTINUM):
        return DRAW[task](scene, rng)
    side = SIDES[rng.integers(2)]
    if task == DEVICES:
        return Drawn(outlines=[ribbon(np.array([(side * 0.2, -0.8), (side * 0.17, -0.5), (side * 0.16, -0.1)]), 0.04)])
    centre = _place(scene, side, rng)
    return Drawn(_cut(scene.frame.fill(_blob(centre, rng.uniform(0.08, 0.16, 2), rng)), scene.visible[side]))


def thicken_pleura(scene: Scene, rng: np.random.Generator) -> None:
    """Pleural Other: a rind along one chest wall."""
    side = SIDES[rng.integers(2)]
    lateral = np.clip(scene.x * np.float32(4 * side) - 2, 0, 1) * (scene.depth < np.float32(rng.uniform(0.03, 0.06)))
    scene.air[side] *= 1 - lateral * np.float32(0.7)
