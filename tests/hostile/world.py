"""One valid file of each kind, small, and the commands that read them."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image

import constants
from chexseg.classifier import models, saliency_store
from chexseg.classifier.saliency_pickles import write_pickles
from chexseg.data import coco_files, dicom_seg, hdf5_files, label_images, mask_files, rle
from chexseg.irnet import boundary_net
from chexseg.segmentation import model as networks
from tests.data.made_dicom import dicom

TASKS = constants.LOCALIZATION_TASKS
SIZE, SHAPE = 32, (20, 26)
IDS = [f"patient{i:05d}_study1_view1_frontal" for i in range(1, 4)]


@dataclass(frozen=True)
class Command:
    """A script with its options, and the files that it makes; {w} is the world's folder."""

    words: str
    outputs: tuple[str, ...] = ()
    status: int = 0  # of a valid run

    def argv(self, folder: Path) -> list[str]:
        return [word.format(w=folder) for word in self.words.split()]


FEW = "--tasks Edema Cardiomegaly"
COMMANDS = {
    "classify": Command("test.py --ckpt_path {w}/classifier.ckpt --csv_path {w}/labels.csv --save_dir_predictions {w}/out "
                        "--batch_size 3", ("out/*/predictions.csv",)),
    "predict": Command("segmentation_predict.py --model_path {w}/segmentation.pth --thresholds_path {w}/thresholds.txt "
                       "--images {w}/films --output_dir {w}/out --overlays False --page False",
                       ("out/masks.json", "out/findings.csv")),
    "pseudo": Command("make_pseudo_seg_labels.py --irn_pseudo_labels_save_dir {w}/run --irn_best_model_name "
                      "{w}/boundary.pth --csv_path {w}/labels.csv --radius 2 --exp_times 1",
                      ("run/pseudo_seg_labels_encoded_irnet.json",)),
    "chosen": Command("make_pseudo_seg_labels.py --irn_pseudo_labels_save_dir {w}/run --gate none --choose_by "
                      "{w}/quality.csv --source a={w}/pred.json", ("run/pseudo_seg_labels_encoded_chosen.json",)),
    "relations": Command("make_pseudo_seg_labels.py --irn_pseudo_labels_save_dir {w}/run --gate none --choose_by "
                         "{w}/quality_crf.csv", ("run/pseudo_seg_labels_encoded_chosen.json",)),
    "masks_of_maps": Command("localization_eval/pred_segmentation.py --map_dir {w}/run --phase test " + FEW,
                             ("run/seg_labels_encoded.json",)),
    "masks_of_pickles": Command("localization_eval/pred_segmentation.py --map_dir {w}/pickles --phase test " + FEW,
                                ("pickles/seg_labels_encoded.json",)),
    "fixed_thresholds": Command("localization_eval/pred_segmentation.py --map_dir {w}/run --protocol chexlocalize "
                                "--threshold_path {w}/thresholds.csv --prob_cutoff_path {w}/cutoffs.csv " + FEW,
                                ("run/seg_labels_encoded.json",)),
    "score": Command("localization_eval/eval.py --pred_path {w}/pred.json --gt_path {w}/truth.json --num_replicates 3 "
                     "--output_path {w}/out/iou.csv --all_images {w}/labels.csv " + FEW, ("out/iou.csv",)),
    "subset": Command("create_train_set_subsets.py --masks_path {w}/pred.json --subset_len 2", ("pred_2.json",)),
    "polygons": Command("localization_eval/gt_segmentation.py --ann_path {w}/outlines.json --output_path "
                        "{w}/out/encoded.json", ("out/encoded.json",)),
    "coco": Command("convert_masks.py --from coco --input {w}/coco.json --to masks --output {w}/out/masks.json",
                    ("out/masks.json",)),
    "png": Command("convert_masks.py --from png --input {w}/png --to masks --output {w}/out/masks.json",
                   ("out/masks.json",)),
    "seg": Command("convert_masks.py --from dicom --input {w}/seg --to masks --output {w}/out/masks.json",
                   ("out/masks.json",)),
    "to_png": Command("convert_masks.py --from masks --input {w}/pred.json --to png --output {w}/out/png",
                      ("out/png/*/*.png",)),
    "cutoffs": Command("localization_eval/tune_thresholds.py --pred_path {w}/pred.json --predictions {w}/predictions.csv "
                       "--gt_path {w}/truth.json --prob_cutoff_path {w}/out/c.csv " + FEW, ("out/c.csv",)),
    "to_hdf5": Command("IRNet/convert_to_hdf5.py --map_dir {w}/run --image_size 32", ("run/hdf5_files/train_set",)),
    "irnet": Command("IRNet/train_irnet.py --map_dir {w}/run --backbone_weights {w}/classifier.ckpt --num_epochs 1 "
                     "--batch_size 3 --radius 2"),
    "irnet_auto": Command("IRNet/train_irnet.py --map_dir {w}/run --num_epochs 1 --batch_size 3 --radius 2", status=1),
    "train": Command("segmentation_train.py --save_dir {w}/trials --experiment_name one --train_masks_path {w}/truth.json "
                     "--eval_masks_path {w}/truth.json --image_size 32 --batch_size 3 --num_epochs 1 --encoder resnet10w32 "
                     "--decoder_channels 16 --semi_supervised False --weighted False", ("trials/one/thresholds.txt",)),
}  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    """The paper's variables, and no network library's cache outside."""
    return {
        "CHEXPERT_DATA_DIR": str(folder / "data"),
        "OBJ_EFFICIENCY_BASE_PATH": str(folder / "base"),
        "TEST_SEG_LABELS_GT_BASE_PATH": str(folder),
        "TORCH_HOME": str(folder / "torch"),
        "HF_HOME": str(folder / "hf"),
        "HOME": str(folder),
    }


