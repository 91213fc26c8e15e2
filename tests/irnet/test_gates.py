"""Which findings a gate lets through."""

import numpy as np
import pytest

import constants
from chexseg.classifier import saliency_maps, saliency_pickles, saliency_store
from chexseg.errors import DataError
from chexseg.irnet.gates import ABSENT, PRESENT, UNKNOWN, LabelGate, OpenGate, ProbabilityGate
from tests.irnet.six_films import IDS, SIZE, TASKS, present


def probable(folder, ids):
    """What the gate by probability lets through, and its files."""
    gate = ProbabilityGate(saliency_store.open_maps(folder), 0.6)
    return gate.decide(ids, TASKS) == PRESENT, gate.inputs


def test_probabilities_come_from_the_store_at_once_or_from_pickles(six_films, tmp_path, monkeypatch):
    folder = six_films / "base" / "train_cams" / constants.MODEL_NAME
    stored, ids = saliency_store.open_maps(folder), [IDS[4], IDS[0], IDS[2]]
    rows = stored.task_rows(TASKS)
    expected = np.stack([stored[name]["probabilities"][rows] >= 0.6 for name in ids])
    (tmp_path / "cams").mkdir()
    for name in IDS:
        image = np.zeros((SIZE, SIZE), np.uint8)
        saliency_pickles.write_pickles(tmp_path / "cams", name, constants.OBSERVATIONS, stored[name], image, None)
    found, files = probable(tmp_path, ids)
    assert np.array_equal(found, expected) and files == []
    (tmp_path / "cams" / f"{ids[1]}_{TASKS[0]}_map.pkl").unlink()
    decided = ProbabilityGate(saliency_store.open_maps(tmp_path), 0.6).decide(ids, TASKS)
    expected_then = np.where(expected, PRESENT, ABSENT)
    expected_then[1, 0] = UNKNOWN
    assert np.array_equal(decided, expected_then)
    monkeypatch.setattr(saliency_maps.SaliencyMaps, "__getitem__", None)  # image by image
    found, files = probable(folder, ids)
    assert np.array_equal(found, expected) and files == [folder / saliency_store.STORE]
    with pytest.raises(DataError, match="no saliency map of patient00007"):
        probable(folder, [IDS[0], "patient00007_study1_view1_frontal", IDS[1]])


@pytest.mark.parametrize("uncertain", ["present", "absent", "unknown"])
def test_labels_decide_and_uncertain_ones_on_request(six_films, uncertain):
    path = six_films / "data" / "CheXpert" / "CheXpert-v1.0" / "train.csv"
    gate = LabelGate(path, constants.OBSERVATIONS, constants.ALIASES, uncertain)
    assert gate.inputs == [path]
    rows = [5, 0, 1]
    found = gate.decide([IDS[row] for row in rows], TASKS)
    expected = np.where(present(uncertain=False), PRESENT, ABSENT)
    expected[2:, 3] = {"present": PRESENT, "absent": ABSENT, "unknown": UNKNOWN}[uncertain]
    assert np.array_equal(found, expected[rows])
    with pytest.raises(DataError, match="patient00009_study1_view1_frontal: no labels"):
        gate.decide(["patient00009_study1_view1_frontal"], TASKS)


def test_a_gate_reads_its_files_when_it_is_asked(tmp_path):
    gate = LabelGate(tmp_path / "none.csv", constants.OBSERVATIONS)
    assert gate.inputs == [tmp_path / "none.csv"]
    with pytest.raises(DataError, match="none.csv: no such file"):
        gate.decide(IDS, TASKS)


def test_an_open_gate():
    assert OpenGate().inputs == []
    assert OpenGate().decide(IDS[:2], TASKS).tolist() == [[PRESENT] * 10] * 2


def test_another_meaning_of_uncertain_is_refused():
    with pytest.raises(ValueError, match="'maybe': expected one of present, absent, unknown"):
        LabelGate("labels.csv", constants.OBSERVATIONS, uncertain="maybe")
