"""From attenuation to a film: scatter, quanta, exposure, collimation, markers; and the simpler lateral view."""

import cv2
import numpy as np

from chexseg.phantom.anatomy import Chest
from chexseg.phantom.canvas import LEFT, Frame, bulge, graded, noise, ribbon, spline

LEVELS = 2048  # steps of the film's curve per unit of attenuation


def develop(total: np.ndarray, frame: Frame, build: float, rng: np.random.Generator) -> np.ndarray:
    """Attenuation (H, W) float32 -> grey (H, W) uint8, bright where dense."""
    # Scatter veils the picture; quanta are fewest where the body is densest.
    level = np.clip(total[::4, ::4] * np.float32(160), 0, 255).astype(np.uint8)
    veil = cv2.GaussianBlur(level, (0, 0), 0.02 * frame.scale)
    veil = cv2.resize(veil, total.shape[::-1], interpolation=cv2.INTER_LINEAR_EXACT)
    share = rng.uniform(0.08, 0.16 + 0.1 * build)
    total = total * np.float32(1 - share)
    total += graded(veil, share * 255 / 160)
    # Three random bytes a pixel, summed: all but normal, at a third of the time.
    raw = np.frombuffer(rng.bytes(3 * total.size), np.uint8).reshape(3, *total.shape)
    grain = raw.sum(axis=0, dtype=np.uint16) * np.float32(1 / 128)
    grain -= np.float32(382.5 / 128)
    grain[1:] += grain[:-1] * np.float32(0.5)
    grain *= np.float32(rng.uniform(0.003, 0.011) * (1 + build))
    grain *= total + np.float32(0.3)
    total += grain
    dark, bright, gamma = rng.uniform(0.10, 0.22), rng.uniform(1.05, 1.25), rng.uniform(0.62, 0.98)
    toe = rng.uniform(0.0, 0.06)
    steps = np.clip((np.arange(2 * LEVELS) / LEVELS - dark) / (bright - dark), 0, 1) ** gamma
    curve = np.round(255 * (toe + (1 - toe) * steps)).astype(np.uint8)
    return curve[np.clip(total * np.float32(LEVELS), 0, 2 * LEVELS - 1).astype(np.uint16)]


def finish(picture: np.ndarray, frame: Frame, ap: bool, rng: np.random.Generator) -> np.ndarray:
    """Shutters at the edges and the marks that technicians leave, each on some films."""
    height, width = picture.shape
    if rng.random() < 0.35:
        top, right, bottom, left = (rng.random(4) < 0.5) * rng.uniform(0.01, 0.05, 4)
        slant = rng.normal(0, 0.006, 4)
        corners = np.array([(left, top), (1 - right, top), (1 - right, 1 - bottom), (left, 1 - bottom)])
        corners += np.stack([slant, slant[::-1]], axis=1)
        field = np.zeros_like(picture)
        cv2.fillPoly(field, [np.round(corners * (width * 16, height * 16)).astype(np.int32)], 255, cv2.LINE_AA, 4)
        picture = cv2.min(picture, cv2.GaussianBlur(field, (0, 0), 0.8))
    if rng.random() < 0.6:
        is_left = rng.random() < 0.7
        place = (
            (rng.uniform(0.90, 0.94) if is_left else rng.uniform(0.03, 0.06)) * width,
            rng.uniform(0.07, 0.16) * height,
        )
        _write(picture, "L" if is_left else "R", place, 0.06 * height)
    if rng.random() < (0.3 if ap else 0.1):
        text = str(rng.choice(["PORTABLE", "AP", "SUPINE", "ERECT", "AP UPRIGHT"] if ap else ["PA", "ERECT"]))
        _write(picture, text, (rng.uniform(0.03, 0.1) * width, 0.97 * height), 0.03 * height)
    return picture


def _write(picture: np.ndarray, text: str, place: tuple[float, float], tall: float) -> None:
    origin = round(place[0]), round(place[1])
    cv2.putText(picture, text, origin, cv2.FONT_HERSHEY_SIMPLEX, tall / 22, 250, max(1, round(tall / 9)), cv2.LINE_AA)


def lateral(chest: Chest, frame: Frame, is_hazy: bool, rng: np.random.Generator) -> np.ndarray:
    """Attenuation (H, W) float32 from the side: sternum left, spine right. Findings are hinted at, never outlined."""
    dome, low = chest.domes[LEFT], 0.25 * (chest.left - 0.5)
    body = [(-0.5, -3.0), (-0.55, -1.1), (-0.85, -0.5), (-0.95, 0.4), (-0.9, 3.0), (0.95, 3.0), (1.04, 0.4)]
    body += [(1.0, -0.4), (0.7, -1.1), (0.6, -3.0)]
    lung = [(-0.1, -0.85), (-0.6, -0.55), (-0.72, 0.1), (-0.7, dome - 0.05), (-0.1, dome - 0.12), (0.6, dome + 0.25)]
    lung += [(0.78, 0.4), (0.8, -0.2), (0.55, -0.75)]
    heart = [(-0.65, 0.2), (-0.3, 0.05), (0.15, 0.2), (0.25 + low, 0.5), (0.1, dome + 0.1), (-0.62, dome + 0.05)]
    arch = spline([(-0.25, 0.1), (-0.2, -0.3), (0.1, -0.4), (0.35, -0.2), (0.42, 0.8)], closed=False)
    filled = frame.blur(frame.fill(spline(body)), 0.02)
    thick = bulge(frame.depth(filled), 0.35) * graded(filled)
    inside = frame.fill(spline(lung))
    air = graded(frame.blur(inside, 0.01)) * (0.4 + 0.6 * bulge(frame.depth(inside), 0.3))
    air *= graded(frame.blur(frame.fill(spline(heart)), 0.02), 0.25, 1)
    air *= graded(frame.blur(frame.strokes([arch], 0.17), 0.035), 0.78, 1)
    if is_hazy:
        air *= np.clip(0.75 + noise(rng, inside.shape, 7) * np.float32(0.3), 0.2, 1)
    bones = frame.blank()
    y = -1.0 + 0.17 * np.arange(16)[:, None]
    vertebrae = np.stack([0 * y + (0.62, 0.80, 0.82, 0.64), y + (0, -0.02, 0.11, 0.12)], -1)
    ribs = spline(np.stack([0 * y + (0.85, 0.5, 0.0, -0.5), y + (-0.05, 0.03, 0.3, 0.55)], -1), closed=False)
    frame.fill(vertebrae, bones, 150)
    frame.fill(ribbon(ribs, 0.05), bones, 90)
    frame.fill(ribbon(ribs, 0.03), bones, 60)
    frame.fill(ribbon(spline([(-0.72, -0.55), (-0.8, 0.0), (-0.82, 0.4)], closed=False), 0.05), bones, 160)
    total = thick * (1 - np.float32(0.62) * air) + graded(frame.blur(bones, 0.006), 0.16)
    return total + noise(rng, inside.shape, max(inside.shape) // 10) * np.float32(0.008)
