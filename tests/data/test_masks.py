import json
import multiprocessing
import pickle

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageDraw
from pycocotools import mask as coco
from scipy.ndimage import binary_fill_holes

from chexseg.classifier import saliency_masks
from chexseg.data import json_lines, mask_files, rle
from chexseg.data.images import fit_shape, fit_square, upsample
from chexseg.errors import DataError

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")

SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 24))


@st.composite
def mask_stacks(draw, max_masks=4):
    shape = draw(SHAPES)
    return draw(arrays.arrays(bool, (draw(st.integers(1, max_masks)), *shape)))


# Run lengths


def test_encode_by_hand():
    # Columns from the left: [1, 0], [1, 1], [0, 0] -> runs 0, 1, 1, 2, 2.
    mask = np.array([[[1, 1, 0], [0, 1, 0]]])
    (coded,) = rle.encode(mask)
    assert coded == {"size": [2, 3], "counts": "01111"}  # from the fourth on, less the number two before
    assert rle.run_lengths(coded).tolist() == [0, 1, 1, 2, 2]
    assert rle.area([coded]).tolist() == [3]


@given(mask_stacks())
def test_encode_and_decode_are_pycocotools(stack):
    rles = rle.encode(stack)
    for mask, coded in zip(stack, rles, strict=True):
        reference = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert coded["counts"].encode() == reference["counts"]
        assert rle.check(coded, "here") == coded
    np.testing.assert_array_equal(rle.decode(rles), stack)


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (320, 319)])
def test_empty_and_full_masks(shape, value):
    (coded,) = rle.encode(np.full((1, *shape), value))
    assert rle.area([coded])[0] == value * shape[0] * shape[1]
    assert rle.run_lengths(coded).tolist() == ([0] if value else []) + [shape[0] * shape[1]]
    if not value:
        assert rle.empty(shape) == coded


@given(mask_stacks(max_masks=1))
def test_check_accepts_every_spelling_of_a_mask(stack):
    (coded,) = rle.encode(stack)
    lengths = rle.run_lengths(coded).tolist()
    for counts in (coded["counts"].encode(), lengths, tuple(lengths)):
        assert rle.check({"size": tuple(coded["size"]), "counts": counts}, "here") == coded


@pytest.mark.parametrize(
    "coded",
    [
        None,
        [],
        {"size": [2, 3]},
        {"size": [2], "counts": "6"},
        {"size": [0, 3], "counts": "0"},
        {"size": ["a", 3], "counts": "6"},
        {"size": [2, 3], "counts": "5"},
        {"size": [2, 3], "counts": "7"},
        {"size": [2, 3], "counts": ""},
        {"size": [2, 3], "counts": "0111"},
        {"size": [2, 3], "counts": "V"},
        {"size": [2, 3], "counts": "é6"},
        {"size": [2, 3], "counts": "oooooooo0"},
        {"size": [2, 3], "counts": "08N"},
        {"size": [2, 3], "counts": [5]},
        {"size": [2, 3], "counts": [7, -1]},
        {"size": [2, 3], "counts": ["6"]},
        {"size": [2, 3], "counts": 6},
    ],
)
def test_check_names_the_place_of_a_bad_mask(coded):
    with pytest.raises(DataError, match="^file: image: task: "):
        rle.check(coded, "file: image: task")


# Resizing


@given(mask_stacks(), SHAPES)
def test_resize_is_nearest_on_the_decoded_mask(stack, size):
    rows = np.floor((np.arange(size[0]) + 0.5) * (stack.shape[1] / size[0]) + 1e-9).astype(int)
    columns = np.floor((np.arange(size[1]) + 0.5) * (stack.shape[2] / size[1]) + 1e-9).astype(int)
    np.testing.assert_array_equal(rle.resize(rle.encode(stack), size), stack[:, rows][:, :, columns])


