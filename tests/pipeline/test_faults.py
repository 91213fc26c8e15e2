"""Full disks, read-only folders, damaged shards, vanished inputs, two runs at once: a named error in one line, or the
right result; and what was complete stays valid.
"""

import os
import re
import resource
import signal
import time
from pathlib import Path

import pytest

from tests.pipeline import stages

# What each stage reads that may vanish.
INPUTS = {
    "test": "base/models/tiny/c.ckpt",
    "pred_segmentation": "base/train_cams/tiny_c.ckpt/cams/saliency.h5",
    "convert_to_hdf5": "base/train_cams/tiny_c.ckpt/train_cams_paths.csv",
    "cam_to_ir_label_hdf5": "base/train_cams/tiny_c.ckpt/hdf5_files/train_set",
    "make_pseudo_seg_labels": "base/weakly_supervised/saved_models/" + stages.WALK_MODEL,
    "segmentation_test": "base/trials/semi/best_model.pth",
    "train": "data/CheXpert/CheXpert-v1.0/train.csv",
    "train_irnet": "base/train_cams/tiny_c.ckpt/hdf5_files/ir_labels",
    "segmentation_train": "data/labels/valid_encoded.json",
}
# Bytes that a file may have: too few for the largest file of each stage, enough for its smaller ones.
DISK = {
    "test": 8_000,
    "convert_to_hdf5": 40_000,
    "make_pseudo_seg_labels": 4_000,
    "train": 200_000,
    "train_irnet": 20_000,
}


def assert_named(process, named: str, status: int = 1) -> None:
    assert process.wait() == status, process.said()
    assert ": error: " in process.last_line() and named in process.last_line(), process.said()
    assert "Traceback" not in process.said()


def is_held(lock) -> bool:
    """Whether a run has taken the lock; the file alone is there a moment before."""
    return lock.exists() and f":{lock.stat().st_ino} " in Path("/proc/locks").read_text()


def assert_ends(tiny_run, workspace, stage) -> None:
    process = stages.start(workspace, stage)
    assert process.wait() == 0, process.said()
    tiny_run.assert_same(stage, workspace)


