"""Peak memory of each stage for a small and a large set of phantoms: it should not grow with the set.

python -m bench.memory                      200 and 2000 images of 64 pixels
python -m bench.memory --images 200 20000 --size 64
"""

import argparse
import tempfile
from pathlib import Path

from bench import pipeline

ALLOWED = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs=2, default=(200, 2000), metavar=("FEW", "MANY"))
    parser.add_argument("--size", type=int, default=64, help="pixels")
    args = parser.parse_args()
    few, many = args.images
    print(f"| stage | MiB at {few} | MiB at {many} | growth | s at {few} | s at {many} |\n|---|---|---|---|---|---|")
    too_much = 0
    with tempfile.TemporaryDirectory() as folder:
        sides = [pipeline.commands(Path(folder) / str(count), count, args.size) for count in (few, many)]
        for stage in sides[0]:
            small, large = (
                pipeline.run(Path(folder) / str(count), side[stage])
                for count, side in zip((few, many), sides, strict=True)
            )
            growth = large.megabytes / small.megabytes - 1
            too_much += growth > ALLOWED
            print(
                f"| {stage} | {small.megabytes:.0f} | {large.megabytes:.0f} | {growth:+.1%} "
                f"| {small.seconds:.1f} | {large.seconds:.1f} |",
                flush=True,
            )
    return 1 if too_much else 0


if __name__ == "__main__":
    raise SystemExit(main())
