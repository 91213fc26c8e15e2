"""Stage 2: radiologists' polygons (CheXlocalize's gt_annotations_*.json) -> masks JSON.

    python gt_segmentation.py --ann_path $TEST_SEG_LABELS_GT_BASE_PATH/gt_annotations_test.json \\
        --output_path $TEST_SEG_LABELS_GT_BASE_PATH/test_encoded.json

Every image of the annotations gets a mask of every task at its own size; a task without a polygon gets an empty one.
"""

import argparse
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import constants
from chexseg.data import mask_files, rle
from chexseg.errors import DataError
from chexseg.runtime import cli, provenance, shards
from chexseg.runtime.workers import ordered_map

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--ann_path", type=Path, help="polygons JSON [$TEST_SEG_LABELS_GT_BASE_PATH/gt_annotations_test.json]")
    add("--output_path", type=Path, help="masks JSON to write [test_encoded.json for gt_annotations_test.json]")
    add("--tasks", nargs="+", default=list(constants.LOCALIZATION_TASKS), metavar="TASK", help="tasks to write")
    cli.add_run_options(parser)
    return parser


class Chosen:
    """Some images of an annotation file, each read when its turn comes."""

    def __init__(self, annotations: mask_files.PolygonFile, ids: Sequence[str]):
        self.annotations, self.ids = annotations, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[str, tuple[int, int], mask_files.Polygons]]:
        return ((image_id, *self.annotations[image_id]) for image_id in self.ids)


def fill(
    item: tuple[str, tuple[int, int], mask_files.Polygons], path: Path, tasks: tuple[str, ...]
) -> tuple[str, dict]:
    """(image id, size, polygons by task) -> (image id, masks by task)."""
    image_id, size, polygons = item
    nothing = rle.empty(size)
    return image_id, {
        task: rle.encode(rle.from_polygons(polygons[task], size, f"{path}: {image_id}: {task}")[None])[0]
        if polygons.get(task)
        else nothing
        for task in tasks
    }


def main(args: argparse.Namespace) -> None:
    path = args.ann_path or constants.gt_dir() / "gt_annotations_test.json"
    stem = path.stem.removeprefix("gt_annotations_").removesuffix("_annotations")
    output = args.output_path or path.with_name(f"{stem}_encoded.json")
    tasks = tuple(constants.ALIASES.get(name, name) for name in args.tasks)
    annotations = mask_files.PolygonFile(path, constants.ALIASES)
    if not annotations:
        raise DataError(f"{path}: no annotated image in it")
    found, blank = Counter(), 0
    for _, polygons in annotations.values():
        found.update(task for task, outlines in polygons.items() if outlines)
        blank += not any(polygons.get(task) for task in tasks)
    for task in sorted(set(found) - set(tasks)):
        log.warning("%s: %d images have polygons of %r, which is not written (see --tasks)", path, found[task], task)
    log.info("%s: %d images, %d of them without a polygon", path, len(annotations), blank)
    log.info("images with a polygon: %s", ", ".join(f"{task} {found[task]}" for task in tasks))
    shards.build(
        output,
        list(annotations),
        process=lambda ids: ordered_map(
            partial(fill, path=path, tasks=tasks), Chosen(annotations, ids), args.num_workers
        ),
        write=mask_files.write_part,
        merge=mask_files.merge_parts,
        record=provenance.describe(vars(args), [path], code=__file__),
        shard_size=args.shard_size,
        label="masks of polygons",
    )


if __name__ == "__main__":
    cli.run(main, build_parser)
