"""Stage 3b: inter-pixel relation labels from saliency maps by a dense CRF.

    cd IRNet && python cam_to_ir_label_hdf5.py
    torchrun --nproc_per_node 8 IRNet/cam_to_ir_label_hdf5.py       the same, shared among 8 processes

Reads hdf5_files/train_set of the run folder and writes its hdf5_files/ir_labels, (N, 10, S, S) uint8: 1 foreground,
0 background, 255 ignore. A finding that the image's label says is absent has no label anywhere.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

import constants
from chexseg.data import chexpert, hdf5_files
from chexseg.irnet import crf
from chexseg.runtime import cli, distributed, provenance, shards
from chexseg.runtime.workers import ordered_map


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


def label(train_set, present: np.ndarray, constants_of_crf: dict, row: int) -> np.ndarray:
    """Labels (T, S, S) of one image on the CPU: only the findings that are present cost anything."""
    image = torch.from_numpy(train_set["cxr_images"][row])
    labels = np.full((len(present[row]), *image.shape), hdf5_files.IGNORE, np.uint8)
    tasks = np.flatnonzero(present[row])
    if tasks.size:
        maps = torch.from_numpy(train_set["cxr_cams"][row][tasks])
        labels[tasks] = crf.relation_labels(image, maps, **constants_of_crf).numpy()
    return labels


def label_batches(train_set, present, constants_of_crf: dict, rows: Sequence[int], size: int, device) -> Iterator:
    """The same on a GPU, a batch of images at once; absent findings ride along as empty maps."""
    for start in range(0, len(rows), size):
        some = list(rows[start : start + size])
        images = torch.from_numpy(np.stack([train_set["cxr_images"][r] for r in some])).to(device)
        maps = torch.from_numpy(np.stack([train_set["cxr_cams"][r] for r in some])).to(device)
        maps[~torch.from_numpy(present[some]).to(device)] = 0
        yield from crf.relation_labels(images, maps, **constants_of_crf).cpu().numpy()


def main(args: argparse.Namespace) -> None:
    run, device = args.map_dir or constants.run_dir(), distributed.device(args.device)
    train_set = hdf5_files.open_train_set(run)
    ids, size = hdf5_files.names(train_set), train_set["cxr_images"].shape[-1]
    path = args.csv_path or chexpert.split_csv(constants.data_dir(), "train")
    frame = chexpert.read_labels(path, constants.OBSERVATIONS, constants.ALIASES)
    present = chexpert.present(frame, ids, train_set.tasks, uncertain=args.uncertain_is_present)
    scale = size / 320
    of_crf = {
        "foreground": args.foreground,
        "possible": args.possible,
        "bilateral_sxy": args.bilateral_sxy * scale,
        "gaussian_sxy": args.gaussian_sxy * scale,
    }

    def process(rows: Sequence[int]) -> Iterator[np.ndarray]:
        if device.type == "cuda":
            return label_batches(train_set, present, of_crf, rows, args.batch_size, device)
        return ordered_map(partial(label, train_set, present, of_crf), rows, args.num_workers)

    shards.build(
        run / hdf5_files.IR_LABELS,
        range(len(ids)),
        process=process,
        shard_format=hdf5_files.LabelShards(train_set.tasks, len(ids), size),
        record=provenance.describe(vars(args) | {"batch_size": None}, [train_set.path, path], code=__file__),
        shard_size=args.shard_size,
        label="relation labels",
    )


if __name__ == "__main__":
    cli.run(main, build_parser)
