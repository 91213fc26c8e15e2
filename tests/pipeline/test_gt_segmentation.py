"""Stage 2 as a user runs it: masks from the readers' polygons."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from chexseg.data import json_lines, rle
from chexseg.data.mask_files import MaskFile
from chexseg.errors import DataError, UsageError
from tests.pipeline.scripts import ROOT, name, run


def test_gt_segmentation_from_its_own_folder(tmp_path):
    square, dot = [[2, 1], [5, 1], [5, 3], [2, 3]], [[0, 0]]
    annotations = {
        name(1): {"img_size": [6, 8], "Lung Opacity": [square, dot], "Pneumonia": [square]},
        name(2): {"img_size": [4, 4]},
        name(3): {"img_size": [4, 4], "Edema": []},
    }
    path = tmp_path / "gt_annotations_test.json"
    path.write_text(json.dumps(annotations))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "gt_segmentation.py", "--ann_path", path],
        cwd=ROOT / "localization_eval", env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 images, 2 of them without a polygon" in done.stderr
    assert "1 images have polygons of 'Pneumonia'" in done.stderr
    found = MaskFile(tmp_path / "test_encoded.json")
    assert list(found) == [name(1), name(2), name(3)]
    assert all(len(entry) == 10 for entry in found.values())
    expected = np.zeros((6, 8))
    expected[1:4, 2:6] = expected[0, 0] = 1
    np.testing.assert_array_equal(rle.decode([found[name(1)]["Airspace Opacity"]])[0], expected)
    areas = {image: rle.area(list(entry.values())).sum() for image, entry in found.items()}
    assert areas == {name(1): 13, name(2): 0, name(3): 0}
    assert found[name(2)]["Edema"]["size"] == [4, 4]


@pytest.mark.parametrize("content", [{}, {name(1): {"img_size": [4, 4], "Edema": [[["a", 1]]]}}])
def test_gt_segmentation_leaves_nothing_of_bad_annotations(tmp_path, content):
    path = tmp_path / "gt_annotations_valid.json"
    path.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match="gt_annotations_valid.json: " + (f"{name(1)}: Edema: " if content else "no ann")
    ):
        run("localization_eval/gt_segmentation.py", "--ann_path", path)
    assert not (tmp_path / "valid_encoded.json").exists()


def test_what_the_readers_did_not_draw_is_left_out(tmp_path):
    path = tmp_path / "gt_annotations_valid.json"
    path.write_text(json.dumps({name(1): {"img_size": [4, 4], "Edema": [[[0, 0]]]}, name(2): {"img_size": [4, 4]}}))
    given = ("--ann_path", path, "--annotated_tasks", "Edema", "Lung Opacity")
    run("localization_eval/gt_segmentation.py", *given)
    found = MaskFile(tmp_path / "valid_encoded.json")
    assert [list(entry) for entry in found.values()] == [["Airspace Opacity", "Edema"]] * 2
    assert [rle.area(list(entry.values())).tolist() for entry in found.values()] == [[0, 1], [0, 0]]
    with pytest.raises(UsageError, match="--annotated_tasks 'Heart': not one of"):
        run("localization_eval/gt_segmentation.py", *given, "Heart")


def test_gt_segmentation_of_any_layout_gives_the_same_bytes(tmp_path):
    annotations = {
        name(i): {"img_size": [9, 8], "Edema": [[[i, 1], [5.5, 1], [5, 7]]], "Lung Opacity": [[[0, i]]]}
        for i in range(4)
    }
    ours, theirs, made = tmp_path / "ours.json", tmp_path / "theirs.json", []
    with json_lines.writer(ours) as add:
        for image_id, entry in annotations.items():
            add(image_id, entry)
    theirs.write_text(json.dumps(annotations))
    for path in (ours, theirs):
        output = tmp_path / f"{path.stem}_masks.json"
        run("localization_eval/gt_segmentation.py", "--ann_path", path, "--output_path", output)
        made.append(output.read_bytes())
    assert made[0] == made[1]
    found = MaskFile(output)
    assert list(found) == list(annotations)
    for image_id, entry in annotations.items():
        for task, key in (("Edema", "Edema"), ("Airspace Opacity", "Lung Opacity")):
            expected = rle.from_polygons(entry[key], (9, 8))
            np.testing.assert_array_equal(rle.decode([found[image_id][task]])[0], expected)
