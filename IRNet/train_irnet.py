"""Stage 3c: a boundary network that explains the relation labels.

    cd IRNet && python train_irnet.py --lr 0.01 --weight_decay 0.0 --num_epochs 5
    python IRNet/train_irnet.py --map_dir <run folder> --backbone_weights classifier.ckpt --radius 5
    torchrun --nproc_per_node 8 IRNet/train_irnet.py ...       the same, shared among 8 GPUs

Reads hdf5_files/ of the run folder. The network of the lowest mean training loss is saved as
$OBJ_EFFICIENCY_BASE_PATH/weakly_supervised/saved_models/best_ir_model_hdf5_lr_<lr>_weight_decay_<weight_decay>.pth;
a folder of that name without `best_` holds args.json, log.jsonl and checkpoint.pt, from which the same command goes on.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path

import constants
from chexseg.classifier.choices import ARCHITECTURES
from chexseg.errors import DataError
from chexseg.runtime import cli, provenance
from chexseg.training.options import RunOptions
from chexseg.training.run_record import Run


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
    add("--backbone", choices=ARCHITECTURES, help="architecture [that of the weights; resnet50 for imagenet]")
    add("--weight_decay", type=cli.non_negative_float, default=0.0, help="of the SGD with momentum 0.9")
    add("--radius", type=cli.positive_int, default=10, help="pairs of pixels nearer than this on the stride-4 grid")
    add("--crop_size", type=cli.positive_int, help="side of the squares cut from scaled images [the images' size]")
    add("--scales", type=cli.positive_float, nargs=2, default=(0.5, 1.5), metavar=("LOW", "HIGH"), help="random scale")
    add("--wandb_project_name", default="", help="also log to this Weights & Biases project (offline without a login)")
    add("--wandb_run_name", default="", help="name of the run there")
    RunOptions.add_to(parser, num_epochs=5, batch_size=16, lr=0.01)
    return parser


def main(args: argparse.Namespace) -> None:
    from chexseg.data import hdf5_files
    from chexseg.irnet import backbones

    map_dir = args.map_dir or constants.run_dir()
    train_set, labels = hdf5_files.open_pair(map_dir)
    crop = args.crop_size or train_set["cxr_images"].shape[-1]
    name = f"ir_model_hdf5_lr_{args.lr}_weight_decay_{args.weight_decay}"
    best, folder = constants.irnet_dir() / f"best_{name}.pth", constants.irnet_dir() / name
    wandb = {"wandb_project": args.wandb_project_name, "wandb_run_name": args.wandb_run_name}
    run = Run(folder, {}, best=(best,), record_path=folder / "args.json", **wandb)
    architecture = args.backbone or run.recorded_argument("backbone")
    decided = {**vars(args), "backbone_weights": None, "crop_size": crop}
    run = run.with_record(provenance.describe({**decided, "backbone": architecture}, code=__file__))
    if run.looks_finished(args.resume):
        weights = backbones.backbone_of_finished(args.backbone_weights, args.backbone, map_dir)
        with suppress(DataError):  # what is wrong, if anything, is said below
            if weights and run.with_inputs([train_set.path, labels.path, weights]).finished_before():
                return

    from chexseg.classifier.saliency_store import STORE
    from chexseg.data import leak_guard
    from chexseg.irnet import boundary_net
    from chexseg.irnet.dataset import RelationSet
    from chexseg.irnet.training import BoundaryTrainer
    from chexseg.runtime import distributed
    from chexseg.training import loop

    device, options = distributed.device(args.device), RunOptions.of(vars(args))
    dataset = RelationSet(train_set, labels, crop, tuple(sorted(args.scales)))
    weights = backbones.find_backbone(args.backbone_weights, args.backbone, map_dir)
    architecture, normalisation, tensors = boundary_net.read_backbone(weights, args.backbone)
    spec = boundary_net.BoundarySpec(architecture, normalisation)
    loop.seed_everything(args.seed)
    model = boundary_net.build(spec)
    boundary_net.load_backbone(model, tensors, weights)
    model.to(device)
    trainer = BoundaryTrainer(
        model, spec, dataset, best=best, options=options, radius=args.radius, weight_decay=args.weight_decay
    )
    record = provenance.describe(
        {**decided, "backbone": architecture}, [train_set.path, labels.path, weights], code=__file__
    )
    leak_guard.inherit(best, [weights, map_dir / STORE])
    loop.fit(trainer, run.with_record(record, backbone_weights=str(weights)), options)


if __name__ == "__main__":
    cli.run(main, build_parser)
