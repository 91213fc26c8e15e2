"""Stages killed (SIGKILL) at random moments and run again end with the bytes of an undisturbed run."""

import random
import signal

import pytest

from tests.pipeline import stages

STAGES = tuple(name for name in stages.COMMANDS if name != "gt_segmentation_test")


def kill_and_finish(tiny_run, root, stage, rng, kills, *more) -> int:
    """Kill a stage `kills` times, by turns right before a change of a file and at any time; let it finish; compare.

    `more`: options of the stage. Returns how many kills struck before the stage had ended by itself."""
    workspace, struck = tiny_run.before(stage, root), 0
    for turn in range(kills):
        if turn % 2 == 0:
            # What is left to do shrinks with each kill: aim at its beginning then.
            die_at = rng.randint(1, max(1, tiny_run.operations[stage] // (turn + 1)))
            process = stages.start(workspace, stage, *more, die_at=die_at)
            process.wait()
        else:
            process = stages.start(workspace, stage, *more)
            process.wait(rng.uniform(0, tiny_run.seconds[stage]))
            process.kill()
        assert process.process.exitcode in (0, -signal.SIGKILL), process.said()
        struck += process.process.exitcode != 0
    last = stages.start(workspace, stage, *more)
    assert last.wait() == 0, last.said()
    tiny_run.assert_same(stage, workspace)
    return struck


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_run_again_gives_the_same_bytes(tiny_run, tmp_path, stage):
    kill_and_finish(tiny_run, tmp_path / "workspace", stage, random.Random(stage), 2)


@pytest.mark.parametrize("stage", ["test", "train_irnet"])
def test_workers_of_a_killed_stage_do_not_keep_the_next_run_out(tiny_run, tmp_path, stage):
    root, rng = tmp_path / "workspace", random.Random(f"workers {stage}")
    assert kill_and_finish(tiny_run, root, stage, rng, 2, "--num_workers", "2")


@pytest.mark.soak
@pytest.mark.parametrize("stage", STAGES)
def test_many_kills(tiny_run, tmp_path, stage, record_property, capsys):
    rng, tried = random.Random(f"many {stage}"), 0
    for turn in range(4):
        tried += kill_and_finish(tiny_run, tmp_path / f"workspace{turn}", stage, rng, 4)
    with capsys.disabled():
        print(f"\n{stage}: {tried} kills, all survived")
    assert tried >= 3
