"""segmentation_train.py and segmentation_test.py: the README's three ways, kills, ranks, and errors in one line."""

import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import constants
from chexseg.classifier import models
from chexseg.data import mask_files, rle
from chexseg.data.mask_files import MaskFile
from tests.irnet.six_films import assert_light

ROOT = Path(__file__).resolve().parents[2]
TASKS = constants.LOCALIZATION_TASKS
SIZE = 32


def write_set(root, split, count, masks_path, first):
    """Images with bright rectangles and their masks; three tasks occur, one record lacks tasks."""
    rng, entries = np.random.default_rng(first), []
    for i in range(first, first + count):
        height, width = rng.integers(30, 44, 2)
        image, name = rng.integers(20, 60, (height, width), dtype=np.uint8), f"patient{i:05d}_study1_view1_frontal"
        record = {}
        for level, task in enumerate(TASKS):
            mask = np.zeros((height, width), np.uint8)
            if task in ("Cardiomegaly", "Atelectasis", "Support Devices"):
                top, left = rng.integers(0, 15, 2)
                mask[top : top + 12, left : left + 9] = 1
                image[mask > 0] = 90 + 16 * level
            if i != first + 1 or task != "Edema":
                record[task] = rle.encode(mask[None])[0]
        path = root / "CheXpert" / "CheXpert-v1.0" / split / f"patient{i:05d}" / "study1" / "view1_frontal.jpg"
        path.parent.mkdir(parents=True)
        Image.fromarray(image).save(path)
        entries.append((name, record))
    mask_files.write(masks_path, entries)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data, masks files and a classifier; nothing writes to it but the cache."""
    root = tmp_path_factory.mktemp("world")
    (root / "base").mkdir()
    (root / "labels").mkdir()
    write_set(root, "train", 9, root / "pseudo.json", 100)
    write_set(root, "valid", 8, root / "expert.json", 200)
    write_set(root, "valid", 4, root / "eval.json", 300)
    write_set(root, "test", 5, root / "labels" / "test_encoded.json", 400)
    torch.manual_seed(0)
    spec = models.ClassifierSpec("resnet10w32", constants.OBSERVATIONS)
    models.save_classifier(root / "classifier.ckpt", models.Classifier(spec))
    return root


@pytest.fixture(autouse=True)
def environment(monkeypatch, world, tmp_path):
    monkeypatch.setenv("CHEXPERT_DATA_DIR", str(world))
    monkeypatch.setenv("OBJ_EFFICIENCY_BASE_PATH", str(world / "base"))
    monkeypatch.setenv("TEST_SEG_LABELS_GT_BASE_PATH", str(world / "labels"))
    monkeypatch.chdir(tmp_path)


SMALL = f"--image_size {SIZE} --batch_size 4 --num_epochs 2 --architecture DeepLabV3Plus --encoder resnet10w32"
SMALL += " --decoder_channels 16 --lr 0.003 --encoder_weights_type CheXpert --encoder_weights {world}/classifier.ckpt"
WEAK = "--train_masks_path {world}/pseudo.json --eval_masks_path {world}/eval.json"
FULL = "--train_set valid --train_masks_path {world}/expert.json --eval_masks_path {world}/eval.json"
SEMI = (
    "--ss_expert_annotations_masks_path {world}/expert.json --ss_dnn_generated_masks_path {world}/pseudo.json "
    "--eval_masks_path {world}/eval.json --semi_supervised True"
)
COMMON = " --valid_common_pathologies True"


def arguments(world, *parts):
    return " ".join(parts).format(world=world).split()


def run_script(script, given, capsys=None):
    """Run a script in this process, where torch is loaded already. Returns status and what it said on stderr."""
    former, sys.argv = sys.argv, [str(ROOT / script), *given]
    handler = signal.getsignal(signal.SIGTERM)
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as stop:
        return stop.code, capsys.readouterr().err if capsys else ""
    finally:
        sys.argv = former
        signal.signal(signal.SIGTERM, handler)


def train(world, *parts, capsys=None):
    return run_script("segmentation_train.py", arguments(world, SMALL, *parts), capsys)


def weights_of(folder):
    return torch.load(folder / "best_model.pth", weights_only=True)["state_dict"]


def history(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


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
        ".training.lock", "args.json", "best_model.pth", "checkpoint.pt", "log.jsonl", "thresholds.txt",
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


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """One finished run and its predictions, to compare others with."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHEXPERT_DATA_DIR", str(world))
        patch.setenv("OBJ_EFFICIENCY_BASE_PATH", str(world / "base"))
        patch.setenv("TEST_SEG_LABELS_GT_BASE_PATH", str(world / "labels"))
        parts = [SEMI, "--weighted True", COMMON, f"--save_dir {folder} --experiment_name run --num_epochs 3 --augment"]
        assert train(world, *parts)[0] == 0
        assert run_script("segmentation_test.py", arguments(world, TEST.format(run=folder / "run", out=folder)))[0] == 0
    return folder


