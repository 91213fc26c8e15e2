"""Stage 4: pseudo masks, from the saliency maps as they are and from a random walk that stops at boundaries.

    python make_pseudo_seg_labels.py --irn_best_model_name best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth \\
        --irn_pseudo_labels_save_dir $OBJ_EFFICIENCY_BASE_PATH/train_cams/ <folder of the run> --irn_is_training True
    torchrun --nproc_per_node 8 make_pseudo_seg_labels.py ...      the same, shared among 8 GPUs

Reads hdf5_files/train_set of the run folder and writes there pseudo_seg_labels_encoded_cams.json, which holds the masks
of stage 2, and pseudo_seg_labels_encoded_irnet.json. With --irn_is_training False the run is of another set: images are
read from CheXpert's folder and masks have their size. Killed and run again, it goes on where it was.

    python make_pseudo_seg_labels.py --choose_by report/quality.csv --floor 0.1 --source teacher=teacher_masks.json

writes pseudo_seg_labels_encoded_chosen.json instead, each task's masks from the source that pseudo_label_quality.py
found best; a task of which none reaches the floor is unknown. The run's own files are map_otsu, walk and crf_sure.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import constants
from chexseg.errors import UsageError
from chexseg.evaluation.methods import named_file
from chexseg.irnet import options
from chexseg.runtime import cli, provenance
from chexseg.training.options import PRECISIONS

NOT_OF_THE_WALK = ("batch_size", "choose_by", "floor", "irn_best_model_name", "irn_pseudo_labels_save_dir", "source")


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add(
        "--irn_pseudo_labels_save_dir",
        nargs="+",
        metavar="DIR",
        help="run folder, in one word or two (folder of runs, run) [the default run]",
    )
    network = "best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth"
    where = "boundary network in $OBJ_EFFICIENCY_BASE_PATH/weakly_supervised/saved_models, or a path"
    add("--irn_best_model_name", default=network, help=where)
    cli.add_boolean(parser, "--irn_is_training", default=True, help="the run is of the training set")
    options.add_gate(parser)
    add(
        "--contradiction",
        choices=options.CONTRADICTIONS,
        default="empty",
        help="mask of a finding that the gate calls present and of which the walk leaves nothing; unknown: none",
    )
    options.add_walk(parser)
    add("--choose_by", type=Path, metavar="CSV", help="quality.csv: take each task's masks from its best source")
    add("--floor", type=cli.fraction, default=0.1, help="least IoU of a source, --choose_by")
    add("--source", type=named_file, action="append", default=[], metavar="NAME=FILE", help="a masks JSON, --choose_by")
    add("--batch_size", type=cli.positive_int, default=16, help="images a forward pass, on each rank")
    add("--image_size", type=cli.positive_int, help="side of the network's input, --irn_is_training False [the maps']")
    add("--precision", choices=PRECISIONS, default="auto", help="auto: bf16 where the chip multiplies it")
    cli.add_run_options(parser)
    return parser


def run_folder(words: Sequence[str] | None) -> Path:
    """The seed's command has a blank in the path: two words mean one folder below the other."""
    if words is not None and len(words) > 2:
        raise UsageError(f"--irn_pseudo_labels_save_dir takes one or two words, got {len(words)}: {' '.join(words)}")
    return Path(*words) if words else constants.run_dir()


def main(args: argparse.Namespace) -> None:
    from chexseg.classifier.saliency_store import STORE
    from chexseg.data import chexpert, leak_guard
    from chexseg.irnet import gates, source_choice, stages
    from chexseg.irnet.films import OtherFilms, TrainFilms

    run = run_folder(args.irn_pseudo_labels_save_dir)
    if args.irn_is_training:
        films = TrainFilms(run)
    elif (run / "hdf5_files" / "train_set").exists():
        raise UsageError(f"{run} is a run of the training set, whose masks would be lost: --irn_is_training True")
    else:
        films = OtherFilms(run, constants.LOCALIZATION_TASKS, constants.data_dir(), args.image_size)
    labels = args.csv_path
    if labels is None and args.irn_is_training and args.gate == "labels":
        labels = chexpert.split_csv(constants.data_dir(), "train")
    gate = gates.choose_gate(
        args.gate,
        run,
        labels,
        observations=constants.OBSERVATIONS,
        aliases=constants.ALIASES,
        uncertain=options.uncertain_means(args.uncertain, args.uncertain_is_present),
        least=args.gate_probability,
    )
    if args.choose_by:
        source_choice.build_chosen(
            run,
            films,
            gate,
            table=args.choose_by,
            files=source_choice.own_sources(run) | dict(args.source),
            gate_options={name: getattr(args, name) for name in options.GATE_OPTIONS},
            floor=args.floor,
            contradiction=args.contradiction,
            aliases=constants.ALIASES,
            shard_size=args.shard_size,
        )
        return
    weights = options.boundary_network(args.irn_best_model_name, constants.irnet_dir())
    size, left_out = {"image_size": films.size}, dict.fromkeys(NOT_OF_THE_WALK)
    inputs = [*films.inputs, weights, *gate.inputs]
    of_cams = provenance.describe(size, films.inputs, code=__file__)
    of_walk = provenance.describe(vars(args) | left_out | size, inputs, code=__file__)
    cams = partial(stages.threshold_masks, films=films, num_workers=args.num_workers)
    walk = partial(
        stages.walk_masks,
        films=films,
        gate=gate,
        weights=weights,
        walk={name: getattr(args, name) for name in options.WALK},
        contradiction=args.contradiction,
        device=args.device,
        batch_size=args.batch_size,
        precision=args.precision,
        num_workers=args.num_workers,
    )
    for kind, sources in (("cams", [run / STORE]), ("irnet", [run / STORE, weights])):
        leak_guard.inherit(run / f"pseudo_seg_labels_encoded_{kind}.json", sources)
    for kind, process, record in (("cams", cams, of_cams), ("irnet", walk, of_walk)):
        stages.build_masks(
            run / f"pseudo_seg_labels_encoded_{kind}.json",
            films,
            process,
            record=record,
            shard_size=args.shard_size,
            label=f"pseudo masks ({kind})",
        )


if __name__ == "__main__":
    cli.run(main, build_parser)
