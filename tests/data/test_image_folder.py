"""Ids of files, file names of ids: no name leads out of a folder."""

from pathlib import Path

import pytest

from chexseg.data import image_folder, rle
from chexseg.errors import DataError
from tests.data.entries import convert

HOSTILE = (
    "../outside", "/etc/passwd", "..", ".", "", ".hidden", "a/../../b", "back\\slash", "nul\0byte", "line\nbreak",
    "%2E%2E", "C:con", "-rf", "\u202eleft", "\ud800 alone", "Überfilm 1", "a__b", "b.dcm", "q?*<>|\"",
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_becomes_a_file_name_and_back(name):
    stem = image_folder.file_stem(name)
    assert image_folder.text_of(stem) == name
    assert stem and not stem.startswith(".") and not set("/\\\0\n") & set(stem)
    stem.encode()


def test_long_names_end_in_a_hash():
    one, two = (image_folder.file_stem("ü" * 300 + end) for end in "ab")
    assert one != two and len(one.encode()) <= 200


@pytest.mark.parametrize("kind, options", [("png", {}), ("dicom", {}), ("png", {"layout": "flat"})])
def test_no_name_leads_out_of_the_folder(tmp_path, kind, options):
    inner = tmp_path / "inner"
    texts = [name for name in HOSTILE if name not in ("a__b", "", "nul\0byte", "line\nbreak", "\ud800 alone")]
    entries = {name: {"Ede ma": rle.empty((2, 3))} for name in texts}
    _, found = convert(inner, entries, kind, **options)
    assert found == entries
    assert [p.name for p in tmp_path.iterdir()] == ["inner"]
    assert sorted(p.name for p in inner.iterdir() if not p.name.endswith(".lock")) == [kind]


@pytest.mark.parametrize("kind", ["png", "dicom"])
def test_names_that_could_not_be_turned_back_are_refused(tmp_path, kind):
    with pytest.raises(DataError, match="too long|turned back"):
        convert(tmp_path, {"x" * 300: {"Edema": rle.empty((2, 3))}}, kind)
    with pytest.raises(DataError, match="--layout folders"):
        convert(tmp_path, {"a": {"b__c": rle.empty((2, 3))}}, "png", layout="flat")


@pytest.mark.parametrize(
    "path, expected",
    [
        ("train/patient00001/study1/view1_frontal.jpg", "patient00001_study1_view1_frontal"),
        ("ward/4/film.1.PNG", "ward__4__film.1"),
        ("film.dcm", "film"),
        ("patient1/film.tiff", "patient1__film"),
        ("1.2.840.113", "1.2.840.113"),
        ("line\nbreak/\udcff.png", "line%0Abreak__%FF"),
    ],
)
def test_ids_of_paths(path, expected):
    assert image_folder.image_id(Path(path)) == expected


def test_a_path_that_is_too_long_for_an_id_ends_in_a_hash():
    one, two = (image_folder.image_id(Path("/".join([*["x" * 250] * 5, end]))) for end in ("a.png", "b.png"))
    assert one != two and len(one) == len(two) == 1000


def test_images_are_found_below_folders(tmp_path):
    for name in ("b/x.JPG", "b/c/y.Dcm", "z.png", ".hidden.png", ".git/w.png", "notes.txt", "b/t.TIFF"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(image_folder.find([tmp_path])) == ["b__c__y", "b__t", "b__x", "z"]
    assert list(image_folder.find([tmp_path / "b" / "x.JPG", tmp_path / "z.png"])) == ["x", "z"]
    (tmp_path / "b__x.png").touch()
    with pytest.raises(DataError, match="b__x.png and .*b/x.JPG both have the image id 'b__x'"):
        image_folder.find([tmp_path])
    with pytest.raises(DataError, match="no such file or folder"):
        image_folder.find([tmp_path / "missing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no image in this folder"):
        image_folder.find([tmp_path / "empty"])