TEST = "--model_path {run}/best_model.pth --output_path {out}/predicted.json --batch_size 2 --shard_size 2"


def test_predictions_are_of_the_original_size_and_complete(world, trained):
    predicted, truth = MaskFile(trained / "predicted.json"), MaskFile(world / "labels" / "test_encoded.json")
    assert list(predicted) == sorted(truth)
    for name, record in predicted.items():
        assert list(record) == list(TASKS)
        assert {tuple(m["size"]) for m in record.values()} == {tuple(truth[name]["Cardiomegaly"]["size"])}
    assert any(rle.area(record.values()).any() for record in predicted.values())


def test_the_printed_iou_is_pooled(world, trained, tmp_path, capsys):
    (trained / "predicted.json").rename(tmp_path / "predicted.json")
    try:
        mask_files.write(trained / "predicted.json", MaskFile(world / "labels" / "test_encoded.json").items())
        module = runpy.run_path(str(ROOT / "segmentation_test.py"), run_name="imported")
        truth = MaskFile(world / "labels" / "test_encoded.json")
        module["report"](MaskFile(tmp_path / "predicted.json"), truth)
    finally:
        (tmp_path / "predicted.json").rename(trained / "predicted.json")
    shown = capsys.readouterr().out
    intersection = union = 0
    predicted = MaskFile(trained / "predicted.json")
    for name in truth:
        ours, true = (rle.decode([found[name]["Atelectasis"]])[0] for found in (predicted, truth))
        intersection, union = intersection + (ours & true).sum(), union + (ours | true).sum()
    line = next(line for line in shown.splitlines() if line.startswith("Atelectasis"))
    assert line.split()[1:] == [f"{intersection / union:.4f}", "5", "images"]
    assert "does not occur" in next(line for line in shown.splitlines() if line.startswith("Edema"))


def test_up_to_date_predictions_need_no_torch(world, trained):
    assert_light("segmentation_test.py", *arguments(world, TEST.format(run=trained / "run", out=trained)))


def killed_at_random(script, given, seed, longest):
    """Start the script in forked processes, kill each after a while, until one ends by itself. Returns the kills."""

    def body():
        torch.set_num_threads(1)
        os._exit(run_script(script, given)[0])

    rng, kills = random.Random(seed), 0
    while True:
        child = multiprocessing.get_context("fork").Process(target=body)
        child.start()
        child.join(rng.uniform(0.1, longest))
        if child.exitcode is not None:
            assert child.exitcode == 0
            return kills
        os.kill(child.pid, signal.SIGKILL if kills % 2 else signal.SIGTERM)
        child.join()
        assert child.exitcode in (-signal.SIGKILL, 143, 0)
        kills += 1
        longest *= 1.2


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
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
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


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[0.5]", "a list of 10"),
        ("[2, 0, 0, 0, 0, 0, 0, 0, 0, 0]", "from 0 to 1"),
        ("{", "not JSON"),
        (None, "no such"),
    ],
)
def test_wrong_thresholds_are_named(world, trained, tmp_path, capsys, content, named):
    path = tmp_path / "thresholds.txt"
    if content is not None:
        path.write_text(content)
    given = arguments(world, TEST.format(run=trained / "run", out=tmp_path), f"--thresholds_path {path}")
    status, err = run_script("segmentation_test.py", given, capsys)
    assert status == 1 and "thresholds.txt" in err and named in err
    assert not (tmp_path / "predicted.json").exists()
