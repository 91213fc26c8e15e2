"""Stage 7: IoU of any two masks JSONs, per task, with 95% intervals by bootstrap over patients.

    python eval.py --gt_path $TEST_SEG_LABELS_GT_BASE_PATH/test_encoded.json --pred_path <masks.json>
    python eval.py --gt_path ... --pred_path ... --map_dir <run of test.py>        adds the hit rate of the maps

Three protocols, always named: `pooled` (CheXseg), `per_image` and `per_image_all` (CheXlocalize; true positives only,
or counting false positives and negatives). Images that one of the files lacks are not scored; they are reported and
listed in <output>_missing.csv.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import constants
from chexseg.classifier.saliency_maps import SaliencyMaps
from chexseg.classifier.saliency_store import open_maps
from chexseg.data import mask_files, rle
from chexseg.data.images import upsample
from chexseg.errors import DataError
from chexseg.evaluation import bootstrap, metrics
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


def report_missing(sides: dict[str, set[str]], path: Path) -> None:
    """Say which images are only on one side, and list them all in a CSV; no file where there is none."""
    rows = [(image, side) for side, names in sides.items() for image in sorted(names)]
    for side, names in sides.items():
        if names:
            log.warning("%d images have no %s and are not scored: %s", len(names), side, metrics.some(sorted(names)))
    if rows:
        with atomic(path) as temporary:
            pd.DataFrame(rows, columns=["image_id", "missing"]).to_csv(temporary, index=False)
        log.warning("all of them: %s", path)
    else:
        path.unlink(missing_ok=True)


def hits(store: SaliencyMaps, truth: mask_files.MaskFile, tasks: Sequence[str], images: Sequence[str]) -> np.ndarray:
    """(images, tasks): 1 where the map's peak lies in the mask, 0 where not, NaN without ground truth or map."""
    found, rows = np.full((len(images), len(tasks)), np.nan), store.task_rows(tasks)
    for line, image in zip(found, images, strict=True):
        if image in store:
            maps, entry = store[image]["maps"][rows], truth[image]
            for column, task in enumerate(tasks):
                if task in entry and rle.area([entry[task]])[0]:
                    line[column] = metrics.hit(entry[task], upsample(maps[[column]], store.network_size)[0])
    return found


def main(args: argparse.Namespace) -> None:
    gt_path = args.gt_path or constants.gt_dir() / "test_encoded.json"
    truth, predictions = (mask_files.MaskFile(path, constants.ALIASES) for path in (gt_path, args.pred_path))
    tasks = tuple(constants.ALIASES.get(name, name) for name in args.tasks)
    output = args.output_path or args.pred_path.with_name(f"{args.pred_path.stem}_iou.csv")
    images = [image for image in truth if image in predictions]
    if not images:
        raise DataError(f"{args.pred_path}: none of its images is in {gt_path}; were they made from the same set?")
    found = metrics.overlap(predictions, truth, tasks, images)
    for note in found.notes:
        log.warning(note)
    resamples = bootstrap.Resamples(images, args.num_replicates, args.seed)
    table = pd.concat([bootstrap.table(bootstrap.score(found, resamples, p), p) for p in bootstrap.PROTOCOLS])
    if args.map_dir:
        store = open_maps(args.map_dir)
        if without := sum(image not in store for image in images):
            log.warning("%s: %d images have no saliency map: not in the hit rate", store.path, without)
        if without == len(images):
            raise DataError(f"{store.path}: no saliency map of any image of {gt_path}; run test.py on that set")
        rates = bootstrap.score_means(hits(store, truth, tasks, images), found, resamples)
        table = pd.concat([table, bootstrap.table(rates, "hit_rate").replace({"task": {"mIoU": "mean"}})])
    report_missing(
        {"prediction": set(truth) - set(predictions), "ground truth": set(predictions) - set(truth)},
        output.with_name(f"{output.stem}_missing.csv"),
    )
    with atomic(output) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6f")
    provenance.write(
        provenance.manifest_path(output),
        provenance.describe(vars(args), [gt_path, args.pred_path], code=__file__),
    )
    for protocol, rows in table.groupby("protocol", sort=False):
        meaning = bootstrap.PROTOCOLS.get(
            protocol, "peak of the saliency map inside the ground truth, of those with one"
        )
        print(f"\n{protocol} ({meaning})")
        print(rows.drop(columns="protocol").to_string(index=False, float_format="%.3f", na_rep="-"))
    print(f"\n{len(images)} images scored; {output}")


if __name__ == "__main__":
    cli.run(main, build_parser)
