"""No score of patients that a file was trained or chosen on passes for a test's."""

import json

import pytest

from chexseg.data import leak_guard
from chexseg.errors import DataError


@pytest.fixture
def trained(tmp_path):
    """A network that was trained on a and b and chosen on c, and masks that were made with it and with a threshold
    chosen on d."""
    network, thresholds, masks = (tmp_path / name for name in ("best.pth", "thresholds.csv", "masks.json"))
    leak_guard.record(network, {"trained": ["b", "a", "b"], "epoch and thresholds": {"c"}})
    leak_guard.record(thresholds, {"thresholds": ["d"]})
    leak_guard.inherit(masks, [network, thresholds, None])
    return tmp_path


def test_records_hold_hashes_and_no_ids(trained):
    text = leak_guard.path_of(trained / "best.pth").read_text()
    assert json.loads(text) == {
        "best.pth": {
            "trained": sorted([leak_guard.hashed("a"), leak_guard.hashed("b")]),
            "epoch and thresholds": [leak_guard.hashed("c")],
        }
    }
    assert leak_guard.read(trained / "none.pth") == {}


@pytest.mark.parametrize(
    ("patient", "said"),
    [
        ("a", r"best.pth \(in masks.json\): trained on 1 of the 2 scored patients: a\."),
        ("c", r"best.pth \(in masks.json\): epoch and thresholds on 1 of the 2"),
        ("d", r"thresholds.csv \(in masks.json\): thresholds on 1 of the 2"),
    ],
)
def test_masks_inherit_what_they_were_made_with(trained, patient, said):
    with pytest.raises(DataError, match=said):
        leak_guard.check([trained / "masks.json"], ["z", patient])


def test_a_leak_that_is_allowed_is_told(trained, caplog):
    stamps = leak_guard.check([trained / "best.pth", trained / "thresholds.csv", None], "abcd", allow=True)
    assert stamps == [
        "best.pth: epoch and thresholds on 1 of the 4 scored patients: c",
        "best.pth: trained on 2 of the 4 scored patients: a, b",
        "thresholds.csv: thresholds on 1 of the 4 scored patients: d",
    ]
    assert caplog.text.count("LEAK: ") == 3


def test_other_patients_and_unknown_files_pass(trained, caplog):
    caplog.set_level("INFO")
    assert leak_guard.check([trained / "masks.json"], ["x", "y"]) == [] and not caplog.text
    assert leak_guard.check([trained / "else.json"], ["a"]) == []
    assert "nothing says which patients these were chosen on: else.json" in caplog.text


def test_a_file_made_anew_without_records_loses_its_own(trained):
    leak_guard.inherit(trained / "masks.json", [trained / "unknown.pth"])
    assert leak_guard.read(trained / "masks.json") == {}
    assert leak_guard.check([trained / "masks.json"], ["a"]) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"a": []}', '{"a": {"b": [1]}}', '{"a": {"b": 1}}'])
def test_a_damaged_record_is_refused_by_name(trained, text):
    leak_guard.path_of(trained / "best.pth").write_text(text)
    with pytest.raises(DataError, match="best.pth.chosen_on.json: not a record of patients"):
        leak_guard.check([trained / "best.pth"], ["x"])
