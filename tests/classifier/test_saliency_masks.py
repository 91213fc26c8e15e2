"""Masks from saliency maps are those of the original's code; what is not a map gives an empty mask."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageDraw
from scipy.ndimage import binary_fill_holes

from chexseg.classifier import saliency_masks
from chexseg.classifier.choices import PROTOCOLS
from chexseg.data.images import upsample
from chexseg.errors import DataError

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")

SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 24))


def naive_mask(saliency, size, mode, lone_pixels=True):
    """The original, in its own words: cv2's contours, PIL's polygon fill."""
    large = torch.nn.functional.interpolate(torch.from_numpy(saliency)[None, None], size, mode="bilinear")
    image = np.uint8(255 * large.squeeze().numpy())
    binary = cv2.threshold(image, 0, int(image.max()), cv2.THRESH_OTSU)[1]
    canvas = Image.new("1", size[::-1])
    for contour in cv2.findContours(binary, mode, cv2.CHAIN_APPROX_SIMPLE)[0]:
        points = [tuple(map(int, point[0])) for point in contour]
        if len(points) > 1:
            ImageDraw.Draw(canvas).polygon(points, outline=1, fill=1)
        elif lone_pixels:
            ImageDraw.Draw(canvas).point(points, 1)
    return np.asarray(canvas).astype(np.uint8)


@pytest.mark.parametrize("mode", [cv2.RETR_EXTERNAL, cv2.RETR_TREE])
@pytest.mark.parametrize("seed", range(10))
def test_threshold_maps_is_the_original(seed, mode):
    rng = np.random.default_rng(seed)
    maps = rng.random((3, 7, 5), dtype=np.float32) ** 3
    maps[0] *= 0.05  # as faint as p(1-p) makes a map
    found = saliency_masks.threshold_maps(maps, (61, 47))
    for mask, saliency in zip(found, maps, strict=True):
        np.testing.assert_array_equal(mask, naive_mask(saliency, (61, 47), mode))


def test_chexlocalize_stretches_each_map_first():
    rng = np.random.default_rng(1)
    maps = rng.random((2, 6, 6), dtype=np.float32)
    faint = maps * 0.001 + 0.3
    found = saliency_masks.threshold_maps(faint, (6, 6), protocol="chexlocalize")
    for mask, saliency in zip(found, faint, strict=True):
        stretched = (saliency - saliency.min()) / (saliency.max() - saliency.min())
        np.testing.assert_array_equal(mask, naive_mask(stretched, (6, 6), cv2.RETR_TREE, lone_pixels=False))
        assert 0 < mask.sum() < 36
    assert not saliency_masks.threshold_maps(maps * 0.003, (6, 6)).any()  # chexseg: uint8(255 * map) is 0


def test_chexlocalize_thresholds_and_cutoffs():
    maps = np.tile(np.float32([[0, 1, 2, 4]]), (4, 1, 1))
    found = saliency_masks.threshold_maps(
        maps,
        (1, 4),
        protocol="chexlocalize",
        thresholds=np.array([0.25, 0.2, np.nan, 0.2]),
        probabilities=np.array([0.5, 0.4, 0.9, 0.9]),
        cutoffs=np.array([0.5, 0.5, np.nan, np.nan]),
    )
    # 0, 0.25, 0.5, 1: strictly above; a probability must reach its cut-off; Otsu splits 0 .25 .5 | 1, and leaves a
    # pixel on its own, which CheXlocalize drops.
    assert found[:, 0].tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]]


def test_two_steps_of_upsampling():
    maps = np.random.default_rng(3).random((1, 4, 4), dtype=np.float32)
    step = upsample(maps, (16, 16))
    np.testing.assert_array_equal(
        saliency_masks.threshold_maps(maps, (50, 40), network_size=(16, 16)),
        saliency_masks.threshold_maps(step, (50, 40)),
    )
    assert (saliency_masks.threshold_maps(maps, (50, 40)) != saliency_masks.threshold_maps(step, (50, 40))).any()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", [0, np.nan, np.inf, -np.inf, -1])
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (10, 10)])
def test_a_map_without_activation_gives_an_empty_mask(protocol, value, shape):
    found = saliency_masks.threshold_maps(np.full((2, *shape), value, np.float32), (20, 31), protocol=protocol)
    assert found.shape == (2, 20, 31) and not found.any()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_nan_does_not_spread(protocol):
    maps = np.zeros((1, 8, 8), np.float32)
    maps[0, 2:5, 2:5] = 0.8
    clean = saliency_masks.threshold_maps(maps, (32, 32), protocol=protocol)
    maps[0, 7, 7] = np.nan
    np.testing.assert_array_equal(saliency_masks.threshold_maps(maps, (32, 32), protocol=protocol), clean)
    assert clean.any()


def test_a_map_above_one_is_clipped():
    maps = np.float32([[[0, 0, 1.01, 1.2]]])
    assert saliency_masks.threshold_maps(maps, (1, 4)).tolist() == [[[0, 0, 1, 1]]]


@given(arrays.arrays(np.uint8, SHAPES, elements=st.sampled_from([0, 200])))
def test_otsu_separates_two_levels_and_fills_holes(image):
    np.testing.assert_array_equal(saliency_masks.otsu(image), binary_fill_holes(image == 200))


def test_otsu_keeps_a_single_pixel_and_fills_a_ring():
    image = np.zeros((7, 9), np.uint8)
    image[1:6, 1:6] = 200
    image[2:5, 2:5] = 0
    image[3, 7] = 200
    expected = np.zeros((7, 9), np.uint8)
    expected[1:6, 1:6] = expected[3, 7] = 1
    np.testing.assert_array_equal(saliency_masks.otsu(image), expected)


def test_masks_do_not_depend_on_the_chunk(monkeypatch):
    maps = np.random.default_rng(4).random((5, 6, 6), dtype=np.float32)
    whole = saliency_masks.threshold_maps(maps, (30, 40))
    monkeypatch.setattr(saliency_masks, "MAX_UPSAMPLED", 2 * 30 * 40)
    np.testing.assert_array_equal(saliency_masks.threshold_maps(maps, (30, 40)), whole)


def test_read_task_values(tmp_path):
    path = tmp_path / "cutoffs.csv"
    path.write_text("prob_threshold,mIoU,task\n0.3,0.2,Lung Opacity\n,0.1,Edema\n")
    values = saliency_masks.read_task_values(
        path, "prob_threshold", ("Edema", "Airspace Opacity", "Fracture"), {"Lung Opacity": "Airspace Opacity"}
    )
    np.testing.assert_array_equal(values, [np.nan, 0.3, np.nan])
    # As CheXlocalize ships it: the row of the highest mIoU counts, the first of equals.
    path.write_text("prob_threshold,mIoU,task\n0.1,0.2,Edema\n0.2,0.4,Edema\n0.3,0.4,Edema\n0.9,,Edema\n0.5,,Other\n")
    found = saliency_masks.read_task_values(path, "prob_threshold", ("Edema", "Other"), {})
    np.testing.assert_array_equal(found, [0.2, 0.5])
    for text, message in [
        ("threshold\n1\n", "no column 'task'"),
        ("threshold,task\nx,Edema\n", "line 2: 'x'"),
        ("threshold,task\n1,Edema\n2,Edema\n", "'Edema' occurs twice"),
        ("", "not a CSV file"),
    ]:
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            saliency_masks.read_task_values(path, "threshold", ("Edema",), {})
    with pytest.raises(DataError, match="no such file"):
        saliency_masks.read_task_values(tmp_path / "none.csv", "threshold", ("Edema",), {})
