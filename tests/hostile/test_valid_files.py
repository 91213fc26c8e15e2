"""Files that must go on loading, one of each kind: whoever closes a door finds here what it must let through."""

import argparse
import json
import pickle
from pathlib import PurePosixPath

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch

from chexseg.classifier import checkpoints, models, saliency_masks
from chexseg.classifier.saliency_pickles import PickledMaps
from chexseg.data import chexpert, mask_files, names, rle
from chexseg.data.coco_files import CocoFile
from chexseg.evaluation import film_list
from chexseg.irnet import boundary_net
from chexseg.segmentation import model as networks

TASKS = ("Edema", "Airspace Opacity")
ALIASES = {"Lung Opacity": "Airspace Opacity"}


class AttributeDict(dict):
    """Lightning's class of that name."""


def resnet(num_outputs=2):
    return models.build_network("resnet10w32", num_outputs).state_dict()


@pytest.mark.parametrize("new", [True, False], ids=["zip", "torch 1.4"])
@pytest.mark.parametrize("maker", ["Lightning 0.9", "torchvision", "MoCo", "smp", "data parallel"])
def test_weights_of_others(tmp_path, maker, new):
    weights, path, keys = resnet(), tmp_path / "epoch=2-chexpert_competition_AUROC=0.89.ckpt", ""
    content: dict = {"torchvision": weights}.get(maker, {})
    if maker == "Lightning 0.9":
        arguments = argparse.Namespace(lr=1e-4, folder=PurePosixPath("/deep/u"), gpus=None)
        content = {
            "epoch": 2, "global_step": 4800, "pytorch-lightning_version": "0.9.0",
            "checkpoint_callback_best_model_score": torch.tensor(0.89), "optimizer_states": [{"state": {}, "step": np.float64(3)}],
            "lr_schedulers": [], "state_dict": {f"model.model.{k}": v for k, v in weights.items()},
            "hparams_name": "kwargs", "hyper_parameters": AttributeDict(model_args=arguments, tasks=["Edema"]),
        }  # fmt: skip
    elif maker == "MoCo":
        keys = "encoder_q"
        content = {"arch": "resnet18", "state_dict": {f"module.encoder_q.{k}": v for k, v in weights.items()}}
        content["state_dict"] |= {f"module.encoder_k.{k}": v for k, v in weights.items()}
        content["state_dict"] |= {
            "module.queue": torch.ones(4, 8),
            "module.queue_ptr": torch.zeros(1, dtype=torch.long),
        }
    elif maker == "smp":
        whole = networks.build_model(networks.SegmentationSpec("Unet", "resnet10w32", TASKS, 64)).state_dict()
        weights, content = {k.removeprefix("encoder."): v for k, v in whole.items()}, whole
    elif maker == "data parallel":
        content = {"model_state": {f"module.{k}": v for k, v in weights.items()}, "epoch": 3}
    torch.save(content, path, _use_new_zipfile_serialization=new)
    architecture, found = models.load_backbone(path, keys=keys)
    assert architecture == "resnet10w32" and torch.equal(found["conv1.weight"], weights["conv1.weight"])
    if maker in ("Lightning 0.9", "torchvision", "data parallel"):
        assert models.load_classifier(path, TASKS).spec.tasks == TASKS


def test_networks_of_our_last_version(tmp_path):
    """Fields in their order, lists where today's have tuples, without those that came later."""
    torch.save({"state_dict": resnet(), "spec": {"architecture": "resnet10w32", "tasks": list(TASKS), "three_way": False,
                "image_size": 320, "normalisation": "chexpert"}}, tmp_path / "c.ckpt")  # fmt: skip
    assert models.load_classifier(tmp_path / "c.ckpt", ()).spec.normalisation == "chexpert"
    spec = networks.SegmentationSpec("DeepLabV3Plus", "resnet10w32", TASKS, 320, decoder_channels=16)
    fields = {
        "architecture": "DeepLabV3Plus",
        "encoder": "resnet10w32",
        "tasks": TASKS,
        "image_size": 320,
        "decoder_channels": 16,
    }
    metrics = {"epoch": 3, "thresholds": [0.5, 0.05], "iou": {"Edema": float("nan")}, "score": 0.4}
    content = {"state_dict": networks.build_model(spec).state_dict(), "spec": fields, "metrics": metrics}
    torch.save(content, tmp_path / "s.pth")
    assert networks.load_model(tmp_path / "s.pth")[1] == spec
    net = boundary_net.build(boundary_net.BoundarySpec("resnet10w32"))
    torch.save(
        {"state_dict": net.state_dict(), "boundary_spec": {"architecture": "resnet10w32"}, "metrics": {}},
        tmp_path / "b.pth",
    )
    assert boundary_net.load(tmp_path / "b.pth")[1].architecture == "resnet10w32"


