"""The stages of a run on phantoms, each in its own process, with its time and peak memory. Imports nothing large: a
process inherits the peak of the one that started it."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Cost(NamedTuple):
    """Of one process: seconds by the clock and of the processor, and its peak in MiB."""

    seconds: float
    processor: float
    megabytes: float


def commands(root: Path, images: int, size: int, experts: int = 24) -> dict[str, str]:
    """Script and options of each stage for `images` training and as many test images of `size` pixels, and `experts` to
    validate on; the networks are small."""
    base, labels = root / "base", root / "data" / "labels"
    run, classifier = base / "train_cams" / "mine_c.ckpt", base / "mine" / "c.ckpt"
    walk = "best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth"
    pseudo = run / "pseudo_seg_labels_encoded_irnet.json"
    return {
        "phantom": f"make_synthetic_chexpert.py --out_dir {root / 'data'} --gt_out {labels} --preset tiny "
        f"--num_train {images} --num_valid {experts} --num_test {images} --size {size}",
        "classifier": f"train.py --ckpt_path {classifier} --architecture resnet10w32 --image_size {size} "
        "--num_epochs 1 --batch_size 16 --lr 2e-3 --one_cycle",
        "saliency maps": f"test.py --ckpt_path {classifier} --save_dir_predictions {base / 'train_cams'} "
        "--save_cams True --save_train_cams True",
        "threshold masks": f"localization_eval/pred_segmentation.py --map_dir {run}",
        "expert masks": f"localization_eval/gt_segmentation.py --ann_path {labels}/gt_annotations_valid.json "
        f"--output_path {labels}/valid_encoded.json",
        "test masks": f"localization_eval/gt_segmentation.py --ann_path {labels}/gt_annotations_test.json "
        f"--output_path {labels}/test_encoded.json",
        "images and maps in HDF5": f"IRNet/convert_to_hdf5.py --map_dir {run} --image_size {size}",
        "relation labels": f"IRNet/cam_to_ir_label_hdf5.py --map_dir {run}",
        "boundary network": f"IRNet/train_irnet.py --map_dir {run} --backbone_weights {classifier} --lr 0.01 "
        "--weight_decay 0.0 --num_epochs 1",
        "pseudo masks": f"make_pseudo_seg_labels.py --irn_pseudo_labels_save_dir {run} --irn_best_model_name {walk}",
        "segmentation": f"segmentation_train.py --save_dir {base / 'trials'} --experiment_name weak --num_epochs 1 "
        f"--train_masks_path {pseudo} --eval_masks_path {labels}/valid_encoded.json --image_size {size} "
        "--encoder resnet10w32 --decoder_channels 64 --encoder_weights none",
        "predicted masks": f"segmentation_test.py --model_path {base / 'trials' / 'weak' / 'best_model.pth'} "
        f"--test_masks_path {labels}/test_encoded.json --output_path {base / 'trials' / 'weak' / 'masks.json'}",
    }


def folders(root: Path) -> dict[str, str]:
    """The variables that point to the folders of a run under `root`."""
    return {
        "CHEXPERT_DATA_DIR": str(root / "data"),
        "OBJ_EFFICIENCY_BASE_PATH": str(root / "base"),
        "TEST_SEG_LABELS_GT_BASE_PATH": str(root / "data" / "labels"),
    }


def run(root: Path, command: str, ranks: int = 0) -> Cost:
    """Run one stage, in `ranks` processes under torchrun where given; RuntimeError with what it said if it fails."""
    for folder in ("data/labels", "base"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | folders(root)
    script, *options = command.split()
    launcher = [sys.executable]
    if ranks:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        environment["OMP_NUM_THREADS"] = "1"
    started = time.monotonic()
    with open(root / "log.txt", "w+") as log:
        process = subprocess.Popen([*launcher, str(ROOT / script), *options], env=environment, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        if status:
            log.seek(0)
            raise RuntimeError(f"{command}\n{log.read()}")
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
