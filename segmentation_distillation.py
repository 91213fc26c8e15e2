"""Stage 6: a student on experts' films and on what a teacher makes of films that have labels but no outlines.

    python segmentation_distillation.py --teacher_path seg_trials/full/best_model.pth --experiment_name distilled \\
        --expert_masks_path expert_train.json --eval_masks_path expert_valid.json --strong_labels_weight 0.5

    our recipe: add --targets masks --gate labels --expert_sizes 20 80 --floor 0.02 --balance 0.5 --paste 0.5
                --loss bce_dice --from_teacher True --augment True --one_cycle True
    tiny:       add --batch_size 4 --num_epochs 1 --epoch_len 16
    GPUs:       torchrun --nproc_per_node 4 segmentation_distillation.py ...

As it stands it is the paper's knowledge distillation: the teacher's logits at temperature 6 are the targets. The
student has the teacher's architecture. Writes <save_dir>/<experiment_name>/: pool_masks.json (the teacher's masks; a
task that is unknown is missing) and what segmentation_train.py writes. Of --rounds, each student is the next teacher;
earlier ones are in <experiment_name>_round_1, ...
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import constants
from chexseg.data.views import VIEWS
from chexseg.errors import UsageError
from chexseg.runtime import cli
from chexseg.segmentation.choices import ENCODER_WEIGHTS_TYPES, LOSSES
from chexseg.training.options import RunOptions

EXPERT = ("valid", "test", "train")  # where to look for the images of experts' masks, in this order


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    files: dict[str, Any] = {"type": Path, "nargs": "+", "required": True}
    add("--teacher_path", **files, metavar="MODEL", help="best_model.pth; of several the mean counts")
    add("--expert_masks_path", **files, metavar="JSON", help="experts' masks to train on")
    add("--eval_masks_path", **files, metavar="JSON", help="masks that choose epoch and thresholds")
    add("--labels_path", type=Path, help="label file of the pool [CheXpert's train.csv]")
    add("--views", choices=VIEWS, default="frontal", help="which views of the label file are the pool")
    add("--save_dir", type=Path, default=Path("seg_trials"), help="folder of all experiments")
    add("--experiment_name", default="distilled", help="folder of this one, below --save_dir")
    add("--rounds", type=cli.positive_int, default=1, help="each round's student is the next one's teacher")
    add("--targets", choices=("logits", "masks"), default="logits", help="what of the teacher the student is to match")
    add("--temperature", type=cli.positive_float, default=6.0, help="that logits are divided by (--targets logits)")
    text = "labels: what a label denies is empty, what it is unsure of is unknown, as is what the teacher does not see"
    add("--gate", choices=("none", "labels"), default="none", help=text)
    add("--floor", type=cli.fraction, default=0.0, help="below this probability a teacher sees nothing (--gate labels)")
    text = "masks of stated findings are as large as the experts' are from this to that percentile (--gate labels)"
    add("--expert_sizes", type=float, nargs=2, metavar=("LOW", "HIGH"), help=text)
    add("--strong_labels_weight", type=cli.fraction, default=0.9, help="probability that a draw is an expert's film")
    add("--epoch_len", type=cli.positive_int, help="draws in an epoch; default: films of experts and pool")
    add("--balance", type=cli.fraction, default=0.0, help="share of the pool's draws that are made by finding")
    add("--paste", type=cli.fraction, default=0.0, help="share of the pool's draws that get an expert film's finding")
    add("--encoder_weights_type", choices=ENCODER_WEIGHTS_TYPES, default="", help="what the weights are")
    add("--encoder_weights", default="", help="checkpoint; `imagenet` for torchvision's; empty or none for random")
    cli.add_boolean(parser, "--from_teacher", help="the student starts from the first teacher's weights")
    add("--loss", choices=LOSSES, default="dice", help="dice: the paper's; bce_dice: better for rare and unknown masks")
    cli.add_boolean(parser, "--augment", help="turn, zoom, shift and relight training images slightly")
    text = "choose the epoch by the four common tasks, with thresholds from the experts' training films"
    cli.add_boolean(parser, "--valid_common_pathologies", help=text)
    RunOptions.add_to(parser, num_epochs=20, batch_size=8, lr=1e-4, one_cycle=True)
    return parser


def check(args: argparse.Namespace) -> None:
    """UsageError for options that do not go together."""
    if args.gate == "none" and (args.expert_sizes or args.floor):
        raise UsageError("--expert_sizes and --floor are about findings that a label states: they need --gate labels")
    if args.expert_sizes and not 0 <= args.expert_sizes[0] <= args.expert_sizes[1] <= 100:
        raise UsageError(f"--expert_sizes {args.expert_sizes}: expected two percentiles, the lower one first")
    if args.expert_sizes and args.targets == "logits":
        raise UsageError("--expert_sizes is about the sizes of masks: it needs --targets masks")
    if args.targets == "logits" and args.gate == "labels" and args.paste:
        raise UsageError("--paste with --gate labels needs --targets masks: a label does not know of what was pasted")
    if args.from_teacher and args.encoder_weights:
        raise UsageError("--from_teacher True starts from the whole teacher: leave --encoder_weights out")


def main(args: argparse.Namespace) -> None:
    check(args)
    for path in args.teacher_path:
        if not path.is_file():
            raise UsageError(f"{path}: no such network; train a teacher with segmentation_train.py")

    from chexseg.data import chexpert, label_files
    from chexseg.segmentation import rounds

    data = constants.data_dir()
    csv = args.labels_path or chexpert.split_csv(data, "train")
    labels = chexpert.read_labels(csv, constants.LOCALIZATION_TASKS, constants.ALIASES, "train")
    frame = label_files.of_views(labels, args.views)
    films = rounds.Films(
        data_dir=data,
        cache_dir=constants.cache_dir(),
        splits=EXPERT,
        aliases=constants.ALIASES,
        experts=args.expert_masks_path,
        evaluation=args.eval_masks_path,
    )
    teaching = rounds.Teaching(
        targets=args.targets,
        temperature=args.temperature,
        gated=args.gate == "labels",
        floor=args.floor,
        expert_sizes=tuple(args.expert_sizes) if args.expert_sizes else None,
        strong_weight=args.strong_labels_weight,
        epoch_len=args.epoch_len,
        balance=args.balance,
        paste=args.paste,
        loss=args.loss,
        augment=args.augment,
        common=constants.COMMON_TASKS if args.valid_common_pathologies else (),
    )
    start = rounds.Start(args.encoder_weights, args.encoder_weights_type, args.from_teacher)
    folder, teachers = args.save_dir / args.experiment_name, list(args.teacher_path)
    for number in range(1, args.rounds + 1):
        place = folder if number == args.rounds else folder.with_name(f"{folder.name}_round_{number}")
        pool = rounds.Pool(chexpert.ImageSet(data, frame, csv), place / "pool_masks.json")
        rounds.run(place, teachers, films, pool, teaching, start, RunOptions.of(vars(args)), vars(args), code=__file__)
        teachers = [place / "best_model.pth"]


if __name__ == "__main__":
    cli.run(main, build_parser)
