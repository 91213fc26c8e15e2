"""Folders of X-rays as image sets: each file is tried once, bad ones are named."""

import numpy as np
import pytest
from PIL import Image

from chexseg.data import folder_set, image_folder
from chexseg.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for name in ("a/x.png", "b.PNG"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.eye(9, dtype=np.uint8) * 255).save(tmp_path / "in" / name)
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no picture")
    return tmp_path


def read(folder):
    return folder_set.readable(image_folder.find([folder / "in"]), folder / "run")


def test_what_can_be_read_is_a_set_and_the_rest_is_named(folder):
    images = read(folder)
    assert images.ids == ["a__x", "b"] and images.path("b") == folder / "in" / "b.PNG"
    assert images.frame["Path"].tolist() == [str(images.path(name)) for name in images.ids] and images.csv is None
    with pytest.raises(DataError, match="1 of 3 images could not be read.*checked.json"):
        folder_set.refuse_skipped(folder / "run")


def test_a_file_is_tried_again_only_when_it_changes(folder, monkeypatch):
    tried = []
    monkeypatch.setattr(folder_set, "_problem", lambda path: tried.append(path.name) or "")
    read(folder)
    assert sorted(tried) == ["b.PNG", "bad.jpg", "x.png"]
    read(folder)
    assert len(tried) == 3
    Image.new("L", (30, 40)).save(folder / "in" / "bad.jpg")
    read(folder)
    assert tried[3:] == ["bad.jpg"]
    folder_set.refuse_skipped(folder / "run")


def test_a_damaged_record_is_made_again(folder):
    read(folder)
    (folder / "run" / "checked.json").write_text("{")
    assert read(folder).ids == ["a__x", "b"]


def test_no_readable_image_at_all(folder):
    for path in (folder / "in").rglob("*.png"), (folder / "in").rglob("*.PNG"):
        for file in path:
            file.unlink()
    with pytest.raises(DataError, match="1 images, and none can be read; the first: .*bad.jpg"):
        read(folder)