@pytest.fixture
def interrupted(tiny_run, tmp_path):
    """A stage that was killed with some shards made: (workspace, its parts)."""

    def make(stage):
        workspace = tiny_run.before(stage, tmp_path / "workspace")
        killed = stages.start(workspace, stage, die_at=tiny_run.operations[stage] // 2)
        assert killed.wait() == -signal.SIGKILL
        parts = sorted(p for p in workspace.root.rglob(".*.parts/0*") if p.suffix != ".json")
        assert len(parts) > 1
        return workspace, parts

    return make


@pytest.mark.parametrize("stage", INPUTS)
def test_a_vanished_input_is_named(tiny_run, tmp_path, stage):
    workspace = tiny_run.before(stage, tmp_path / "workspace")
    before = workspace.files() - {INPUTS[stage]}
    (workspace.root / INPUTS[stage]).unlink()
    assert_named(stages.start(workspace, stage), INPUTS[stage].rsplit("/", 1)[-1].split(".")[0])
    assert not [name for name in workspace.files() - before if name in tiny_run.made[stage] and "cache" not in name]


@pytest.mark.parametrize("stage", DISK)
def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(tiny_run, tmp_path, stage):
    workspace = tiny_run.before(stage, tmp_path / "workspace")
    before = workspace.files()
    full = stages.start(workspace, stage, limits={resource.RLIMIT_FSIZE: DISK[stage]})
    assert_named(full, "could not be written")
    assert not [name for name in workspace.files() if name.endswith(".tmp")]
    assert all(name in workspace.files() for name in before)
    assert_ends(tiny_run, workspace, stage)


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/proc/self/status"), reason="root writes anywhere")
@pytest.mark.parametrize("stage", ["pred_segmentation", "segmentation_test"])
def test_an_output_that_cannot_be_written_is_named(tiny_run, tmp_path, stage):
    """A file where a folder should be: root, too, is refused."""
    workspace = tiny_run.before(stage, tmp_path / "workspace")
    (workspace.root / "blocked").write_text("")
    process = stages.start(workspace, stage, "--output_path", str(workspace.root / "blocked" / "masks.json"))
    assert_named(process, "blocked")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other arguments"])
def test_a_damaged_shard_is_named_and_made_again(tiny_run, interrupted, damage):
    workspace, parts = interrupted("test")
    data = parts[0].read_bytes()
    if damage == "truncated":
        parts[0].write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        middle = len(data) // 2
        parts[0].write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    more = ["--batch_size", "2"] if damage == "other arguments" else []
    process = stages.start(workspace, "test", *more)
    assert process.wait() == 0, process.said()
    what = "stale" if more else "damaged"
    assert any(parts[0].name in line and what in line for line in process.said().splitlines())
    assert_ends(tiny_run, workspace, "test")


def test_two_runs_at_once_the_second_is_refused_by_name(tiny_run, tmp_path):
    workspace = tiny_run.before("test", tmp_path / "workspace")
    lock = workspace.run / "cams" / ".saliency.h5.lock"
    first = stages.start(workspace, "test")
    while first.wait(0.005) is None and not is_held(lock):
        pass
    os.kill(first.process.pid, signal.SIGSTOP)
    try:
        second = stages.start(workspace, "test")
        assert_named(second, f"{lock}: another run is writing here")
    finally:
        os.kill(first.process.pid, signal.SIGCONT)
    assert first.wait() == 0, first.said()
    tiny_run.assert_same("test", workspace)


def test_two_trainings_started_at_once_end_as_one(tiny_run, tmp_path):
    workspace = tiny_run.before("train_irnet", tmp_path / "workspace")
    both = [stages.start(workspace, "train_irnet") for _ in range(2)]
    ended = sorted(process.wait() for process in both)
    refused = [process for process in both if process.process.exitcode]
    assert ended in ([0, 0], [0, 1])
    assert all("another run is writing here" in process.last_line() for process in refused)
    tiny_run.assert_same("train_irnet", workspace)


def test_workers_of_a_killed_run_do_not_stay(tiny_run, tmp_path):
    workspace = tiny_run.before("pred_segmentation", tmp_path / "workspace")
    run = stages.start(workspace, "pred_segmentation", "--num_workers", "1")
    children = set()
    while run.wait(0.05) is None and not children:
        children = descendants(run.process.pid)
    assert children
    run.kill()
    waited = time.monotonic() + 20
    while any(is_running(pid) for pid in children) and time.monotonic() < waited:
        time.sleep(0.1)
    assert not [pid for pid in children if is_running(pid)]


@pytest.mark.parametrize("stage", ["pred_segmentation", "test", "train_irnet", "segmentation_train"])
def test_a_killed_data_worker_is_named_with_the_remedy(tiny_run, tmp_path, stage):
    """A pool, single batches, and the loader of the trainings: as the kernel does it when memory is out."""
    workspace = tiny_run.before(stage, tmp_path / "workspace")
    run = stages.start(workspace, stage, "--num_workers", "2")
    workers: list[int] = []
    while run.wait(0.01) is None and not workers:
        workers = [pid for pid in descendants(run.process.pid) if is_worker(pid)]
    os.kill(workers[0], signal.SIGKILL)
    assert_named(run, f"a data worker (pid {workers[0]}) was killed, most likely because memory ran out")
    assert "--num_workers 0" in run.last_line()
    assert_ends(tiny_run, workspace, stage)


@pytest.mark.parametrize("what", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("stage", "workers"), [("pred_segmentation", "2"), ("test", "2"), ("segmentation_train", "2"), ("train_irnet", "0")]
)
def test_a_signal_to_all_processes_ends_a_stage_in_one_line(tiny_run, tmp_path, stage, what, workers):
    """As a terminal, Slurm and torchrun send it; the same command goes on."""
    workspace = tiny_run.before(stage, tmp_path / "workspace")
    run = stages.start(workspace, stage, "--num_workers", workers, CHEXSEG_OWN_GROUP="1")
    while run.wait(0.01) is None and not begun(run, int(workers)):
        pass
    os.killpg(run.process.pid, what)
    assert run.wait() == 128 + what, run.said()
    assert "Traceback" not in run.said()
    word = "interrupted" if what == signal.SIGINT else "stopped"
    assert run.last_line().endswith(f": {word}; run the same command again to go on")
    assert_ends(tiny_run, workspace, stage)


def test_a_stage_that_asks_the_network_would_be_seen(tiny_run, tmp_path, monkeypatch):
    """The check under which all stages of these tests run."""
    script = tmp_path / "asks.py"
    for call in ("socket.create_connection(('127.0.0.1', 9))", "socket.getaddrinfo('localhost', 80)"):
        script.write_text(f"import socket\n{call}\n")
        monkeypatch.setitem(stages.COMMANDS, "asks", str(script))
        asks = stages.start(stages.Workspace(tmp_path / "workspace"), "asks")
        assert asks.wait() == stages.ASKED and "no stage may ask the network" in asks.said()


def begun(run, workers: int) -> bool:
    """Whether a stage heeds signals and has all its workers."""
    try:
        caught = re.search(r"SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{run.process.pid}/status").read_text())
    except OSError:
        return False
    heeds = caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1
    return bool(heeds) and sum(map(is_worker, descendants(run.process.pid))) >= workers


def is_worker(pid: int) -> bool:
    """A child that is not the process in which multiprocessing counts its semaphores."""
    try:
        return b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def descendants(pid: int) -> set[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return {int(n) for n in file.read().split()}
    except OSError:
        return set()


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
