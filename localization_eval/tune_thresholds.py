"""Stage 2: thresholds of saliency maps and cut-offs of probabilities, chosen per task on expert masks.

    python tune_thresholds.py --map_dir <run of test.py --phase valid> \\
        --gt_path $TEST_SEG_LABELS_GT_BASE_PATH/valid_encoded_147.json
    python tune_thresholds.py --pred_path expert_films.json --predictions predictions.csv --gt_path <expert masks>

The first writes thresholds.csv (threshold,task) and prob_cutoffs.csv (prob_threshold,mIoU,task) into the run folder,
for pred_segmentation.py --protocol chexlocalize. The second chooses cut-offs alone, for a network's masks of the
experts' films, for segmentation_test.py --gate_cutoffs. Use the experts' training images: the patients are recorded,
and no stage will score them with what was chosen here.
"""

import argparse
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import constants
from chexseg.data import leak_guard
from chexseg.errors import MissingError, UsageError
from chexseg.runtime import cli, provenance, shards

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--map_dir", type=Path, help="run folder of test.py, or a folder of *_map.pkl, of the experts' images")
    add("--pred_path", type=Path, help="masks JSON instead of maps: choose cut-offs alone")
    add("--predictions", type=Path, help="predictions.csv with the probabilities that go with --pred_path")
    add("--gt_path", type=Path, help="expert masks JSON [$TEST_SEG_LABELS_GT_BASE_PATH/valid_encoded.json]")
    add("--all_images", type=Path, help="label file of the set: films without a finding that --gt_path lacks")
    add("--criterion", choices=("pooled", "per_image"), default="pooled", help="per_image: CheXlocalize's own mIoU")
    add("--save_dir", type=Path, help="with maps: write what CheXlocalize's two tuning scripts write, and nothing else")
    cli.add_boolean(parser, "--only_positive", help="thresholds by films with the finding, for masks gated by labels")
    add("--tasks", nargs="+", default=list(constants.LOCALIZATION_TASKS), metavar="TASK", help="tasks to tune")
    add("--threshold_path", type=Path, help="CSV of thresholds to write [thresholds.csv in --map_dir]")
    add("--prob_cutoff_path", type=Path, help="CSV of cut-offs to write [prob_cutoffs.csv beside the maps or masks]")
    add("--num_workers", type=cli.non_negative_int, default=0, help="processes that read and count")
    return parser


def tell(what: str, tasks: Iterable[str], values: "np.ndarray", scores: "np.ndarray", chosen: "np.ndarray") -> None:
    """Print what was chosen, and its score."""
    for task, row, place in zip(tasks, scores, chosen, strict=True):
        if place >= 0:
            print(f"{task:28s} {what} {values[place]:.2f}  IoU {row[place]:.4f}")
        else:
            log.warning("%s: no %s chosen: no mask of it that any one would find", task, what)


def seal(outputs: Iterable[Path], record: dict, fingerprint: str) -> None:
    for path in outputs:
        shards.seal(path, record, fingerprint)
        log.info("%s", path)


def main(args: argparse.Namespace) -> None:
    if (args.map_dir is None) == (args.pred_path is None):
        raise UsageError("give --map_dir with saliency maps, or --pred_path with masks")
    if args.save_dir and not args.map_dir:
        raise UsageError("--save_dir is for saliency maps: give --map_dir")
    if args.pred_path and not args.predictions:
        raise UsageError("--pred_path needs --predictions: cut-offs are about the classifier's probabilities")
    from chexseg.classifier.saliency_store import open_maps
    from chexseg.data.mask_files import MaskFile

    tasks = tuple(constants.ALIASES.get(name, name) for name in args.tasks)
    truth = MaskFile(args.gt_path or constants.gt_dir() / "valid_encoded.json", constants.ALIASES)
    maps = open_maps(args.map_dir) if args.map_dir else None
    folder = maps.folder if maps else args.pred_path.parent
    outputs = [args.prob_cutoff_path or folder / "prob_cutoffs.csv"]
    outputs += [args.threshold_path or folder / "thresholds.csv"] if maps else []
    if args.save_dir:
        args.save_dir.mkdir(parents=True, exist_ok=True)
        outputs = [args.save_dir / f"{name}.csv" for name in ("probability_tuning_results", "tuning_results")]
    inputs = [truth.path, args.pred_path, args.predictions, args.all_images]
    record = provenance.describe(vars(args), inputs, code=__file__)
    if maps:
        record["inputs"][str(maps.path)] = maps.fingerprint()
    fingerprint = provenance.fingerprint(record)
    if all(shards.is_valid(path, fingerprint) is None for path in outputs):
        log.info("%s: up to date", ", ".join(map(str, outputs)))
        return

    import numpy as np

    from chexseg.classifier import map_tuning
    from chexseg.data.chexpert import patient_of
    from chexseg.data.probabilities import read_probabilities
    from chexseg.evaluation import film_list, metrics, tuning

    there = maps if maps else MaskFile(args.pred_path, constants.ALIASES)
    listed = film_list.without_finding(args.all_images, truth, tasks, constants.ALIASES) if args.all_images else []
    images = [image for image in truth if image in there]
    images += [image for image in listed if image in there and image not in truth]
    if not images:
        raise MissingError(f"{truth.path}: {there.path} has none of its images; run test.py on the experts' set")
    for path in outputs:
        leak_guard.record(path, {"thresholds" if path == outputs[-1] and maps else "cut-offs": map(patient_of, images)})
    if maps and args.save_dir:
        map_tuning.write_as_chexlocalize(maps, truth, tasks, *outputs)
        return seal(outputs, record, fingerprint)
    if maps:
        curves = map_tuning.curves(maps, truth, tasks, images, args.num_workers)
        scores = (curves.only_positive() if args.only_positive else curves).scores(args.criterion)
        chosen = tuning.best(scores)
        tell("threshold", tasks, np.array(curves.thresholds), scores, chosen)
        tuning.write_thresholds(outputs[1], tasks, curves.thresholds, chosen)
        overlap = curves.at(np.maximum(chosen, 0))
        probabilities = maps.probabilities(images)[:, maps.task_rows(tasks)]
    else:
        whole = film_list.complete(truth, {"masks": there}, listed, tasks) if listed else None
        overlap = metrics.overlap(there, whole.truth if whole else truth, tasks, images)
        probabilities = read_probabilities(args.predictions, images, tasks, constants.ALIASES)
    scores = tuning.cutoff_scores(overlap, probabilities, args.criterion)
    tell("cut-off", tasks, np.array(tuning.CUTOFFS), scores, tuning.best(scores))
    tuning.write_cutoffs(outputs[0], tasks, tuning.CUTOFFS, scores)
    seal(outputs, record, fingerprint)


if __name__ == "__main__":
    cli.run(main, build_parser)
