"""Checkpoints of every kind load exactly or fail by name, and nothing that they hold is ever run."""

import argparse
import os
import pickle
import zipfile
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch

from chexseg.classifier import checkpoints, models, networks
from chexseg.classifier.models import Classifier, ClassifierSpec
from chexseg.data import plain_pickles, safe_loading
from chexseg.errors import DataError, UsageError
from chexseg.segmentation import encoders

TASKS = tuple(f"task{i}" for i in range(14))


class AttributeDict(dict):
    """Stands for Lightning's class of that name, which is not there when a checkpoint is read."""


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def outputs(model):
    torch.manual_seed(1)
    with torch.no_grad():
        return model.eval()(torch.randn(1, 3, 64, 64))


def test_a_torchscript_program_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:  # what tells it from a checkpoint
        archive.writestr("program/constants.pkl", b"")
    with pytest.raises(DataError, match="program.pt: a TorchScript program, which is not run"):
        safe_loading.load_checkpoint(tmp_path / "program.pt")


@pytest.mark.parametrize("three_way", [False, True])
@pytest.mark.parametrize("architecture", ["resnet10w32", "resnet18", "densenet121", "mobilenet_v2"])
def test_foreign_checkpoint_is_told_from_its_tensors(tmp_path, architecture, three_way):
    model = Classifier(ClassifierSpec(architecture, TASKS, three_way))
    path = tmp_path / "epoch=2-chexpert_competition_AUROC=0.89.ckpt"
    weights = {f"model.model.{k}": v for k, v in model.network.state_dict().items()}
    torch.save({"epoch": 2, "state_dict": weights, "hyper_parameters": argparse.Namespace(lr=1)}, path)
    loaded = models.load_classifier(path, TASKS)
    assert loaded.spec == ClassifierSpec(architecture, TASKS, three_way)
    torch.testing.assert_close(outputs(loaded), outputs(model), rtol=0, atol=0)


