"""Order of draws: tables, exact mixes whatever the number of ranks, and readers that change no random state."""

import os
import signal
import sys
import threading

import numpy as np
import pytest
import torch

from chexseg.errors import DataError, UsageError
from chexseg.training import draws
from chexseg.training.draws import Draw
from chexseg.training.loader import Loader


def test_shuffled_is_a_fresh_permutation_each_epoch():
    order = draws.shuffled(50, seed=17)
    assert sorted(order(0)) == sorted(order(1)) == list(range(50))
    assert order(0).tolist() != order(1).tolist()
    assert order(1).tolist() == draws.shuffled(50, seed=17)(1).tolist()
    assert order(0).tolist() != draws.shuffled(50, seed=18)(0).tolist()


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.9, 1.0])
def test_share_of_expert_draws_is_the_weight(weight):
    order = draws.mixed(20, 30, strong_weight=weight, seed=3, epoch_len=1000)
    draw = np.concatenate([order(e) for e in range(20)])
    share = (draw < 20).mean()
    # Standard deviation of the share of 20,000 draws is below 0.0036.
    assert abs(share - weight) <= (0 if weight in (0, 1) else 0.015)
    assert draw.max() < 50 and draw.min() >= 0


def test_each_draw_is_independent_of_the_former():
    strong = draws.mixed(5, 5, strong_weight=0.9, seed=0, epoch_len=50_000)(0) < 5
    after_weak = strong[1:][~strong[:-1]]
    assert abs(after_weak.mean() - 0.9) < 0.02


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_sets_are_exhausted_before_anything_repeats(weight):
    order = draws.mixed(7, 11, strong_weight=weight, seed=1)
    for epochs in range(1, 9):
        counts = np.bincount(np.concatenate([order(e) for e in range(epochs)]), minlength=18)
        assert counts.sum() == 18 * epochs
        assert np.ptp(counts[:7]) <= 1 and np.ptp(counts[7:]) <= 1


def test_an_epoch_does_not_depend_on_those_asked_for_before():
    fresh = draws.mixed(7, 11, strong_weight=0.9, seed=1)(5)
    order = draws.mixed(7, 11, strong_weight=0.9, seed=1)
    for epoch in (0, 3, 5):
        found = order(epoch)
    assert found.tolist() == fresh.tolist()


def test_default_epoch_is_as_long_as_both_sets():
    assert len(draws.mixed(147, 100, strong_weight=0.9, seed=17)(0)) == 247
    assert len(draws.mixed(147, 100, strong_weight=0.9, seed=17, epoch_len=40)(0)) == 40


def test_one_set_may_be_empty_only_if_it_is_never_drawn():
    assert set(draws.mixed(0, 4, strong_weight=0.0, seed=0)(0)) == {0, 1, 2, 3}
    with pytest.raises(DataError, match="expert"):
        draws.mixed(0, 4, strong_weight=0.5, seed=0)
    with pytest.raises(DataError, match="pseudo"):
        draws.mixed(4, 0, strong_weight=0.5, seed=0)
    with pytest.raises(DataError, match="to train on"):
        draws.shuffled(0, seed=0)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("length", [24, 37, 41])
