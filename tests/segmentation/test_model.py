"""Segmentation networks: what can be built, encoders from others' weights, saving and loading."""

import pytest
import torch
from torch import nn

from chexseg.classifier import models
from chexseg.errors import DataError, UsageError
from chexseg.segmentation.model import (
    SegmentationSpec,
    build_model,
    load_encoder,
    load_model,
    normalisation_for,
    save_model,
)
from tests.segmentation.small import SPEC


def test_model_gives_a_logit_map_per_task():
    model = build_model(SPEC)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3, 32, 32)
    assert model.segmentation_head[0].in_channels == 16


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architecture": "Nothing"}, "Nothing"),
        ({"encoder": "resnet999"}, "resnet999"),
        ({"image_size": 40}, "multiple of 16"),
        ({"architecture": "Unet"}, "--decoder_channels 16"),
    ],
)
def test_what_cannot_be_built_is_wrong_usage(change, named):
    with pytest.raises(UsageError, match=named):
        build_model(SegmentationSpec(**(vars(SPEC) | change)))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "classifier.pth"
    torch.manual_seed(0)
    spec = models.ClassifierSpec("resnet10w32", ("A", "B"), normalisation="imagenet")
    network = models.Classifier(spec)
    models.save_classifier(path, network)
    return path, network.network.state_dict()


def encoder_equals(model, tensors):
    return all(torch.equal(v, tensors[k]) for k, v in model.encoder.state_dict().items())


def test_encoder_starts_from_a_classifier(classifier, tmp_path):
    path, tensors = classifier
    model = build_model(SPEC)
    assert not encoder_equals(model, tensors)
    assert load_encoder(model, SPEC, str(path), "CheXpert") == path
    assert encoder_equals(model, tensors)
    assert normalisation_for(str(path), "CheXpert") == "imagenet"  # as it was trained
    chexpert = models.Classifier(models.ClassifierSpec("resnet10w32", ("a",), normalisation="chexpert"))
    models.save_classifier(tmp_path / "c.ckpt", chexpert)
    for kind in ("CheXpert", "imagenet", ""):
        assert normalisation_for(str(tmp_path / "c.ckpt"), kind) == "chexpert"


def test_encoder_starts_from_a_lightning_or_moco_checkpoint(classifier, tmp_path):
    _, tensors = classifier
    other = {k: v + 1 for k, v in tensors.items()}
    lightning = {"state_dict": {f"model.model.{k}": v for k, v in tensors.items()}, "epoch": 2}
    queries = {f"module.encoder_q.{k}": v for k, v in tensors.items()}
    moco = {"state_dict": {f"module.encoder_k.{k}": v for k, v in other.items()} | queries}
    for kind, content in (("CheXpert", lightning), ("MoCoCXR", moco)):
        torch.save(content, tmp_path / kind)
        model = build_model(SPEC)
        load_encoder(model, SPEC, str(tmp_path / kind), kind)
        assert encoder_equals(model, tensors)
        assert normalisation_for(str(tmp_path / kind), kind) == "chexpert"
    with pytest.raises(DataError, match="encoder_q"):
        load_encoder(model, SPEC, str(tmp_path / "CheXpert"), "MoCoCXR")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda t: t.pop("layer1.0.conv2.weight"), r"layer1\.0\.conv2\.weight|unknown shapes"),
        (lambda t: t.update({"layer9.weight": torch.zeros(1)}), r"layer9\.weight|unknown shapes"),
        (lambda t: t.update({"layer1.0.conv2.weight": torch.zeros(32, 32, 1, 1)}), "conv2|unknown shapes"),
    ],
    ids=["missing", "unexpected", "misshapen"],
)
def test_encoder_weights_that_do_not_fit_are_named(classifier, tmp_path, spoil, named):
    tensors = dict(classifier[1])
    spoil(tensors)
    torch.save(tensors, tmp_path / "bad.pth")
    with pytest.raises(DataError, match=named):
        load_encoder(build_model(SPEC), SPEC, str(tmp_path / "bad.pth"), "CheXpert")


def test_an_encoder_of_another_architecture_is_refused(classifier):
    spec = SegmentationSpec(**(vars(SPEC) | {"encoder": "resnet18"}))
    with pytest.raises(DataError, match="holds a resnet10w32, but --encoder is resnet18"):
        load_encoder(nn.Module(), spec, str(classifier[0]), "CheXpert")


def test_imagenet_weights_are_never_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    spec = SegmentationSpec(**(vars(SPEC) | {"encoder": "resnet18"}))
    for weights, kind in (("imagenet", ""), ("", "imagenet"), ("imagenet", "imagenet")):
        with pytest.raises(DataError, match=r"resnet18.*no ImageNet weights here; download"):
            load_encoder(nn.Module(), spec, weights, kind)
        assert normalisation_for(weights, kind) == "imagenet"


@pytest.mark.parametrize("weights", ["", "none", "None"])
def test_random_encoder(weights):
    model = build_model(SPEC)
    before = {k: v.clone() for k, v in model.encoder.state_dict().items()}
    assert load_encoder(model, SPEC, weights, "") is None
    assert encoder_equals(model, before)
    assert normalisation_for(weights, "") == "chexpert"
    for kind in ("CheXpert", "MoCoCXR"):
        with pytest.raises(UsageError, match=f"{kind} needs --encoder_weights"):
            normalisation_for(weights, kind)
        with pytest.raises(UsageError, match=f"{kind} needs --encoder_weights"):
            load_encoder(model, SPEC, weights, kind)


def test_saved_model_comes_back_whole(tmp_path):
    model = build_model(SPEC)
    save_model(tmp_path / "best.pth", model.state_dict(), SPEC, {"epoch": 3, "miou": 0.5})
    found, spec, chosen = load_model(tmp_path / "best.pth")
    assert spec == SPEC and chosen == {"epoch": 3, "miou": 0.5} and not found.training
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(found(images), model.eval()(images))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "bare.pth")
    with pytest.raises(DataError, match="bare.pth: a segmentation network's weights alone"):
        load_model(tmp_path / "bare.pth")
    torch.save({"state_dict": model.encoder.state_dict()}, tmp_path / "encoder.pth")
    with pytest.raises(DataError, match="encoder.pth: not a segmentation model"):
        load_model(tmp_path / "encoder.pth")