@pytest.mark.parametrize("new_format", [False, True])
def test_lightning_checkpoint_with_foreign_classes(tmp_path, new_format, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = Classifier(ClassifierSpec("resnet10w32", TASKS))
    content = {
        "state_dict": {f"model.model.{k}": v for k, v in model.network.state_dict().items()},
        "hyper_parameters": AttributeDict(args=argparse.Namespace(folder=PurePosixPath("/scratch"))),
        "optimizer_states": [{"step": np.float64(3.0)}],
    }
    torch.save(content, "model.ckpt", _use_new_zipfile_serialization=new_format)
    loaded = models.load_classifier("model.ckpt", TASKS)
    torch.testing.assert_close(outputs(loaded), outputs(model), rtol=0, atol=0)
    torch.save(content | {"hyper_parameters": Bomb()}, "model.ckpt", _use_new_zipfile_serialization=new_format)
    with pytest.raises(DataError, match=r"model.ckpt: it holds posix.system, which is not loaded"):
        models.load_classifier("model.ckpt", TASKS)
    assert os.listdir() == ["model.ckpt"]


def test_our_own_checkpoint_round_trip(tmp_path):
    spec = ClassifierSpec("resnet10w32", ("Edema", "Fracture"), True, 96, "chexpert")
    model = Classifier(spec)
    models.save_classifier(tmp_path / "a.ckpt", model)
    loaded = models.load_classifier(tmp_path / "a.ckpt", TASKS)
    assert loaded.spec == spec and not loaded.training
    torch.testing.assert_close(outputs(loaded), outputs(model), rtol=0, atol=0)
    torch.load(tmp_path / "a.ckpt", weights_only=True)


def saved(tmp_path, change):
    weights = Classifier(ClassifierSpec("resnet10w32", TASKS)).network.state_dict()
    change(weights)
    torch.save({"state_dict": weights}, tmp_path / "bad.ckpt")
    return tmp_path / "bad.ckpt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("layer2.0.bn1.weight"), "bad.ckpt: a resnet with unknown shapes"),
        (lambda w: w.update({"layer2.0.extra": torch.ones(1)}), "bad.ckpt: a resnet with unknown shapes"),
        (lambda w: w.pop("fc.weight"), "bad.ckpt: expected one linear head 'fc', found none"),
        (lambda w: w.update({"fc.weight": torch.ones(5, 256)}), "its head has 5 outputs, expected 14 or 42"),
        (lambda w: w.pop("fc.bias"), "bad.ckpt: no tensor 'fc.bias'"),
        (lambda w: w.pop("conv1.weight"), "bad.ckpt: neither a ResNet, a DenseNet nor a MobileNetV2"),
        (lambda w: w.clear(), "bad.ckpt: no tensors in it"),
    ],
)
def test_wrong_weights_are_named(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        models.load_classifier(saved(tmp_path, change), TASKS)


def test_head_under_another_index(tmp_path):
    def move(weights):
        for name in ("weight", "bias"):
            weights[f"fc.0.{name}"] = weights.pop(f"fc.{name}")

    assert models.load_classifier(saved(tmp_path, move), TASKS).spec.architecture == "resnet10w32"


@pytest.mark.parametrize("content", [b"", b"nonsense", pickle.dumps([1, 2])])
def test_files_that_are_no_checkpoints_are_named(tmp_path, content):
    (tmp_path / "bad.ckpt").write_bytes(content)
    with pytest.raises(DataError, match="bad.ckpt: "):
        safe_loading.load_checkpoint(tmp_path / "bad.ckpt")
    with pytest.raises(DataError, match="none.ckpt: no such checkpoint"):
        safe_loading.load_checkpoint(tmp_path / "none.ckpt")


def test_pickles_load_tensors_and_arrays_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = {"map": torch.rand(1, 1, 3, 2), "array": np.arange(3), "scalar": np.float32(2), "task": "Edema", "n": (1, 2)}
    with open("good.pkl", "wb") as file:
        pickle.dump(good, file)
    found = plain_pickles.load_pickle("good.pkl")
    torch.testing.assert_close(found["map"], good["map"])
    assert found["array"].tolist() == [0, 1, 2] and found["scalar"] == 2 and found["n"] == (1, 2)
    for bad, name in ((Bomb(), "posix.system"), (argparse.Namespace(a=1), "argparse.Namespace")):
        with open("bad.pkl", "wb") as file:
            pickle.dump({"map": torch.ones(1), "more": bad}, file)
        with pytest.raises(DataError, match=rf"bad.pkl: holds an object of class {name}"):
            plain_pickles.load_pickle("bad.pkl")
    assert not os.path.exists("exploded")


def test_a_bomb_inside_a_tensor_is_refused(tmp_path, monkeypatch):
    """A tensor's bytes are a pickle of their own, which torch itself would run."""
    monkeypatch.chdir(tmp_path)

    class Nested:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (b"\x80\x02cposix\nsystem\nX\x0e\x00\x00\x00touch exploded\x85R.",)

    with open("bad.pkl", "wb") as file:
        pickle.dump(Nested(), file)
    with pytest.raises(DataError, match="bad.pkl"):
        plain_pickles.load_pickle("bad.pkl")
    assert not os.path.exists("exploded")


def test_backbone_of_a_moco_checkpoint(tmp_path):
    weights = Classifier(ClassifierSpec("resnet18", TASKS)).network.state_dict()
    moco = {f"module.encoder_q.{k}": v for k, v in weights.items()}
    moco |= {f"module.encoder_k.{k}": torch.zeros_like(v) for k, v in weights.items()}
    torch.save({"state_dict": moco}, tmp_path / "moco.pth")
    architecture, tensors = models.load_backbone(tmp_path / "moco.pth", keys="encoder_q")
    assert architecture == "resnet18" and not any(k.startswith("fc") for k in tensors)
    torch.testing.assert_close(tensors["conv1.weight"], weights["conv1.weight"])
    with pytest.raises(DataError, match="no tensor under 'encoder_z'"):
        models.load_backbone(tmp_path / "moco.pth", keys="encoder_z")


def test_load_exactly_refuses_what_does_not_fit():
    network = networks.build_network("resnet10w32", 3)
    weights = network.state_dict()
    with pytest.raises(DataError, match="unexpected tensor 'rabbit'"):
        checkpoints.load_exactly(network, weights | {"rabbit": torch.ones(1)}, "w.pth")
    with pytest.raises(DataError, match=r"'fc.weight' is \(5, 256\), expected \(3, 256\)"):
        checkpoints.load_exactly(network, weights | {"fc.weight": torch.ones(5, 256)}, "w.pth")
    checkpoints.load_exactly(network, weights | {"fc.weight": torch.ones(5, 256)}, "w.pth", but_for=("fc",))


def test_imagenet_weights_that_are_not_there_are_named(tmp_path):
    with pytest.raises(DataError, match=r"resnet18-.*pth: no ImageNet weights here; download https"):
        models.pretrained_backbone("resnet18", tmp_path)
    with pytest.raises(UsageError, match="resnet10w32 has no ImageNet weights"):
        models.pretrained_backbone("resnet10w32", tmp_path)
    with pytest.raises(UsageError, match="'alexnet' is not a supported classifier"):
        networks.build_network("alexnet", 1)


def test_narrow_encoder_takes_the_narrow_classifiers_weights():
    encoder = encoders.smp.encoders.get_encoder("resnet10w32", weights=None)
    network = networks.build_network("resnet10w32", 3)
    weights = {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}
    checkpoints.load_exactly(encoder, weights, "w.pth")
    with torch.no_grad():
        features = encoder.eval()(torch.randn(1, 3, 64, 64))
    assert [f.shape[1] for f in features] == [3, 32, 32, 64, 128, 256]
