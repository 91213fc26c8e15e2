"""Samples of segmentation networks: masks move with their image, caches follow their inputs, sets, augmentation."""

import cv2
import numpy as np
import pytest
import torch

from chexseg.data import mask_files
from chexseg.data.images import fit_shape
from chexseg.data.mask_files import MaskFile
from chexseg.errors import DataError
from chexseg.segmentation import dataset
from chexseg.segmentation.dataset import SegmentationSet, augmented, prepare
from chexseg.training.draws import Draw
from tests.segmentation.small import TASKS, Samples, blocks, coded, save_image


@pytest.mark.parametrize("shape", [(24, 48), (48, 24), (40, 40), (31, 57)])
def test_masks_move_with_the_image(tmp_path, shape):
    """An image that is its own mask still is, wherever the resized image is clearly black or white."""
    mask = blocks(np.random.default_rng(0), *shape)
    path = save_image(tmp_path, "patient00001_study1_view1_frontal", mask * 255)
    image, found, size = prepare((path, [coded(mask), None]), 32)
    assert size == shape and image.shape == (32, 32) and found.shape == (2, 32, 32)
    height, width = fit_shape(*shape, 32)
    assert not found[1].any() and not found[0, height:].any() and not found[0, :, width:].any()
    clear = (image < 20) | (image > 235)
    assert clear[:height, :width].mean() > 0.3
    assert np.array_equal(found[0][clear], (image > 127)[clear])


def test_a_mask_stored_as_a_square_is_stretched_to_the_images_shape(tmp_path):
    mask = blocks(np.random.default_rng(1), 20, 40, coarse=10)
    path = save_image(tmp_path, "patient00001_study1_view1_frontal", mask * 255)
    square = cv2.resize(mask, (40, 40), interpolation=cv2.INTER_NEAREST)
    found = prepare((path, [coded(square)]), 40).masks
    assert np.array_equal(found[0, :20], mask) and not found[0, 20:].any()


def build_cache(folder, **options):
    given = {"data_dir": folder, "tasks": TASKS, "image_size": 32}
    records = MaskFile(folder / "masks.json")
    return dataset.build_cache(folder / "cache", records, ("train", "valid"), **(given | options))


def test_cache_of_a_masks_file(folder):
    found = build_cache(folder)
    assert found.ids == [f"patient{i:05d}_study1_view1_frontal" for i in range(3)]
    assert [found.size(i) for i in range(3)] == [(40, 30), (32, 32), (20, 50)]
    assert [found[i].masks.any((1, 2)).tolist() for i in range(3)] == [[True] * 3, [True, True, False], [True] * 3]


@pytest.mark.parametrize("what", ["image", "mask", "tasks", "size"])
def test_cache_follows_its_inputs(folder, what, caplog):
    before = build_cache(folder)
    first, options = before[0], {}
    if what == "image":
        save_image(folder, before.ids[0], np.zeros((40, 30), np.uint8))
    if what == "mask":
        entries = [(name, dict(entry)) for name, entry in MaskFile(folder / "masks.json").items()]
        entries[0][1]["Cardiomegaly"] = coded(np.ones((40, 30), np.uint8))
        mask_files.write(folder / "masks.json", entries)
    if what == "tasks":
        options["tasks"] = TASKS[::-1]
    if what == "size":
        options["image_size"] = 64
    after = build_cache(folder, **options)[0]
    assert ("stale" in caplog.text) == (what in ("image", "mask"))
    expected = {
        "image": first._replace(image=np.zeros((32, 32), np.uint8)),
        "tasks": first._replace(masks=first.masks[::-1]),
    }
    if what in expected:
        assert np.array_equal(after.image, expected[what].image) and np.array_equal(after.masks, expected[what].masks)
    if what == "mask":
        assert after.masks[0].sum() == 32 * 24 and np.array_equal(after.masks[1:], first.masks[1:])
    if what == "size":
        assert after.image.shape == (64, 64)


def test_missing_image_and_empty_file_are_named(folder):
    mask_files.write(folder / "masks.json", [("patient99999_study1_view1_frontal", {})])
    with pytest.raises(DataError, match="patient99999"):
        build_cache(folder)
    mask_files.write(folder / "masks.json", [])
    with pytest.raises(DataError, match="masks.json: no image"):
        build_cache(folder)


def test_sets_follow_one_another():
    both = SegmentationSet([Samples("expert", 2), Samples("none", 0), Samples("pseudo", 3)])
    assert len(both) == 5
    assert [both[Draw(i)]["id"] for i in range(5)] == ["expert0", "expert1", "pseudo0", "pseudo1", "pseudo2"]
    sample = both[Draw(3, (1, 2, 3))]
    assert np.array_equal(sample["image"], Samples("pseudo", 3).samples[1].image)
    assert sample["masks"].dtype == torch.uint8


def test_augmentation_is_a_function_of_the_draw():
    dataset = SegmentationSet([Samples("a", 2)], augment=True)
    first, again, other = (dataset[Draw(0, (17, 0, position))] for position in (4, 4, 5))
    assert torch.equal(first["image"], again["image"]) and torch.equal(first["masks"], again["masks"])
    assert not torch.equal(first["image"], other["image"])
    assert torch.equal(dataset[Draw(0)]["image"], torch.from_numpy(Samples("a", 2).samples[0].image))


def test_augmentation_moves_masks_with_the_image_and_does_not_mirror():
    mask = np.zeros((64, 64), np.uint8)
    mask[20:44, 8:24] = 1  # left of the middle
    for seed in range(30):
        image, moved = augmented(mask * 100 + 50, np.stack([mask, 0 * mask]), np.random.default_rng(seed))
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
        image, _ = augmented(film, np.zeros((1, 64, 64), np.uint8), np.random.default_rng(seed))
        assert not image[:, 56:].any()  # shifted by 3 pixels at most, turned by 10 degrees
        seen.add(int(image[20:44, 8:24].max()))
    assert len(seen) > 5 and min(seen) < 110 and max(seen) > 130
