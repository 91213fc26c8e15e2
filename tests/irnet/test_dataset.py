"""Crops of images and relation labels: scaled, moved and cut alike."""

import cv2
import numpy as np
import pytest
import torch

from chexseg.data import hdf5_files
from chexseg.irnet.dataset import RelationSet, grid_labels, window
from chexseg.training.draws import Draw
from tests.irnet.six_films import GRID, SIZE, present


def naive_grid_labels(labels, side, place, crop):
    """Scale by nearest neighbours, crop with 255 around, take every fourth pixel from the second or so on."""
    size = labels.shape[-1]
    scaled = np.array([[[c[int((y + 0.5) * size / side), int((x + 0.5) * size / side)] for x in range(side)]
                        for y in range(side)] for c in labels])  # fmt: skip
    canvas = np.full((len(labels), crop, crop), 255, np.uint8)
    for y in range(crop):
        for x in range(crop):
            v, u = y + place[0], x + place[1]
            if 0 <= v < side and 0 <= u < side:
                canvas[:, y, x] = scaled[:, v, u]
    centres = [min(4 * i + 2, crop - 1) for i in range(-(-crop // 4))]
    return canvas[:, centres][:, :, centres]


@pytest.mark.parametrize(
    ("side", "place", "crop"),
    [(20, (0, 0), 20), (30, (7, 3), 20), (10, (-4, -9), 20), (13, (-2, 0), 9), (29, (9, 0), 21), (20, (3, 1), 17)],
)
def test_window_and_labels_against_loops(side, place, crop):
    labels = np.random.default_rng(0).integers(0, 256, (2, 20, 20)).astype(np.uint8)
    assert np.array_equal(grid_labels(labels, side, place, crop), naive_grid_labels(labels, side, place, crop))
    image = np.random.default_rng(1).integers(1, 256, (side, side)).astype(np.uint8)
    cut = window(image, place, crop)
    for y in range(crop):
        for x in range(crop):
            v, u = y + place[0], x + place[1]
            assert cut[y, x] == (image[v, u] if 0 <= v < side and 0 <= u < side else 0)


def test_draws_are_scaled_alike_and_repeatable(labelled_run):
    dataset = RelationSet(hdf5_files.open_train_set(labelled_run), hdf5_files.open_ir_labels(labelled_run), SIZE)
    plain = dataset[Draw(3)]
    assert torch.equal(plain["image"], torch.from_numpy(dataset.images["cxr_images"][3]))
    assert np.array_equal(plain["labels"], dataset.labels["ir_labels"][3][:, 2::4, 2::4])
    shares, first_rows = [], []
    for key in range(40):
        draw = dataset[Draw(3, (17, 0, key))]
        again = dataset[Draw(3, (17, 0, key))]
        assert draw["image"].shape == (SIZE, SIZE) and draw["labels"].shape == (10, GRID, GRID)
        assert torch.equal(draw["image"], again["image"]) and torch.equal(draw["labels"], again["labels"])
        # Ignored in all tasks = outside the image, where it is black.
        outside = (draw["labels"][[int(t) for t in np.flatnonzero(present()[3])]] == 255).all(0)
        shares.append(float((draw["image"] > 0).float().mean()))
        first_rows.append(bool((draw["image"][0] == 0).all()))
        assert (draw["image"][2::4, 2::4][~outside] > 0).float().mean() > 0.9
    assert min(shares) < 0.5 and max(shares) > 0.95
    # A small image lies anywhere in the crop.
    assert 5 < sum(first_rows) < 25


def test_scale_range(labelled_run, monkeypatch):
    sides = []

    def resize(image, size, **options):
        sides.append(size[0])
        return np.zeros(size[::-1], np.uint8)

    monkeypatch.setattr(cv2, "resize", resize)
    dataset = RelationSet(hdf5_files.open_train_set(labelled_run), hdf5_files.open_ir_labels(labelled_run), SIZE)
    for key in range(300):
        dataset[Draw(0, (key,))]
    assert SIZE * 0.5 <= min(sides) < SIZE * 0.53
    assert SIZE * 1.47 < max(sides) <= SIZE * 1.5
