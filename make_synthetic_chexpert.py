"""Phantom chest X-rays in CheXpert's and CheXlocalize's layout, for trying everything without patients' data.

    python make_synthetic_chexpert.py                                          # 1440 images under ./workspace/data
    python make_synthetic_chexpert.py --preset tiny --out_dir /tmp/phantom     # 60 images of 64 px, in seconds

Writes images and train.csv, valid.csv below OUT/CheXpert/CheXpert-v1.0, test images below OUT/CheXpert/test, and into
OUT/labels the experts' files: test_labels.csv, gt_annotations_valid.json, gt_annotations_test.json, and the same by a
second reader, human_annotations_test.json.
The same arguments give the same bytes. Killed, run it again: it goes on where it was.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import constants
from chexseg.phantom.presets import PRESETS
from chexseg.runtime import cli


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--out_dir", type=Path, help="folder to write to; without it $CHEXPERT_DATA_DIR or workspace/data"
    )
    parser.add_argument(
        "--gt_out",
        type=Path,
        help="folder of the experts' files; without it OUT_DIR/labels, "
        "or, where OUT_DIR is not given, $TEST_SEG_LABELS_GT_BASE_PATH",
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default", help="counts and size not given below")
    parser.add_argument("--num_train", type=cli.non_negative_int, help="training images (default: the preset's)")
    parser.add_argument("--num_valid", type=cli.non_negative_int, help="validation images (default: the preset's)")
    parser.add_argument("--num_test", type=cli.non_negative_int, help="test images (default: the preset's)")
    parser.add_argument("--size", type=cli.positive_int, help="typical longer side in pixels (default: the preset's)")
    parser.add_argument("--seed", type=cli.non_negative_int, default=0, help="another seed, other patients")
    parser.add_argument("--num_workers", type=cli.non_negative_int, default=0, help="processes that draw (0: this one)")
    cli.add_boolean(parser, "--overwrite", help="replace phantom X-rays made with other arguments")
    return parser


def main(args: argparse.Namespace) -> None:
    sizes = {"num_train": args.num_train, "num_valid": args.num_valid, "num_test": args.num_test, "size": args.size}
    chosen = {name: value for name, value in sizes.items() if value is not None}
    spec = replace(PRESETS[args.preset], seed=args.seed, **chosen)
    spec.check()
    out_dir = constants.data_dir(create=True) if args.out_dir is None else args.out_dir.expanduser()
    gt_dir = args.gt_out or (constants.gt_dir(create=True) if args.out_dir is None else out_dir / "labels")

    from chexseg.phantom import dataset

    dataset.generate(spec, out_dir, gt_dir.expanduser(), num_workers=args.num_workers, overwrite=args.overwrite)
    print(f"{out_dir}: {spec.num_train} training, {spec.num_valid} validation and {spec.num_test} test images")


if __name__ == "__main__":
    cli.run(main, build_parser)
