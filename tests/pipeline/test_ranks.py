"""The stages in several processes: the same bytes from one, two and three; training all but equal."""

import json
import signal

import pytest
import torch

from tests.pipeline import stages

HEAVY = stages.SHARDED
# How far two ranks' losses and trainable weights may be from one's after two epochs. Sums in another order differ in
# the last bit, which Adam's division by a small second moment turns into whole steps; dropout is each rank's own.
CLOSE = {"train": (0.002, 0.02), "train_irnet": (1e-6, 1e-6), "segmentation_train": (0.002, 0.02)}


def finish(running) -> list[str]:
    for process in running:
        assert process.wait() == 0, process.said()
    return [process.said() for process in running]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("stage", HEAVY)
def test_ranks_give_the_bytes_of_one_process(tiny_run, tmp_path, stage, ranks):
    workspace = tiny_run.before(stage, tmp_path / "workspace")
    said = finish(stages.start_ranks(workspace, stage, ranks))
    tiny_run.assert_same(stage, workspace)
    assert ["done in" in text for text in said] == [True] + [False] * (ranks - 1)


@pytest.mark.parametrize("stage", ["test", "convert_to_hdf5", "segmentation_test"])
def test_what_two_ranks_began_three_may_finish_with_other_shards(tiny_run, tmp_path, stage):
    workspace = tiny_run.before(stage, tmp_path / "workspace")
    first, second = stages.start_ranks(workspace, stage, 2, die_at=6)
    assert second.wait() == -signal.SIGKILL
    first.kill()  # as torchrun does
    assert workspace.files() != tiny_run.before(stage, tmp_path / "untouched").files()
    finish(stages.start_ranks(workspace, stage, 3, "--shard_size", "3"))
    tiny_run.assert_same(stage, workspace)


@pytest.mark.parametrize("stage", stages.TRAINERS)
def test_training_in_two_ranks_is_all_but_that_of_one(tiny_run, tmp_path, stage):
    workspace = tiny_run.before(stage, tmp_path / "workspace")
    finish(stages.start_ranks(workspace, stage, 2))
    made = tiny_run.made[stage]
    assert sorted(name for name in workspace.files() if name in made) == made
    log, checkpoint = (next(n for n in made if n.endswith(end)) for end in ("log.jsonl", "checkpoint.pt"))
    one, two = ([json.loads(line) for line in (w.root / log).read_text().splitlines()] for w in (tiny_run, workspace))
    of_loss, of_weights = CLOSE[stage]
    assert [line["epoch"] for line in two] == [1, 2]
    assert [line["lr"] for line in two] == [line["lr"] for line in one]
    assert [line["train_loss"] for line in two] == pytest.approx([line["train_loss"] for line in one], abs=of_loss)
    first, second = (torch.load(w.root / checkpoint, weights_only=True)["model"] for w in (tiny_run, workspace))
    for name, tensor in first.items():
        if "running" not in name:
            torch.testing.assert_close(second[name], tensor, rtol=0, atol=of_weights)
