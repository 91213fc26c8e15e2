"""The README's commands, one after the other, as a user types them; and what a user sees when something is wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
TASKS = 10
# The original README's commands with its placeholders filled in. Added: a phantom and a classifier before them, and
# after them the test. Changed: one epoch, 64 pixels, and --save_dir (or it would lie in the checkout). One of the
# original's commands ends a line with backslash and blank, which hands the script a lone ' '.
# `python` is a function that forks each script from a Python which has imported torch, as reproduce.sh does: a start
# would cost more than most of these stages.
COMMANDS = """
set -e
exec {output}>&1
coproc SERVER { exec python -m chexseg.runtime.preloaded torch segmentation_models_pytorch cv2 h5py 3>&1 >&"$output"; }
to=${SERVER[1]} from=${SERVER[0]}
python() {
  local status
  printf '%s\\0' $# "$PWD/$1" "${@:2}" >&"$to"
  read -r status <&"$from" && return "$status"
}
RUN=2ywovex5_epoch=2-chexpert_competition_AUROC=0.89.ckpt
CKPT=$OBJ_EFFICIENCY_BASE_PATH/2ywovex5/epoch=2-chexpert_competition_AUROC=0.89.ckpt
python make_synthetic_chexpert.py --preset tiny --out_dir $CHEXPERT_DATA_DIR --gt_out $TEST_SEG_LABELS_GT_BASE_PATH
python train.py --ckpt_path $CKPT --num_epochs 1 --image_size 64

python test.py --batch_size 16 \\
--ckpt_path $CKPT \\
--phase test \\
--save_dir_predictions $OBJ_EFFICIENCY_BASE_PATH/train_cams \\
--save_cams True \\
--save_train_cams True
cd localization_eval/
python pred_segmentation.py --phase train \\
--map_dir $OBJ_EFFICIENCY_BASE_PATH/train_cams/2ywovex5_epoch=2-chexpert_competition_AUROC=0.89.ckpt \\
--method gradcam \\
--model_type single
cd ..
cd IRNet
python convert_to_hdf5.py --image_size 64
python cam_to_ir_label_hdf5.py
python train_irnet.py --lr 0.01 \\
--weight_decay 0.0 \\
--num_epochs 1
cd ..
python make_pseudo_seg_labels.py \\
--irn_pseudo_labels_save_dir $OBJ_EFFICIENCY_BASE_PATH/train_cams/ $RUN \\
--irn_best_model_name best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth \\
--irn_is_training True
python create_train_set_subsets.py --subset_len 10 --pseudo_labels_type cams

RUN=$OBJ_EFFICIENCY_BASE_PATH/train_cams/$RUN
GT=$TEST_SEG_LABELS_GT_BASE_PATH
cd localization_eval/
python gt_segmentation.py --ann_path $GT/gt_annotations_valid.json --output_path $GT/valid_encoded.json
python gt_segmentation.py --ann_path $GT/gt_annotations_test.json --output_path $GT/test_encoded.json
cd ..
python create_train_set_subsets.py --masks_path $GT/valid_encoded.json --subset_len 8
REST=$(ls $GT/valid_encoded_*.json | grep -v -e _8.json -e manifest)
SMALL="--num_epochs 1 --image_size 64 --save_dir $OBJ_EFFICIENCY_BASE_PATH/seg_trials"
python segmentation_train.py \\
--experiment_name weakly_supervised \\
--wandb_project_name seg_trials  \\
--wandb_run_name weakly_supervised \\
--train_masks_path $RUN/pseudo_seg_labels_encoded_irnet.json \\
--eval_masks_path $REST \\
--architecture DeepLabV3Plus \\
--encoder resnet18 \\
--encoder_weights_type CheXpert \\
--encoder_weights $CKPT $SMALL ' '

