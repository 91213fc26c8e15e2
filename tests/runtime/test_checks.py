"""Rows of checks: what is an error elsewhere is a row here, and the table says it all at once."""

import pytest

from chexseg.errors import DataError, UsageError
from chexseg.runtime import checks
from chexseg.runtime.checks import BAD, MISSING, ODD, OK, Check, Checks


def fail(error, cause=None):
    def read():
        raise error from cause

    return read


@pytest.mark.parametrize(
    ("read", "status"),
    [
        (fail(DataError("a.csv: line 3 is odd")), BAD),
        (fail(DataError("a.csv: no such label file")), MISSING),
        (fail(DataError("a.csv"), FileNotFoundError()), MISSING),
        (fail(UsageError("--x and --y")), BAD),
        (fail(PermissionError(13, "Permission denied", "a.csv")), BAD),
    ],
)
def test_what_stops_a_stage_is_a_row(read, status):
    found = Checks("data")
    assert found.attempt("labels", read, "look at it") is None
    (row,) = found.rows
    assert (row.area, row.what, row.status, row.way_out) == ("data", "labels", status, "look at it")
    assert row.stops and ("a.csv" in row.detail or "--x" in row.detail)


def test_a_bug_is_no_row():
    with pytest.raises(ZeroDivisionError):
        Checks("data").attempt("labels", fail(ZeroDivisionError()))


def test_what_was_read_comes_back_without_a_row():
    found = Checks("data")
    assert found.attempt("labels", lambda: 3) == 3 and found.rows == []


def test_the_table_groups_rows_and_wraps():
    rows = [
        Check("one", "first", OK, "word " * 30, "not said where all is well"),
        Check("one", "second thing", ODD, "odd", "do this"),
        Check("two", "third", MISSING, "/a/path/" + "that/is/long/" * 12),
    ]
    shown = checks.table(rows, width=80)
    lines = shown.splitlines()
    assert lines[0] == "ONE" and "" in lines and "TWO" in lines
    assert "not said" not in shown and "-> do this" in shown
    assert "that/is/long/" * 12 in shown  # a path can be copied
    assert max(len(line) for line in lines if "/" not in line) <= 80
    assert [line[2:10].strip() for line in lines if line.startswith("  ") and line[2] != " "] == [
        "ok",
        "odd",
        "MISSING",
    ]
    assert checks.table([]) == ""


def test_variables(monkeypatch, tmp_path):
    there, gone = tmp_path / "there", tmp_path / "gone"
    there.mkdir()
    for name in "ABCD":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("A", str(there))
    monkeypatch.setenv("B", str(gone))
    rows = checks.variables({"A": there, "B": gone, "C": there, "D": gone}, dict.fromkeys("ABCD", "<folder>"))
    assert [row.status for row in rows] == [OK, BAD, ODD, MISSING]
    assert rows[3].way_out == "export D=<folder>"


def test_the_machine(tmp_path):
    statuses = {row.what: row.status for row in checks.machine(["numpy", "torch"])}
    assert statuses["Python"] == statuses["packages"] == OK
    (packages,) = [row for row in checks.machine(["numpy", "no-such-package"]) if row.what == "packages"]
    assert packages.status == MISSING and "no-such-package" in packages.detail and "numpy" not in packages.detail
    assert checks.accelerator().what == "GPU"
    assert checks.room(tmp_path / "not" / "there", 1.0)[0].status == OK
    assert checks.room(tmp_path, 1e30)[0].stops


def test_some():
    assert checks.some("ab") == "a, b"
    assert checks.some("abcde") == "a, b, c and 2 more"
