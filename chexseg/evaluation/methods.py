"""The methods of the paper's table, the one place for their names, the paper's figures and which of them are compared.

Light: a script's parser may import it. Methods of other names are allowed everywhere and go by the name they are given.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

HUMAN = "radiologist"


@dataclass(frozen=True)
class Method:
    """How a method is called in the table (`title`) and over a column of the picture (`short`), and its mIoU in the
    paper relative to weak supervision."""

    title: str
    short: str
    paper_ratio: float | None = None


# CheXseg beats fully supervised by 9.7% and weakly supervised by 73.1% (Gadgil et al. 2021).
METHODS = {
    "weak_cam": Method("weakly supervised (Grad-CAM)", "Weak (Grad-CAM)", 1.0),
    "weak_irnet": Method("weakly supervised (IRNet)", "Weak (IRNet)", 1.0),
    "full": Method("fully supervised", "Fully supervised", 1.58),
    "chexseg": Method("CheXseg", "CheXseg", 1.73),
    # Ours: the better loss on expert masks alone, and with pseudo masks chosen per task.
    "full_plus": Method("fully supervised+", "Fully supervised+"),
    "chexseg_plus": Method("CheXseg+", "CheXseg+"),
    HUMAN: Method("radiologist", "Second reader", 2.28),
}
# What ratios are relative to. IRNet's masks come first: they are what CheXseg adds experts to.
REFERENCES = ("weak_irnet", "weak_cam")
# The pairs whose difference is shown, first minus second.
DIFFERENCES = (
    ("chexseg", "full"),
    ("chexseg", "weak_irnet"),
    ("chexseg", "weak_cam"),
    ("full", "weak_irnet"),
    ("full", "weak_cam"),
    ("chexseg_plus", "full_plus"),
    ("chexseg_plus", "chexseg"),
    ("full_plus", "full"),
    (HUMAN, "chexseg"),
    (HUMAN, "chexseg_plus"),
)


def title(name: str) -> str:
    """What the table calls a method."""
    return METHODS[name].title if name in METHODS else name


def short(name: str) -> str:
    """What the picture calls a method."""
    return METHODS[name].short if name in METHODS else name


def named_file(text: str) -> tuple[str, Path]:
    """argparse type for NAME=FILE."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"expected NAME=FILE, got {text!r}")
    return name, Path(path)


def file_or_named(text: str) -> tuple[str, Path]:
    """argparse type for FILE (with an empty name) or NAME=FILE."""
    return ("", Path(text)) if "=" not in text or Path(text).is_file() else named_file(text)
