"""Random masks, and a format written and read again: for the tests of formats."""

from pathlib import Path

import numpy as np

import constants
from chexseg.data import mask_formats, rle

TASKS = constants.LOCALIZATION_TASKS


def random_mask(rng, size) -> np.ndarray:
    """Noise, smooth blobs, blobs with holes, a pixel, nothing, everything."""
    kind = rng.integers(7)
    mask = rng.random(size) < rng.random()
    if kind in (1, 2):
        rows, columns = np.mgrid[: size[0], : size[1]]
        away = np.hypot(rows - rng.integers(size[0]), columns - rng.integers(size[1]))
        mask = away < rng.uniform(1, max(size))
        if kind == 2:
            mask &= (away > rng.uniform(0, max(size) / 2)) & (rng.random(size) < 0.97)
    if kind >= 3:
        mask = np.full(size, kind == 3)
    if kind == 4:
        mask[rng.integers(size[0]), rng.integers(size[1])] = True
    return mask


def random_entries(seed=0, count=12, tasks=TASKS) -> dict[str, dict]:
    rng, entries = np.random.default_rng(seed), {}
    for number in range(count):
        size = tuple(rng.integers(1, 40, 2))
        entries[f"patient{number:05d}_study1_view1_frontal"] = {
            task: rle.encode(random_mask(rng, size)[None])[0] for task in tasks if rng.random() < 0.6
        } or {tasks[0]: rle.empty(size)}
    return entries


def convert(tmp_path, entries, kind, **options) -> tuple[Path, dict[str, dict]]:
    """The written file or folder, and what is read from it."""
    target = tmp_path / kind
    mask_formats.write(kind, target, entries, TASKS, **options)
    return target, dict(mask_formats.read(kind, target, {}, TASKS))
