"""Random variants of images: a function of the random numbers alone, masks move with the image, nothing is mirrored."""

import cv2
import numpy as np
import pytest

from chexseg.data.augmentation import PADDED, STRETCHED, augment


@pytest.mark.parametrize("how", [STRETCHED, PADDED])
def test_a_variant_depends_on_the_random_numbers_alone(how):
    picture = np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)
    masks = (picture[None] > 128).astype(np.uint8)
    one, same, other = (augment(picture, masks, np.random.default_rng(k), how) for k in ((1, 2), (1, 2), (1, 3)))
    np.testing.assert_array_equal(one[0], same[0])
    np.testing.assert_array_equal(one[1], same[1])
    assert (one[0] != other[0]).mean() > 0.5 and (one[0] != picture).mean() > 0.5
    assert (augment(picture, masks[:0], np.random.default_rng((1, 2)), how)[0] == one[0]).all()


def in_the_words_of(image, masks, rng, *, degrees, brightness, is_padded):
    """Both variants step by step: the classifier's image is moved and then re-exposed, a padded one the other way."""
    side = len(image)
    middle = (side - 1) / 2 if is_padded else side / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), rng.uniform(-degrees, degrees), rng.uniform(0.9, 1.1))
    matrix[:, 2] += rng.uniform(-0.05, 0.05, 2) * side
    contrast, shift = rng.uniform(0.8, 1.2), rng.uniform(-brightness, brightness)
    moved = [cv2.warpAffine(mask, matrix, (side, side), flags=cv2.INTER_NEAREST) for mask in masks]
    if is_padded:
        levels = np.clip(np.arange(256) * contrast + shift, 0, 255).round().astype(np.uint8)
        levels[0] = 0
        return cv2.warpAffine(levels[image], matrix, (side, side)), np.stack(moved)
    image = cv2.warpAffine(image, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)
    return np.clip((np.arange(256) - 128) * contrast + 128 + shift, 0, 255).astype(np.uint8)[image], np.stack(moved)


@pytest.mark.parametrize("how, bounds", [(STRETCHED, (5, 25, False)), (PADDED, (10, 20, True))])
def test_step_by_step(how, bounds):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image, masks = rng.integers(0, 256, (33, 33), np.uint8), (rng.random((2, 33, 33)) < 0.4).astype(np.uint8)
        found = augment(image, masks, np.random.default_rng((seed, 1)), how)
        options = dict(zip(("degrees", "brightness", "is_padded"), bounds, strict=True))
        for one, other in zip(
            found, in_the_words_of(image, masks, np.random.default_rng((seed, 1)), **options), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_augmentation_moves_masks_with_the_image_and_does_not_mirror():
    mask = np.zeros((64, 64), np.uint8)
    mask[20:44, 8:24] = 1  # left of the middle
    for seed in range(30):
        image, moved = augment(mask * 100 + 50, np.stack([mask, 0 * mask]), np.random.default_rng(seed), PADDED)
        assert set(np.unique(moved)) <= {0, 1} and not moved[1].any()
        assert np.argwhere(moved[0])[:, 1].mean() < 28
        inside, outside = image[cv2.erode(moved[0], np.ones((5, 5))) > 0], image[8:56, 40:56]
        assert inside.min() > outside.max() + 40
        assert 0.7 * mask.sum() < moved[0].sum() < 1.4 * mask.sum()


def test_augmentation_leaves_the_padding_black():
    film = np.full((64, 64), 120, np.uint8)
    film[:, 40:] = 0
    seen = set()
    for seed in range(10):
        image, _ = augment(film, np.zeros((1, 64, 64), np.uint8), np.random.default_rng(seed), PADDED)
        assert not image[:, 56:].any()  # shifted by 3 pixels at most, turned by 10 degrees
        seen.add(int(image[20:44, 8:24].max()))
    assert len(seen) > 5 and min(seen) < 110 and max(seen) > 130
