"""What the command line chooses from, and which file it means by it. Light to import: no torch."""

from pathlib import Path

from chexseg.classifier import torch_cache
from chexseg.errors import DataError, UsageError

ENCODER_WEIGHTS_TYPES = ("CheXpert", "MoCoCXR", "imagenet", "")


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