def make(root: Path) -> Path:
    """The world below `root`."""
    rng = np.random.default_rng(3)
    (root / "base").mkdir(parents=True)
    _films(root, rng)
    _networks(root)
    masks = {name: {task: _mask(rng) for task in ("Edema", "Cardiomegaly")} for name in IDS}
    mask_files.write(root / "truth.json", masks.items())
    other = {name: {"Edema": _mask(rng), "Cardiomegaly": entry["Cardiomegaly"]} for name, entry in masks.items()}
    mask_files.write(root / "pred.json", other.items())
    box = [[3, 3], [12, 3], [12.5, 9], [3, 9]]
    outlines = {name: {"img_size": list(SHAPE), "Edema": [box], "Lung Opacity": [box, box]} for name in IDS}
    (root / "outlines.json").write_text(json.dumps(outlines))
    coco_files.write(root / "coco.json", masks.items(), TASKS[:3])
    for name, entry in masks.items():
        (root / "png").mkdir(exist_ok=True)
        label_images.write(root / "png", name, entry)
    (root / "seg").mkdir()
    dicom_seg.write(root / "seg" / f"{IDS[0]}.dcm", IDS[0], masks[IDS[0]])
    _tables(root)
    _maps(root, rng)
    return root


def _mask(rng) -> dict:
    mask = np.zeros((1, *SHAPE), np.uint8)
    top, left = rng.integers(1, 9, 2)
    mask[0, top : top + 9, left : left + 8] = 1
    return rle.encode(mask)[0]