def test_ranks_share_the_same_batches(length, world_size):
    order = draws.mixed(10, 12, strong_weight=0.9, seed=2, epoch_len=length)(1)
    parts = [draws.batches(order, 8, key=(2, 1), rank=r, world_size=world_size) for r in range(world_size)]
    alone = draws.batches(order, 8, key=(2, 1), rank=0, world_size=1)
    assert {len(p) for p in parts} == {-(-length // 8)}
    for step, whole in enumerate(alone):
        assert sorted(d for part in parts for d in part[step]) == sorted(whole)
        assert max(len(p[step]) for p in parts) - min(len(p[step]) for p in parts) <= 1
    assert [d.index for batch in alone for d in batch] == order.tolist()
    assert [d.key for batch in alone for d in batch] == [(2, 1, i) for i in range(length)]
    sizes = [len(b) for b in alone]
    assert max(sizes) <= 8 and max(sizes) - min(sizes) <= 1


def test_too_many_ranks_are_refused():
    with pytest.raises(UsageError, match="3 processes"):
        draws.batches(np.arange(9), 2, key=(), rank=0, world_size=3)
    with pytest.raises(DataError, match="too few"):
        draws.batches(np.arange(2), 8, key=(), rank=0, world_size=3)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_each_sample_once_and_without_a_key(world_size):
    found = [d for r in range(world_size) for b in draws.in_order(10, 4, rank=r, world_size=world_size) for d in b]
    assert sorted(d.index for d in found) == list(range(10))
    assert {d.key for d in found} == {()}
    assert [[d.index for d in b] for b in draws.in_order(5, 2)] == [[0, 1], [2, 3], [4]]


class Numbers:
    def __getitem__(self, draw):
        return {"x": torch.tensor(draw.index), "id": f"image{draw.index}"}


def test_workers_ignore_sigterm_and_end_when_closed():
    loader = Loader(Numbers(), num_workers=2)
    plan = [[Draw(i)] for i in range(40)]
    for _ in range(2):
        batches = loader(plan)
        found = [next(batches)["x"].item() for _ in range(2)]  # one from each, or one has not begun
        workers = list(loader._loader._iterator._workers)
        for worker in workers:
            os.kill(worker.pid, signal.SIGTERM)
        found += [batch["x"].item() for batch in batches]
        assert found == list(range(40))
        loader.close()
        assert [worker.exitcode for worker in workers] == [0, 0]
    loader.close()


def test_a_worker_that_dies_as_others_start_is_told_when_all_have_started(monkeypatch):
    """torch raises at any moment, also when a thread has been started and not yet begun: Python would then say so."""
    said, start = [], threading._start_new_thread
    loader = Loader(Numbers(), num_workers=2)
    torch.utils.data._utils.signal_handling._set_SIGCHLD_handler()

    def died(number, frame):
        raise RuntimeError("DataLoader worker (pid 71) is killed by signal: Killed. ")

    def start_and_hear(*given):
        start(*given)
        signal.raise_signal(signal.SIGCHLD)

    monkeypatch.setattr(sys, "unraisablehook", said.append)
    monkeypatch.setattr(threading, "_start_new_thread", start_and_hear)
    former = signal.signal(signal.SIGCHLD, died)
    try:
        with pytest.raises(RuntimeError, match="pid 71"):
            loader([[Draw(i)] for i in range(8)])
    finally:
        signal.signal(signal.SIGCHLD, former)
        monkeypatch.undo()
        loader.close()
    assert not said and not threading._limbo


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_reads_any_number_of_plans_and_leaves_random_numbers_alone(num_workers):
    torch.manual_seed(5)
    expected = torch.rand(1).item()
    torch.manual_seed(5)
    loader = Loader(Numbers(), num_workers=num_workers)
    for plan in ([[Draw(3), Draw(1)], [Draw(2)]], [[Draw(0)]], []):
        found = [(batch["x"].tolist(), batch["id"]) for batch in loader(plan)]
        assert found == [([d.index for d in b], [f"image{d.index}" for d in b]) for b in plan]
    assert torch.rand(1).item() == expected


def test_balanced_draws_are_made_by_class():
    """Of 100 pseudo-labelled samples one shows a rare class, half show a common one; a third is never shown."""
    classes = [np.array([7]), np.arange(50, 100), np.array([], int)]
    options = {"strong_weight": 0.5, "seed": 3, "epoch_len": 8000}
    weak = draws.mixed(10, 100, balance=0.6, positives=classes, **options)(2)
    weak = weak[weak >= 10] - 10
    # 0.6 / 2 of the draws, and 1 in 100 of the others.
    assert (weak == 7).mean() == pytest.approx(0.304, abs=0.02)
    assert (weak >= 50).mean() == pytest.approx(0.3 + 0.4 * 0.5, abs=0.02)
    assert set(weak) == set(range(100))


def test_balance_changes_no_draw_of_experts():
    options = {"strong_weight": 0.5, "seed": 3, "epoch_len": 50}
    plain = draws.mixed(10, 100, **options)
    balanced = draws.mixed(10, 100, balance=1.0, positives=[np.array([7])], **options)
    for epoch in (0, 3):
        experts = plain(epoch) < 10
        np.testing.assert_array_equal(balanced(epoch)[experts], plain(epoch)[experts])
        assert set(balanced(epoch)[~experts]) == {17}
        np.testing.assert_array_equal(balanced(epoch), balanced(epoch))


def test_nothing_to_balance_by_is_an_error():
    with pytest.raises(DataError, match="no pseudo mask"):
        draws.mixed(10, 100, strong_weight=0.5, seed=3, balance=0.5, positives=[np.array([], int)])
