"""Segmentation networks and their data: building, encoder weights, samples from masks JSONs, an epoch's scores.

Not for the training loop (see `training`), nor for masks at the original size (see `prediction`)."""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from chexseg import cache, checkpoints, data, distributed, masks, models, provenance
from chexseg.cache import Sample, SampleCache
from chexseg.draws import Draw, Loader, in_order
from chexseg.errors import DataError, UsageError
from chexseg.losses import dice_loss
from chexseg.mask_files import MaskFile
from chexseg.metrics import mean_iou
from chexseg.pooled_iou import PooledIoU
from chexseg.shards import atomic
from chexseg.training import to_device

ENCODER_WEIGHTS_TYPES = ("CheXpert", "MoCoCXR", "imagenet", "")
# Bounds of the optional augmentation. No mirror image: the heart is on the left.
MAX_DEGREES, MAX_ZOOM, MAX_SHIFT, MAX_CONTRAST, MAX_BRIGHTNESS = 10.0, 0.1, 0.05, 0.2, 20.0


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

    from chexseg import encoders  # noqa: F401  registers encoders of our own

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


def locate(data_dir: Path, image_id: str, splits: Sequence[str]) -> Path:
    """The image's file, looked for in `splits` in turn. DataError where there is none."""
    for split in splits:
        try:
            return data.find_image(data_dir, image_id, split)
        except DataError:
            continue
    return data.find_image(data_dir, image_id)


def prepare(given: tuple[Path, Sequence[dict | None]], image_size: int) -> Sample:
    """Decode an image and its masks (None: empty), both moved alike: longer side `image_size`, padded to a square.

    The image's shape decides: a mask may be stored at another size, stretched (the classifier's square input, say).
    """
    path, rles = given
    image = data.read_image(path)
    height, width = data.fit_shape(*image.shape, image_size)
    squares = np.zeros((len(rles), image_size, image_size), np.uint8)
    present = [channel for channel, rle in enumerate(rles) if rle is not None]
    squares[present, :height, :width] = masks.resize([rles[channel] for channel in present], (height, width))
    return Sample(data.fit_square(image, image_size), squares, image.shape)


def build_cache(
    folder: Path,
    records: MaskFile,
    splits: Sequence[str],
    *,
    data_dir: Path,
    tasks: Sequence[str],
    image_size: int,
    num_workers: int = 0,
) -> SampleCache:
    """The decoded samples of a masks JSON, below `folder`. A task that an image's record lacks is an empty mask."""
    ids = sorted(records)
    if not ids:
        raise DataError(f"{records.path}: no image in it")
    paths = {name: locate(data_dir, name, splits) for name in ids}

    def given(image_id: str) -> tuple[Path, list[dict | None]]:
        record = records[image_id]
        return paths[image_id], [record.get(task) for task in tasks]

    def fingerprint(image_id: str) -> str:
        path, rles = given(image_id)
        return f"{provenance.stat_fingerprint(path)}:{hashlib.sha256(json.dumps(rles).encode()).hexdigest()}"

    return cache.build(
        folder / cache.cache_name(f"{records.path.stem}_{image_size}", ids, tasks, records.path.absolute().parent.name),
        ids,
        prepare=partial(prepare, image_size=image_size),
        given=given,
        image_size=image_size,
        num_masks=len(tasks),
        record=provenance.describe({}, code=[cache, data, masks, sys.modules[__name__]]),
        item_fingerprint=fingerprint,
        num_workers=num_workers,
    )