def _films(root: Path, rng) -> None:
    chexpert = root / "data" / "CheXpert" / "CheXpert-v1.0"
    lines = ["Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(constants.OBSERVATIONS).replace("Airspace", "Lung")]
    for number, name in enumerate(IDS):
        pixels = rng.integers(0, 255, SHAPE, np.uint8)
        for split in ("train", "valid"):
            path = chexpert / split / name.split("_")[0] / "study1" / "view1_frontal.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(pixels).save(path)
        labels = [str((number + k) % 2) for k in range(len(constants.OBSERVATIONS))]
        lines.append(
            f"CheXpert-v1.0/train/{name.split('_')[0]}/study1/view1_frontal.png,Male,50,Frontal,AP,{','.join(labels)}"
        )
    text = "\n".join(lines) + "\n"
    for path in (chexpert / "train.csv", chexpert / "valid.csv", root / "labels.csv"):
        path.write_text(text)
    films, pixels = root / "films", rng.integers(0, 255, SHAPE, np.uint8)
    films.mkdir()
    for name in ("a.png", "b.jpg", "c.tif"):
        Image.fromarray(pixels).save(films / name)
    dicom(films / "d.dcm", pixels.astype(np.uint16) * 10)


def _networks(root: Path) -> None:
    torch.manual_seed(0)
    classifier = models.Classifier(models.ClassifierSpec("resnet10w32", constants.OBSERVATIONS, image_size=SIZE))
    models.save_classifier(root / "classifier.ckpt", classifier)
    spec = boundary_net.BoundarySpec("resnet10w32")
    boundary_net.save(root / "boundary.pth", boundary_net.build(spec).state_dict(), spec, {})
    shape = networks.SegmentationSpec("DeepLabV3Plus", "resnet10w32", ("Edema", "Cardiomegaly"), SIZE, "imagenet", 16)
    weights = networks.build_model(shape).state_dict()
    networks.save_model(root / "segmentation.pth", weights, shape, {"thresholds": [0.5, 0.5]})
    (root / "thresholds.txt").write_text("[0.5, 0.4]\n")


def _tables(root: Path) -> None:
    (root / "thresholds.csv").write_text("threshold,task\n0.4,Edema\n0.6,Cardiomegaly\n")
    (root / "cutoffs.csv").write_text("prob_threshold,mIoU,task\n0.1,0.5,Edema\n0.2,0.4,Edema\n0.05,0.5,Cardiomegaly\n")
    rows = "".join(f"{name},x.png,0.{k + 2},0.{k + 5}\n" for k, name in enumerate(IDS))
    (root / "predictions.csv").write_text("image_id,Path,Edema,Cardiomegaly\n" + rows)
    head = "source,gate,task,iou\n"
    (root / "quality.csv").write_text(head + "a,none,Edema,0.5\na,none,Cardiomegaly,0.3\n")
    (root / "quality_crf.csv").write_text(head + "crf_sure,none,Edema,0.5\ncrf_sure,none,Cardiomegaly,0.3\n")


def _maps(root: Path, rng) -> None:
    run, count = root / "run", len(constants.OBSERVATIONS)
    (run / "cams").mkdir(parents=True)
    (run / "hdf5_files").mkdir()
    (root / "pickles").mkdir()
    records = []
    for name in IDS:
        maps, likely = rng.random((count, 3, 3)).astype(np.float32), rng.random(count).astype(np.float32)
        records.append({"id": name, "maps": maps, "probabilities": likely, "size": SHAPE})
        two = {"maps": maps[:2], "probabilities": likely[:2], "size": SHAPE}
        image = rng.integers(0, 255, (SIZE, SIZE), np.uint8)
        write_pickles(root / "pickles", name, ("Edema", "Cardiomegaly"), two, image, [1.0, 0.0])
    store = saliency_store.StoreShards(constants.OBSERVATIONS, SIZE, len(IDS))
    store.write(records, run / "part")
    store.merge([run / "part"], run / saliency_store.STORE)
    (run / "train_cams_paths.csv").write_text("Train_CAM_Id\n" + "".join(f"{name}\n" for name in IDS))
    images = rng.integers(0, 255, (len(IDS), SIZE, SIZE), np.uint8)
    rows = [
        (name, image, record["maps"][: len(TASKS)]) for name, image, record in zip(IDS, images, records, strict=True)
    ]
    train = hdf5_files.TrainShards(TASKS, len(IDS))
    train.write(rows, run / "part")
    train.merge([run / "part"], run / hdf5_files.TRAIN_SET)
    labels = rng.choice(np.array([0, 1, 255], np.uint8), (len(IDS), len(TASKS), SIZE, SIZE))
    shards = hdf5_files.LabelShards(TASKS, len(IDS), SIZE)
    shards.write(list(labels), run / "part")
    shards.merge([run / "part"], run / hdf5_files.IR_LABELS)
    (run / "part").unlink()


def replaced_pickle(path: Path, **changes) -> bytes:
    """A saliency pickle with other values."""
    return pickle.dumps(pickle.loads(path.read_bytes()) | changes)


def copy_of(path: Path) -> h5py.File:
    """An HDF5 file of the world, opened to be changed: a copy of the link's."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    return h5py.File(path, "r+")