@given(mask_stacks(max_masks=1), st.integers(1, 30))
def test_fit_moves_a_mask_as_pil_moves_it(stack, size):
    height, width = fit_shape(*stack.shape[1:], size)
    expected = np.zeros((size, size), np.uint8)
    picture = Image.fromarray(stack[0].astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    expected[:height, :width] = np.asarray(picture)
    # Where a pixel's centre falls on the border of two, ours is exact and PIL's float sum may not be.
    rows, columns = (
        (2 * np.arange(size) + 1) * source % (2 * count) != 0
        for source, count in zip(stack.shape[1:], (height, width), strict=True)
    )
    fitted = rle.fit(rle.encode(stack), size)[0]
    np.testing.assert_array_equal(fitted[rows][:, columns], expected[rows][:, columns])


def test_fit_follows_the_image():
    # A bright rectangle and its mask still coincide after both are fitted: within the blurred edge.
    image = np.zeros((700, 500), np.uint8)
    image[210:490, 100:300] = 255
    fitted, (mask,) = fit_square(image, 100), rle.fit(rle.encode(image[None]), 100)
    np.testing.assert_array_equal(mask, fitted > 127)
    assert (np.flatnonzero(mask.any(0))[[0, -1]] == (14, 42)).all()  # 100/7 = 14.3 to 300/7 = 42.9
    assert not mask[:, 71:].any()


def test_fit_without_masks():
    assert rle.fit([], 8).shape == (0, 8, 8)


# Polygons


@given(
    st.lists(
        st.lists(st.tuples(st.floats(-4, 28, width=32), st.floats(-4, 28, width=32)), min_size=2, max_size=8),
        max_size=4,
    ),
    SHAPES,
)
def test_polygons_are_the_union_of_pils(polygons, size):
    expected = np.zeros(size, bool)
    for polygon in polygons:
        canvas = Image.new("1", size[::-1])
        ImageDraw.Draw(canvas).polygon(polygon, outline=1, fill=1)
        expected |= np.asarray(canvas)
    np.testing.assert_array_equal(rle.from_polygons(polygons, size), expected)


def test_polygon_by_hand_includes_its_outline():
    mask = rle.from_polygons([[[1, 1], [3, 1], [3, 2], [1, 2]], [[0, 4]]], (5, 6))
    assert mask.tolist() == [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
    ]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(2, 60), st.integers(2, 60)), min_size=3, max_size=3, unique=True))
def test_polygon_agrees_with_pycocotools_up_to_the_outline(triangle):
    # COCO's fill has no outline: ours contains it, and exceeds it by no more than the outline.
    flat = [[c for point in triangle for c in point]]
    inner = coco.decode(coco.merge(coco.frPyObjects(flat, 64, 64))).astype(bool)
    ours = rle.from_polygons([triangle], (64, 64)).astype(bool)
    grown = cv2.dilate(inner.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    outline = np.zeros((64, 64), np.uint8)
    cv2.polylines(outline, [np.array(triangle)], True, 1, thickness=3)
    assert not (inner & ~ours & (outline == 0)).any()
    assert not (ours & ~grown & (outline == 0)).any()


@pytest.mark.parametrize("bad", [[[1, 2]], [[["a", 1]]], 5, [[[1, 2, 3]]], [[[float("nan"), 1], [1, 1]]], [None]])
def test_bad_polygon_is_named(bad):
    with pytest.raises(DataError, match="^here: "):
        rle.from_polygons(bad, (4, 4), "here")


# Masks from saliency maps


def naive_mask(saliency, size, mode):
    """The original, in its own words: cv2's contours, PIL's polygon fill."""
    large = torch.nn.functional.interpolate(torch.from_numpy(saliency)[None, None], size, mode="bilinear")
    image = np.uint8(255 * large.squeeze().numpy())
    binary = cv2.threshold(image, 0, int(image.max()), cv2.THRESH_OTSU)[1]
    canvas = Image.new("1", size[::-1])
    for contour in cv2.findContours(binary, mode, cv2.CHAIN_APPROX_SIMPLE)[0]:
        points = [tuple(map(int, point[0])) for point in contour]
        if len(points) > 1:
            ImageDraw.Draw(canvas).polygon(points, outline=1, fill=1)
        else:
            ImageDraw.Draw(canvas).point(points, 1)
    return np.asarray(canvas).astype(np.uint8)


@pytest.mark.parametrize("mode", [cv2.RETR_EXTERNAL, cv2.RETR_TREE])
@pytest.mark.parametrize("seed", range(10))
def test_threshold_maps_is_the_original(seed, mode):
    rng = np.random.default_rng(seed)
    maps = rng.random((3, 7, 5), dtype=np.float32) ** 3
    maps[0] *= 0.05  # as faint as p(1-p) makes a map
    found = saliency_masks.threshold_maps(maps, (61, 47))
    for mask, saliency in zip(found, maps, strict=True):
        np.testing.assert_array_equal(mask, naive_mask(saliency, (61, 47), mode))


def test_chexlocalize_stretches_each_map_first():
    rng = np.random.default_rng(1)
    maps = rng.random((2, 6, 6), dtype=np.float32)
    faint = maps * 0.001 + 0.3
    found = saliency_masks.threshold_maps(faint, (6, 6), protocol="chexlocalize")
    for mask, saliency in zip(found, faint, strict=True):
        stretched = (saliency - saliency.min()) / (saliency.max() - saliency.min())
        np.testing.assert_array_equal(mask, naive_mask(stretched, (6, 6), cv2.RETR_TREE))
        assert 0 < mask.sum() < 36
    assert not saliency_masks.threshold_maps(maps * 0.003, (6, 6)).any()  # chexseg: uint8(255 * map) is 0


def test_chexlocalize_thresholds_and_cutoffs():
    maps = np.tile(np.float32([[0, 1, 2, 4]]), (4, 1, 1))
    found = saliency_masks.threshold_maps(
        maps,
        (1, 4),
        protocol="chexlocalize",
        thresholds=np.array([0.25, 0.2, np.nan, 0.2]),
        probabilities=np.array([0.9, 0.5, 0.9, 0.9]),
        cutoffs=np.array([0.5, 0.5, np.nan, np.nan]),
    )
    # 0, 0.25, 0.5, 1: strictly above; a probability must exceed its cut-off; Otsu splits 0 .25 .5 | 1.
    assert found[:, 0].tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 1, 1]]


