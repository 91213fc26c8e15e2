"""train.py and test.py on a small copy of every data set's layout, and a whole run on names that are not CheXpert's."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import constants
from chexseg.classifier.saliency_store import StoredMaps
from chexseg.data import mask_files, rle
from tests.data.layouts import COUNT, LAYOUTS
from tests.pipeline.scripts import run

NETWORK = ("--architecture", "resnet10w32", "--image_size", 32, "--batch_size", 4, "--num_epochs", 1)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A data folder and one to write to, as the variables name them."""
    for variable, name in (
        ("CHEXPERT_DATA_DIR", "data"),
        ("OBJ_EFFICIENCY_BASE_PATH", "base"),
        ("TEST_SEG_LABELS_GT_BASE_PATH", "labels"),
    ):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
    return tmp_path


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_classifier_on_each_layout(place, name):
    laid = LAYOUTS[name](place / "data")
    given = [("--train_csv", laid.train), ("--valid_csv", laid.valid)]
    run("train.py", "--ckpt_path", place / "m" / "c.ckpt", *NETWORK, *(w for pair in given if pair[1] for w in pair))
    more = ("--csv_path", laid.train) if laid.train else ()
    run("test.py", "--ckpt_path", place / "m" / "c.ckpt", "--phase", "train", "--batch_size", 4, *more)
    folder = place / "base" / "train_cams" / "m_c.ckpt"
    assert sorted(StoredMaps(folder / "cams" / "saliency.h5").ids) == sorted(laid.truth)
    assert len(pd.read_csv(folder / "predictions.csv")) == COUNT


@pytest.mark.parametrize("views", ["lateral", "all"])
def test_the_classifier_on_other_views(place, views):
    LAYOUTS["chexpert"](place / "data")
    ckpt = place / "m" / "c.ckpt"
    run("train.py", "--ckpt_path", ckpt, "--views", views, *NETWORK)
    run("test.py", "--ckpt_path", ckpt, "--phase", "valid", "--views", views, "--save_cams", "False")
    table = pd.read_csv(place / "base" / "valid_cams" / "m_c.ckpt" / "predictions.csv")
    assert len(table) == (COUNT if views == "lateral" else 2 * COUNT)
    assert table["image_id"].str.contains("lateral").sum() == COUNT


def films(folder, count):
    """Grey films with a bright square each, in nested folders under any names, and its outline."""
    rng = np.random.default_rng(count)
    entries = {}
    for number in range(count):
        name = f"ward {number % 2}/Röntgen #{folder.name} {number}"
        pixels = rng.integers(0, 90, (48 + number, 64), np.uint8)
        mask = np.zeros(pixels.shape, np.uint8)
        mask[10:34, 12 + number : 40 + number] = 1
        path = folder / f"{name}{('.png', '.JPG', '.tif')[number % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels + 150 * mask).save(path)
        masks = rle.encode(np.stack([mask, np.zeros_like(mask)]))
        entries[name.replace("/", "__")] = dict(zip(("Cardiomegaly", "Edema"), masks, strict=True))
    return entries


