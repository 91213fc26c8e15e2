"""The constants of stage 4's random walk, tried on expert masks: every radius, beta, number of steps and threshold.

    cd IRNet && python tune_random_walk.py --map_dir <run of test.py --phase valid> \\
        --gt_path $TEST_SEG_LABELS_GT_BASE_PATH/valid_encoded_147.json
    python IRNet/tune_random_walk.py --map_dir <run> --gt_path expert.json --betas 3 5 8 --radii 3 --exp_times 0 2 4 6
    torchrun --nproc_per_node 8 IRNet/tune_random_walk.py ...       the same, shared among 8 processes

Writes walk_tuning.csv (radius, beta, exp_times, threshold, task, iou) and walk_tuning.png into the run folder, and says
which setting is best for make_pseudo_seg_labels.py. Boundaries are kept beside them: another grid takes seconds. Killed
and run again, it goes on where it was. Use the experts' training images.
"""

import argparse
import logging
from functools import partial
from pathlib import Path

import constants
from chexseg.data import leak_guard
from chexseg.errors import MissingError
from chexseg.irnet import options
from chexseg.runtime import cli, distributed, provenance, shards
from chexseg.training.options import PRECISIONS

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--map_dir", type=Path, required=True, help="run folder with saliency maps of the experts' images")
    add("--gt_path", type=Path, help="expert masks JSON [$TEST_SEG_LABELS_GT_BASE_PATH/valid_encoded.json]")
    network = "best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth"
    where = "boundary network in $OBJ_EFFICIENCY_BASE_PATH/weakly_supervised/saved_models, or a path"
    add("--irn_best_model_name", default=network, help=where)
    add("--radii", type=cli.positive_int, nargs="+", default=[2, 3, 5], help="reaches of a step, on the stride-4 grid")
    add("--betas", type=cli.positive_float, nargs="+", default=[2.0, 5.0, 10.0], help="powers of the affinities")
    add("--exp_times", type=cli.non_negative_int, nargs="+", default=[0, 1, 2, 3, 4, 5], help="2^these steps")
    add(
        "--thresholds",
        type=cli.fraction,
        nargs="+",
        default=[i / 20 for i in range(1, 20)],
        help="parts of the maximum",
    )
    options.add_gate(parser, labels="labels for the gate [those of CheXpert's validation set]")
    add("--image_size", type=cli.positive_int, help="side of the network's input [the maps']")
    add("--batch_size", type=cli.positive_int, default=16, help="images a forward pass, on each rank")
    add("--precision", choices=PRECISIONS, default="auto", help="auto: bf16 where the chip multiplies it")
    cli.add_run_options(parser, shard_size=16)
    return parser


def main(args: argparse.Namespace) -> None:
    from chexseg.data import chexpert
    from chexseg.data.mask_files import MaskFile
    from chexseg.irnet import gates, stages, walk_curves
    from chexseg.irnet.films import OtherFilms

    run, truth = args.map_dir, MaskFile(args.gt_path or constants.gt_dir() / "valid_encoded.json", constants.ALIASES)
    films = OtherFilms(run, constants.LOCALIZATION_TASKS, constants.data_dir(), args.image_size)
    rows = [row for row, image_id in enumerate(films.ids) if image_id in truth]
    if not rows:
        raise MissingError(f"{truth.path}: {run} has maps of none of its images; run test.py on the experts' set")
    weights = options.boundary_network(args.irn_best_model_name, constants.irnet_dir())
    labels = args.csv_path or (chexpert.split_csv(constants.data_dir(), "valid") if args.gate == "labels" else None)
    gate = gates.choose_gate(
        args.gate,
        run,
        labels,
        observations=constants.OBSERVATIONS,
        aliases=constants.ALIASES,
        uncertain=options.uncertain_means(args.uncertain, args.uncertain_is_present),
        least=args.gate_probability,
    )
    values = (args.radii, args.betas, args.exp_times, args.thresholds)
    grid = walk_curves.Grid(*(tuple(sorted(set(each))) for each in values))
    build = partial(shards.build, items=rows, shard_size=args.shard_size, item_fingerprint=films.fingerprint)
    boundaries, counts = run / "walk_tuning_boundaries.npz", run / "walk_tuning_counts.npz"
    options_of_network = {"image_size": films.size, "precision": args.precision}
    build(
        boundaries,
        process=partial(
            stages.boundaries,
            films=films,
            weights=weights,
            device=args.device,
            batch_size=args.batch_size,
            precision=args.precision,
            num_workers=args.num_workers,
        ),
        shard_format=walk_curves.BoundaryShards(),
        record=provenance.describe(options_of_network, [weights], code=__file__),
        label="boundaries",
    )
    decided = {name: getattr(args, name) for name in options.GATE_OPTIONS} | vars(grid)
    build(
        counts,
        process=partial(
            stages.walk_counts,
            all_rows=rows,
            boundaries=boundaries,
            films=films,
            truth=truth,
            gate=gate,
            grid=grid,
            num_workers=args.num_workers,
        ),
        shard_format=walk_curves.CountShards(),
        record=provenance.describe(decided, [boundaries, truth.path, *films.inputs, *gate.inputs], code=__file__),
        label="random walks",
    )
    if distributed.is_main():
        output, patients = run / "walk_tuning.csv", {chexpert.patient_of(films.ids[row]) for row in rows}
        leak_guard.record(output, {"random walk": patients})
        print(walk_curves.write(output, output.with_suffix(".png"), counts, grid, films.tasks))
        log.info("%s and %s", output, output.with_suffix(".png").name)


if __name__ == "__main__":
    cli.run(main, build_parser)
