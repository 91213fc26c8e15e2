"""Stage 2: masks from saliency maps, by a threshold on each map.

    python pred_segmentation.py --phase train --map_dir $OBJ_EFFICIENCY_BASE_PATH/train_cams/<run> \\
        --method gradcam --model_type single
    python pred_segmentation.py --phase test --map_dir <run> --protocol chexlocalize --threshold_path thresholds.csv
    python pred_segmentation.py --phase test --map_dir gradcam_maps_val --protocol chexlocalize \\
        --probability_threshold_path probability_tuning_results.csv --output_path gradcam_segmentations_val.json

Writes seg_labels_encoded.json into the run folder: at the network's input size for `train`, at the original images'
size for `valid` and `test`. Killed and run again, it goes on where it was.
"""

import argparse
import logging
from functools import partial
from pathlib import Path

import constants
from chexseg.classifier.choices import PROTOCOLS
from chexseg.classifier.ensemble import FOLDER
from chexseg.errors import UsageError
from chexseg.runtime import cli

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--phase", choices=("train", "valid", "test"), default="train", help="train keeps the network's input size")
    add("--map_dir", type=Path, help="run folder of test.py, or a folder of *_map.pkl [the default run, or ensemble]")
    add("--method", default="gradcam", help="what made the maps; recorded beside the output")
    add("--model_type", choices=("single", "ensemble"), default="single", help="ensemble: of test.py --config_path")
    add("--protocol", choices=PROTOCOLS, default="chexseg", help="chexlocalize stretches each map to 0..1 first")
    add("--threshold_path", type=Path, help="CSV threshold,task of fixed thresholds, instead of Otsu's (chexlocalize)")
    add(
        "--prob_cutoff_path",
        "--probability_threshold_path",
        type=Path,
        help="CSV prob_threshold,mIoU,task: below it, an empty mask (chexlocalize)",
    )
    cli.add_boolean(parser, "--if_smoothing", help="average over a box before Otsu's threshold (chexlocalize)")
    add("--k", type=cli.non_negative_int, default=0, help="side of that box in pixels")
    add("--tasks", nargs="+", default=list(constants.LOCALIZATION_TASKS), metavar="TASK", help="tasks to write")
    add("--output_path", type=Path, help="masks JSON to write [seg_labels_encoded.json in --map_dir]")
    cli.add_run_options(parser)
    return parser


def default_run(model_type: str, phase: str) -> Path:
    """The run folder where none is named."""
    return constants.base_dir() / f"{phase}_cams" / FOLDER if model_type == "ensemble" else constants.run_dir()


def main(args: argparse.Namespace) -> None:
    from chexseg.classifier.saliency_masks import MaskMaker, read_task_values
    from chexseg.classifier.saliency_store import open_maps
    from chexseg.data import leak_guard, task_counts
    from chexseg.data.mask_files import MaskFile, MaskShards
    from chexseg.runtime import distributed, provenance, shards

    if args.protocol != "chexlocalize" and (args.threshold_path or args.prob_cutoff_path):
        raise UsageError("--threshold_path and --prob_cutoff_path belong to --protocol chexlocalize")
    if args.if_smoothing and (args.protocol != "chexlocalize" or args.k < 1):
        raise UsageError("--if_smoothing belongs to --protocol chexlocalize and needs --k of at least 1")
    maps = open_maps(args.map_dir or default_run(args.model_type, args.phase))
    tasks = tuple(constants.ALIASES.get(name, name) for name in args.tasks)
    maps.task_rows(tasks)  # an unknown task is an error now, not in the middle of the work
    read = partial(read_task_values, tasks=tasks, aliases=constants.ALIASES)
    maker = MaskMaker(
        maps,
        tasks,
        original_size=args.phase != "train",
        protocol=args.protocol,
        thresholds=read(args.threshold_path, "threshold") if args.threshold_path else None,
        cutoffs=read(args.prob_cutoff_path, "prob_threshold") if args.prob_cutoff_path else None,
        smoothing=args.k if args.if_smoothing else 0,
    )
    record = provenance.describe(vars(args), [args.threshold_path, args.prob_cutoff_path], code=__file__)
    record["inputs"][str(maps.path)] = maps.fingerprint()
    output = args.output_path or maps.folder / "seg_labels_encoded.json"
    leak_guard.inherit(output, [maps.path, args.threshold_path, args.prob_cutoff_path])
    made = shards.build(
        output,
        maps.ids,
        process=partial(maker.process, num_workers=args.num_workers),
        shard_format=MaskShards(),
        record=record,
        shard_size=args.shard_size,
        label="threshold masks",
    )
    if made and distributed.is_main():
        log.info("%s:\n%s", output, task_counts.summary(MaskFile(output), tasks))


if __name__ == "__main__":
    cli.run(main, build_parser)
