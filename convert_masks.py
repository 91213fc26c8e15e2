"""Masks in the formats of other tools, and back.

    python convert_masks.py --from masks --input chexseg.json --to coco --output chexseg_coco.json
    python convert_masks.py --from coco --input cvat_export.json --to masks --output expert.json --unlisted absent

masks     masks JSON, the file between all stages
polygons  CheXlocalize's polygons JSON (gt_annotations_*.json)
coco      COCO annotations, which CVAT, FiftyOne, Label Studio and pycocotools read
png       a folder of PNGs, 255 inside: <task>/<image id>.png, or <image id>__<task>.png with --layout flat
dicom     a folder of DICOM SEG files, one an image, one segment a task

Every format gives the masks back to the pixel, and keeps apart a task that is absent (an empty mask) and one that was
not annotated (no mask). An image of which no task is known stands only in a masks JSON.
"""

import argparse
import logging
from pathlib import Path

import constants
from chexseg.data import leak_guard
from chexseg.data.mask_formats import FORMATS
from chexseg.errors import DataError, UsageError
from chexseg.runtime import cli

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--from", dest="source_format", choices=FORMATS, required=True, help="format of --input")
    add("--input", type=Path, required=True, help="file, or folder for png and dicom")
    add("--to", dest="target_format", choices=FORMATS, required=True, help="format of --output")
    add("--output", type=Path, required=True, help="file to write, or a new folder for png and dicom")
    add(
        "--unlisted",
        choices=("unknown", "absent"),
        default="unknown",
        help="what it means that an image of polygons, or one of coco without neg_category_ids, does not list a task",
    )
    add("--tasks", nargs="+", metavar="TASK", help="the tasks that were annotated: the others become unknown [all]")
    add("--images", type=Path, help="folder of the images: file names for coco, DICOM images for dicom to refer to")
    add("--layout", choices=("folders", "flat"), default="folders", help="of png")
    add("--segmentation", choices=("rle", "polygons"), default="rle", help="of coco; not every tool edits rle")
    cli.add_boolean(parser, "--drawn_by_hand", help="dicom: people drew the masks, not a network")
    cli.add_boolean(parser, "--keep_patient", help="dicom: take over name, id, dates and sex from the image's file")
    add("--num_workers", type=cli.non_negative_int, default=0, help="processes that convert")
    return parser


def main(args: argparse.Namespace) -> None:
    from chexseg.data import image_folder, mask_formats

    if args.input.resolve() == args.output.resolve():
        raise UsageError(f"--output {args.output} is --input")
    if args.keep_patient and args.images is None:
        raise UsageError("--keep_patient needs --images")
    tasks, unlisted_absent = constants.LOCALIZATION_TASKS, args.unlisted == "absent"
    source = mask_formats.read(
        args.source_format, args.input, constants.ALIASES, tasks, unlisted_absent=unlisted_absent
    )
    if not source:
        raise DataError(f"{args.input}: no image in it")
    if args.tasks:
        source = mask_formats.OnlyTasks(source, [constants.ALIASES.get(task, task) for task in args.tasks])
    images = image_folder.find([args.images]) if args.images else {}
    names = {name: path.relative_to(args.images).as_posix() for name, path in images.items()}
    leak_guard.inherit(args.output, [args.input])
    count = mask_formats.write(
        args.target_format,
        args.output,
        source,
        tasks,
        images=images,
        image_names=names,
        layout=args.layout,
        segmentation=args.segmentation,
        keep_patient=args.keep_patient,
        manual=args.drawn_by_hand,
        num_workers=args.num_workers,
    )
    if missing := sum(name not in images for name in source) if images else 0:
        log.warning("%s: no image of %d of %d ids", args.images, missing, len(source))
    log.info("%s: %d images", args.output, count)


if __name__ == "__main__":
    cli.run(main, build_parser)
