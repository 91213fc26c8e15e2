"""Stage 4: how good every kind of pseudo mask is, against expert masks: where quality rises and falls on the way.

    python pseudo_label_quality.py --gt_path $TEST_SEG_LABELS_GT_BASE_PATH/valid_encoded_147.json \\
        --map_dir <run of test.py --phase valid> --boundary_net best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth
    python pseudo_label_quality.py --gt_path expert.json --source walk=a.json --source teacher=b.json

With --map_dir: thresholded maps (with --threshold_path also at tuned thresholds), the CRF's foreground and its relation
labels, and with --boundary_net the random walk; with --source any masks files. Each is measured as it is, gated by the
images' labels, and by the classifier's probability. Writes quality.csv (source, gate, task, iou, lower, upper,
precision, recall, n_images, n_positive, empty), from which sources are chosen per task, and quality.png. Measure on the
experts' training images: what is chosen by it must not be tested on the same ones.
"""

import argparse
import logging
from pathlib import Path

import constants
from chexseg.errors import DataError, UsageError
from chexseg.evaluation.methods import named_file
from chexseg.irnet import options
from chexseg.runtime import cli, provenance, shards

log = logging.getLogger(__name__)
OUTPUT, PICTURE = "quality.csv", "quality.png"


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--gt_path", type=Path, help="expert masks JSON [$TEST_SEG_LABELS_GT_BASE_PATH/valid_encoded.json]")
    add("--source", type=named_file, action="append", default=[], metavar="NAME=FILE", help="a masks JSON; repeat")
    add("--map_dir", type=Path, help="run folder with saliency maps of the experts' images")
    add("--threshold_path", type=Path, help="CSV threshold,task of tune_thresholds.py, for the source map_tuned")
    add("--boundary_net", type=Path, help="boundary network, for the source walk; a name below $OBJ_... or a path")
    add("--csv_path", type=Path, help="label file of the experts' images, for the gate [the valid.csv of CheXpert]")
    add("--uncertain", choices=options.UNCERTAIN, default="present", help="gate: what a label of -1 means")
    add("--gate_probability", type=cli.fraction, default=0.5, help="gate: least probability of a mask")
    add("--tasks", nargs="+", default=list(constants.LOCALIZATION_TASKS), metavar="TASK", help="tasks to measure")
    add("--output_dir", type=Path, default=Path("report"), help="folder to write to")
    options.add_walk(parser)
    add("--side", type=cli.positive_int, default=320, help="longer side at which masks are compared")
    add("--num_replicates", type=cli.positive_int, default=1000, help="replicates of the bootstrap")
    add("--seed", type=cli.non_negative_int, default=17, help="seed of the bootstrap")
    add("--device", default="auto", help="where the boundary network runs: auto, cpu, cuda or cuda:N")
    return parser


def label_file(csv_path: Path | None) -> Path | None:
    """The experts' label file; None where there is none to gate by."""
    from chexseg.data import chexpert

    if csv_path:
        return csv_path
    try:
        return chexpert.split_csv(constants.data_dir(), "valid")
    except DataError as error:
        log.warning("no gate by labels: %s", error)
        return None


def main(args: argparse.Namespace) -> None:
    files = dict(args.source)
    if len(files) < len(args.source):
        raise UsageError("--source: each name once")
    if not files and not args.map_dir:
        raise UsageError("give at least one --source NAME=FILE, or --map_dir RUN")
    if (args.threshold_path or args.boundary_net) and not args.map_dir:
        raise UsageError("--threshold_path and --boundary_net are about saliency maps: give --map_dir")
    gt_path = args.gt_path or constants.gt_dir() / "valid_encoded.json"
    weights = args.boundary_net and options.boundary_network(args.boundary_net, constants.irnet_dir())
    labels = label_file(args.csv_path)

    from chexseg.classifier.saliency_store import open_maps

    maps = open_maps(args.map_dir) if args.map_dir else None
    inputs = [gt_path, args.threshold_path, weights, labels, *files.values()]
    record = provenance.describe(vars(args) | {"source": list(files), "device": None}, inputs, code=__file__)
    if maps is not None:
        record["inputs"][str(maps.path)] = maps.fingerprint()
    output, fingerprint = args.output_dir / OUTPUT, provenance.fingerprint(record)
    reason = shards.is_valid(output, fingerprint)
    if reason is None and (args.output_dir / PICTURE).is_file():
        log.info("%s: up to date", output)
        return

    from chexseg.irnet import quality_stage

    table = quality_stage.measure(
        gt_path,
        files,
        tuple(constants.ALIASES.get(name, name) for name in args.tasks),
        aliases=constants.ALIASES,
        maps=maps,
        data_dir=constants.data_dir() if maps is not None else None,
        threshold_path=args.threshold_path,
        weights=weights,
        walk={name: getattr(args, name) for name in options.WALK},
        device=args.device,
        labels=labels,
        observations=constants.OBSERVATIONS,
        uncertain=args.uncertain,
        least=args.gate_probability,
        side=args.side,
        num_replicates=args.num_replicates,
        seed=args.seed,
    )
    print(quality_stage.write(table, output, args.output_dir / PICTURE))
    shards.seal(output, record, fingerprint)
    log.info("%s and %s", output, PICTURE)


if __name__ == "__main__":
    cli.run(main, build_parser)
