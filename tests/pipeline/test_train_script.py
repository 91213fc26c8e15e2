"""train.py on small images: each checkpoint has a state of its own, and what its labels cannot do is said at once."""

import json
import runpy
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import constants
from chexseg.data import leak_guard

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = "--architecture resnet10w32 --image_size 32 --batch_size 4 --num_epochs 1"


def write_image(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((36, 40), level, np.uint8)).save(path)


@pytest.fixture
def images(tmp_path, monkeypatch):
    """CheXpert's folder: six images to train on, four to choose by; Edema is present in every other one."""
    folder = tmp_path / "CheXpert" / "CheXpert-v1.0"
    for split, count in (("train", 6), ("valid", 4)):
        rows = []
        for i in range(count):
            name = f"{split}/patient{i:05d}/study1/view1_frontal.png"
            write_image(folder / name, 20 * i + 10)
            blank = dict.fromkeys(constants.OBSERVATIONS, np.nan)
            rows.append({"Path": f"CheXpert-v1.0/{name}"} | blank | {"Edema": i % 2, "Fracture": 0})
        pd.DataFrame(rows).to_csv(folder / f"{split}.csv", index=False)
    (tmp_path / "base").mkdir()
    monkeypatch.setenv("CHEXPERT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("OBJ_EFFICIENCY_BASE_PATH", str(tmp_path / "base"))
    return folder


@pytest.fixture
def train(images, tmp_path, monkeypatch, capsys):
    def run(name, *more):
        given = [*OPTIONS.split(), "--ckpt_path", str(tmp_path / "models" / name), *more]
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *given])
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        finally:
            signal.signal(signal.SIGTERM, handler)
        return ended.value.code, capsys.readouterr().err.strip().splitlines()[-1]

    return run


def test_each_checkpoint_has_a_state_of_its_own(train, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / ".somebody.tmp").write_text("not ours")
    for name in ("a.ckpt", "b.ckpt"):
        assert train(name)[0] == 0
        assert json.loads((folder / f"{name}.manifest.json").read_text())["best"]["epoch"] == 1
    state = {f"{name}.ckpt.training" for name in "ab"}
    made = {f"{name}.ckpt{end}" for name in "ab" for end in ("", ".manifest.json", ".chosen_on.json")}
    assert {path.name for path in folder.iterdir()} == {".somebody.tmp", *made, *state}
    assert {path.name for path in (folder / "a.ckpt.training").iterdir()} == {
        ".training.lock", "checkpoint.pt", "log.jsonl",
    }  # fmt: skip


def test_patients_that_chose_the_epoch_are_recorded_if_any_did(train, tmp_path):
    for name, keep in (("a.ckpt", "best"), ("b.ckpt", "last")):
        assert train(name, "--keep_epoch", keep)[0] == 0
        roles = leak_guard.read(tmp_path / "models" / name)[name]
        assert roles["trained"] == sorted(leak_guard.hashed(f"patient{i:05d}") for i in range(6))
        chosen = sorted(leak_guard.hashed(f"patient{i:05d}") for i in range(4))
        assert roles.get("epoch") == (chosen if keep == "best" else None)


def test_a_checkpoint_that_is_gone_is_named(train, tmp_path):
    assert train("a.ckpt")[0] == 0
    (tmp_path / "models" / "a.ckpt").unlink()
    status, last = train("a.ckpt")
    assert status == 1 and "a.ckpt: no longer there; train again with --resume none" in last
    assert train("a.ckpt", "--resume", "none")[0] == 0
    assert (tmp_path / "models" / "a.ckpt").is_file()


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_changed_image_is_another_run(train, images, split):
    assert train("a.ckpt")[0] == 0
    write_image(images / split / "patient00001" / "study1" / "view1_frontal.png", 200)
    status, last = train("a.ckpt")
    assert status == 1 and "input files or code changed" in last


def test_labels_that_no_epoch_can_be_chosen_by_are_named_before_training(train, images, tmp_path):
    frame = pd.read_csv(images / "valid.csv")
    frame["Edema"] = [1, 1, -1, np.nan]
    frame.to_csv(images / "valid.csv", index=False)
    status, last = train("a.ckpt")
    assert status == 1 and "valid.csv: no column has both a 1 and a 0" in last and "Edema" in last
    assert not (tmp_path / "models").exists()