class SegmentationSet:
    """Caches one after the other, as a dataset of `draws.Draw`: dicts of `image` (S, S), `masks` (C, S, S) and `id`.

    With `augment`, a draw that has a key is turned, zoomed, shifted and relit by random numbers of its own.
    """

    def __init__(self, caches: Sequence[SampleCache], *, augment: bool = False):
        self.caches, self.augment = list(caches), augment
        self._starts = np.cumsum([0, *map(len, self.caches)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, draw: Draw) -> dict[str, Tensor | str]:
        which = int(np.searchsorted(self._starts, draw.index, side="right")) - 1
        source, index = self.caches[which], draw.index - int(self._starts[which])
        image, inside, _ = source[index]
        if self.augment and draw.key:
            image, inside = augmented(image, inside, np.random.default_rng(draw.key))
        return {"image": torch.from_numpy(image), "masks": torch.from_numpy(inside), "id": source.ids[index]}


def augmented(image: np.ndarray, inside: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A slightly turned, zoomed, shifted and relit copy of image (S, S) and masks (C, S, S); masks stay 0 and 1."""
    size = len(image)
    degrees, zoom = rng.uniform(-MAX_DEGREES, MAX_DEGREES), 1 + rng.uniform(-MAX_ZOOM, MAX_ZOOM)
    matrix = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), degrees, zoom)
    matrix[:, 2] += rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * size
    contrast, brightness = 1 + rng.uniform(-MAX_CONTRAST, MAX_CONTRAST), rng.uniform(-MAX_BRIGHTNESS, MAX_BRIGHTNESS)
    levels = np.clip(np.arange(256) * contrast + brightness, 0, 255).round().astype(np.uint8)
    levels[0] = 0  # what lies outside the film stays black
    image = cv2.warpAffine(cv2.LUT(image, levels), matrix, (size, size), flags=cv2.INTER_LINEAR)
    moved = np.zeros_like(inside)
    for channel in np.flatnonzero(inside.any((1, 2))):
        moved[channel] = cv2.warpAffine(inside[channel], matrix, (size, size), flags=cv2.INTER_NEAREST)
    return image, moved


def make_loss(normalisation: str) -> Callable[[nn.Module, dict], tuple[Tensor, Tensor]]:
    """Dice loss of a batch, and the logits (B, C, S, S): `compute_loss` of `training.fit`."""

    def compute_loss(network: nn.Module, batch: dict) -> tuple[Tensor, Tensor]:
        logits = network(data.normalise(batch["image"], normalisation))
        return dice_loss(logits, batch["masks"]), logits

    return compute_loss


class Evaluator:
    """Scores an epoch on a set and chooses its thresholds: `evaluate` and `tally` of `training.fit`.

    Pooled IoU of each task at 20 thresholds. The score is the mean, over the tasks that occur in the set, of the best
    threshold's IoU. With `common` it is the mean over these tasks only, at the thresholds that are best on the training
    set, as its batches were seen during the epoch. A task that the one set lacks takes the other's threshold; one that
    both lack takes 0.5.
    """

    def __init__(
        self,
        dataset: SegmentationSet,
        spec: SegmentationSpec,
        *,
        common: Sequence[str] = (),
        batch_size: int,
        num_workers: int = 0,
        device: torch.device,
    ):
        self.spec, self.device, self.common = spec, device, list(common)
        self.score_name = "common_iou" if common else "miou"
        self._loader = Loader(dataset, num_workers=num_workers, pin_memory=device.type == "cuda")
        self._plan = in_order(len(dataset), batch_size, rank=distributed.rank(), world_size=distributed.world_size())

    def tally(self, logits: Tensor, batch: dict) -> Tensor:
        """Counts of the batch's pixels (C, 2, 21), see `pooled_iou.PooledIoU`; they add up over batches and ranks."""
        pooled = PooledIoU(len(self.spec.tasks), logits.device)
        pooled.update(logits.detach().float().sigmoid(), batch["masks"])
        return pooled.counts

    def __call__(self, model: nn.Module, train_tally: Tensor) -> dict:
        train, valid = (PooledIoU(len(self.spec.tasks), self.device) for _ in range(2))
        train.counts = train_tally
        with closing(self._loader):
            for batch in self._loader(self._plan):
                batch = to_device(batch, self.device)
                valid.counts += self.tally(model(data.normalise(batch["image"], self.spec.normalisation)), batch)
        valid.all_reduce()
        return self.summarise(valid, train)

    def summarise(self, valid: PooledIoU, train: PooledIoU) -> dict:
        """Metrics and thresholds; None stands for the IoU of a task that does not occur."""
        (first, thresholds), (_, others) = (p.best() for p in ((train, valid) if self.common else (valid, train)))
        thresholds = torch.where(first.isnan(), others, thresholds).tolist()
        iou = dict(zip(self.spec.tasks, valid.at(thresholds).tolist(), strict=True))
        scored = self.common or list(self.spec.tasks)
        score = mean_iou(np.array([iou[task] for task in scored]))
        if np.isnan(score):
            raise DataError(f"the evaluation masks have no pixel of {', '.join(scored)}; check --eval_masks_path")
        return {
            self.score_name: score,
            "train_miou": _known(mean_iou(train.best()[0])),
            "iou": {task: _known(value) for task, value in iou.items()},
            "thresholds": thresholds,
        }


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
