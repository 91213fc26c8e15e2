"""Stage 0: the classifier, when you have no checkpoint of one.

    python train.py --ckpt_path $OBJ_EFFICIENCY_BASE_PATH/models/mine/classifier.ckpt --architecture densenet121 \\
        --weights imagenet --num_epochs 3
    torchrun --nproc_per_node 8 train.py ...       the same on 8 GPUs

Trains on the frontal images of train.csv, keeps the epoch of the best mean AUROC over the observations that occur in
valid.csv, and writes it with all that test.py needs. The folder <checkpoint>.training beside it holds log.jsonl, and
checkpoint.pt, from which the same command goes on.
"""

import argparse
from pathlib import Path

import torch

import constants
from chexseg.classifier import models
from chexseg.classifier.dataset import ImageSet, LabelledImages, aurocs, cached_pixels, label_array, predict
from chexseg.data import chexpert
from chexseg.data.images import NORMALISATION, normalise
from chexseg.errors import DataError, UsageError
from chexseg.runtime import cli, distributed, provenance
from chexseg.training import draws, loop, losses, tracking


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--ckpt_path", type=Path, required=True, help="where the best epoch is written")
    add("--architecture", choices=models.ARCHITECTURES, default="resnet18", help="network")
    add("--weights", default="none", help="start from: none, imagenet (torchvision's, if in torch's cache), or a file")
    add("--image_size", type=cli.positive_int, default=320, help="side that images are stretched to")
    add("--normalisation", choices=tuple(NORMALISATION), default="imagenet", help="of the input")
    add("--uncertain", choices=losses.UNCERTAIN_POLICIES, default="ones", help="what a label of -1 means to the loss")
    add("--not_mentioned", choices=losses.MENTION_POLICIES, default="zeros", help="what an empty label means")
    add("--train_csv", type=Path, help="label file [train.csv in CheXpert's folder]")
    add("--valid_csv", type=Path, help="label file that chooses the epoch [valid.csv in CheXpert's folder]")
    add("--weight_decay", type=cli.non_negative_float, default=0.0, help="of Adam")
    cli.add_boolean(parser, "--augment", default=False, help="shift, turn, scale and re-expose the images")
    add("--wandb_project_name", default="", help="Weights & Biases project; empty: wandb is not even imported")
    add("--wandb_run_name", default="", help="its run")
    cli.add_boolean(parser, "--one_cycle", help="let the learning rate rise, then fall to zero; else it is constant")
    loop.add_options(parser, num_epochs=3, batch_size=16, lr=1e-4)
    cli.add_run_options(parser, shard_size=None)
    return parser


def labelled(path: Path, args: argparse.Namespace, *, augment: bool, scored: bool) -> LabelledImages:
    """The frontal images of a label file, cached. `scored`: DataError where no AUROC could be had from the labels."""
    frame = chexpert.frontal(chexpert.read_labels(path, constants.OBSERVATIONS, constants.ALIASES))
    if frame.empty:
        raise DataError(f"{path}: no frontal image in it")
    if scored and not any({0, 1} <= set(frame[task]) for task in constants.OBSERVATIONS):
        columns = ", ".join(constants.OBSERVATIONS)
        raise DataError(f"{path}: no column has both a 1 and a 0, so that no AUROC can choose an epoch: {columns}")
    images = ImageSet(constants.data_dir(), frame, csv=path)
    pixels = cached_pixels(images, constants.cache_dir(), args.image_size, args.num_workers)
    return LabelledImages(pixels, label_array(frame, constants.OBSERVATIONS), augment=augment)


def initialise(model: models.Classifier, weights: str) -> Path | None:
    """Load the backbone that `--weights` names; the head stays random."""
    if weights == "none":
        return None
    architecture = model.spec.architecture
    path = models.pretrained_backbone(architecture) if weights == "imagenet" else Path(weights)
    found, tensors = models.load_backbone(path)
    if found != architecture:
        raise UsageError(f"--weights {path} is a {found}, --architecture says {architecture}")
    head = models.HEADS[model.family].split(".")[0]
    models.load_exactly(model.network, tensors, path, but_for=(head,))
    return path


def main(args: argparse.Namespace) -> None:
    device = distributed.device(args.device)
    train_csv = args.train_csv or chexpert.split_csv(constants.data_dir(), "train")
    valid_csv = args.valid_csv or chexpert.split_csv(constants.data_dir(), "valid")
    three_way = args.uncertain == "multiclass"
    spec = models.ClassifierSpec(
        args.architecture, constants.OBSERVATIONS, three_way, args.image_size, args.normalisation
    )
    loop.seed_everything(args.seed)
    model = models.Classifier(spec)
    weights = initialise(model, args.weights)
    model.to(device)
    valid_set = labelled(valid_csv, args, augment=False, scored=True)
    train_set = labelled(train_csv, args, augment=args.augment, scored=False)

    def compute_loss(network, batch):
        logits = network(normalise(batch["image"], spec.normalisation))
        policy = {"uncertain": args.uncertain, "not_mentioned": args.not_mentioned}
        return losses.classification_loss(logits, batch["labels"], **policy), None

    def evaluate(network, tally):
        probabilities = predict(network, valid_set, args.batch_size, device)
        found = aurocs(probabilities, valid_set.labels, spec.tasks)
        if not found:
            raise DataError(f"{args.ckpt_path}: all probabilities of {valid_csv} became nan; lower --lr")
        return {"auroc": found, "mean_auroc": sum(found.values()) / len(found)}

    images = [train_set.pixels.path, valid_set.pixels.path]
    record = provenance.describe(vars(args), [train_csv, valid_csv, *images, weights], code=__file__)
    folder = args.ckpt_path.with_name(args.ckpt_path.name + ".training")
    wandb = tracking.Wandb(args.wandb_project_name, args.wandb_run_name, vars(args), folder)
    result = loop.fit(
        model,
        train_set,
        order=draws.shuffled(len(train_set), args.seed),
        compute_loss=compute_loss,
        optimizer=torch.optim.Adam(model.parameters(), args.lr, weight_decay=args.weight_decay),
        folder=folder,
        record=record,
        evaluate=evaluate,
        score=lambda found: found["mean_auroc"],
        save_best=lambda weights, found: save(args.ckpt_path, weights, spec),
        schedule=loop.one_cycle if args.one_cycle else None,
        begin=lambda resumed: wandb.start(resumed=resumed),
        track=wandb.log,
        device=device,
        **loop.options(args),
    )
    wandb.close()
    if not args.ckpt_path.is_file():
        raise DataError(f"{args.ckpt_path}: no longer there; train again with --resume none")
    if distributed.is_main():
        provenance.write(provenance.manifest_path(args.ckpt_path), record | {"best": result.metrics})
        print(f"{args.ckpt_path}: epoch {result.epoch}, mean AUROC {result.score:.3f}")


def save(path: Path, weights: dict, spec: models.ClassifierSpec) -> None:
    best = models.Classifier(spec)
    best.load_state_dict(weights)
    models.save_classifier(path, best)


if __name__ == "__main__":
    cli.run(main, build_parser)
