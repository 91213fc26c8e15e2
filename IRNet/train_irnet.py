"""Stage 3c: train IRNet's boundary network on inter-pixel relation labels.

    cd IRNet && python train_irnet.py --lr 0.01 --weight_decay 0.0 --num_epochs 5
    torchrun --nproc_per_node 8 IRNet/train_irnet.py ...        the same on 8 GPUs

Reads hdf5_files/ of the run folder; writes the epoch of the lowest mean training loss to
$OBJ_EFFICIENCY_BASE_PATH/weakly_supervised/saved_models/best_ir_model_hdf5_lr_<lr>_weight_decay_<weight decay>.pth, and
log.jsonl and checkpoint.pt, from which a killed run goes on, to the folder of that name.
"""

import argparse
from pathlib import Path

import torch

import constants
from chexseg import (
    affinity,
    cli,
    data,
    distributed,
    draws,
    hdf5_files,
    irnet,
    models,
    provenance,
    relation_data,
    tracking,
    training,
)
from chexseg.errors import DataError, UsageError


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--map_dir", type=Path, help="run folder [$OBJ_EFFICIENCY_BASE_PATH/train_cams/" + constants.MODEL_NAME + "]")
    add("--backbone", choices=models.ARCHITECTURES, help="frozen network [resnet50, or what the weights are]")
    add("--backbone_weights", default="imagenet", help="imagenet (torchvision's, in torch's cache), or a checkpoint")
    add("--weight_decay", type=cli.non_negative_float, default=0.0, help="of SGD")
    add("--crop_size", type=cli.positive_int, help="side of a training crop [that of the images]")
    add("--radius", type=cli.positive_int, default=10, help="reach of a pixel pair, on the stride-4 grid")
    add("--wandb_project_name", default="", help="Weights & Biases project; empty: wandb is not even imported")
    add("--wandb_run_name", default="", help="its run")
    training.add_options(parser, num_epochs=3, batch_size=16, lr=0.01)
    cli.add_run_options(parser, shard_size=None)
    return parser


def polynomial(step: int, steps: int) -> float:
    """Ahn et al.'s schedule of the learning rate."""
    return (1 - step / steps) ** 0.9


def main(args: argparse.Namespace) -> None:
    run, device = args.map_dir or constants.run_dir(), distributed.device(args.device)
    train_set, ir_labels = hdf5_files.open_train_set(run), hdf5_files.open_ir_labels(run)
    if len(ir_labels["ir_labels"]) != len(train_set["cxr_images"]) or ir_labels.tasks != train_set.tasks:
        raise DataError(f"{ir_labels.path}: not made from {train_set.path}; run IRNet/cam_to_ir_label_hdf5.py again")
    if args.backbone_weights == "imagenet":
        weights = models.pretrained_backbone(args.backbone or "resnet50")
    else:
        weights = Path(args.backbone_weights)
    architecture, normalisation, tensors = irnet.read_backbone(weights, args.backbone)
    size = args.crop_size or train_set["cxr_images"].shape[-1]
    if args.radius >= -(-size // irnet.STRIDE):
        raise UsageError(f"--radius {args.radius} is as large as the grid of a crop of {size} pixels")
    spec = irnet.BoundarySpec(architecture, normalisation)
    training.seed_everything(args.seed)
    model = irnet.build(spec)
    irnet.load_backbone(model, tensors, weights)
    model.to(device)

    def compute_loss(network, batch):
        logits = network(data.normalise(batch["image"], normalisation))
        return affinity.relation_loss(logits, batch["labels"], args.radius), None

    name = f"best_ir_model_hdf5_lr_{args.lr}_weight_decay_{args.weight_decay}"
    folder, output = constants.irnet_dir() / name, constants.irnet_dir() / f"{name}.pth"
    code = [affinity, irnet, relation_data, hdf5_files, training, draws]
    record = provenance.describe(
        vars(args) | {"backbone_weights": None}, [train_set.path, ir_labels.path, weights], code
    )
    dataset = relation_data.RelationCrops(train_set, ir_labels, size)
    trained = [p for p in model.parameters() if p.requires_grad]
    wandb = tracking.Wandb(args.wandb_project_name, args.wandb_run_name, vars(args), folder)
    result = training.fit(
        model,
        dataset,
        order=draws.shuffled(len(dataset), args.seed),
        compute_loss=compute_loss,
        optimizer=torch.optim.SGD(trained, args.lr, momentum=0.9, weight_decay=args.weight_decay),
        folder=folder,
        record=record,
        save_best=lambda weights, found: irnet.save(output, weights, spec, found),
        schedule=polynomial,
        track=wandb.log,
        device=device,
        **training.options(args),
    )
    wandb.close()
    if distributed.is_main():
        provenance.write(provenance.manifest_path(output), record | {"best": result.metrics})
        print(f"{output}: epoch {result.epoch}, mean training loss {-result.score:.4f}")


if __name__ == "__main__":
    cli.run(main, build_parser)
