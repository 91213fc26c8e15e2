"""A small world to train and test segmentation networks in: images with bright rectangles, masks, a classifier."""

import json
import multiprocessing
import os
import random
import runpy
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import constants
from chexseg.classifier import models
from chexseg.data import mask_files, rle

ROOT = Path(__file__).resolve().parents[2]
TASKS = constants.LOCALIZATION_TASKS
SIZE = 32
SMALL = f"--image_size {SIZE} --batch_size 4 --num_epochs 2 --architecture DeepLabV3Plus --encoder resnet10w32"
SMALL += " --decoder_channels 16 --lr 0.003 --encoder_weights_type CheXpert --encoder_weights {world}/classifier.ckpt"
WEAK = "--train_masks_path {world}/pseudo.json --eval_masks_path {world}/eval.json"
FULL = "--train_set valid --train_masks_path {world}/expert.json --eval_masks_path {world}/eval.json"
SEMI = (
    "--ss_expert_annotations_masks_path {world}/expert.json --ss_dnn_generated_masks_path {world}/pseudo.json "
    "--eval_masks_path {world}/eval.json --semi_supervised True"
)
COMMON = " --valid_common_pathologies True"
TEST = "--model_path {run}/best_model.pth --output_path {out}/predicted.json --batch_size 2 --shard_size 2"


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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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
        # SIGTERM ends a process that has not yet come to its handler, as it ends any other: 143 in a shell, -15 here.
        assert child.exitcode in (-signal.SIGKILL, -signal.SIGTERM, 143, 0)
        kills += 1
        longest *= 1.2
