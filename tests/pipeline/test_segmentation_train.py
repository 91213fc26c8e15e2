"""segmentation_train.py: the README's three ways, kills, ranks, unknown masks, and errors in one line."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

import constants
from chexseg.data import leak_guard, mask_files
from chexseg.data.mask_files import MaskFile
from tests.pipeline.segmentation_world import (
    COMMON,
    FULL,
    ROOT,
    SEMI,
    SMALL,
    TASKS,
    TEST,
    WEAK,
    arguments,
    environment,  # noqa: F401
    history,
    killed_at_random,
    run_script,
    train,
    weights_of,
)


@pytest.mark.parametrize(
    ("name", "parts", "draws_an_epoch", "scored"),
    [
        ("weakly_supervised", [WEAK], 9, "miou"),
        ("fully_supervised", [FULL, COMMON], 8, "common_iou"),
        ("semi_supervised", [SEMI, "--weighted True --strong_labels_weight 0.9", COMMON], 17, "common_iou"),
        ("shorter_epochs", [SEMI, "--weighted True --epoch_len 6"], 6, "miou"),
        ("concatenated", [SEMI, "--augment"], 17, "miou"),
    ],
)
def test_the_readmes_ways_of_training(world, tmp_path, capsys, name, parts, draws_an_epoch, scored):
    names = f"--save_dir seg_trials --experiment_name {name} --wandb_run_name {name}"
    status, err = train(world, names, *parts, capsys=capsys)
    assert status == 0, err
    folder = tmp_path / "seg_trials" / name
    assert {p.name for p in folder.iterdir()} == {
        ".training.lock", "args.json", "best_model.pth", "best_model.pth.chosen_on.json", "checkpoint.pt", "log.jsonl",
        "thresholds.txt", "thresholds.txt.chosen_on.json",
    }  # fmt: skip
    lines = history(folder)
    assert [line["epoch"] for line in lines] == [1, 2]
    best = max(lines, key=lambda line: line[scored])
    thresholds = json.loads((folder / "thresholds.txt").read_text())
    assert thresholds == best["thresholds"] and len(thresholds) == 10
    assert [task for task, iou in best["iou"].items() if iou is not None] == [
        "Cardiomegaly", "Atelectasis", "Support Devices",
    ]  # fmt: skip
    recorded = json.loads((folder / "args.json").read_text())
    assert recorded["arguments"]["seed"] == 17 and recorded["arguments"]["batch_size"] == 4
    steps = torch.load(folder / "checkpoint.pt", weights_only=True)["optimizer"]["state"][0]["step"].item()
    assert steps == 2 * -(-draws_an_epoch // 4)
    spec = torch.load(folder / "best_model.pth", weights_only=True)["spec"]
    assert spec["normalisation"] == "imagenet" and tuple(spec["tasks"]) == TASKS


def test_killed_training_and_test_end_as_if_undisturbed(world, trained, tmp_path):
    parts = [SEMI, "--weighted True", COMMON, f"--save_dir {tmp_path} --experiment_name run --num_epochs 3 --augment"]
    given = arguments(world, SMALL, *parts, "--save_every 0.000001")
    assert killed_at_random("segmentation_train.py", given, 1, 0.6) >= 2
    for name, tensor in weights_of(trained / "run").items():
        assert torch.equal(tensor, weights_of(tmp_path / "run")[name]), name
    assert history(tmp_path / "run") == history(trained / "run")
    killed_at_random("segmentation_test.py", arguments(world, TEST.format(run=trained / "run", out=tmp_path)), 2, 0.3)
    assert (tmp_path / "predicted.json").read_bytes() == (trained / "predicted.json").read_bytes()


def test_two_ranks_by_torchrun(world, trained, tmp_path):
    """One start for both stages: their options go to a script that runs one after the other."""
    both = tmp_path / "both.py"
    seg = arguments(
        world, SMALL, SEMI, "--weighted True", COMMON, f"--save_dir {tmp_path} --experiment_name run --augment"
    )
    test = arguments(world, TEST.format(run=trained / "run", out=tmp_path))
    both.write_text(
        "import runpy, sys\n"
        "from chexseg.runtime import distributed\n"
        "distributed.cleanup = lambda: None\n"
        f"for script, given in (('segmentation_train.py', {seg}), ('segmentation_test.py', {test})):\n"
        f"    sys.argv = [script, *given]\n"
        "    try:\n"
        f"        runpy.run_path({str(ROOT)!r} + '/' + script, run_name='__main__')\n"
        "    except SystemExit as stop:\n"
        "        assert stop.code == 0, stop.code\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(both)]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, err = started.communicate(timeout=100)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
    assert started.returncode == 0, err
    assert (tmp_path / "predicted.json").read_bytes() == (trained / "predicted.json").read_bytes()
    lines = history(tmp_path / "run")
    assert [line["epoch"] for line in lines] == [1, 2]
    # The same but for dropout, whose random numbers depend on the rank.
    assert lines[0]["train_loss"] == pytest.approx(history(trained / "run")[0]["train_loss"], abs=0.02)
    assert err.count("segmentation_train.py: done") == 1


def test_run_again_it_trains_no_more(world, trained, capsys):
    before = {p.name: p.read_bytes() for p in (trained / "run").iterdir() if p.suffix in (".pth", ".pt", ".jsonl")}
    parts = [SEMI, "--weighted True", COMMON, f"--save_dir {trained} --experiment_name run --num_epochs 3 --augment"]
    assert train(world, *parts, capsys=capsys)[0] == 0
    assert before == {p.name: p.read_bytes() for p in (trained / "run").iterdir() if p.name in before}


WRONG = [
    (2, WEAK + " --semi_supervised True", "needs --ss_expert_annotations_masks_path"),
    (2, SEMI + " --train_masks_path {world}/pseudo.json", "--train_masks_path does not go with --semi_supervised True"),
    (2, "--eval_masks_path {world}/eval.json", "needs --train_masks_path"),
    (2, WEAK + " --weighted True", "--weighted True needs --semi_supervised True"),
    (2, WEAK + " --strong_labels_weight 1.5", "a number from 0 to 1"),
    (2, WEAK + " --image_size 40", "--image_size 40 must be a multiple of 16"),
    (2, WEAK + " --architecture Nothing", "--architecture Nothing"),
    (2, WEAK + " --encoder_weights none", "--encoder_weights_type CheXpert needs --encoder_weights"),
    (1, WEAK + " --encoder_weights {world}/nowhere.ckpt", "nowhere.ckpt: no such checkpoint"),
    (1, WEAK + " --encoder resnet18", "holds a resnet10w32, but --encoder is resnet18"),
    (1, "--train_masks_path {world}/nowhere.json --eval_masks_path {world}/eval.json", "nowhere.json: no such masks"),
    (1, "--train_masks_path {world}/classifier.ckpt --eval_masks_path {world}/eval.json", "classifier.ckpt"),
    (1, WEAK + " --resume nowhere.pt", "nowhere.pt: no such checkpoint"),
    (1, WEAK + " --lr 1e30 --num_epochs 9", "the loss became nan in epoch"),
]


@pytest.mark.parametrize(("status", "given", "named"), WRONG)
def test_what_is_wrong_is_named_in_one_line(world, tmp_path, capsys, status, given, named):
    found, err = train(world, given, capsys=capsys)
    last = err.strip().splitlines()[-1]
    assert found == status and named in last and "error:" in last
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("best_model.pth"))


def test_files_may_move_between_runs(world, trained, tmp_path, capsys):
    for name in ("expert.json", "pseudo.json", "eval.json"):
        shutil.copy(world / name, tmp_path)
    parts = [SEMI, "--weighted True", COMMON, "--experiment_name run --num_epochs 3 --augment --save_dir"]
    given = arguments(world, SMALL) + arguments(tmp_path, *parts, str(trained))
    status, err = run_script("segmentation_train.py", given, capsys)
    assert status == 0, err


def test_augmentation_is_an_option(world, tmp_path):
    for name in ("plain", "--augment"):
        assert train(world, WEAK, "--num_epochs 1", f"--experiment_name={name}", *[name] * (name != "plain"))[0] == 0
    found = [history(tmp_path / "seg_trials" / name)[0]["train_loss"] for name in ("plain", "--augment")]
    assert found[0] != found[1]


def test_other_arguments_are_refused_by_name(world, trained, capsys):
    parts = [SEMI, "--weighted True", COMMON, f"--save_dir {trained} --experiment_name run --num_epochs 3 --augment"]
    before = (trained / "run" / "args.json").read_bytes()
    status, err = train(world, *parts, "--lr 0.5", capsys=capsys)
    assert status == 1 and "lr was 0.003, is 0.5" in err
    assert (trained / "run" / "args.json").read_bytes() == before


def test_exchanged_masks_are_another_run(world, trained, capsys):
    swapped = SEMI.replace("expert.json", "other.json").replace("pseudo.json", "expert.json")
    parts = [swapped.replace("other.json", "pseudo.json"), "--weighted True", COMMON, f"--save_dir {trained}"]
    status, err = train(world, *parts, "--experiment_name run --num_epochs 3 --augment", capsys=capsys)
    assert status == 1 and "input files or code changed" in err


def test_masks_that_no_epoch_can_be_chosen_by_are_named_before_training(world, tmp_path, capsys):
    found = {name: {"Edema": record["Cardiomegaly"]} for name, record in MaskFile(world / "eval.json").items()}
    mask_files.write(tmp_path / "edema.json", found.items())
    parts = [WEAK, f"--eval_masks_path {tmp_path}/edema.json --experiment_name run --num_epochs 1"]
    status, err = train(world, *parts, COMMON, capsys=capsys)
    assert status == 1
    assert f"edema.json: no mask of {', '.join(constants.COMMON_TASKS)} has a pixel" in err.strip().splitlines()[-1]
    assert not (tmp_path / "seg_trials").exists()
    assert train(world, *parts)[0] == 0  # all tasks: this one is among them


def split_tasks(world, folder):
    """The expert masks in two files: Cardiomegaly alone on every second image, on the others all tasks but it."""
    masks = MaskFile(world / "expert.json")
    alone = [(name, {"Cardiomegaly": masks[name]["Cardiomegaly"]}) for name in sorted(masks)[::2]]
    others = [
        (name, {task: coded for task, coded in masks[name].items() if task != "Cardiomegaly"})
        for name in sorted(masks)[1::2]
    ]
    mask_files.write(folder / "alone.json", alone)
    mask_files.write(folder / "others.json", others)


@pytest.mark.parametrize("loss", ["dice", "bce_dice"])
def test_sets_with_different_annotations_train_one_network(world, tmp_path, caplog, loss):
    caplog.set_level("INFO")
    split_tasks(world, tmp_path)
    leak_guard.record(tmp_path / "teacher.pth", {"trained": ["patient00400"]})
    leak_guard.inherit(tmp_path / "alone.json", [tmp_path / "teacher.pth"])  # as if a network had drawn them
    both = f"--train_set valid --train_masks_path {tmp_path}/alone.json {tmp_path}/others.json --loss {loss} --ema 0.9"
    assert train(world, both, "--eval_masks_path {world}/eval.json {world}/eval.json")[0] == 0
    folder = tmp_path / "seg_trials" / "segmentation"
    thresholds = dict(zip(TASKS, json.loads((folder / "thresholds.txt").read_text()), strict=True))
    assert thresholds["Edema"] == 1.0 and thresholds["Cardiomegaly"] < 1  # nobody drew Edema: it is never predicted
    sources = history(folder)[0]["threshold_sources"]
    assert sources["Edema"] == "none" and sources["Cardiomegaly"] == "validation"  # 2 x 4 positive images
    said = "Cardiomegaly: training 4 with, 0 without, 4 unknown; validation 8 with, 0 without, 0 unknown; "
    assert f"{said}threshold from validation" in caplog.messages
    assert "Edema: training 0 with, 3 without, 5 unknown" in caplog.text  # one entry of the world lacks it anyway
    assert "Edema: no training image shows it, so that it is not learnt and never predicted" in caplog.messages
    record = leak_guard.read(folder / "best_model.pth")
    assert len(record["best_model.pth"]["trained"]) == 8 and len(record["best_model.pth"]["epoch and thresholds"]) == 4
    assert record["teacher.pth"] == {"trained": [leak_guard.hashed("patient00400")]}


def test_what_is_unknown_does_not_change_the_network(world, tmp_path):
    """Masks that a file leaves out train as little as none at all; as empty masks they train another network."""
    masks = MaskFile(world / "expert.json")
    for name, change in (
        ("unknown", lambda entry: {task: entry[task] for task in entry if task != "Support Devices"}),
        ("absent", lambda entry: entry | {"Support Devices": entry["Edema" if "Edema" in entry else "Pneumothorax"]}),
    ):
        mask_files.write(tmp_path / f"{name}.json", ((image, change(masks[image])) for image in masks))
        given = f"--train_set valid --train_masks_path {tmp_path}/{name}.json --experiment_name {name}"
        assert train(world, given, "--eval_masks_path {world}/eval.json --num_epochs 1")[0] == 0
    head = "segmentation_head.0.weight"
    weights = {name: weights_of(tmp_path / "seg_trials" / name)[head] for name in ("unknown", "absent")}
    start = train(world, WEAK, "--num_epochs 1 --lr 1e-30 --experiment_name start")
    initial = weights_of(tmp_path / "seg_trials" / "start")[head]
    row = TASKS.index("Support Devices")
    assert start[0] == 0 and torch.allclose(weights["unknown"][row], initial[row], atol=1e-6)
    assert not torch.allclose(weights["absent"][row], initial[row], atol=1e-4)
