"""A run is known by what its inputs hold and by what each is for, not by where they lie."""

import shutil

import pytest

from chexseg.runtime import provenance


@pytest.fixture
def of(tmp_path):
    """Fingerprint of a run on inputs of these names, each of its own content, in a folder."""
    for name in "ab":
        (tmp_path / name).write_text(name)

    def fingerprint(*names, folder=tmp_path):
        inputs = [name and folder / name for name in names]
        paths = dict(zip(("first_path", "second_path", "third_path"), inputs, strict=False))
        return provenance.fingerprint(provenance.describe({"lr": 1.0} | paths, inputs))

    return fingerprint


@pytest.mark.parametrize(
    ("one", "other"),
    [("ab", "ba"), ("aab", "abb"), (("a", None), (None, "a")), (("a", None, "b"), ("a", "b", None))],
    ids=["exchanged", "one file in two roles", "the other one is absent", "absent between"],
)
def test_the_role_of_an_input_counts(of, one, other):
    assert of(*one) == of(*one) != of(*other)


def test_where_inputs_lie_does_not_count(of, tmp_path):
    (tmp_path / "0").mkdir()
    for old, new in (("a", "z"), ("b", "y")):  # in another order of names, too
        shutil.copy(tmp_path / old, tmp_path / "0" / new)
    assert of("a", None, "b") == of("z", None, "y", folder=tmp_path / "0")


def test_inputs_known_by_other_fingerprints_count_too(tmp_path):
    record = provenance.describe({})
    plain = provenance.fingerprint(record)
    record["inputs"]["store"] = "1"
    one = provenance.fingerprint(record)
    record["inputs"] = {"moved": "1"}
    assert provenance.fingerprint(record) == one != plain
