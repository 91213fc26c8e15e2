"""Sharded work: same bytes whatever the sharding, what is valid is kept, what is not is made again and named."""

import errno
import json
import logging
import os
import sys

import pytest

from chexseg.errors import DataError
from chexseg.runtime import progress, provenance, shards
from chexseg.runtime.files import _held, atomic, locked
from chexseg.runtime.workers import ordered_map

ITEMS = [f"image{i}" for i in range(10)]


class Stage:
    """Counts what it processes; may die after some items."""

    def __init__(self, die_after=None):
        self.seen, self.die_after = [], die_after

    def process(self, items):
        for item in items:
            if self.die_after is not None and len(self.seen) == self.die_after:
                raise KeyboardInterrupt
            self.seen.append(item)
            yield item.upper()


class Lines:
    """A record a line; remembers how many each shard had."""

    def __init__(self):
        self.written = []

    def write(self, records, path):
        self.written.append(len(records))
        path.write_text("".join(f"{r}\n" for r in records))

    def merge(self, parts, path):
        path.write_text("".join(p.read_text() for p in parts))


def build(output, stage, items=ITEMS, shard_size=3, lines=None, **arguments):
    record = provenance.describe({"threshold": 1, **arguments})
    lines = lines or Lines()
    return shards.build(output, items, process=stage.process, shard_format=lines, record=record, shard_size=shard_size)


EXPECTED = "".join(f"{item.upper()}\n" for item in ITEMS)


@pytest.mark.parametrize("shard_size", [1, 3, 10, 100])
def test_output_does_not_depend_on_shard_size(tmp_path, shard_size):
    assert build(tmp_path / "out", Stage(), shard_size=shard_size)
    assert (tmp_path / "out").read_text() == EXPECTED
    assert not (tmp_path / ".out.parts").exists()


def test_second_run_does_nothing(tmp_path):
    """`process` is not even called: it may be what loads a network."""
    build(tmp_path / "out", Stage())
    again = Stage()
    again.process = None
    assert build(tmp_path / "out", again, num_workers=7) is False
    assert again.seen == []


@pytest.mark.parametrize("die_after", range(10))
def test_interrupted_run_goes_on_with_the_shard_in_hand(tmp_path, die_after):
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "out", Stage(die_after))
    assert not (tmp_path / "out").exists()
    again = Stage()
    build(tmp_path / "out", again)
    assert again.seen == ITEMS[die_after // 3 * 3 :]
    assert (tmp_path / "out").read_text() == EXPECTED


@pytest.mark.parametrize("change", [{"threshold": 2}, {"items": [*ITEMS, "more"]}, {"items": ITEMS[1:]}])
def test_other_arguments_or_items_make_it_again(tmp_path, change, caplog):
    build(tmp_path / "out", Stage())
    with caplog.at_level(logging.WARNING):
        assert build(tmp_path / "out", Stage(), **change)
    assert "stale" in caplog.text and str(tmp_path / "out") in caplog.text


def test_flipped_byte_in_the_output_is_found(tmp_path, caplog):
    build(tmp_path / "out", Stage())
    (tmp_path / "out").write_text(EXPECTED.replace("IMAGE4", "IMAGE5"))
    with caplog.at_level(logging.WARNING):
        assert build(tmp_path / "out", Stage())
    assert "damaged" in caplog.text
    assert (tmp_path / "out").read_text() == EXPECTED


@pytest.mark.parametrize("damage", ["flip", "truncate", "seal", "unseal", "stale"])
def test_damaged_shard_is_named_and_made_again(tmp_path, damage, caplog):
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "out", Stage(9))
    part = sorted((tmp_path / ".out.parts").glob("*[0-9]"))[1]
    seal = part.with_name(part.name + ".json")
    if damage == "flip":
        part.write_text(part.read_text().replace("IMAGE4", "IMAGE5"))
    elif damage == "truncate":
        part.write_text(part.read_text()[:-3])
    elif damage == "seal":
        seal.write_text("{")
    elif damage == "unseal":
        seal.unlink()
    else:
        seal.write_text(json.dumps(json.loads(seal.read_text()) | {"fingerprint": "of another run"}))
    again = Stage()
    with caplog.at_level(logging.WARNING):
        build(tmp_path / "out", again)
    assert again.seen == [*ITEMS[3:6], *ITEMS[9:]]
    assert (tmp_path / "out").read_text() == EXPECTED
    assert (part.name in caplog.text) == (damage != "unseal")


