"""Stage 5: a seeded subset of a masks JSON; also the split of the experts' images into training and validation.

    python create_train_set_subsets.py --subset_len 100 --pseudo_labels_type cams
    python create_train_set_subsets.py --subset_len 147 --masks_path $TEST_SEG_LABELS_GT_BASE_PATH/valid_encoded.json

The first writes <run>/pseudo_seg_labels_cams_100_cxrs.json. The second writes valid_encoded_147.json and, with the
other images that show a finding, valid_encoded_40.json beside it; no patient is in both.
"""

import argparse
import logging
import random
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import constants
from chexseg.data import mask_files, rle
from chexseg.data.chexpert import patient_of
from chexseg.errors import DataError
from chexseg.runtime import cli, provenance, shards

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--subset_len", type=cli.positive_int, default=100, help="images in the subset")
    add("--pseudo_labels_type", choices=("cams", "irnet"), default="cams", help="which pseudo masks of the run")
    add("--map_dir", type=Path, help="run folder with the pseudo masks [the default run]")
    add("--masks_path", type=Path, help="split this masks JSON by patient instead")
    add(
        "--rest_path",
        type=Path,
        help="with --masks_path: where the rest goes [beside it, named by its number of images]",
    )
    cli.add_boolean(parser, "--only_with_finding", default=True, help="with --masks_path: only images with a mask")
    add("--seed", type=cli.non_negative_int, default=17, help="seed of the draw")
    return parser


def split_by_patient(ids: Sequence[str], count: int, seed: int) -> tuple[list[str], list[str]]:
    """`count` of `ids` and the rest, whole patients in random order as long as they fit.

    Where no set of whole patients that is tried gives `count`, one patient is shared, and a warning says so.
    """
    patients = [list(group) for _, group in groupby(sorted(ids, key=lambda i: (patient_of(i), i)), key=patient_of)]
    random.Random(seed).shuffle(patients)
    chosen: set[str] = set()
    for images in patients:
        if len(chosen) + len(images) <= count:
            chosen.update(images)
    if missing := count - len(chosen):
        images = next(images for images in patients if images[0] not in chosen)
        chosen.update(images[:missing])
        log.warning("%s stands on both sides: whole patients do not add up to %d", patient_of(images[0]), count)
    return sorted(chosen), sorted(set(ids) - chosen)


def write(source: mask_files.MaskFile, ids: Sequence[str], path: Path, args: argparse.Namespace) -> None:
    mask_files.write(path, ((image_id, source[image_id]) for image_id in ids))
    record = provenance.describe(vars(args), [source.path], code=__file__)
    shards.seal(path, record, provenance.fingerprint(record))
    log.info("%s: %d images", path, len(ids))


def main(args: argparse.Namespace) -> None:
    if args.masks_path is None:
        folder = args.map_dir or constants.run_dir()
        path = folder / f"pseudo_seg_labels_encoded_{args.pseudo_labels_type}.json"
    else:
        path = args.masks_path
    source = mask_files.MaskFile(path, constants.ALIASES)
    ids = sorted(source)
    if args.masks_path and args.only_with_finding:
        ids = [image_id for image_id in ids if rle.area(list(source[image_id].values())).any()]
        log.info("%s: %d of %d images show a finding", path, len(ids), len(source))
    if len(ids) < args.subset_len:
        raise DataError(f"{path}: {len(ids)} images; --subset_len {args.subset_len} asks for more")
    if args.masks_path is None:
        chosen = sorted(random.Random(args.seed).sample(ids, args.subset_len))
        write(source, chosen, folder / f"pseudo_seg_labels_{args.pseudo_labels_type}_{args.subset_len}_cxrs.json", args)
        return
    chosen, rest = split_by_patient(ids, args.subset_len, args.seed)
    name = f"{path.stem}_{len(rest)}" + ("_rest" if len(rest) == len(chosen) else "")
    write(source, chosen, path.with_name(f"{path.stem}_{len(chosen)}.json"), args)
    write(source, rest, args.rest_path or path.with_name(f"{name}.json"), args)


if __name__ == "__main__":
    cli.run(main, build_parser)
