"""Stage 2: radiologists' polygons (CheXlocalize's gt_annotations_*.json) -> masks JSON.

    python gt_segmentation.py --ann_path $TEST_SEG_LABELS_GT_BASE_PATH/gt_annotations_test.json \\
        --output_path $TEST_SEG_LABELS_GT_BASE_PATH/test_encoded.json

Every image of the annotations gets a mask of every task at its own size; a task without a polygon gets an empty one.
"""

import argparse
import logging
from collections import Counter
from functools import partial
from pathlib import Path

import constants
from chexseg import cli, mask_files, masks, provenance, shards
from chexseg.errors import DataError

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--ann_path", type=Path, help="polygons JSON [$TEST_SEG_LABELS_GT_BASE_PATH/gt_annotations_test.json]")
    add("--output_path", type=Path, help="masks JSON to write [test_encoded.json for gt_annotations_test.json]")
    add("--tasks", nargs="+", default=list(constants.LOCALIZATION_TASKS), metavar="TASK", help="tasks to write")
    cli.add_run_options(parser)
    return parser


def fill(item: tuple[str, tuple[int, int], dict[str, list]], path: Path, tasks: tuple[str, ...]) -> tuple[str, dict]:
    """(image id, size, polygons by task) -> (image id, masks by task)."""
    image_id, size, polygons = item
    nothing = masks.empty(size)
    return image_id, {
        task: masks.encode(masks.from_polygons(polygons[task], size, f"{path}: {image_id}: {task}")[None])[0]
        if polygons.get(task)
        else nothing
        for task in tasks
    }


def main(args: argparse.Namespace) -> None:
    path = args.ann_path or constants.gt_dir() / "gt_annotations_test.json"
    stem = path.stem.removeprefix("gt_annotations_").removesuffix("_annotations")
    output = args.output_path or path.with_name(f"{stem}_encoded.json")
    tasks = tuple(constants.ALIASES.get(name, name) for name in args.tasks)
    items = {item[0]: item for item in mask_files.read_polygons(path, constants.ALIASES)}
    if not items:
        raise DataError(f"{path}: no annotated image in it")
    found = Counter(task for _, _, polygons in items.values() for task, outlines in polygons.items() if outlines)
    for task in sorted(set(found) - set(tasks)):
        log.warning("%s: %d images have polygons of %r, which is not written (see --tasks)", path, found[task], task)
    blank = sum(not any(polygons.get(task) for task in tasks) for _, _, polygons in items.values())
    log.info("%s: %d images, %d of them without a polygon", path, len(items), blank)
    log.info("images with a polygon: %s", ", ".join(f"{task} {found[task]}" for task in tasks))
    shards.build(
        output,
        list(items),
        process=lambda ids: shards.ordered_map(
            partial(fill, path=path, tasks=tasks), [items[i] for i in ids], args.num_workers
        ),
        write=mask_files.write_part,
        merge=mask_files.merge_parts,
        record=provenance.describe(vars(args), [path], code=[masks, mask_files]),
        shard_size=args.shard_size,
        describe="masks of polygons",
    )


if __name__ == "__main__":
    cli.run(main, build_parser)