@pytest.mark.parametrize(
    "encoder", [*smp.encoders.encoders, "tu-resnet18", "tu-vit_small_patch16_224.dino", "timm-skresnet18"]
)
def test_every_encoder_of_smp_and_timm_may_be_named(encoder):
    assert networks.check_word(encoder, "here") == encoder


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_maps_of_chexlocalize(tmp_path, protocol):
    content = {
        "map": torch.rand(1, 1, 32, 32), "prob": np.float32(0.25), "task": "Lung Opacity", "gt": 1,
        "cxr_img": torch.rand(3, 32, 32), "cxr_dims": (2828, 2320),
    }  # fmt: skip
    (tmp_path / "patient64622_study1_view1_frontal_Airspace Opacity_map.pkl").write_bytes(
        pickle.dumps(content, protocol)
    )
    maps = PickledMaps(tmp_path)
    found = maps["patient64622_study1_view1_frontal"]
    assert maps.tasks == ("Airspace Opacity",) and found["size"] == (2320, 2828) and found["probabilities"][0] == 0.25


def test_masks_and_outlines_of_others(tmp_path):
    mask = rle.empty((2320, 2828))
    film = "patient64622_study1_view1_frontal"
    (tmp_path / "m.json").write_text(json.dumps({film: {"Lung Opacity": mask, "Support Devices": mask}}))
    assert list(mask_files.MaskFile(tmp_path / "m.json", ALIASES)[film]) == ["Airspace Opacity", "Support Devices"]
    outlines = {film: {"img_size": [2320, 2828], "Lung Opacity": [[[1.5, 2], [9.25, 2], [9, 7]]], "Edema": []}}
    (tmp_path / "p.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(outlines, indent=1).encode())
    assert mask_files.PolygonFile(tmp_path / "p.json", ALIASES)[film][0] == (2320, 2828)
    cvat = {
        "licenses": [{"name": "", "id": 0, "url": ""}], "info": {"date_created": ""},
        "categories": [{"id": 1, "name": "Edema", "supercategory": ""}],
        "images": [{"id": 1, "width": 26, "height": 20, "file_name": "ward 1/film.png", "license": 0, "flickr_url": "", "coco_url": ""}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1.0, 1.0, 9.5, 1.0, 9.5, 7.0]], "area": 25.5,
                         "bbox": [1, 1, 8.5, 6], "iscrowd": 0, "attributes": {"occluded": False}}],
    }  # fmt: skip
    (tmp_path / "c.json").write_text(json.dumps(cvat))
    assert list(CocoFile(tmp_path / "c.json", {})) == ["ward 1__film"]


def test_tables_of_others(tmp_path):
    path = (
        tmp_path / "test_labels.csv"
    )  # of CheXlocalize: no Frontal/Lateral column; saved by a spreadsheet: mark, CRLF
    path.write_bytes("\ufeffPath,Lung Opacity,Edema\r\ntest/patient64741/study1/view1_frontal.jpg,1.0,\r\n".encode())
    assert chexpert.read_labels(path, TASKS, ALIASES).loc["patient64741_study1_view1_frontal", "Airspace Opacity"] == 1
    assert film_list.read_list(path, ALIASES) == {"patient64741_study1_view1_frontal": {"Airspace Opacity"}}
    (tmp_path / "t.csv").write_text("threshold,task\n0.3,Lung Opacity\n,Edema\n\n")
    found = saliency_masks.read_task_values(tmp_path / "t.csv", "threshold", TASKS, ALIASES)
    np.testing.assert_array_equal(found, [np.nan, 0.3])


@pytest.mark.parametrize(
    "name", ["Enlarged Cardiomediastinum", "Lung-Opacity", "Pneumothorax (left)", "Ödem, akut", "心", "1"]
)
def test_names_of_tasks(name):
    assert names.check_task(name, "here") == name


@pytest.mark.parametrize(
    "path", ["CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg", "a/b c/d.e.png", "/data/a/b/c.png"]
)
def test_paths_of_tables(path):
    names.check_path(path, "here")


def test_metrics_of_a_network():
    assert checkpoints.metric({"thresholds": [0, 1.0]}, "thresholds", 2, "here") == [0, 1.0]
    assert checkpoints.metric({}, "thresholds", 2, "here") is None
