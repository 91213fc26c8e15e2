"""Stage 1: a classifier's saliency maps and predictions.

    python test.py --batch_size 16 --ckpt_path <checkpoint> --phase test \\
        --save_dir_predictions $OBJ_EFFICIENCY_BASE_PATH/train_cams --save_cams True --save_train_cams True
    torchrun --nproc_per_node 8 test.py ...        the same, shared among 8 GPUs

Writes <save_dir_predictions>/<folder of the checkpoint>_<its file name>/ with predictions.csv, train_cams_paths.csv
(of the training set) and cams/saliency.h5. Killed and run again, it goes on where it was.
"""

import argparse
import os
from functools import partial
from pathlib import Path

import pandas as pd
import torch

import constants
from chexseg.classifier import cam, models, saliency_store
from chexseg.classifier.choices import CAM_METHODS
from chexseg.classifier.dataset import ImageSet, read_batches
from chexseg.data import chexpert
from chexseg.data.images import normalise
from chexseg.data.normalisation import NORMALISATION
from chexseg.errors import UsageError
from chexseg.runtime import cli, distributed, provenance, shards
from chexseg.runtime.files import atomic


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--ckpt_path", type=Path, required=True, help="classifier checkpoint: train.py's, Lightning's or torchvision's")
    add("--phase", choices=("train", "valid", "test"), default="test", help="set to read, unless --save_train_cams")
    add(
        "--save_dir_predictions",
        type=Path,
        default=None,
        help="default: $OBJ_EFFICIENCY_BASE_PATH/{train,valid,test}_cams",
    )
    cli.add_boolean(parser, "--save_cams", default=True, help="write saliency maps, not only predictions")
    cli.add_boolean(parser, "--save_train_cams", help="read the training set, whatever --phase says")
    add("--batch_size", type=cli.positive_int, default=16, help="images a forward pass, on each rank")
    add("--image_size", type=cli.positive_int, default=None, help="side of the network's input [checkpoint's, or 320]")
    add("--cam_method", choices=CAM_METHODS, default="gradcam", help="all but gradcam need the package grad-cam")
    add("--save_format", choices=("hdf5", "pickle"), default="hdf5", help="pickle adds CheXlocalize's *_map.pkl")
    add("--normalisation", choices=tuple(NORMALISATION), default=None, help="of the input [checkpoint's, imagenet]")
    add("--csv_path", type=Path, default=None, help="label file [the set's own in CheXpert's folder]")
    cli.add_run_options(parser)
    return parser


def split(args: argparse.Namespace) -> str:
    """The set that is read."""
    return "train" if args.save_train_cams else args.phase


def run_folder(args: argparse.Namespace) -> Path:
    checkpoint = Path(os.path.abspath(args.ckpt_path))  # a link keeps its name
    base = args.save_dir_predictions or constants.base_dir() / f"{split(args)}_cams"
    return base / f"{checkpoint.parent.name}_{checkpoint.name}"


def load_images(args: argparse.Namespace) -> ImageSet:
    path = args.csv_path
    if path is None:
        listed = constants.gt_dir() / "test_labels.csv" if split(args) == "test" else None
        path = listed if listed and listed.is_file() else chexpert.split_csv(constants.data_dir(), split(args))
    frame = chexpert.frontal(chexpert.read_labels(path, constants.OBSERVATIONS, constants.ALIASES))
    if frame.empty:
        raise UsageError(f"{path}: no frontal image in it")
    return ImageSet(constants.data_dir(), frame, csv=path)


def main(args: argparse.Namespace) -> None:
    device = distributed.device(args.device)
    model = models.load_classifier(args.ckpt_path, constants.OBSERVATIONS, normalisation=args.normalisation).to(device)
    size, images, folder = args.image_size or model.spec.image_size, load_images(args), run_folder(args)
    args.image_size = size
    pickles = folder / "cams" if args.save_format == "pickle" and args.save_cams else None
    labels = images.frame.reindex(columns=model.spec.tasks)

    def process(ids):
        for names, pixels, sizes in read_batches(images, ids, size, args.batch_size, args.num_workers):
            batch = normalise(pixels.to(device, non_blocking=True), model.spec.normalisation)
            maps, probabilities = (t.float().cpu().numpy() for t in cam.saliency(model, batch, args.cam_method))
            for i, name in ((i, name) for i, name in enumerate(names) if name is not None):
                found = {"id": name, "maps": maps[i], "probabilities": probabilities[i], "size": sizes[i]}
                if pickles:
                    saliency_store.write_pickles(
                        pickles, name, model.spec.tasks, found, pixels[i].numpy(), labels.loc[name].to_numpy()
                    )
                yield found

    store = folder / (saliency_store.STORE if args.save_cams else "predictions.h5")
    record = provenance.describe(vars(args), [args.ckpt_path, images.csv], code=__file__)
    merge = partial(saliency_store.merge_parts, tasks=model.spec.tasks, image_size=size, count=len(images.ids))
    shards.build(
        store,
        images.ids,
        process=process,
        write=saliency_store.write_part,
        merge=merge,
        record=record,
        shard_size=args.shard_size,
        label="saliency maps",
        item_fingerprint=images.fingerprint,
    )
    if distributed.is_main():
        write_tables(folder, store, images, args)


def write_tables(folder: Path, store: Path, images: ImageSet, args: argparse.Namespace) -> None:
    """predictions.csv, and for the training set the ids of the images that have maps."""
    predictions = saliency_store.read_predictions(store)
    predictions.insert(0, "Path", images.frame["Path"].reindex(predictions.index))
    with atomic(folder / "predictions.csv") as temporary:
        predictions.to_csv(temporary)
    if args.save_cams and split(args) == "train":
        with atomic(folder / "train_cams_paths.csv") as temporary:
            pd.DataFrame({"Train_CAM_Id": predictions.index}).to_csv(temporary, index=False)


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    cli.run(main, build_parser)
