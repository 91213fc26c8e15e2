"""Stage 8: the paper's table, a picture and a page to read in, from each method's masks of the test set.

    python make_tables.py --ground_truth $TEST_SEG_LABELS_GT_BASE_PATH/test_encoded.json --output_dir report \\
        --method weak_irnet=weak/test_masks.json --method full=full/test_masks.json \\
        --method chexseg=chexseg/test_masks.json --human second_reader.json

Writes table.csv (long: method, protocol, task, iou, lower, upper, n_images, n_positive), metrics.csv (Dice, precision,
recall, specificity), paired.csv (differences of every two methods, with p and Holm's correction), table.md, sheet.png
and index.html, one file with every film, everybody's outlines, trainings and commands. With --all_images the set is
complete: masks on films without a finding are false positives. A report that is up to date is left as it is, but for
the stages' times.
"""

import argparse
import logging
from pathlib import Path

import constants
from chexseg.data import leak_guard
from chexseg.errors import MissingError, UsageError
from chexseg.evaluation import report
from chexseg.evaluation.methods import HUMAN, file_or_named, named_file
from chexseg.runtime import cli, provenance

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--ground_truth", type=Path, help="masks JSON of the experts [$TEST_SEG_LABELS_GT_BASE_PATH/test_encoded.json]")
    add("--all_images", type=Path, metavar="CSV", help="label file of the whole set, films without a finding too")
    method = {"type": named_file, "action": "append", "default": [], "metavar": "NAME=FILE"}
    add("--method", **method, help="a method's masks JSON; repeat")
    add("--human", type=Path, help="masks JSON of a second reader, the row `radiologist`")
    add("--output_dir", type=Path, default=Path("report"), help="folder to write to")
    add("--image_dir", type=Path, help="folder of the images, for the picture [$CHEXPERT_DATA_DIR]")
    add("--maps", type=Path, help="run folder with saliency maps of the test set, for the picture")
    pseudo_help = "masks JSON of pseudo masks of the test set, for the page and, the first, for the picture; repeat"
    add("--pseudo", type=file_or_named, action="append", default=[], metavar="[NAME=]FILE", help=pseudo_help)
    cli.add_boolean(parser, "--page", default=True, help="write index.html too, where a picture is drawn")
    add("--style", choices=report.STYLES, help="also write figures for papers, as PNG and PDF, to figures/ [none]")
    add("--runs", type=Path, help="folder whose logs and records the page tells of [$OBJ_EFFICIENCY_BASE_PATH]")
    add("--num_examples", type=cli.non_negative_int, default=4, help="images in the picture; 0 draws none")
    add("--examples", nargs="+", default=None, metavar="ID", help="these images in the picture [a varied choice]")
    add("--tasks", nargs="+", default=list(constants.LOCALIZATION_TASKS), metavar="TASK", help="tasks to score")
    add("--patients", type=Path, metavar="CSV", help="patient_id of images whose names do not tell: Path or image_id")
    add("--num_replicates", type=cli.positive_int, default=1000, help="replicates of the bootstrap")
    add("--seed", type=cli.non_negative_int, default=17, help="seed of the bootstrap")
    leak_guard.add_option(parser)
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
            raise MissingError(f"{path}: no such masks file")
    return paths


def main(args: argparse.Namespace) -> None:
    paths = method_paths(args.method, args.human)
    folder, truth_path = args.output_dir, args.ground_truth or constants.gt_dir() / "test_encoded.json"
    image_dir = (args.image_dir or constants.data_dir()) if args.num_examples else None
    pseudo_paths = {name or "Pseudo masks": path for name, path in args.pseudo}
    beside = [folder / name for name in (report.QUALITY, *([report.BUDGET] if args.style else []))]
    records = [leak_guard.path_of(path) for path in paths.values() if leak_guard.path_of(path).is_file()]
    more_inputs = [*(path for path in beside if path.is_file()), args.all_images, args.patients, *records]
    record = provenance.describe(
        vars(args) | {"method": list(paths), "pseudo": list(pseudo_paths)},
        [truth_path, *paths.values(), *pseudo_paths.values(), *more_inputs],
        code=__file__,
    )
    places = [str(place and place.resolve()) for place in (image_dir, args.maps)]
    more = {"picture": places, "templates": report.templates_version()}
    fingerprint = provenance.fingerprint(record | {"arguments": record["arguments"] | more})
    reason = report.is_current(folder, fingerprint)
    if reason is None:
        print(report.refresh_times(folder))
        log.info("%s: up to date", folder)
        return
    if reason != "missing":
        log.warning("%s: %s; making it again", folder, reason)

    from chexseg.classifier.saliency_store import open_maps
    from chexseg.data.chexpert import patient_of, read_patients
    from chexseg.data.mask_files import MaskFile
    from chexseg.evaluation import comparison, film_list

    truth = MaskFile(truth_path, constants.ALIASES)
    methods = {name: MaskFile(path, constants.ALIASES) for name, path in paths.items()}
    tasks = tuple(constants.ALIASES.get(name, name) for name in args.tasks)
    films = film_list.read_list(args.all_images, constants.ALIASES) if args.all_images else None
    patients = {patient_of(image) for image in [*truth, *(films or ())]}
    leaks = leak_guard.check(paths.values(), patients, allow=args.allow_leak)
    draws = {"num_replicates": args.num_replicates, "seed": args.seed}
    draws["patients"] = read_patients(args.patients) if args.patients else None
    found = comparison.compare(truth, methods, tasks, films=films, **draws)
    for note in found.notes:
        log.warning(note)
    print(report.write_tables(folder, found, leaks))
    shown: list[Path] = []
    pages: list[str] = []
    if image_dir is not None:
        maps = open_maps(args.maps) if args.maps else None
        pseudo = {name: MaskFile(path, constants.ALIASES) for name, path in pseudo_paths.items()}
        sources = report.PictureSources(image_dir, maps, next(iter(pseudo.values()), None))
        shown = report.draw(
            folder / report.PICTURE, found, truth, methods, sources, examples=args.examples, count=args.num_examples
        )
        shown += [maps.path] if maps else []
        if args.style:
            pages = report.write_figures(folder, found, args.style)
            for sheet in ("figures/sheet.png", "figures/sheet.pdf"):
                options = {"examples": args.examples, "count": args.num_examples, "style": args.style}
                report.draw(folder / sheet, found, truth, methods, sources, **options)
                pages.append(sheet)
        if args.page:
            from chexseg.evaluation import page

            room, film_paths = page.report_room(truth, methods, pseudo, tasks, image_dir, maps, films)
            runs = args.runs or constants.base_dir(create=False)
            run = page.collect_run(folder, found, truth_path, paths, [*pseudo_paths.values()], runs, record, leaks)
            pages += page.write_report(folder, run, room)
            shown = [*dict.fromkeys([*shown, *film_paths])]
    report.seal(folder, record | {"leaks": leaks}, fingerprint, shown, pages)
    log.info(
        "%s: %s",
        folder,
        ", ".join(["table.csv", "metrics.csv", "paired.csv", "table.md", *(["sheet.png"] if shown else []), *pages]),
    )


if __name__ == "__main__":
    cli.run(main, build_parser)
