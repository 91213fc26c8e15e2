"""The picture: which images it shows, outlines, captions."""

import numpy as np

from chexseg.data import rle
from chexseg.evaluation import figure
from tests.evaluation.masks import TASKS, entry, name


def test_choose_shows_as_many_tasks_as_it_can():
    truth = {
        name(1): entry(9, 9, 0),
        name(2): entry(9, 9, 0),
        name(3): entry(0, 0, 9),
        name(4): entry(0, 0, 0),
        name(5): {"Edema": entry(9)["Edema"]},
    }
    assert figure.choose(truth, list(truth), TASKS, 2) == [name(1), name(3)]
    chosen = figure.choose(truth, list(truth), TASKS, 9)
    assert sorted(chosen) == list(truth) and chosen[-1] == name(4)


def test_choose_takes_another_patient_while_there_is_one():
    second = name(1).replace("study1", "study2")
    truth = {name(1): entry(9, 9, 9), second: entry(9, 9, 9), name(2): entry(0, 0, 9)}
    assert figure.choose(truth, list(truth), TASKS, 3) == [name(1), name(2), second]


def test_outlines_and_tints():
    base = np.full((40, 40, 3), 128, np.uint8)
    square, same, none = np.zeros((3, 40, 40), np.uint8)
    square[10:31, 10:31] = same[10:31, 10:31] = 1
    red, blue = np.array([1.0, 0, 0]), np.array([0, 0, 1.0])
    picture = figure.outlined(base, {"a": square}, {"a": red})
    np.testing.assert_allclose(picture[20, 20] / 255, (1 - figure.FILL) * 0.5 + figure.FILL * red, atol=1 / 255)
    np.testing.assert_array_equal(picture[10, 20], 255 * red)
    assert picture[35, 35].tolist() == [128] * 3
    both = figure.outlined(base, {"a": square, "b": same}, {"a": red, "b": blue})
    edge = both[10, 12:29]
    assert (edge[:, 0] > 230).any() and (edge[:, 2] > 230).any()  # dashes: both colours are seen
    assert (figure.outlined(base, {"a": none}, {"a": red}) == 128).all()


def test_panels_say_what_there_is_not():
    base = np.full((30, 40, 3), 0.5)
    colours = {task: np.ones(3) for task in TASKS}
    truth = {task: coded for task, coded in entry(400, 200, 0).items() if rle.area([coded])[0]}
    column = figure.Column("x", {name(1): entry(200, 200, 90), name(2): entry(0, 0, 0)}, against_truth=True)
    panel = figure._panel(column, name(1), base, truth, colours)
    assert panel.note == "IoU 0.75" and panel.tasks == set(TASKS)
    assert figure._panel(column, name(2), base, truth, colours).note == "IoU 0.00"
    larger = figure.Column("x", {name(1): entry(400 * 4, 200 * 4, size=(60, 80))}, against_truth=True)
    assert figure._panel(larger, name(1), base, truth, colours).note == "IoU 1.00"  # scored at the truth's size
    wire = {"Edema": rle.encode(np.eye(1, 1200, 7, dtype=np.uint8).repeat(1200, 0)[None])[0]}  # lost at the panel's
    column_of_wires = figure.Column("x", {name(1): wire}, against_truth=True)
    assert figure._panel(column_of_wires, name(1), base, wire, colours).note == "IoU 1.00"
    assert figure._panel(figure.Column("x", {name(2): entry(0)}), name(2), base, truth, colours).note == "empty"
    missing = figure._panel(column, name(3), base, truth, colours)
    assert missing.note == "no mask" and not missing.tasks and missing.picture.max() < 0.2
    assert figure._panel(figure.Column("x", maps={}), name(1), base, truth, colours).note == "no map"


def test_thin_structures_survive_the_reduction():
    wire = np.zeros((2400, 2000), np.uint8)
    wire[:, 1000:1003] = 1  # 0.6 pixels of the panel
    small = figure._resized(rle.encode(wire[None])[0], (480, 400))
    assert small.any(1).all() and small.sum() < 480 * 4
