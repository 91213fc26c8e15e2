"""Stage 2: masks from saliency maps, by a threshold on each map.

    python pred_segmentation.py --phase train --map_dir $OBJ_EFFICIENCY_BASE_PATH/train_cams/<run> \\
        --method gradcam --model_type single
    python pred_segmentation.py --phase test --map_dir <run> --protocol chexlocalize --threshold_path thresholds.csv

Writes seg_labels_encoded.json into the run folder: at the network's input size for `train`, at the original images'
size for `valid` and `test`. Killed and run again, it goes on where it was.
"""

import argparse
from functools import partial
from pathlib import Path

import constants
from chexseg.classifier import saliency_masks
from chexseg.classifier.saliency_store import SaliencyMaps
from chexseg.data import mask_files
from chexseg.errors import UsageError
from chexseg.runtime import cli, provenance, shards
from chexseg.runtime.workers import ordered_map


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--phase", choices=("train", "valid", "test"), default="train", help="train keeps the network's input size")
    add("--map_dir", type=Path, help="run folder of test.py, or a folder of *_map.pkl [the default run]")
    add("--method", default="gradcam", help="what made the maps; recorded beside the output")
    add("--model_type", choices=("single", "ensemble"), default="single", help="what made the maps; recorded likewise")
    add(
        "--protocol",
        choices=saliency_masks.PROTOCOLS,
        default="chexseg",
        help="chexlocalize stretches each map to 0..1 first",
    )
    add("--threshold_path", type=Path, help="CSV threshold,task of fixed thresholds, instead of Otsu's (chexlocalize)")
    add("--prob_cutoff_path", type=Path, help="CSV prob_threshold,mIoU,task: below it, an empty mask (chexlocalize)")
    add("--tasks", nargs="+", default=list(constants.LOCALIZATION_TASKS), metavar="TASK", help="tasks to write")
    add("--output_path", type=Path, help="masks JSON to write [seg_labels_encoded.json in --map_dir]")
    cli.add_run_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    if args.protocol != "chexlocalize" and (args.threshold_path or args.prob_cutoff_path):
        raise UsageError("--threshold_path and --prob_cutoff_path belong to --protocol chexlocalize")
    folder = args.map_dir or constants.run_dir()
    store = SaliencyMaps(folder)
    tasks = tuple(constants.ALIASES.get(name, name) for name in args.tasks)
    store.task_rows(tasks)
    read = partial(saliency_masks.read_task_values, tasks=tasks, aliases=constants.ALIASES)
    make = saliency_masks.MaskMaker(
        path=folder,
        fingerprint=saliency_masks.fingerprint(store),
        tasks=tasks,
        original_size=args.phase != "train",
        protocol=args.protocol,
        thresholds=read(args.threshold_path, "threshold") if args.threshold_path else None,
        cutoffs=read(args.prob_cutoff_path, "prob_threshold") if args.prob_cutoff_path else None,
    )
    output = args.output_path or (folder if folder.is_dir() else folder.parent) / "seg_labels_encoded.json"
    record = provenance.describe(vars(args), [args.threshold_path, args.prob_cutoff_path], code=__file__)
    record["inputs"][str(store.path)] = make.fingerprint
    shards.build(
        output,
        store.ids,
        process=lambda ids: ordered_map(make, ids, args.num_workers),
        write=mask_files.write_part,
        merge=mask_files.merge_parts,
        record=record,
        shard_size=args.shard_size,
        label="threshold masks",
    )


if __name__ == "__main__":
    cli.run(main, build_parser)
