"""Paths and class lists, the one place for each. Importing it needs no environment; asking for a path may fail by name.

    export CHEXPERT_DATA_DIR=<folder that contains CheXpert/CheXpert-v1.0>
    export OBJ_EFFICIENCY_BASE_PATH=<folder for everything that CheXseg writes>
    export TEST_SEG_LABELS_GT_BASE_PATH=<folder with the validation and test masks>

An unset variable means a folder under `workspace/` beside this file, where `reproduce.sh` puts the phantom X-rays.
Only scripts import this module; `chexseg` gets what it needs as arguments.
"""

import os
import sys
from pathlib import Path

from chexseg.errors import MissingError

# The classifier's outputs, in the order of CheXpert's published models.
OBSERVATIONS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Lesion",
    "Airspace Opacity",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
# The ten findings that CheXlocalize's radiologists outlined.
LOCALIZATION_TASKS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Lesion",
    "Airspace Opacity",
    "Edema",
    "Consolidation",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Support Devices",
)
# The findings frequent enough in 40 validation images to choose an epoch by.
COMMON_TASKS = ("Enlarged Cardiomediastinum", "Support Devices", "Cardiomegaly", "Atelectasis")
# Other names of the same finding: CheXpert's CSV columns and CheXlocalize's annotation files.
ALIASES = {"Lung Opacity": "Airspace Opacity", "Support Device": "Support Devices"}

MODEL_NAME = "2ywovex5_epoch=2-chexpert_competition_AUROC=0.89.ckpt"

_WORKSPACE = Path(__file__).resolve().parent / "workspace"
_DEFAULTS = {
    "CHEXPERT_DATA_DIR": _WORKSPACE / "data",
    "OBJ_EFFICIENCY_BASE_PATH": _WORKSPACE / "base",
    "TEST_SEG_LABELS_GT_BASE_PATH": _WORKSPACE / "data" / "labels",
}
_announced: set[str] = set()


def folders() -> dict[str, Path]:
    """What the three variables mean, set or not, whether it is there or not."""
    return {name: Path(os.environ.get(name) or default).expanduser() for name, default in _DEFAULTS.items()}


def _folder(variable: str, *, create: bool = False, create_named: bool = False) -> Path:
    """`create` makes the default folder where it is missing, `create_named` the one that the variable names too."""
    value = os.environ.get(variable)
    if value:
        folder = Path(value).expanduser()
        if create_named:
            folder.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            raise MissingError(f"{variable}={value}: no such folder; create it or point the variable elsewhere")
        return folder.resolve()
    folder = _DEFAULTS[variable]
    if variable not in _announced and os.environ.get("RANK", "0") == "0":
        _announced.add(variable)
        print(f"{variable} is not set: using {folder}", file=sys.stderr)
    if create:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def data_dir(*, create: bool = False) -> Path:
    """The folder that contains `CheXpert/CheXpert-v1.0`."""
    return _folder("CHEXPERT_DATA_DIR", create=create, create_named=create)


def base_dir(*, create: bool = True) -> Path:
    """The folder that everything is written to."""
    return _folder("OBJ_EFFICIENCY_BASE_PATH", create=create)


def gt_dir(*, create: bool = False) -> Path:
    """The folder with `test_encoded.json`, `test_labels.csv` and the annotation files."""
    return _folder("TEST_SEG_LABELS_GT_BASE_PATH", create=create, create_named=create)


def run_dir() -> Path:
    """The default run folder: saliency maps and everything made from them. Where the published checkpoint's is not
    there, the only one that is; DataError, which lists them, where there are several."""
    folder = base_dir() / "train_cams"
    if not folder.is_dir() and (older := folder.with_name("train_cams_temp")).is_dir():
        folder = older  # the original's name
    default = folder / MODEL_NAME
    if default.is_dir() or not folder.is_dir():
        return default
    runs = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(runs) > 1:
        raise MissingError(f"{default}: no such run; name one of {', '.join(path.name for path in runs)} in {folder}")
    if runs and str(runs[0]) not in _announced and os.environ.get("RANK", "0") == "0":
        _announced.add(str(runs[0]))
        print(f"no run folder named: using {runs[0]}", file=sys.stderr)
    return runs[0] if runs else default


def irnet_dir() -> Path:
    """Where boundary networks are saved."""
    return base_dir() / "weakly_supervised" / "saved_models"


def cache_dir() -> Path:
    """Decoded images, rebuilt whenever an input changes; safe to delete."""
    return base_dir() / "cache"
