"""Masks in every format and back: equal to the pixel, absent kept apart from unknown, no name leads out of a folder."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

import constants
from chexseg.data import dicom_seg, image_folder, label_images, mask_files, mask_formats, outlines, rle
from chexseg.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
TASKS = constants.LOCALIZATION_TASKS
HOSTILE = (
    "../outside", "/etc/passwd", "..", ".", "", ".hidden", "a/../../b", "back\\slash", "nul\0byte", "line\nbreak",
    "%2E%2E", "C:con", "-rf", "\u202eleft", "\ud800 alone", "Überfilm 1", "a__b", "b.dcm", "q?*<>|\"",
)  # fmt: skip


def random_mask(rng, size) -> np.ndarray:
    """Noise, smooth blobs, blobs with holes, a pixel, nothing, everything."""
    kind = rng.integers(7)
    mask = rng.random(size) < rng.random()
    if kind in (1, 2):
        rows, columns = np.mgrid[: size[0], : size[1]]
        away = np.hypot(rows - rng.integers(size[0]), columns - rng.integers(size[1]))
        mask = away < rng.uniform(1, max(size))
        if kind == 2:
            mask &= (away > rng.uniform(0, max(size) / 2)) & (rng.random(size) < 0.97)
    if kind >= 3:
        mask = np.full(size, kind == 3)
    if kind == 4:
        mask[rng.integers(size[0]), rng.integers(size[1])] = True
    return mask


def random_entries(seed=0, count=12, tasks=TASKS) -> dict[str, dict]:
    rng, entries = np.random.default_rng(seed), {}
    for number in range(count):
        size = tuple(rng.integers(1, 40, 2))
        entries[f"patient{number:05d}_study1_view1_frontal"] = {
            task: rle.encode(random_mask(rng, size)[None])[0] for task in tasks if rng.random() < 0.6
        } or {tasks[0]: rle.empty(size)}
    return entries


def convert(tmp_path, entries, kind, **options) -> tuple[Path, dict[str, dict]]:
    """The written file or folder, and what is read from it."""
    target = tmp_path / kind
    mask_formats.write(kind, target, entries, TASKS, **options)
    return target, dict(mask_formats.read(kind, target, {}, TASKS))


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


# COCO


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
        ({"annotations_segmentation": [[0, 0, float("nan"), 0, 1, 1]]}, "far out of its image"),
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


# PNG


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


# DICOM SEG


def dicom_image(path: Path, size: tuple[int, int]) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = ComputedRadiographyImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID = generate_uid(), generate_uid()
    image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = "Doe^Jane", "4711", "19500101", "F"
    image.AccessionNumber, image.StudyDate, image.InstitutionName = "ACC-77", "20200101", "St. Elsewhere"
    image.ReferringPhysicianName = "Roe^Richard"
    image.Rows, image.Columns = size
    image.save_as(path, enforce_file_format=True)
    return image


def test_highdicom_reads_the_segmentation(tmp_path):
    hd = dicom_seg.highdicom()
    entries = random_entries(3, count=4)
    folder, _ = convert(tmp_path, entries, "dicom")
    for name, entry in entries.items():
        seg = hd.seg.segread(folder / f"{name}.dcm")
        assert [s.segment_label for s in map(seg.get_segment_description, seg.segment_numbers)] == list(entry)
        ((_, _, source),) = seg.get_source_image_uids()
        pixels = seg.get_pixels_by_source_instance([source], assert_missing_frames_are_empty=True)
        np.testing.assert_array_equal(np.moveaxis(pixels[0], -1, 0), rle.decode(list(entry.values())))


@pytest.mark.parametrize("keep_patient", [False, True])
def test_a_segmentation_refers_to_its_image_and_keeps_the_patient_only_on_request(tmp_path, keep_patient):
    size = (6, 9)
    image = dicom_image(tmp_path / "film.dcm", size)
    entries = {"film": {"Edema": rle.encode(np.eye(*size, dtype=np.uint8)[None])[0]}}
    images = {"film": tmp_path / "film.dcm"}
    folder, found = convert(tmp_path, entries, "dicom", images=images, keep_patient=keep_patient)
    assert found == entries
    seg = pydicom.dcmread(folder / "film.dcm")
    assert seg.StudyInstanceUID == image.StudyInstanceUID
    assert (
        seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
    )
    data = (folder / "film.dcm").read_bytes()
    for word in (b"Doe", b"4711", b"19500101", b"ACC-77", b"20200101"):
        assert (word in data) == keep_patient
    assert b"Elsewhere" not in data and b"Roe" not in data


def test_a_dicom_image_of_another_size_is_named(tmp_path):
    dicom_image(tmp_path / "film.dcm", (6, 9))
    with pytest.raises(DataError, match="film.dcm: 6 x 9 pixels"):
        convert(tmp_path, {"film": {"Edema": rle.empty((9, 6))}}, "dicom", images={"film": tmp_path / "film.dcm"})


def test_dicom_files_that_are_no_segmentations_are_named(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    dicom_image(folder / "a.dcm", (3, 3))
    with pytest.raises(DataError, match="a.dcm: no segmentation"):
        dict(mask_formats.read("dicom", folder, {}, TASKS))
    (folder / "a.dcm").write_bytes(b"not DICOM")
    with pytest.raises(DataError, match="a.dcm"):
        dict(mask_formats.read("dicom", folder, {}, TASKS))


# Names


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
    entries = {name: {"../Ede/ma": rle.empty((2, 3))} for name in HOSTILE if name not in ("a__b", "")}
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
    ],
)
def test_ids_of_paths(path, expected):
    assert image_folder.image_id(Path(path)) == expected


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
