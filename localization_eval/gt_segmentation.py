"""Stage 2: radiologists' polygons (CheXlocalize's gt_annotations_*.json) -> masks JSON.

    python gt_segmentation.py --ann_path $TEST_SEG_LABELS_GT_BASE_PATH/gt_annotations_test.json \\
        --output_path $TEST_SEG_LABELS_GT_BASE_PATH/test_encoded.json

Every image of the annotations gets a mask of every task at its own size; a task without a polygon gets an empty one,
which says that the finding is absent. Where the readers drew some findings only, name them with --annotated_tasks: the
others are then left out, which says that nobody knows.
"""

import argparse
import logging
from functools import partial
from pathlib import Path

import constants
from chexseg.errors import DataError, UsageError
from chexseg.runtime import cli

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--ann_path", type=Path, help="polygons JSON [$TEST_SEG_LABELS_GT_BASE_PATH/gt_annotations_test.json]")
    add("--output_path", type=Path, help="masks JSON to write [test_encoded.json for gt_annotations_test.json]")
    add("--tasks", nargs="+", default=list(constants.LOCALIZATION_TASKS), metavar="TASK", help="tasks to write")
    add("--annotated_tasks", nargs="+", metavar="TASK", help="those of --tasks that the readers drew [all]")
    cli.add_run_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    from chexseg.data.mask_files import MaskShards, PolygonFile
    from chexseg.data.polygon_masks import PolygonMasks
    from chexseg.runtime import provenance, shards

    path = args.ann_path or constants.gt_dir() / "gt_annotations_test.json"
    stem = path.stem.removeprefix("gt_annotations_").removesuffix("_annotations")
    annotations = PolygonFile(path, constants.ALIASES)
    if not annotations:
        raise DataError(f"{path}: no annotated image in it")
    tasks, drawn = (
        tuple(constants.ALIASES.get(n, n) for n in names or ()) for names in (args.tasks, args.annotated_tasks)
    )
    if unknown := sorted(set(drawn) - set(tasks)):
        raise UsageError(f"--annotated_tasks {unknown[0]!r}: not one of {', '.join(tasks)}")
    masks = PolygonMasks(annotations, tuple(task for task in tasks if not drawn or task in drawn))
    images_with, blank = masks.count()
    for task in sorted(set(images_with) - set(masks.tasks)):
        log.warning(
            "%s: %d images have polygons of %r, which is not written (see --tasks)", path, images_with[task], task
        )
    log.info("%s: %d images, %d of them without a polygon", path, len(annotations), blank)
    log.info("images with a polygon: %s", ", ".join(f"{task} {images_with[task]}" for task in masks.tasks))
    shards.build(
        args.output_path or path.with_name(f"{stem}_encoded.json"),
        list(annotations),
        process=partial(masks.process, num_workers=args.num_workers),
        shard_format=MaskShards(),
        record=provenance.describe(vars(args), [path], code=__file__),
        shard_size=args.shard_size,
        label="masks of polygons",
    )


if __name__ == "__main__":
    cli.run(main, build_parser)
