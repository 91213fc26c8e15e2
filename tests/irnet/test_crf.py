"""Mean field against all pairs of pixels, against pydensecrf2 (recorded, and live where it is installed), by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import ndimage

from chexseg.irnet import crf

UNARY = math.log(0.7 / 0.3)


def film(height: int, width: int, contrast: float = 80, seed: int = 0) -> np.ndarray:
    """A smooth grey picture with an edge and grain, (H, W) uint8."""
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    waves = np.sin(5 * x) * np.cos(4 * y) + (np.hypot(x - 0.5, y - 0.6) < 0.25) * 0.6 - 0.5
    return (
        np.clip(120 + contrast * waves + np.random.default_rng(seed).normal(0, 2, waves.shape), 0, 255)
        .round()
        .astype(np.uint8)
    )


def disc(height: int, width: int, y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.hypot(rows - y, columns - x) < radius


def blobs(height: int, width: int, count: int, seed: int) -> np.ndarray:
    """Saliency maps as a classifier gives them: some smooth peaks, (count, H, W), maximum 1."""
    rng = np.random.default_rng(seed)
    maps = []
    for _ in range(count):
        seeds = np.zeros((height, width))
        for _ in range(rng.integers(1, 4)):
            peak = np.zeros_like(seeds)
            peak[rng.integers(height), rng.integers(width)] = 1
            peak = ndimage.gaussian_filter(peak, rng.uniform(0.07, 0.2, 2) * height, truncate=6)
            seeds += rng.uniform(0.5, 1) * peak / peak.max()
        maps.append(seeds / seeds.max())
    return np.array(maps)


def all_pairs(image, label, *, sxy=(3.0, 50.0), srgb=5.0, weights=(3.0, 10.0), unary=UNARY, iterations=10):
    """Exact mean field in float64 over both labels, as in the paper: O(n^2) messages, softmax, Potts."""
    height, width = image.shape
    y, x = (a.ravel().astype(float) for a in np.mgrid[:height, :width])
    near = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    rgb = np.repeat(image.reshape(-1, 1).astype(float), 3, axis=1)
    colour = ((rgb[:, None] - rgb) ** 2).sum(-1)
    kernels = [np.exp(-near / (2 * sxy[0] ** 2)), np.exp(-near / (2 * sxy[1] ** 2) - colour / (2 * srgb**2))]
    kernel = sum(w * k / np.sqrt(np.outer(k.sum(1), k.sum(1))) for w, k in zip(weights, kernels, strict=True))
    start = np.stack([np.where(label.ravel(), -unary / 2, unary / 2), np.where(label.ravel(), unary / 2, -unary / 2)])
    q = np.exp(start) / np.exp(start).sum(0)
    for _ in range(iterations):
        scores = start + q @ kernel
        q = np.exp(scores - scores.max(0))
        q /= q.sum(0)
    return q[1].reshape(height, width)


def log_odds(image, labels, **constants):
    return crf.mean_field(torch.from_numpy(image), torch.from_numpy(labels), **constants).numpy()


def probability(image, label, **constants):
    return 1 / (1 + np.exp(-log_odds(image, label[None], **constants)[0].astype(float)))


# Log-odds that pydensecrf2 1.1 gives for `film(40, 44)` and `disc(40, 44, 22, 20, 10)`.
PIXELS = (
    (0, 0),
    (0, 43),
    (39, 0),
    (39, 43),
    (22, 20),
    (12, 20),
    (13, 20),
    (22, 29),
    (22, 31),
    (30, 25),
    (5, 17),
    (33, 8),
)
RECORDED = {
    "defaults": (
        {"iterations": 1},
        (-4.563, -5.865, -4.171, -4.88, 0.744, -3.013, -0.33, -2.367, -5.523, -0.981, -6.073, -6.097),
    ),
    "others": (
        dict(
            confidence=0.8, gaussian_sxy=2, gaussian_weight=1, bilateral_sxy=8, bilateral_srgb=20, bilateral_weight=1.5,
            iterations=3,
        ),
        (-2.927, -3.461, -3.09, -3.197, 2.42, -2.147, 1.007, 0.756, -2.882, 1.292, -3.687, -3.761),
    ),
}  # fmt: skip


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("case", RECORDED)
def test_repeats_the_papers_code(case, engine):
    constants, expected = RECORDED[case]
    odds = log_odds(film(40, 44), disc(40, 44, 22, 20, 10)[None], engine=engine, **constants)[0]
    assert_allclose([odds[p] for p in PIXELS], expected, atol=2e-3)


def test_one_pixel_by_hand():
    """Its only message is its own: z = unary + (3 + 10) tanh(z / 2), ten times."""
    z = UNARY
    for _ in range(10):
        z = UNARY + 13 * math.tanh(z / 2)
    odds = log_odds(np.full((1, 1), 77, np.uint8), np.array([[[True]], [[False]]]))
    assert_allclose(odds.ravel(), [z, -z], rtol=1e-5)


def test_distant_grey_levels_share_only_the_near_kernel():
    """Two pixels of brightness 0 and 255: the bilateral kernel sees each alone, the Gaussian both alike."""
    z = np.array([UNARY, -UNARY])
    for _ in range(10):
        mean = np.tanh(z / 2)
        z = np.array([UNARY, -UNARY]) + 10 * mean + 3 * mean.sum() / 2
    odds = log_odds(np.array([[0, 255]], np.uint8), np.array([[[True, False]]]), gaussian_sxy=100.0)
    assert_allclose(odds.ravel(), z, rtol=1e-3)


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize(
    "constants",
    [
        dict(sxy=(1.5, 6.0), srgb=12.0, weights=(1.0, 1.2), iterations=3),
        dict(sxy=(3.0, 10.0), srgb=5.0, weights=(0.5, 2.0), iterations=2),
        dict(sxy=(3.0, 50.0), srgb=5.0, weights=(3.0, 10.0), iterations=1),
    ],
)
def test_close_to_all_pairs(constants, engine):
    image, label = film(26, 31, seed=3), disc(26, 31, 10, 17, 7)
    ours = probability(
        image, label, engine=engine, gaussian_sxy=constants["sxy"][0], bilateral_sxy=constants["sxy"][1],
        bilateral_srgb=constants["srgb"], gaussian_weight=constants["weights"][0],
        bilateral_weight=constants["weights"][1], iterations=constants["iterations"],
    )  # fmt: skip
    exact = all_pairs(image, label, **constants)
    assert np.abs(ours - exact).mean() < 0.03
    assert ((ours > 0.5) == (exact > 0.5)).mean() > 0.985


def pydensecrf_probability(image, label, iterations=10):
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="needs pydensecrf2: pip install -e .[bench]")
    from pydensecrf.utils import unary_from_labels

    height, width = image.shape
    field = densecrf.DenseCRF2D(width, height, 2)
    field.setUnaryEnergy(unary_from_labels(label.astype(int), 2, gt_prob=0.7, zero_unsure=False))
    field.addPairwiseGaussian(sxy=3, compat=3)
    field.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.repeat(image[..., None], 3, axis=2).copy(), compat=10)
    return np.array(field.inference(iterations)).reshape(2, height, width)[1]


@pytest.mark.parametrize("iterations", [1, 2, 10])
def test_as_close_to_all_pairs_as_pydensecrf(iterations):
    for seed, contrast in enumerate((20, 60, 110)):
        image, label = film(40, 44, contrast, seed), blobs(40, 44, 1, seed)[0] > 0.25
        exact = all_pairs(image, label, iterations=iterations)
        error = np.abs(probability(image, label, iterations=iterations) - exact).mean()
        theirs = np.abs(pydensecrf_probability(image, label, iterations) - exact).mean()
        assert error <= theirs * 1.001 + 1e-6


@pytest.mark.parametrize("contrast", [12, 90])
def test_agrees_with_pydensecrf_at_full_size(contrast):
    image, maps = film(320, 320, contrast, seed=1), blobs(320, 320, 2, seed=3)
    labels = np.concatenate([maps > 0.25, maps[:1] > 0.1])
    expected = np.array([pydensecrf_probability(image, label) > 0.5 for label in labels])
    found = log_odds(image, labels) > 0
    assert 0.1 < expected.mean() < 0.5
    assert (found == expected).mean(axis=(1, 2)).min() >= 0.995


def test_engines_agree_on_a_batch():
    images = np.stack([film(45, 37, seed=s) for s in range(3)])
    labels = np.stack([blobs(45, 37, 3, s) > 0.2 for s in range(3)])
    numba, torched = (log_odds(images, labels, engine=e) for e in ("numba", "torch"))
    assert_allclose(numba, torched, atol=2e-3)


sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))


@settings(max_examples=25, deadline=None)
@given(sizes, st.integers(1, 11), st.integers(0, 999))
def test_problems_and_images_do_not_mix(size, count, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2, *size), dtype=np.uint8)
    labels = rng.random((2, count, *size)) < 0.4
    together = log_odds(images, labels, iterations=3)
    order = rng.permutation(count)
    assert np.array_equal(log_odds(images[1], labels[1], iterations=3), together[1])
    assert np.array_equal(log_odds(images, labels[:, order], iterations=3), together[:, order])
    assert np.array_equal(log_odds(images, labels[:, :1], iterations=3), together[:, :1])


@settings(max_examples=25, deadline=None)
@given(sizes, st.integers(0, 999), st.sampled_from(["numba", "torch"]))
def test_bounded_and_odd_in_the_labels(size, seed, engine):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, size, dtype=np.uint8)
    label = rng.random((1, *size)) < rng.random()
    odds = log_odds(image, label, engine=engine)
    assert np.isfinite(odds).all()
    assert_allclose(log_odds(image, ~label, engine=engine), -odds, atol=1e-4)
    # Row sums of a symmetrically normalised kernel may pass 1, but its norm may not.
    assert np.linalg.norm(odds - np.where(label, UNARY, -UNARY)) <= 13.5 * math.sqrt(odds.size)


@pytest.mark.parametrize("transform", [np.flipud, np.fliplr, np.transpose])
def test_flips_and_transposes(transform):
    """The lattice lies askew to the axes, so its approximation turns a little with them; the picture must not."""
    image, label = film(90, 70, seed=5), blobs(90, 70, 1, 5)[0] > 0.3
    turned = probability(np.ascontiguousarray(transform(image)), np.ascontiguousarray(transform(label)), iterations=2)
    assert np.abs(transform(probability(image, label, iterations=2)) - turned).mean() < 0.02


def test_recovers_an_object_from_a_rough_label():
    image = np.full((64, 64), 60, np.uint8)
    truth = disc(64, 64, 32, 32, 20)
    image[truth] = 160
    rough = disc(64, 64, 30, 35, 18)
    found = log_odds(image, rough[None])[0] > 0
    assert (found & truth).sum() / (found | truth).sum() > 0.99 > (rough & truth).sum() / (rough | truth).sum()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (31, 32), (320, 319)])
@pytest.mark.parametrize("fill", [False, True])
def test_uniform_labels_stay(size, fill):
    image = np.zeros(size, np.uint8)
    assert ((log_odds(image, np.full((1, *size), fill)) > 0) == fill).all()


def test_nothing_to_do():
    image = torch.zeros(4, 5, dtype=torch.uint8)
    assert crf.mean_field(image, torch.zeros(0, 4, 5, dtype=torch.bool)).shape == (0, 4, 5)
    label = torch.tensor([[[True, False]]])
    odds = crf.mean_field(torch.zeros(1, 2, dtype=torch.uint8), label, iterations=0)
    assert_allclose(odds.ravel(), [UNARY, -UNARY], rtol=1e-6)


GREY, LABEL = torch.zeros(4, 5, dtype=torch.uint8), torch.zeros(1, 4, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("image", "labels", "constants", "words"),
    [
        (torch.zeros(4, 5, 3, dtype=torch.uint8), torch.zeros(1, 4, 5, dtype=torch.bool), {}, "colour"),
        (torch.zeros(1, 4, 5, 3, dtype=torch.uint8), torch.zeros(1, 1, 4, 5, dtype=torch.bool), {}, "colour"),
        (torch.zeros(4, 5), torch.zeros(1, 4, 5, dtype=torch.bool), {}, "uint8"),
        (torch.zeros(4, 5, dtype=torch.uint8), torch.zeros(1, 4, 5), {}, "bool"),
        (torch.zeros(4, 5, dtype=torch.uint8), torch.zeros(1, 5, 4, dtype=torch.bool), {}, "fit"),
        (torch.zeros(2, 4, 5, dtype=torch.uint8), torch.zeros(3, 1, 4, 5, dtype=torch.bool), {}, "fit"),
        (torch.zeros(0, 5, dtype=torch.uint8), torch.zeros(1, 0, 5, dtype=torch.bool), {}, "no pixels"),
        (GREY, LABEL, {"confidence": 1.0}, "confidence"),
        (GREY, LABEL, {"gaussian_sxy": 0.0}, "above 0"),
        (GREY, LABEL, {"bilateral_weight": -1.0}, "weights"),
        (GREY, LABEL, {"engine": "gpu"}, "engine"),
    ],
)  # fmt: skip
def test_wrong_input_is_named(image, labels, constants, words):
    with pytest.raises(ValueError, match=words):
        crf.mean_field(image, labels, **constants)


NO_FIELD = {"gaussian_weight": 0.0, "bilateral_weight": 0.0}


def test_relation_labels_without_a_field_are_two_thresholds():
    maps = torch.tensor([[[0.0, 0.3, 0.32, 0.74, 0.78, 3.0]]])  # of the maximum: 0, .1, .107, .247, .26, 1
    labels = crf.relation_labels(torch.zeros(1, 6, dtype=torch.uint8), maps, **NO_FIELD)
    assert labels.tolist() == [[[0, 0, 255, 255, 1, 1]]]
    labels = crf.relation_labels(torch.zeros(1, 6, dtype=torch.uint8), maps, foreground=0.5, possible=0.25, **NO_FIELD)
    assert labels.tolist() == [[[0, 0, 0, 0, 255, 1]]]
    assert labels.dtype == torch.uint8


def test_relation_labels_upsample_before_they_normalise():
    maps = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(maps, (20, 16), mode="bilinear", align_corners=False)
    large = large / large.flatten(2).amax(2)[..., None, None]
    images = torch.zeros(2, 20, 16, dtype=torch.uint8)
    expected = torch.full(large.shape, 255).masked_fill(large <= 0.1, 0).masked_fill(large > 0.25, 1)
    assert torch.equal(crf.relation_labels(images, maps, **NO_FIELD).long(), expected)


def test_relation_labels_come_from_both_fields():
    image, maps = film(60, 50), blobs(60, 50, 2, 8)
    labels = crf.relation_labels(torch.from_numpy(image), torch.from_numpy(maps)).numpy()
    sure, possible = log_odds(image, maps > 0.25) > 0, log_odds(image, maps > 0.1) > 0
    assert set(np.unique(labels)) == {0, 1, 255}
    assert np.array_equal(labels == 1, sure)
    assert np.array_equal(labels == 0, ~sure & ~possible)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_map_that_says_nothing_is_ignored(value):
    maps = torch.stack([torch.full((3, 3), value), torch.eye(3)])
    maps[0, 1, 1] = min(value, 0.0) if math.isfinite(value) else 0.5
    labels = crf.relation_labels(torch.zeros(6, 6, dtype=torch.uint8), maps, **NO_FIELD)
    assert (labels[0] == 255).all()
    assert set(labels[1].unique().tolist()) == {0, 1, 255}


def test_corners_that_do_not_come_in_threes_are_refused():
    """The CPU kernel reads three corners at a time; in three dimensions a point has four."""
    lattice = crf.permutohedral.build_cpu(np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32))
    with pytest.raises(ValueError, match="4 corners around a point; they are read 3 at a time"):
        crf._scaled(lattice, 1.0)
