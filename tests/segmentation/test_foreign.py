"""Segmentation networks of the original's training and of segmentation_models_pytorch, made here as they make them."""

import json

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from safetensors.torch import save_file

import constants
from chexseg.data.mask_files import MaskFile
from chexseg.errors import DataError
from chexseg.segmentation.foreign import side_files
from chexseg.segmentation.model import load_model
from tests.irnet.six_films import run

CLASSES = list(constants.LOCALIZATION_TASKS)
# Version 0.1 of the library, which the original used, had a plain sequence as DeepLabV3's decoder. All other names of
# its DeepLabV3Plus, Unet, UnetPlusPlus and FPN are today's.
OLD = {"decoder.aspp.": "decoder.0.", "decoder.conv.": "decoder.1.", "decoder.bn.": "decoder.2."}


def original(folder, architecture="DeepLabV3Plus", *, change=lambda args: None, **tensors):
    """A folder as the original's segmentation_train.py leaves it; returns its network."""
    torch.manual_seed(0)
    network = smp.create_model(architecture, "resnet18", encoder_weights=None, classes=len(CLASSES)).eval()
    weights = network.state_dict()
    if architecture == "DeepLabV3":
        weights = {
            next((OLD[k] + key[len(k) :] for k in OLD if key.startswith(k)), key): weights[key] for key in weights
        }
        assert "decoder.0.project.0.weight" in weights and "decoder.1.weight" in weights
    args = {
        "data_args": {"batch_size": 8, "classes": CLASSES, "semi_supervised": True, "task": None},
        "gpu_ids": "-1",
        "logger_args": {"experiment_name": "semi", "save_dir": "/deep/group/x"},
        "model_args": {"architecture": architecture, "device": "cuda", "encoder": "resnet18",
                       "encoder_weights": "/deep/ckpt", "encoder_weights_type": "CheXpert", "seed": 17},
        "optim_args": {"lr": 1e-4, "num_epochs": 20},
        "transform_args": {"scale": 64},
    }  # fmt: skip
    change(args)
    folder.mkdir(exist_ok=True)
    torch.save(weights | tensors, folder / "best_model.pth")
    (folder / "thresholds.txt").write_text(json.dumps([i * 0.05 for i in range(3, 13)]))
    (folder / "args.json").write_text(json.dumps(args, indent=4, sort_keys=True) + "\n")
    return network


@torch.no_grad()
def agree(one, other, size=64):
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return torch.equal(one(images), other(images))


@pytest.mark.parametrize("architecture", ["DeepLabV3Plus", "DeepLabV3", "Unet"])
def test_the_originals_network(tmp_path, architecture):
    network = original(tmp_path, architecture)
    found, spec, _ = load_model(tmp_path / "best_model.pth")
    assert agree(found, network) and not found.training
    assert (spec.architecture, spec.encoder, spec.tasks) == (architecture, "resnet18", tuple(CLASSES))
    assert (spec.image_size, spec.normalisation) == (64, "chexpert")


def test_its_input_is_normalised_as_its_encoder_weights_want(tmp_path):
    original(tmp_path, "Unet", change=lambda args: args["model_args"].update(encoder_weights="imagenet"))
    assert load_model(tmp_path / "best_model.pth")[1].normalisation == "imagenet"


def test_it_predicts_masks_of_any_films(tmp_path):
    original(tmp_path / "semi")
    (tmp_path / "films").mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        Image.fromarray(rng.integers(0, 256, (70, 50), np.uint8)).save(tmp_path / "films" / f"{number}.png")
    options = ("--model_path", tmp_path / "semi" / "best_model.pth", "--images", tmp_path / "films")
    assert run("segmentation_predict.py", *options, "--output_dir", tmp_path / "out", "--page", "False") == 0
    masks = MaskFile(tmp_path / "out" / "masks.json")
    assert [list(entry) for entry in masks.values()] == [CLASSES, CLASSES]


def test_a_folder_of_save_pretrained(tmp_path):
    network = smp.Unet("resnet18", encoder_weights=None, classes=2).eval()
    network.save_pretrained(str(tmp_path))
    found, spec, _ = load_model(tmp_path / "model.safetensors")
    assert agree(found, network) and spec.tasks == ("class 1", "class 2")


def test_what_stands_before_the_names_does_not_matter(tmp_path):
    network = original(tmp_path, "Unet")
    wrapped = {f"module.{key}": value for key, value in network.state_dict().items()}
    save_file(wrapped, tmp_path / "parallel.safetensors")
    assert agree(load_model(tmp_path / "parallel.safetensors")[0], network)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda args: args.pop("model_args"), "args.json: no 'model_args' in it that is a dict"),
        (lambda args: args["model_args"].update(encoder=3), "args.json: no 'encoder' in it that is a str"),
        (lambda args: args["transform_args"].update(scale=0), "args.json: no 'scale' in it that is a int"),
        (lambda args: args["data_args"].update(classes=CLASSES[:3]), "10 outputs, but .*args.json names 3 classes"),
        (lambda args: args["data_args"].update(classes=[1] * 10), "args.json: 'classes' are not names"),
        (
            lambda args: args["model_args"].update(encoder="resnet34"),
            "no tensor 'encoder.layer1.2.conv1.weight'",
        ),
    ],
)
def test_what_does_not_go_together_is_named(tmp_path, change, message):
    original(tmp_path, "Unet", change=change)
    with pytest.raises(DataError, match=message):
        load_model(tmp_path / "best_model.pth")


def test_weights_alone_are_not_enough(tmp_path):
    original(tmp_path, "Unet")
    (tmp_path / "args.json").unlink()
    with pytest.raises(DataError, match="weights alone; put the args.json of its training"):
        load_model(tmp_path / "best_model.pth")
    (tmp_path / "args.json").write_text("{")
    with pytest.raises(DataError, match="args.json: not whole JSON"):
        load_model(tmp_path / "best_model.pth")


def test_unknown_tensors_are_named(tmp_path):
    original(tmp_path, "Unet", extra=torch.ones(1), other=torch.ones(2))
    with pytest.raises(DataError, match="unexpected tensor 'extra', unexpected tensor 'other'; it does not fit a Unet"):
        load_model(tmp_path / "best_model.pth")


def test_what_says_how_a_network_is_to_be_used_is_an_input_of_its_masks(tmp_path, capsys):
    """Another size in the args.json, or another threshold, is another mask; a record of our own training is neither."""
    original(tmp_path / "run", "Unet")
    film = np.random.default_rng(0).integers(0, 255, (70, 64), np.uint8)
    Image.fromarray(film).save(tmp_path / "film.png")

    def predicted():
        assert 0 == run(
            "segmentation_predict.py", "--model_path", tmp_path / "run" / "best_model.pth", "--images",
            tmp_path / "film.png", "--output_dir", tmp_path / "out", "--page", "False", "--overlays", "False",
        )  # fmt: skip
        return (tmp_path / "out" / "masks.json").stat().st_mtime_ns

    first = predicted()
    assert predicted() == first
    args = tmp_path / "run" / "args.json"
    args.write_text(args.read_text().replace('"scale": 64', '"scale": 96'))
    second = predicted()
    assert second != first
    (tmp_path / "run" / "thresholds.txt").write_text(json.dumps([0.25] * len(CLASSES)))
    assert predicted() != second
    assert [path.name for path in side_files(tmp_path / "run" / "best_model.pth")] == ["args.json"]
    args.write_text('{"arguments": {}}')
    assert side_files(tmp_path / "run" / "best_model.pth") == []
