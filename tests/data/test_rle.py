"""Run-length masks: the text is pycocotools', damaged ones are named; resizing and polygons are as decoded."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from chexseg.data import rle
from chexseg.data.images import fit_shape
from chexseg.errors import DataError

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")

SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 24))


@st.composite
def mask_stacks(draw, max_masks=4):
    shape = draw(SHAPES)
    return draw(arrays.arrays(bool, (draw(st.integers(1, max_masks)), *shape)))


def test_encode_by_hand():
    # Columns from the left: [1, 0], [1, 1], [0, 0] -> runs 0, 1, 1, 2, 2.
    mask = np.array([[[1, 1, 0], [0, 1, 0]]])
    (coded,) = rle.encode(mask)
    assert coded == {"size": [2, 3], "counts": "01111"}  # from the fourth on, less the number two before
    assert rle.run_lengths(coded).tolist() == [0, 1, 1, 2, 2]
    assert rle.area([coded]).tolist() == [3]


@given(mask_stacks())
def test_encode_and_decode_are_pycocotools(stack):
    rles = rle.encode(stack)
    for mask, coded in zip(stack, rles, strict=True):
        reference = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert coded["counts"].encode() == reference["counts"]
        assert rle.check(coded, "here") == coded
    np.testing.assert_array_equal(rle.decode(rles), stack)


@given(mask_stacks(max_masks=1), st.tuples(*[st.integers(0, 3)] * 4))
def test_a_box_is_encoded_as_the_mask_around_it(stack, margins):
    (box,), (above, below, left, right) = stack, margins
    whole = np.pad(box, ((above, below), (left, right)))
    found = rle.encode_box(box.T.astype(np.uint8), above, left, whole.shape)
    assert found == rle.encode(whole[None])[0]


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (320, 319)])
def test_empty_and_full_masks(shape, value):
    (coded,) = rle.encode(np.full((1, *shape), value))
    assert rle.area([coded])[0] == value * shape[0] * shape[1]
    assert rle.run_lengths(coded).tolist() == ([0] if value else []) + [shape[0] * shape[1]]
    if not value:
        assert rle.empty(shape) == coded


@given(mask_stacks(max_masks=1))
def test_check_accepts_every_spelling_of_a_mask(stack):
    (coded,) = rle.encode(stack)
    lengths = rle.run_lengths(coded).tolist()
    for counts in (coded["counts"].encode(), lengths, tuple(lengths)):
        assert rle.check({"size": tuple(coded["size"]), "counts": counts}, "here") == coded


@pytest.mark.parametrize(
    "coded",
    [
        None,
        [],
        {"size": [2, 3]},
        {"size": [2], "counts": "6"},
        {"size": [0, 3], "counts": "0"},
        {"size": ["a", 3], "counts": "6"},
        {"size": [2, 3], "counts": "5"},
        {"size": [2, 3], "counts": "7"},
        {"size": [2, 3], "counts": ""},
        {"size": [2, 3], "counts": "0111"},
        {"size": [2, 3], "counts": "V"},
        {"size": [2, 3], "counts": "é6"},
        {"size": [2, 3], "counts": "oooooooo0"},
        {"size": [2, 3], "counts": "08N"},
        {"size": [2, 3], "counts": "6\ud800"},
        {"size": [2, 3], "counts": "0?"},
        {"size": [2, 3], "counts": "111M4"},  # 1, 1, 1, -2, 5: adds up, and would be read past the end
        {"size": [2, 3], "counts": "oooooooooooooo0"},
        {"size": [1 << 20, 1 << 20], "counts": "6"},
        {"size": [2, 3], "counts": [5]},
        {"size": [2, 3], "counts": [7, -1]},
        {"size": [2, 3], "counts": ["6"]},
        {"size": [2, 3], "counts": 6},
    ],
)
def test_check_names_the_place_of_a_bad_mask(coded):
    with pytest.raises(DataError, match="^file: image: task: "):
        rle.check(coded, "file: image: task")


@given(mask_stacks(), SHAPES)
def test_resize_is_nearest_on_the_decoded_mask(stack, size):
    rows = np.floor((np.arange(size[0]) + 0.5) * (stack.shape[1] / size[0]) + 1e-9).astype(int)
    columns = np.floor((np.arange(size[1]) + 0.5) * (stack.shape[2] / size[1]) + 1e-9).astype(int)
    np.testing.assert_array_equal(rle.resize(rle.encode(stack), size), stack[:, rows][:, :, columns])


@given(mask_stacks(max_masks=1), st.integers(1, 30))
def test_resize_moves_a_mask_as_pil_moves_it(stack, size):
    height, width = fit_shape(*stack.shape[1:], size)
    picture = Image.fromarray(stack[0].astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    # Where a pixel's centre falls on the border of two, ours is exact and PIL's float sum may not be.
    rows, columns = (
        (2 * np.arange(count) + 1) * source % (2 * count) != 0
        for source, count in zip(stack.shape[1:], (height, width), strict=True)
    )
    (resized,) = rle.resize(rle.encode(stack), (height, width))
    np.testing.assert_array_equal(resized[rows][:, columns], np.asarray(picture)[rows][:, columns])


@given(
    st.lists(
        st.lists(st.tuples(st.floats(-4, 28, width=32), st.floats(-4, 28, width=32)), min_size=2, max_size=8),
        max_size=4,
    ),
    SHAPES,
)
def test_polygons_are_the_union_of_pils(polygons, size):
    expected = np.zeros(size, bool)
    for polygon in polygons:
        canvas = Image.new("1", size[::-1])
        ImageDraw.Draw(canvas).polygon(polygon, outline=1, fill=1)
        expected |= np.asarray(canvas)
    np.testing.assert_array_equal(rle.from_polygons(polygons, size), expected)


def test_polygon_by_hand_includes_its_outline():
    mask = rle.from_polygons([[[1, 1], [3, 1], [3, 2], [1, 2]], [[0, 4]]], (5, 6))
    assert mask.tolist() == [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
    ]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(2, 60), st.integers(2, 60)), min_size=3, max_size=3, unique=True))
def test_polygon_agrees_with_pycocotools_up_to_the_outline(triangle):
    # COCO's fill has no outline: ours contains it, and exceeds it by no more than the outline.
    flat = [[c for point in triangle for c in point]]
    inner = coco.decode(coco.merge(coco.frPyObjects(flat, 64, 64))).astype(bool)
    ours = rle.from_polygons([triangle], (64, 64)).astype(bool)
    grown = cv2.dilate(inner.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    outline = np.zeros((64, 64), np.uint8)
    cv2.polylines(outline, [np.array(triangle)], True, 1, thickness=3)
    assert not (inner & ~ours & (outline == 0)).any()
    assert not (ours & ~grown & (outline == 0)).any()


@pytest.mark.parametrize("bad", [[[1, 2]], [[["a", 1]]], 5, [[[1, 2, 3]]], [[[float("nan"), 1], [1, 1]]], [None]])
def test_bad_polygon_is_named(bad):
    with pytest.raises(DataError, match="^here: "):
        rle.from_polygons(bad, (4, 4), "here")


def test_many_masks_at_once_get_the_verdict_and_the_area_of_one(monkeypatch):
    rng, masks = np.random.default_rng(0), []
    for number in range(600):
        height, width = (int(n) for n in rng.integers(1, 40, 2))
        [coded] = rle.encode((rng.random((1, height, width)) < rng.choice([0, 0.02, 0.5, 1])).astype(np.uint8))
        counts = list(coded["counts"])
        if number % 3 == 1:
            counts[rng.integers(len(counts))] = chr(rng.integers(40, 120))
        elif number % 3 == 2:
            counts = counts[: rng.integers(len(counts) + 1)] + list("P" * rng.integers(9) + "0" * rng.integers(3))
        masks.append({"size": coded["size"], "counts": "".join(counts)})
    masks += [{"size": [2, 2], "counts": "\xe9"}, {"size": [2, 2], "counts": ""}]
    monkeypatch.setattr(rle, "_is_damaged", rle._is_damaged.__wrapped__)
    pixels = np.array([np.prod(m["size"]) for m in masks])
    counts = [m["counts"].encode("latin-1") for m in masks]
    found = rle.areas(pixels, counts).tolist()
    # A few at a time are shorter numbers, which take less room.
    few = [rle.areas(pixels[i : i + 3], counts[i : i + 3]) for i in range(0, len(masks), 3)]
    assert np.concatenate(few).tolist() == found
    for mask, area in zip(masks, found, strict=True):
        if area < 0:
            with pytest.raises(DataError):
                rle.check(mask, "mask")
        else:
            assert rle.check(mask, "mask") == mask and rle.decode([mask]).sum() == area
    assert 200 < sum(area >= 0 for area in found) < 500
    assert rle.areas(np.zeros(0, int), []).shape == (0,)


def test_areas_of_more_masks_than_pycocotools_can_count():
    masks = rle.encode(np.arange(600).reshape(300, 1, 2) % 3 == 0)
    assert rle.area(masks).tolist() == rle.decode(masks).sum((1, 2)).tolist()
