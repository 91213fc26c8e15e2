"""Stage 7: IoU of any two masks JSONs, per task, with 95% intervals by bootstrap over patients.

    python eval.py --gt_path $TEST_SEG_LABELS_GT_BASE_PATH/test_encoded.json --pred_path <masks.json>
    python eval.py --gt_path ... --pred_path ... --map_dir <run of test.py>        adds the hit rate of the maps

Three protocols, always named: `pooled` (CheXseg), `per_image` and `per_image_all` (CheXlocalize; true positives only,
or counting false positives and negatives). Images that one of the files lacks are not scored; they are reported and
listed in <output>_missing.csv.
"""

import argparse
import logging
from pathlib import Path

import constants
from chexseg.errors import DataError
from chexseg.runtime import cli, provenance
from chexseg.runtime.files import atomic

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--pred_path", type=Path, required=True, help="masks JSON of the predictions")
    add("--gt_path", type=Path, help="masks JSON of the ground truth [$TEST_SEG_LABELS_GT_BASE_PATH/test_encoded.json]")
    add("--map_dir", type=Path, help="run folder with saliency maps, for the hit rate")
    add("--tasks", nargs="+", default=list(constants.LOCALIZATION_TASKS), metavar="TASK", help="tasks to score")
    add("--num_replicates", type=cli.positive_int, default=1000, help="replicates of the bootstrap")
    add("--seed", type=cli.non_negative_int, default=17, help="seed of the bootstrap")
    add("--output_path", type=Path, help="CSV to write [<name of --pred_path>_iou.csv beside it]")
    return parser


def main(args: argparse.Namespace) -> None:
    from chexseg.classifier.saliency_store import open_maps
    from chexseg.data.mask_files import MaskFile
    from chexseg.evaluation import scoring

    gt_path = args.gt_path or constants.gt_dir() / "test_encoded.json"
    truth, predictions = (MaskFile(path, constants.ALIASES) for path in (gt_path, args.pred_path))
    output = args.output_path or args.pred_path.with_name(f"{args.pred_path.stem}_iou.csv")
    if not any(image in predictions for image in truth):
        raise DataError(f"{args.pred_path}: none of its images is in {gt_path}; were they made from the same set?")
    store, size = None, None
    if args.map_dir:
        store = open_maps(args.map_dir)
        size = store.network_size
        if not any(image in store for image in truth if image in predictions):
            raise DataError(f"{store.path}: no saliency map of any image of {gt_path}; run test.py on that set")
    found = scoring.evaluate(
        predictions,
        truth,
        tuple(constants.ALIASES.get(name, name) for name in args.tasks),
        num_replicates=args.num_replicates,
        seed=args.seed,
        maps=store,
        map_size=size,
    )
    for note in found.notes:
        log.warning(note)
    scoring.write_missing(found.missing, output.with_name(f"{output.stem}_missing.csv"))
    with atomic(output) as temporary:
        found.table.to_csv(temporary, index=False, float_format="%.6f")
    provenance.write(
        provenance.manifest_path(output),
        provenance.describe(vars(args), [gt_path, args.pred_path], code=__file__),
    )
    print(scoring.text(found.table))
    print(f"\n{len(found.images)} images scored; {output}")


if __name__ == "__main__":
    cli.run(main, build_parser)
