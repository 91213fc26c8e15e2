"""Which file of weights the boundary network's frozen backbone starts from. Building it is in `boundary_net`."""

import logging
from pathlib import Path

from chexseg.classifier import saliency_store, torch_cache
from chexseg.errors import DataError
from chexseg.runtime import plain_json, provenance

SUFFIXES = (".ckpt", ".pth", ".pt", ".tar", ".safetensors")  # of files that are read because a manifest names them
log = logging.getLogger(__name__)


def find_backbone(wanted: str, architecture: str | None, run: Path) -> Path:
    """The file that `wanted` means: a path; `imagenet`, torchvision's weights of `architecture` (ResNet-50) in torch's
    cache; or `auto`, these where they are there, else the classifier that made the run's maps. DataError if none is."""
    from chexseg.classifier import models

    if wanted not in ("auto", "imagenet"):
        return Path(wanted)
    try:
        return models.pretrained_backbone(architecture or "resnet50")
    except DataError as missing:
        if wanted == "imagenet":
            raise
        maker = classifier_of(run)
        if maker is None or not maker.is_file():
            raise DataError(f"{missing}; or name a classifier with --backbone_weights") from missing
        log.info("no ImageNet weights in torch's cache: the backbone is %s", maker)
        return maker


def backbone_of_finished(wanted: str, architecture: str | None, run: Path) -> Path | None:
    """`find_backbone` without torch; None where that may know more."""
    if wanted not in ("auto", "imagenet"):
        return Path(wanted)
    return torch_cache.only_file(architecture or "resnet50") or (classifier_of(run) if wanted == "auto" else None)


def classifier_of(run: Path) -> Path | None:
    """The checkpoint that made the run's saliency maps, as their manifest has it: a file of the content that the
    manifest knows, so that nobody's manifest makes another file of this machine into weights."""
    try:
        manifest = plain_json.read(provenance.manifest_path(run / saliency_store.STORE), finite=False)
        path = Path(manifest["paths"]["ckpt_path"])
        known = manifest["inputs"].get(str(path))
        if path.suffix not in SUFFIXES or not path.is_file():
            return None
        return path if provenance.sha256(path) == known else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # an ensemble's names none
        return None
