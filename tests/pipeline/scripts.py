"""Scripts run in this process, and small masks for them."""

import importlib.util
from pathlib import Path

import numpy as np

from chexseg.data import rle

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("Edema", "Airspace Opacity", "Fracture")
SCORED = ("--tasks", "Edema", "Lung Opacity")


def run(script, *arguments):
    """A script's `main` with parsed arguments, in this process."""
    spec = importlib.util.spec_from_file_location("script", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(module.build_parser().parse_args([str(a) for a in arguments]))
    return module


def name(i, study=1):
    return f"patient{i:05d}_study{study}_view1_frontal"


def entry(*areas, size=(4, 5)):
    stack = np.zeros((len(areas), size[0] * size[1]))
    for row, count in zip(stack, areas, strict=True):
        row[:count] = 1
    return dict(zip(TASKS, rle.encode(stack.reshape(-1, *size)), strict=False))
