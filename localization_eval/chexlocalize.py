"""CheXlocalize's numbers under the names and with the options of its scripts (docs/chexlocalize.md lists them).

    python chexlocalize.py eval --metric iou --gt_path gt_segmentations_val.json --pred_path pred.json --save_dir out
    python chexlocalize.py eval --metric hitmiss --gt_path gt.json --pred_path points.json --if_human_benchmark True
    python chexlocalize.py compute_pathology_features --gt_ann gt_annotations_val.json --gt_seg gt.json --save_dir out

Files have the names and columns of CheXlocalize's, so that its other scripts read them. For scores of one's own with
intervals over patients see eval.py; masks of maps and of polygons are pred_segmentation.py's and gt_segmentation.py's.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import constants
from chexseg.data import leak_guard
from chexseg.runtime import cli, provenance

if TYPE_CHECKING:
    from chexseg.data.mask_files import MaskFile
    from chexseg.evaluation.chexlocalize import Tables

TASKS, LONGEST = constants.LOCALIZATION_TASKS, 12  # rows of a table that is shown
TRUTH, MASKS, DRAWN = "masks JSON of the ground truth", "masks JSON", "eval's ..._bootstrap_results_per_cxr.csv"
PREDICTION = "masks JSON; hitmiss: folder of maps, or JSON of a reader's points"
# What each script computes, and the files that it needs.
SCRIPTS = {
    "eval": ("IoU or hit rate per image, bootstrap, summary", {"gt_path": TRUTH, "pred_path": PREDICTION}),
    "precision_recall_specificity": ("of the pixels of all images", {"gt_path": TRUTH, "pred_seg_path": MASKS}),
    "count_segs": ("images with a mask of each task", {"seg_path": MASKS}),
    "calculate_percentage_decrease": (
        "from a reader",
        {"hb_bootstrap_results": DRAWN, "pred_bootstrap_results": DRAWN},
    ),
    "compute_pathology_features": ("how findings look", {"gt_ann": "polygons JSON", "gt_seg": TRUTH}),
    "plot_pathology_features": ("a plot of each feature", {"features_dir": "folder with the four tables"}),
}


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    what = parser.add_subparsers(dest="what", required=True, metavar="SCRIPT", help="what to compute, as there")
    scripts = {}
    for name, (text, paths) in SCRIPTS.items():
        script = scripts[name] = what.add_parser(name, help=text, formatter_class=parser.formatter_class)
        for option, of_path in paths.items():
            script.add_argument(f"--{option}", type=Path, required=True, help=of_path)
        script.add_argument("--save_dir", type=Path, default=Path("."), help="folder to write to")
    script = scripts["eval"]
    script.add_argument("--metric", choices=("iou", "hitmiss"), required=True, help="what to score")
    cli.add_boolean(script, "--true_pos_only", default=True, help="iou: only where both masks have a pixel")
    cli.add_boolean(script, "--if_human_benchmark", help="the prediction is a reader's: points for hitmiss")
    script.add_argument("--seed", type=cli.non_negative_int, default=0, help="seed of the bootstrap")
    leak_guard.add_option(script)
    script = scripts["precision_recall_specificity"]
    script.add_argument("--hb_seg_path", type=Path, help="masks JSON of a reader, scored likewise")
    leak_guard.add_option(script)
    script = scripts["calculate_percentage_decrease"]
    script.add_argument("--metric", choices=("miou", "hitrate"), required=True, help="for the file's name")
    script.add_argument("--seed", type=cli.non_negative_int, default=0, help="taken, but nothing is drawn")
    return parser


def masks_of(path: Path) -> "MaskFile":
    from chexseg.data.mask_files import MaskFile

    return MaskFile(path, constants.ALIASES)


def scores(args: argparse.Namespace) -> "Tables":
    from chexseg.classifier.saliency_store import open_maps
    from chexseg.data.mask_files import PointFile
    from chexseg.evaluation import chexlocalize

    truth = masks_of(args.gt_path)
    if args.metric == "iou":
        each = chexlocalize.ious(truth, masks_of(args.pred_path), TASKS, true_positives=args.true_pos_only)
    elif args.if_human_benchmark:
        each = chexlocalize.point_hits(truth, PointFile(args.pred_path, constants.ALIASES), TASKS)
    else:
        each = chexlocalize.map_hits(truth, open_maps(args.pred_path), TASKS)
    stem = f"{args.metric}_humanbenchmark" if args.if_human_benchmark else args.metric
    return chexlocalize.score_tables(stem, each, TASKS, seed=args.seed)


def rates(args: argparse.Namespace) -> "Tables":
    from chexseg.evaluation import chexlocalize

    truth = masks_of(args.gt_path)
    sources = {"pred": args.pred_seg_path, "hb": args.hb_seg_path}
    of_sources = {name: chexlocalize.rates(truth, masks_of(path), TASKS) for name, path in sources.items() if path}
    return {f"{name}_precision_recall_specificity": (table, True) for name, table in of_sources.items()}


def count(args: argparse.Namespace) -> "Tables":
    from chexseg.evaluation import chexlocalize

    return {"n_segs": (chexlocalize.counts(masks_of(args.seg_path), TASKS).to_frame(), True)}


def decrease(args: argparse.Namespace) -> "Tables":
    from chexseg.evaluation import chexlocalize

    drawn = [chexlocalize.read_replicates(path) for path in (args.hb_bootstrap_results, args.pred_bootstrap_results)]
    return {f"{args.metric}_pct_decrease": (chexlocalize.decrease(*drawn), True)}


def features(args: argparse.Namespace) -> "Tables":
    from chexseg.data.mask_files import PolygonFile
    from chexseg.evaluation import pathology_features

    polygons = PolygonFile(args.gt_ann, constants.ALIASES)
    tables = pathology_features.compute(polygons, masks_of(args.gt_seg), TASKS)
    return {name: (table, False) for name, table in tables.items()}


TABLES: dict[str, Callable[[argparse.Namespace], "Tables"]] = {
    "eval": scores,
    "precision_recall_specificity": rates,
    "count_segs": count,
    "calculate_percentage_decrease": decrease,
    "compute_pathology_features": features,
}


def main(args: argparse.Namespace) -> None:
    from chexseg.data.chexpert import patient_of
    from chexseg.evaluation import chexlocalize, pathology_features

    folder, leaks, outputs = args.save_dir, [], []
    if "allow_leak" in args:
        predictions = args.pred_path if args.what == "eval" else args.pred_seg_path
        leaks = leak_guard.check([predictions], map(patient_of, masks_of(args.gt_path)), allow=args.allow_leak)
    paths = [getattr(args, name) for name in SCRIPTS[args.what][1]]
    record = provenance.describe(vars(args), [path for path in paths if path.is_file()], code=__file__)
    folder.mkdir(parents=True, exist_ok=True)
    for name, (table, index) in TABLES[args.what](args).items() if args.what in TABLES else ():
        outputs.append(chexlocalize.write_csv(folder / f"{name}.csv", table, index=index))
        if len(table) <= LONGEST:
            print(table.to_string(index=index, float_format="%.3f"))
    if args.what == "plot_pathology_features":
        outputs = pathology_features.plot(pathology_features.read(args.features_dir), folder)
    for output in outputs:
        provenance.write(provenance.manifest_path(output), record | {"leaks": leaks})
    print(*outputs, *(f"LEAK, no test: {leak}" for leak in leaks), sep="\n")


if __name__ == "__main__":
    cli.run(main, build_parser)
