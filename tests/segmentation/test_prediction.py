"""Masks at the original size."""

import cv2
import numpy as np
import pytest
import torch

from chexseg.data import rle
from chexseg.data.images import fit_shape, fit_square, read_image
from chexseg.segmentation.prediction import Originals, original_masks, predict
from tests.segmentation.small import SPEC, Oracle


def test_original_masks_by_hand():
    """A 2 x 4 image in a 4-px square: the lower half is padding, whatever the network says there."""
    probabilities = np.zeros((3, 4, 4), np.float32)
    probabilities[0, :2, :2] = 1
    probabilities[0, 2:] = 1
    probabilities[1, 2:] = 1
    probabilities[2, :2] = 0.5, 0.5, 1, 1
    found = rle.decode(original_masks(probabilities, (4, 8), (0.5, 0.0, 0.5)))
    expected = np.zeros((3, 4, 8), np.uint8)
    expected[0, :, :4] = 1  # bilinear: 1, 1, 1, 0.75 | 0.25, 0, 0, 0
    expected[2, :, 3:] = 1  # 0.5, 0.5, 0.5, 0.625 | 0.875, 1, 1, 1: 0.5 is not above 0.5
    assert np.array_equal(found, expected)
    at_lower = rle.decode(original_masks(probabilities, (4, 8), (0.2, 0.0, 0.4)))
    expected[0, :, 4] = 1
    expected[2] = 1
    assert np.array_equal(at_lower, expected)


def test_original_masks_equal_torchs_interpolation():
    rng = np.random.default_rng(0)
    probabilities = cv2.GaussianBlur(rng.random((32, 32, 3), np.float32), (0, 0), 2).transpose(2, 0, 1)
    height, width = fit_shape(75, 101, 32)
    large = torch.nn.functional.interpolate(
        torch.from_numpy(probabilities[None, :, :height, :width].copy()), (75, 101), mode="bilinear"
    )[0]
    found = rle.decode(original_masks(probabilities, (75, 101), (0.5, 0.45, 0.55)))
    for mask, plane, threshold in zip(found, large.numpy(), (0.5, 0.45, 0.55), strict=True):
        assert 0 < mask.mean() < 1
        clear = abs(plane - threshold) > 1e-4
        assert np.array_equal(mask[clear], (plane > threshold)[clear])


@pytest.mark.parametrize("size", [(75, 101), (101, 75), (16, 12), (9, 31), (1, 40), (320, 317)])
def test_original_masks_equal_those_of_whole_films(size):
    """Only the part of a film that can be above the threshold is looked at; blobs lie at edges and all over."""
    rng = np.random.default_rng(sum(size))
    height, width = fit_shape(*size, 32)
    for _ in range(40):
        planes = np.zeros((3, 32, 32), np.float32)
        for plane in planes:
            y, x = rng.integers(0, 32, 2)
            plane[y : y + rng.integers(1, 20), x : x + rng.integers(1, 20)] = rng.random()
            plane += rng.random((32, 32), np.float32) * rng.choice([0, 0.1, 0.6])
        thresholds = rng.choice([0.05, 0.3, 0.6], 3)
        naive = [
            cv2.resize(plane[:height, :width], size[::-1], interpolation=cv2.INTER_LINEAR) > threshold
            for plane, threshold in zip(planes, thresholds, strict=True)
        ]
        assert original_masks(planes, size, thresholds) == rle.encode(np.stack(naive))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_predictions_do_not_depend_on_how_images_are_divided(folder, batch_size):
    found = {p.parent.parent.name: p for p in sorted((folder / "CheXpert").rglob("*.png"))}
    paths = {f"{patient}_study1_view1_frontal": path for patient, path in found.items()}
    ids = sorted(paths)

    def predicted(names):
        dataset = Originals(paths, names, 32)
        return dict(predict(Oracle(), SPEC, (0.5,) * 3, dataset, batch_size=batch_size, device=torch.device("cpu")))

    whole = predicted(ids)
    assert list(whole) == ids
    assert whole == {name: predicted([name])[name] for name in ids}
    for name in ids:
        image = read_image(paths[name])
        assert [m["size"] for m in whole[name].values()] == [list(image.shape)] * 3
        small = fit_square(image, 32)
        shape = fit_shape(*image.shape, 32)
        bright = (small[: shape[0], : shape[1]] / 255 > 0.5020).mean()
        assert rle.area(list(whole[name].values()))[0] / image.size == pytest.approx(bright, abs=0.05)
