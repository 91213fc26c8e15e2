"""Segmentation networks: building them, starting their encoders from other weights, saving and loading them.

Not for their training (see `training`), nor for masks at the original size (see `prediction`)."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from chexseg.classifier import checkpoints, models
from chexseg.classifier.choices import MAX_SIDE
from chexseg.data.names import shown
from chexseg.data.normalisation import NORMALISATION
from chexseg.errors import DataError, UsageError
from chexseg.segmentation import foreign
from chexseg.segmentation.choices import has_encoder_weights, is_imagenet


def check_word(name: str, where: object) -> str:
    """The name of an architecture or encoder, which is one word: with a colon or a slash segmentation_models_pytorch
    and timm take it for a place in a network or a folder. DataError for any other."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}", name):
        raise DataError(f"{where}: {shown(name)} is no name of a network; none is fetched or read from a folder")
    return name


@dataclass(frozen=True)
class SegmentationSpec:
    """What the weights of a segmentation network do not say."""

    KEY: ClassVar[str] = "spec"
    WHAT: ClassVar[str] = "a segmentation model"
    MADE_BY: ClassVar[str] = "segmentation_train.py"

    architecture: str = field(metadata={"check": check_word})
    encoder: str = field(metadata={"check": check_word})
    tasks: tuple[str, ...]
    image_size: int = field(default=320, metadata={"most": MAX_SIDE})
    normalisation: str = field(default="imagenet", metadata={"choices": tuple(NORMALISATION)})
    decoder_channels: int | None = field(default=None, metadata={"most": 4096})


def build_model(spec: SegmentationSpec) -> nn.Module:
    """A network of segmentation_models_pytorch with one logit map per task, randomly initialised.

    UsageError for an unknown architecture or encoder, or an image size that it cannot take.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no name of a network can make its library ask a server
    import segmentation_models_pytorch as smp  # seconds of importing that --help need not wait for

    from chexseg.segmentation import encoders  # noqa: F401  registers encoders of our own

    try:
        check_word(spec.architecture, "--architecture")
        check_word(spec.encoder, "--encoder")
    except DataError as error:
        raise UsageError(str(error)) from error
    extra = {} if spec.decoder_channels is None else {"decoder_channels": spec.decoder_channels}
    options = {"encoder_name": spec.encoder, "encoder_weights": None, "classes": len(spec.tasks), **extra}
    try:
        model = smp.create_model(spec.architecture, **options)
    except (KeyError, TypeError, ValueError, RuntimeError, AssertionError, AttributeError, IndexError) as error:
        given = f"--architecture {spec.architecture} --encoder {spec.encoder}"
        given += f" --decoder_channels {spec.decoder_channels}" if extra else ""
        raise UsageError(f"{given}: {' '.join(str(error.args[0] if error.args else error).split())[:500]}") from error
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
    if not has_encoder_weights(weights, kind):
        return None
    if is_imagenet(weights, kind):
        path = models.pretrained_backbone(spec.encoder)
    else:
        path = Path(weights).expanduser()
    architecture, tensors = models.load_backbone(path, keys="encoder_q" if kind == "MoCoCXR" else "")
    if architecture != spec.encoder:
        raise DataError(f"{path}: holds a {architecture}, but --encoder is {spec.encoder}")
    checkpoints.load_exactly(cast(nn.Module, model.encoder), tensors, path)
    return path


def normalisation_for(weights: str, kind: str) -> str:
    """The normalisation that an encoder wants: its checkpoint's own where that says so, else ImageNet's for ImageNet's
    weights and CheXpert's for all others."""
    if not has_encoder_weights(weights, kind):
        return "chexpert"
    default = "imagenet" if kind in ("", "imagenet") else "chexpert"
    if weights.lower() in ("", "imagenet") and default == "imagenet":
        return default
    return models.trained_normalisation(Path(weights).expanduser(), default)


def save_model(path: Path, weights: Mapping[str, Tensor], spec: SegmentationSpec, metrics: Mapping[str, Any]) -> None:
    """Write weights, what they do not say, and the epoch's metrics, the chosen thresholds among them."""
    checkpoints.save_network(path, dict(weights), spec, metrics)


def load_model(path: Path) -> tuple[nn.Module, SegmentationSpec, dict[str, Any]]:
    """A network in eval mode, its spec and the metrics of its epoch: of `save_model`, or one that `foreign` knows."""
    content = checkpoints.load_checkpoint(path)
    metrics: dict[str, Any] = {}
    if SegmentationSpec.KEY not in content and foreign.is_foreign(found := checkpoints.state_dict(content, path)):
        weights = foreign.under_todays_names(found)
        spec = checkpoints.read_spec(foreign.read_settings(path, len(weights[foreign.HEAD])), path, SegmentationSpec)
    else:
        weights, spec, metrics = checkpoints.unpack_network(content, path, SegmentationSpec)
    try:
        # As a shell without memory first: a small file may name a network of gigabytes.
        with torch.device("meta"), suppress(UsageError):
            checkpoints.fitting(build_model(spec), weights, path)
        model = build_model(spec)
    except UsageError as error:
        raise DataError(f"{path}: {error}") from error
    checkpoints.load_exactly(model, weights, path)
    checkpoints.metric(metrics, "thresholds", len(spec.tasks), path)
    return model.eval(), spec, metrics
