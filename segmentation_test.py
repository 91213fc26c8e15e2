"""Stage 7: a trained segmentation network's masks for a test set, and their IoU with its ground truth.

    python segmentation_test.py --model_path seg_trials/semi_supervised/best_model.pth \\
        --test_masks_path $TEST_SEG_LABELS_GT_BASE_PATH/test_encoded.json --output_path chexseg.json
    torchrun --nproc_per_node 8 segmentation_test.py ...        the same, shared among 8 GPUs

Thresholds are those that training chose (thresholds.txt beside the model), never the test set's. The padding is cut
off the probabilities, they are resized to the original image (bilinear) and then compared with the threshold. The
printed IoU is pooled: intersections and unions summed over the set, at the original size. With --all_images films
without a finding are predicted and scored too; with --gate_predictions the classifier empties masks that it doubts.
"""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import constants
from chexseg.data import leak_guard
from chexseg.errors import MissingError, UsageError
from chexseg.runtime import cli, distributed, provenance
from chexseg.training.options import PRECISIONS

if TYPE_CHECKING:
    from chexseg.data.mask_files import MaskFile
    from chexseg.evaluation.film_list import FilmList
    from chexseg.segmentation.prediction_gate import PredictionGate

log = logging.getLogger(__name__)
SPLITS = ("test", "valid", "train")
# What these say is in the inputs' content, or decides no mask.
PATHS = "model_path test_masks_path output_path thresholds_path gate_predictions gate_cutoffs".split()
PATHS += "all_images allow_leak image_dir oracle".split()


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
    add("--test_masks_path", type=Path, help="masks JSON [$TEST_SEG_LABELS_GT_BASE_PATH/test_encoded.json]")
    add("--thresholds_path", type=Path, help="JSON list of a threshold per task [thresholds.txt beside the model]")
    add("--batch_size", type=cli.positive_int, default=8, help="images a forward pass, on each rank")
    add("--precision", choices=PRECISIONS, default="auto", help="auto: bf16 where the chip multiplies it")
    add("--image_dir", type=Path, help="any folder of images, whose ids are their paths [$CHEXPERT_DATA_DIR]")
    add("--all_images", type=Path, metavar="CSV", help="label file of the whole set: predict and score all its films")
    cli.add_boolean(parser, "--oracle", help="also <output>_oracle.csv: positives, best threshold; an upper bound")
    add("--gate_predictions", type=Path, metavar="CSV", help="the classifier's predictions.csv of these films")
    add("--gate_cutoffs", type=Path, metavar="CSV", help="of tune_thresholds.py: empty masks below these probabilities")
    leak_guard.add_option(parser)
    cli.add_run_options(parser, shard_size=64)
    return parser


def report(predicted: "MaskFile", truth: "MaskFile", films: "FilmList | None" = None) -> None:
    """Print how many masks there are and the pooled IoU of each task, and what could not be scored."""
    from chexseg.data import task_counts
    from chexseg.evaluation.film_list import read_list
    from chexseg.evaluation.metrics import some
    from chexseg.segmentation.report import pooled_iou

    tasks = list(next(iter(predicted.values()), {}))  # a network predicts all its tasks of every image
    log.info("%s", task_counts.summary(predicted, tasks))
    lines, notes = pooled_iou(predicted, truth, tasks, films)
    print("\n".join(lines))
    listed = constants.gt_dir() / "test_labels.csv"
    of_test_set = truth.path.parent == listed.parent and truth.path.name.startswith("test")
    if films is None and listed.is_file() and of_test_set:
        if absent := [image for image in read_list(listed) if image not in truth]:
            notes.append(
                f"{len(absent)} images of {listed} have no outline, so none is predicted "
                f"(--all_images predicts them): {some(absent)}"
            )
    for note in notes:
        log.info("%s", note)


def choose_gate(predictions: Path | None, cutoffs: Path | None) -> "PredictionGate | None":
    """The gate of the two options, which go together."""
    from chexseg.segmentation.prediction_gate import PredictionGate

    if (predictions is None) != (cutoffs is None):
        raise UsageError("--gate_predictions and --gate_cutoffs go together")
    return PredictionGate(predictions, cutoffs, constants.ALIASES) if predictions and cutoffs else None


def main(args: argparse.Namespace) -> None:
    from chexseg.data.chexpert import locate, patient_of
    from chexseg.data.mask_files import MaskFile
    from chexseg.evaluation.film_list import read_list
    from chexseg.segmentation import foreign, stages

    if len(args.model_path) != len(args.output_path):
        raise UsageError(
            f"{len(args.model_path)} of --model_path do not go with {len(args.output_path)} of --output_path"
        )
    gate = choose_gate(args.gate_predictions, args.gate_cutoffs)
    for path in args.model_path:
        if not path.is_file():
            raise MissingError(f"{path}: no such network; train one with segmentation_train.py")
    truth = MaskFile(args.test_masks_path or constants.gt_dir() / "test_encoded.json", constants.ALIASES)
    films = read_list(args.all_images, constants.ALIASES) if args.all_images else None
    paths = {
        name: locate(args.image_dir or constants.data_dir(), name, SPLITS) for name in sorted({*truth, *(films or ())})
    }
    options = {key: value for key, value in vars(args).items() if key not in PATHS}
    for model_path, output_path in zip(args.model_path, args.output_path, strict=True):
        if len(args.model_path) > 1 and distributed.is_main():
            print(f"== {model_path}")
        thresholds_path = args.thresholds_path or model_path.parent / "thresholds.txt"
        sources = [model_path, thresholds_path, args.gate_cutoffs, args.gate_predictions]
        leaks = leak_guard.check(sources, {patient_of(name) for name in paths}, allow=args.allow_leak)
        leak_guard.inherit(output_path, sources)
        beside = foreign.side_files(model_path)
        inputs = [model_path, thresholds_path, truth.path, *(gate.inputs if gate else ()), *beside]
        stages.build_masks(
            output_path,
            paths=paths,
            thresholds_path=thresholds_path,
            record=provenance.describe(options, inputs, code=__file__),
            shard_size=args.shard_size,
            model_path=model_path,
            gate=gate,
            batch_size=args.batch_size,
            device=args.device,
            precision=args.precision,
            num_workers=args.num_workers,
        )
        if distributed.is_main():
            report(MaskFile(output_path), truth, films)
            if args.oracle:
                from chexseg.segmentation import upper_bound

                work = {name: getattr(args, name) for name in ("device", "batch_size", "precision", "num_workers")}
                bound = upper_bound.ious(model_path, truth, paths, **work)
                print(upper_bound.write(output_path.with_name(f"{output_path.stem}_oracle.csv"), truth, *bound, leaks))
            print("".join(f"LEAK, no test: {leak}\n" for leak in leaks), end="")


if __name__ == "__main__":
    cli.run(main, build_parser)
