"""Stage 1: a classifier's saliency maps and predictions.

    python test.py --batch_size 16 --ckpt_path <checkpoint> --phase test \\
        --save_dir_predictions $OBJ_EFFICIENCY_BASE_PATH/train_cams --save_cams True --save_train_cams True
    python test.py --ckpt_path <checkpoint> --images FOLDER_OR_FILES        any X-rays, without a label file
    python test.py --config_path ensemble.json ...                          means over several checkpoints, task by task
    torchrun --nproc_per_node 8 test.py ...        the same, shared among 8 GPUs

Writes <save_dir_predictions>/<folder of the checkpoint>_<its file name>/ with predictions.csv, train_cams_paths.csv
(of the training set) and cams/saliency.h5; of an ensemble, <save_dir_predictions>/ensemble_results/ with the
same. Killed and run again, it goes on where it was.
"""

import argparse
import os
from pathlib import Path

import constants
from chexseg.classifier import ensemble
from chexseg.classifier.choices import CAM_METHODS, OUTPUT_STRIDES
from chexseg.data.normalisation import NORMALISATION
from chexseg.data.views import VIEWS
from chexseg.errors import MissingError, UsageError
from chexseg.runtime import cli


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--ckpt_path", type=Path, help="classifier: train.py's, Lightning's, timm's, torchxrayvision's ..."
    )
    of_tasks = '{"task2models": {task: [{"ckpt_path": ...}]}, "aggregation_method": "mean"}'
    which.add_argument("--config_path", type=Path, metavar="JSON", help=f"ensemble: {of_tasks}")
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
    add("--output_stride", type=int, choices=OUTPUT_STRIDES, help="16 or 8: denser maps [the checkpoint's]")
    add(
        "--map_scales",
        nargs="+",
        type=cli.positive_float,
        default=[1.0],
        metavar="SCALE",
        help="average maps over these",
    )
    cli.add_boolean(parser, "--map_mirror", help="average each map with that of the mirrored image")
    add("--save_format", choices=("hdf5", "pickle"), default="hdf5", help="pickle adds CheXlocalize's *_map.pkl")
    add("--normalisation", choices=tuple(NORMALISATION), default=None, help="of the input [checkpoint's, imagenet]")
    add("--csv_path", type=Path, default=None, help="label file [the set's own in CheXpert's folder]")
    add("--views", choices=VIEWS, default="frontal", help="which views of the label file to read")
    add("--images", type=Path, nargs="+", metavar="PATH", help="any folders of X-rays, or files, instead of a set")
    cli.add_run_options(parser)
    return parser


def label_file(split: str) -> Path:
    """The label file of a set: CheXlocalize's beside the test masks where it is there, else the data set's own."""
    from chexseg.data import chexpert

    beside_masks = constants.gt_dir() / "test_labels.csv" if split == "test" else None
    if beside_masks and beside_masks.is_file():
        return beside_masks
    return chexpert.split_csv(constants.data_dir(), split)


def what_to_run(ckpt_path: Path | None, config_path: Path | None) -> "tuple[Path | ensemble.Members, str, list[Path]]":
    """The checkpoint or the checkpoints of each task, the name of their run, and the files that decide its maps."""
    if config_path:
        members = ensemble.read_config(config_path, constants.OBSERVATIONS, constants.ALIASES)
        return members, ensemble.FOLDER, [config_path, *ensemble.files(members)]
    if ckpt_path is None or not ckpt_path.is_file():
        raise MissingError(f"{ckpt_path}: no such checkpoint; train one with train.py")
    checkpoint = Path(os.path.abspath(ckpt_path))  # a link keeps its name
    return checkpoint, f"{checkpoint.parent.name}_{checkpoint.name}", [ckpt_path]


def main(args: argparse.Namespace) -> None:
    from chexseg.classifier import saliency_store
    from chexseg.classifier.prediction_tables import write_tables
    from chexseg.classifier.saliency_stage import SaliencyStage
    from chexseg.data import chexpert, folder_set, image_folder, label_files, leak_guard
    from chexseg.runtime import distributed, provenance, shards

    split = "train" if args.save_train_cams else args.phase
    checkpoint, name, weights = what_to_run(args.ckpt_path, args.config_path)
    folder = args.save_dir_predictions or constants.base_dir() / f"{'image' if args.images else split}_cams"
    folder /= name
    if args.images:
        if args.csv_path or args.save_train_cams:
            raise UsageError("--images takes no label file: leave out --csv_path and --save_train_cams")
        images = folder_set.readable(image_folder.find(args.images, without=folder), folder, args.num_workers)
    else:
        csv = args.csv_path or label_file(split)
        labels = chexpert.read_labels(csv, constants.OBSERVATIONS, constants.ALIASES, split)
        frame = label_files.of_views(labels, args.views)
        if frame.empty:
            raise UsageError(f"{csv}: no image of --views {args.views} in it")
        images = chexpert.ImageSet(constants.data_dir(), frame, csv=csv)
    stage = SaliencyStage(
        checkpoint,
        images,
        constants.OBSERVATIONS,
        image_size=args.image_size,
        normalisation=args.normalisation,
        cam_method=args.cam_method,
        output_stride=args.output_stride,
        map_scales=args.map_scales,
        map_mirror=args.map_mirror,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        device=args.device,
        pickles=folder / "cams" if args.save_format == "pickle" and args.save_cams else None,
    )
    store = folder / (saliency_store.STORE if args.save_cams else "predictions.h5")
    options = {key: value for key, value in vars(args).items() if key != "images"}
    for path in (store, folder / "predictions.csv"):
        leak_guard.inherit(path, [args.ckpt_path])
    shards.build(
        store,
        images.ids,
        process=stage.process,
        shard_format=stage,
        record=provenance.describe(options, [weights[0], images.csv, *weights[1:]], code=__file__),
        shard_size=args.shard_size,
        label="saliency maps",
        item_fingerprint=images.fingerprint,
    )
    if distributed.is_main():
        listing = folder / "train_cams_paths.csv" if args.save_cams and split == "train" else None
        write_tables(store, images, folder / "predictions.csv", listing)
        if args.images:
            folder_set.refuse_skipped(folder)


if __name__ == "__main__":
    cli.run(main, build_parser)
