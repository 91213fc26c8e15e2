"""Stage 3b: inter-pixel relation labels from saliency maps by a dense CRF.

    cd IRNet && python cam_to_ir_label_hdf5.py
    torchrun --nproc_per_node 8 IRNet/cam_to_ir_label_hdf5.py       the same, shared among 8 processes

Reads hdf5_files/train_set of the run folder and writes its hdf5_files/ir_labels, (N, 10, S, S) uint8: 1 foreground,
0 background, 255 ignore. A finding that the image's label says is absent has no label anywhere.
"""

import argparse
from functools import partial
from pathlib import Path

import constants
from chexseg.runtime import cli


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--map_dir", type=Path, help="run folder [$OBJ_EFFICIENCY_BASE_PATH/train_cams/" + constants.MODEL_NAME + "]")
    add("--csv_path", type=Path, help="labels that say what is absent [train.csv in CheXpert's folder]")
    add("--foreground", type=cli.fraction, default=0.25, help="of a map's maximum: surely foreground above it")
    add("--possible", type=cli.fraction, default=0.1, help="of a map's maximum: surely background below it")
    add("--bilateral_sxy", type=cli.positive_float, default=50.0, help="reach of the bilateral kernel, pixels at 320")
    add("--gaussian_sxy", type=cli.positive_float, default=3.0, help="reach of the smoothness kernel, pixels at 320")
    cli.add_boolean(parser, "--uncertain_is_present", default=True, help="count labels of -1 as present")
    add("--batch_size", type=cli.positive_int, default=16, help="images at once on a GPU")
    cli.add_run_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    from chexseg.data import chexpert, hdf5_files
    from chexseg.irnet import stages
    from chexseg.irnet.gates import LabelGate
    from chexseg.runtime import provenance, shards

    run = args.map_dir or constants.run_dir()
    train_set = hdf5_files.open_train_set(run)
    ids = hdf5_files.names(train_set)
    path = args.csv_path or chexpert.split_csv(constants.data_dir(), "train")
    options = {name: getattr(args, name) for name in ("foreground", "possible", "bilateral_sxy", "gaussian_sxy")}
    uncertain = "present" if args.uncertain_is_present else "absent"
    shards.build(
        run / hdf5_files.IR_LABELS,
        range(len(ids)),
        process=partial(
            stages.relation_labels,
            train_set=train_set,
            ids=ids,
            gate=LabelGate(path, constants.OBSERVATIONS, constants.ALIASES, uncertain),
            options=options,
            device=args.device,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
        ),
        shard_format=hdf5_files.LabelShards(train_set.tasks, len(ids), train_set["cxr_images"].shape[-1]),
        record=provenance.describe(vars(args) | {"batch_size": None}, [train_set.path, path], code=__file__),
        shard_size=args.shard_size,
        label="relation labels",
    )


if __name__ == "__main__":
    cli.run(main, build_parser)
