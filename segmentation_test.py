"""Stage 7: a trained segmentation network's masks for a test set, and their IoU with its ground truth.

    python segmentation_test.py --model_path seg_trials/semi_supervised/best_model.pth \\
        --test_masks_path $TEST_SEG_LABELS_GT_BASE_PATH/test_encoded.json --output_path chexseg.json
    torchrun --nproc_per_node 8 segmentation_test.py ...        the same, shared among 8 GPUs

Thresholds are those that training chose (thresholds.txt beside the model), never the test set's. The padding is cut
off the probabilities, they are resized to the original image (bilinear) and then compared with the threshold. The
printed IoU is pooled: intersections and unions summed over the set, at the original size.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import constants
from chexseg.data import chexpert, mask_files
from chexseg.data.mask_files import MaskFile
from chexseg.errors import DataError, UsageError
from chexseg.evaluation import bootstrap, metrics
from chexseg.runtime import cli, distributed, provenance, shards
from chexseg.segmentation.dataset import locate
from chexseg.segmentation.model import load_model
from chexseg.segmentation.prediction import Originals, predict
from chexseg.training.options import PRECISIONS

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


def read_thresholds(path: Path, count: int) -> list[float]:
    """The thresholds of `count` tasks, each from 0 to 1."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; segmentation_train.py writes it, or give --thresholds_path") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    numbers = isinstance(found, list) and all(isinstance(t, (int, float)) and 0 <= t <= 1 for t in found)
    if not numbers or len(found) != count:
        raise DataError(f"{path}: expected a list of {count} numbers from 0 to 1")
    return found


def main(args: argparse.Namespace) -> None:
    if len(args.model_path) != len(args.output_path):
        raise UsageError(
            f"{len(args.model_path)} of --model_path do not go with {len(args.output_path)} of --output_path"
        )
    for model_path, output_path in zip(args.model_path, args.output_path, strict=True):
        if len(args.model_path) > 1 and distributed.is_main():
            print(f"== {model_path}")
        test(model_path, output_path, args)


def test(model_path: Path, output_path: Path, args: argparse.Namespace) -> None:
    """Predict with one model and print its IoU."""
    device = distributed.device(args.device)
    model, spec, _ = load_model(model_path)
    model.to(device)
    thresholds_path = args.thresholds_path or model_path.parent / "thresholds.txt"
    thresholds = read_thresholds(thresholds_path, len(spec.tasks))
    truth_path = args.test_masks_path or constants.gt_dir() / "test_encoded.json"
    truth = MaskFile(truth_path, constants.ALIASES)
    ids = sorted(truth)
    row_of = {name: row for row, name in enumerate(ids)}
    paths = {name: locate(constants.data_dir(), name, SPLITS) for name in ids}

    def process(names):
        return predict(
            model,
            spec,
            thresholds,
            Originals(paths, names, spec.image_size),
            batch_size=args.batch_size,
            device=device,
            precision=args.precision,
            num_workers=args.num_workers,
            rows=[row_of[name] for name in names],
        )

    inputs = [model_path, thresholds_path, truth_path]
    names = ("model_path", "test_masks_path", "output_path", "thresholds_path")
    arguments = {key: value for key, value in vars(args).items() if key not in names}
    shards.build(
        output_path,
        ids,
        process=process,
        write=mask_files.write_part,
        merge=mask_files.merge_parts,
        record=provenance.describe(arguments, inputs, code=__file__),
        shard_size=args.shard_size,
        label="predicted masks",
        item_fingerprint=lambda name: provenance.stat_fingerprint(paths[name]),
    )
    if distributed.is_main():
        report(MaskFile(output_path), truth, spec.tasks)


def report(predicted: MaskFile, truth: MaskFile, tasks: Sequence[str]) -> None:
    """Print the pooled IoU of each task, and what could not be scored."""
    found = metrics.overlap(predicted, truth, tasks, sorted(truth))
    iou = bootstrap.score(found, bootstrap.Resamples(found.images, 0), "pooled").values[0]
    for task, value, images in zip(tasks, iou[:-1], (found.truth > 0).sum(0), strict=True):
        print(f"{task:28s} {value:.4f}  {images} images" if value == value else f"{task:28s}   does not occur")
    print(f"{'mIoU (pooled)':28s} {iou[-1]:.4f}  {len(found.images)} images")
    for note in found.notes:
        log.info("%s", note)
    listed = constants.gt_dir() / "test_labels.csv"
    if listed.is_file() and truth.path.parent == listed.parent:
        frame = chexpert.read_labels(listed, constants.OBSERVATIONS, constants.ALIASES)
        if absent := [image for image in chexpert.frontal(frame).index if image not in truth]:
            log.info(
                "%d images of %s have no outline, so none is predicted: %s", len(absent), listed, metrics.some(absent)
            )


if __name__ == "__main__":
    cli.run(main, build_parser)
