"""Stage 3c: a boundary network that explains the relation labels.

    cd IRNet && python train_irnet.py --lr 0.01 --weight_decay 0.0 --num_epochs 5
    python IRNet/train_irnet.py --map_dir <run folder> --backbone_weights classifier.ckpt --radius 5
    torchrun --nproc_per_node 8 IRNet/train_irnet.py ...       the same, shared among 8 GPUs

Reads hdf5_files/ of the run folder. The network of the lowest mean training loss is saved as
$OBJ_EFFICIENCY_BASE_PATH/weakly_supervised/saved_models/best_ir_model_hdf5_lr_<lr>_weight_decay_<weight_decay>.pth;
a folder of that name without `best_` holds args.json, log.jsonl and checkpoint.pt, from which the same command goes on.
"""

import argparse
import json
import logging
from pathlib import Path

import torch

import constants
from chexseg.classifier import models, saliency_store
from chexseg.data import hdf5_files
from chexseg.data.images import normalise
from chexseg.errors import DataError
from chexseg.irnet import affinity, boundary_net
from chexseg.irnet.dataset import RelationSet
from chexseg.runtime import cli, distributed, provenance
from chexseg.training import draws, loop, tracking

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--map_dir", type=Path, help="run folder [$OBJ_EFFICIENCY_BASE_PATH/train_cams/" + constants.MODEL_NAME + "]")
    add(
        "--backbone_weights",
        default="auto",
        help="imagenet (torchvision's, in torch's cache), a checkpoint of a classifier, or auto: ImageNet's ResNet-50 "
        "where it is there, else the classifier that made the maps",
    )
    add("--backbone", choices=models.ARCHITECTURES, help="architecture [that of the weights; resnet50 for imagenet]")
    add("--weight_decay", type=cli.non_negative_float, default=0.0, help="of the SGD with momentum 0.9")
    add("--radius", type=cli.positive_int, default=10, help="pairs of pixels nearer than this on the stride-4 grid")
    add("--crop_size", type=cli.positive_int, help="side of the squares cut from scaled images [the images' size]")
    add("--scales", type=cli.positive_float, nargs=2, default=(0.5, 1.5), metavar=("LOW", "HIGH"), help="random scale")
    add("--wandb_project_name", default="", help="also log to this Weights & Biases project (offline without a login)")
    add("--wandb_run_name", default="", help="name of the run there")
    loop.add_options(parser, num_epochs=5, batch_size=16, lr=0.01)
    cli.add_run_options(parser, shard_size=None)
    return parser


def find_backbone(args: argparse.Namespace, run: Path) -> Path:
    """The file that `--backbone_weights` means."""
    if args.backbone_weights not in ("auto", "imagenet"):
        return Path(args.backbone_weights)
    try:
        return models.pretrained_backbone(args.backbone or "resnet50")
    except DataError as missing:
        if args.backbone_weights == "imagenet":
            raise
        maker = classifier_of(run)
        if maker is None or not maker.is_file():
            raise DataError(f"{missing}; or name a classifier with --backbone_weights") from missing
        log.info("no ImageNet weights in torch's cache: the backbone is %s", maker)
        return maker


def classifier_of(run: Path) -> Path | None:
    """The checkpoint that made the run's saliency maps, as their manifest has it."""
    try:
        manifest = json.loads(provenance.manifest_path(run / saliency_store.STORE).read_text())
        return Path(manifest["paths"]["ckpt_path"])
    except (OSError, ValueError, KeyError):
        return None


def main(args: argparse.Namespace) -> None:
    run, device = args.map_dir or constants.run_dir(), distributed.device(args.device)
    train_set, labels = hdf5_files.open_train_set(run), hdf5_files.open_ir_labels(run)
    if len(train_set["cxr_images"]) != len(labels["ir_labels"]) or train_set.tasks != labels.tasks:
        raise DataError(f"{labels.path}: not of the images in {train_set.path}; run cam_to_ir_label_hdf5.py again")
    dataset = RelationSet(
        train_set, labels, args.crop_size or train_set["cxr_images"].shape[-1], tuple(sorted(args.scales))
    )
    weights = find_backbone(args, run)
    architecture, normalisation, tensors = boundary_net.read_backbone(weights, args.backbone)
    spec = boundary_net.BoundarySpec(architecture, normalisation)
    loop.seed_everything(args.seed)
    model = boundary_net.build(spec)
    boundary_net.load_backbone(model, tensors, weights)
    model.to(device)

    name = f"ir_model_hdf5_lr_{args.lr}_weight_decay_{args.weight_decay}"
    best, folder = constants.irnet_dir() / f"best_{name}.pth", constants.irnet_dir() / name
    record = provenance.describe(
        vars(args) | {"backbone_weights": None, "backbone": architecture, "crop_size": dataset.crop},
        [train_set.path, labels.path, weights],
        code=__file__,
    )
    wandb = tracking.Wandb(args.wandb_project_name, args.wandb_run_name, vars(args), folder)

    def begin(resumed: bool) -> None:
        provenance.write(folder / "args.json", record | {"backbone_weights": str(weights)})
        wandb.start(resumed=resumed)

    def compute_loss(network: torch.nn.Module, batch: dict) -> tuple[torch.Tensor, None]:
        logits = network(normalise(batch["image"], spec.normalisation))
        return affinity.relation_loss(logits, batch["labels"], args.radius), None

    result = loop.fit(
        model,
        dataset,
        order=draws.shuffled(len(dataset), args.seed),
        compute_loss=compute_loss,
        optimizer=torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad],
            lr=args.lr,
            momentum=0.9,
            weight_decay=args.weight_decay,
        ),
        folder=folder,
        record=record,
        save_best=lambda weights, metrics: boundary_net.save(best, weights, spec, metrics),
        schedule=lambda step, steps: (1 - step / steps) ** 0.9,
        begin=begin,
        track=wandb.log,
        device=device,
        **loop.options(args),
    )
    wandb.close()
    if not best.is_file():
        raise DataError(f"{best}: no longer there; train again with --resume none")
    log.info("best epoch %d: mean training loss %.4f", result.epoch, -result.score)
    log.info("%s", best)


if __name__ == "__main__":
    cli.run(main, build_parser)
