"""Stage 6: train a segmentation network on pseudo masks, on expert masks, or on both.

    python segmentation_train.py --save_dir seg_trials --experiment_name semi_supervised \\
        --ss_expert_annotations_masks_path expert_train.json --ss_dnn_generated_masks_path pseudo.json \\
        --eval_masks_path expert_valid.json --encoder_weights_type CheXpert --encoder_weights classifier.ckpt \\
        --semi_supervised True --weighted True --strong_labels_weight 0.9 --valid_common_pathologies True

    tiny:  add --image_size 64 --batch_size 4 --num_epochs 1
    GPUs:  torchrun --nproc_per_node 8 segmentation_train.py ...

Writes <save_dir>/<experiment_name>/: best_model.pth, thresholds.txt (JSON list, one per task), args.json, log.jsonl and
checkpoint.pt, from which the same command goes on.
"""

import argparse
import json
import logging
from pathlib import Path

import torch

import constants
from chexseg.data.mask_files import MaskFile
from chexseg.data.sample_cache import SampleCache
from chexseg.errors import DataError, UsageError
from chexseg.runtime import cli, distributed, provenance
from chexseg.runtime.files import atomic
from chexseg.segmentation.dataset import SegmentationSet, build_cache
from chexseg.segmentation.evaluator import Evaluator, make_loss
from chexseg.segmentation.model import (
    ENCODER_WEIGHTS_TYPES,
    SegmentationSpec,
    build_model,
    load_encoder,
    normalisation_for,
    save_model,
)
from chexseg.training import draws, loop, tracking

log = logging.getLogger(__name__)
# Options that only say where things are: what is in the files counts, not their names.
PATHS = "train_masks_path eval_masks_path ss_expert_annotations_masks_path ss_dnn_generated_masks_path encoder_weights"
# Where to look for the images of experts' masks and of pseudo masks, in this order.
EXPERT, PSEUDO = ("valid", "test", "train"), ("train", "valid", "test")


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--save_dir", type=Path, default=Path("seg_trials"), help="folder of all experiments")
    add("--experiment_name", default="segmentation", help="folder of this one, below --save_dir")
    add("--wandb_project_name", default="", help="also log to this Weights & Biases project (offline without a login)")
    add("--wandb_run_name", default="", help="name of the run there")
    add("--train_set", choices=("train", "valid"), default="train", help="whose images --train_masks_path is about")
    add("--train_masks_path", type=Path, help="masks JSON to train on (not with --semi_supervised)")
    add("--eval_masks_path", type=Path, required=True, help="masks JSON that chooses epoch and thresholds")
    add("--ss_expert_annotations_masks_path", type=Path, help="expert masks JSON (with --semi_supervised)")
    add("--ss_dnn_generated_masks_path", type=Path, help="pseudo masks JSON (with --semi_supervised)")
    cli.add_boolean(parser, "--semi_supervised", help="train on expert and pseudo masks together")
    cli.add_boolean(parser, "--weighted", help="draw experts' images with --strong_labels_weight, else all alike")
    add("--strong_labels_weight", type=cli.fraction, default=0.9, help="probability that a draw is an expert's image")
    add("--epoch_len", type=cli.positive_int, help="draws in an epoch with --weighted; default: images in both sets")
    add("--architecture", default="DeepLabV3Plus", help="any of segmentation_models_pytorch")
    add("--encoder", default="resnet18", help="any of its encoders")
    add("--decoder_channels", type=cli.positive_int, help="width of the decoder [the architecture's own, 256]")
    add("--encoder_weights_type", choices=ENCODER_WEIGHTS_TYPES, default="", help="what the weights are")
    add("--encoder_weights", default="", help="checkpoint; `imagenet` for torchvision's; empty or none for random")
    add("--normalisation", choices=("auto", "imagenet", "chexpert"), default="auto", help="auto: as the weights want")
    add("--image_size", type=cli.positive_int, default=320, help="longer side of an image, zero-padded to a square")
    cli.add_boolean(parser, "--augment", help="turn, zoom, shift and relight training images slightly")
    cli.add_boolean(
        parser,
        "--valid_common_pathologies",
        help="choose the epoch by the four common tasks, with thresholds from the training set",
    )
    cli.add_boolean(parser, "--one_cycle", help="let the learning rate rise, then fall to zero; else it is constant")
    loop.add_options(parser, num_epochs=20, batch_size=8, lr=1e-4)
    cli.add_run_options(parser, shard_size=None)
    return parser


