"""Stage 0: the classifier, when you have no checkpoint of one.

    python train.py --ckpt_path $OBJ_EFFICIENCY_BASE_PATH/models/mine/classifier.ckpt --architecture densenet121 \\
        --weights imagenet --num_epochs 3
    torchrun --nproc_per_node 8 train.py ...       the same on 8 GPUs

Trains on the frontal images of train.csv, keeps the epoch of the best mean AUROC over the observations that occur in
valid.csv, and writes it with all that test.py needs. The folder <checkpoint>.training beside it holds log.jsonl, and
checkpoint.pt, from which the same command goes on.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import constants
from chexseg.classifier import torch_cache
from chexseg.classifier.choices import ARCHITECTURES, OUTPUT_STRIDES, POOLINGS
from chexseg.data.normalisation import NORMALISATION
from chexseg.data.views import VIEWS
from chexseg.errors import DataError
from chexseg.runtime import cli, provenance
from chexseg.training.options import MENTION_POLICIES, UNCERTAIN_POLICIES, RunOptions
from chexseg.training.run_record import Run

if TYPE_CHECKING:
    from chexseg.classifier.labelled import LabelledImages


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--ckpt_path", type=Path, required=True, help="where the best epoch is written")
    add("--architecture", choices=ARCHITECTURES, default="resnet18", help="network")
    add("--weights", default="none", help="start from: none, imagenet (torchvision's, if in torch's cache), or a file")
    add("--image_size", type=cli.positive_int, default=320, help="side that images are stretched to")
    add("--normalisation", choices=tuple(NORMALISATION), default="imagenet", help="of the input")
    add("--uncertain", choices=UNCERTAIN_POLICIES, default="ones", help="what a label of -1 means to the loss")
    add("--not_mentioned", choices=MENTION_POLICIES, default="zeros", help="what an empty label means")
    add("--output_stride", type=int, choices=OUTPUT_STRIDES, default=32, help="16 or 8: denser saliency maps")
    add("--pooling", choices=POOLINGS, default="average", help="how positions become one logit")
    add("--train_csv", type=Path, help="label file [train.csv in CheXpert's folder]")
    add("--valid_csv", type=Path, help="label file that chooses the epoch [valid.csv in CheXpert's folder]")
    add("--views", choices=VIEWS, default="frontal", help="which views to train on")
    add("--weight_decay", type=cli.non_negative_float, default=0.0, help="of Adam")
    cli.add_boolean(parser, "--augment", default=False, help="shift, turn, scale and re-expose the images")
    add("--wandb_project_name", default="", help="Weights & Biases project; empty: wandb is not even imported")
    add("--wandb_run_name", default="", help="its run")
    RunOptions.add_to(parser, num_epochs=3, batch_size=16, lr=1e-4, one_cycle=True)
    return parser


def both_sets(
    train_csv: Path, valid_csv: Path, image_size: int, augment: bool, views: str, num_workers: int
) -> tuple[LabelledImages, LabelledImages]:
    """The images to train on and those that choose the epoch, decoded where they are not yet."""
    from chexseg.classifier.labelled import read_labelled

    places = {"aliases": constants.ALIASES, "data_dir": constants.data_dir(), "cache_dir": constants.cache_dir()}
    common = {**places, "image_size": image_size, "views": views, "num_workers": num_workers}
    valid_set = read_labelled(valid_csv, constants.OBSERVATIONS, scored=True, split="valid", **common)
    return read_labelled(train_csv, constants.OBSERVATIONS, augment=augment, split="train", **common), valid_set


def weights_of_finished(weights: str, architecture: str) -> Path | None:
    """The file that `--weights` means, as far as it is known without torch."""
    if weights == "none":
        return None
    return torch_cache.only_file(architecture) if weights == "imagenet" else Path(weights)


def main(args: argparse.Namespace) -> None:
    from chexseg.data import chexpert

    train_csv = args.train_csv or chexpert.split_csv(constants.data_dir(), "train")
    valid_csv = args.valid_csv or chexpert.split_csv(constants.data_dir(), "valid")
    best, sets = args.ckpt_path, (train_csv, valid_csv, args.image_size, args.augment, args.views, args.num_workers)
    run = Run(
        best.with_name(best.name + ".training"),
        provenance.describe(vars(args), code=__file__),
        best=(best,),
        record_path=provenance.manifest_path(best),
        wandb_project=args.wandb_project_name,
        wandb_run_name=args.wandb_run_name,
    )
    if run.looks_finished(args.resume):
        with suppress(DataError):  # what is wrong, if anything, is said below
            pixels = [images.pixels.path for images in both_sets(*sets)]
            weights = weights_of_finished(args.weights, args.architecture)
            if run.with_inputs([train_csv, valid_csv, *pixels, weights]).finished_before():
                return

    from chexseg.classifier import models
    from chexseg.classifier.training import ClassifierTrainer, initialise
    from chexseg.runtime import distributed
    from chexseg.training import loop

    device, options = distributed.device(args.device), RunOptions.of(vars(args))
    three_way = args.uncertain == "multiclass"
    spec = models.ClassifierSpec(
        args.architecture,
        constants.OBSERVATIONS,
        three_way,
        args.image_size,
        args.normalisation,
        args.output_stride,
        args.pooling,
    )
    loop.seed_everything(args.seed)
    model = models.Classifier(spec)
    weights = initialise(model, args.weights)
    model.to(device)
    train_set, valid_set = both_sets(*sets)
    policies = {"uncertain": args.uncertain, "not_mentioned": args.not_mentioned}
    trainer = ClassifierTrainer(
        model, train_set, valid_set, best=best, options=options, weight_decay=args.weight_decay, **policies
    )
    inputs = [train_csv, valid_csv, train_set.pixels.path, valid_set.pixels.path, weights]
    loop.fit(trainer, run.with_inputs(inputs), options)


if __name__ == "__main__":
    cli.run(main, build_parser)
