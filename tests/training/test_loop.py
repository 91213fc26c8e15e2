"""The training loop: killed anywhere it ends with the same weights; ranks add up to one process; errors have names."""

import json
import math
import multiprocessing
import os
import random
import re
import select
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from chexseg.errors import DataError
from chexseg.runtime import cli, distributed, provenance
from chexseg.training import draws, loop, losses, resuming
from chexseg.training.loader import Loader

EPOCHS, IMAGES, BATCH = 3, 22, 4
STEPS = 6  # in an epoch: 22 images in batches of at most 4


class Noisy:
    """Images of random numbers, their masks, and noise that depends on the draw: stands for augmentation."""

    def __init__(self, bad=None):
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(IMAGES, 3, 8, 8, generator=generator)
        self.bad = bad

    def __getitem__(self, draw):
        image = self.images[draw.index]
        if draw.key:
            image = image + float(np.random.default_rng(draw.key).normal())
        if draw.index == self.bad:
            image = image * float("nan")
        return {"image": image, "masks": (self.images[draw.index, :2] > 0), "id": f"patient{draw.index:05d}"}


def build_model(dropout=0.3):
    loop.seed_everything(3)
    norm, drop = nn.BatchNorm2d(6), nn.Dropout(dropout)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), norm, nn.ReLU(), drop, nn.Conv2d(6, 2, 1))


def compute_loss(network, batch):
    logits = network(batch["image"])
    return losses.dice_loss(logits, batch["masks"]), logits


def tally(logits, batch):
    return (logits > 0).sum((0, 2, 3))


def train(folder, *, model=None, dataset=None, lr=0.01, keep=None, **options):
    """Run `fit` with small things; `options` go to it. Returns the model and the result."""
    model = model or build_model()
    saved = keep if keep is not None else {}
    given = {
        "order": draws.shuffled(IMAGES, 17),
        "optimizer": torch.optim.Adam(model.parameters(), lr),
        "record": provenance.describe({"lr": lr, "batch_size": BATCH}),
        "evaluate": lambda network, counts: {"predicted": counts.tolist()},
        "tally": tally,
        "schedule": lambda step, steps: 1 - step / steps,
        "save_best": lambda weights, metrics: saved.update(weights=weights, metrics=metrics),
        "num_epochs": EPOCHS,
        "batch_size": BATCH,
        "seed": 17,
    }
    result = loop.fit(model, dataset or Noisy(), compute_loss=compute_loss, folder=folder, **(given | options))
    return model, result


