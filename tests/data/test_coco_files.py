"""COCO files: pycocotools reads ours, we read those of other tools, and what is wrong in one is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import constants
from chexseg.data import mask_formats, rle
from chexseg.errors import DataError
from tests.data.entries import TASKS, convert, random_entries


@pytest.mark.parametrize("segmentation", ["rle", "polygons"])
def test_pycocotools_reads_the_coco_file(tmp_path, segmentation, capsys):
    entries = random_entries(2)
    path, _ = convert(tmp_path, entries, "coco", segmentation=segmentation)
    read = COCO(str(path))
    names = {c["id"]: c["name"] for c in read.dataset["categories"]}
    ids = {image["id"]: image["name"] for image in read.dataset["images"]}
    assert [names[n] for n in sorted(names)] == [task for task in TASKS if any(task in e for e in entries.values())]
    for annotation in read.dataset["annotations"]:
        mask = entries[ids[annotation["image_id"]]][names[annotation["category_id"]]]
        np.testing.assert_array_equal(read.annToMask(annotation), rle.decode([mask])[0])
        assert annotation["area"] == rle.area([mask])[0]
        assert annotation["bbox"] == coco_mask.toBbox(mask).tolist()
    assert len(read.dataset["annotations"]) == sum(
        int(rle.area([m])[0] > 0) for e in entries.values() for m in e.values()
    )


def foreign_coco(tmp_path, **changes) -> Path:
    """As another tool writes it: no `name`, no `neg_category_ids`, two parts of one finding, uncompressed runs."""
    content = {
        "images": [{"id": 7, "file_name": "train/patient00001/study2/view1_frontal.JPG", "height": 4, "width": 6}],
        "categories": [{"id": 3, "name": "Lung Opacity"}, {"id": 9, "name": "Edema"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "segmentation": [[0, 0, 2, 0, 2, 1, 0, 1]], "iscrowd": 0},
            {
                "id": 2,
                "image_id": 7,
                "category_id": 3,
                "segmentation": {"size": [4, 6], "counts": [20, 4]},
                "iscrowd": 1,
            },
        ],
    }
    for key, value in changes.items():
        record, _, field = key.partition("_")
        content[record][-1][field] = value
    path = tmp_path / "foreign.json"
    path.write_text(json.dumps(content))
    return path


def test_a_coco_file_of_another_tool(tmp_path, caplog):
    path = foreign_coco(tmp_path)
    expected = np.zeros((4, 6), np.uint8)
    expected[0, :2] = expected[:, 5] = 1
    name = "patient00001_study2_view1_frontal"
    found = mask_formats.read("coco", path, constants.ALIASES, TASKS)
    assert list(found) == [name] and list(found[name]) == ["Airspace Opacity"]
    np.testing.assert_array_equal(rle.decode([found[name]["Airspace Opacity"]])[0], expected)
    assert "--unlisted absent" in caplog.text
    found = mask_formats.read("coco", path, constants.ALIASES, TASKS, unlisted_absent=True)[name]
    assert set(found) == {"Airspace Opacity", "Edema"} and not rle.area([found["Edema"]])[0]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"images_height": 0}, "0 x 6 pixels"),
        ({"images_width": 10**9}, "cannot be an image's size"),
        ({"images_width": "wide"}, "is not \\(height, width\\)"),
        ({"images_file_name": 3}, "file_name '3' is not a text"),
        ({"images_id": None}, "id 'None'"),
        ({"categories_name": "Lung Opacity"}, "two categories have one name"),
        ({"categories_id": 3}, "two categories have one id"),
        ({"annotations_image_id": 8}, "image 8: no image has that id"),
        ({"annotations_category_id": 8}, "annotation 2: category '8'"),
        ({"annotations_category_id": [1]}, "annotation 2: category"),
        ({"annotations_segmentation": []}, "a box alone is no mask"),
        ({"annotations_segmentation": None}, "no list of polygons"),
        ({"annotations_segmentation": [[0, 0, 1]]}, "three points or more"),
        ({"annotations_segmentation": [[0, 0, 1e9, 0, 1, 1]]}, "far out of its image"),
        ({"annotations_segmentation": [[0, 0, float("nan"), 0, 1, 1]]}, "NaN is no number"),
        ({"annotations_segmentation": {"size": [6, 4], "counts": [24]}}, "a mask of \\[6, 4\\]"),
        ({"annotations_segmentation": {"size": [4, 6], "counts": [25]}}, "do not add up"),
        ({"images_neg_category_ids": [4]}, "category '4'"),
        ({"images_neg_category_ids": [[4]]}, "category"),
        ({"images_neg_category_ids": 4}, "is not a list"),
    ],
)
def test_what_is_wrong_in_a_coco_file_is_named(tmp_path, changes, said):
    path = foreign_coco(tmp_path, **changes)
    with pytest.raises(DataError, match=said) as error:
        dict(mask_formats.read("coco", path, constants.ALIASES, TASKS))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": {}}', "[" * 100_000, '{"images": [1]}'])
def test_what_is_no_coco_file_is_named(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match="x.json"):
        mask_formats.read("coco", path, {}, TASKS)


def test_coco_file_names_are_those_of_the_images(tmp_path):
    entries = {"a__b": {"Edema": rle.empty((3, 4))}}
    path, found = convert(tmp_path, entries, "coco", image_names={"a__b": "a/b.png"})
    assert json.loads(path.read_text())["images"][0]["file_name"] == "a/b.png"
    assert found == entries
