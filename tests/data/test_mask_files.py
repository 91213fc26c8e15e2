"""Masks and polygons as files: what goes in comes out, and what is damaged is named."""

import json
import pickle

import numpy as np
import pytest

from chexseg.data import json_lines, mask_columns, mask_files, rle
from chexseg.errors import DataError

ENTRIES = [
    (
        f"patient{i:05d}_study1_view1_frontal",
        {"Edema": rle.encode(np.eye(4 + i)[None])[0], "Fracture": rle.empty((4 + i, 4 + i))},
    )
    for i in range(5)
]


@pytest.mark.parametrize("split", [0, 1, 3, 5])
def test_merged_parts_are_the_file_written_at_once(tmp_path, split):
    mask_files.write(tmp_path / "whole.json", ENTRIES)
    parts = [tmp_path / "a", tmp_path / "b"]
    shards = mask_files.MaskShards()
    shards.write(ENTRIES[:split], parts[0])
    shards.write(ENTRIES[split:], parts[1])
    shards.merge(parts, tmp_path / "merged.json")
    assert (tmp_path / "merged.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_empty_file_of_masks(tmp_path):
    path = tmp_path / "masks.json"
    assert mask_files.write(path, []) == 0
    assert dict(mask_files.MaskFile(path)) == {} and json.loads(path.read_text()) == {}


def test_aliases(tmp_path):
    coded = rle.empty((2, 2))
    mask_files.write(
        tmp_path / "masks.json",
        [("a", {"Lung Opacity": coded}), ("b", {"Lung Opacity": coded, "Airspace Opacity": coded})],
    )
    read = mask_files.MaskFile(tmp_path / "masks.json", {"Lung Opacity": "Airspace Opacity"})
    assert read["a"] == {"Airspace Opacity": coded}
    with pytest.raises(DataError, match="b: Airspace Opacity occurs twice"):
        read["b"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "masks.json: the file is empty"),
        ("{\n", "masks.json: not whole JSON"),
        ('{\n"a": {},\n"b": {"Edema"', "masks.json: not whole JSON"),
        ('{\n"a": {"Edema}\n}\n', "masks.json: a: damaged line"),
        ("[1]", "expected an object of image ids, found a list"),
        ('{"a": 1}', "a: '1' is not an object"),
        ('{"a": {"Edema": 3}}', "a: Edema: '3' is not a mask"),
        ('{\n"a": {"Edema": {"size": [2, 2], "counts": "3"}}\n}\n', "masks.json: a: Edema: its run lengths"),
        ('{\n"a": {},\n"a": {}\n}\n', "masks.json: a occurs twice"),
        ('{"a": {}, "a": {}}', "masks.json: a occurs twice"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    path = tmp_path / "masks.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        dict(mask_files.MaskFile(path))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="none.json: no such masks file"):
        mask_files.MaskFile(tmp_path / "none.json")


SQUARE = [[0, 0], [2, 0], [2.5, 2], [0, 2]]
OUTLINES = {
    "a": {"img_size": [5, 6], "Lung Opacity": [SQUARE, SQUARE]},
    "b": {"img_size": [3, 4]},
    'c": {"': {"img_size": [3, 4], "Edema": []},
}


def write_outlines(path, layout, content=OUTLINES):
    if layout != "ours":
        path.write_text(json.dumps(content, indent={"one line": None, "indented": 2}[layout]))
        return
    with json_lines.writer(path) as add:
        for image_id, entry in content.items():
            add(image_id, entry)


@pytest.mark.parametrize("layout", ["ours", "one line", "indented"])
def test_polygons_of_any_layout(tmp_path, layout):
    path = tmp_path / "gt.json"
    write_outlines(path, layout)
    assert json.loads(path.read_text()) == OUTLINES
    read = mask_files.PolygonFile(path, {"Lung Opacity": "Airspace Opacity"})
    assert bool(read._whole) == (layout != "ours")
    for copy in (read, pickle.loads(pickle.dumps(read))):
        assert list(copy.items()) == [
            ("a", ((5, 6), {"Airspace Opacity": [SQUARE, SQUARE]})),
            ("b", ((3, 4), {})),
            ('c": {"', ((3, 4), {"Edema": []})),
        ]


@pytest.mark.parametrize("layout", ["ours", "one line"])
@pytest.mark.parametrize(
    "content, message",
    [
        ({"a": {}}, "a: no img_size"),
        ({"a": {"img_size": [0, 4]}}, "a: img_size: 0 x 4 pixels cannot be"),
        ({"a": {"img_size": [3, 4], "Edema": 5}}, "a: Edema: '5' is not a list"),
        ({"a": {"img_size": [3, 4], "Edema": [], "Oedema": []}}, "a: Edema occurs twice"),
    ],
)
def test_bad_polygons_are_named(tmp_path, layout, content, message):
    path = tmp_path / "gt.json"
    write_outlines(path, layout, content)
    with pytest.raises(DataError, match=f"gt.json: {message}"):
        dict(mask_files.PolygonFile(path, {"Oedema": "Edema"}))


@pytest.mark.parametrize(
    "text, message",
    [
        ('{\n"a": {"img_size": [3, 4]},\n"b": {"img_size": [3, 4], "Edema": [[[0, 0]}\n}\n', "b: damaged line"),
        ('{\n"a": {"img_size": [3, 4]},\n"b": {"img_size"', "not whole JSON"),
        ('{\n"a": {"img_size": [3, 4]},\n"a": {"img_size": [3, 4]}\n}\n', "a occurs twice"),
        ("[]", "found a list"),
        ("", "the file is empty"),
    ],
)
def test_a_damaged_polygon_file_is_named(tmp_path, text, message):
    path = tmp_path / "gt.json"
    path.write_text(text)
    with pytest.raises(DataError, match=f"gt.json: .*{message}"):
        dict(mask_files.PolygonFile(path))
    path.unlink()
    with pytest.raises(DataError, match="gt.json: no such annotation file"):
        mask_files.PolygonFile(path)


def test_a_file_read_in_blocks_is_the_file_read_one_by_one(tmp_path):
    """Lines of our layout, and lines that are as valid but look otherwise: escapes, other tasks, other blanks, none."""
    rng, entries = np.random.default_rng(0), {}
    for i in range(200):
        stack = rng.random((3, 40, 50)) < rng.choice([0, 0.01, 0.4], (3, 1, 1))
        tasks = [("Edema", "Lung Opacity", "Fracture (old)"), ("Edema",), ("\u00d6dem", "a~b", 'a"b')][i % 3]
        entries[f"image{i}"] = dict(zip(tasks, rle.encode(stack), strict=False))
    entries["none"] = {}
    path = tmp_path / "masks.json"
    mask_files.write(path, entries.items())
    text = path.read_text().replace('"image3": {"Edema": {"size": [40, 50]', '"image3": {"Edema": {"size": [40,50]')
    path.write_text(text)
    file = mask_files.MaskFile(path, {"Lung Opacity": "Airspace Opacity"})
    order = rng.permutation(list(file)).tolist()
    assert list(file.read(order)) == [file[image_id] for image_id in order]
    tasks = ("Edema", "a~b", "Airspace Opacity", "Nothing", "Edema")
    columns = list(mask_columns.read(file, order, tasks))
    slow = list(mask_columns.read({image_id: file[image_id] for image_id in file}, order, tasks))
    for found, expected in zip(columns, slow, strict=True):
        assert (found.area == expected.area).all() and (found.size == expected.size).all()
        masks = found.masks(expected.area >= 0)
        assert [rle.check(mask, "mask") for mask in masks] == expected.masks(expected.area >= 0)
    assert list(file.show(order)) == [any(rle.area([m])[0] for m in file[i].values()) for i in order]
    mask_files.write(tmp_path / "again.json", zip(file, file.read(file), strict=True))
    mask_files.write(tmp_path / "one by one.json", file.items())
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "one by one.json").read_bytes()
    assert any("\\" in mask["counts"] for entry in entries.values() for mask in entry.values())
    assert [type(mask) for mask in next(file.read(["image0"])).values()] == [rle.Vetted] * 3
    (tmp_path / "other.json").write_text(json.dumps(entries, indent=1))
    assert list(mask_files.MaskFile(tmp_path / "other.json").read(entries)) == list(entries.values())


@pytest.mark.parametrize("line", ['{"Edema": %s, "Edema": %s}', '{"Airspace Opacity": %s, "Lung Opacity": %s}'])
def test_what_is_refused_one_by_one_is_refused_in_blocks(tmp_path, line):
    good, damaged = (json.dumps({"size": [2, 2], "counts": counts}) for counts in ("4", "5"))
    for masks in ((good, good), (good, damaged)):
        path = tmp_path / "masks.json"
        path.write_text('{\n"a": {"Edema": ' + good + '},\n"b": ' + line % masks + "\n}\n")
        file = mask_files.MaskFile(path, {"Lung Opacity": "Airspace Opacity"})
        for read in (lambda file=file: file["b"], lambda file=file: list(file.read(["a", "b"]))):
            with pytest.raises(DataError, match="b: |b.*twice|twice"):
                read()
