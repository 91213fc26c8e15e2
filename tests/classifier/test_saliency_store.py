"""The saliency store: what goes in comes out, in any process; and CheXlocalize's pickles read the same way."""

import functools
import multiprocessing
import pickle

import numpy as np
import pytest
import torch

from chexseg.classifier import saliency_store
from chexseg.errors import DataError

TASKS = ("Edema", "Pleural Effusion")
IDS = [f"patient0000{i}_study1_view1_frontal" for i in range(5)]


def record(i):
    rng = np.random.default_rng(i)
    maps = rng.random((2, 3, 4), np.float32)
    return {"id": IDS[i], "maps": maps, "probabilities": rng.random(2, np.float32), "size": (100 + i, 80)}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "cams").mkdir()
    for part, rows in (("a", (0, 1)), ("b", (2, 3, 4))):
        saliency_store.write_part([record(i) for i in rows], tmp_path / part)
    parts = [tmp_path / "a", tmp_path / "b"]
    saliency_store.merge_parts(parts, tmp_path / saliency_store.STORE, tasks=TASKS, image_size=96, count=5)
    return tmp_path


def check(maps, i):
    found, expected = maps[IDS[i]], record(i)
    np.testing.assert_array_equal(found["maps"], expected["maps"])
    np.testing.assert_array_equal(found["probabilities"], expected["probabilities"])
    assert found["size"] == expected["size"]


def test_round_trip(run):
    maps = saliency_store.SaliencyMaps(run)
    assert maps.ids == IDS and maps.tasks == TASKS and maps.image_size == 96 and len(maps) == 5
    for i in (3, 0, 4):
        check(maps, i)
    assert maps.task_rows(("Pleural Effusion",)) == [1]
    table = saliency_store.read_predictions(run / saliency_store.STORE)
    np.testing.assert_array_equal(table.loc[IDS[2]].to_numpy(), record(2)["probabilities"])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_open_store_crosses_to_other_processes(run, method):
    maps = saliency_store.SaliencyMaps(run)
    check(maps, 0)
    with multiprocessing.get_context(method).Pool(2) as pool:
        pool.map(functools.partial(check, maps), range(5))


def test_missing_things_are_named(run, tmp_path):
    maps = saliency_store.SaliencyMaps(run)
    with pytest.raises(DataError, match="no saliency map of patient9"):
        maps["patient9"]
    with pytest.raises(DataError, match="no maps of 'Edemaa'; it has Edema, Pleural Effusion"):
        maps.task_rows(("Edemaa",))
    with pytest.raises(DataError, match="no saliency maps here; make them with test.py"):
        saliency_store.SaliencyMaps(tmp_path / "elsewhere")
    (run / saliency_store.STORE).write_bytes(b"short")
    with pytest.raises(DataError, match="saliency.h5: not a readable HDF5 file"):
        saliency_store.SaliencyMaps(run)


def test_pickles_read_like_the_store(tmp_path):
    image = np.arange(48, dtype=np.uint8).reshape(6, 8)
    saliency_store.write_pickles(tmp_path, IDS[1], TASKS, record(1), image, np.array([1.0, 0.0]))
    maps = saliency_store.SaliencyMaps(tmp_path)
    assert maps.ids == [IDS[1]] and maps.tasks == TASKS
    found = maps[IDS[1]]
    assert found["maps"].shape == (2, 6, 8) and found["size"] == (101, 80)
    np.testing.assert_allclose(found["probabilities"], record(1)["probabilities"])
    expected = torch.nn.functional.interpolate(torch.from_numpy(record(1)["maps"])[None], (6, 8), mode="bilinear")
    np.testing.assert_array_equal(found["maps"], expected[0].numpy())
    with open(tmp_path / f"{IDS[1]}_Edema_map.pkl", "rb") as file:
        content = pickle.load(file)
    assert content["cxr_dims"] == (80, 101) and content["gt"] == 1.0 and content["map"].shape == (1, 1, 6, 8)
    assert content["cxr_img"].shape == (3, 6, 8)
    np.testing.assert_allclose(content["cxr_img"][1].numpy() * 255, image, rtol=1e-6)


def test_bad_pickles_are_named(tmp_path):
    path = tmp_path / f"{IDS[0]}_Edema_map.pkl"
    path.write_bytes(pickle.dumps({"map": np.ones((1, 1, 2, 2))}))
    with pytest.raises(DataError, match="Edema_map.pkl: not a saliency pickle .*cxr_dims"):
        saliency_store.SaliencyMaps(tmp_path)[IDS[0]]
    path.write_bytes(pickle.dumps({"map": np.ones((2, 2, 2)), "cxr_dims": (2, 2)}))
    with pytest.raises(DataError, match="its map has shape"):
        saliency_store.SaliencyMaps(tmp_path)[IDS[0]]