def test_leftovers_of_a_kill_are_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "out", Stage(4))
    stray = tmp_path / ".out.parts" / ".000001-of-000004.99.tmp"
    stray.write_text("half")
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "out", Stage(1))
    assert not stray.exists()


def test_second_run_into_the_same_output_is_refused_by_name(tmp_path):
    with locked(tmp_path / ".out.lock"), pytest.raises(DataError, match=r"\.out\.lock: another run"):
        build(tmp_path / "out", Stage())


def test_a_forked_worker_does_not_hold_the_runs_lock(tmp_path):
    """It may outlive a killed run: the next must not be refused because of it."""
    (read, written), (heard, told) = os.pipe(), os.pipe()
    with locked(tmp_path / "lock"):
        worker = os.fork()
        if worker == 0:
            os.close(written)
            os.write(told, b"!")
            os.read(read, 1)  # until the end of the test
            os._exit(0)
        os.read(heard, 1)  # the worker runs, and has let go
        (held,) = _held
        with pytest.raises(DataError, match="another run"), locked(tmp_path / "lock"):
            pass  # the fork has not given it back for us
        held.close()  # as a kill would, without giving the lock back first
    with locked(tmp_path / "lock"):
        pass
    os.close(written)
    assert os.waitpid(worker, 0)[1] == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named_with_the_file_and_the_way_out(tmp_path, number):
    with pytest.raises(DataError, match=r"/out: could not be written \(.*\); is the disk full.* again$"):
        with atomic(tmp_path / "out") as temporary:
            temporary.write_text("half")
            raise OSError(number, os.strerror(number))  # without a name, as file.write() raises it
    assert not list(tmp_path.iterdir())


def test_a_small_set_has_shards_for_many_ranks(tmp_path):
    few, many = Lines(), Lines()
    build(tmp_path / "few", Stage(), items=ITEMS * 5, shard_size=256, lines=few)
    assert few.written == [16, 16, 16, 2]
    build(tmp_path / "many", Stage(), items=[f"{i}" for i in range(1000)], shard_size=256, lines=many)
    assert max(many.written) == 64 and sum(many.written) == 1000


def test_a_log_file_gets_a_line_from_time_to_time(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    caplog.set_level(logging.INFO)
    build(tmp_path / "out", Stage())
    lines = [message for message in caplog.messages if "left" in message]
    assert (
        len(lines) == 10 and lines[3].startswith("images: 4 of 10, about ") and lines[-1].endswith("about 0.0 s left")
    )
    caplog.clear()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # there the bar says it
    build(tmp_path / "other", Stage())
    assert not [message for message in caplog.messages if "left" in message]


def test_items_are_looked_at_once(tmp_path):
    seen = []
    record = provenance.describe({})
    build_all = {"process": Stage().process, "shard_format": Lines(), "record": record, "shard_size": 3}
    shards.build(tmp_path / "out", ITEMS, item_fingerprint=lambda item: seen.append(item) or "", **build_all)
    assert seen == ITEMS


def test_too_few_records_is_an_error_and_leaves_no_output(tmp_path):
    class Short(Stage):
        def process(self, items):
            yield "only one"

    with pytest.raises(RuntimeError, match="3 items gave 1 records"):
        build(tmp_path / "out", Short())
    assert not (tmp_path / "out").exists()


def test_no_items_gives_an_empty_output(tmp_path):
    assert build(tmp_path / "out", Stage(), items=[])
    assert (tmp_path / "out").read_text() == ""


def test_atomic_leaves_the_old_file_on_error(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), atomic(path) as temporary:
        temporary.write_text("half of the new")
        raise OSError("disk full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("workers", [0, 2])
def test_ordered_map_keeps_order(workers):
    assert list(ordered_map(abs, [-3, 1, -2, 0, 5], workers)) == [3, 1, 2, 0, 5]


def test_fingerprint_sees_contents_and_not_paths(tmp_path):
    for name, text in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / name).write_text(text)
    a, b, c = (provenance.fingerprint(provenance.describe({}, [tmp_path / name])) for name in "abc")
    assert a == b != c


def test_missing_input_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere.csv: no such file"):
        provenance.describe({}, [tmp_path / "nowhere.csv"])


def test_a_changed_output_is_not_known_by_its_old_manifest(tmp_path):
    build(tmp_path / "out", Stage())
    before = provenance.file_fingerprint(tmp_path / "out")
    (tmp_path / "out").write_text("changed by hand")
    assert provenance.file_fingerprint(tmp_path / "out") != before
