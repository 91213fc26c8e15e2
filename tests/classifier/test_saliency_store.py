"""The saliency store: what goes in comes out, in any process; and CheXlocalize's pickles read the same way."""

import functools
import multiprocessing
import pickle

import numpy as np
import pytest
import torch

from chexseg.classifier import saliency_pickles, saliency_store
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
    shards = saliency_store.StoreShards(TASKS, 96, 5)
    for part, rows in (("a", (0, 1)), ("b", (2, 3, 4))):
        shards.write([record(i) for i in rows], tmp_path / part)
    shards.merge([tmp_path / "a", tmp_path / "b"], tmp_path / saliency_store.STORE)
    return tmp_path


def check(maps, i):
    found, expected = maps[IDS[i]], record(i)
    np.testing.assert_array_equal(found["maps"], expected["maps"])
    np.testing.assert_array_equal(found["probabilities"], expected["probabilities"])
    assert found["size"] == expected["size"]


def test_round_trip(run):
    maps = saliency_store.open_maps(run)
    assert maps.ids == IDS and maps.tasks == TASKS and maps.network_size == (96, 96) and len(maps) == 5
    for i in (3, 0, 4):
        check(maps, i)
    assert maps.task_rows(("Pleural Effusion",)) == [1]
    np.testing.assert_array_equal(maps.probabilities([IDS[4], IDS[1]])[0], record(4)["probabilities"])
    assert maps.folder == run and maps.path == run / saliency_store.STORE
    table = saliency_store.StoredMaps(run / saliency_store.STORE).predictions()
    np.testing.assert_array_equal(table.loc[IDS[2]].to_numpy(), record(2)["probabilities"])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_open_store_crosses_to_other_processes(run, method):
    maps = saliency_store.open_maps(run)
    check(maps, 0)
    with multiprocessing.get_context(method).Pool(2) as pool:
        pool.map(functools.partial(check, maps), range(5))


def test_missing_things_are_named(run, tmp_path):
    maps = saliency_store.open_maps(run)
    with pytest.raises(DataError, match="no saliency map of patient9"):
        maps["patient9"]
    with pytest.raises(DataError, match="no saliency map of patient9"):
        maps.probabilities([IDS[0], "patient9"])
    with pytest.raises(DataError, match="no maps of 'Edemaa'; it has Edema, Pleural Effusion"):
        maps.task_rows(("Edemaa",))
    with pytest.raises(DataError, match="no saliency maps here; make them with test.py"):
        saliency_store.open_maps(tmp_path / "elsewhere")
    (run / saliency_store.STORE).unlink()  # HDF5 would show the content that it has open
    (run / saliency_store.STORE).write_bytes(b"short")
    with pytest.raises(DataError, match="saliency.h5: not a readable HDF5 file"):
        saliency_store.open_maps(run)


def test_pickles_read_like_the_store(tmp_path):
    image = np.arange(48, dtype=np.uint8).reshape(6, 8)
    saliency_pickles.write_pickles(tmp_path, IDS[1], TASKS, record(1), image, np.array([1.0, 0.0]))
    maps = saliency_store.open_maps(tmp_path)
    assert maps.ids == [IDS[1]] and maps.tasks == TASKS and maps.network_size == (6, 8)
    assert maps.folder == maps.path == tmp_path
    np.testing.assert_allclose(maps.probabilities([IDS[1]])[0], record(1)["probabilities"])
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
        saliency_store.open_maps(tmp_path)[IDS[0]]
    path.write_bytes(pickle.dumps({"map": np.ones((2, 2, 2)), "cxr_dims": (2, 2)}))
    with pytest.raises(DataError, match="its map has shape"):
        saliency_store.open_maps(tmp_path)[IDS[0]]


def test_pickles_of_an_image_may_differ_in_size_and_lack_a_task(tmp_path):
    image = np.zeros((6, 8), np.uint8)
    for i in (0, 1):
        saliency_pickles.write_pickles(tmp_path, IDS[i], TASKS, record(i), image, None)
    (tmp_path / f"{IDS[0]}_Edema_map.pkl").unlink()
    path = tmp_path / f"{IDS[1]}_Pleural Effusion_map.pkl"
    content = pickle.loads(path.read_bytes())
    content["map"] = torch.full((1, 1, 3, 4), 0.5)
    path.write_bytes(pickle.dumps(content))
    maps = saliency_store.open_maps(tmp_path)
    assert maps.tasks == ("Pleural Effusion", "Edema")
    assert not maps[IDS[0]]["maps"][1].any() and maps[IDS[0]]["probabilities"][1] == 0
    assert maps[IDS[1]]["maps"].shape == (2, 6, 8)
    assert maps.known(IDS[:2], ("Edema", "Pleural Effusion")).tolist() == [[False, True], [True, True]]
    first = maps.fingerprint()
    path.touch()
    assert maps.fingerprint() != first
