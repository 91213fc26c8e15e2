"""Large masks files: the subset and the scores of one, and a segmentation cache that is killed in the middle.

python -m bench.load                        200,000 images of 10 tasks; a cache of 4,000 images of 64 pixels
python -m bench.load --images 20000 --cached 1000

Seconds are the processor's, with the start of Python.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

from bench import pipeline

LIMIT = 30.0  # seconds of the processor, each
SIDE = 320
TASKS = "Enlarged Cardiomediastinum|Cardiomegaly|Lung Lesion|Airspace Opacity|Edema|Consolidation|Atelectasis"
TASKS += "|Pneumothorax|Pleural Effusion|Support Devices"


def in_a_process(function, *arguments) -> int:
    """Call it in a process of its own, whose memory ends with it; its exit status."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode or 0


def write_masks(path: Path, images: int, seed: int) -> None:
    """A masks file of `images`, two a patient, each task shown by a quarter of them: wavy outlines out of a pool."""
    import numpy as np

    from chexseg.data import mask_files, rle

    rng, tasks = np.random.default_rng(seed), TASKS.split("|")
    pool, nothing = [], rle.empty((SIDE, SIDE))
    for _ in range(400):
        angles, radius = np.sort(rng.uniform(0, 2 * np.pi, 14)), rng.uniform(15, 70, 14)
        points = rng.uniform(60, 260, 2) + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        pool += rle.encode(rle.from_polygons([points.tolist()], (SIDE, SIDE))[None])
    shown, which = rng.random((images, len(tasks))) < 0.25, rng.integers(len(pool), size=(images, len(tasks)))
    mask_files.write(
        path,
        (
            (
                f"patient{i // 2:06d}_study{i % 2 + 1}_view1_frontal",
                {task: pool[which[i, t]] if shown[i, t] else nothing for t, task in enumerate(tasks)},
            )
            for i in range(images)
        ),
    )


def write_images(masks: Path, folder: Path) -> None:
    """A film for each image of a masks file: names of one and the same file."""
    import cv2
    import numpy as np

    from chexseg.data.mask_files import MaskFile

    folder.mkdir(parents=True)
    film = folder / "film.jpg"
    cv2.imwrite(str(film), np.random.default_rng(0).integers(0, 255, (SIDE, SIDE), dtype=np.uint8))
    for image in MaskFile(masks):
        patient, study, view = image.split("_", 2)
        (folder / patient / study).mkdir(parents=True)
        os.link(film, folder / patient / study / f"{view}.jpg")


def build_cache(root: Path, masks: Path, log: Path) -> None:
    """The cache of a masks file, as segmentation_train.py makes it; what it says goes to `log`."""
    import logging
    import sys

    from chexseg.data.mask_files import MaskFile
    from chexseg.runtime import progress, shards
    from chexseg.segmentation.dataset import build_cache

    sys.stderr = open(log, "w", buffering=1)
    logging.basicConfig(format="%(message)s", level=logging.INFO, force=True)
    progress.SECONDS_BETWEEN_LINES = shards.SECONDS_BETWEEN_LOOKS = 0.5
    build_cache(
        root / "cache", MaskFile(masks), ("train",), data_dir=root / "data", tasks=TASKS.split("|"), image_size=64
    )


def resumed(root: Path, masks: Path, images: int) -> None:
    """Kill the building of a cache when half of its shards are there, and let it end; say what it says."""
    import signal

    process = multiprocessing.get_context("fork").Process(target=build_cache, args=(root, masks, root / "1.log"))
    started = time.monotonic()
    process.start()
    while (
        process.exitcode is None and sum(1 for _ in (root / "cache").glob(".*.parts/*.json")) < -(-images // 256) // 2
    ):
        process.join(0.02)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    half = time.monotonic() - started
    started = time.monotonic()
    status = in_a_process(build_cache, root, masks, root / "2.log")
    rest = time.monotonic() - started
    print(f"\ncache of {images} images: killed after {half:.1f} s, ended with status {status} {rest:.1f} s later")
    for name in ("1.log", "2.log"):
        lines = (root / name).read_text().splitlines()
        print("".join(f"  {line}\n" for line in [*lines[:3], "...", *lines[-2:]] if line), end="")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--cached", type=int, default=4_000)
    args = parser.parse_args()
    slow = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        print("| script | images | s | MiB |\n|---|---|---|---|")
        for images in (args.images // 10, args.images):
            truth, predictions = root / f"truth{images}.json", root / f"predicted{images}.json"
            in_a_process(write_masks, truth, images, 1)
            in_a_process(write_masks, predictions, images, 2)
            for command in (
                f"create_train_set_subsets.py --masks_path {truth} --subset_len {images * 3 // 4}",
                f"localization_eval/eval.py --gt_path {truth} --pred_path {predictions}",
            ):
                cost = pipeline.run(root, command)
                slow += cost.processor > LIMIT * images / 200_000 + 3
                print(
                    f"| {command.split()[0]} | {images:,} | {cost.processor:.1f} | {cost.megabytes:.0f} |", flush=True
                )
        masks = root / "cached.json"
        in_a_process(write_masks, masks, args.cached, 3)
        in_a_process(write_images, masks, root / "data" / "CheXpert" / "CheXpert-v1.0" / "train")
        resumed(root, masks, args.cached)
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main())
