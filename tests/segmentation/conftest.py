"""What the tests of segmentation share."""

import numpy as np
import pytest

from chexseg.data import mask_files
from tests.segmentation.small import TASKS, blocks, coded, save_image


@pytest.fixture
def folder(tmp_path):
    """Three images of different shapes with random masks; the second lacks a task, the third stands in `valid`."""
    rng = np.random.default_rng(3)
    entries = []
    for i, (shape, split) in enumerate([((40, 30), "train"), ((32, 32), "train"), ((20, 50), "valid")]):
        name = f"patient{i:05d}_study1_view1_frontal"
        save_image(tmp_path, name, rng.integers(0, 256, shape, dtype=np.uint8), split)
        tasks = TASKS if i != 1 else TASKS[:2]
        entries.append((name, {task: coded(blocks(rng, *shape)) for task in tasks}))
    mask_files.write(tmp_path / "masks.json", entries)
    return tmp_path
