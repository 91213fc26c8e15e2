"""Stage 8: the paper's table and picture from each method's masks of the test set.

    python make_tables.py --ground_truth $TEST_SEG_LABELS_GT_BASE_PATH/test_encoded.json --output_dir report \\
        --method weak_irnet=weak/test_masks.json --method full=full/test_masks.json \\
        --method chexseg=chexseg/test_masks.json --human second_reader.json

Writes table.csv (long: method, protocol, task, iou, lower, upper, n_images, n_positive), table.md and sheet.png. The
names weak_cam, weak_irnet, full and chexseg get their ratios beside the paper's; other names are allowed. A report
that is up to date is left as it is, but for the times of the stages.
"""

import argparse
import logging
from pathlib import Path

import constants
from chexseg.errors import DataError, UsageError
from chexseg.evaluation import report
from chexseg.evaluation.methods import HUMAN
from chexseg.runtime import cli, provenance

log = logging.getLogger(__name__)


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


def method_paths(methods: list[tuple[str, Path]], human: Path | None) -> dict[str, Path]:
    """The masks file of each row of the table, the second reader last."""
    paths = dict(methods)
    if len(paths) < len(methods):
        raise UsageError("--method: each name once")
    if HUMAN in paths:
        raise UsageError(f"--method {HUMAN}=...: give the second reader's masks with --human")
    if human:
        paths[HUMAN] = human
    if not paths:
        raise UsageError("give at least one --method NAME=FILE, or --human FILE")
    for path in paths.values():
        if not path.is_file():
            raise DataError(f"{path}: no such masks file")
    return paths


def main(args: argparse.Namespace) -> None:
    paths = method_paths(args.method, args.human)
    folder, truth_path = args.output_dir, args.ground_truth or constants.gt_dir() / "test_encoded.json"
    image_dir = (args.image_dir or constants.data_dir()) if args.num_examples else None
    record = provenance.describe(
        vars(args) | {"method": list(paths)}, [truth_path, *paths.values(), args.pseudo], code=__file__
    )
    places = [str(place and place.resolve()) for place in (image_dir, args.maps)]
    fingerprint = provenance.fingerprint(record | {"arguments": record["arguments"] | {"picture": places}})
    reason = report.is_current(folder, fingerprint)
    if reason is None:
        print(report.refresh_times(folder))
        log.info("%s: up to date", folder)
        return
    if reason != "missing":
        log.warning("%s: %s; making it again", folder, reason)

    from chexseg.classifier.saliency_store import open_maps
    from chexseg.data.mask_files import MaskFile
    from chexseg.evaluation import comparison

    truth = MaskFile(truth_path, constants.ALIASES)
    methods = {name: MaskFile(path, constants.ALIASES) for name, path in paths.items()}
    tasks = tuple(constants.ALIASES.get(name, name) for name in args.tasks)
    found = comparison.compare(truth, methods, tasks, num_replicates=args.num_replicates, seed=args.seed)
    for note in found.notes:
        log.warning(note)
    print(report.write_tables(folder, found))
    shown: list[Path] = []
    if image_dir is not None:
        maps = open_maps(args.maps) if args.maps else None
        pseudo = MaskFile(args.pseudo, constants.ALIASES) if args.pseudo else None
        sources = report.PictureSources(image_dir, maps, pseudo)
        shown = report.draw(
            folder / report.PICTURE, found, truth, methods, sources, examples=args.examples, count=args.num_examples
        )
        shown += [maps.path] if maps else []
    report.seal(folder, record, fingerprint, shown)
    log.info("%s: table.csv, table.md%s", folder, " and sheet.png" if shown else "")


if __name__ == "__main__":
    cli.run(main, build_parser)
