"""Stage 7: scores of any two masks JSONs, per task, with 95% intervals by bootstrap over patients.

    python eval.py --gt_path $TEST_SEG_LABELS_GT_BASE_PATH/test_encoded.json --pred_path <masks.json>
    python eval.py --gt_path ... --pred_path ... --all_images $TEST_SEG_LABELS_GT_BASE_PATH/test_labels.csv
    python eval.py --gt_path ... --pred_path ... --map_dir <run of test.py>        adds the hit rate of the maps

Three protocols, always named: `pooled` (CheXseg), `per_image` and `per_image_all` (CheXlocalize; true positives only,
or counting false positives and negatives). Writes, beside <output>.csv (IoU): <output>_metrics.csv (Dice, precision,
recall, specificity too), CheXlocalize's <output>_results_per_cxr.csv and <output>_bootstrap_results_per_cxr.csv (with
maps also those of hits), and <output>_missing.csv of images that one of the files lacks: they are not scored. With
--all_images the set is complete: a mask on a film that the ground truth lacks is a false positive in every protocol.
"""

import argparse
import logging
from pathlib import Path

import constants
from chexseg.data import leak_guard
from chexseg.errors import MissingError, UsageError
from chexseg.runtime import cli, provenance
from chexseg.runtime.files import atomic

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--pred_path", type=Path, required=True, help="masks JSON of the predictions")
    add("--gt_path", type=Path, help="masks JSON of the ground truth [$TEST_SEG_LABELS_GT_BASE_PATH/test_encoded.json]")
    add("--all_images", type=Path, metavar="CSV", help="label file of the whole set, films without a finding too")
    add("--map_dir", type=Path, help="run folder with saliency maps, for the hit rate")
    cli.add_boolean(parser, "--oracle", help="with --map_dir: best threshold on the test masks, an upper bound")
    cli.add_boolean(
        parser, "--true_pos_only", default=True, help="CheXlocalize's files per film: true positives only, or all"
    )
    add("--tasks", nargs="+", default=list(constants.LOCALIZATION_TASKS), metavar="TASK", help="tasks to score")
    add("--patients", type=Path, metavar="CSV", help="patient_id of images whose names do not tell: Path or image_id")
    add("--num_replicates", type=cli.positive_int, default=1000, help="replicates of the bootstrap")
    add("--seed", type=cli.non_negative_int, default=17, help="seed of the bootstrap")
    add("--output_path", type=Path, help="CSV to write [<name of --pred_path>_iou.csv beside it]")
    leak_guard.add_option(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    if args.oracle and not args.map_dir:
        raise UsageError("--oracle chooses thresholds of saliency maps: give --map_dir")

    from chexseg.classifier.saliency_store import open_maps
    from chexseg.data.chexpert import patient_of, read_patients
    from chexseg.data.mask_files import MaskFile
    from chexseg.evaluation import chexlocalize, film_list, scoring

    gt_path = args.gt_path or constants.gt_dir() / "test_encoded.json"
    truth, predictions = (MaskFile(path, constants.ALIASES) for path in (gt_path, args.pred_path))
    output = args.output_path or args.pred_path.with_name(f"{args.pred_path.stem}_iou.csv")
    films = film_list.read_list(args.all_images, constants.ALIASES) if args.all_images else None
    if not any(image in predictions for image in [*truth, *(films or ())]):
        raise MissingError(f"{args.pred_path}: none of its images is in {gt_path}; were they made from the same set?")
    maps = open_maps(args.map_dir) if args.map_dir else None
    if maps is not None and not any(image in maps for image in truth if image in predictions):
        raise MissingError(f"{maps.path}: no saliency map of any image of {gt_path}; run test.py on that set")
    patients = (patient_of(image) for image in predictions if image in truth or image in (films or ()))
    leaks = leak_guard.check([args.pred_path, maps.path if maps else None], patients, allow=args.allow_leak)
    found = scoring.evaluate(
        predictions,
        truth,
        tuple(constants.ALIASES.get(name, name) for name in args.tasks),
        num_replicates=args.num_replicates,
        seed=args.seed,
        maps=maps,
        films=films,
        with_oracle=args.oracle,
        patients=read_patients(args.patients) if args.patients else None,
    )
    for note in found.notes:
        log.warning(note)
    scoring.write_missing(found.missing, output.with_name(f"{output.stem}_missing.csv"))
    for path, table in ((output, found.table), (output.with_name(f"{output.stem}_metrics.csv"), found.metrics)):
        with atomic(path) as temporary:
            scoring.stamped(table, leaks).to_csv(temporary, index=False, float_format="%.6f")
    each = found.overlap.per_image(true_positives=args.true_pos_only)
    for kind, values in ((output.stem, each), (f"{output.stem.removesuffix('_iou')}_hitmiss", found.hits)):
        if values is not None:
            stem = output.with_name(kind)
            chexlocalize.write(stem, values, found.overlap.tasks, found.images, found.resamples)
    record = provenance.describe(vars(args), [gt_path, args.pred_path, args.all_images, args.patients], code=__file__)
    provenance.write(provenance.manifest_path(output), record | {"leaks": leaks})
    print(scoring.text(found.table))
    print(f"\n{len(found.images)} images scored; {output}" + "".join(f"\nLEAK, no test: {leak}" for leak in leaks))


if __name__ == "__main__":
    cli.run(main, build_parser)
