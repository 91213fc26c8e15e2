"""The sample cache: what goes in comes out, it follows its inputs, and any number of processes can read and make it."""

import multiprocessing
import pickle
import sys
import time

import numpy as np
import pytest
import torch

from chexseg.data import sample_cache
from chexseg.data.sample_cache import Sample
from chexseg.runtime import provenance
from chexseg.training.draws import Draw
from chexseg.training.loader import Loader

SIZE, MASKS = 7, 3  # 49 pixels: no multiple of 8
IDS = [f"patient{i}" for i in range(9)]


def prepare(name):
    """A sample that is a function of its name."""
    rng = np.random.default_rng(sum(name.encode()))
    image = rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    return Sample(image, rng.integers(0, 2, (MASKS, SIZE, SIZE), dtype=np.uint8), (SIZE + len(name), 1000 * SIZE))


class Counting:
    def __init__(self):
        self.seen = []

    def __call__(self, name):
        self.seen.append(name)
        return prepare(name)


def build(path, *, ids=IDS, prepare=prepare, versions=None, **options):
    record = provenance.describe({"argument": options.pop("argument", 1)})
    versions = versions or {}
    given = {"image_size": SIZE, "num_masks": MASKS, "item_fingerprint": lambda name: str(versions.get(name, 0))}
    return sample_cache.build(path, ids, prepare=prepare, record=record, **(given | options))


def assert_holds(found, ids=IDS):
    assert len(found) == len(ids)
    for i, name in enumerate(ids):
        expected, sample = prepare(name), found[i]
        assert np.array_equal(sample.image, expected.image) and sample.image.dtype == np.uint8
        assert np.array_equal(sample.masks, expected.masks) and sample.masks.dtype == np.uint8
        assert sample.size == found.size(i) == expected.size


def test_samples_come_out_as_they_went_in(tmp_path):
    found = build(tmp_path / "c.npy")
    assert_holds(found)
    assert found.ids == IDS
    # A size of 8 bytes, 1 byte each for what is known and what is there, 49 of image, 7 (= 49 bits) of each mask.
    assert np.load(tmp_path / "c.npy").shape == (9, 8 + 2 + 49 + 3 * 7)


def test_what_is_known_and_what_is_there_are_read_without_the_masks(tmp_path):
    count = 11  # bits of two bytes

    def some(name):
        rng = np.random.default_rng(int(name[-1]))
        there, masks = rng.random((count, 1, 1)) < 0.5, rng.integers(0, 2, (count, SIZE, SIZE), dtype=np.uint8)
        return prepare(name)._replace(masks=masks * there, known=rng.random(count) < 0.5)

    found = build(tmp_path / "c.npy", num_masks=count, prepare=some)
    for i, name in enumerate(IDS):
        known, present = found.bits(i)
        assert np.array_equal(known, some(name).known) and np.array_equal(found[i].known, known)
        assert np.array_equal(present, some(name).masks.any((1, 2)))
    assert build(tmp_path / "all.npy")[0].known.tolist() == [True] * MASKS  # nobody said otherwise
    with pytest.raises(ValueError, match="known"):
        build(tmp_path / "bad.npy", prepare=lambda name: prepare(name)._replace(known=np.ones(2, bool)))


def test_without_masks(tmp_path):
    found = build(tmp_path / "c.npy", num_masks=0, prepare=lambda n: prepare(n)._replace(masks=np.zeros((0, 7, 7))))
    assert found[4].masks.shape == (0, SIZE, SIZE)
    assert np.array_equal(found[4].image, prepare(IDS[4]).image)


def test_a_sample_may_be_written_to(tmp_path):
    found = build(tmp_path / "c.npy")
    found[0].image[:] = 0
    found[0].masks[:] = 0
    assert_holds(found)


def test_made_once(tmp_path):
    first, second = Counting(), Counting()
    build(tmp_path / "c.npy", prepare=first)
    assert_holds(build(tmp_path / "c.npy", prepare=second))
    assert (first.seen, second.seen) == (IDS, [])


@pytest.mark.parametrize(
    "change",
    [{"versions": {"patient5": 1}}, {"argument": 2}, {"ids": IDS[:-1]}, {"ids": IDS[::-1]}],
    ids=["an image or a mask", "an argument", "one image less", "another order"],
)
def test_made_again_when_anything_changes(tmp_path, change):
    build(tmp_path / "c.npy")
    counting = Counting()
    found = build(tmp_path / "c.npy", prepare=counting, **change)
    assert sorted(counting.seen) == sorted(change.get("ids", IDS))
    assert_holds(found, change.get("ids", IDS))


