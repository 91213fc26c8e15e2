"""Saliency: closed-form Grad-CAM against one forward pass, against libraries, and the whole stage against its floor."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from bench.harness import Case, require, row
from chexseg.classifier import cam, models, saliency_store
from chexseg.classifier.dataset import ImageSet, read_batches
from chexseg.data import chexpert
from chexseg.data.images import normalise, read_image, resize_square

TASKS = tuple(f"task {i}" for i in range(14))
SIZE, IMAGES = 320, 48


@cache
def classifier(device: torch.device) -> models.Classifier:
    """A ResNet-18 whose probabilities are near a half."""
    torch.manual_seed(0)
    model = models.Classifier(models.ClassifierSpec("resnet18", TASKS)).eval().to(device)
    with torch.no_grad():
        model.head.weight /= model.features(torch.randn(1, 3, 64, 64, device=device)).mean((2, 3)).norm()
    return model


def one_image(device: torch.device) -> torch.Tensor:
    return torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).to(device)


def relative(ours: torch.Tensor, other: torch.Tensor) -> float:
    """1 less the largest difference over the largest value."""
    return 1 - float((ours - other).abs().max() / other.abs().max())


@row("saliency_forward", "Grad-CAM of 14 tasks, one 320-px image, ResNet-18; reference: one forward pass")
def forward(device: torch.device) -> Case:
    model, image = classifier(device), one_image(device)
    return Case(
        ours=lambda: cam.saliency(model, image)[1],
        reference=torch.no_grad()(lambda: model(image).sigmoid()),
        agreement=relative,
        least_agreement=0.99999,
        max_ratio=1.15,
    )


@row("saliency_autograd", "the same; reference: a backward pass of the probability per task, as in the original")
def autograd(device: torch.device) -> Case:
    model, image = classifier(device), one_image(device)

    def one_by_one() -> torch.Tensor:
        maps = []
        for task in range(len(TASKS)):
            features = model.features(image)
            features.retain_grad()
            model.logits_from_features(features)[0, task].sigmoid().backward()
            maps.append((features.grad.mean((2, 3), keepdim=True) * features).sum(1).relu().detach())
        return torch.stack(maps, 1)

    return Case(
        ours=lambda: cam.saliency(model, image)[0],
        reference=one_by_one,
        agreement=relative,
        least_agreement=0.99999,
        max_ratio=1 / 10,
    )


@row("saliency_captum", "the same; reference: captum's LayerGradCam per task")
def captum(device: torch.device) -> Case:
    require("captum")
    from captum.attr import LayerGradCam

    model, image = classifier(device), one_image(device)
    method = LayerGradCam(lambda x: model(x).sigmoid(), model.network.layer4)
    return Case(
        ours=lambda: cam.saliency(model, image)[0],
        reference=lambda: torch.cat(
            [method.attribute(image, target=t, relu_attributions=True).detach() for t in range(len(TASKS))], 1
        ),
        agreement=relative,
        least_agreement=0.99999,
        max_ratio=1 / 10,
    )


@row("saliency_library", "the same; reference: the package grad-cam per task")
def library(device: torch.device) -> Case:
    require("grad-cam")
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, image = classifier(device), one_image(device)
    method = GradCAM(model=model, target_layers=[model.network.layer4])
    return Case(
        ours=lambda: cam.saliency(model, image)[0],
        reference=lambda: [method(image, [ClassifierOutputTarget(t)]) for t in range(len(TASKS))],
        max_ratio=1 / 10,
        note="it scales each map to 0..1, so maps are not compared",
    )


@cache
def films() -> ImageSet:
    """Noisy JPEGs of 390 x 320, CheXpert-small's size."""
    root = Path(tempfile.mkdtemp(prefix="chexseg_bench_"))
    rng = np.random.default_rng(0)
    rows = []
    for i in range(IMAGES):
        path = root / f"CheXpert/CheXpert-v1.0/train/patient{i:05d}/study1/view1_frontal.jpg"
        path.parent.mkdir(parents=True)
        Image.fromarray(rng.normal(128, 25, (320, 390)).clip(0, 255).astype(np.uint8)).save(path)
        rows.append({"Path": str(path.relative_to(root / "CheXpert"))})
    frame = pd.DataFrame(rows, index=[chexpert.image_id(r["Path"]) for r in rows])
    return ImageSet(root, frame, root / "train.csv")


@row("saliency_stage", "reading, maps, predictions and writing, per image; reference: reading and one forward pass")
def stage(device: torch.device) -> Case:
    model, images = classifier(device), films()
    output = images.data_dir / "part"

    def whole() -> np.ndarray:
        found = []
        for ids, pixels, sizes in read_batches(images, images.ids, SIZE, 16, 0):
            maps, p = cam.saliency(model, normalise(pixels.to(device), "imagenet"))
            maps, p = maps.cpu().numpy(), p.cpu().numpy()
            found += [{"id": n, "maps": maps[i], "probabilities": p[i], "size": sizes[i]} for i, n in enumerate(ids)]
        saliency_store.StoreShards(TASKS, SIZE, len(found)).write(found, output)
        return np.stack([f["probabilities"] for f in found])

    @torch.no_grad()
    def floor() -> np.ndarray:
        squares = [resize_square(read_image(images.path(n)), SIZE) for n in images.ids]
        batches = torch.from_numpy(np.stack(squares)).split(16)
        return torch.cat([model(normalise(b.to(device), "imagenet")).sigmoid().cpu() for b in batches]).numpy()

    return Case(
        ours=whole,
        reference=floor,
        agreement=lambda a, b: 1 - float(np.abs(a - b).max()),
        least_agreement=0.99999,
        max_ratio=1.15,
        items=IMAGES,
    )
