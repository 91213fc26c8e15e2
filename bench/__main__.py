"""Compare CheXseg's kernels and stages with what one would otherwise use, in one run.

    python -m bench                       all rows, about a quarter of an hour on 2 cores
    python -m bench crf walk              rows whose name starts with one of these
    python -m bench --device cuda --json bench.json

Ratios are ours / reference: 1/6 means six times as fast. Sides alternate; times are medians, +- is the interquartile
range over the median. References come with `pip install -e .[bench]`; a row whose reference is missing says so.
"""

import argparse
import importlib
import json
import pkgutil
import platform
import sys
from pathlib import Path

import torch

import bench
from bench import harness
from chexseg.errors import UsageError
from chexseg.runtime import cli, distributed
from chexseg.runtime.files import atomic

INFRASTRUCTURE = {"__main__", "harness", "page"}


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="rows whose name starts with this [all]")
    add("--json", type=Path, metavar="FILE", help="also write the rows as a JSON list")
    add("--device", default="cpu", help="cpu, cuda or auto")
    add("--repeats", type=cli.positive_int, default=7, help="timed calls of each side")
    add("--threads", type=cli.positive_int, help="threads of torch [its own choice]")
    cli.add_boolean(parser, "--list", help="only show the rows' names")
    return parser


def chosen(names: list[str]) -> list[str]:
    """Registered rows that start with one of `names`, in order of registration; all without names."""
    for name in names:
        if not any(row.startswith(name) for row in harness.ROWS):
            raise UsageError(f"no row starts with {name!r}; there are {', '.join(harness.ROWS)}")
    return [row for row in harness.ROWS if not names or row.startswith(tuple(names))]


def machine(device: torch.device) -> str:
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return f"{chip}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"


def main(args: argparse.Namespace) -> None:
    for module in pkgutil.iter_modules(bench.__path__):
        if module.name not in INFRASTRUCTURE:
            importlib.import_module(f"bench.{module.name}")
    if args.list:
        print("\n".join(f"{name:24} {title}" for name, (title, _) in harness.ROWS.items()))
        return
    device = distributed.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    results = []
    for name in chosen(args.names):
        print(f"{name} ...", end="\r", file=sys.stderr, flush=True)
        results.append(harness.measure(name, device, args.repeats))
    print(harness.table(results))
    print(f"\n{sum(r['met'] for r in results)} of {len(results)} met; {machine(device)}")
    if args.json:
        with atomic(args.json) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main, build_parser)
