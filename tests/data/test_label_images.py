"""Label PNGs: ours, those of other tools, and files that are no masks."""

import numpy as np
import pytest
from PIL import Image

from chexseg.data import label_images, mask_formats, rle
from chexseg.errors import DataError
from tests.data.entries import TASKS, convert


def test_png_files_hold_0_and_255(tmp_path):
    size = (6, 5)
    mask = np.zeros(size, np.uint8)
    mask[1, 2] = 1
    folder, _ = convert(tmp_path, {"film": {"Edema": rle.encode(mask[None])[0]}}, "png")
    with Image.open(folder / "Edema" / "film.png") as image:
        np.testing.assert_array_equal(np.asarray(image), mask * 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_png_masks_of_other_tools(tmp_path, mode):
    inside = np.zeros((4, 6), bool)
    inside[1:3, 2] = True
    if mode == "I;16":
        image = Image.fromarray(inside.astype(np.uint16) * 1000)
    else:
        image = Image.fromarray(inside.astype(np.uint8) * 255).convert(mode)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(label_images.read_mask(tmp_path / "a.png"), inside)


@pytest.mark.parametrize("what", ["grey", "broken", "jpeg", "no zero"])
def test_png_files_that_are_no_masks_are_named(tmp_path, what):
    path = tmp_path / "a.png"
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6) if what == "grey" else np.ones((4, 6), np.uint8)
    if what == "no zero":
        pixels[0] = 2
    Image.fromarray(pixels).save(path, format="JPEG" if what == "jpeg" else "PNG")
    if what == "broken":
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="a.png"):
        label_images.read_mask(path)


def test_a_folder_that_is_no_folder_of_masks_is_named(tmp_path):
    with pytest.raises(DataError, match="no PNG"):
        mask_formats.read("png", tmp_path, {}, TASKS)
    Image.new("L", (3, 3)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="a.png.*expected <image id>__<task>.png"):
        mask_formats.read("png", tmp_path, {}, TASKS)
    (tmp_path / "a.png").rename(tmp_path / "a__Edema.png")
    (tmp_path / "Edema").mkdir()
    Image.new("L", (3, 3)).save(tmp_path / "Edema" / "a.png")
    with pytest.raises(DataError, match="both"):
        mask_formats.read("png", tmp_path, {}, TASKS)
