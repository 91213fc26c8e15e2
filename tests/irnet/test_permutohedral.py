"""The lattice against a slow one with a dictionary, and against what a Gaussian of unit deviation must do."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from chexseg.irnet import permutohedral
from chexseg.irnet.permutohedral import Lattice


def naive_filter(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Adams et al. 2010 in float64, one point and one corner at a time, corners as full coordinates in a dictionary."""
    n, d = features.shape
    # Columns: the basis of the hyperplane sum = 0 along which feature j runs.
    basis = np.zeros((d + 1, d))
    for j in range(d):
        basis[: j + 1, j] = 1
        basis[j + 1, j] = -(j + 1)
        basis[:, j] /= np.linalg.norm(basis[:, j])
    # A step between corners is sqrt(d (d + 1)) long; the scale makes the three stages' variances add up to one.
    high = features.astype(float) @ basis.T * np.sqrt(2 / 3) * (d + 1)
    cells, parts = {}, []
    for k in range(n):
        origin = np.round(high[k] / (d + 1)) * (d + 1)
        while abs(origin.sum()) > 0.5:
            rest = high[k] - origin
            if origin.sum() > 0:
                origin[np.argmin(rest)] -= d + 1
            else:
                origin[np.argmax(rest)] += d + 1
        order = np.argsort(-(high[k] - origin), kind="stable")
        corners = []
        for r in range(d + 1):
            corner = origin + r
            corner[order[d + 1 - r :]] -= d + 1
            corners.append(tuple(int(round(c)) for c in corner))
        weights = np.linalg.lstsq(
            np.vstack([np.array(corners, float).T, np.ones(d + 1)]), np.append(high[k], 1), rcond=None
        )[0]
        assert_allclose(weights.sum(), 1)
        assert weights.min() > -1e-6
        parts.append((corners, weights))
        for corner, weight in zip(corners, weights, strict=True):
            cells[corner] = cells.get(corner, 0) + weight * values[k]
    for j in range(d + 1):
        step = np.ones(d + 1, int)
        step[j] -= d + 1
        cells = {
            c: v + 0.5 * (cells.get(tuple(np.array(c) + step), 0) + cells.get(tuple(np.array(c) - step), 0))
            for c, v in cells.items()
        }
    return np.array([sum(w * cells[c] for c, w in zip(*part, strict=True)) for part in parts])


def as_tensors(lattice: Lattice) -> Lattice:
    corner, weight, neighbours = map(torch.from_numpy, lattice)
    return Lattice(corner.long(), weight, neighbours.long())


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5])
def test_both_builds_filter_like_the_naive_lattice(d):
    rng = np.random.default_rng(d)
    features = (rng.standard_normal((60, d)) * 1.5).astype(np.float32)
    values = rng.standard_normal((60, 2)).astype(np.float32)
    expected = naive_filter(features, values)
    for lattice in (
        as_tensors(permutohedral.build_cpu(features)),
        permutohedral.build(torch.from_numpy(features)[None]),
    ):
        assert_allclose(permutohedral.filter(lattice, torch.from_numpy(values)), expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.floats(0, 40), st.integers(0, 2**31))
def test_weights_are_barycentric_and_builds_agree(d, n, spread, seed):
    features = (np.random.default_rng(seed).standard_normal((n, d)) * spread).astype(np.float32)
    lattice, other = permutohedral.build_cpu(features), permutohedral.build(torch.from_numpy(features)[None])
    assert_allclose(lattice.weight.sum(1), 1, atol=1e-4)
    assert lattice.weight.min() > -1e-3
    assert lattice.corner.min() >= 1
    assert len(np.unique(lattice.corner)) == lattice.neighbours.shape[1] - 1 == other.neighbours.shape[1] - 1
    values = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    assert_allclose(
        permutohedral.filter(as_tensors(lattice), values), permutohedral.filter(other, values), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("d", [1, 2, 3])
def test_kernel_has_unit_deviation_in_every_dimension(d):
    """Second moments of the response to one point, averaged over where in the lattice it falls."""
    half, spacing = {1: (60, 0.1), 2: (20, 0.25), 3: (9, 0.5)}[d]
    axes = np.meshgrid(*[np.arange(-half, half + 1) * spacing] * d, indexing="ij")
    grid = np.stack(axes, -1).reshape(-1, d)
    rng = np.random.default_rng(0)
    moments = []
    for _ in range(12):
        features = (grid + rng.uniform(-5, 5, d)).astype(np.float32)
        delta = torch.zeros(len(grid), 1)
        delta[len(grid) // 2] = 1
        response = permutohedral.filter(as_tensors(permutohedral.build_cpu(features)), delta)[:, 0].double().numpy()
        moments.append((response[:, None] * grid**2).sum(0) / response.sum())
    assert_allclose(np.mean(moments, 0), 1, atol=0.12)


def test_sets_of_a_batch_do_not_mix():
    features = torch.randn(3, 25, 5, generator=torch.Generator().manual_seed(0))
    values = torch.randn(3, 25, 2, generator=torch.Generator().manual_seed(1))
    together = permutohedral.filter(permutohedral.build(features), values.view(75, 2)).view(3, 25, 2)
    for k in range(3):
        alone = permutohedral.filter(permutohedral.build(features[k : k + 1]), values[k])
        torch.testing.assert_close(together[k], alone)


def test_many_corners_grow_the_hash_table():
    features = (np.random.default_rng(0).standard_normal((4000, 3)) * 100).astype(np.float32)
    lattice = permutohedral.build_cpu(features)
    other = permutohedral.build(torch.from_numpy(features)[None])
    assert lattice.neighbours.shape == other.neighbours.shape
    assert lattice.neighbours.shape[1] > 4096


def test_points_too_far_apart_are_refused():
    with pytest.raises(ValueError, match="too far"):
        permutohedral.build_cpu(np.full((1, 5), 3000, np.float32))
    with pytest.raises(ValueError, match="too far"):
        permutohedral.build(torch.full((1, 1, 5), 3000.0))
