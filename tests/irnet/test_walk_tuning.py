"""The sweep of random walks against stage 4 itself, one setting at a time; the table by hand."""

import numpy as np
import pytest
import torch

from chexseg.data import rle
from chexseg.irnet import random_walk, walk_curves, walk_tuning
from chexseg.irnet.films import Film
from chexseg.irnet.walk_curves import Grid

GRID = Grid((2, 4), (1.0, 6.0), (0, 3), (0.0, 0.25, 0.6, 0.95))
SIZE = 24


class Films:
    """Two films with random maps; the second task of the first has a map of zeros."""

    ids, tasks = ["a", "b"], ("x", "y", "z")

    def __init__(self):
        rng = np.random.default_rng(0)
        self.maps = rng.random((2, 3, 3, 4)).astype(np.float32) ** 2
        self.maps[0, 1] = 0
        self.maps[1, 0, 0, 0] = np.nan

    def __call__(self, row):
        return Film(np.zeros((SIZE, SIZE), np.uint8), self.maps[row], (SIZE, SIZE))


@pytest.fixture
def counter():
    """Masks of another size than the films; z of `a` is unknown; y of `b` is gated away."""
    rng = np.random.default_rng(1)
    masks = rng.random((2, 3, 31, 19)) < 0.4
    truth = {name: dict(zip("xyz", rle.encode(stack), strict=True)) for name, stack in zip("ab", masks, strict=True)}
    del truth["a"]["z"]
    boundaries = {row: rng.random((6, 6)).astype(np.float32) ** 2 for row in (0, 1)}
    verdicts = np.array([[True, True, True], [True, False, True]])
    return walk_tuning.WalkCounter(Films(), boundaries, truth, verdicts, GRID)


def test_counts_are_those_of_one_setting_at_a_time(counter):
    for row, name in enumerate("ab"):
        counts = counter(row)
        assert counts.shape == GRID.shape(3) == (2, 2, 2, 3, 2, 5)
        above = counts[..., ::-1].cumsum(-1)[..., ::-1][..., 1:]
        film, boundary = counter.films(row), torch.from_numpy(counter.boundaries[row])[None, None]
        for r, radius in enumerate(GRID.radii):
            for b, beta in enumerate(GRID.betas):
                for e, exp_times in enumerate(GRID.exp_times):
                    allowed = torch.from_numpy(counter.verdicts[row : row + 1])
                    maps, walk = torch.from_numpy(film.maps)[None], {"beta": beta, "exp_times": exp_times}
                    scores = random_walk.pseudo_scores(maps, boundary, allowed, radius=radius, **walk)[0]
                    for k, threshold in enumerate(GRID.thresholds):
                        found = random_walk.masks_from_scores(scores, (SIZE, SIZE), threshold=threshold).numpy()
                        for t, task in enumerate("xyz"):
                            if task not in counter.truth[name]:
                                assert counts[r, b, e, t].sum() == 0
                                continue
                            true = rle.resize([counter.truth[name][task]], (SIZE, SIZE))[0] > 0
                            expected = [(found[t] & ~true).sum(), (found[t] & true).sum()]
                            assert above[r, b, e, t, :, k].tolist() == expected
                            assert counts[r, b, e, t, 1].sum() == true.sum()
                            assert counts[r, b, e, t].sum() == SIZE * SIZE


def test_a_pixel_is_put_where_it_belongs_whatever_the_limits():
    rng = np.random.default_rng(2)
    for thresholds in ([0.5], [0.1, 0.2, 0.3], [0.05, 0.06, 0.9], [0.0, 0.0]):
        limits = np.array(thresholds, np.float32)
        values = np.concatenate([rng.random(50).astype(np.float32), limits, limits - 1, limits + 1])[None]
        truth = (rng.random(values.shape) < 0.5).astype(np.uint8)
        counts, expected = (np.zeros((2, len(limits) + 1), np.int64) for _ in range(2))
        walk_tuning._count(values, truth, limits, counts)
        for value, inside in zip(values.ravel(), truth.ravel(), strict=True):
            expected[inside, (value > limits).sum()] += 1
        assert counts.tolist() == expected.tolist()


def test_the_table_by_hand(tmp_path):
    grid = Grid((3,), (5.0,), (3,), (0.2, 0.6))
    # Task x: 10 pixels above both thresholds, of which 4 true; 5 above the first alone, 1 true; 3 true ones missed.
    counts = np.array([[[0, 4, 6], [3, 1, 4]], [[7, 0, 0], [0, 0, 0]]])[None, None, None]
    rows = walk_curves.table(counts, grid, ("x", "y"))
    assert list(rows.columns) == ["radius", "beta", "exp_times", "threshold", "task", "iou"]
    x = rows[rows["task"] == "x"]["iou"].tolist()
    assert x == pytest.approx([5 / (3 + 1 + 4 + 4 + 6), 4 / (8 + 6)])
    assert rows[rows["task"] == "y"]["iou"].isna().all()  # never there
    assert rows[rows["task"] == "mIoU"]["iou"].tolist() == x
    best = walk_curves.best(rows)
    assert (best["threshold"], best["iou"]) == (0.6, pytest.approx(4 / 14))
    assert walk_curves.best(rows, "y") is None
    shown = walk_curves.text(rows, ("x", "y")).splitlines()
    assert shown[1].split() == ["x", "3", "5", "3", "0.6", "0.2857"] and shown[2].split()[1:] == [
        "does",
        "not",
        "occur",
    ]
    walk_curves.draw(tmp_path / "curves.png", rows, ("x", "y"))
    assert (tmp_path / "curves.png").read_bytes()[1:4] == b"PNG"


def test_shards_add_up_however_they_are_cut(tmp_path):
    rng, grid = np.random.default_rng(0), Grid((3,), (5.0,), (3,), (0.2, 0.6))
    records, found = [rng.integers(0, 9, grid.shape(2)) for _ in range(5)], []
    for cut in ([5], [2, 2, 1]):
        parts, start = [], 0
        for length in cut:
            parts.append(tmp_path / f"{len(cut)}_{start}")
            walk_curves.CountShards().write(records[start : start + length], parts[-1])
            start += length
        walk_curves.CountShards().merge(parts, tmp_path / "merged")
        found.append((tmp_path / "merged").read_bytes())
    assert found[0] == found[1]
    with np.load(tmp_path / "merged") as file:
        assert np.array_equal(file["counts"], sum(records))
