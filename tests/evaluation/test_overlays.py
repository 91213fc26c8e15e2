"""Pictures of films with outlines: colours by task, a legend of what is shown, a sheet of many."""

import numpy as np
from PIL import Image

from chexseg.evaluation import overlays
from chexseg.evaluation.figure import COLOURS

TASKS = [f"Task {number}" for number in range(10)]


def colour(task):
    return np.array([int(COLOURS[TASKS.index(task)][i : i + 2], 16) for i in (1, 3, 5)])


def film(height=60, width=90):
    return np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)


def test_an_outline_has_the_colour_of_its_task():
    mask = np.zeros((60, 90), bool)
    mask[20:40, 30:60] = True
    picture = overlays.overlay(film(), {"Task 3": mask, "Task 5": mask & False}, TASKS)
    assert picture.dtype == np.uint8 and picture.shape[1:] == (90, 3) and len(picture) > 60
    edge = picture[20, 35:55].astype(int)
    assert np.abs(edge - colour("Task 3")).max() < 40
    strip = picture[60:].reshape(-1, 3).astype(int)
    assert (np.abs(strip - colour("Task 3")).sum(1) == 0).any()
    assert not (np.abs(strip - colour("Task 5")).sum(1) == 0).any()


def test_a_film_without_a_finding_says_so():
    empty, other = (overlays.overlay(film(width=200), {}, TASKS), overlays.legend(["Task 1"], TASKS, 200))
    assert empty[60:].max() > 100 and empty[60:].shape == other.shape and (empty[60:] != other).any()


def test_the_contact_sheet_holds_every_film(tmp_path):
    pictures = {}
    for number in range(7):
        path = tmp_path / f"{number}.png"
        overlays.save(path, overlays.overlay(np.full((50, 70), 200, np.uint8), {}, TASKS))
        pictures["an id that is much too long for its cell " * 3 + str(number)] = path, (50, 70)
    sheet = overlays.contact_sheet(pictures, TASKS, 100)
    overlays.save(tmp_path / "sheet.png", sheet)
    with Image.open(tmp_path / "sheet.png") as read:
        assert read.size == sheet.shape[1::-1]
    assert not list(tmp_path.glob("*.tmp"))


def test_films_of_a_sheet_are_evenly_spread():
    ids = [str(i) for i in range(1000)]
    assert overlays.chosen(ids[:5]) == ids[:5]
    few = overlays.chosen(ids, 10)
    assert few == [str(i) for i in range(0, 1000, 100)]
