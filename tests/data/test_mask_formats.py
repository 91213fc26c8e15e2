"""Masks in every format and back: equal to the pixel, absent kept apart from unknown."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from chexseg.data import mask_files, mask_formats, outlines, rle
from chexseg.errors import DataError
from tests.data.entries import TASKS, convert, random_entries, random_mask

ROOT = Path(__file__).resolve().parents[2]


def test_polygons_give_any_mask_back_by_both_rules():
    rng = np.random.default_rng(1)
    for _ in range(300):
        size = tuple(rng.integers(1, 32, 2))
        mask = random_mask(rng, size)
        centres, edges = outlines.through_centres(mask), outlines.along_edges(mask)
        np.testing.assert_array_equal(rle.from_polygons(centres, size), mask)
        flat = [loop.ravel().tolist() for loop in edges]
        back = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, *map(int, size)))) if flat else mask * 0
        np.testing.assert_array_equal(back, mask)


def test_the_outline_of_a_rectangle_has_four_corners():
    mask = np.zeros((9, 9), np.uint8)
    mask[2:5, 3:8] = 1
    (centres,), (edges,) = outlines.through_centres(mask), outlines.along_edges(mask)
    assert sorted(map(tuple, centres.tolist())) == [(3, 2), (3, 4), (7, 2), (7, 4)]
    assert sorted(map(tuple, edges.tolist())) == [(3, 2), (3, 5), (8, 2), (8, 5)]


@pytest.mark.parametrize(
    "kind, options",
    [
        ("masks", {}),
        ("polygons", {}),
        ("coco", {}),
        ("coco", {"segmentation": "polygons"}),
        ("png", {}),
        ("png", {"layout": "flat"}),
        ("dicom", {}),
        ("dicom", {"manual": True}),
    ],
)
def test_every_format_gives_the_masks_back(tmp_path, kind, options):
    entries = random_entries()
    assert convert(tmp_path, entries, kind, **options)[1] == entries


@pytest.mark.parametrize("kind", mask_formats.FORMATS)
def test_unknown_is_not_absent(tmp_path, kind):
    size = (5, 7)
    entries = {
        "a": {"Edema": rle.empty(size), "Cardiomegaly": rle.encode(np.ones((1, *size)))[0]},
        "b": {"Edema": rle.empty(size)},
    }
    _, found = convert(tmp_path, entries, kind)
    assert {name: set(entry) for name, entry in found.items()} == {"a": {"Edema", "Cardiomegaly"}, "b": {"Edema"}}
    assert not rle.area([found["a"]["Edema"]])[0]


@pytest.mark.parametrize("kind", [kind for kind in mask_formats.FORMATS if kind != "masks"])
def test_an_image_of_which_nothing_is_known_is_left_out_by_number(tmp_path, kind, caplog):
    entries = {"a": {"Edema": rle.empty((3, 4))}, "b": {}}
    assert set(convert(tmp_path, entries, kind)[1]) == {"a"}
    assert "1 images left out" in caplog.text


@pytest.mark.parametrize("kind", [kind for kind in mask_formats.FORMATS if kind != "masks"])
def test_masks_of_two_sizes_are_refused_by_name(tmp_path, kind):
    entries = {"film": {"Edema": rle.empty((3, 4)), "Cardiomegaly": rle.empty((4, 3))}}
    with pytest.raises(DataError, match="film.*masks of 2 sizes"):
        convert(tmp_path, entries, kind)
    assert not (tmp_path / kind).exists()


# The script


def run(*options) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "convert_masks.py"), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/")


def test_the_script_through_all_formats_and_back(tmp_path):
    entries = random_entries(5, count=5)
    before = tmp_path / "masks.json"
    mask_files.write(before, entries.items())
    kinds = ["polygons", "coco", "png", "dicom", "masks"]
    last, place = "masks", before
    for kind in kinds:
        target = tmp_path / f"out_{kind}"
        workers = 2 if kind == "png" else 0
        done = run("--from", last, "--input", place, "--to", kind, "--output", target, "--num_workers", workers)
        assert done.returncode == 0, done.stderr
        last, place = kind, target
    assert dict(mask_files.MaskFile(place)) == entries
    again = run("--from", "masks", "--input", before, "--to", "png", "--output", tmp_path / "out_png")
    assert again.returncode == 1 and "not empty" in again.stderr and len(again.stderr.splitlines()) == 1


def test_polygons_that_leave_a_task_out(tmp_path):
    path = tmp_path / "gt_annotations.json"
    path.write_text(json.dumps({"a": {"img_size": [5, 6], "Support Device": [[[1, 1], [3, 1], [3, 3]]]}}))
    for unlisted, expected in (("unknown", ["Support Devices"]), ("absent", sorted(TASKS))):
        target = tmp_path / f"{unlisted}.json"
        options = ("--to", "masks", "--output", target, "--unlisted", unlisted)
        done = run("--from", "polygons", "--input", path, *options)
        assert done.returncode == 0, done.stderr
        assert sorted(mask_files.MaskFile(target)["a"]) == expected


def test_tasks_that_nobody_drew_become_unknown(tmp_path):
    entries, before, after = random_entries(3), tmp_path / "masks.json", tmp_path / "known.json"
    mask_files.write(before, entries.items())
    done = run(
        "--from", "masks", "--input", before, "--to", "masks", "--output", after, "--tasks", "Lung Opacity", "Edema"
    )
    assert done.returncode == 0, done.stderr
    kept = {"Airspace Opacity", "Edema"}
    expected = {name: {task: mask for task, mask in entry.items() if task in kept} for name, entry in entries.items()}
    assert dict(mask_files.MaskFile(after)) == expected


def test_wrong_usage_of_the_script(tmp_path):
    same = run("--from", "masks", "--input", tmp_path, "--to", "masks", "--output", tmp_path)
    assert same.returncode == 2 and "is --input" in same.stderr
    missing = run("--from", "masks", "--input", tmp_path / "x.json", "--to", "png", "--output", tmp_path / "y")
    assert missing.returncode == 1 and "no such masks file" in missing.stderr


def test_a_failed_conversion_leaves_nothing(tmp_path):
    path = tmp_path / "m.json"
    path.write_text(
        '{\n"a": {"Edema": {"size": [2, 2], "counts": "4"}},\n"b": {"Edema": {"size": [2, 2], "counts": "9"}}\n}\n'
    )
    done = run("--from", "masks", "--input", path, "--to", "png", "--output", tmp_path / "png")
    assert done.returncode == 1 and "m.json: b: Edema" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")) == ["m.json"]
