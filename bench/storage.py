"""Bytes an image of each stage's files, and single images read at random from HDF5.

python -m bench.storage                     64 phantoms of 320 pixels
"""

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

from bench import pipeline
from chexseg.data import hdf5_files

BUDGET = 150_000  # bytes an image, from maps to pseudo masks
READS = 500  # a second, by two workers
RUN = Path("base") / "train_cams" / "mine_c.ckpt"
FILES = {
    "saliency maps": ("cams/saliency.h5", "predictions.csv", "train_cams_paths.csv"),
    "threshold masks": ("seg_labels_encoded.json",),
    "images and maps in HDF5": ("hdf5_files/train_set",),
    "relation labels": ("hdf5_files/ir_labels",),
    "pseudo masks": ("pseudo_seg_labels_encoded_cams.json", "pseudo_seg_labels_encoded_irnet.json"),
}


def read(run: Path, seed: int, count: int, opened: tuple | None = None) -> float:
    """Seconds for `count` single samples: image, maps and labels of one row, at random."""
    import numpy as np

    train_set, labels = opened or (hdf5_files.open_train_set(run), hdf5_files.open_ir_labels(run))
    rows = np.random.default_rng(seed).integers(len(train_set["cxr_images"]), size=count)
    started = time.monotonic()
    for row in rows:
        train_set["cxr_images"][row], train_set["cxr_cams"][row], labels["ir_labels"][row]
    return time.monotonic() - started


def rate(run: Path, method: str, count: int = 1500) -> float:
    """Samples a second of two processes, which are given files that are open in this one."""

    opened = hdf5_files.open_train_set(run), hdf5_files.open_ir_labels(run)
    with multiprocessing.get_context(method).Pool(2) as pool:
        pool.starmap(read, [(run, seed, 10, opened) for seed in (1, 2)])
        seconds = pool.starmap(read, [(run, seed, count, opened) for seed in (3, 4)], chunksize=1)
    return sum(count / s for s in seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=320, help="pixels")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for stage, command in pipeline.commands(root, args.images, args.size).items():
            if stage == "segmentation":
                break
            pipeline.run(root, command)
        frontal = len((root / RUN / "train_cams_paths.csv").read_text().splitlines()) - 1
        print(f"{args.images} images of {args.size} pixels, {frontal} of them frontal\n")
        print("| stage | bytes an image |\n|---|---|")
        total = 0
        for stage, names in FILES.items():
            size = sum((root / RUN / name).stat().st_size for name in names)
            total += size
            print(f"| {stage} | {size / frontal:,.0f} |")
        print(f"| **from maps to pseudo masks** | **{total / frontal:,.0f}** |\n")
        rates = {method: rate(root / RUN, method) for method in ("fork", "spawn")}
        for method, found in rates.items():
            print(f"random samples with 2 workers ({method}): {found:,.0f} a second")
    return 0 if total / frontal <= BUDGET and min(rates.values()) >= READS else 1


if __name__ == "__main__":
    raise SystemExit(main())
