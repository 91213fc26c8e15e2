"""Seconds of each heavy stage in one process and in several under torchrun, each process with one thread.

python -m bench.ranks                       256 phantoms of 320 pixels, 1 and 2 processes
python -m bench.ranks --images 2048 --ranks 8

Both sides start from the same files. "An image" is what the work takes beyond the start of one process, which is
measured with the same stage run again, when there is nothing left to do; for training it is an epoch's share.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from bench import pipeline

CHEAP = ("phantom", "expert masks", "test masks")  # and not for many ranks
SIZES = 10**4, 2 * 10**5, 10**6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=320, help="pixels")
    parser.add_argument("--ranks", type=int, default=2)
    args = parser.parse_args()
    sizes = " | ".join(f"h for {size:,}" for size in SIZES)
    print(f"{args.images} images of {args.size} pixels\n")
    print(
        f"| stage | s, 1 process | start | s, {args.ranks} processes | work, 1 / {args.ranks} | s an image | {sizes} |"
    )
    print("|---" * 9 + "|")
    with tempfile.TemporaryDirectory() as folder:
        root, many = Path(folder) / "one", Path(folder) / "many"
        for stage, command in pipeline.commands(root, args.images, args.size).items():
            if stage in CHEAP:
                pipeline.run(root, command)
                continue
            shutil.copytree(root, many)
            one = pipeline.run(root, command, ranks=1).seconds
            start = pipeline.run(root, command, ranks=1).seconds
            several = pipeline.run(many, command.replace(str(root), str(many)), ranks=args.ranks).seconds
            again = pipeline.run(many, command.replace(str(root), str(many)), ranks=args.ranks).seconds
            shutil.rmtree(many)
            image = max(one - start, 0) / args.images
            hours = " | ".join(f"{image * size / 3600:.1f}" for size in SIZES)
            gain = (one - start) / max(several - again, 1e-3)
            print(
                f"| {stage} | {one:.1f} | {start:.1f} | {several:.1f} | {gain:.2f} | {image:.4f} | {hours} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
