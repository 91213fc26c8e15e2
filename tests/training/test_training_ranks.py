"""Ranks add up to one process, and stop together."""

import os
import signal
import time

import pytest
import torch
from torch.testing import assert_close

from chexseg.runtime import distributed
from tests.training.small import Slow, build_model, in_child, log_of, train


def rank_of(rank, world_size, store, folder, options):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    model = build_model(dropout=0.0)
    train(folder, model=model, batch_size=6, **options)
    torch.save(model.state_dict(), folder / f"weights{rank}")
    distributed.cleanup()


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_add_up_to_one_process(tmp_path, world_size):
    alone = build_model(dropout=0.0)
    train(tmp_path / "alone", model=alone, batch_size=6)
    folder = tmp_path / "ranks"
    folder.mkdir()
    # The second start goes on from a checkpoint of the middle of an epoch, in which sums belong to all ranks.
    for options in ({"max_minutes": 1e-9, "save_every": 1e9}, {}):
        store = tmp_path / f"store{len(options)}"
        children = [
            in_child(lambda r=r, s=store, o=options: rank_of(r, world_size, s, folder, o)) for r in range(world_size)
        ]
        for child in children:
            child.join(60)
        assert {child.exitcode for child in children} == {143 if options else 0}
    weights = [torch.load(folder / f"weights{r}", weights_only=True) for r in range(world_size)]
    for name, expected in alone.state_dict().items():
        assert torch.equal(weights[0][name], weights[1][name])
        assert_close(weights[0][name], expected, rtol=1e-4, atol=1e-5, msg=name)
    for found, expected in zip(log_of(folder), log_of(tmp_path / "alone"), strict=True):
        assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
        assert sum(found["predicted"]) == pytest.approx(sum(expected["predicted"]), abs=20)


def test_sigterm_to_one_rank_stops_all(tmp_path):
    def start(name):
        store = tmp_path / name
        return [in_child(lambda r=r: rank_of(r, 2, store, tmp_path, {"dataset": Slow()})) for r in range(2)]

    children = start("first")
    while not (tmp_path / "log.jsonl").exists() or not (tmp_path / "log.jsonl").read_text():
        assert all(child.is_alive() for child in children)
        time.sleep(0.005)
    os.kill(children[1].pid, signal.SIGTERM)
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [143, 143]
    assert not torch.load(tmp_path / "checkpoint.pt", weights_only=True)["progress"]["finished"]
    children = start("second")
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0, 0]
    assert [line["epoch"] for line in log_of(tmp_path)] == [1, 2, 3]