python segmentation_train.py \\
--experiment_name fully_supervised \\
--wandb_project_name seg_trials \\
--wandb_run_name fully_supervised \\
--train_set valid \\
--train_masks_path $GT/valid_encoded_8.json \\
--eval_masks_path $REST \\
--architecture DeepLabV3Plus \\
--encoder resnet18 \\
--encoder_weights_type CheXpert \\
--encoder_weights $CKPT \\
--valid_common_pathologies True $SMALL
python segmentation_train.py \\
--experiment_name semi_supervised \\
--wandb_project_name seg_trials \\
--wandb_run_name semi_supervised \\
--ss_expert_annotations_masks_path $GT/valid_encoded_8.json \\
--ss_dnn_generated_masks_path $RUN/pseudo_seg_labels_cams_10_cxrs.json \\
--eval_masks_path $REST \\
--architecture DeepLabV3Plus \\
--encoder resnet18 \\
--encoder_weights_type CheXpert \\
--encoder_weights $CKPT \\
--semi_supervised True \\
--weighted True \\
--strong_labels_weight 0.9 \\
--valid_common_pathologies True $SMALL
SEMI=$OBJ_EFFICIENCY_BASE_PATH/seg_trials/semi_supervised
python segmentation_test.py --model_path $SEMI/best_model.pth --test_masks_path $GT/test_encoded.json \\
--output_path $SEMI/test_masks.json
python localization_eval/eval.py --gt_path $GT/test_encoded.json --pred_path $SEMI/test_masks.json
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """All commands run once, in a shell; its folders."""
    root = tmp_path_factory.mktemp("readme")
    folders = {
        "CHEXPERT_DATA_DIR": root / "data",
        "OBJ_EFFICIENCY_BASE_PATH": root / "base",
        "TEST_SEG_LABELS_GT_BASE_PATH": root / "labels",
    }
    for folder in folders.values():
        folder.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **{k: str(v) for k, v in folders.items()}, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-c", COMMANDS], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.fixture(scope="module")
def run(workspace):
    return workspace / "base/train_cams/2ywovex5_epoch=2-chexpert_competition_AUROC=0.89.ckpt"


def test_outputs_lie_where_the_readme_says(workspace, run):
    for name in (
        "predictions.csv", "train_cams_paths.csv", "cams", "seg_labels_encoded.json", "hdf5_files/train_set",
        "hdf5_files/ir_labels", "pseudo_seg_labels_encoded_cams.json", "pseudo_seg_labels_encoded_irnet.json",
        "pseudo_seg_labels_cams_10_cxrs.json",
    ):  # fmt: skip
        assert (run / name).exists(), name
    models = workspace / "base/weakly_supervised/saved_models"
    assert (models / "best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth").is_file()
    for name in ("weakly_supervised", "fully_supervised", "semi_supervised"):
        trial = workspace / "base/seg_trials" / name
        assert len(json.loads((trial / "thresholds.txt").read_text())) == TASKS
        assert {"best_model.pth", "args.json", "log.jsonl"} <= {p.name for p in trial.iterdir()}


def test_outputs_are_about_the_same_images(workspace, run):
    ids = pd.read_csv(run / "train_cams_paths.csv")["Train_CAM_Id"].tolist()
    labels = pd.read_csv(workspace / "data/CheXpert/CheXpert-v1.0/train.csv")
    assert len(ids) == (labels["Frontal/Lateral"] == "Frontal").sum()
    with h5py.File(run / "hdf5_files/train_set") as file:
        assert [n.decode() for n in file["cxr_base_names"]] == ids
        assert file["cxr_images"].shape == (len(ids), 64, 64) and file["cxr_images"].dtype == "uint8"
        assert file["cxr_cams"].shape == (len(ids), TASKS, 2, 2) and file["cxr_cams"].dtype == "float32"
    with h5py.File(run / "hdf5_files/ir_labels") as file:
        assert file["ir_labels"].shape == (len(ids), TASKS, 64, 64)
        assert set(file["ir_labels"][:].ravel()) <= {0, 1, 255}
    for kind in ("cams", "irnet"):
        masks = json.loads((run / f"pseudo_seg_labels_encoded_{kind}.json").read_text())
        assert list(masks) == ids
        assert all(len(m) == TASKS and m["Edema"]["size"] == [64, 64] for m in masks.values())
    assert set(json.loads((run / "pseudo_seg_labels_cams_10_cxrs.json").read_text())) < set(ids)
    test = json.loads((workspace / "labels/test_encoded.json").read_text())
    predicted = json.loads((workspace / "base/seg_trials/semi_supervised/test_masks.json").read_text())
    assert set(predicted) == set(test)
    assert all(predicted[n]["Edema"]["size"] == test[n]["Edema"]["size"] for n in test)