def test_made_again_for_another_layout(tmp_path):
    build(tmp_path / "c.npy")
    found = build(tmp_path / "c.npy", num_masks=2, prepare=lambda n: prepare(n)._replace(masks=prepare(n).masks[:2]))
    assert np.array_equal(found[8].masks, prepare(IDS[8]).masks[:2])


def test_a_flipped_byte_is_found(tmp_path):
    build(tmp_path / "c.npy")
    content = bytearray((tmp_path / "c.npy").read_bytes())
    content[-5] ^= 1
    (tmp_path / "c.npy").write_bytes(content)
    counting = Counting()
    assert_holds(build(tmp_path / "c.npy", prepare=counting))
    assert counting.seen == IDS


def test_an_open_cache_survives_being_made_again(tmp_path):
    found = build(tmp_path / "c.npy")
    assert found.size(0) == prepare(IDS[0]).size
    build(tmp_path / "c.npy", ids=IDS[:2])
    assert_holds(found)


def test_a_sample_of_another_shape_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="patient0: image"):
        build(tmp_path / "c.npy", prepare=lambda name: prepare(name)._replace(image=np.zeros((SIZE, 8), np.uint8)))
    with pytest.raises(ValueError, match="patient0: image"):
        build(tmp_path / "c.npy", num_masks=4)
    assert not (tmp_path / "c.npy").exists()


def test_what_prepare_is_given_is_looked_up_where_it_is_built(tmp_path):
    found = build(tmp_path / "c.npy", inputs_of=lambda name: (name, "looked up"), prepare=lambda pair: prepare(pair[0]))
    assert_holds(found)


def resident_kb():
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_what_was_read(tmp_path):
    blank = Sample(np.zeros((512, 512), np.uint8), np.zeros((0, 512, 512), np.uint8), (512, 512))
    found = build(
        tmp_path / "c.npy", ids=[str(i) for i in range(80)], prepare=lambda _: blank, image_size=512, num_masks=0
    )
    found[0]
    before = resident_kb()
    for i in range(80):  # 20 MB
        found[i]
    assert resident_kb() - before < 4000


class Images:
    """The cache as a dataset."""

    def __init__(self, found):
        self.found = found

    def __getitem__(self, draw):
        return {"image": torch.from_numpy(self.found[draw.index].image), "id": self.found.ids[draw.index]}


@pytest.mark.parametrize("opened", [False, True], ids=["closed", "opened before"])
def test_forked_workers_read_it(tmp_path, opened):
    found = build(tmp_path / "c.npy")
    if opened:
        found.size(0)
    batches = list(Loader(Images(found), num_workers=2)([[Draw(i)] for i in range(len(IDS))]))
    assert [b["id"] for b in batches] == [[name] for name in IDS]
    for batch, name in zip(batches, IDS, strict=True):
        assert np.array_equal(batch["image"][0].numpy(), prepare(name).image)


def read_size(found, index):
    return found.size(index)


def test_a_pickled_copy_opens_the_file_itself(tmp_path):
    """What a spawned process gets."""
    found = build(tmp_path / "c.npy")
    found.size(0)
    text = pickle.dumps(found)
    assert len(text) < 2000, "the rows must not travel"
    assert_holds(pickle.loads(text))


def test_spawned_processes_read_it(tmp_path):
    found = build(tmp_path / "c.npy")
    found.size(0)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_size, (found, 3)) == prepare(IDS[3]).size


def test_runs_that_start_together_make_it_once(tmp_path):
    def run():
        counting = Counting()
        found = build(tmp_path / "c.npy", prepare=lambda name: (time.sleep(0.02), counting(name))[1])
        assert_holds(found)
        queue.put(len(counting.seen))

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=run) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
    assert sorted(queue.get(timeout=5) for _ in children) == [0, 0, len(IDS)]


def test_names_tell_sets_apart():
    names = {
        sample_cache.cache_name("train_320", *what) for what in ((["a"],), (["b"],), (["a", "b"],), (["a"], "Edema"))
    }
    assert len(names) == 4
    assert all(name.startswith("train_320_") and name.endswith(".npy") for name in names)
