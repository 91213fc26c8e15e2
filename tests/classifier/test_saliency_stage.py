"""Stage 1 as a notebook calls it: images in, a store and its tables out, with denser and averaged maps on request."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from chexseg.classifier import cam, models
from chexseg.classifier.models import Classifier, ClassifierSpec
from chexseg.classifier.prediction_tables import read_listing, write_tables
from chexseg.classifier.saliency_stage import SaliencyStage
from chexseg.classifier.saliency_store import STORE, open_maps
from chexseg.data import chexpert
from chexseg.data.chexpert import ImageSet
from chexseg.data.images import normalise, read_image, resize_square
from chexseg.errors import DataError
from chexseg.runtime import shards

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
