"""The record of a run: written by a run that trains, and what later says that it ended, without torch."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from chexseg.errors import DataError
from chexseg.runtime import provenance
from chexseg.training import loop, tracking
from chexseg.training.options import RunOptions
from chexseg.training.run_record import Run
from tests.training.small import IMAGES, Fatal, Killed, Noisy, SmallTrainer, build_model, train


def test_what_describes_a_run_is_written_only_by_a_run_that_trains(tmp_path, monkeypatch):
    begun, path = [], tmp_path / "args.json"
    monkeypatch.setattr(tracking.Wandb, "start", lambda self, resumed: begun.append(resumed))
    with pytest.raises(Killed):
        train(tmp_path, dataset=Fatal(IMAGES), save_every=1e-9, record_path=path)
    before = path.read_bytes()
    with pytest.raises(DataError, match="lr was"):
        train(tmp_path, lr=0.5, record_path=path)
    assert begun == [False] and path.read_bytes() == before
    for _ in range(2):  # the second finds it finished
        train(tmp_path, record_path=path)
    assert begun == [False, True]
    train(tmp_path, resume="none", record_path=path)
    assert begun == [False, True, False]


class Saving(SmallTrainer):
    def save_best(self, weights, metrics):
        torch.save(weights, self.saved)


@pytest.fixture
def finished(tmp_path):
    """A run of one epoch that ended: how to start it again, and its `Run`."""
    (tmp_path / "masks.json").write_text("{}")
    record = provenance.describe({"lr": 0.01, "masks": "masks.json", "num_workers": 2}, [tmp_path / "masks.json"])
    path = tmp_path / "run" / "args.json"
    run = Run(tmp_path / "run", record, best=(tmp_path / "best.pth",), record_path=path, places=("masks",))

    def start(**options):
        trainer = Saving(build_model(), options.pop("dataset", Noisy()), 0.01, tmp_path / "best.pth")
        return loop.fit(trainer, run, RunOptions(num_epochs=1, batch_size=4, lr=0.01, **options))

    start()
    return start, run


def test_a_run_that_ended_is_known_by_its_record(finished, caplog):
    caplog.set_level("INFO")
    start, run = finished
    assert run.looks_finished("auto") and run.finished_before()
    best = json.loads(run.record_path.read_text())["best"]
    assert best["epoch"] == 1
    assert caplog.messages[-2:] == [
        f"{run.folder}: finished before; nothing to do",
        f"{run.best[0]}: best epoch 1, mean training loss {best['train_loss']:.4f}",
    ]
    said = caplog.messages[-2:]
    start(dataset=Fatal(0))  # the long way says the same
    assert caplog.messages[-2:] == said


@pytest.mark.parametrize("resume", ["none", "elsewhere/checkpoint.pt"])
def test_who_asks_for_another_start_gets_it(finished, resume):
    assert not finished[1].looks_finished(resume)


@pytest.mark.parametrize(
    ("name", "change", "looks"),
    [
        ("another argument", lambda run: run.with_record(run.record | {"arguments": {"lr": 0.5}}), False),
        ("other code", lambda run: run.with_record(run.record | {"code": "other"}), False),
        ("another input", lambda run: run.with_inputs([run.record_path]), True),
        ("an input more", lambda run: run.with_inputs([run.folder.parent / "masks.json", None]), True),
        ("no best file known", lambda run: replace(run, best=()), True),
    ],
)
def test_another_run_is_another_run(finished, name, change, looks):
    run = change(finished[1])
    assert run.looks_finished("auto") == looks and not run.finished_before()


def test_how_and_where_it_runs_does_not_matter(finished, tmp_path):
    _, run = finished
    moved = (tmp_path / "masks.json").rename(tmp_path / "renamed.json")
    arguments = run.record["arguments"] | {"num_workers": 0, "max_minutes": 3, "masks": "renamed.json"}
    again = run.with_record(run.record | {"arguments": arguments}).with_inputs([moved])
    assert again.looks_finished("auto") and again.finished_before()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda run: run.best[0].unlink(),
        lambda run: run.best[0].write_bytes(run.best[0].read_bytes()[:-1]),
        lambda run: run.checkpoint.unlink(),
        lambda run: run.record_path.unlink(),
        lambda run: run.record_path.write_text("{"),
        lambda run: run.record_path.write_text("[]"),
        lambda run: run.begin(),  # a run that was killed after it began
    ],
    ids=["best gone", "best damaged", "checkpoint gone", "no record", "torn", "a list", "begun anew"],
)
def test_in_doubt_the_checkpoint_is_looked_at(finished, spoil):
    _, run = finished
    spoil(run)
    assert not run.finished_before()


def test_a_best_network_that_is_gone_or_damaged_is_named(finished):
    start, run = finished
    whole = run.best[0].read_bytes()
    run.best[0].write_bytes(whole[:-1] + b"\1")
    with pytest.raises(DataError, match=r"best\.pth: changed since it was trained .*--resume none"):
        start()
    run.best[0].unlink()
    with pytest.raises(DataError, match=r"best\.pth: no longer there; train again with --resume none"):
        start()
    start(resume="none")
    assert run.best[0].read_bytes() == whole and run.finished_before()


def test_a_record_that_a_kill_left_without_its_end_is_completed(finished):
    """Killed after the last checkpoint: nothing is trained again, and the next start needs no torch."""
    start, run = finished
    run.begin()
    assert not run.looks_finished("auto")
    start(dataset=Fatal(0))
    assert run.looks_finished("auto") and run.finished_before()


def test_a_new_start_that_is_killed_is_not_taken_for_the_former_run(finished):
    start, run = finished
    with pytest.raises(Killed):
        start(dataset=Fatal(0), resume="none")
    assert not run.looks_finished("auto")


def test_none_of_it_imports_torch():
    code = "import sys, chexseg.training.options, chexseg.training.run_record, chexseg.segmentation.dataset\n"
    code += "import chexseg.classifier.labelled, chexseg.classifier.torch_cache\n"
    code += "print([name for name in ('torch', 'torchvision', 'segmentation_models_pytorch') if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
