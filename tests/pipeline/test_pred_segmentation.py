"""Stage 2 as a user runs it: masks from saliency maps."""

import json
import shutil

import h5py
import numpy as np
import pytest

from chexseg.classifier import saliency_masks, saliency_pickles, saliency_store
from chexseg.data import leak_guard, rle
from chexseg.data.images import upsample
from chexseg.data.mask_files import MaskFile
from chexseg.errors import DataError, UsageError
from tests.pipeline.scripts import SCORED, TASKS, name, run


@pytest.fixture
def run_folder(tmp_path):
    """A run with maps of 7 images and three tasks; network input 16 x 16, originals 40 x 30."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "run"
    (folder / "cams").mkdir(parents=True)
    maps = rng.random((7, 3, 4, 4), dtype=np.float32)
    maps[:, 1] *= 0.001  # too faint for uint8(255 * map)
    with h5py.File(folder / "cams" / "saliency.h5", "w") as file:
        file.attrs["tasks"], file.attrs["image_size"] = json.dumps(TASKS), 16
        file["ids"] = [name(i) for i in range(7)]
        file["maps"], file["probabilities"] = maps, np.full((7, 3), 0.4, np.float32)
        file["sizes"] = np.tile(np.int32([40, 30]), (7, 1))
    return folder


def test_train_masks_have_the_networks_size_and_test_masks_the_originals(run_folder):
    run("localization_eval/pred_segmentation.py", "--phase", "train", "--map_dir", run_folder, *SCORED,
        "--method", "gradcam", "--model_type", "single")  # fmt: skip
    store = saliency_store.open_maps(run_folder)
    found = MaskFile(run_folder / "seg_labels_encoded.json")
    assert list(found) == store.ids and list(found[name(0)]) == ["Edema", "Airspace Opacity"]
    for image in found:
        expected = saliency_masks.otsu((upsample(store[image]["maps"][:1], (16, 16))[0] * 255).astype(np.uint8))
        np.testing.assert_array_equal(rle.decode([found[image]["Edema"]])[0], expected)
        assert 0 < expected.sum() < 256
        assert found[image]["Airspace Opacity"] == rle.empty((16, 16))
    run("localization_eval/pred_segmentation.py", "--phase", "valid", "--map_dir", run_folder, *SCORED)
    for image, entry in MaskFile(run_folder / "seg_labels_encoded.json").items():
        large = upsample(upsample(store[image]["maps"][:1], (16, 16)), (40, 30))[0]
        np.testing.assert_array_equal(
            rle.decode([entry["Edema"]])[0], saliency_masks.otsu((large * 255).astype(np.uint8))
        )


def test_pred_segmentation_gives_the_same_bytes_for_any_shard_size_and_workers(run_folder, tmp_path):
    made = []
    for i, options in enumerate([(), ("--shard_size", 2), ("--shard_size", 3, "--num_workers", 1)]):
        output = tmp_path / f"{i}.json"
        run(
            "localization_eval/pred_segmentation.py",
            "--map_dir",
            run_folder,
            "--output_path",
            output,
            *SCORED,
            *options,
        )
        made.append(output.read_bytes())
    assert made[0] == made[1] == made[2] and len(json.loads(made[0])) == 7


def test_pred_segmentation_runs_again_only_when_something_changed(run_folder):
    output = run_folder / "seg_labels_encoded.json"
    arguments = ("localization_eval/pred_segmentation.py", "--map_dir", run_folder, *SCORED)
    run(*arguments)
    first = output.stat().st_mtime_ns
    run(*arguments)
    assert output.stat().st_mtime_ns == first
    store = run_folder / "cams" / "saliency.h5"
    shutil.copy(store, store.with_suffix(".new"))
    with h5py.File(store.with_suffix(".new"), "a") as file:
        file["maps"][0, 0] = 0
    store.with_suffix(".new").replace(store)
    run(*arguments)
    assert output.stat().st_mtime_ns != first
    assert MaskFile(output)[name(0)]["Edema"] == rle.empty((16, 16))


def test_chexlocalize_thresholds_and_cutoffs(run_folder, tmp_path):
    (tmp_path / "thresholds.csv").write_text("threshold,task\n0.7,Lung Opacity\n")
    (tmp_path / "cutoffs.csv").write_text("prob_threshold,mIoU,task\n0.5,0.1,Edema\n0.3,0.1,Lung Opacity\n")
    leak_guard.record(tmp_path / "thresholds.csv", {"thresholds": ["patient00009"]})
    run("localization_eval/pred_segmentation.py", "--map_dir", run_folder, "--protocol", "chexlocalize", *SCORED,
        "--threshold_path", tmp_path / "thresholds.csv", "--prob_cutoff_path", tmp_path / "cutoffs.csv")  # fmt: skip
    store, record = saliency_store.open_maps(run_folder), leak_guard.read(run_folder / "seg_labels_encoded.json")
    assert record == leak_guard.read(tmp_path / "thresholds.csv") != {}
    for image, entry in MaskFile(run_folder / "seg_labels_encoded.json").items():
        large = upsample(store[image]["maps"][1:2], (16, 16))[0]
        stretched = (large - large.min()) / (large.max() - large.min())
        np.testing.assert_array_equal(rle.decode([entry["Airspace Opacity"]])[0], stretched > 0.7)
        assert entry["Edema"] == rle.empty((16, 16))  # 0.4 is not above 0.5
    with pytest.raises(UsageError, match="--threshold_path"):
        run("localization_eval/pred_segmentation.py", "--map_dir", run_folder, "--threshold_path", "x.csv")


def test_pickles_give_the_masks_of_the_store(run_folder, tmp_path):
    store, folder = saliency_store.open_maps(run_folder), tmp_path / "pickles"
    folder.mkdir()
    for image in store:
        saliency_pickles.write_pickles(folder, image, TASKS, store[image], np.zeros((16, 16), np.uint8), None)
    run("localization_eval/pred_segmentation.py", "--phase", "test", "--map_dir", run_folder, *SCORED)
    run("localization_eval/pred_segmentation.py", "--phase", "test", "--map_dir", folder, *SCORED)
    made = [(path / "seg_labels_encoded.json") for path in (run_folder, folder)]
    assert made[0].read_bytes() == made[1].read_bytes()
    before = made[1].stat().st_mtime_ns
    next(folder.glob("*Edema_map.pkl")).touch()
    run("localization_eval/pred_segmentation.py", "--phase", "test", "--map_dir", folder, *SCORED)
    assert made[1].stat().st_mtime_ns != before


def test_a_task_without_a_pickle_is_unknown_not_absent(run_folder, tmp_path):
    store, folder = saliency_store.open_maps(run_folder), tmp_path / "pickles"
    folder.mkdir()
    first, second, *_ = store
    for image in (first, second):
        saliency_pickles.write_pickles(folder, image, TASKS, store[image], np.zeros((16, 16), np.uint8), None)
    for task in TASKS:
        if task != "Airspace Opacity":
            (folder / f"{first}_{task}_map.pkl").unlink()
    for phase, tasks in (("test", {"Airspace Opacity"}), ("train", set())):
        wanted = ("Airspace Opacity", "Edema") if phase == "test" else ("Edema",)
        run("localization_eval/pred_segmentation.py", "--phase", phase, "--map_dir", folder, "--tasks", *wanted)
        masks = MaskFile(folder / "seg_labels_encoded.json")
        assert list(masks) == sorted((first, second)) and set(masks[first]) == tasks
        assert set(masks[second]) == set(wanted)


def test_pred_segmentation_names_what_is_missing(run_folder, tmp_path):
    with pytest.raises(DataError, match="no maps of 'Pneumonia'"):
        run("localization_eval/pred_segmentation.py", "--map_dir", run_folder, "--tasks", "Pneumonia")
    with pytest.raises(DataError, match="no saliency maps here"):
        run("localization_eval/pred_segmentation.py", "--map_dir", tmp_path)