def test_two_steps_of_upsampling():
    maps = np.random.default_rng(3).random((1, 4, 4), dtype=np.float32)
    step = upsample(maps, (16, 16))
    np.testing.assert_array_equal(
        saliency_masks.threshold_maps(maps, (50, 40), network_size=(16, 16)),
        saliency_masks.threshold_maps(step, (50, 40)),
    )
    assert (saliency_masks.threshold_maps(maps, (50, 40)) != saliency_masks.threshold_maps(step, (50, 40))).any()


@pytest.mark.parametrize("protocol", saliency_masks.PROTOCOLS)
@pytest.mark.parametrize("value", [0, np.nan, np.inf, -np.inf, -1])
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (10, 10)])
def test_a_map_without_activation_gives_an_empty_mask(protocol, value, shape):
    found = saliency_masks.threshold_maps(np.full((2, *shape), value, np.float32), (20, 31), protocol=protocol)
    assert found.shape == (2, 20, 31) and not found.any()


@pytest.mark.parametrize("protocol", saliency_masks.PROTOCOLS)
def test_one_nan_does_not_spread(protocol):
    maps = np.zeros((1, 8, 8), np.float32)
    maps[0, 2:5, 2:5] = 0.8
    clean = saliency_masks.threshold_maps(maps, (32, 32), protocol=protocol)
    maps[0, 7, 7] = np.nan
    np.testing.assert_array_equal(saliency_masks.threshold_maps(maps, (32, 32), protocol=protocol), clean)
    assert clean.any()


def test_a_map_above_one_is_clipped():
    maps = np.float32([[[0, 0, 1.01, 1.2]]])
    assert saliency_masks.threshold_maps(maps, (1, 4)).tolist() == [[[0, 0, 1, 1]]]


@given(arrays.arrays(np.uint8, SHAPES, elements=st.sampled_from([0, 200])))
def test_otsu_separates_two_levels_and_fills_holes(image):
    np.testing.assert_array_equal(saliency_masks.otsu(image), binary_fill_holes(image == 200))


def test_otsu_keeps_a_single_pixel_and_fills_a_ring():
    image = np.zeros((7, 9), np.uint8)
    image[1:6, 1:6] = 200
    image[2:5, 2:5] = 0
    image[3, 7] = 200
    expected = np.zeros((7, 9), np.uint8)
    expected[1:6, 1:6] = expected[3, 7] = 1
    np.testing.assert_array_equal(saliency_masks.otsu(image), expected)


def test_masks_do_not_depend_on_the_chunk(monkeypatch):
    maps = np.random.default_rng(4).random((5, 6, 6), dtype=np.float32)
    whole = saliency_masks.threshold_maps(maps, (30, 40))
    monkeypatch.setattr(saliency_masks, "MAX_UPSAMPLED", 2 * 30 * 40)
    np.testing.assert_array_equal(saliency_masks.threshold_maps(maps, (30, 40)), whole)


def test_read_task_values(tmp_path):
    path = tmp_path / "cutoffs.csv"
    path.write_text("prob_threshold,mIoU,task\n0.3,0.2,Lung Opacity\n,0.1,Edema\n")
    values = saliency_masks.read_task_values(
        path, "prob_threshold", ("Edema", "Airspace Opacity", "Fracture"), {"Lung Opacity": "Airspace Opacity"}
    )
    np.testing.assert_array_equal(values, [np.nan, 0.3, np.nan])
    for text, message in [
        ("threshold\n1\n", "no column 'task'"),
        ("threshold,task\nx,Edema\n", "line 2: 'x'"),
        ("threshold,task\n1,Edema\n2,Edema\n", "'Edema' occurs twice"),
        ("", "not a CSV file"),
    ]:
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            saliency_masks.read_task_values(path, "threshold", ("Edema",), {})
    with pytest.raises(DataError, match="no such file"):
        saliency_masks.read_task_values(tmp_path / "none.csv", "threshold", ("Edema",), {})


