"""Segmentation networks and their data: building, encoder weights, samples from masks JSONs, an epoch's scores.

Not for the training loop (see `training`), nor for masks at the original size (see `prediction`)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from chexseg.classifier import checkpoints, models
from chexseg.errors import DataError, UsageError
from chexseg.runtime.files import atomic

ENCODER_WEIGHTS_TYPES = ("CheXpert", "MoCoCXR", "imagenet", "")


@dataclass(frozen=True)
class SegmentationSpec:
    """What the weights of a segmentation network do not say."""

    architecture: str
    encoder: str
    tasks: tuple[str, ...]
    image_size: int = 320
    normalisation: str = "imagenet"
    decoder_channels: int | None = None


def build_model(spec: SegmentationSpec) -> nn.Module:
    """A network of segmentation_models_pytorch with one logit map per task, randomly initialised.

    UsageError for an unknown architecture or encoder, or an image size that it cannot take.
    """
    import segmentation_models_pytorch as smp  # seconds of importing that --help need not wait for

    from chexseg.segmentation import encoders  # noqa: F401  registers encoders of our own

    extra = {} if spec.decoder_channels is None else {"decoder_channels": spec.decoder_channels}
    options = {"encoder_name": spec.encoder, "encoder_weights": None, "classes": len(spec.tasks), **extra}
    try:
        model = smp.create_model(spec.architecture, **options)
    except (KeyError, TypeError) as error:
        given = f"--architecture {spec.architecture} --encoder {spec.encoder}"
        given += f" --decoder_channels {spec.decoder_channels}" if extra else ""
        raise UsageError(f"{given}: {error.args[0]}") from error
    stride = getattr(model.encoder, "output_stride", 32)
    if spec.image_size % stride:
        raise UsageError(f"--image_size {spec.image_size} must be a multiple of {stride} for {spec.architecture}")
    return model


def load_encoder(model: nn.Module, spec: SegmentationSpec, weights: str, kind: str) -> Path | None:
    """Start the encoder from `weights`; return the file they came from (None: random).

    kind `CheXpert`: a classifier's checkpoint; `MoCoCXR`: the `encoder_q` of a MoCo checkpoint; `imagenet` or empty: a
    path, or `imagenet` for torchvision's weights in torch's own cache (nothing is downloaded), or empty or `none`.
    DataError names a tensor that is missing, unexpected or of another shape; the classifier's head is left out.
    """
    if not _has_weights(weights, kind):
        return None
    if weights.lower() in ("", "none", "imagenet") and kind in ("", "imagenet"):
        path = models.pretrained_backbone(spec.encoder)
    else:
        path = Path(weights).expanduser()
    architecture, tensors = models.load_backbone(path, keys="encoder_q" if kind == "MoCoCXR" else "")
    if architecture != spec.encoder:
        raise DataError(f"{path}: holds a {architecture}, but --encoder is {spec.encoder}")
    models.load_exactly(model.encoder, tensors, path)
    return path


def normalisation_for(weights: str, kind: str) -> str:
    """How images are normalised for an encoder: as it was trained where its checkpoint says so, else ImageNet's way for
    ImageNet's weights and CheXpert's for all others."""
    if not _has_weights(weights, kind):
        return "chexpert"
    default = "imagenet" if kind in ("", "imagenet") else "chexpert"
    if weights.lower() in ("", "imagenet") and default == "imagenet":
        return default
    return models.trained_normalisation(Path(weights).expanduser(), default)


def _has_weights(weights: str, kind: str) -> bool:
    """False where the encoder starts at random. UsageError for a kind that needs a path and has none."""
    if weights.lower() not in ("", "none"):
        return True
    if kind in ("CheXpert", "MoCoCXR"):
        raise UsageError(f"--encoder_weights_type {kind} needs --encoder_weights PATH")
    return kind == "imagenet"


def save_model(path: Path, weights: Mapping[str, Tensor], spec: SegmentationSpec, chosen: Mapping) -> None:
    """Write weights, what they do not say, and the epoch's metrics, in plain types only."""
    with atomic(path) as temporary, open(temporary, "wb") as file:  # a path would leave its name in the file
        torch.save({"state_dict": dict(weights), "spec": asdict(spec), "metrics": dict(chosen)}, file)


def load_model(path: Path) -> tuple[nn.Module, SegmentationSpec, dict]:
    """A network of `save_model` in eval mode, its spec and the metrics of its epoch."""
    found = checkpoints.load_checkpoint(path)
    if not isinstance(found.get("spec"), dict) or "encoder" not in found["spec"]:
        raise DataError(f"{path}: not a segmentation model; train one with segmentation_train.py")
    spec = SegmentationSpec(**found["spec"] | {"tasks": tuple(found["spec"]["tasks"])})
    model = build_model(spec)
    models.load_exactly(model, checkpoints.state_dict(found, path), path)
    return model.eval(), spec, found.get("metrics", {})
