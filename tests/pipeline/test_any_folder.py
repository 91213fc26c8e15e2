"""The classifier on any folder of X-rays, and training on any folder with a masks JSON."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from chexseg.classifier.saliency_store import StoredMaps
from chexseg.data import mask_files, rle
from chexseg.data.images import read_image
from tests.pipeline import stages

TASK = "Cardiomegaly"


@pytest.fixture(scope="module")
def films(tiny_run, tmp_path_factory):
    """Six films in nested folders, and a masks JSON of them with the ids of their paths."""
    folder, entries = tmp_path_factory.mktemp("films"), []
    for number, film in enumerate(sorted((tiny_run.root / "data" / "CheXpert").rglob("*.jpg"))[:6]):
        path = folder / "in" / f"ward {number % 2}" / f"{number}.PNG"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = read_image(film)
        Image.fromarray(pixels).save(path)
        mask = np.zeros(pixels.shape, np.uint8)
        mask[10:30, 10:40] = 1
        entries.append((f"ward {number % 2}__{number}", {TASK: rle.encode(mask[None])[0]}))
    mask_files.write(folder / "masks.json", entries)
    return folder


@pytest.fixture
def workspace(tmp_path):
    return stages.Workspace(tmp_path / "workspace")


def options(tiny_run, *more):
    return ("--ckpt_path", str(tiny_run.root / "base" / "models" / "tiny" / "c.ckpt"), *map(str, more))


def test_the_classifier_reads_any_folder(tiny_run, films, workspace):
    bad = films / "in" / "bad.jpg"
    bad.write_bytes(b"no picture")
    run = workspace.root / "base" / "train_cams" / "tiny_c.ckpt"
    more = options(tiny_run, "--save_train_cams", "False", "--images", films / "in")
    for said in ("bad.jpg", "up to date"):
        done = stages.start(workspace, "test", *more)
        assert done.wait() == 1 and said in done.said() and "1 of 7 images could not be read" in done.last_line()
    bad.unlink()
    with open(run / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image_id"] for row in rows] == sorted(f"ward {n % 2}__{n}" for n in range(6))
    assert rows[0]["Path"] == str(films / "in" / "ward 0" / "0.PNG")
    assert len(StoredMaps(run / "cams" / "saliency.h5").ids) == 6


def test_images_and_a_label_file_exclude_each_other(tiny_run, films, workspace):
    done = stages.start(workspace, "test", *options(tiny_run, "--images", films / "in"))
    assert done.wait() == 2 and "--save_train_cams" in done.last_line()


def train(workspace, films, *more):
    command = (f"--semi_supervised False --weighted False --save_dir {workspace.root}/trials --num_epochs 1").split()
    masks = films / "masks.json"
    given = ("--train_masks_path", masks, "--eval_masks_path", masks, "--image_dir", films / "in", *more)
    return stages.start(workspace, "own_training", *command, *map(str, given))


def test_training_on_a_folder_of_ones_own(tiny_run, films, workspace, monkeypatch):
    monkeypatch.setitem(
        stages.COMMANDS, "own_training", "segmentation_train.py --experiment_name own --lr 1e-3 " + stages.NETWORK
    )
    done = train(workspace, films)
    assert done.wait() == 0, done.said()
    assert (workspace.root / "trials" / "own" / "best_model.pth").is_file()
    masks = json.loads((films / "masks.json").read_text())
    masks["nobody"] = next(iter(masks.values()))
    other = films / "more.json"
    other.write_text(json.dumps(masks))
    done = train(workspace, films, "--train_masks_path", other)
    assert done.wait() == 1 and "more.json: nobody: no image below" in done.last_line()
