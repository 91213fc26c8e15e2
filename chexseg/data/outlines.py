"""Outlines of masks as polygons, exact for whoever fills them by the same rule.

Two rules are in use. CheXlocalize's readers draw through the centres of pixels and the outline belongs to the mask
(`rle.from_polygons`). COCO's polygons run along the edges of pixels (pycocotools' `frPoly`). A polygon has no holes:
the outline of a hole is joined to the outline around it by a slit, there and back, which covers no pixel by COCO's rule
and only pixels of the mask by CheXlocalize's. So the mask comes back to the pixel, holes and all.
"""

import cv2
import numpy as np

Loop = np.ndarray  # (n, 2) of x, y


def through_centres(mask: np.ndarray) -> list[Loop]:
    """One polygon for each 8-connected part of a (h, w) mask, through the centres of its outermost pixels."""
    mask = np.ascontiguousarray(mask, np.uint8)
    polygons = []
    for loop, holes in _parts(mask):
        # From the left: what a hole's slit meets on its way to the left has been joined already.
        for hole in sorted(holes, key=lambda points: int(points[:, 0].min())):
            hole = np.roll(hole, -int(hole[:, 0].argmin()), 0)
            x, y = hole[0]
            outside = np.flatnonzero(mask[y, :x] == 0)
            first = outside[-1] + 1 if len(outside) else 0
            on_way = np.flatnonzero((loop[:, 1] == y) & (first <= loop[:, 0]) & (loop[:, 0] <= x))
            loop = _joined(loop, int(on_way[loop[on_way, 0].argmax()]), hole)
        polygons.append(_corners(loop))
    return polygons


def along_edges(mask: np.ndarray) -> list[Loop]:
    """One polygon for each 8-connected part of a (h, w) mask, along its pixels' edges: pixel 0 reaches from 0 to 1."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint8)
    # Every pixel as 3 x 3: outlines through the centres of the small ones are told apart by a third of a pixel.
    fine = np.repeat(np.repeat(part, 3, 0), 3, 1)
    polygons = []
    for outer, holes in _parts(fine):
        loop, *inner = (_without_repeats((points + 1) // 3) for points in (outer, *holes))
        for hole in inner:
            nearest = int(np.abs(loop - hole[0]).sum(1).argmin())
            loop = _joined(loop, nearest, hole)
        polygons.append(_corners(loop) + (columns[0], rows[0]))
    return polygons


def _parts(mask: np.ndarray) -> list[tuple[Loop, list[Loop]]]:
    """(outline, outlines of its holes) of each part, every pixel of them."""
    contours, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if tree is None:
        return []
    inside: dict[int, list[Loop]] = {i: [] for i, parent in enumerate(tree[0][:, 3]) if parent < 0}
    for contour, parent in zip(contours, tree[0][:, 3], strict=True):
        if parent >= 0:
            inside[parent].append(contour.reshape(-1, 2))
    return [(contours[i].reshape(-1, 2), holes) for i, holes in inside.items()]


def _joined(loop: Loop, at: int, hole: Loop) -> Loop:
    """The loop with a detour from point `at` around the hole and back."""
    return np.concatenate([loop[: at + 1], hole, hole[:1], loop[at:]])


def _without_repeats(loop: Loop) -> Loop:
    return loop[(loop != np.roll(loop, 1, 0)).any(1)]


def _corners(loop: Loop) -> Loop:
    """Without the points at which a loop goes straight on."""
    if len(loop) < 3:
        return loop
    loop = _without_repeats(loop) if (loop != loop[0]).any() else loop[:1]
    before, after = loop - np.roll(loop, 1, 0), np.roll(loop, -1, 0) - loop
    along = (np.sign(before) == np.sign(after)).all(1)
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return loop[turns | ~along]
