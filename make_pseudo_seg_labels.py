"""Stage 4: pseudo masks, from the saliency maps as they are and from a random walk that stops at boundaries.

    python make_pseudo_seg_labels.py --irn_best_model_name best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth \\
        --irn_pseudo_labels_save_dir $OBJ_EFFICIENCY_BASE_PATH/train_cams/ <folder of the run> --irn_is_training True
    torchrun --nproc_per_node 8 make_pseudo_seg_labels.py ...      the same, shared among 8 GPUs

Reads hdf5_files/train_set of the run folder and writes there pseudo_seg_labels_encoded_cams.json, which holds the masks
of stage 2, and pseudo_seg_labels_encoded_irnet.json. Killed and run again, it goes on where it was.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

import constants
from chexseg import (
    affinity,
    cli,
    data,
    distributed,
    hdf5_files,
    irnet,
    mask_files,
    masks,
    provenance,
    random_walk,
    shards,
    training,
)
from chexseg.errors import UsageError
from chexseg.saliency import SaliencyMaps


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add(
        "--irn_pseudo_labels_save_dir",
        nargs="+",
        metavar="DIR",
        help="run folder, in one word or two (folder of runs, run) [the default run]",
    )
    add(
        "--irn_best_model_name",
        default="best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth",
        help="boundary network in $OBJ_EFFICIENCY_BASE_PATH/weakly_supervised/saved_models, or a path",
    )
    cli.add_boolean(
        parser, "--irn_is_training", default=True, help="the images have labels; else the gate is probability"
    )
    add(
        "--gate",
        choices=("labels", "probability", "none"),
        default="labels",
        help="empty mask of the walk where the image's label says absent, where the classifier does, or nowhere",
    )
    cli.add_boolean(parser, "--uncertain_is_present", default=True, help="count labels of -1 as present")
    add("--gate_probability", type=cli.fraction, default=0.5, help="least probability of a mask, --gate probability")
    add("--csv_path", type=Path, help="labels for the gate [train.csv in CheXpert's folder]")
    add("--beta", type=cli.positive_float, default=5.0, help="power of the affinities")
    add("--exp_times", type=cli.non_negative_int, default=3, help="2^this steps of the walk")
    add("--radius", type=cli.positive_int, default=3, help="a step goes less far than this, on the stride-4 grid")
    add("--threshold", type=cli.fraction, default=0.6, help="foreground above this part of a score's maximum")
    add("--batch_size", type=cli.positive_int, default=16, help="images a forward pass, on each rank")
    add("--precision", choices=training.PRECISIONS, default="auto", help="auto: bf16 where the chip multiplies it")
    cli.add_run_options(parser)
    return parser


def run_folder(words: Sequence[str] | None) -> Path:
    """The seed's command has a blank in the path: two words mean one folder below the other."""
    if words is not None and len(words) > 2:
        raise UsageError(f"--irn_pseudo_labels_save_dir takes one or two words, got {len(words)}: {' '.join(words)}")
    return Path(*words) if words else constants.run_dir()


def present_findings(args: argparse.Namespace, run: Path, train_set) -> tuple[np.ndarray, list[Path]]:
    """(N, T) bool: which masks are not emptied by the gate; and the files that say so."""
    ids = hdf5_files.names(train_set)
    gate = args.gate if args.irn_is_training or args.gate != "labels" else "probability"
    if gate == "none":
        return np.ones((len(ids), len(train_set.tasks)), bool), []
    if gate == "probability":
        maps = SaliencyMaps(run)
        rows = maps.task_rows(train_set.tasks)
        found = np.stack([maps[name]["probabilities"][rows] for name in ids])
        return found >= args.gate_probability, [maps.path] if maps.path.is_file() else []
    path = args.csv_path or data.split_csv(constants.data_dir(), "train")
    frame = data.read_labels(path, constants.OBSERVATIONS, constants.ALIASES)
    return data.present(frame, ids, train_set.tasks, uncertain=args.uncertain_is_present), [path]


def threshold(train_set, ids: Sequence[str], row: int) -> tuple[str, dict]:
    """The masks of stage 2, from the maps in train_set."""
    maps, size = train_set["cxr_cams"][row], train_set["cxr_images"].shape[1:]
    found = masks.threshold_maps(maps, size, network_size=size)
    return ids[row], dict(zip(train_set.tasks, masks.encode(found), strict=True))


def main(args: argparse.Namespace) -> None:
    run, device = run_folder(args.irn_pseudo_labels_save_dir), distributed.device(args.device)
    train_set = hdf5_files.open_train_set(run)
    ids, size = hdf5_files.names(train_set), train_set["cxr_images"].shape[-1]
    weights = Path(args.irn_best_model_name)
    weights = weights if weights.is_file() else constants.irnet_dir() / weights
    model, spec = irnet.load(weights)
    model.to(device)
    present, gates = present_findings(args, run, train_set)
    walk = {"beta": args.beta, "exp_times": args.exp_times, "radius": args.radius, "threshold": args.threshold}

    def walked(rows: Sequence[int]) -> Iterator[tuple[str, dict]]:
        for start in range(0, len(rows), args.batch_size):
            some = list(rows[start : start + args.batch_size])
            # Batches of one size, so that no mask depends on how the images were divided.
            filled = some + some[:1] * (args.batch_size - len(some))
            pixels = torch.from_numpy(np.stack([train_set["cxr_images"][r] for r in filled])).to(device)
            with torch.inference_mode(), training.autocast(device, args.precision):
                boundary = random_walk.mirrored_boundary(model, data.normalise(pixels, spec.normalisation))[: len(some)]
            maps = torch.from_numpy(np.stack([train_set["cxr_cams"][r] for r in some])).to(device)
            allowed = torch.from_numpy(present[some]).to(device)
            found = random_walk.pseudo_masks(maps, boundary, allowed, (size, size), **walk).cpu().numpy()
            for row, stack in zip(some, found, strict=True):
                yield ids[row], dict(zip(train_set.tasks, masks.encode(stack), strict=True))

    def build(kind: str, process, record: dict) -> None:
        shards.build(
            run / f"pseudo_seg_labels_encoded_{kind}.json",
            range(len(ids)),
            process=process,
            write=mask_files.write_part,
            merge=mask_files.merge_parts,
            record=record,
            shard_size=args.shard_size,
            describe=f"pseudo masks ({kind})",
        )

    plain = partial(threshold, train_set, ids)
    build(
        "cams",
        lambda rows: shards.ordered_map(plain, rows, args.num_workers),
        provenance.describe({}, [train_set.path], [hdf5_files, mask_files, masks]),
    )
    code = [affinity, data, hdf5_files, irnet, mask_files, masks, random_walk]
    arguments = vars(args) | {"batch_size": None, "irn_best_model_name": None, "irn_pseudo_labels_save_dir": None}
    build("irnet", walked, provenance.describe(arguments, [train_set.path, weights, *gates], code))


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    cli.run(main, build_parser)
