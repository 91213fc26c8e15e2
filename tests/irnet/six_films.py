"""Six small chest X-rays with labels, maps and a classifier, and what the relation stages make of them."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import constants
from chexseg.classifier import models, saliency_store

ROOT = Path(__file__).resolve().parents[2]
TASKS = constants.LOCALIZATION_TASKS
IDS = [f"patient{i:05d}_study1_view1_frontal" for i in range(1, 7)]
SIZE, GRID = 48, 12
MODEL = "best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth"


def run(script, *arguments):
    """Run a script in this process; (status, ) of its exit."""
    before = sys.argv
    sys.argv = [str(ROOT / script), *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        sys.argv = before
    return ended.value.code


def assert_one_line(status, expected, words, capsys):
    """A script that ended with `expected` said one line with `words`."""
    assert status == expected
    lines = capsys.readouterr().err.strip().splitlines()
    assert words in lines[-1] and "error:" in lines[-1]
    assert "Traceback" not in "".join(lines)


def assert_light(script, *arguments):
    """The script ends well in a fresh interpreter and imports neither torch nor what stands on it."""
    heavy = ("torch", "torchvision", "segmentation_models_pytorch", "numba")
    code = (
        "import atexit, runpy, sys\n"
        f"atexit.register(lambda: print([name for name in {heavy} if name in sys.modules]))\n"
        f"sys.argv = {[script, *map(str, arguments)]}\n"
        f"runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def present(uncertain=True):
    found = np.zeros((len(IDS), len(TASKS)), bool)
    for i in range(1, len(IDS)):
        found[i] = [i == 1 or (i + k) % 4 == 0 for k in range(len(TASKS))]
        if i > 1:
            found[i, 3] = uncertain
    return found


@pytest.fixture(scope="session")
def six_films(tmp_path_factory):
    """CheXpert's layout with six images of 40 x 52, labels that differ, a classifier, and its run folder with maps."""
    root, rng = tmp_path_factory.mktemp("six_films"), np.random.default_rng(0)
    images = root / "data" / "CheXpert" / "CheXpert-v1.0"
    rows, records = [], []
    for i, name in enumerate(IDS):
        path = images / "train" / name.split("_")[0] / "study1" / "view1_frontal.png"
        path.parent.mkdir(parents=True)
        smooth = cv2.GaussianBlur(rng.integers(0, 256, (40, 52)).astype(np.float32), (0, 0), 5)
        Image.fromarray(cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)).save(path)
        # Image 0 has no finding, image 1 all, the others some; task 3 is uncertain everywhere else, blanks elsewhere.
        labels = {t: (0.0 if i == 0 else 1.0 if i == 1 or (i + k) % 4 == 0 else np.nan) for k, t in enumerate(TASKS)}
        if i > 1:
            labels["Airspace Opacity"] = -1.0
        listed = f"CheXpert-v1.0/train/{name.split('_')[0]}/study1/view1_frontal.png"
        rows.append({"Path": listed, "Sex": "Male", "Age": 50, "Frontal/Lateral": "Frontal", "AP/PA": "AP"} | labels)
        maps = rng.random((len(constants.OBSERVATIONS), 3, 3)).astype(np.float32) ** 3
        if i == 2:
            maps[constants.OBSERVATIONS.index("Atelectasis")] = 0  # labelled, but nothing to see
        probabilities = rng.random(len(constants.OBSERVATIONS)).astype(np.float32)
        records.append({"id": name, "maps": maps, "probabilities": probabilities, "size": (40, 52)})
    frame = pd.DataFrame(rows)
    for name in constants.OBSERVATIONS:
        if name not in frame:
            frame[name] = np.nan
    frame.rename(columns={"Airspace Opacity": "Lung Opacity"}).to_csv(images / "train.csv", index=False)
    folder = root / "base" / "train_cams" / constants.MODEL_NAME
    (folder / "cams").mkdir(parents=True)
    shards = saliency_store.StoreShards(constants.OBSERVATIONS, SIZE, len(IDS))
    shards.write(records, folder / "part")
    shards.merge([folder / "part"], folder / saliency_store.STORE)
    pd.DataFrame({"Train_CAM_Id": IDS}).to_csv(folder / "train_cams_paths.csv", index=False)
    torch.manual_seed(0)
    spec = models.ClassifierSpec("resnet10w32", constants.OBSERVATIONS, image_size=SIZE)
    models.save_classifier(root / "classifier.ckpt", models.Classifier(spec))
    return root


@pytest.fixture
def six_films_environment(six_films, monkeypatch, tmp_path):
    """The variables of the six films; every test in a folder of its own."""
    monkeypatch.setenv("CHEXPERT_DATA_DIR", str(six_films / "data"))
    monkeypatch.setenv("OBJ_EFFICIENCY_BASE_PATH", str(six_films / "base"))
    monkeypatch.setenv("TORCH_HOME", str(six_films / "no_torch_cache"))
    monkeypatch.chdir(tmp_path)


def _run_in_irnet(six_films, *commands):
    """Commands as the seed's README gives them, in their own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHEXPERT_DATA_DIR", str(six_films / "data"))
        patch.setenv("OBJ_EFFICIENCY_BASE_PATH", str(six_films / "base"))
        patch.chdir(ROOT / "IRNet")
        for command in commands:
            assert run(*command) == 0


@pytest.fixture(scope="session")
def labelled_run(six_films):
    """The run folder after stages 3a and 3b."""
    convert = ("IRNet/convert_to_hdf5.py", "--image_size", SIZE)
    _run_in_irnet(six_films, convert, ("IRNet/cam_to_ir_label_hdf5.py", "--shard_size", 4))
    return six_films / "base" / "train_cams" / constants.MODEL_NAME


@pytest.fixture(scope="session")
def relation_run(six_films, labelled_run):
    """The run folder after stages 3a, 3b and 3c."""
    options = ("--num_epochs", 3, "--batch_size", 3, "--radius", 3, "--lr", "0.01", "--weight_decay", "0.0")
    classifier = ("--backbone_weights", six_films / "classifier.ckpt")
    _run_in_irnet(six_films, ("IRNet/train_irnet.py", *classifier, *options))
    return labelled_run
