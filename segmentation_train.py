"""Stage 6: train a segmentation network on pseudo masks, on expert masks, or on both.

    python segmentation_train.py --save_dir seg_trials --experiment_name semi_supervised \\
        --ss_expert_annotations_masks_path expert_train.json --ss_dnn_generated_masks_path pseudo.json \\
        --eval_masks_path expert_valid.json --encoder_weights_type CheXpert --encoder_weights classifier.ckpt \\
        --semi_supervised True --weighted True --strong_labels_weight 0.9 --valid_common_pathologies True

    tiny: add --image_size 64 --batch_size 4 --num_epochs 1; GPUs: torchrun --nproc_per_node 4 segmentation_train.py ...

Writes <save_dir>/<experiment_name>/: best_model.pth, thresholds.txt (JSON list, one per task), args.json, log.jsonl and
checkpoint.pt, from which the same command goes on.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import constants
from chexseg.errors import DataError
from chexseg.runtime import cli, provenance
from chexseg.segmentation.choices import (
    ENCODER_WEIGHTS_TYPES,
    EXPERT_SPLITS,
    LOSSES,
    Files,
    encoder_file,
    training_files,
)
from chexseg.training.options import RunOptions
from chexseg.training.run_record import Run

if TYPE_CHECKING:
    from chexseg.data.sample_cache import SampleCache

# Options that only say where things are: what is in the files counts, not their names.
PLACES = "train_masks_path eval_masks_path ss_expert_annotations_masks_path ss_dnn_generated_masks_path encoder_weights"


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--save_dir", type=Path, default=Path("seg_trials"), help="folder of all experiments")
    add("--experiment_name", default="segmentation", help="folder of this one, below --save_dir")
    add("--wandb_project_name", default="", help="also log to this Weights & Biases project (offline without a login)")
    add("--wandb_run_name", default="", help="name of the run there")
    add("--image_dir", type=Path, help="any folder of images, whose ids are their paths [$CHEXPERT_DATA_DIR]")
    add("--train_set", choices=("train", "valid"), default="train", help="whose images --train_masks_path is about")
    files = {"type": Path, "nargs": "+", "metavar": "JSON"}
    add("--train_masks_path", **files, help="masks JSON, polygons JSON or COCO to train on; one or several")
    add("--eval_masks_path", **files, required=True, help="masks that choose epoch and thresholds")
    add("--ss_expert_annotations_masks_path", **files, help="expert masks (with --semi_supervised)")
    add("--ss_dnn_generated_masks_path", **files, help="pseudo masks (with --semi_supervised)")
    cli.add_boolean(parser, "--semi_supervised", help="train on expert and pseudo masks together")
    cli.add_boolean(parser, "--weighted", help="draw experts' images with --strong_labels_weight, else all alike")
    add("--strong_labels_weight", type=cli.fraction, default=0.9, help="probability that a draw is an expert's image")
    add("--epoch_len", type=cli.positive_int, help="draws in an epoch; default: as many as there are images")
    add("--architecture", default="DeepLabV3Plus", help="any of segmentation_models_pytorch")
    add("--encoder", default="resnet18", help="any of its encoders")
    add("--decoder_channels", type=cli.positive_int, help="width of the decoder [the architecture's own, 256]")
    add("--encoder_weights_type", choices=ENCODER_WEIGHTS_TYPES, default="", help="what the weights are")
    add("--encoder_weights", default="", help="checkpoint; `imagenet` for torchvision's; empty or none for random")
    add("--normalisation", choices=("auto", "imagenet", "chexpert"), default="auto", help="auto: as the weights want")
    add("--image_size", type=cli.positive_int, default=320, help="longer side of an image, zero-padded to a square")
    add("--loss", choices=LOSSES, default="dice", help="dice: the paper's; bce_dice: better for rare and unknown masks")
    cli.add_boolean(parser, "--augment", help="turn, zoom, shift and relight training images slightly")
    cli.add_boolean(
        parser,
        "--valid_common_pathologies",
        help="choose the epoch by the four common tasks, with thresholds from the training set",
    )
    RunOptions.add_to(parser, num_epochs=20, batch_size=8, lr=1e-4, one_cycle=True)
    return parser


def caches_of(files: Files, image_dir: Path | None, image_size: int, num_workers: int) -> list[SampleCache]:
    """The samples of masks files, decoded where they are not yet."""
    from chexseg.segmentation.dataset import build_caches

    options = {"data_dir": image_dir or constants.data_dir(), "image_size": image_size, "num_workers": num_workers}
    return build_caches(constants.cache_dir(), files, constants.ALIASES, tasks=constants.LOCALIZATION_TASKS, **options)


def main(args: argparse.Namespace) -> None:
    files = (
        *training_files(
            args.train_masks_path,
            args.ss_expert_annotations_masks_path,
            args.ss_dnn_generated_masks_path,
            semi_supervised=args.semi_supervised,
            weighted=args.weighted,
            train_set=args.train_set,
        ),
        [(path, EXPERT_SPLITS) for path in args.eval_masks_path],
    )
    folder, reading = args.save_dir / args.experiment_name, (args.image_dir, args.image_size, args.num_workers)
    encoder, weights, kind = args.encoder, args.encoder_weights, args.encoder_weights_type
    run = Run(
        folder,
        provenance.describe(vars(args), code=__file__),
        best=(folder / "best_model.pth", folder / "thresholds.txt"),
        record_path=folder / "args.json",
        places=tuple(PLACES.split()),
        wandb_project=args.wandb_project_name,
        wandb_run_name=args.wandb_run_name,
    )
    if run.looks_finished(args.resume):
        from chexseg.segmentation.dataset import inputs_of

        with suppress(DataError):  # what is wrong, if anything, is said below
            sets = [caches_of(each, *reading) for each in files]
            if run.with_inputs(inputs_of(*sets, source=encoder_file(encoder, weights, kind))).finished_before():
                return

    from chexseg.runtime import distributed
    from chexseg.segmentation import model as networks
    from chexseg.segmentation.dataset import SegmentationSet, inputs_of
    from chexseg.segmentation.training import SegmentationTrainer, check_scorable
    from chexseg.training import draws, loop

    options, tasks, device = RunOptions.of(vars(args)), constants.LOCALIZATION_TASKS, distributed.device(args.device)
    normalisation = args.normalisation if args.normalisation != "auto" else networks.normalisation_for(weights, kind)
    more = {"image_size": args.image_size, "normalisation": normalisation, "decoder_channels": args.decoder_channels}
    spec = networks.SegmentationSpec(args.architecture, encoder, tasks, **more)
    loop.seed_everything(args.seed)
    model = networks.build_model(spec)
    source = networks.load_encoder(model, spec, weights, kind)

    common = constants.COMMON_TASKS if args.valid_common_pathologies else ()
    evaluation = caches_of(files[2], *reading)
    check_scorable(SegmentationSet(evaluation), ", ".join(map(str, args.eval_masks_path)), tasks, common)
    strong, weak = (caches_of(each, *reading) for each in files[:2])
    n_strong, n_weak, weight = sum(map(len, strong)), sum(map(len, weak)), args.strong_labels_weight
    order, epoch = draws.shuffled(n_strong + n_weak, args.seed), {"seed": args.seed, "epoch_len": args.epoch_len}
    if args.weighted:
        order = draws.mixed(n_strong, n_weak, strong_weight=weight, **epoch)
    elif args.epoch_len:
        order = draws.mixed(n_strong + n_weak, 0, strong_weight=1.0, **epoch)
    dataset = SegmentationSet([*strong, *weak], augment=args.augment)
    sources = [*(path for masks in files for path, _ in masks), *([source] if source else [])]
    more = {"folder": folder, "order": order, "loss": args.loss, "common": common, "sources": sources}
    trainer = SegmentationTrainer(model.to(device), spec, dataset, SegmentationSet(evaluation), options=options, **more)
    trainer.say_counts()
    loop.fit(trainer, run.with_inputs(inputs_of(strong, weak, evaluation, source=source)), options)


if __name__ == "__main__":
    cli.run(main, build_parser)
