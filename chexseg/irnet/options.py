"""Options that stages with pseudo masks share. Light to import: no torch, no NumPy."""

import argparse
from pathlib import Path

from chexseg.runtime import cli

GATES = ("labels", "probability", "none")
UNCERTAIN = ("present", "absent", "unknown")
CONTRADICTIONS = ("empty", "unknown")
GATE_OPTIONS = ("gate", "uncertain", "uncertain_is_present", "gate_probability")
WALK = ("beta", "exp_times", "radius", "threshold")


def add_gate(
    parser: argparse.ArgumentParser,
    labels: str = "labels for the gate [the training set's in CheXpert's folder]",
) -> None:
    """What `gates.choose_gate` wants to know; `labels` is the help of `--csv_path`."""
    add = parser.add_argument
    add(
        "--gate",
        choices=GATES,
        default="labels",
        help="empty mask where the image's label says absent (without labels: where the classifier does), where the "
        "classifier does, or nowhere",
    )
    cli.add_boolean(parser, "--uncertain_is_present", default=True, help="count labels of -1 as present, else absent")
    add("--uncertain", choices=UNCERTAIN, help="what a label of -1 means; unknown: no mask [--uncertain_is_present]")
    add("--gate_probability", type=cli.fraction, default=0.5, help="least probability of a mask, --gate probability")
    add("--csv_path", type=Path, help=labels)


def add_walk(parser: argparse.ArgumentParser) -> None:
    """The constants of `pseudo_masks.Walk`."""
    add = parser.add_argument
    add("--beta", type=cli.positive_float, default=5.0, help="power of the affinities")
    add("--exp_times", type=cli.non_negative_int, default=3, help="2^this steps of the walk")
    add("--radius", type=cli.positive_int, default=3, help="a step goes less far than this, on the stride-4 grid")
    add("--threshold", type=cli.fraction, default=0.6, help="foreground above this part of a score's maximum")


def boundary_network(name: str | Path, folder: Path) -> Path:
    """The file that `name` means: a path, or a boundary network in `folder`; .pth may be left out. Where there is none,
    the place in `folder`."""
    places = [Path(name), folder / name]
    places += [place.with_name(place.name + ".pth") for place in places]
    return next((place for place in places if place.is_file()), places[1])


def uncertain_means(uncertain: str | None, uncertain_is_present: bool) -> str:
    """One of UNCERTAIN: the newer option where it is given, else the older one."""
    return uncertain or ("present" if uncertain_is_present else "absent")
