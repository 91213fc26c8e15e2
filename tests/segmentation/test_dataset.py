"""Samples of segmentation networks: masks move with their image, caches follow their inputs, sets, augmentation."""

import cv2
import numpy as np
import pytest
import torch

from chexseg.data import mask_files, mask_formats
from chexseg.data.images import fit_shape
from chexseg.data.mask_files import MaskFile
from chexseg.errors import DataError
from chexseg.runtime import progress
from chexseg.segmentation import dataset
from chexseg.segmentation.dataset import SegmentationSet, inputs_of, prepare
from chexseg.training.draws import Draw
from tests.segmentation.small import TASKS, Samples, blocks, coded, save_image


@pytest.mark.parametrize("shape", [(24, 48), (48, 24), (40, 40), (31, 57)])
def test_masks_move_with_the_image(tmp_path, shape):
    """An image that is its own mask still is, wherever the resized image is clearly black or white."""
    mask = blocks(np.random.default_rng(0), *shape)
    path = save_image(tmp_path, "patient00001_study1_view1_frontal", mask * 255)
    image, found, size, known = prepare((path, [coded(mask), None]), 32)
    assert known.tolist() == [True, False]
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
    assert [found[i].known.tolist() for i in range(3)] == [[True] * 3, [True, True, False], [True] * 3]


@pytest.mark.parametrize("kind", ["masks", "polygons", "coco"])
def test_polygons_and_coco_annotations_train_as_a_masks_file_does(folder, kind):
    """The same samples from all three; what a file leaves out is as its format says."""
    path = folder / f"{kind}.json"
    if kind != "masks":
        mask_formats.write(kind, path, MaskFile(folder / "masks.json"), TASKS)
    assert mask_formats.guess(path) == kind
    options = {"data_dir": folder, "tasks": TASKS, "image_size": 32}
    (found,) = dataset.build_caches(folder / "cache", [(path, ("train", "valid"))], {}, **options)
    expected = build_cache(folder)
    assert found.ids == expected.ids
    for one, other in ((found[i], expected[i]) for i in range(3)):
        assert np.array_equal(one.image, other.image) and np.array_equal(one.masks, other.masks)
        assert one.known.tolist() == ([True] * 3 if kind == "polygons" else other.known.tolist())


def test_a_format_is_guessed_from_the_first_words(tmp_path):
    texts = {
        '{"images": {"Edema": {"size": [1, 1], "counts": "1"}}}': "masks",
        ' {\n "info": {"year": 2024}, "images": [] }': "coco",
        '{"annotations" : []}': "coco",
        '{"a b": {"img_size": [2, 2], "Edema": []}}': "polygons",
        '{"a": {"Lung \\"x\\"": [[[1, 2]]], "img_size": [2, 2]}}': "polygons",
        "{}": "masks",
        "nonsense": "masks",
    }
    for text, kind in texts.items():
        (tmp_path / "x.json").write_text(text)
        assert mask_formats.guess(tmp_path / "x.json") == kind, text
    assert mask_formats.guess(tmp_path / "none.json") == "masks"


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


def test_what_nobody_drew_is_unknown_and_what_is_empty_is_absent(folder):
    entries = [(name, dict(entry)) for name, entry in MaskFile(folder / "masks.json").items()]
    entries[2][1]["Cardiomegaly"] = coded(np.zeros((20, 50), np.uint8))
    mask_files.write(folder / "masks.json", entries)
    both = SegmentationSet([build_cache(folder), Samples("whole", 2)])
    assert [both[Draw(i)]["known"].tolist() for i in (1, 2, 3)] == [[True, True, False], [True] * 3, [True] * 3]
    assert both.counts().present.tolist() == [4, 5, 4]
    assert both.counts().absent.tolist() == [1, 0, 0]
    assert both.counts().unknown.tolist() == [0, 0, 1]


def test_a_file_that_moves_to_another_set_is_another_input(folder):
    cache, source = build_cache(folder), folder / "weights"
    assert inputs_of([cache], [cache], source=source) == [cache.path, None, cache.path, None, source]
    assert inputs_of([cache, cache], [], source=None) == [cache.path, cache.path, None, None, None]


def test_augmentation_is_a_function_of_the_draw():
    dataset = SegmentationSet([Samples("a", 2)], augment=True)
    first, again, other = (dataset[Draw(0, (17, 0, position))] for position in (4, 4, 5))
    assert torch.equal(first["image"], again["image"]) and torch.equal(first["masks"], again["masks"])
    assert not torch.equal(first["image"], other["image"])
    assert torch.equal(dataset[Draw(0)]["image"], torch.from_numpy(Samples("a", 2).samples[0].image))


def test_looking_for_images_says_how_far_it_is(tmp_path, monkeypatch, caplog):
    ids = [f"patient0000{i}_study1_view1_frontal" for i in range(3)]
    for name in ids:
        save_image(tmp_path, name, np.zeros((4, 4), np.uint8))
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level("INFO"):
        found = dataset.locate_all(tmp_path, ids, ("train",), tmp_path / "masks.json")
    assert list(found) == ids and all(path.is_file() for path in found.values())
    assert "images of masks.json, found: 2 of 3, about" in caplog.text
