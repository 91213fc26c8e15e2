"""Counts of masks by task, by hand."""

import numpy as np

from chexseg.data import rle, task_counts

FULL, NONE = rle.encode(np.stack([np.ones((3, 4)), np.zeros((3, 4))]))


def test_with_without_and_unknown():
    masks = {"a": {"Edema": FULL, "Fracture": NONE}, "b": {"Edema": NONE}, "c": {}, "d": {"Edema": FULL, "Other": FULL}}
    counts = task_counts.count(masks.values(), ("Edema", "Fracture"))
    assert counts.tolist() == [[2, 1, 1], [0, 1, 3]]
    assert task_counts.summary(masks, ("Edema", "Fracture")).splitlines() == [
        "Edema     2 with, 1 without, 1 unknown",
        "Fracture  0 with, 1 without, 3 unknown",
    ]


def test_what_never_happens_is_not_told():
    assert task_counts.summary({"a": {"Edema": FULL}}, ("Edema",)) == "Edema  1 with"
    assert task_counts.summary({"a": {"Edema": FULL}, "b": {"Edema": NONE}}, ("Edema",)) == "Edema  1 with, 1 without"
    assert task_counts.summary({}, ("Edema",)) == "Edema  0 with"
