"""An image and its masks are moved alike: longer side scaled, padded to a square."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chexseg.data import rle
from chexseg.data.images import fit_shape
from chexseg.segmentation.dataset import prepare


def prepared(folder, image, stack, size):
    path = folder / "image.png"
    Image.fromarray(image).save(path)
    return prepare((path, rle.encode(stack) if len(stack) else []), size)


@settings(deadline=None, derandomize=True, database=None, max_examples=30)
@given(st.tuples(st.integers(1, 24), st.integers(1, 24)), st.integers(1, 30), st.integers(0, 1000))
def test_masks_are_padded_to_a_square(tmp_path_factory, shape, size, seed):
    stack = np.random.default_rng(seed).random((2, *shape)) < 0.5
    height, width = fit_shape(*shape, size)
    sample = prepared(tmp_path_factory.mktemp("image"), np.zeros(shape, np.uint8), stack, size)
    expected = np.zeros((2, size, size), np.uint8)
    expected[:, :height, :width] = rle.resize(rle.encode(stack), (height, width))
    np.testing.assert_array_equal(sample.masks, expected)


def test_masks_follow_the_image(tmp_path):
    # A bright rectangle and its mask still coincide after both are fitted: within the blurred edge.
    image = np.zeros((700, 500), np.uint8)
    image[210:490, 100:300] = 255
    fitted, (mask,), _, _ = prepared(tmp_path, image, image[None], 100)
    np.testing.assert_array_equal(mask, fitted > 127)
    assert (np.flatnonzero(mask.any(0))[[0, -1]] == (14, 42)).all()  # 100/7 = 14.3 to 300/7 = 42.9
    assert not mask[:, 71:].any()


def test_an_image_without_masks(tmp_path):
    assert prepared(tmp_path, np.zeros((4, 5), np.uint8), [], 8).masks.shape == (0, 8, 8)
