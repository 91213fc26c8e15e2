"""Every hostile input ends as it must: refused in one line that names it, or with the valid input's result."""

import shutil
from collections import Counter

import pytest

from tests.hostile import (
    attacks_csv,
    attacks_hdf5,
    attacks_images,
    attacks_json,
    attacks_models,
    attacks_records,
    cases,
)

ALL = (
    attacks_json.masks,
    attacks_json.outlines,
    attacks_json.coco,
    attacks_json.thresholds,
    attacks_csv.tables,
    attacks_csv.values,
    attacks_hdf5.hdf5,
    attacks_models.networks,
    attacks_models.pickles,
    attacks_images.films,
    attacks_images.labels,
    attacks_images.segmentations,
    attacks_records.records,
    attacks_records.trainings,
)
pytestmark = pytest.mark.filterwarnings("ignore")
USUAL = cases.Valid({}, 400 << 20)
QUICK = 6  # inputs more than one of every kind


def faults_of(chosen, world, valid, tmp_path, quick=False) -> list[str]:
    found = []
    for number, case in enumerate(chosen):
        folder = tmp_path / str(number) / "world"
        # Of a file that is refused the valid run says nothing but how much memory it takes.
        known = USUAL if quick and case.verdict == cases.REFUSED else valid(case.command)
        found += [f"{case}: {fault}" for fault in cases.attack(case, world, folder, known)]
        shutil.rmtree(folder.parent)
    return found


def test_some_of_every_kind(world, valid, tmp_path):
    listed = [case for attacks in ALL for case in attacks(world)]
    kinds: dict[str, list[cases.Case]] = {}
    for case in listed:
        kinds.setdefault(case.kind, []).append(case)
    refused = {kind: [case for case in of if case.verdict == cases.REFUSED] or of for kind, of in kinds.items()}
    chosen = [of_kind[len(of_kind) // 3] for of_kind in refused.values()]
    chosen += listed[:: -(-len(listed) // QUICK)]
    assert len(listed) >= 600 and len(kinds) >= 20
    assert faults_of(chosen, world, valid, tmp_path, quick=True) == []


@pytest.mark.soak
@pytest.mark.parametrize(
    "attacks", ALL, ids=lambda attacks: f"{attacks.__module__.rpartition('_')[2]}-{attacks.__name__}"
)
def test_all(world, valid, tmp_path, attacks):
    chosen = list(attacks(world))
    print(dict(Counter(f"{case.kind}: {case.verdict}" for case in chosen)))
    assert faults_of(chosen, world, valid, tmp_path) == []


def test_the_sandbox_sees_what_no_file_may_do(world, tmp_path, valid, monkeypatch):
    """A script that connects, starts a program, writes outside and takes all memory is found out."""
    from tests.hostile import sandbox

    script = tmp_path / "script.py"
    monkeypatch.setattr(sandbox, "ROOT", tmp_path)
    for body, seen in {
        "import socket; socket.create_connection(('127.0.0.1', 9))": "socket.connect",
        "import socket; socket.getaddrinfo('localhost', 9)": "socket.getaddrinfo",
        "import os; os.system('true')": "os.system",
        "import subprocess; subprocess.run(['true'])": "subprocess.Popen",
        "open('../outside', 'w')": "write",
        "open('/etc/passwd').read()": "read /etc/passwd",
        "import os; os.mkdir('../outside')": "os.mkdir",
    }.items():
        script.write_text(body)
        (tmp_path / "case").mkdir(exist_ok=True)
        result = sandbox.run(["script.py"], tmp_path / "case", {})
        assert any(what.startswith(seen) for what in result.did), (body, result)
        for made in (tmp_path / "outside",):
            made.unlink() if made.is_file() else made.rmdir() if made.is_dir() else None
    script.write_text("x = bytearray(1 << 32)")
    result = sandbox.run(["script.py"], tmp_path / "case", {}, memory=sandbox.MORE_MEMORY)
    assert result.status == 70 and "MemoryError" in result.said
    script.write_text("import os; os.abort()")
    assert sandbox.run(["script.py"], tmp_path / "case", {}).status == -6
