"""segmentation_predict.py as a whole against what it cannot avoid: reading its films and one forward pass."""

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import constants
import segmentation_predict
from bench.harness import Case, row
from chexseg.data.images import fit_square, normalise, read_image
from chexseg.phantom import dataset
from chexseg.phantom.presets import Spec
from chexseg.segmentation.model import SegmentationSpec, build_model, save_model

SIZE, FILMS, BATCH, MARKED = 320, 32, 8, 3
SIDES, LARGE = (64, 128, 256, 390, 512), (2828,)
FORMATS = ("film.jpg", "film.png", "deep.png", "film.tif")


def films(root: Path, sides: Sequence[int], formats: Sequence[str]) -> Path:
    """Phantoms whose longer sides are `sides`, as JPEG, PNG of 8 and of 16 bits, and TIFF; large ones with grain."""
    dataset.generate(Spec(4, 0, 0, SIDES[-1], 0, cover=False), root / "data", root / "labels")
    random = np.random.default_rng(0)
    drawn = sorted((root / "data").rglob("*.jpg"))
    for number in range(FILMS):
        name, side = formats[number % len(formats)], sides[number % len(sides)]
        path = root / "films" / str(number) / name
        path.parent.mkdir(parents=True)
        image = Image.fromarray(read_image(drawn[number % len(drawn)]))
        image.thumbnail((side, side))
        if side > SIDES[-1]:
            pixels = np.asarray(image.resize((side * 58 // 70, side), Image.Resampling.BICUBIC))
            image = Image.fromarray((pixels + random.normal(0, 2, pixels.shape)).clip(0, 255).astype(np.uint8))
        deep = name.startswith("deep")
        (Image.fromarray(np.asarray(image).astype(np.uint16) * 200) if deep else image).save(path)
    return root / "films"


@torch.no_grad()
def network(path: Path) -> torch.nn.Module:
    """The paper's, with random weights, made to mark smooth areas of three findings a film, as experts do."""
    tasks = constants.LOCALIZATION_TASKS
    spec = SegmentationSpec("DeepLabV3Plus", "resnet18", tasks, SIZE)
    torch.manual_seed(0)
    model = build_model(spec).eval()
    model.decoder.block1[0].weight.zero_()  # fine detail of random weights is noise
    head = model.segmentation_head[0]
    spread = model(torch.rand(2, 3, SIZE, SIZE)).std((0, 2, 3))
    head.weight.div_(spread[:, None, None, None])
    head.bias.copy_(torch.tensor([-1.0] * MARKED + [-20.0] * (len(tasks) - MARKED)))
    save_model(path, model.state_dict(), spec, {})
    path.with_name("thresholds.txt").write_text(json.dumps([0.5] * len(tasks)))
    return model


@row(
    "predict_stage",
    "masks, findings, overlays, page of mixed films, per film; reference: reading and a forward pass",
)
def small(device: torch.device) -> Case:
    return stage(device, SIDES, FORMATS)


@row("predict_stage_large", "the same of films of 2343 x 2828")
def large(device: torch.device) -> Case:
    return stage(device, LARGE, FORMATS)


@row("predict_stage_jpeg", "the same of films of 2343 x 2828, JPEG alone, which is read fastest")
def large_jpeg(device: torch.device) -> Case:
    return stage(device, LARGE, FORMATS[:1], target=None)


def stage(device: torch.device, sides: Sequence[int], formats: Sequence[str], target: float | None = 1.25) -> Case:
    root = Path(tempfile.mkdtemp(prefix="chexseg_bench_"))
    paths, model = films(root, sides, formats), network(root / "best_model.pth").to(device)
    options = f"--model_path {root}/best_model.pth --images {paths} --output_dir {root}/out --device {device}"
    order = sorted(path for path in paths.rglob("*.*"))

    def whole() -> float:
        shutil.rmtree(root / "out", ignore_errors=True)
        segmentation_predict.main(segmentation_predict.build_parser().parse_args(options.split()))
        return float(len(json.loads((root / "out" / "masks.json").read_text())))

    @torch.inference_mode()
    def floor() -> float:
        total = 0
        for first in range(0, len(order), BATCH):
            squares = [fit_square(read_image(path), SIZE) for path in order[first : first + BATCH]]
            pixels = torch.from_numpy(np.stack(squares)).to(device)
            total += len(model(normalise(pixels, "imagenet")).sigmoid().cpu())
        return float(total)

    return Case(
        ours=whole,
        reference=floor,
        agreement=lambda ours, theirs: float(ours == theirs),
        least_agreement=1,
        max_ratio=target,
        items=FILMS,
        clock=time.process_time,
        note="processor's time; DeepLabV3+ on ResNet-18, 320 px, loading it included",
    )
