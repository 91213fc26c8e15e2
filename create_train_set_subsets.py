"""Stage 5: a seeded subset of a masks JSON; also the split of the experts' images into training and validation.

    python create_train_set_subsets.py --subset_len 100 --pseudo_labels_type cams
    python create_train_set_subsets.py --subset_len 147 --masks_path $TEST_SEG_LABELS_GT_BASE_PATH/valid_encoded.json

The first writes <run>/pseudo_seg_labels_cams_100_cxrs.json. The second writes valid_encoded_147.json and, with the
other images, valid_encoded_40.json beside it; no patient is in both. The paper's 187 images all show a finding; where a
file has images without one they are split too, since a network must learn from them where nothing is to be outlined.
"""

import argparse
from pathlib import Path

import constants
from chexseg.runtime import cli, provenance


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--subset_len", type=cli.positive_int, default=100, help="images in the subset")
    add("--pseudo_labels_type", choices=("cams", "irnet"), default="cams", help="which pseudo masks of the run")
    add("--map_dir", type=Path, help="run folder with the pseudo masks [the default run]")
    add("--masks_path", type=Path, help="split this masks JSON by patient instead")
    add("--output_path", type=Path, help="with --masks_path: where the subset goes [beside it, named by its length]")
    add(
        "--rest_path",
        type=Path,
        help="with --masks_path: where the rest goes [beside it, named by its number of images]",
    )
    cli.add_boolean(parser, "--only_with_finding", default=False, help="with --masks_path: leave out empty images")
    add("--patients", type=Path, metavar="CSV", help="patient_id of images whose names do not tell: Path or image_id")
    add("--seed", type=cli.non_negative_int, default=17, help="seed of the draw")
    return parser


def main(args: argparse.Namespace) -> None:
    from chexseg.data import chexpert, subsets
    from chexseg.data.mask_files import MaskFile

    if args.masks_path is None:
        kind, folder = args.pseudo_labels_type, args.map_dir or constants.run_dir()
        source = MaskFile(folder / f"pseudo_seg_labels_encoded_{kind}.json", constants.ALIASES)
        chosen = subsets.draw(source, args.subset_len, args.seed)
        parts = [(folder / f"pseudo_seg_labels_{kind}_{len(chosen)}_cxrs.json", chosen)]
    else:
        path = args.masks_path
        source = MaskFile(path, constants.ALIASES)
        patients = chexpert.read_patients(args.patients) if args.patients else None
        options = {"only_with_finding": args.only_with_finding, "patients": patients}
        chosen, rest = subsets.split(source, args.subset_len, args.seed, **options)
        name = f"{path.stem}_{len(rest)}" + ("_rest" if len(rest) == len(chosen) else "")
        rest_path = args.rest_path or path.with_name(f"{name}.json")
        subset_path = args.output_path or path.with_name(f"{path.stem}_{len(chosen)}.json")
        parts = [(subset_path, chosen), (rest_path, rest)]
    record = provenance.describe(vars(args), [source.path, args.patients], code=__file__)
    for output, ids in parts:
        subsets.write(source, ids, output, record)


if __name__ == "__main__":
    cli.run(main, build_parser)
