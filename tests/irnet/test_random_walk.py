"""The sparse walk against a dense transition matrix built pair by pair."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from chexseg.irnet import random_walk


def dense_walk(cam, boundary, *, beta, exp_times, radius):
    """cam (C, h, w), boundary (h, w), float64: all pairs, every path point by point, the matrix squared."""
    height, width = boundary.shape
    affinity = torch.eye(height * width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            for v in range(height):
                for u in range(width):
                    dy, dx = v - y, u - x
                    if 0 < dy * dy + dx * dx < radius * radius:
                        box = [
                            (p, q)
                            for p in range(min(y, v), max(y, v) + 1)
                            for q in range(min(x, u), max(x, u) + 1)
                            if (dy * (q - x) - dx * (p - y)) ** 2 / (dy * dy + dx * dx) < 1
                        ]
                        largest = max(float(boundary[p, q]) for p, q in box)
                        affinity[y * width + x, v * width + u] = (1 - largest) ** beta
    transition = affinity / affinity.sum(0, keepdim=True)
    for _ in range(exp_times):
        transition = transition @ transition
    return ((cam.double() * (1 - boundary.double())).flatten(1) @ transition).view(cam.shape)


def random_maps(size, classes=2, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cam = torch.rand(batch, classes, *size, generator=generator)
    return cam, torch.rand(batch, 1, *size, generator=generator) ** 2


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((9, 11), dict(beta=5.0, exp_times=3, radius=3)),
        ((8, 8), dict(beta=1.0, exp_times=0, radius=2)),
        ((7, 12), dict(beta=10.0, exp_times=6, radius=5)),
        ((12, 5), dict(beta=2.5, exp_times=2, radius=10)),
        ((1, 9), dict(beta=5.0, exp_times=3, radius=3)),
        ((6, 1), dict(beta=5.0, exp_times=3, radius=4)),
        ((1, 1), dict(beta=5.0, exp_times=3, radius=3)),
        ((6, 5), dict(beta=5.0, exp_times=3, radius=1)),
    ],
)
def test_equals_the_dense_matrix(size, options, engine):
    cam, boundary = map(torch.cat, zip(random_maps(size), random_maps(size, seed=1), strict=True))
    found = random_walk.propagate(cam, boundary, **options, engine=engine)
    expected = torch.stack([dense_walk(c, b[0], **options) for c, b in zip(cam, boundary, strict=True)])
    assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_defaults_are_the_papers():
    cam, boundary = random_maps((7, 6), seed=4)
    assert_close(
        random_walk.propagate(cam, boundary),
        random_walk.propagate(cam, boundary, beta=5.0, exp_times=3, radius=3),
    )


def test_two_pixels_by_hand():
    """Affinity to the other (1 - 0.5)^2 = 1/4, to itself 1: each step mixes 4 : 1."""
    cam = torch.tensor([[[[10.0, 0.0]]]])
    boundary = torch.tensor([[[[0.5, 0.2]]]])
    found = random_walk.propagate(cam, boundary, beta=2.0, exp_times=1, radius=2)
    # 10 * (1 - 0.5) = 5; one step: 4, 1; two: (4 * 4 + 1) / 5, (4 + 4 * 1) / 5.
    assert_close(found, torch.tensor([[[[3.4, 1.6]]]]))


def test_a_wall_stops_the_walk():
    cam = torch.zeros(1, 1, 9, 15)
    cam[..., 4, 2] = 1
    boundary = torch.zeros(1, 1, 9, 15)
    boundary[..., 7] = 1
    spread = random_walk.propagate(cam, boundary, exp_times=6)
    assert (spread[..., :7] > 0).all()
    assert (spread[..., 7:] == 0).all()


sizes = st.tuples(st.integers(1, 14), st.integers(1, 14))
constants = st.fixed_dictionaries(
    {"beta": st.floats(0.5, 12), "exp_times": st.integers(0, 5), "radius": st.integers(1, 10)}
)


@settings(max_examples=30, deadline=None)
@given(sizes, constants, st.integers(0, 999))
def test_flips_transposes_classes_and_batches(size, options, seed):
    cam, boundary = random_maps(size, classes=3, batch=2, seed=seed)
    spread = random_walk.propagate(cam, boundary, **options)
    for turn in (lambda t: t.flip(-1), lambda t: t.flip(-2), lambda t: t.transpose(-1, -2)):
        assert_close(random_walk.propagate(turn(cam), turn(boundary), **options), turn(spread), atol=1e-5, rtol=1e-4)
    assert torch.equal(random_walk.propagate(cam[:, [2, 0]], boundary, **options), spread[:, [2, 0]])
    assert torch.equal(random_walk.propagate(cam[1:], boundary[1:], **options), spread[1:])


@settings(max_examples=30, deadline=None)
@given(sizes, constants, st.integers(0, 999))
def test_a_step_is_a_weighted_mean(size, options, seed):
    cam, boundary = random_maps(size, seed=seed)
    spread = random_walk.propagate(cam, boundary, **options)
    start = cam * (1 - boundary)
    assert spread.min() >= start.min() - 1e-6
    assert spread.max() <= start.max() + 1e-5
    level = random_walk.propagate(torch.full_like(cam, 3.0), torch.zeros_like(boundary), **options)
    assert_close(level, torch.full_like(cam, 3.0), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_what_is_no_number(engine):
    cam, boundary = random_maps((6, 7))
    cam[0, 0, 2, 3], cam[0, 1, 0, 0] = math.nan, math.inf
    boundary[0, 0, 5, 5], boundary[0, 0, 1, 1], boundary[0, 0, 0, 6] = math.nan, 7.0, -3.0
    clean_cam, clean_boundary = cam.clone(), boundary.clone()
    clean_cam[0, 0, 2, 3] = clean_cam[0, 1, 0, 0] = 0
    clean_boundary[0, 0, 5, 5] = clean_boundary[0, 0, 1, 1] = 1
    clean_boundary[0, 0, 0, 6] = 0
    clean = random_walk.propagate(clean_cam, clean_boundary, engine=engine)
    assert_close(random_walk.propagate(cam, boundary, engine=engine), clean)


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_inputs_are_left_alone(engine):
    cam, boundary = random_maps((5, 5))
    before = cam.clone(), boundary.clone()
    random_walk.propagate(cam, boundary, engine=engine)
    assert torch.equal(cam, before[0])
    assert torch.equal(boundary, before[1])


@pytest.mark.parametrize(
    ("cam", "boundary", "options"),
    [
        (torch.zeros(1, 2, 4, 5), torch.zeros(1, 1, 5, 4), {}),
        (torch.zeros(1, 2, 4, 5), torch.zeros(2, 1, 4, 5), {}),
        (torch.zeros(1, 2, 4, 5), torch.zeros(1, 2, 4, 5), {}),
        (torch.zeros(1, 2, 4, 5), torch.zeros(1, 1, 4, 5), {"radius": 0}),
        (torch.zeros(1, 2, 4, 5), torch.zeros(1, 1, 4, 5), {"exp_times": -1}),
        (torch.zeros(1, 2, 4, 5), torch.zeros(1, 1, 4, 5), {"beta": 0.0}),
        (torch.zeros(1, 2, 4, 5), torch.zeros(1, 1, 4, 5), {"engine": "cuda"}),
    ],
)
def test_wrong_input_is_refused(cam, boundary, options):
    with pytest.raises(ValueError, match="fit|radius|engine"):
        random_walk.propagate(cam, boundary, **options)


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_masks_by_hand(engine):
    scores = torch.tensor(
        [[[0.0, 0.59, 0.61, 1.0]], [[0.0, 0.0, 0.0, 0.0]], [[3.0, 2.0, 1.7, -1.0]], [[-1.0, -2, 0, 0]]]
    )
    masks = random_walk.masks_from_scores(scores, (1, 4), engine=engine)
    assert masks[:, 0].int().tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    half = random_walk.masks_from_scores(scores, (1, 4), threshold=0.5, engine=engine)
    assert half[0, 0].tolist() == [False, True, True, True]
    # Half of a maximum below zero is above it.
    assert half[3].sum() == 0
    assert random_walk.masks_from_scores(scores - 3, (1, 4), threshold=2.0, engine=engine).sum() == 0
    assert random_walk.masks_from_scores(scores, (1, 4), threshold=0.0, engine=engine)[1].sum() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("grid", "size"),
    [((7, 5), (28, 20)), ((1, 1), (1, 1)), ((1, 1), (3, 4)), ((1, 6), (5, 9)), ((9, 8), (4, 3)), ((6, 6), (6, 6))],
)
def test_both_engines_make_the_same_masks(grid, size, dtype):
    scores = torch.rand(3, 6, *grid, generator=torch.Generator().manual_seed(0)) - 0.2
    scores[:, 1], scores[0, 2], scores[1, 2, 0, 0] = 0, -1, math.nan
    scores[2, 3, -1, -1], scores[0, 4] = math.inf, math.nan
    scores = scores.to(dtype)
    found, expected = (random_walk.masks_from_scores(scores, size, engine=e) for e in ("torch", "numba"))
    assert torch.equal(found, expected) and found.any()
    assert found.shape == (3, 6, *size) and found.dtype == torch.bool
    # Masks are those of each image alone.
    assert torch.equal(torch.stack([random_walk.masks_from_scores(s, size) for s in scores]), expected)


def test_masks_upsample_scores_not_masks():
    scores = torch.zeros(1, 2, 2)
    scores[0, 0, 0] = 1
    masks = random_walk.masks_from_scores(scores, (8, 8), threshold=0.5)[0]
    # Half-pixel centres: weight of the first cell along an axis is 1, 1, .875, .625, .375, ... and the corner's is 1.
    weight = torch.tensor([1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0])
    assert torch.equal(masks, torch.outer(weight, weight) > 0.5)


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_scores_of_present_findings_only(engine):
    maps = torch.rand(3, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    boundary = torch.rand(3, 1, 8, 10, generator=torch.Generator().manual_seed(1))
    present = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])
    maps[0, 0, 0, 0] = math.nan
    walk = {"beta": 3.0, "exp_times": 2, "radius": 2}
    scores = random_walk.pseudo_scores(maps, boundary, present, **walk, engine=engine)
    # What is no number counts as 0 before it is upsampled, or it would take its surroundings with it.
    maps[0, 0, 0, 0] = 0
    cam = torch.nn.functional.interpolate(maps, (8, 10), mode="bilinear", align_corners=False)
    # To the last bit with Numba; in torch a result may depend on the batch it was in.
    expected = random_walk.propagate(cam, boundary, **walk, engine="numba")
    tolerance = {"rtol": 0, "atol": 0} if engine == "numba" else {}
    assert_close(scores[present], expected[present], **tolerance)
    assert (scores[~present] == 0).all()


@pytest.mark.parametrize("grid", [(8, 10), (1, 1), (1, 9), (7, 1)])
def test_both_engines_score_alike(grid):
    maps = torch.rand(3, 4, 3, 2, generator=torch.Generator().manual_seed(0)) - 0.1
    boundary = torch.rand(3, 1, *grid, generator=torch.Generator().manual_seed(1))
    maps[0, 1], maps[1, 2, 0, 0], maps[2, 3] = 0, math.nan, math.inf
    boundary[1, 0, 0, -1] = math.nan
    present = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]]).bool()
    found, expected = (random_walk.pseudo_scores(maps, boundary, present, engine=e) for e in ("torch", "numba"))
    assert_close(found, expected)
    assert (found[~present] == 0).all() and (found[present] > 0).any()


def test_a_gpu_is_never_waited_for():
    """Without values (on the device `meta`) whatever the host needs to know fails."""
    maps, boundary = torch.rand(2, 3, 4, 5, device="meta"), torch.rand(2, 1, 8, 10, device="meta")
    scores = random_walk.pseudo_scores(maps, boundary, torch.ones(2, 3, dtype=torch.bool, device="meta"))
    assert random_walk.masks_from_scores(scores, (32, 40)).shape == (2, 3, 32, 40)


def test_boundary_of_image_and_mirror_image():
    def network(images):
        """Any network without mirror symmetry: logits are the first channel, shifted."""
        return images[:, :1].roll(1, dims=-1)

    images = torch.randn(2, 3, 3, 4, generator=torch.Generator().manual_seed(0))
    shifted_right, shifted_left = images[:, :1].roll(1, -1), images[:, :1].roll(-1, -1)
    found = random_walk.mirrored_boundary(network, images)
    assert_close(found, ((shifted_right + shifted_left) / 2).sigmoid())
    assert_close(found.flip(-1), random_walk.mirrored_boundary(lambda x: network(x.flip(-1)).flip(-1), images.flip(-1)))


def test_logits_are_averaged_not_probabilities():
    """Logits 4 of the image and 0 of its mirror image: sigmoid(2) = 0.8808; probabilities would give 0.7410."""

    def network(images):
        return torch.tensor([4.0, 0.0])[:, None, None, None]

    assert_close(random_walk.mirrored_boundary(network, torch.zeros(1, 3, 4, 4)), torch.tensor([[[[0.880797]]]]))


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_states_on_the_way_are_those_of_shorter_walks(engine):
    cam, boundary = random_maps((9, 7), classes=3)
    given = {"betas": (2.0, 5.0), "exp_times": (0, 1, 4), "radius": 4}
    found = list(random_walk.walk_states(cam, boundary, **given, engine=engine))
    assert [(beta, exponent) for beta, exponent, _ in found] == [(b, e) for b in (2.0, 5.0) for e in (0, 1, 4)]
    for beta, exponent, spread in found:
        expected = random_walk.propagate(cam, boundary, beta=beta, exp_times=exponent, radius=4, engine=engine)
        assert torch.equal(spread, expected)
    with pytest.raises(ValueError, match="must ascend"):
        next(random_walk.walk_states(cam, boundary, betas=[5.0], exp_times=[2, 1], radius=3))