# Files of masks

ENTRIES = [
    (
        f"patient{i:05d}_study1_view1_frontal",
        {"Edema": rle.encode(np.eye(4 + i)[None])[0], "Fracture": rle.empty((4 + i, 4 + i))},
    )
    for i in range(5)
]


def test_written_file_is_plain_json_with_one_image_a_line(tmp_path):
    path = tmp_path / "masks.json"
    assert mask_files.write(path, iter(ENTRIES)) == 5
    assert json.loads(path.read_text()) == dict(ENTRIES)
    lines = path.read_text().splitlines()
    assert lines[0] == "{" and lines[-1] == "}" and len(lines) == 7
    assert lines[1].startswith('"patient00000_study1_view1_frontal": {"Edema": {"size": [4, 4], "counts": "')
    assert [line[-1] for line in lines[1:6]] == [",", ",", ",", ",", "}"]


@pytest.mark.parametrize("split", [0, 1, 3, 5])
def test_merged_parts_are_the_file_written_at_once(tmp_path, split):
    mask_files.write(tmp_path / "whole.json", ENTRIES)
    parts = [tmp_path / "a", tmp_path / "b"]
    mask_files.write_part(ENTRIES[:split], parts[0])
    mask_files.write_part(ENTRIES[split:], parts[1])
    mask_files.merge_parts(parts, tmp_path / "merged.json")
    assert (tmp_path / "merged.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


@pytest.mark.parametrize("kind", ["ours", "one line", "indented", "indent 0", "bytes counts as list"])
def test_any_layout_reads_the_same(tmp_path, kind):
    path, content = tmp_path / "masks.json", dict(ENTRIES)
    if kind == "ours":
        mask_files.write(path, ENTRIES)
    elif kind == "bytes counts as list":
        path.write_text(
            json.dumps(
                {
                    i: {t: {"size": r["size"], "counts": rle.run_lengths(r).tolist()} for t, r in e.items()}
                    for i, e in ENTRIES
                }
            )
        )
    else:
        path.write_text(json.dumps(content, indent={"one line": None, "indented": 2, "indent 0": 0}[kind]))
    read = mask_files.MaskFile(path)
    assert bool(read._whole) == (kind != "ours")  # ours is never read whole
    assert dict(read) == content and list(read) == list(content) and len(read) == 5
    assert ENTRIES[3][0] in read and "nobody" not in read
    with pytest.raises(KeyError):
        read["nobody"]


def test_empty_file_of_masks(tmp_path):
    path = tmp_path / "masks.json"
    assert mask_files.write(path, []) == 0
    assert dict(mask_files.MaskFile(path)) == {} and json.loads(path.read_text()) == {}


def test_odd_ids_survive(tmp_path):
    names = ['a": {"b', "ä\n\\", "", 'x": {}', "{"]
    entries = [(name, {name: rle.empty((2, 2))}) for name in names]
    mask_files.write(tmp_path / "masks.json", entries)
    read = mask_files.MaskFile(tmp_path / "masks.json")
    assert list(read.items()) == entries and not read._whole


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


def first_area(masks_file):
    return int(rle.area([masks_file[ENTRIES[2][0]]["Edema"]])[0])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_open_file_crosses_fork_and_spawn(tmp_path, method):
    mask_files.write(tmp_path / "masks.json", ENTRIES)
    read = mask_files.MaskFile(tmp_path / "masks.json")
    assert first_area(read) == 6
    assert pickle.loads(pickle.dumps(read))[ENTRIES[0][0]] == ENTRIES[0][1]
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(first_area, [read] * 3) == [6] * 3


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


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "masks.json"
    mask_files.write(path, ENTRIES[:1])
    before = path.read_bytes()

    def failing():
        yield ENTRIES[0]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        mask_files.write(path, failing())
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["masks.json"]


SQUARE = [[0, 0], [2, 0], [2.5, 2], [0, 2]]
OUTLINES = {
    "a": {"img_size": [5, 6], "Lung Opacity": [SQUARE], "Airspace Opacity": [SQUARE]},
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
        ({"a": {"img_size": [0, 4]}}, "a: img_size cannot be 0 x 4"),
        ({"a": {"img_size": [3, 4], "Edema": 5}}, "a: Edema: '5' is not a list"),
    ],
)
def test_bad_polygons_are_named(tmp_path, layout, content, message):
    path = tmp_path / "gt.json"
    write_outlines(path, layout, content)
    with pytest.raises(DataError, match=f"gt.json: {message}"):
        dict(mask_files.PolygonFile(path))


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
