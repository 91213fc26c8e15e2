"""Files of one image a line: written as a stream, read in any layout, in any process."""

import json
import multiprocessing
import pickle

import numpy as np
import pytest

from chexseg.data import mask_files, rle

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


def test_odd_ids_survive(tmp_path):
    names = ['a": {"b', "ä\\/", "../x", 'x": {}', "{"]
    entries = [(name, {name.strip("ä./\\"): rle.empty((2, 2))} if name[0] != "ä" else {}) for name in names]
    mask_files.write(tmp_path / "masks.json", entries)
    read = mask_files.MaskFile(tmp_path / "masks.json")
    assert list(read.items()) == entries and not read._whole


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
