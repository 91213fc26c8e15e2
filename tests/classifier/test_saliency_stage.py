"""Stage 1 as a notebook calls it: images in, a store and its tables out, with denser and averaged maps on request."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from chexseg.classifier import cam, ensemble, models
from chexseg.classifier.models import Classifier, ClassifierSpec
from chexseg.classifier.prediction_tables import read_listing, write_tables
from chexseg.classifier.saliency_stage import SaliencyStage
from chexseg.classifier.saliency_store import STORE, open_maps
from chexseg.data import chexpert
from chexseg.data.chexpert import ImageSet
from chexseg.data.images import normalise, read_image, resize_square
from chexseg.errors import DataError, UsageError
from chexseg.runtime import shards
from tests.irnet.six_films import run

TASKS = ("Edema", "Fracture")
RECORD = {"arguments": {}, "inputs": {}, "roles": [], "code": ""}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root, rows = tmp_path_factory.mktemp("stage"), []
    for i in range(3):
        path = root / f"CheXpert/CheXpert-v1.0/train/patient{i}/study1/view1_frontal.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (70 + i, 64), np.uint8)).save(path)
        rows.append({"Path": str(path.relative_to(root / "CheXpert")), "Edema": 1, "Fracture": 0})
    pd.DataFrame(rows).to_csv(root / "train.csv", index=False)
    torch.manual_seed(0)
    model = Classifier(ClassifierSpec("resnet10w32", TASKS, image_size=64))
    torch.nn.init.normal_(model.head.weight, 0, 0.3)
    models.save_classifier(root / "c.ckpt", model)
    return root


def made(root, folder, **options):
    """The maps that a stage makes with these options."""
    images = ImageSet(root, chexpert.read_labels(root / "train.csv", TASKS, {}), root / "train.csv")
    stage = SaliencyStage(root / "c.ckpt", images, TASKS, batch_size=2, device="cpu", **options)
    shards.build(folder / STORE, images.ids, process=stage.process, shard_format=stage, record=RECORD)
    write_tables(folder / STORE, images, folder / "predictions.csv", folder / "train_cams_paths.csv")
    return open_maps(folder)


@pytest.mark.parametrize(
    "options, grid",
    [
        ({}, 2),
        ({"output_stride": 8}, 8),
        ({"image_size": 96}, 3),
        ({"output_stride": 16, "map_scales": (1.0, 1.5), "map_mirror": True}, 6),
    ],
)
def test_maps_are_those_of_each_image_alone(root, tmp_path, options, grid):
    maps = made(root, tmp_path, **options)
    size = options.get("image_size", 64)
    assert maps.tasks == TASKS and maps.network_size == (size, size) and len(maps) == 3
    model = models.load_classifier(root / "c.ckpt", (), output_stride=options.get("output_stride"))
    for i, image_id in enumerate(maps):
        path = root / f"CheXpert/CheXpert-v1.0/train/patient{i}/study1/view1_frontal.png"
        pixels = torch.from_numpy(resize_square(read_image(path), size).copy())[None]
        averaged = {name.removeprefix("map_"): v for name, v in options.items() if name.startswith("map_")}
        expected, p = cam.averaged_saliency(model, normalise(pixels, "imagenet"), **averaged)
        assert maps[image_id]["maps"].shape == (2, grid, grid) and maps[image_id]["size"] == (70 + i, 64)
        np.testing.assert_allclose(maps[image_id]["maps"], expected[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(maps[image_id]["probabilities"], p[0], rtol=1e-5)


def test_tables_are_written_when_the_store_is_newer(root, tmp_path):
    maps = made(root, tmp_path)
    table = pd.read_csv(tmp_path / "predictions.csv", index_col="image_id")
    assert list(table.index) == maps.ids == read_listing(tmp_path / "train_cams_paths.csv")
    np.testing.assert_allclose(table[list(TASKS)], maps.probabilities(maps.ids), rtol=1e-6)
    assert table["Path"].iloc[1].endswith("patient1/study1/view1_frontal.png")
    before = (tmp_path / "predictions.csv").stat().st_mtime_ns
    made(root, tmp_path)
    assert (tmp_path / "predictions.csv").stat().st_mtime_ns == before
    (tmp_path / STORE).touch()
    made(root, tmp_path)
    assert (tmp_path / "predictions.csv").stat().st_mtime_ns > before
    (tmp_path / "train_cams_paths.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="train_cams_paths.csv: no column 'Train_CAM_Id'"):
        read_listing(tmp_path / "train_cams_paths.csv")
    with pytest.raises(DataError, match="none.csv: no such file; make it with test.py"):
        read_listing(tmp_path / "none.csv")


# ---- Ensembles ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def voters(root):
    """Four checkpoints: two like c.ckpt, one that is denser, one of one task and with another normalisation."""
    specs = {
        "a": ClassifierSpec("resnet10w32", TASKS, image_size=64),
        "b": ClassifierSpec("resnet10w32", TASKS, image_size=64),
        "dense": ClassifierSpec("resnet10w32", TASKS, image_size=64, output_stride=16),
        "other": ClassifierSpec("resnet10w32", TASKS[1:], image_size=64, normalisation="chexpert"),
    }
    for seed, (name, spec) in enumerate(specs.items()):
        torch.manual_seed(seed)
        model = Classifier(spec)
        torch.nn.init.normal_(model.head.weight, 0, 0.3)
        models.save_classifier(root / "models" / f"{name}.ckpt", model)
    return {name: root / "models" / f"{name}.ckpt" for name in specs}


def config(folder, task2models, **more):
    (folder / "ensemble.json").write_text(json.dumps({"task2models": task2models, **more}))
    return folder / "ensemble.json"


def entries(*paths):
    return [{"ckpt_path": str(path), "is_3class": False} for path in paths]


def test_an_ensembles_maps_are_means_over_each_tasks_checkpoints(root, voters, tmp_path):
    chosen = {"Fracture": ("a", "b", "dense", "other"), "Edema": ("b", "a")}
    path = config(tmp_path, {task: entries(*(voters[name] for name in names)) for task, names in chosen.items()})
    members = ensemble.read_config(path, TASKS, {})
    assert list(members) == ["Edema", "Fracture"] and ensemble.files(members)[:2] == [voters["b"], voters["a"]]
    images = ImageSet(root, chexpert.read_labels(root / "train.csv", TASKS, {}), root / "train.csv")
    stage = SaliencyStage(members, images, TASKS, batch_size=2, device="cpu")
    shards.build(tmp_path / STORE, images.ids, process=stage.process, shard_format=stage, record=RECORD)
    maps = open_maps(tmp_path)
    assert maps.tasks == TASKS and maps.network_size == (64, 64)
    for i, image_id in enumerate(maps):
        film = root / f"CheXpert/CheXpert-v1.0/train/patient{i}/study1/view1_frontal.png"
        pixels = torch.from_numpy(resize_square(read_image(film), 64).copy())[None]
        for row, task in enumerate(TASKS):
            each, probabilities = [], []
            for name in chosen[task]:
                model = models.load_classifier(voters[name], ())
                found, p = cam.averaged_saliency(model, normalise(pixels, model.spec.normalisation))
                of_task = model.spec.tasks.index(task)
                each.append(torch.nn.functional.interpolate(found, (4, 4), mode="bilinear")[0, of_task].numpy())
                probabilities.append(p[0, of_task].item())
            np.testing.assert_allclose(maps[image_id]["maps"][row], np.mean(each, 0), rtol=1e-4, atol=1e-6)
            assert maps[image_id]["probabilities"][row] == pytest.approx(np.mean(probabilities), rel=1e-5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "ensemble.json: not whole JSON"),
        ("{}", "ensemble.json: expected {'task2models'"),
        ('{"task2models": {"Rabbit": []}}', "ensemble.json: unknown task 'Rabbit'; known are Edema, Fracture"),
        ('{"task2models": {"Edema": []}}', "ensemble.json: Edema: expected a list"),
        ('{"task2models": {"Edema": [{"path": "x"}]}}', "ensemble.json: Edema: .* has no 'ckpt_path'"),
        ('{"task2models": {"Edema": [{"ckpt_path": "x.ckpt"}]}}', "ensemble.json: Edema: x.ckpt: no such checkpoint"),
        (
            '{"task2models": {"Edema": []}, "aggregation_method": "max"}',
            "aggregation_method 'max'; only 'mean' is known",
        ),
    ],
)
def test_a_faulty_configuration_is_named(tmp_path, content, message):
    (tmp_path / "ensemble.json").write_text(content)
    with pytest.raises(DataError, match=message):
        ensemble.read_config(tmp_path / "ensemble.json", TASKS, {})


def test_checkpoints_that_do_not_go_together_are_named(root, voters, tmp_path):
    images = ImageSet(root, chexpert.read_labels(root / "train.csv", TASKS, {}), root / "train.csv")
    stage = SaliencyStage({"Edema": (voters["a"], voters["other"])}, images, TASKS)
    with pytest.raises(DataError, match="other.ckpt: does not know 'Edema'; it knows Fracture"):
        _ = stage.classifier
    large = Classifier(ClassifierSpec("resnet10w32", TASKS, image_size=96))
    models.save_classifier(tmp_path / "large.ckpt", large)
    stage = SaliencyStage({"Edema": (voters["a"], tmp_path / "large.ckpt")}, images, TASKS)
    with pytest.raises(UsageError, match="trained with 64 and 96 px: give --image_size"):
        _ = stage.size


def test_the_commands_of_an_ensemble(root, voters, tmp_path, monkeypatch):
    monkeypatch.setenv("CHEXPERT_DATA_DIR", str(root))
    monkeypatch.setenv("OBJ_EFFICIENCY_BASE_PATH", str(tmp_path))
    films = root / "CheXpert"
    path = config(root / "models", {"Edema": entries("a.ckpt", "b.ckpt")}, aggregation_method="mean")  # beside them
    assert (
        run("test.py", "--config_path", path, "--images", films, "--save_dir_predictions", tmp_path / "test_cams") == 0
    )
    folder = tmp_path / "test_cams" / "ensemble_results"
    table = pd.read_csv(folder / "predictions.csv")
    assert len(table) == 3 and {"Edema"} <= {*table.columns} and "Fracture" not in table
    options = ("--phase", "test", "--method", "gradcam", "--model_type", "ensemble", "--tasks", "Edema")
    assert run("localization_eval/pred_segmentation.py", *options) == 0
    assert len(json.loads((folder / "seg_labels_encoded.json").read_text())) == 3
    assert run("test.py", "--config_path", path, "--ckpt_path", voters["a"]) == 2
    assert run("test.py") == 2
