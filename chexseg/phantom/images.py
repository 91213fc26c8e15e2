"""One phantom image: its frame, its picture, and what two readers outline in it.

`anatomy` and `findings` say what the beam meets, drawn with `canvas`; `film` develops the picture.
"""

import cv2
import numpy as np

from chexseg.phantom import film, findings, patients
from chexseg.phantom.anatomy import Scene
from chexseg.phantom.canvas import EXACT, Frame, distance, noise
from chexseg.phantom.findings import Drawn
from chexseg.phantom.patients import EFFUSION, OPACITIES, OPACITY, TASKS, View, stream

RENDER_AT_LEAST = 192  # pixels; smaller images are drawn at a multiple of their size and averaged
SMALLEST_PART = 0.0004  # of the image: nobody outlines less
STEADY = 0.18  # body units: the thickness from which on a reader's hand shakes no more
MISSED, IMAGINED = 0.05, 0.02  # findings by the second reader


def frame_of(view: View, size: int) -> tuple[Frame, int]:
    """The frame to draw in and the factor by which it is larger than the image."""
    rng = stream(view.key, 3)
    longer = max(16, round(size * rng.uniform(0.88, 1.12)))
    shorter = round(longer * rng.choice([0.82, 0.88, 0.95], p=[0.6, 0.2, 0.2]) * rng.uniform(0.97, 1.03))
    is_landscape = rng.random() < 0.55
    factor = -(-RENDER_AT_LEAST // longer)
    height, width = (shorter, longer) if is_landscape else (longer, shorter)
    height, width = height * factor, width * factor
    scale = min(width / rng.uniform(2.2, 2.75), height / rng.uniform(2.0, 2.4))
    tilt = rng.normal(0, 0.025)
    # Lungs from -0.85 to 1.05: keep them inside, wherever the beam was centred.
    room_x, room_y = width - 2.06 * scale, height - 1.95 * scale
    left = room_x * np.clip(0.5 + rng.normal(0, 0.15), 0.1, 0.9) + 1.03 * scale
    top = room_y * np.clip(0.4 + rng.normal(0, 0.2), 0.05, 0.95) + 0.88 * scale
    cos, sin = np.cos(tilt) * scale, np.sin(tilt) * scale
    return Frame(height, width, np.array([[cos, -sin, left], [sin, cos, top]]), scale), factor


def render(view: View, size: int) -> tuple[np.ndarray, dict[str, Drawn], Scene | None, int]:
    """The picture (H, W) uint8, what was drawn for every task (frontal views), and the factor of its outlines."""
    frame, factor = frame_of(view, size)
    study, rng = view.study, stream(view.key, 4)
    chest = patients.build_chest(study.patient, study.ap, study.present, stream(view.key[:4], 5))
    build = study.patient.build
    if not view.is_frontal:
        total = film.lateral(chest, frame, OPACITY in study.present, rng)
        return _shrink(film.develop(total, frame, build, rng), factor), {}, None, factor
    scene = Scene(chest, frame, rng)
    if patients.PLEURA in study.present:
        findings.thicken_pleura(scene, stream(view.key, 7))
    drawn = {}
    for name, draw in findings.DRAW.items():
        if study.patchy if name == OPACITY else name in study.present:
            drawn[name] = draw(scene, stream(view.key, 100 + TASKS.index(name)))
    if EFFUSION in drawn:  # what fluid hides cannot be outlined
        for name in {OPACITY, *OPACITIES} & drawn.keys():
            drawn[name] = Drawn(cv2.subtract(drawn[name].mask, drawn[EFFUSION].mask))
    if OPACITY in study.present:
        masks = [np.asarray(drawn[name].mask) for name in (OPACITY, *OPACITIES) if name in drawn]
        union = np.max(masks, axis=0)
        drawn[OPACITY] = Drawn(union)
    picture = film.develop(scene.attenuation(rng), frame, build, rng)
    return _shrink(film.finish(picture, frame, study.ap, rng), factor), drawn, scene, factor


def _shrink(picture: np.ndarray, factor: int) -> np.ndarray:
    if factor == 1:
        return picture
    size = picture.shape[1] // factor, picture.shape[0] // factor
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def outline(drawn: Drawn, frame: Frame, factor: int, second: np.random.Generator | None = None) -> list:
    """A reader's polygons [[[x, y], ...], ...] in pixels of the image: smoothed as by hand. `second` seeds another
    reader, who draws the same with a shaking border, a little larger or smaller, and leaves a part out at times."""
    polygons = []
    if drawn.mask is not None:
        mask = frame.blur(drawn.mask, 0.014) > 127
        if second is not None:
            mask = _redraw(mask, frame.scale, second)
        polygons = _contours(mask, factor, max(4 * factor * factor, SMALLEST_PART * mask.size))
    limit = np.array([frame.width, frame.height])
    for points in drawn.outlines:
        if second is not None:
            if second.random() < 2 * MISSED:
                continue
            points = points + _shake(points, second)
        polygon = frame.pixels(points)
        is_inside = (polygon > 0).all() and (polygon < limit - factor).all()
        polygons += [polygon] if is_inside else _contours(frame.fill(points) > 127, factor, 2 * factor * factor)
    scaled = [np.clip((p + 0.5) / factor - 0.5, 0, limit // factor - 1).round(1) for p in polygons]
    return [p.tolist() for p in scaled if len(p) > 2]


def _contours(mask: np.ndarray, factor: int, smallest: float) -> list[np.ndarray]:
    """Outer borders (n, 2) of the parts of at least `smallest` pixels."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    large = [c for c in contours if cv2.contourArea(c) >= smallest]
    return [cv2.approxPolyDP(c, 0.5 * factor, True)[:, 0].astype(float) for c in large]


def _redraw(mask: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    """The mask (H, W) bool as another hand draws it; worked out on a grid half as fine."""
    size = mask.shape[::-1]
    mask = cv2.resize(mask * np.uint8(255), (size[0] // 2, size[1] // 2), interpolation=EXACT) > 127
    inside, outside = distance(mask), distance(~mask)
    reach = float(min(inside.max(), STEADY * scale / 2))
    shake = noise(rng, mask.shape, 9) * np.float32(0.22 * reach)
    again = inside - outside + shake + np.float32(reach * rng.normal(0.02, 0.14)) > 0
    dx, dy = np.round(rng.normal(0, 0.12 * reach, 2)).astype(int)
    shift = np.array([[1.0, 0, dx], [0, 1.0, dy]])
    again = cv2.warpAffine(again * np.uint8(255), shift, again.shape[::-1], flags=cv2.INTER_NEAREST)
    return cv2.resize(again, size, interpolation=EXACT) > 127


def _shake(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Smooth displacement (n, 2) of points in body coordinates."""
    wave, phase = rng.normal(0, 5, (2, 2)), rng.uniform(0, 2 * np.pi, 2)
    along = np.stack([(points * w).sum(1) for w in wave], axis=1)
    return 0.008 * np.sin(along + phase) + rng.normal(0, 0.003, 2)


def annotate(view: View, size: int) -> tuple[np.ndarray, dict[str, list], dict[str, list]]:
    """Picture, first reader's and second reader's polygons by task."""
    picture, drawn, scene, factor = render(view, size)
    if scene is None:
        return picture, {}, {}
    first = {task: outline(drawn[task], scene.frame, factor) for task in TASKS if task in drawn}
    rng, second = stream(view.key, 6), {}
    for task in TASKS:
        own = np.random.Generator(np.random.PCG64(rng.integers(2**63)))
        if task in drawn and own.random() > MISSED:
            second[task] = outline(drawn[task], scene.frame, factor, own)
        elif task not in drawn and own.random() < IMAGINED:
            second[task] = outline(findings.imagined(task, scene, own), scene.frame, factor)
    return picture, {t: p for t, p in first.items() if p}, {t: p for t, p in second.items() if p}
