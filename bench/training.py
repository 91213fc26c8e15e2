"""Training: a sample from the cache, a step with its metric, and what precision, layout and compiling are worth."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from bench.evaluation import SIZE as ORIGINAL
from bench.evaluation import TASKS, blobs
from bench.harness import Case, row
from chexseg.data import sample_cache
from chexseg.data.images import normalise
from chexseg.runtime import provenance
from chexseg.segmentation.dataset import SegmentationSet, prepare
from chexseg.segmentation.evaluator import Evaluator
from chexseg.segmentation.model import SegmentationSpec, build_model
from chexseg.training import loop, resuming
from chexseg.training.draws import Draw
from chexseg.training.losses import dice_loss

IMAGE_SIZE, BATCH, IMAGES = 320, 8, 16


@row(
    "training_sample", "one sample of 320 px, 10 masks, from the cache, against decoding a 2320 x 2828 image and masks"
)
def training_sample(device: torch.device) -> Case:
    folder = tempfile.TemporaryDirectory()
    rng, paths = np.random.default_rng(0), []
    for i in range(IMAGES):
        paths.append(Path(folder.name) / f"{i}.jpg")
        smooth = Image.fromarray(rng.integers(0, 256, (58, 71), dtype=np.uint8)).resize(ORIGINAL[::-1])
        smooth.save(paths[i], quality=90)
    rles = [blobs(len(TASKS), seed) for seed in range(IMAGES)]
    ids = [str(i) for i in range(IMAGES)]

    def decode(name: str) -> sample_cache.Sample:
        return prepare((paths[int(name)], rles[int(name)]), IMAGE_SIZE)

    made = sample_cache.build(
        Path(folder.name) / "cache.npy",
        ids,
        prepare=decode,
        image_size=IMAGE_SIZE,
        num_masks=len(TASKS),
        record=provenance.describe({}),
        item_fingerprint=str,
    )
    dataset = SegmentationSet([made])

    def cached(folder: object = folder) -> list[dict]:  # holds the folder for as long as the row lives
        return [dataset[Draw(i)] for i in range(IMAGES)]

    def equal(ours: list[dict], reference: list[sample_cache.Sample]) -> float:
        pairs = zip(ours, reference, strict=True)
        same = [np.array_equal(a["image"], b.image) and np.array_equal(a["masks"], b.masks) for a, b in pairs]
        return float(np.mean(same))

    return Case(
        ours=cached,
        reference=lambda: [decode(name) for name in ids],
        reference_repeats=2,
        agreement=equal,
        least_agreement=1.0,
        limit_s=2e-3,
        items=IMAGES,
    )


class Step:
    """One training step of DeepLabV3+ with ResNet-18; like every call of it, on the same batch."""

    def __init__(self, device: torch.device, size: int, *, precision: str = "fp32", channels_last: bool = False):
        loop.seed_everything(0)
        spec = SegmentationSpec("DeepLabV3Plus", "resnet18", TASKS, size)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = build_model(spec).to(device, memory_format=layout).train()
        self.network: nn.Module = self.model
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-4)
        self.normalisation = spec.normalisation
        self.device, self.precision = device, precision
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (BATCH, size, size), dtype=torch.uint8, generator=generator)
        masks = torch.zeros(BATCH, len(TASKS), size, size, dtype=torch.uint8)
        masks[:, :, size // 4 : size // 2, size // 4 : size // 2] = 1
        self.batch = loop.to_device({"image": images, "masks": masks}, device)

    def compute_loss(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As a segmentation trainer's."""
        logits = self.network(normalise(self.batch["image"], self.normalisation))
        return dice_loss(logits, self.batch["masks"]), logits

    def forward_backward(self) -> float:
        """The floor: loss and gradients."""
        loop.seed_everything(0)
        self.optimizer.zero_grad(set_to_none=True)
        with loop.autocast(self.device, self.precision):
            loss, self.logits = self.compute_loss()
        loss.backward()
        return loss.detach().item()


def close(ours: float, reference: float) -> float:
    return 1 - abs(ours - reference)


@row(
    "training_step",
    "what a training step adds to forward and backward, batch 8 at 320 px: Adam, the loss checked and counted, IoU at "
    "20 thresholds; against forward and backward",
)
def training_step(device: torch.device) -> Case:
    step = Step(device, IMAGE_SIZE)
    evaluator = Evaluator(
        SegmentationSet([]),
        SegmentationSpec("DeepLabV3Plus", "resnet18", TASKS),
        batch_size=BATCH,
        device=device,
    )
    progress = resuming.Progress()
    loss = torch.tensor(step.forward_backward(), device=device)

    def rest() -> None:  # as in `loop.fit`; timed by itself, since clocks differ by more than 3% from step to step
        step.optimizer.step()
        if not torch.isfinite(loss):
            raise FloatingPointError
        progress.count(loss, BATCH, evaluator.tally(step.logits, step.batch))

    return Case(ours=rest, reference=step.forward_backward, max_ratio=0.03)


def option(name: str, title: str, change: Callable[[Step], None] | None = None, **options) -> None:
    """A row that measures one option of the training scripts against 32-bit floats in the plain layout."""

    @row(f"training_{name}", f"forward and backward, batch 8 at 160 px, {title}, against plain 32-bit floats")
    def measure(device: torch.device) -> Case:
        ours, reference = Step(device, 160, **options), Step(device, 160)
        if change:
            change(ours)
        return Case(ours.forward_backward, reference.forward_backward, agreement=close, least_agreement=0.99)


def compile_network(step: Step) -> None:
    step.network = torch.compile(step.model)


option("channels_last", "--channels_last", channels_last=True)
option("bf16", "--precision bf16", precision="bf16")
option("compile", "--compile", compile_network)
