"""Sources per task: the choice by a table, and the masks that follow from it, by hand."""

import numpy as np
import pytest

from chexseg.data import leak_guard, mask_files, rle
from chexseg.data.mask_files import MaskFile
from chexseg.errors import DataError
from chexseg.irnet import source_choice
from chexseg.irnet.films import TrainFilms
from chexseg.irnet.gates import ABSENT, PRESENT, UNKNOWN, OpenGate
from chexseg.irnet.source_choice import Choice, ChosenMasks, RelationMasks
from tests.irnet.six_films import IDS, SIZE, TASKS, present

TABLE = """source,gate,task,iou,lower,upper,precision,recall,n_images,n_positive
map_otsu,none,Edema,0.9,,,,,9,3
map_otsu,label,Edema,0.20,,,,,9,3
walk,label,Edema,0.30,,,,,9,3
teacher,label,Edema,0.30,,,,,9,3
map_otsu,label,Lung Opacity,0.05,,,,,9,3
walk,label,Lung Opacity,0.08,,,,,9,3
map_otsu,label,Fracture,,,,,,9,0
map_otsu,label,mIoU,0.12,,,,,9,3
secret,label,Edema,0.99,,,,,9,3
"""
NAMES = ("map_otsu", "walk", "teacher")


@pytest.fixture
def table(tmp_path):
    (tmp_path / "quality.csv").write_text(TABLE)
    return tmp_path / "quality.csv"


def test_the_best_source_that_is_at_hand(table):
    found = source_choice.choose(
        table, NAMES, ("Edema", "Airspace Opacity", "Fracture"), aliases={"Lung Opacity": "Airspace Opacity"}
    )
    assert found[0] == Choice("Edema", "walk", 0.3)  # the first of equals; `secret` is not at hand
    assert found[1] == Choice("Airspace Opacity", None, 0.08)  # below the floor
    assert found[2].source is None and np.isnan(found[2].iou)
    low = source_choice.choose(table, ("map_otsu",), ("Edema", "Lung Opacity"), floor=0.05)
    assert low == [Choice("Edema", "map_otsu", 0.2), Choice("Lung Opacity", "map_otsu", 0.05)]
    assert source_choice.choose(table, NAMES, ("Edema",), gate="none") == [Choice("Edema", "map_otsu", 0.9)]


@pytest.mark.parametrize(
    ("text", "gate", "message"),
    [
        (None, "labels", "no such file; make it with pseudo_label_quality.py"),
        ("source,gate,task\n", "labels", "no column 'iou'"),
        (TABLE, "probability", "no row of gate probability and any source of map_otsu, walk, teacher"),
        (TABLE.replace("0.20", "good"), "labels", "map_otsu, Edema: iou 'good' is no number"),
    ],
)
def test_wrong_tables(tmp_path, text, gate, message):
    if text:
        (tmp_path / "quality.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        source_choice.choose(tmp_path / "quality.csv", NAMES, ("Edema",), gate=gate)


class FakeFilms:
    ids, tasks, inputs = ["a", "b"], ("x", "y", "z"), []

    def mask_size(self, row):
        return (2, 3)

    def fingerprint(self, row):
        return self.ids[row]


class FakeGate:
    def __init__(self, *rows):
        self.rows = np.array(rows, np.int8)

    def decide(self, ids, tasks):
        return self.rows


@pytest.fixture
def files(tmp_path):
    """Two sources of masks of two films: the first pixel, or nothing."""
    pixel, nothing = rle.encode(np.array([[[1, 0, 0], [0, 0, 0]], np.zeros((2, 3))]))
    mask_files.write(tmp_path / "one.json", [("a", {"x": pixel, "y": pixel, "z": nothing}), ("b", {"x": nothing})])
    mask_files.write(tmp_path / "two.json", [("a", {"x": nothing, "y": nothing, "z": nothing})])
    return {"one": tmp_path / "one.json", "two": tmp_path / "two.json"}


def areas(entry):
    return {task: int(rle.area([mask])[0]) for task, mask in entry.items()}


def test_masks_follow_choice_gate_and_what_sources_know(files):
    choices = [Choice("x", "one", 0.3), Choice("y", "two", 0.3), Choice("z", None, 0.01)]
    gate = FakeGate([PRESENT, PRESENT, PRESENT], [ABSENT, ABSENT, ABSENT])
    chosen = ChosenMasks(FakeFilms(), gate, choices, files, {})
    assert [(name, areas(entry)) for name, entry in chosen.process([0, 1])] == [
        ("a", {"x": 1, "y": 0}),
        ("b", {"x": 0, "y": 0}),  # absent, although the second source lacks the film
    ]
    assert chosen(1)[1]["y"]["size"] == [2, 3]
    strict = ChosenMasks(FakeFilms(), gate, choices, files, {}, contradiction="unknown")
    assert areas(strict(0)[1]) == {"x": 1}  # present, and the second source found nothing
    gate = FakeGate([UNKNOWN, ABSENT, PRESENT], [PRESENT, PRESENT, PRESENT])
    chosen = ChosenMasks(FakeFilms(), gate, choices, files, {})
    assert areas(chosen(0)[1]) == {"y": 0}
    assert areas(chosen(1)[1]) == {"x": 0}  # y: the second source does not know the film


def test_sources_of_a_run(labelled_run, tmp_path):
    masks, stored = RelationMasks(labelled_run), present()
    assert list(masks) == IDS and len(masks) == 6 and IDS[0] in masks and "x" not in masks
    entry = masks[IDS[1]]
    assert list(entry) == list(TASKS) and {tuple(mask["size"]) for mask in entry.values()} == {(SIZE, SIZE)}
    assert (rle.area(list(masks[IDS[0]].values())) == 0).all() and not stored[0].any()
    found = source_choice.own_sources(labelled_run)
    assert found["crf_sure"] == labelled_run / "hdf5_files" / "ir_labels"
    assert source_choice.own_sources(tmp_path) == {}


def test_the_file_of_chosen_masks(labelled_run, files, table, tmp_path, caplog):
    films, output = TrainFilms(labelled_run), labelled_run / "pseudo_seg_labels_encoded_chosen.json"
    masks = {name: dict(zip(TASKS, rle.encode(np.ones((10, SIZE, SIZE))), strict=True)) for name in IDS[:4]}
    mask_files.write(tmp_path / "walk.json", masks.items())
    leak_guard.record(tmp_path / "walk.json", {"trained": ["patient00077"]})
    source_choice.build_chosen(
        labelled_run,
        films,
        OpenGate(),
        table=table,
        files={"walk": tmp_path / "walk.json"},
        gate_options={"gate": "labels"},
        floor=0.1,
        contradiction="empty",
        aliases={},
        shard_size=4,
    )
    found = MaskFile(output)
    assert list(found) == IDS
    assert [sorted(found[name]) for name in IDS] == [["Edema"]] * 4 + [[]] * 2
    assert list(leak_guard.read(output)) == ["walk.json"]
    for path in labelled_run.glob("pseudo_seg_labels_encoded_chosen.json*"):
        path.unlink()
