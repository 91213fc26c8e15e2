"""Stage 4: pseudo masks, by a random walk of the saliency maps that IRNet's boundaries stop.

    python make_pseudo_seg_labels.py \\
        --irn_pseudo_labels_save_dir $OBJ_EFFICIENCY_BASE_PATH/train_cams/ <name of the run folder> \\
        --irn_best_model_name best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth --irn_is_training True
    torchrun --nproc_per_node 8 make_pseudo_seg_labels.py ...        the same, shared among 8 GPUs

Writes pseudo_seg_labels_encoded_irnet.json into the run folder, and pseudo_seg_labels_encoded_cams.json, the masks of
localization_eval/pred_segmentation.py, beside it. Masks have the size of the network's input.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

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
)
from chexseg.errors import DataError
from chexseg.saliency import SaliencyMaps

GATES = ("labels", "probability", "none")


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--irn_pseudo_labels_save_dir", nargs="+", help="run folder, in one word or two [the default run]")
    add("--irn_best_model_name", required=True, help="boundary network: a name in weakly_supervised/saved_models")
    cli.add_boolean(parser, "--irn_is_training", default=True, help="training images, from HDF5; else any run's")
    add("--gate", choices=GATES, default="labels", help="empty masks for absent findings; none = the original")
    add("--gate_probability", type=cli.fraction, default=0.5, help="with --gate probability: absent below it")
    cli.add_boolean(parser, "--uncertain_is_present", default=True, help="with --gate labels: count -1 as present")
    add("--csv_path", type=Path, help="labels for --gate labels [train.csv, or valid.csv, in CheXpert's folder]")
    add("--beta", type=cli.positive_float, default=5.0, help="power of the affinity")
    add("--exp_times", type=cli.non_negative_int, default=3, help="the walk has 2^this steps")
    add("--radius", type=cli.positive_int, default=3, help="of a step, pixels of the stride-4 grid")
    add("--threshold", type=cli.fraction, default=0.6, help="foreground above this share of the maximum")
    add("--image_size", type=cli.positive_int, default=320, help="without --irn_is_training: side of the input")
    add("--batch_size", type=cli.positive_int, default=16, help="images a forward pass, on each rank")
    cli.add_run_options(parser)
    return parser


def image_reader(args: argparse.Namespace, run: Path, maps: SaliencyMaps):
    """The ids to process, a function from an id to its (S, S) image, and the file that decides them."""
    if args.irn_is_training:
        train_set = hdf5_files.open_train_set(run)
        ids = hdf5_files.names(train_set)
        rows = {name: row for row, name in enumerate(ids)}
        return ids, lambda name: train_set["cxr_images"][rows[name]], train_set.path
    folder = constants.data_dir()
    return maps.ids, lambda n: data.resize_square(data.read_image(data.find_image(folder, n)), args.image_size), None


def gate(args: argparse.Namespace, ids: Sequence[str], tasks: Sequence[str], maps: SaliencyMaps):
    """A function from an id to (T,) bool, the findings that may have a mask, and the file that says so."""
    if args.gate == "none":
        return lambda name: np.ones(len(tasks), bool), None
    if args.gate == "probability":
        rows = maps.task_rows(tasks)
        return lambda name: maps[name]["probabilities"][rows] >= args.gate_probability, None
    split = "train" if args.irn_is_training else "valid"
    path = args.csv_path or data.split_csv(constants.data_dir(), split)
    frame = data.read_labels(path, constants.OBSERVATIONS, constants.ALIASES)
    present = data.present(frame, ids, tasks, uncertain=args.uncertain_is_present)
    return dict(zip(ids, present, strict=True)).__getitem__, path


def main(args: argparse.Namespace) -> None:
    run = Path(*args.irn_pseudo_labels_save_dir) if args.irn_pseudo_labels_save_dir else constants.run_dir()
    tasks, device = constants.LOCALIZATION_TASKS, distributed.device(args.device)
    network = Path(args.irn_best_model_name)
    network = network if network.is_absolute() else constants.irnet_dir() / network
    model, spec = irnet.load(network)
    model.to(device)
    maps = SaliencyMaps(run)
    rows = maps.task_rows(tasks)
    ids, read, images = image_reader(args, run, maps)
    allowed, labels = gate(args, ids, tasks, maps)

    @torch.no_grad()
    def process(names: Sequence[str]) -> Iterator[tuple[str, dict]]:
        for start in range(0, len(names), args.batch_size):
            some = list(names[start : start + args.batch_size])
            # Every batch has the same shape, so that a mask does not depend on how the images were divided.
            padded = some + some[:1] * (args.batch_size - len(some))
            pixels = torch.from_numpy(np.stack([read(n) for n in padded])).to(device)
            cams = torch.from_numpy(np.stack([maps[n]["maps"][rows] for n in padded])).to(device)
            keep = torch.from_numpy(np.stack([allowed(n) for n in padded])).to(device)
            boundary = random_walk.mirrored_boundary(model, data.normalise(pixels, spec.normalisation))
            cams = F.interpolate(cams * keep[..., None, None], boundary.shape[2:], mode="bilinear", align_corners=False)
            cams = cams / cams.amax((2, 3), keepdim=True).clamp(min=torch.finfo(cams.dtype).tiny)
            scores = random_walk.propagate(cams, boundary, beta=args.beta, exp_times=args.exp_times, radius=args.radius)
            found = random_walk.masks_from_scores(scores, pixels.shape[-2:], threshold=args.threshold)
            for name, stack in zip(some, found.cpu().numpy(), strict=False):
                yield name, dict(zip(tasks, masks.encode(stack), strict=True))

    inputs = [network, images, labels, maps.path if maps.path.is_file() else None]
    code = [affinity, random_walk, irnet, masks, mask_files, data]
    output = {"write": mask_files.write_part, "merge": mask_files.merge_parts, "shard_size": args.shard_size}
    shards.build(
        run / "pseudo_seg_labels_encoded_irnet.json",
        ids,
        process=process,
        record=provenance.describe(vars(args) | {"irn_pseudo_labels_save_dir": None}, inputs, code),
        describe="pseudo masks",
        **output,
    )
    thresholded = run / "seg_labels_encoded.json"
    if not thresholded.is_file():
        raise DataError(f"{thresholded}: no such file; make it with localization_eval/pred_segmentation.py")
    stage2 = mask_files.MaskFile(thresholded)
    shards.build(
        run / "pseudo_seg_labels_encoded_cams.json",
        ids,
        process=lambda names: ((name, stage2[name]) for name in names),
        record=provenance.describe({}, [thresholded], [mask_files]),
        describe="threshold masks",
        **output,
    )


if __name__ == "__main__":
    cli.run(main, build_parser)