def mask_sets(args: argparse.Namespace) -> list[tuple[Path, tuple[str, ...]]]:
    """The masks files to train on, and the splits in which to look for their images; experts' first."""
    pair = {
        "--ss_expert_annotations_masks_path": args.ss_expert_annotations_masks_path,
        "--ss_dnn_generated_masks_path": args.ss_dnn_generated_masks_path,
    }
    single = {"--train_masks_path": args.train_masks_path}
    wanted, unwanted = (pair, single) if args.semi_supervised else (single, pair)
    mode = f"--semi_supervised {args.semi_supervised}"
    for name in (n for n, path in wanted.items() if path is None):
        raise UsageError(f"{mode} needs {name}")
    for name in (n for n, path in unwanted.items() if path is not None):
        raise UsageError(f"{name} does not go with {mode}")
    if args.weighted and not args.semi_supervised:
        raise UsageError("--weighted True needs --semi_supervised True")
    if args.semi_supervised:
        return [(args.ss_expert_annotations_masks_path, EXPERT), (args.ss_dnn_generated_masks_path, PSEUDO)]
    return [(args.train_masks_path, EXPERT if args.train_set == "valid" else PSEUDO)]


def main(args: argparse.Namespace) -> None:
    tasks, device = constants.LOCALIZATION_TASKS, distributed.device(args.device)
    sets, folder = mask_sets(args), args.save_dir / args.experiment_name
    weights, kind = args.encoder_weights, args.encoder_weights_type
    auto = args.normalisation == "auto"
    normalisation = normalisation_for(weights, kind) if auto else args.normalisation
    spec = SegmentationSpec(
        args.architecture, args.encoder, tasks, args.image_size, normalisation, args.decoder_channels
    )
    loop.seed_everything(args.seed)
    model = build_model(spec)
    source = load_encoder(model, spec, weights, kind)
    model.to(device)

    def caches_of(sets: list[tuple[Path, tuple[str, ...]]]) -> list[SampleCache]:
        common = {"data_dir": constants.data_dir(), "tasks": tasks, "image_size": args.image_size}
        files = [(MaskFile(path, constants.ALIASES), splits) for path, splits in sets]
        folder, workers = constants.cache_dir(), args.num_workers
        return [build_cache(folder, *each, **common, num_workers=workers) for each in files]

    common = constants.COMMON_TASKS if args.valid_common_pathologies else ()
    (evaluation,) = caches_of([(args.eval_masks_path, EXPERT)])
    scored = [tasks.index(task) for task in common or tasks]
    if not any(evaluation[i].masks[scored].any() for i in range(len(evaluation))):
        raise DataError(f"{args.eval_masks_path}: no mask of {', '.join(common or tasks)} has a pixel to score by")
    caches = caches_of(sets)
    order = draws.shuffled(sum(map(len, caches)), args.seed)
    if args.weighted:
        n_strong, n_weak, weight = *map(len, caches), args.strong_labels_weight
        order = draws.mixed(n_strong, n_weak, strong_weight=weight, seed=args.seed, epoch_len=args.epoch_len)
    evaluator = Evaluator(
        SegmentationSet([evaluation]),
        spec,
        common=common,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        device=device,
    )
    # A cache stands for the masks and images it was made from.
    inputs = [*(found.path for found in [*caches, evaluation]), source]
    record = provenance.describe(vars(args), inputs, code=__file__)
    wandb = tracking.Wandb(args.wandb_project_name, args.wandb_run_name, vars(args), folder)

    def begin(resumed: bool) -> None:
        provenance.write(folder / "args.json", record)
        wandb.start(resumed=resumed)

    def save_best(best_weights: dict[str, torch.Tensor], best: dict) -> None:
        save_model(folder / "best_model.pth", best_weights, spec, best)
        with atomic(folder / "thresholds.txt") as temporary:
            temporary.write_text(json.dumps(best["thresholds"]) + "\n")

    result = loop.fit(
        model,
        SegmentationSet(caches, augment=args.augment),
        order=order,
        compute_loss=make_loss(normalisation),
        optimizer=torch.optim.Adam(model.parameters(), lr=args.lr),
        folder=folder,
        record=record | {"arguments": {k: v for k, v in record["arguments"].items() if k not in PATHS.split()}},
        save_best=save_best,
        score=lambda found: found[evaluator.score_name],
        evaluate=evaluator,
        tally=evaluator.tally,
        schedule=loop.one_cycle if args.one_cycle else None,
        begin=begin,
        track=wandb.log,
        device=device,
        **loop.options(args),
    )
    wandb.close()
    if not (folder / "best_model.pth").is_file():
        raise DataError(f"{folder / 'best_model.pth'}: no longer there; train again with --resume none")
    log.info("best epoch %d: %s %.4f", result.epoch, evaluator.score_name, result.score)
    log.info("%s", folder / "best_model.pth")


if __name__ == "__main__":
    cli.run(main, build_parser)
