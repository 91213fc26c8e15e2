"""Checkpoints: killed anywhere a training ends with the same weights; what cannot be continued is named."""

import os
import random
import select
import signal
import time
import zipfile

import pytest
import torch
from torch import nn

from chexseg.errors import DataError
from chexseg.training import loop, resuming
from tests.training.small import (
    EPOCHS,
    IMAGES,
    STEPS,
    Fatal,
    Killed,
    Slow,
    assert_same_weights,
    in_child,
    log_of,
    train,
)


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


@pytest.mark.parametrize("damage", ["empty", "start only", "end gone", "a byte flipped", "other content"])
def test_a_damaged_checkpoint_is_named_and_training_starts_anew(undisturbed, tmp_path, caplog, damage):
    with pytest.raises(SystemExit):
        train(tmp_path, max_minutes=1e-9)
    path = tmp_path / "checkpoint.pt"
    data = bytearray(path.read_bytes())
    keep = {"empty": 0, "start only": 100, "end gone": -100}.get(damage, len(data))
    if damage == "a byte flipped":
        with zipfile.ZipFile(path) as parts:
            largest = max(parts.infolist(), key=lambda part: part.file_size)
            data[data.find(parts.read(largest))] ^= 1
    path.write_bytes(data[:keep])
    if damage == "other content":
        torch.save({"progress": {"epoch": 1, "steps": 2}}, path)
    with pytest.raises(DataError, match=r"checkpoint\.pt: damaged, or no checkpoint of ours .*name another one"):
        train(tmp_path / "other", resume=str(path))
    model, _ = train(tmp_path)
    assert "checkpoint.pt: damaged" in caplog.text and "starts anew" in caplog.text
    assert_same_weights(model, undisturbed.model)
    assert log_of(tmp_path) == undisturbed.log


def _deflated(path, state):
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in parts.items():
            new.writestr(name, content)


def _moments(state):
    for values in state["optimizer"]["state"].values():
        values["exp_avg"] = torch.zeros(3, 5)


STRANGE = {
    "compressed": _deflated,
    "a repeated number": lambda path, state: state["model"].update(a=torch.zeros(1).expand(10**9)),
    "a negative epoch": lambda path, state: state["progress"].update(epoch=-1),
    "an epoch as text": lambda path, state: state["progress"].update(epoch="1"),
    "sums of texts": lambda path, state: state["progress"].update(totals=["1", "2"]),
    "a tally of texts": lambda path, state: state["progress"].update(tally=["1", "2"]),
    "no best": lambda path, state: state["progress"].update(best="best"),
    "arguments of tensors": lambda path, state: state.update(arguments={"lr": torch.zeros(3)}),
    "arguments without names": lambda path, state: state.update(arguments={1: 2, "lr": 3}),
    "weights without names": lambda path, state: state.update(model=[1]),
    "moments of another shape": lambda path, state: _moments(state),
    "no group": lambda path, state: state["optimizer"].update(param_groups=[]),
    "a rate as text": lambda path, state: state["optimizer"]["param_groups"][0].update(eps="x"),
    "a tally of another shape": lambda path, state: state["progress"].update(tally=torch.zeros(3, 7)),
}


@pytest.mark.parametrize("how", STRANGE)
def test_a_checkpoint_that_no_run_writes_is_named(tmp_path, caplog, how):
    """Left out with a word, or refused; never a failure in the middle of the training."""
    with pytest.raises(SystemExit):
        train(tmp_path, max_minutes=1e-9)
    path = tmp_path / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    STRANGE[how](path, state)
    if how != "compressed":
        torch.save(state, path)
    try:
        train(tmp_path, num_epochs=1)
    except DataError as error:
        assert "--resume none" in str(error)
    else:
        assert "checkpoint.pt: damaged (" in caplog.text and "starts anew" in caplog.text


def test_a_checkpoint_that_may_not_be_read_is_kept(tmp_path, monkeypatch):
    """Not to be read now is not to be damaged."""
    with pytest.raises(SystemExit):
        train(tmp_path, max_minutes=1e-9)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    for fault in (PermissionError(13, "Permission denied"), MemoryError()):
        with monkeypatch.context() as patched:
            patched.setattr(torch, "load", lambda *args, fault=fault, **options: (_ for _ in ()).throw(fault))
            with pytest.raises((DataError, MemoryError, PermissionError), match="Permission denied|^$"):
                train(tmp_path)
        assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_missing_checkpoint_and_another_network_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere.pt: no such checkpoint"):
        train(tmp_path, resume=str(tmp_path / "nowhere.pt"))
    train(tmp_path, num_epochs=1)
    with pytest.raises(DataError, match="not of this network"):
        train(tmp_path, model=nn.Sequential(nn.Conv2d(3, 2, 1)))


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
