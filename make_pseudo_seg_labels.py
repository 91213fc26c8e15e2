"""Stage 4: pseudo masks, from the saliency maps as they are and from a random walk that stops at boundaries.

    python make_pseudo_seg_labels.py --irn_best_model_name best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth \\
        --irn_pseudo_labels_save_dir $OBJ_EFFICIENCY_BASE_PATH/train_cams/ <folder of the run> --irn_is_training True
    torchrun --nproc_per_node 8 make_pseudo_seg_labels.py ...      the same, shared among 8 GPUs

Reads hdf5_files/train_set of the run folder and writes there pseudo_seg_labels_encoded_cams.json, which holds the masks
of stage 2, and pseudo_seg_labels_encoded_irnet.json. With --irn_is_training False the run is of another set: images are
read from CheXpert's folder and masks have their size. Killed and run again, it goes on where it was.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

import constants
from chexseg.classifier import saliency_masks, saliency_store
from chexseg.data import chexpert, mask_files, rle
from chexseg.data.images import normalise
from chexseg.errors import UsageError
from chexseg.irnet import boundary_net, random_walk
from chexseg.irnet.dataset import OtherFilms, TrainFilms
from chexseg.runtime import cli, distributed, provenance, shards
from chexseg.runtime.workers import ordered_map
from chexseg.training import draws, loop


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
    cli.add_boolean(parser, "--irn_is_training", default=True, help="the run is of the training set")
    add(
        "--gate",
        choices=("labels", "probability", "none"),
        default="labels",
        help="empty mask of the walk where the image's label says absent (without labels: where the classifier does), "
        "where the classifier does, or nowhere",
    )
    cli.add_boolean(parser, "--uncertain_is_present", default=True, help="count labels of -1 as present")
    add("--gate_probability", type=cli.fraction, default=0.5, help="least probability of a mask, --gate probability")
    add("--csv_path", type=Path, help="labels for the gate [the training set's in CheXpert's folder]")
    add("--beta", type=cli.positive_float, default=5.0, help="power of the affinities")
    add("--exp_times", type=cli.non_negative_int, default=3, help="2^this steps of the walk")
    add("--radius", type=cli.positive_int, default=3, help="a step goes less far than this, on the stride-4 grid")
    add("--threshold", type=cli.fraction, default=0.6, help="foreground above this part of a score's maximum")
    add("--batch_size", type=cli.positive_int, default=16, help="images a forward pass, on each rank")
    add("--image_size", type=cli.positive_int, help="side of the network's input, --irn_is_training False [the maps']")
    add("--precision", choices=loop.PRECISIONS, default="auto", help="auto: bf16 where the chip multiplies it")
    cli.add_run_options(parser)
    return parser


def run_folder(words: Sequence[str] | None) -> Path:
    """The seed's command has a blank in the path: two words mean one folder below the other."""
    if words is not None and len(words) > 2:
        raise UsageError(f"--irn_pseudo_labels_save_dir takes one or two words, got {len(words)}: {' '.join(words)}")
    return Path(*words) if words else constants.run_dir()


def present_findings(args: argparse.Namespace, run: Path, films) -> tuple[np.ndarray, list[Path]]:
    """(N, T) bool: which masks are not emptied by the gate; and the files that say so."""
    if args.gate == "none":
        return np.ones((len(films.ids), len(films.tasks)), bool), []
    if args.gate == "probability" or not (args.irn_is_training or args.csv_path):
        maps = saliency_store.open_maps(run)
        return maps.probabilities(films.ids)[:, maps.task_rows(films.tasks)] >= args.gate_probability, saved(maps.path)
    path = args.csv_path or chexpert.split_csv(constants.data_dir(), "train")
    frame = chexpert.read_labels(path, constants.OBSERVATIONS, constants.ALIASES)
    return chexpert.present(frame, films.ids, films.tasks, uncertain=args.uncertain_is_present), [path]


def encoded(films, row: int, stack: np.ndarray) -> tuple[str, dict]:
    return films.ids[row], dict(zip(films.tasks, rle.encode(stack), strict=True))


def threshold(films, row: int) -> tuple[str, dict]:
    """The masks of stage 2."""
    film = films(row)
    return encoded(films, row, saliency_masks.threshold_maps(film.maps, film.size, network_size=film.pixels.shape))


def main(args: argparse.Namespace) -> None:
    run, device = run_folder(args.irn_pseudo_labels_save_dir), distributed.device(args.device)
    if args.irn_is_training:
        films = TrainFilms(run)
    else:
        films = OtherFilms(run, constants.LOCALIZATION_TASKS, constants.data_dir(), args.image_size)
    weights = Path(args.irn_best_model_name)
    weights = weights if weights.is_file() else constants.irnet_dir() / weights
    model, spec = boundary_net.load(weights)
    model.to(device)
    present, gates = present_findings(args, run, films)
    walk = {"beta": args.beta, "exp_times": args.exp_times, "radius": args.radius}

    def walked(rows: Sequence[int]) -> Iterator[tuple[str, dict]]:
        stream = ordered_map(films, rows, args.num_workers)
        for batch in draws.fixed_slots(rows, args.batch_size):
            places = [place for place, row in enumerate(batch) if row is not None]
            some = [(batch[place], next(stream)) for place in places]
            filled = [np.zeros_like(some[0][1].pixels)] * args.batch_size
            for place, (_, film) in zip(places, some, strict=True):
                filled[place] = film.pixels
            pixels = torch.from_numpy(np.stack(filled)).to(device)
            with torch.inference_mode(), loop.autocast(device, args.precision):
                boundary = random_walk.mirrored_boundary(model, normalise(pixels, spec.normalisation))[places]
            maps = torch.from_numpy(np.stack([film.maps for _, film in some])).to(device)
            allowed = torch.from_numpy(present[[row for row, _ in some]]).to(device)
            scores = random_walk.pseudo_scores(maps, boundary, allowed, **walk)
            # Masks of a training set are of one size; of originals one image fills much of a small GPU.
            step = len(some) if args.irn_is_training else 1
            for start in range(0, len(some), step):
                group = some[start : start + step]
                stacks = random_walk.masks_from_scores(
                    scores[start : start + step], group[0][1].size, threshold=args.threshold
                )
                for (row, _), stack in zip(group, stacks.cpu().numpy(), strict=True):
                    yield encoded(films, row, stack)

    def build(kind: str, process, record: dict) -> None:
        shards.build(
            run / f"pseudo_seg_labels_encoded_{kind}.json",
            range(len(films.ids)),
            process=process,
            shard_format=mask_files.MaskShards(),
            record=record,
            shard_size=args.shard_size,
            label=f"pseudo masks ({kind})",
            item_fingerprint=films.fingerprint,
        )

    build(
        "cams",
        lambda rows: ordered_map(partial(threshold, films), rows, args.num_workers),
        provenance.describe({"image_size": films.size}, saved(films.path), code=__file__),
    )
    arguments = vars(args) | {"batch_size": None, "irn_best_model_name": None, "irn_pseudo_labels_save_dir": None}
    inputs = [*saved(films.path), weights, *gates]
    build("irnet", walked, provenance.describe(arguments | {"image_size": films.size}, inputs, code=__file__))


def saved(path: Path) -> list[Path]:
    """The file, unless it is a folder of pickles."""
    return [path] if path.is_file() else []


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    cli.run(main, build_parser)
