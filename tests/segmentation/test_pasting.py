"""Experts' findings in other films, and the samples of a student."""

import numpy as np
import pytest
import torch

from chexseg.data.mask_files import MaskFile
from chexseg.segmentation.dataset import build_cache
from chexseg.segmentation.pasting import StudentSet, paste, positives
from chexseg.training.draws import Draw
from tests.segmentation.small import TASKS


def donor_of(size=50):
    donor = np.full((size, size), 100, np.uint8)
    masks = np.zeros((2, size, size), np.uint8)
    masks[0, 20:30, 20:30] = 1
    masks[1, :, 25:] = 1
    donor[masks[0] > 0] = 200
    return donor, masks


def test_a_finding_comes_with_its_masks_and_its_contrast():
    donor, donor_masks = donor_of()
    image, masks = np.full((50, 50), 120, np.uint8), np.zeros((2, 50, 50), np.uint8)
    pasted, found = paste(image, masks, donor, donor_masks, 0)
    assert pasted[25, 25] == 210  # 200, and half of what the surroundings differ by
    assert pasted[0, 0] == 120 and (pasted[:10] == 120).all()
    np.testing.assert_array_equal(found[0], donor_masks[0])
    inside = found[1] > 0  # the other mask comes along within the region, and nowhere else
    assert inside[25, 25] and not inside[25, 20] and not inside[:15].any() and not inside[:, 35:].any()


def test_what_was_there_is_covered():
    donor, donor_masks = donor_of()
    image, masks = np.full((50, 50), 120, np.uint8), np.ones((2, 50, 50), np.uint8)
    _, found = paste(image, masks, donor, donor_masks, 0)
    assert found[1, 25, 20] == 0 and found[1, 25, 28] == 1 and found[1, 0, 0] == 1


def test_an_empty_mask_pastes_nothing():
    donor, donor_masks = donor_of()
    image, masks = np.full((50, 50), 120, np.uint8), np.zeros((2, 50, 50), np.uint8)
    same, found = paste(image, masks, donor, donor_masks * 0, 1)
    assert same is image and found is masks


@pytest.fixture
def caches(folder):
    options = {"data_dir": folder, "tasks": TASKS, "image_size": 32}
    cache = build_cache(folder / "cache", MaskFile(folder / "masks.json", {}), ("train", "valid"), **options)
    return [cache], [cache]


def test_samples_say_whose_they_are(caches):
    dataset = StudentSet(*caches)
    assert [bool(dataset[Draw(i)]["weak"]) for i in range(len(dataset))] == [False] * 3 + [True] * 3


def test_only_keyed_draws_of_the_pool_get_a_finding(caches):
    plain, pasted = StudentSet(*caches), StudentSet(*caches, paste=1.0)
    for i, key, same in [(0, (1, 2), True), (4, (), True), (5, (1, 2), False)]:
        one, other = plain[Draw(i, key)], pasted[Draw(i, key)]
        assert torch.equal(one["image"], other["image"]) == same, i
    again = pasted[Draw(5, (1, 2))]
    assert torch.equal(again["image"], pasted[Draw(5, (1, 2))]["image"])


def test_what_either_film_does_not_know_stays_unknown(caches):
    dataset = StudentSet(*caches, paste=1.0)
    unknown = [int((~dataset.caches[0].bits(i)[0]).sum()) for i in range(3)]
    assert unknown == [0, len(TASKS) - 2, 0]
    for key in range(20):
        known = dataset[Draw(4, (key,))]["known"]  # the film that lacks tasks
        assert not known[2:].any()
    some = {int(dataset[Draw(3, (key,))]["known"].sum()) for key in range(20)}
    assert some == {2, len(TASKS)}  # as the donor knows two, or all


def test_positives(caches):
    bits = [caches[0][0].bits(i)[1] for i in range(3)]
    for task, rows in enumerate(positives(caches[0] * 2)):
        assert rows.tolist() == [i for i in range(6) if bits[i % 3][task]]
