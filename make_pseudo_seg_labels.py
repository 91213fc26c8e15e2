"""Stage 4: pseudo masks, from the saliency maps as they are and from a random walk that stops at boundaries.

    python make_pseudo_seg_labels.py --irn_best_model_name best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth \\
        --irn_pseudo_labels_save_dir $OBJ_EFFICIENCY_BASE_PATH/train_cams/ <folder of the run> --irn_is_training True
    torchrun --nproc_per_node 8 make_pseudo_seg_labels.py ...      the same, shared among 8 GPUs

Reads hdf5_files/train_set of the run folder and writes there pseudo_seg_labels_encoded_cams.json, which holds the masks
of stage 2, and pseudo_seg_labels_encoded_irnet.json. With --irn_is_training False the run is of another set: images are
read from CheXpert's folder and masks have their size. Killed and run again, it goes on where it was.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import constants
from chexseg.errors import UsageError
from chexseg.irnet import options
from chexseg.runtime import cli
from chexseg.training.options import PRECISIONS

if TYPE_CHECKING:
    from chexseg.irnet.gates import Gate


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add(
        "--irn_pseudo_labels_save_dir",
        nargs="+",
        metavar="DIR",
        help="run folder, in one word or two (folder of runs, run) [the default run]",
    )
    add(
        "--irn_best_model_name",
        default="best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth",
        help="boundary network in $OBJ_EFFICIENCY_BASE_PATH/weakly_supervised/saved_models, or a path",
    )
    cli.add_boolean(parser, "--irn_is_training", default=True, help="the run is of the training set")
    options.add_gate(parser)
    add(
        "--contradiction",
        choices=options.CONTRADICTIONS,
        default="empty",
        help="mask of a finding that the gate calls present and of which the walk leaves nothing; unknown: none",
    )
    options.add_walk(parser)
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


def choose_gate(
    gate: str, run: Path, *, of_training: bool, csv_path: Path | None, uncertain: str, least: float
) -> "Gate":
    """The gate that `--gate` means; a set without labels is gated by the classifier."""
    from chexseg.classifier.saliency_store import open_maps
    from chexseg.data import chexpert
    from chexseg.irnet import gates

    if gate == "none":
        return gates.OpenGate()
    if gate == "probability" or not (of_training or csv_path):
        return gates.ProbabilityGate(open_maps(run), least)
    path = csv_path or chexpert.split_csv(constants.data_dir(), "train")
    return gates.LabelGate(path, constants.OBSERVATIONS, constants.ALIASES, uncertain)


def main(args: argparse.Namespace) -> None:
    from chexseg.data import mask_files
    from chexseg.irnet import stages
    from chexseg.irnet.films import OtherFilms, TrainFilms
    from chexseg.runtime import provenance, shards

    run, of_training = run_folder(args.irn_pseudo_labels_save_dir), args.irn_is_training
    if of_training:
        films = TrainFilms(run)
    else:
        films = OtherFilms(run, constants.LOCALIZATION_TASKS, constants.data_dir(), args.image_size)
    weights = Path(args.irn_best_model_name)
    weights = weights if weights.is_file() else constants.irnet_dir() / weights
    gate = choose_gate(
        args.gate,
        run,
        of_training=of_training,
        csv_path=args.csv_path,
        uncertain=options.uncertain_means(args.uncertain, args.uncertain_is_present),
        least=args.gate_probability,
    )
    walk = {name: getattr(args, name) for name in options.WALK}
    decided = vars(args) | {"batch_size": None, "irn_best_model_name": None, "irn_pseudo_labels_save_dir": None}
    size = {"image_size": films.size}
    inputs = [*films.inputs, weights, *gate.inputs]
    made = {
        "cams": (
            partial(stages.threshold_masks, films=films, num_workers=args.num_workers),
            provenance.describe(size, films.inputs, code=__file__),
        ),
        "irnet": (
            partial(
                stages.walk_masks,
                films=films,
                gate=gate,
                weights=weights,
                walk=walk,
                contradiction=args.contradiction,
                device=args.device,
                batch_size=args.batch_size,
                precision=args.precision,
                num_workers=args.num_workers,
            ),
            provenance.describe(decided | size, inputs, code=__file__),
        ),
    }
    for kind, (process, record) in made.items():
        shards.build(
            run / f"pseudo_seg_labels_encoded_{kind}.json",
            range(len(films.ids)),
            process=process,
            shard_format=mask_files.MaskShards(),
            record=record,
            shard_size=args.shard_size,
            label=f"pseudo masks ({kind})",
            item_fingerprint=films.fingerprint,
        )


if __name__ == "__main__":
    cli.run(main, build_parser)
