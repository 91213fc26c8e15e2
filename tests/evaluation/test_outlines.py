"""Outlines as text: what the page draws is the mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path

from chexseg.evaluation import outlines


def filled(polygons, shape):
    """Even-odd fill at pixel centres, one polygon after another: the slow, plain way."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    centres = np.stack([2 * columns.ravel() + 1, 2 * rows.ravel() + 1], 1)
    inside = np.zeros(len(centres), bool)
    for corners in polygons:
        inside ^= Path(np.concatenate([corners, corners[:1]]), closed=True).contains_points(centres)
    return inside.reshape(shape)


def test_a_square_by_hand():
    mask = np.zeros((5, 6), np.uint8)
    mask[1:3, 2:5] = 1
    (corners,) = outlines.trace(mask, 0)
    assert corners.min(0).tolist() == [4, 2] and corners.max(0).tolist() == [10, 6]  # half pixels
    assert outlines.trace(np.zeros((4, 4))) == [] and outlines.encode([]) == "" and outlines.decode("") == []


def test_numbers_by_hand():
    """(1, -1), then (16, 0) further: 2, 3; 32 -> 0 with more to come, then 1; 0."""
    assert outlines.encode([np.array([[1, -1], [17, -1]])]) == "CDgBA"
    assert [one.tolist() for one in outlines.decode("CDgBA CD")] == [[[1, -1], [17, -1]], [[1, -1]]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 14), st.integers(1, 14), st.floats(0.05, 0.95))
def test_any_mask_comes_back(seed, height, width, share):
    """Holes, islands, single pixels, masks that touch the border and each other's corners."""
    mask = np.random.default_rng(seed).random((height, width)) < share
    polygons = outlines.decode(outlines.encode(outlines.trace(mask, 0)))
    assert np.array_equal(filled(polygons, mask.shape), mask)


@pytest.mark.parametrize("size", [64, 600])
def test_thinned_outlines_stay_near(size):
    """A disc loses corners, and no more area than half a pixel along its rim."""
    rows, columns = np.mgrid[:size, :size]
    mask = (rows - size / 2) ** 2 + (columns - size / 3) ** 2 < (size / 4) ** 2
    exact, thinned = outlines.trace(mask, 0), outlines.trace(mask)
    assert len(thinned[0]) < len(exact[0]) / 2
    wrong = (filled(thinned, mask.shape) != mask).sum()
    assert wrong <= 0.5 * np.pi * size / 2
