"""Stage 8: the paper's table and picture from each method's masks of the test set.

    python make_tables.py --ground_truth $TEST_SEG_LABELS_GT_BASE_PATH/test_encoded.json --output_dir report \\
        --method weak_irnet=weak/test_masks.json --method full=full/test_masks.json \\
        --method chexseg=chexseg/test_masks.json --human second_reader.json

Writes table.csv (long: method, protocol, task, iou, lower, upper, n_images, n_positive), table.md and sheet.png. The
names weak_cam, weak_irnet, full and chexseg get their ratios beside the paper's; other names are allowed.
"""

import argparse
import logging
from pathlib import Path

import constants
from chexseg.classifier.saliency_store import open_maps
from chexseg.data import chexpert, mask_files
from chexseg.data.images import read_image
from chexseg.errors import DataError, UsageError
from chexseg.evaluation import figure, tables
from chexseg.runtime import cli, provenance
from chexseg.runtime.files import atomic

log = logging.getLogger(__name__)
SHORT = {
    "weak_cam": "Weak (Grad-CAM)",
    "weak_irnet": "Weak (IRNet)",
    "full": "Fully supervised",
    "chexseg": "CheXseg",
    tables.HUMAN: "Second reader",
}


def method(text: str) -> tuple[str, Path]:
    """argparse type for NAME=FILE."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"expected NAME=FILE, got {text!r}")
    return name, Path(path)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--ground_truth", type=Path, help="masks JSON of the experts [$TEST_SEG_LABELS_GT_BASE_PATH/test_encoded.json]")
    add("--method", type=method, action="append", default=[], metavar="NAME=FILE", help="a method's masks JSON; repeat")
    add("--human", type=Path, help="masks JSON of a second reader, the row `radiologist`")
    add("--output_dir", type=Path, default=Path("report"), help="folder to write to")
    add("--image_dir", type=Path, help="folder that contains CheXpert/, for the picture [$CHEXPERT_DATA_DIR]")
    add("--maps", type=Path, help="run folder with saliency maps of the test set, for the picture")
    add("--pseudo", type=Path, help="masks JSON of pseudo masks of the test set, for the picture")
    add("--num_examples", type=cli.non_negative_int, default=4, help="images in the picture; 0 draws none")
    add("--examples", nargs="+", default=None, metavar="ID", help="these images in the picture [a varied choice]")
    add("--tasks", nargs="+", default=list(constants.LOCALIZATION_TASKS), metavar="TASK", help="tasks to score")
    add("--num_replicates", type=cli.positive_int, default=1000, help="replicates of the bootstrap")
    add("--seed", type=cli.non_negative_int, default=17, help="seed of the bootstrap")
    return parser


def main(args: argparse.Namespace) -> None:
    paths = dict(args.method)
    if len(paths) < len(args.method):
        raise UsageError("--method: each name once")
    if tables.HUMAN in paths:
        raise UsageError(f"--method {tables.HUMAN}=...: give the second reader's masks with --human")
    if args.human:
        paths[tables.HUMAN] = args.human
    if not paths:
        raise UsageError("give at least one --method NAME=FILE, or --human FILE")
    truth_path = args.ground_truth or constants.gt_dir() / "test_encoded.json"
    truth = mask_files.MaskFile(truth_path, constants.ALIASES)
    methods = {name: mask_files.MaskFile(path, constants.ALIASES) for name, path in paths.items()}
    tasks = tuple(constants.ALIASES.get(name, name) for name in args.tasks)
    found = tables.compare(truth, methods, tasks, num_replicates=args.num_replicates, seed=args.seed)
    for note in found.notes:
        log.warning(note)
    folder = args.output_dir
    text = tables.markdown(found, tables.read_timings(folder / "timings.csv"))
    with atomic(folder / "table.csv") as temporary:
        tables.long_table(found).to_csv(temporary, index=False, float_format="%.6f")
    with atomic(folder / "table.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    inputs = [truth_path, *paths.values(), args.pseudo]
    record = provenance.describe(vars(args), inputs, code=__file__)
    provenance.write(folder / "table.manifest.json", record)
    print(text)
    if args.num_examples:
        draw_sheet(args, truth, methods, found)
    log.info("%s: table.csv, table.md%s", folder, " and sheet.png" if args.num_examples else "")


def draw_sheet(args: argparse.Namespace, truth, methods, found: tables.Comparison) -> None:
    """The picture of `--num_examples` images; those in every file are preferred."""
    everywhere = [image for image in found.images if all(image in masks for masks in methods.values())]
    chosen = args.examples or figure.choose(truth, everywhere or found.images, found.tasks, args.num_examples)
    for image in chosen:
        if image not in truth:
            raise DataError(f"--examples {image}: not in the ground truth")
    image_dir = args.image_dir or constants.data_dir()
    images = {image: read_image(chexpert.find_image(image_dir, image)) for image in chosen}
    columns = []
    if args.maps:
        columns.append(figure.Column("Saliency map", maps=open_maps(args.maps)))
    if args.pseudo:
        pseudo = mask_files.MaskFile(args.pseudo, constants.ALIASES)
        columns.append(figure.Column("Pseudo mask", pseudo, against_truth=True))
    columns += [figure.Column(SHORT.get(name, name), masks, against_truth=True) for name, masks in methods.items()]
    with atomic(args.output_dir / "sheet.png") as temporary:
        figure.draw(temporary, images, truth, columns, found.tasks)


if __name__ == "__main__":
    cli.run(main, build_parser)
