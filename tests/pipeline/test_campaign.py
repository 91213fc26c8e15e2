"""The long campaigns: every stage killed 20 times, stopped by signals, and run on disks that are full at five levels.

    pytest -m soak tests/pipeline/test_campaign.py -k kills       (signals, disks: the latter as root, on a tmpfs)

A row of each is printed for docs/scale.md; a run that does not end as it must fails the test.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from itertools import count
from pathlib import Path

import pytest

from tests.pipeline import stages

pytestmark = pytest.mark.soak

KILLS, STOPS, LEVELS = 20, 6, (0.05, 0.25, 0.5, 0.75, 0.95)
# Stages and tools that the other tests of kills leave out.
MORE = {
    "segmentation_distillation": "segmentation_distillation.py --teacher_path {base}/trials/semi/best_model.pth "
    "--expert_masks_path {labels}/valid_encoded.json --eval_masks_path {labels}/test_encoded.json "
    "--save_dir {base}/trials --num_epochs 1 --batch_size 8 --save_every 1e-6",
    "create_train_set_subsets": "create_train_set_subsets.py --subset_len 5 --pseudo_labels_type irnet --map_dir {run}",
    "pseudo_label_quality": "pseudo_label_quality.py --source experts={labels}/valid_encoded.json "
    "--gt_path {labels}/valid_encoded.json --output_dir {base}/quality --num_replicates 50",
    "eval": "localization_eval/eval.py --gt_path {labels}/test_encoded.json --allow_leak True "
    "--pred_path {base}/trials/semi/test_masks.json --num_replicates 50",
    "make_tables": "make_tables.py --ground_truth {labels}/test_encoded.json --output_dir {base}/report "
    "--method semi={base}/trials/semi/test_masks.json --num_replicates 50 --allow_leak True",
}
DRAWN = ("make_tables", "pseudo_label_quality", "eval")  # made in one go, with times in them: not compared byte by byte
KILLED = [name for name in stages.COMMANDS if name != "gt_segmentation_test"]
CASES = [(name, workers) for name in KILLED for workers in (0, 2) if not workers or name in stages.TRAINERS]


@pytest.fixture(scope="session")
def whole_run(warm, tmp_path_factory):
    """Every stage and tool, run undisturbed."""
    run = stages.TinyRun(tmp_path_factory.mktemp("whole_run") / "workspace")
    for name in (*stages.COMMANDS, *MORE):
        stages.COMMANDS.setdefault(name, MORE.get(name, ""))
        run.add(name)
    yield run
    for name in MORE:
        del stages.COMMANDS[name]


def finish(whole_run, workspace, stage) -> None:
    last = stages.start(workspace, stage)
    assert last.wait(600) == 0, last.said()
    if stage not in DRAWN:
        whole_run.assert_same(stage, workspace)


def say(capsys, *cells) -> None:
    with capsys.disabled():
        print("\n| " + " | ".join(map(str, cells)) + " |", flush=True)


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, and a function that leaves so many bytes to what is written from its first call on."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m", "none", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a tmpfs")

    free: list[int] = []

    def leave(room: int) -> None:
        free.append(shutil.disk_usage(place).free)
        with open(place / "ballast", "ab") as file:
            if file.tell() == 0:
                os.posix_fallocate(file.fileno(), 0, free[0] - room)
            else:
                file.truncate(free[0] - room)

    yield place, leave
    for _ in range(50):
        if subprocess.run(["umount", place], capture_output=True).returncode == 0:
            return
        time.sleep(0.1)


@pytest.mark.parametrize("stage", [*KILLED, *MORE])
def test_disks(whole_run, disk, stage, capsys):
    """The room left is a part of what the stage writes: five runs, each with more room than the last, which finds what
    that one left; then one with room for all."""
    place, leave = disk
    files = [whole_run.root / name for name in whole_run.made[stage]]
    size = sum(-(-path.stat().st_size // 4096) * 4096 for path in files)
    workspace, named, whole = whole_run.before(stage, place), 0, 0
    for level in LEVELS:
        leave(int(level * size))
        process = stages.start(workspace, stage)
        status = process.wait(600)
        assert "Traceback" not in process.said() and status in (0, 1), (level, status, process.said())
        assert not status or "could not be written" in process.last_line(), process.said()
        named, whole = named + (status == 1), whole + (status == 0)
    (place / "ballast").unlink()
    finish(whole_run, workspace, stage)
    say(capsys, stage, len(LEVELS), named, whole)


@pytest.mark.parametrize("stage, workers", CASES)
def test_kills(whole_run, tmp_path, stage, workers, capsys):
    """Half of them right before a change of a file, half at any time; what is left when one comes too late is compared,
    and the next begins anew."""
    rng, more, killed, ends = random.Random(f"{stage} {workers}"), ("--num_workers", str(workers)), 0, 0
    workspace = whole_run.before(stage, tmp_path / "0")
    for turn in count(1):
        if killed == KILLS:
            break
        if turn % 2:
            process = stages.start(workspace, stage, *more, die_at=rng.randint(1, max(2, whole_run.operations[stage])))
            process.wait(600)
        else:
            process = stages.start(workspace, stage, *more)
            process.wait(rng.uniform(0, 1.2 * whole_run.seconds[stage]))
            process.kill()
        assert process.process.exitcode in (0, -signal.SIGKILL), process.said()
        killed += process.process.exitcode != 0
        if process.process.exitcode == 0:
            whole_run.assert_same(stage, workspace)
            ends += 1
            shutil.rmtree(workspace.root)
            workspace = whole_run.before(stage, tmp_path / str(ends))
    finish(whole_run, workspace, stage)
    say(capsys, stage, workers, killed, killed)


@pytest.mark.parametrize("stage", [*KILLED, *MORE])
def test_signals(whole_run, tmp_path, stage, capsys):
    """SIGINT and SIGTERM by turns, to the process and its workers, with and without them."""
    if stage not in whole_run.made:
        pytest.skip("not run here")
    rng, stopped, late, ends = random.Random(stage), 0, 0, 0
    with_workers = "--num_workers" in (stages.ROOT / stages.COMMANDS[stage].split()[0]).read_text() or (
        "add_run_options" in (stages.ROOT / stages.COMMANDS[stage].split()[0]).read_text() or stage in stages.TRAINERS
    )
    workspace = whole_run.before(stage, tmp_path / "0")
    for turn in range(4 * STOPS):
        if stopped == STOPS:
            break
        what = (signal.SIGINT, signal.SIGTERM)[turn % 2]
        more = ("--num_workers", "2") if with_workers and turn % 4 >= 2 else ()
        process = stages.start(workspace, stage, *more, CHEXSEG_OWN_GROUP="1")
        while process.wait(0.01) is None and not heeds(process.process.pid):
            pass
        process.wait(rng.uniform(0, 0.8 * whole_run.seconds[stage]))
        if process.process.exitcode is None:
            os.killpg(process.process.pid, what)
        status = process.wait(120)
        assert status in (0, 128 + what), (status, process.said())
        assert "Traceback" not in process.said(), process.said()
        if status:
            assert re.search(r": (interrupted|stopped); run the same command again to go on$", process.last_line())
            stopped += 1
            continue
        late += 1
        shutil.rmtree(workspace.root)
        workspace = whole_run.before(stage, tmp_path / str(ends := ends + 1))
    finish(whole_run, workspace, stage)
    say(capsys, stage, "yes" if with_workers else "no", stopped, stopped)


def heeds(pid: int) -> bool:
    """Whether a process has a handler of SIGTERM."""
    try:
        caught = re.search(r"SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return False
    return bool(caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)
