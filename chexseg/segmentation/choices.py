"""What the command line chooses from, and which file it means by it. Light to import: no torch."""

from collections.abc import Sequence
from pathlib import Path

from chexseg.classifier import torch_cache
from chexseg.errors import DataError, UsageError

LOSSES = ("dice", "bce_dice", "focal", "tversky")
ENCODER_WEIGHTS_TYPES = ("CheXpert", "MoCoCXR", "imagenet", "")
# Where to look for the images of experts' masks and of pseudo masks, in this order.
EXPERT_SPLITS, PSEUDO_SPLITS = ("valid", "test", "train"), ("train", "valid", "test")

Files = list[tuple[Path, tuple[str, ...]]]  # masks files, each with the splits in which to look for its images


def training_files(
    single: Sequence[Path] | None,
    expert: Sequence[Path] | None,
    pseudo: Sequence[Path] | None,
    *,
    semi_supervised: bool,
    weighted: bool,
    train_set: str,
) -> tuple[Files, Files]:
    """The masks files to train on: those of `--train_masks_path`, or with `--semi_supervised` the experts'; and those
    of pseudo masks. UsageError where one is missing, or given without a use."""
    pair = {"--ss_expert_annotations_masks_path": expert, "--ss_dnn_generated_masks_path": pseudo}
    alone = {"--train_masks_path": single}
    wanted, unwanted = (pair, alone) if semi_supervised else (alone, pair)
    mode = f"--semi_supervised {semi_supervised}"
    if missing := [name for name, paths in wanted.items() if paths is None]:
        raise UsageError(f"{mode} needs {missing[0]}")
    if surplus := [name for name, paths in unwanted.items() if paths is not None]:
        raise UsageError(f"{surplus[0]} does not go with {mode}")
    if weighted and not semi_supervised:
        raise UsageError("--weighted True needs --semi_supervised True")
    if semi_supervised:
        return [(path, EXPERT_SPLITS) for path in expert or ()], [(path, PSEUDO_SPLITS) for path in pseudo or ()]
    return [(path, EXPERT_SPLITS if train_set == "valid" else PSEUDO_SPLITS) for path in single or ()], []


def has_encoder_weights(weights: str, kind: str) -> bool:
    """False where the encoder starts at random. UsageError for a kind that needs a path and has none."""
    if weights.lower() not in ("", "none"):
        return True
    if kind in ("CheXpert", "MoCoCXR"):
        raise UsageError(f"--encoder_weights_type {kind} needs --encoder_weights PATH")
    return kind == "imagenet"


def encoder_file(encoder: str, weights: str, kind: str) -> Path | None:
    """The file that an encoder starts from; None: at random.

    kind `CheXpert`: a classifier's checkpoint; `MoCoCXR`: a MoCo checkpoint; `imagenet` or empty: a path, or `imagenet`
    for torchvision's weights in torch's own cache (nothing is downloaded), or empty or `none`. DataError where
    torch's cache does not have exactly one file of that encoder; `models.pretrained_backbone` then knows more.
    """
    if not has_encoder_weights(weights, kind):
        return None
    if is_imagenet(weights, kind):
        found = torch_cache.only_file(encoder)
        if found is None:
            raise DataError(f"{encoder}: not one file of ImageNet weights in torch's cache")
        return found
    return Path(weights).expanduser()


def is_imagenet(weights: str, kind: str) -> bool:
    """Whether torchvision's own weights are meant, of encoder weights that are not random."""
    return weights.lower() in ("", "none", "imagenet") and kind in ("", "imagenet")
