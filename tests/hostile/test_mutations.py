"""One byte of a valid file flipped, dropped or put in, or the file cut: the same result, or an error that names it.

Where a format has checksums (checkpoints, PNG) another result is a fault. Elsewhere a changed byte can be another valid
value, a 1 for a 0 in a table; then only the way in which the script ends is looked at.
"""

import shutil
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile import cases
from tests.hostile.world import IDS

# Kind, command, file, and whether the format has checksums.
FILES = (
    ("masks JSON", "to_png", "pred.json", False),
    ("polygons JSON", "polygons", "outlines.json", False),
    ("COCO", "coco", "coco.json", False),
    ("thresholds.txt", "predict", "thresholds.txt", False),
    ("CheXpert CSV", "classify", "labels.csv", False),
    ("threshold CSV", "fixed_thresholds", "thresholds.csv", False),
    ("cut-off CSV", "fixed_thresholds", "cutoffs.csv", False),
    ("predictions.csv", "cutoffs", "predictions.csv", False),
    ("train_cams_paths.csv", "to_hdf5", "run/train_cams_paths.csv", False),
    ("quality.csv", "chosen", "quality.csv", False),
    ("saliency store", "masks_of_maps", "run/cams/saliency.h5", False),
    ("train_set", "relations", "run/hdf5_files/train_set", False),
    ("ir_labels", "relations", "run/hdf5_files/ir_labels", False),
    ("saliency pickle", "masks_of_pickles", f"pickles/{IDS[0]}_Edema_map.pkl", False),
    ("classifier", "classify", "classifier.ckpt", True),
    ("segmentation network", "predict", "segmentation.pth", True),
    ("PNG", "predict", "films/a.png", True),
    ("JPEG", "predict", "films/b.jpg", False),
    ("TIFF", "predict", "films/c.tif", False),
    ("DICOM", "predict", "films/d.dcm", False),
    ("label PNG", "png", f"png/Edema/{IDS[0]}.png", True),
    ("DICOM SEG", "seg", f"seg/{IDS[0]}.dcm", False),
)
numbers = count()


def changed(data: bytes, how: str, place: float, byte: int) -> bytes:
    at = int(place * len(data))
    if how == "flip":
        return data[:at] + bytes([data[at] ^ byte]) + data[at + 1 :]
    return {"cut": data[:at], "drop": data[:at] + data[at + 1 :], "insert": data[:at] + bytes([byte]) + data[at:]}[how]


def check(world, valid, tmp_path, file, how, place, byte) -> None:
    kind, command, name, has_checksums = file
    change = changed((world / name).read_bytes(), how, place, byte)
    verdict = cases.EITHER if has_checksums else cases.SAFE
    folder = tmp_path / str(next(numbers)) / "world"
    faults = cases.attack(cases.Case(kind, how, command, name, change, verdict), world, folder, valid(command))
    shutil.rmtree(folder.parent)
    assert faults == [], (kind, how, place, byte)


def examples(number):
    return settings(
        max_examples=number,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


VALUES = {
    "how": st.sampled_from(("flip", "cut", "drop", "insert")),
    "place": st.floats(0, 1, exclude_max=True),
    "byte": st.integers(1, 255),
}


@examples(6)
@given(file=st.sampled_from(FILES), **VALUES)
def test_a_changed_byte_of_some_file(world, valid, tmp_path, file, how, place, byte):
    check(world, valid, tmp_path, file, how, place, byte)


@pytest.mark.soak
@pytest.mark.parametrize("file", FILES, ids=lambda file: file[0])
@examples(80)
@given(**VALUES)
def test_a_changed_byte(world, valid, tmp_path, file, how, place, byte):
    check(world, valid, tmp_path, file, how, place, byte)
