"""The log file, and Weights & Biases that never asks, waits or sends unasked."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from chexseg.training import tracking

ROOT = Path(__file__).resolve().parents[2]


def test_resuming_drops_later_epochs_and_a_torn_line(tmp_path):
    lines = tracking.JsonLines(tmp_path / "log.jsonl")
    assert lines.read() == []
    for epoch in (1, 2, 3):
        lines.write({"epoch": epoch, "loss": epoch / 2})
    with open(lines.path, "a") as file:
        file.write('{"epoch": 1, "lo')
    lines.keep(2)
    assert lines.read() == [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 1.0}]
    lines.keep(0)
    assert lines.path.read_text() == ""


def test_damaged_lines_are_named_and_the_others_kept(tmp_path, caplog):
    lines = tracking.JsonLines(tmp_path / "log.jsonl")
    whole = [{"epoch": epoch, "score": float("nan") if epoch == 1 else 0.1 * epoch} for epoch in (1, 2, 3)]
    damaged = [b"\xff\xfe{", b"[1, 2]", b'{"epoch": "2"}', b"[" * 100_000]
    rows = [json.dumps(record).encode() for record in whole]
    lines.path.write_bytes(b"\n".join([rows[0], *damaged[:2], rows[1], *damaged[2:], rows[2], b'{"epo']))
    lines.keep(3)
    assert "log.jsonl: line 2, 3, 5, 6, 8 damaged" in caplog.text
    assert lines.path.read_bytes().splitlines() == rows


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """A stand-in that records what is asked of it, and a home without a login."""
    calls = []
    run = SimpleNamespace(log=lambda *a, **k: calls.append(("log", a, k)), finish=lambda: calls.append("finish"))
    fake = SimpleNamespace(
        init=lambda **options: calls.append(("init", options)) or run,
        Settings=lambda **options: options,
        teardown=lambda: calls.append("teardown"),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_without_a_project_wandb_is_not_even_imported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would fail
    run = tracking.Wandb("", "name", {}, tmp_path)
    run.start(resumed=False)
    run.log({"epoch": 1})
    run.close()
    assert list(tmp_path.iterdir()) == []


OFFLINE = """
import sys
from pathlib import Path
from chexseg.training.tracking import Wandb
if __name__ == "__main__":
    run = Wandb("project", "run", {"lr": 1}, Path(sys.argv[1]))
    run.start(resumed=False)
    run.log({"epoch": 1, "loss": 0.5})
    run.close()
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, which sees wandb's own processes too")
def test_offline_no_process_of_wandb_asks_the_network(tmp_path):
    (tmp_path / "offline.py").write_text(OFFLINE)
    trace, kept = tmp_path / "trace", {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    command = [
        "strace",
        "-f",
        "-e",
        "trace=connect,sendto,sendmmsg",
        "-o",
        trace,
        sys.executable,
        "offline.py",
        tmp_path,
    ]
    done = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=120)
    if "ptrace" in done.stderr.lower() and not list(tmp_path.glob("wandb/offline-run-*")):
        pytest.skip("strace may not trace here")
    assert done.returncode == 0 and list(tmp_path.glob("wandb/offline-run-*/*.wandb")), done.stderr
    calls = trace.read_text(errors="replace").splitlines()
    assert [line for line in calls if "AF_INET" in line and not re.search(r'"(127\.0\.0\.1|::1)"', line)] == []


def test_without_a_login_it_stays_offline(wandb, tmp_path):
    run = tracking.Wandb("project", "", {"folder": tmp_path, "lr": 0.1}, tmp_path)
    assert wandb == []
    run.start(resumed=False)
    run.log({"epoch": 2, "loss": 0.5})
    run.close()
    (_, options), *rest = wandb
    assert options["mode"] == "offline" and options["project"] == "project" and options["name"] is None
    assert options["dir"] == tmp_path and json.dumps(options["config"])
    assert rest == [("log", ({"epoch": 2, "loss": 0.5},), {"step": 2}), "finish"]


@pytest.mark.parametrize(
    ("how", "mode"),
    [
        ("key", "online"),
        ("netrc", "online"),
        ("other host", "offline"),
        ("broken netrc", "offline"),
        ("told", "disabled"),
    ],
)
def test_a_login_makes_it_send(wandb, tmp_path, monkeypatch, how, mode):
    if how == "key":
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    if how == "told":
        monkeypatch.setenv("WANDB_MODE", "disabled")
    machine = {
        "netrc": "machine api.wandb.ai login user password x",
        "other host": "machine example.org login u password x",
    }
    if how in machine or how == "broken netrc":
        (tmp_path / ".netrc").write_text(machine.get(how, "machine") + "\n")
        (tmp_path / ".netrc").chmod(0o600)
    assert tracking.wandb_mode() == mode
    tracking.Wandb("project", "run", {}, tmp_path).start(resumed=False)
    assert wandb[0][1]["mode"] == mode


def test_other_ranks_keep_silent(wandb, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.distributed, "is_main", lambda: False)
    run = tracking.Wandb("project", "run", {}, tmp_path)
    run.start(resumed=False)
    run.log({"epoch": 1})
    assert wandb == []


def test_a_login_without_a_network_is_recorded_offline(wandb, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    plain = sys.modules["wandb"].init

    def init(**options):
        if options["mode"] == "online":
            raise RuntimeError("no route\nto host")
        return plain(**options)

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    run = tracking.Wandb("project", "run", {}, tmp_path)
    run.start(resumed=False)
    run.log({"epoch": 1})
    assert wandb[0] == "teardown"  # wandb itself would refuse the same id
    assert wandb[1][1]["mode"] == "offline" and wandb[2][0] == "log"
    assert caplog.messages == ["wandb is out of reach (no route to host): recording offline"]


def test_a_resumed_training_goes_on_with_its_run(wandb, tmp_path):
    for resumed in (True, True, False, True):  # the first is resumed too, but had no project before
        tracking.Wandb("project", "run", {}, tmp_path).start(resumed=resumed)
    first, second, anew, again = (options["id"] for _, options in wandb)
    assert first == second != anew == again
    assert {options["resume"] for _, options in wandb} == {"allow"}