def test_a_whole_run_on_names_of_ones_own(place):
    """Split, train, test, evaluate, tables and page: films in nested folders, two of each patient."""
    images, labels = place / "films", place / "labels"
    for split, count in (("train", 9), ("test", 4)):
        mask_files.write(labels / f"{split}.json", films(images / split, count).items())
        ids = sorted(mask_files.MaskFile(labels / f"{split}.json"))
        rows = [{"image_id": name, "patient_id": f"{split}-{number // 2}"} for number, name in enumerate(ids)]
        pd.DataFrame(rows).to_csv(labels / f"{split}_patients.csv", index=False)
    run("create_train_set_subsets.py", "--masks_path", labels / "train.json", "--subset_len", 6,
        "--patients", labels / "train_patients.csv")  # fmt: skip
    parts = [set(mask_files.MaskFile(labels / f"train_{count}.json")) for count in (6, 3)]
    whose = pd.read_csv(labels / "train_patients.csv", index_col="image_id")["patient_id"]
    assert not set(whose[sorted(parts[0])]) & set(whose[sorted(parts[1])]) and len(parts[0] | parts[1]) == 9
    run("segmentation_train.py", "--semi_supervised", "False", "--weighted", "False", "--image_dir", images / "train",
        "--train_masks_path", labels / "train_6.json", "--eval_masks_path", labels / "train_3.json",
        "--save_dir", place / "trials", "--experiment_name", "own", "--encoder", "resnet10w32",
        "--decoder_channels", 16, "--image_size", 32, "--num_epochs", 2, "--lr", "3e-3")  # fmt: skip
    predicted = place / "trials" / "own" / "test_masks.json"
    run("segmentation_test.py", "--model_path", place / "trials" / "own" / "best_model.pth", "--output_path", predicted,
        "--test_masks_path", labels / "test.json", "--image_dir", images / "test")  # fmt: skip
    truth = mask_files.MaskFile(labels / "test.json")
    for name, entry in mask_files.MaskFile(predicted).items():
        assert entry["Cardiomegaly"]["size"] == truth[name]["Cardiomegaly"]["size"]
    whom = ("--patients", labels / "test_patients.csv")
    run("localization_eval/eval.py", "--gt_path", labels / "test.json", "--pred_path", predicted, *whom,
        "--tasks", "Cardiomegaly", "--num_replicates", 100)  # fmt: skip
    scores = pd.read_csv(predicted.with_name("test_masks_iou.csv"))
    assert set(scores["n_images"]) <= {4} and scores["iou"].notna().all()
    each = pd.read_csv(predicted.with_name("test_masks_iou_results_per_cxr.csv"))
    assert each["img_id"].tolist() == sorted(truth)
    run("make_tables.py", "--ground_truth", labels / "test.json", "--method", f"full={predicted}", *whom,
        "--output_dir", place / "report", "--image_dir", images / "test", "--tasks", "Cardiomegaly",
        "--num_replicates", 50)  # fmt: skip
    assert "4 images of 2 patients" in (place / "report" / "table.md").read_text()
    page = (place / "report" / "index.html").read_text()
    assert "ward 0__Röntgen #test 0" in page or json.dumps("ward 0__Röntgen #test 0")[1:-1] in page
    assert (place / "report" / "sheet.png").is_file()


def test_maps_and_pseudo_masks_of_ones_own_films(place, monkeypatch):
    """The weak side too: a label file with any names, maps, threshold masks, training set, pseudo masks by the walk."""
    laid = LAYOUTS["custom"](place / "data")
    ckpt, runs = place / "m" / "c.ckpt", place / "base" / "train_cams"
    run("train.py", "--ckpt_path", ckpt, *NETWORK, "--train_csv", laid.train, "--valid_csv", laid.valid)
    run("test.py", "--ckpt_path", ckpt, "--phase", "train", "--csv_path", laid.train)
    run("localization_eval/pred_segmentation.py", "--map_dir", runs / "m_c.ckpt")
    run("IRNet/convert_to_hdf5.py", "--map_dir", runs / "m_c.ckpt", "--image_size", 32)
    run("IRNet/cam_to_ir_label_hdf5.py", "--map_dir", runs / "m_c.ckpt", "--csv_path", laid.train)
    run("IRNet/train_irnet.py", "--map_dir", runs / "m_c.ckpt", "--backbone_weights", ckpt, "--num_epochs", 1,
        "--radius", 3, "--batch_size", 4)  # fmt: skip
    run("make_pseudo_seg_labels.py", "--irn_pseudo_labels_save_dir", runs / "m_c.ckpt", "--csv_path", laid.train,
        "--radius", 2)  # fmt: skip
    run("create_train_set_subsets.py", "--map_dir", runs / "m_c.ckpt", "--subset_len", 3)
    masks = mask_files.MaskFile(runs / "m_c.ckpt" / "pseudo_seg_labels_cams_3_cxrs.json")
    assert len(masks) == 3 and set(masks) <= set(laid.truth)
    walked = mask_files.MaskFile(runs / "m_c.ckpt" / "pseudo_seg_labels_encoded_irnet.json")
    entry = walked["ward 1__bilateral 1"]
    assert "Cardiomegaly" not in entry  # no such column: unknown
    assert {"Edema", "Support Devices"} <= set(entry) and set(entry) < set(constants.LOCALIZATION_TASKS)
