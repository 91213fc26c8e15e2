"""Stage 7: a trained segmentation network's masks for a test set, and their IoU with its ground truth.

    python segmentation_test.py --model_path seg_trials/semi_supervised/best_model.pth \\
        --test_masks_path $TEST_SEG_LABELS_GT_BASE_PATH/test_encoded.json --output_path chexseg.json
    torchrun --nproc_per_node 8 segmentation_test.py ...        the same, shared among 8 GPUs

Thresholds are those that training chose (thresholds.txt beside the model), never the test set's. The padding is cut
off the probabilities, they are resized to the original image (bilinear) and then compared with the threshold. The
printed IoU is pooled: intersections and unions summed over the set, at the original size.
"""

import argparse
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import constants
from chexseg.errors import DataError, UsageError
from chexseg.runtime import cli, distributed
from chexseg.training.options import PRECISIONS

if TYPE_CHECKING:
    from chexseg.data.mask_files import MaskFile

log = logging.getLogger(__name__)
SPLITS = ("test", "valid", "train")


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add(
        "--model_path",
        "--ckpt",
        "--ckpt_path",
        type=Path,
        nargs="+",
        required=True,
        metavar="MODEL",
        help="best_model.pth of segmentation_train.py; several are tested one after the other",
    )
    add("--output_path", type=Path, nargs="+", required=True, metavar="JSON", help="masks JSON to write, one a model")
    add(
        "--test_masks_path",
        type=Path,
        help="masks JSON of the test set [$TEST_SEG_LABELS_GT_BASE_PATH/test_encoded.json]",
    )
    add("--thresholds_path", type=Path, help="JSON list of a threshold per task [thresholds.txt beside the model]")
    add("--batch_size", type=cli.positive_int, default=8, help="images a forward pass, on each rank")
    add("--precision", choices=PRECISIONS, default="auto", help="auto: bf16 where the chip multiplies it")
    cli.add_run_options(parser, shard_size=64)
    return parser


def predict(
    output_path: Path,
    model_path: Path,
    thresholds_path: Path,
    paths: Mapping[str, Path],
    truth_path: Path,
    options: Mapping,
) -> None:
    """Write one network's masks of the images in `paths`; `options` are the command line's others."""
    from chexseg.data import mask_files
    from chexseg.runtime import provenance, shards
    from chexseg.segmentation import stages
    from chexseg.segmentation.thresholds import read_thresholds

    read_thresholds(thresholds_path)  # what is wrong with them is said before the work begins
    work = ("batch_size", "device", "precision", "num_workers")
    shards.build(
        output_path,
        list(paths),
        process=partial(
            stages.predicted_masks,
            model_path=model_path,
            thresholds_path=thresholds_path,
            paths=paths,
            **{name: options[name] for name in work},
        ),
        shard_format=mask_files.MaskShards(),
        record=provenance.describe(options, [model_path, thresholds_path, truth_path], code=__file__),
        shard_size=options["shard_size"],
        label="predicted masks",
        item_fingerprint=lambda name: provenance.stat_fingerprint(paths[name]),
    )


def report(predicted: "MaskFile", truth: "MaskFile") -> None:
    """Print the pooled IoU of each task, and what could not be scored."""
    from chexseg.data import chexpert
    from chexseg.evaluation.metrics import some
    from chexseg.segmentation.report import pooled_iou

    tasks = list(next(iter(predicted.values()), {}))  # a network predicts all its tasks of every image
    lines, notes = pooled_iou(predicted, truth, tasks)
    print("\n".join(lines))
    listed = constants.gt_dir() / "test_labels.csv"
    if listed.is_file() and truth.path.parent == listed.parent:
        frame = chexpert.read_labels(listed, constants.OBSERVATIONS, constants.ALIASES)
        if absent := [image for image in chexpert.frontal(frame).index if image not in truth]:
            notes.append(f"{len(absent)} images of {listed} have no outline, so none is predicted: {some(absent)}")
    for note in notes:
        log.info("%s", note)


def main(args: argparse.Namespace) -> None:
    from chexseg.data.chexpert import locate
    from chexseg.data.mask_files import MaskFile

    if len(args.model_path) != len(args.output_path):
        raise UsageError(
            f"{len(args.model_path)} of --model_path do not go with {len(args.output_path)} of --output_path"
        )
    for path in args.model_path:
        if not path.is_file():
            raise DataError(f"{path}: no such network; train one with segmentation_train.py")
    truth = MaskFile(args.test_masks_path or constants.gt_dir() / "test_encoded.json", constants.ALIASES)
    paths = {name: locate(constants.data_dir(), name, SPLITS) for name in sorted(truth)}
    names = ("model_path", "test_masks_path", "output_path", "thresholds_path")
    options = {key: value for key, value in vars(args).items() if key not in names}
    for model_path, output_path in zip(args.model_path, args.output_path, strict=True):
        if len(args.model_path) > 1 and distributed.is_main():
            print(f"== {model_path}")
        thresholds_path = args.thresholds_path or model_path.parent / "thresholds.txt"
        predict(output_path, model_path, thresholds_path, paths, truth.path, options)
        if distributed.is_main():
            report(MaskFile(output_path), truth)


if __name__ == "__main__":
    cli.run(main, build_parser)