@pytest.fixture
def copy(workspace, tmp_path, monkeypatch):
    """The inputs alone, to spoil: images, labels, polygons, checkpoint."""
    for name in ("data", "labels", "base/2ywovex5"):
        shutil.copytree(workspace / name, tmp_path / name)
    monkeypatch.setenv("CHEXPERT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("OBJ_EFFICIENCY_BASE_PATH", str(tmp_path / "base"))
    monkeypatch.setenv("TEST_SEG_LABELS_GT_BASE_PATH", str(tmp_path / "labels"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


CKPT = "base/2ywovex5/epoch=2-chexpert_competition_AUROC=0.89.ckpt"
RUN = "base/train_cams/2ywovex5_epoch=2-chexpert_competition_AUROC=0.89.ckpt"
SALIENCY = ["test.py", "--ckpt_path", CKPT, "--save_train_cams"]
CSV = "data/CheXpert/CheXpert-v1.0/train.csv"


def a_training_image(root):
    frame = pd.read_csv(root / CSV)
    return root / "data/CheXpert" / frame[frame["Frontal/Lateral"] == "Frontal"]["Path"].iloc[-1]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def drop_column(path, name):
    frame = pd.read_csv(path)
    frame.drop(columns=name).to_csv(path, index=False)


def set_value(path, name, value):
    frame = pd.read_csv(path, dtype=str)
    frame.loc[3, name] = value
    frame.to_csv(path, index=False)


@pytest.mark.parametrize(
    ("spoil", "command", "status", "message"),
    [
        (lambda r: (r / CKPT).unlink(), SALIENCY, 1, "0.89.ckpt: no such checkpoint"),
        (lambda r: truncate(r / CKPT), SALIENCY, 1, "0.89.ckpt: something stands behind the zip"),
        (lambda r: a_training_image(r).unlink(), SALIENCY, 1, "no image patient"),
        (lambda r: truncate(a_training_image(r)), SALIENCY, 1, "view1_frontal.jpg: cannot be decoded"),
        (lambda r: (r / CSV).unlink(), SALIENCY, 1, "train.csv: no label file of the train set"),
        (lambda r: drop_column(r / CSV, "Path"), SALIENCY, 1, "train.csv: no column 'Path'"),
        (lambda r: set_value(r / CSV, "Edema", "7"), SALIENCY, 1, "train.csv: line 5, 'Edema'"),
        (lambda r: shutil.rmtree(r / "data"), SALIENCY, 1, "CHEXPERT_DATA_DIR="),
        (None, [*SALIENCY, "--batch_size", "0"], 2, "--batch_size: expected a whole number of at least 1, got '0'"),
        (None, [*SALIENCY, "--device", "cuda:7"], 2, "--device cuda:7: not available here"),
        (None, ["localization_eval/pred_segmentation.py"], 1, "no saliency maps here"),
        (None, ["IRNet/convert_to_hdf5.py"], 1, "train_cams_paths.csv: no such file"),
        (None, ["IRNet/cam_to_ir_label_hdf5.py"], 1, "hdf5_files/train_set: no such file"),
        (None, ["IRNet/train_irnet.py"], 1, "hdf5_files/train_set: no such file"),
        (None, ["make_pseudo_seg_labels.py", "--irn_best_model_name", "x"], 1, "hdf5_files/train_set: no such file"),
        (None, ["create_train_set_subsets.py"], 1, "pseudo_seg_labels_encoded_cams.json: no such"),
        (
            None,
            ["segmentation_train.py", "--train_masks_path", "none.json", "--eval_masks_path", "labels/none.json"],
            1,
            "none.json: no such masks file",
        ),
        (
            None,
            ["segmentation_train.py", "--eval_masks_path", "labels/test_encoded.json"],
            2,
            "--semi_supervised False needs --train_masks_path",
        ),
        (None, ["segmentation_test.py", "--model_path", "none.pth", "--output_path", "o.json"], 1, "none.pth: no such"),
        (
            lambda r: (r / "labels/gt_annotations_test.json").write_text('{"patient1": '),
            ["localization_eval/gt_segmentation.py", "--ann_path", "labels/gt_annotations_test.json",
             "--output_path", "o.json"],
            1,
            "gt_annotations_test.json: ",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(spoil, command, status, message, copy, monkeypatch, capsys):
    from tests.runtime.test_cli import run_here

    if spoil:
        spoil(copy)
    before = {p for p in copy.rglob("*") if p.is_file()}
    ended, shown = run_here(command[0], command[1:], monkeypatch, capsys)
    lines = [line for line in shown.err.splitlines() if "error: " in line]
    assert ended == status
    assert len(lines) == 1 and message in lines[0]
    assert "Traceback" not in shown.err
    # Locks, whole shards, from which the next run goes on, and records of patients, which are there before what they
    # speak of, may stay; outputs and temporary files may not.
    new = {p for p in copy.rglob("*") if p.is_file()} - before
    stay = (".lock", ".chosen_on.json")
    assert not [p for p in new if not p.name.endswith(stay) and ".parts" not in p.parent.name], new
    assert not [p for p in new if p.suffix == ".tmp"]