def log_of(folder):
    """The log without its times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def assert_same_weights(model, expected):
    for (name, tensor), (_, other) in zip(model.state_dict().items(), expected.state_dict().items(), strict=True):
        assert torch.equal(tensor, other), name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder, saved = tmp_path_factory.mktemp("undisturbed"), {}
    model, result = train(folder, keep=saved)
    return SimpleNamespace(model=model, result=result, log=log_of(folder), saved=saved, folder=folder)


def test_log_has_a_line_per_epoch_and_the_best_is_the_lowest_loss(undisturbed):
    assert [line["epoch"] for line in undisturbed.log] == [1, 2, 3]
    found = [line["train_loss"] for line in undisturbed.log]
    assert found[-1] < found[0]
    assert undisturbed.result.epoch == 1 + int(np.argmin(found))
    assert undisturbed.result.score == -min(found)
    assert undisturbed.saved["metrics"]["epoch"] == undisturbed.result.epoch
    assert [h["train_loss"] for h in undisturbed.result.history] == found


def test_mean_loss_and_tally_are_of_the_whole_epoch(tmp_path):
    model = build_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train(tmp_path, model=model, num_epochs=1, schedule=lambda step, steps: 0.0)  # nothing is learnt
    reference = build_model().to(memory_format=torch.channels_last)  # dropout draws in the order of memory
    reference.load_state_dict(before)
    plan = draws.batches(draws.shuffled(IMAGES, 17)(0), BATCH, key=(17, 0), rank=0, world_size=1)
    total, counts = 0.0, torch.zeros(2, dtype=torch.int64)
    for step, batch in enumerate(Loader(Noisy())(plan)):
        loop.seed_everything(17, 0, step, 0)
        loss, logits = compute_loss(reference, batch)
        total += loss.item() * len(batch["id"])
        counts += tally(logits, batch)
    line = log_of(tmp_path)[0]
    assert line["train_loss"] == pytest.approx(total / IMAGES, rel=1e-6)
    assert line["predicted"] == counts.tolist()


class Recording(Noisy):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __getitem__(self, draw):
        self.seen.append(draw)
        return super().__getitem__(draw)


def test_each_epoch_has_its_own_order_and_augmentation(tmp_path):
    dataset, order = Recording(), draws.shuffled(IMAGES, 17)
    train(tmp_path, dataset=dataset)
    assert dataset.seen == [(i, (17, epoch, p)) for epoch in range(EPOCHS) for p, i in enumerate(order(epoch))]


def test_schedule_scales_the_learning_rate_of_each_step(tmp_path):
    seen = []
    train(tmp_path, lr=0.5, schedule=lambda step, steps: seen.append((step, steps)) or 1 - step / steps)
    assert seen == [(i, EPOCHS * STEPS) for i in range(EPOCHS * STEPS)]
    assert [line["lr"] for line in log_of(tmp_path)] == pytest.approx([0.5 * (1 - s / 18) for s in (5, 11, 17)])


def test_one_cycle_rises_over_a_fifth_and_falls_to_zero():
    found = [loop.one_cycle(step, 10) for step in range(10)]
    # cosine from 1 at step 2: (1 + cos(pi k / 8)) / 2
    assert found[:4] == pytest.approx([0.5, 1.0, 1.0, 0.9619398])
    assert found[6] == pytest.approx(0.5) and found[9] == pytest.approx(0.0380602)
    assert loop.one_cycle(0, 1) == 1.0


class Killed(Exception):
    pass


class Fatal(Noisy):
    """Dies after some samples."""

    def __init__(self, samples):
        super().__init__()
        self.left = samples

    def __getitem__(self, draw):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return super().__getitem__(draw)


@pytest.mark.parametrize("save_every", [1e-9, 1e9], ids=["after-each-step", "after-epochs-only"])
def test_killed_at_random_steps_it_ends_with_the_same_weights(undisturbed, tmp_path, monkeypatch, save_every):
    monkeypatch.setattr(resuming, "SECONDS_BETWEEN_CHECKPOINTS", -1)
    rng, kills, saved = random.Random(4), 0, {}
    while True:
        loop.seed_everything(rng.randrange(1000))  # whatever else drew random numbers before
        try:
            # Enough samples to complete an epoch, or nothing would be gained where steps are not saved.
            dataset = Fatal(rng.randrange(1, 12) if save_every < 1 else IMAGES + rng.randrange(1, 12))
            model, result = train(tmp_path, dataset=dataset, save_every=save_every, keep=saved)
            break
        except Killed:
            kills += 1
    assert kills >= 2
    assert_same_weights(model, undisturbed.model)
    assert log_of(tmp_path) == undisturbed.log
    assert (result.epoch, result.score) == (undisturbed.result.epoch, undisturbed.result.score)
    for name, tensor in undisturbed.saved["weights"].items():
        assert torch.equal(tensor, saved["weights"][name]), name


def in_child(function):
    """Run `function` in a forked process, which starts in milliseconds. Returns the process."""

    def body():
        torch.set_num_threads(1)
        try:
            function()
        except SystemExit as stop:
            os._exit(stop.code)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    return process


class Slow(Noisy):
    def __getitem__(self, draw):
        time.sleep(0.004)
        return super().__getitem__(draw)


def test_sigkill_at_random_moments_leaves_nothing_that_cannot_go_on(undisturbed, tmp_path):
    rng, kills = random.Random(0), 0
    for _ in range(12):
        child = in_child(lambda: train(tmp_path, dataset=Slow(), save_every=1e-9))
        child.join(rng.uniform(0.05, 0.2))
        if child.exitcode is None:
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
    assert kills >= 2
    model, _ = train(tmp_path)
    assert_same_weights(model, undisturbed.model)
    assert log_of(tmp_path) == undisturbed.log
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != ".training.lock") == ["checkpoint.pt", "log.jsonl"]


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    (tmp_path / ".checkpoint.pt.123.tmp").write_text("half")
    train(tmp_path, num_epochs=1)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    child = in_child(lambda: train(tmp_path, dataset=Slow()))
    while not (tmp_path / "log.jsonl").exists():
        assert child.is_alive()
        time.sleep(0.005)
    with pytest.raises(DataError, match="another run is writing here"):
        train(tmp_path)
    child.join()
    assert child.exitcode == 0


def test_sigterm_saves_and_exits(undisturbed, tmp_path):
    child = in_child(lambda: train(tmp_path, dataset=Slow(), save_every=1e9))
    while not (tmp_path / "log.jsonl").exists() or not (tmp_path / "log.jsonl").read_text():
        assert child.is_alive()
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGTERM)
    child.join()
    assert child.exitcode == resuming.TERMINATED == 143
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["progress"]
    assert 1 <= state["epoch"] < EPOCHS and not state["finished"]
    model, _ = train(tmp_path)
    assert_same_weights(model, undisturbed.model)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def in_group(folder):
    """A slow training with two workers, a group of processes, in its second epoch; and a pipe that ends with them."""
    ends, held = os.pipe()

    def body():
        os.setpgrp()
        train(folder, dataset=Slow(), save_every=1e9, num_workers=2)

    child = in_child(body)
    os.close(held)
    while not (folder / "log.jsonl").exists() or not (folder / "log.jsonl").read_text():
        assert child.is_alive()
        time.sleep(0.005)
    return child, ends


def all_ended(ends, seconds):
    found = select.select([ends], [], [], seconds)[0] == [ends] and os.read(ends, 1) == b""
    os.close(ends)
    return found


def test_sigterm_to_workers_too_saves_and_exits(undisturbed, tmp_path):
    """As torchrun, Slurm and `timeout` send it: to all processes of the group."""
    child, ends = in_group(tmp_path)
    os.killpg(child.pid, signal.SIGTERM)
    child.join(20)
    assert child.exitcode == 143
    assert all_ended(ends, 0.5)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["progress"]["epoch"] >= 1
    model, _ = train(tmp_path)
    assert_same_weights(model, undisturbed.model)
    assert log_of(tmp_path) == undisturbed.log


def test_workers_of_a_killed_run_end(tmp_path):
    child, ends = in_group(tmp_path)
    child.kill()
    assert all_ended(ends, 3)


def test_max_minutes_saves_and_exits(undisturbed, tmp_path):
    for _ in range(EPOCHS * STEPS - 1):  # one step each time; the last one ends the run
        with pytest.raises(SystemExit) as stop:
            train(tmp_path, max_minutes=1e-9, save_every=1e9)
        assert stop.value.code == 143
    model, _ = train(tmp_path, max_minutes=1e-9, save_every=1e9)
    assert_same_weights(model, undisturbed.model)
    assert log_of(tmp_path) == undisturbed.log


def test_a_finished_run_is_not_run_again(undisturbed):
    model, result = train(undisturbed.folder, dataset=Fatal(0))
    assert_same_weights(model, undisturbed.model)
    assert result == undisturbed.result


def test_resume_none_starts_anew(undisturbed, tmp_path):
    train(tmp_path, num_epochs=1)
    model, _ = train(tmp_path, resume="none")
    assert_same_weights(model, undisturbed.model)
    assert log_of(tmp_path) == undisturbed.log


def test_a_new_start_that_is_killed_does_not_bring_the_former_run_back(tmp_path):
    train(tmp_path / "elsewhere", num_epochs=1)
    for resume in ("none", str(tmp_path / "elsewhere" / "checkpoint.pt")):
        train(tmp_path, num_epochs=1, lr=0.5, resume="none")
        with pytest.raises(Killed):
            train(tmp_path, dataset=Fatal(0), resume=resume)
        assert not (tmp_path / "checkpoint.pt").exists() and log_of(tmp_path) == []


def test_the_best_of_another_folder_is_forgotten(tmp_path):
    """Its weights are not here: a lower score must be saved."""
    train(tmp_path, num_epochs=1, score=lambda metrics: 0.9)
    source, saved = str(tmp_path / "checkpoint.pt"), {}
    _, result = train(tmp_path / "b", keep=saved, resume=source, score=lambda metrics: metrics["epoch"] / 10)
    assert (result.epoch, result.score, saved["metrics"]["epoch"]) == (3, 0.3, 3)
    with pytest.raises(DataError, match="checkpoint.pt: 1 epochs are behind it already; raise --num_epochs"):
        train(tmp_path / "c", num_epochs=1, resume=source)
    assert train(tmp_path, num_epochs=1, resume=source)[1].score == 0.9  # its own


def test_what_describes_a_run_is_written_only_by_a_run_that_trains(tmp_path):
    begun = []
    with pytest.raises(Killed):
        train(tmp_path, dataset=Fatal(IMAGES), save_every=1e-9, begin=begun.append)
    with pytest.raises(DataError, match="lr was"):
        train(tmp_path, lr=0.5, begin=begun.append)
    assert begun == [False]
    for _ in range(2):  # the second finds it finished
        train(tmp_path, begin=begun.append)
    assert begun == [False, True]
    train(tmp_path, resume="none", begin=begun.append)
    assert begun == [False, True, False]


def test_a_log_file_gets_a_line_an_epoch(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    train(tmp_path)
    lines = [line for line in caplog.messages if line.startswith("epoch ")]
    number = r"\d\.\d{4}"
    for epoch, line in enumerate(lines, 1):
        assert re.fullmatch(rf"epoch {epoch}/3: loss {number}, score -{number}, \d\.\d s, \d\.\d s left", line), line
    assert len(lines) == 3 and lines[2].endswith(", 0.0 s left")
    caplog.clear()
    shown = loop.tqdm
    monkeypatch.setattr(loop, "tqdm", lambda **options: shown(**options | {"disable": False}))
    train(tmp_path, resume="none")
    assert "epoch 1/3:" not in caplog.text


def test_other_arguments_are_refused_by_name_unless_the_checkpoint_is_named(undisturbed, tmp_path, caplog):
    train(tmp_path, num_epochs=1, lr=0.5)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(DataError, match=r"lr was 0\.5, is 0\.01.*--resume none"):
        train(tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    _, result = train(tmp_path / "other", resume=str(tmp_path / "checkpoint.pt"))
    assert [line["epoch"] for line in log_of(tmp_path / "other")] == [2, 3]
    assert "lr was 0.5, is 0.01" in caplog.text
    # The new learning rate counts, not the checkpoint's.
    assert result.history[0]["lr"] == pytest.approx(0.01 * (1 - 11 / 18))


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_a_damaged_checkpoint_is_named(tmp_path, keep):
    train(tmp_path, num_epochs=1)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"checkpoint\.pt: damaged.*--resume none"):
        train(tmp_path)


def test_a_missing_checkpoint_and_another_network_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere.pt: no such checkpoint"):
        train(tmp_path, resume=str(tmp_path / "nowhere.pt"))
    train(tmp_path, num_epochs=1)
    with pytest.raises(DataError, match="not of this network"):
        train(tmp_path, model=nn.Sequential(nn.Conv2d(3, 2, 1)))


@pytest.mark.parametrize("late", [0, 1], ids=["checked at once", "checked a step late, as on a GPU"])
def test_a_loss_that_is_not_finite_names_the_images_and_saves_nothing(tmp_path, monkeypatch, late):
    build = loop._FiniteCheck.__init__
    monkeypatch.setattr(loop._FiniteCheck, "__init__", lambda c, d: build(c, d) or setattr(c, "_late", late))
    with pytest.raises(DataError, match="became nan in epoch 1 on the images .*patient00007"):
        train(tmp_path, dataset=Noisy(bad=7), save_every=1e-9)
    if (tmp_path / "checkpoint.pt").exists():
        weights = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
        assert all(torch.isfinite(w).all() for w in weights.values())


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", "sent 1, read 1, sent 2, read 2, sent 3, read 3, end"),
        ("cuda", "sent 1, sent 2, read 1, sent 3, read 2, end, read 3"),
    ],
)
def test_a_loss_is_sent_when_made_and_on_a_gpu_read_a_step_later(device, expected, monkeypatch):
    happened = []

    def send(loss):
        happened.append(f"sent {loss:.0f}")
        return lambda: happened.append(f"read {loss:.0f}") or loss.item()

    monkeypatch.setattr(loop, "_on_its_way", send)
    check = loop._FiniteCheck(torch.device(device))
    for loss in (1.0, 2.0, 3.0):
        check.add(torch.tensor(loss), ["patient00001"], 0)
    happened.append("end")
    check.all()
    assert ", ".join(happened) == expected


def test_a_bad_loss_names_its_own_images_though_read_later():
    check = loop._FiniteCheck(torch.device("cuda"))
    check.add(torch.tensor(math.inf), ["first", "second"], 4)
    with pytest.raises(DataError, match="became inf in epoch 5 on the images first, second;"):
        check.add(torch.tensor(1.0), ["third"], 4)


@pytest.mark.parametrize(("first", "save_every"), [(0, 1e-9), (STEPS - 1, 1e9)], ids=["in mid-epoch", "at its end"])
def test_weights_that_are_not_finite_are_not_saved_though_the_loss_is(tmp_path, monkeypatch, first, save_every):
    steps = []

    def flat(network, batch):
        loss, logits = compute_loss(network, batch)
        steps.append(loss)
        root = (logits * 0).abs().sqrt().sum() if len(steps) > first else 0  # 0, and its gradient is not
        return loss + root, logits

    plain = loop.fit
    monkeypatch.setattr(loop, "fit", lambda *given, **options: plain(*given, **options | {"compute_loss": flat}))
    saved = {}
    with pytest.raises(DataError, match=r"weights became infinite or nan in epoch 1 \(.*\); lower --lr"):
        train(tmp_path, save_every=save_every, keep=saved)
    assert len(steps) == first + 1 and saved == {} and not (tmp_path / "checkpoint.pt").exists()


def test_highest_score_wins_and_the_earlier_of_equals(tmp_path):
    scores = iter([0.2, 0.7, float("nan"), 0.7, 0.1])
    saved = {}
    _, result = train(tmp_path, keep=saved, num_epochs=5, evaluate=None, score=lambda metrics: next(scores))
    assert (result.epoch, result.score, saved["metrics"]["epoch"]) == (2, 0.7, 2)


def test_the_best_weights_are_those_of_their_epoch_though_saved_later(tmp_path):
    first, saved = build_model(), {}
    train(tmp_path / "first", model=first, num_epochs=1, schedule=None)
    train(tmp_path / "all", keep=saved, schedule=None, score=lambda metrics: -metrics["epoch"])
    assert saved["metrics"]["epoch"] == 1
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, saved["weights"][name]), name


def test_a_failure_in_mid_write_leaves_the_former_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(SystemExit):
        train(tmp_path, max_minutes=1e-9)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def full_disk(content, path):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(DataError, match="No space left"):
        train(tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))


def test_numpys_numbers_among_the_metrics_do_not_spoil_a_checkpoint(tmp_path):
    _, result = train(tmp_path, evaluate=lambda network, counts: {"value": np.float64(0.5)})
    _, again = train(tmp_path, evaluate=lambda network, counts: {"value": np.float64(0.5)})
    assert again == result and result.metrics["value"] == 0.5


def test_metrics_that_json_cannot_hold_fail_at_once(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        train(tmp_path, evaluate=lambda network, counts: {"predicted": counts})


def test_evaluation_is_in_eval_mode_without_gradients_and_training_goes_on(tmp_path):
    seen = []

    def evaluate(network, counts):
        seen.append((network.training, torch.is_grad_enabled()))
        return {}

    model, _ = train(tmp_path, evaluate=evaluate)
    assert seen == [(False, False)] * EPOCHS
    assert model[1].num_batches_tracked.item() == EPOCHS * STEPS


def test_workers_do_not_outlive_a_training_that_stops(tmp_path):
    with pytest.raises(SystemExit):  # as long as it is looked at, its frames hold the loader
        try:
            train(tmp_path, num_workers=2, max_minutes=1e-9)
        finally:
            assert not multiprocessing.active_children()


def test_workers_change_nothing(undisturbed, tmp_path):
    model, _ = train(tmp_path, num_workers=2)
    assert_same_weights(model, undisturbed.model)


def test_memory_layout_changes_only_rounding(tmp_path):
    weights = []
    for layout in (True, False):
        model, _ = train(tmp_path / str(layout), model=build_model(dropout=0.0), channels_last=layout)
        assert model[0].weight.is_contiguous(memory_format=torch.channels_last) == layout
        weights.append(model.state_dict())
    for name, tensor in weights[0].items():
        assert_close(tensor, weights[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_bf16_is_close_and_keeps_weights_in_float32(undisturbed, tmp_path):
    model, result = train(tmp_path, precision="bf16")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    found = [h["train_loss"] for h in result.history]
    assert found == pytest.approx([line["train_loss"] for line in undisturbed.log], abs=0.02)
    assert found != [line["train_loss"] for line in undisturbed.log]


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


def test_options_of_the_command_line_are_those_of_fit():

    parser = cli.make_parser("")
    loop.add_options(parser, num_epochs=20, batch_size=8, lr=1e-4)
    cli.add_run_options(parser, shard_size=None)
    args = parser.parse_args(["--precision", "bf16", "--channels_last", "False", "--max_minutes", "3"])
    found = loop.options(args)
    assert found.items() >= {"precision": "bf16", "channels_last": False, "max_minutes": 3.0, "seed": 17}.items()
    assert set(found) <= set(loop.fit.__kwdefaults__) | set(loop.fit.__annotations__)
