"""Files of others: what loads, what is refused; nothing in them runs or takes memory that they do not explain."""

import argparse
import io
import os
import pickle
import struct
import subprocess
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chexseg.data import plain_pickles
from chexseg.data.pickle_scan import Inert
from chexseg.data.safe_loading import load_checkpoint
from chexseg.errors import DataError

WEIGHTS = OrderedDict(
    a=torch.arange(6.0).view(2, 3), b=torch.arange(4), c=torch.rand(3, 2).half(), d=torch.tensor(True)
)


class Settings(dict):
    """A class of dicts, as Lightning's AttributeDict."""


class Versions(list):
    """A class of lists."""


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def saved(path, content, new=True):
    torch.save(content, path, _use_new_zipfile_serialization=new)
    return path


def refused(path, words):
    with pytest.raises(DataError, match=words) as error:
        load_checkpoint(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "content",
    [
        dict(WEIGHTS),
        {"state_dict": WEIGHTS, "epoch": 3, "lr": 0.1, "name": "ä", "none": None, "flags": (True, [1, {2}])},
        {"w": torch.nn.Parameter(torch.ones(2)), "view": torch.arange(10.0)[2:8:2], "t": torch.ones(2, 3).t()},
        {"empty": torch.empty(0, 3), "shared": [WEIGHTS["a"], WEIGHTS["a"][0]], "size": torch.Size([1, 2])},
        {"kinds": [torch.ones(2, dtype=kind) for kind in (torch.bfloat16, torch.int8, torch.uint8, torch.complex64)]},
    ],
    ids=["weights", "values", "views", "shapes", "kinds"],
)
def test_what_torch_saves_loads_the_same(tmp_path, content, new):
    found = load_checkpoint(saved(tmp_path / "a.pt", content, new))
    torch.testing.assert_close(flat(found), flat(torch.load(tmp_path / "a.pt", weights_only=False)), rtol=0, atol=0)


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def tensor(size, stride, count=2):
    """The pickle of a tensor of `size` in the data "0" of `count` numbers, whatever that says."""
    data = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(count) + b"tQ"
    shape = number(size) + b"\x85" + number(stride) + b"\x85"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + data + number(0) + shape + b"\x89ccollections\nOrderedDict\n)RtR"


def number(value):
    return b"\x8a\x08" + struct.pack("<q", value)


HEX = text("ab")
for _ in range(12):  # each makes it twice as long
    HEX = b"c_codecs\nencode\n(" + HEX + text("hex" if HEX[:1] == b"c" else "latin1") + b"tR"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (HEX, "coding that nothing writes"),
        (b"cbuiltins\nset\n" + tensor(10**5, 0) + b"\x85R", "container that is made of no list"),
        (b"ccollections\nOrderedDict\n]" + tensor(10**5, 0) + b"a\x85R", "made of no pairs"),
        (b"ccollections\nOrderedDict\n)R" + tensor(2, 1) + b"b", "state is none"),
        (b"cany\nDict\n)R" + text("a") + b"Ns" + tensor(2, 1) + b"b", "state is no dict"),
        (tensor(10**5, 1), "in 2 numbers"),
        (tensor(2, 1) + b"(" + tensor(2, 1) + b"tb", "tensor with a state"),
    ],
    ids=["coding", "set", "pairs", "state", "state-of-unknown", "beyond", "shape-as-state"],
)
def test_a_small_file_makes_nothing_large(tmp_path, value, words):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}" + text("w") + tensor(2, 1) + b"s" + text("v") + value + b"s.")
        archive.writestr("a/version", "3\n")
        archive.writestr("a/data/0", bytes(8))
    refused(tmp_path / "a.pt", words)


def test_one_text_is_not_made_into_bytes_again_and_again(tmp_path):
    calls = (
        b"X\x40\x42\x0f\x00"
        + b"a" * 10**6
        + b"q\x00c_codecs\nencode\nq\x01]"
        + b"h\x01h\x00X\x06\x00\x00\x00latin1\x86Ra" * 9
    )
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + calls + b".")
    with pytest.raises(DataError, match="more data than it has bytes"):
        plain_pickles.load_pickle(tmp_path / "a.pkl")
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + calls + b".")
    refused(tmp_path / "a.pt", "more data than it has bytes")


@pytest.mark.parametrize("names", [("a/data.pkl", "a/DATA.PKL"), ("b/data.pkl", "a/DATA.pkl")])
def test_two_pickles_whose_names_differ_in_case_are_refused(tmp_path, names):
    """torch's reader of zips takes either for the other."""
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name in names:
            archive.writestr(name, b"\x80\x02}.")
    refused(tmp_path / "a.pt", "two entries of one name|or several")


def flat(value):
    """The tensors of a nested value, in order."""
    if isinstance(value, torch.Tensor):
        return [value.detach()]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in flat(item)]


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_objects_of_unknown_classes_are_inert(tmp_path, new, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {
        "w": torch.ones(2),
        "args": argparse.Namespace(a=1, b=Call(subprocess.check_call, ["touch", "exploded"])),
        "numbers": [np.float64(3), np.arange(3)],
        "settings": Settings(lr=0.1, more=Settings(a=Versions([1, 2]))),
    }
    found = load_checkpoint(saved("a.pt", content, new))
    assert isinstance(found["args"], Inert) and found["w"].tolist() == [1, 1]
    assert os.listdir() == ["a.pt"]


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Call(os.system, "touch exploded"), "posix.system"),
        (Call(bytearray, 10**11), "builtins.bytearray"),
        (Call(torch.empty, 10**11), "torch"),
        (Call(torch.storage._load_from_bytes, b"x"), "torch.storage._load_from_bytes"),
        (Call(torch.hub.load, "evil/repo", "model"), "torch.hub.load"),
        (Call(torch.jit.load, "a.pt"), "torch.jit"),
    ],
    ids=["system", "bytearray", "empty", "bytes", "hub", "jit"],
)
def test_what_runs_or_takes_memory_is_refused_by_name(tmp_path, monkeypatch, call, name, new):
    monkeypatch.chdir(tmp_path)
    refused(saved("a.pt", {"w": torch.ones(2), "x": call}, new), f"it holds {name}")
    assert os.listdir() == ["a.pt"]


def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 1)), tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "TorchScript")


def test_a_zip_must_read_alike_to_python_and_torch(tmp_path):
    good = saved(tmp_path / "a.pt", dict(WEIGHTS)).read_bytes()
    other = saved(tmp_path / "b.pt", {"evil": torch.ones(2)}).read_bytes()
    for name, content in {
        "two archives": good + other,
        "behind": good + b"x",
        "before": b"x" * 512 + good,
        "comment": good[:-2] + struct.pack("<H", len(other)) + other,
        "cut": good[:-1],
        "half": good[: len(good) // 2],
    }.items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(content)
        refused(path, "zip|checkpoint")


def test_the_checksum_of_every_entry_is_tested(tmp_path):
    path = saved(tmp_path / "a.pt", {"w": torch.zeros(1000)})
    data = bytearray(path.read_bytes())
    data[data.index(b"\0" * 2000) + 1000] = 1
    path.write_bytes(data)
    refused(path, "checksum")


def rezipped(source, path, change, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", compression) as new:
        for entry in old.infolist():
            for name, content in change(entry.filename, old.read(entry)):
                new.writestr(name, content)
    return path


def test_data_shorter_than_its_tensor_or_compressed_or_twice_is_refused(tmp_path):
    source = saved(tmp_path / "a.pt", {"w": torch.zeros(10000)})
    short = rezipped(source, tmp_path / "b.pt", lambda n, c: [(n, c[:100] if "/data/" in n else c)])
    refused(short, "shorter than its tensor")
    refused(rezipped(source, tmp_path / "c.pt", lambda n, c: [(n, c)], zipfile.ZIP_DEFLATED), "compressed")
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = rezipped(source, tmp_path / "d.pt", lambda n, c: [(n, c)] * (2 if n.endswith(".pkl") else 1))
    refused(twice, "two entries")


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_number_repeated_for_ever_is_refused(tmp_path, new):
    refused(
        saved(tmp_path / "a.pt", {"w": torch.zeros(1).expand(10**10)}, new), "its tensors come to 40000000000 bytes"
    )


def test_what_is_no_dict_or_no_checkpoint_is_refused(tmp_path):
    refused(saved(tmp_path / "a.pt", [torch.ones(1)]), "expected a dict of tensors, found list")
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"w": 1}))
    refused(tmp_path / "b.pt", "not a PyTorch checkpoint")
    refused(tmp_path / "nowhere.pt", "no such checkpoint")


# ---- Plain pickles


def chexlocalize():
    return {
        "map": torch.rand(1, 1, 4, 5), "prob": np.float32(0.25), "task": "Edema", "gt": 1, "cxr_dims": (5, 4),
        "cxr_img": torch.rand(3, 4, 5).double(), "more": np.arange(6.0).reshape(2, 3).T,
        "big": np.arange(3, dtype=">i4"),
    }  # fmt: skip


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_every_protocol(tmp_path, protocol):
    content = chexlocalize()
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    found = plain_pickles.load_pickle(tmp_path / "a.pkl")
    assert found.keys() == content.keys()
    for name, value in content.items():
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(value))


@pytest.mark.parametrize(
    "content",
    [
        Call(os.system, "touch exploded"),
        Call(np.core.multiarray._reconstruct, np.ndarray, (10**10,), b"b") if hasattr(np, "core") else Call(eval, "1"),
        Call(np.ndarray, (2,), np.dtype("f4"), b"12345678"),
        Call(torch.storage._load_from_bytes, b"\x80\x02cposix\nsystem\nX\x0e\x00\x00\x00touch exploded\x85R."),
        np.array([{"a": 1}], object),
        np.zeros(2, [("a", "f4")]),
        argparse.Namespace(a=1),
        Call(bytearray, 10**11),
    ],
)
def test_plain_pickles_hold_plain_things_only(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"map": content}))
    with pytest.raises(DataError, match=r"a\.pkl: "):
        plain_pickles.load_pickle(tmp_path / "a.pkl")
    assert os.listdir() == ["a.pkl"]


def test_a_torchscript_inside_a_tensor_is_refused(tmp_path):
    program = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 1)), program)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Call(torch.storage._load_from_bytes, program.getvalue())))
    with pytest.raises(DataError, match=r"a\.pkl: damaged"):
        plain_pickles.load_pickle(tmp_path / "a.pkl")


def test_objects_that_hold_each_other_many_times_are_looked_at_once(tmp_path):
    laughs: list = []
    for _ in range(60):
        laughs = [laughs] * 10
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(laughs))
    assert len(plain_pickles.load_pickle(tmp_path / "a.pkl")) == 10
    refused(saved(tmp_path / "a.pt", laughs), "found list")
    load_checkpoint(saved(tmp_path / "b.pt", {"laughs": laughs}))


def test_memo_numbers_beyond_the_file_are_refused(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02Nr\xff\xff\xff\x7f.")  # object 2^31 - 1 of a table
    with pytest.raises(DataError, match="numbers more objects"):
        plain_pickles.load_pickle(tmp_path / "a.pkl")


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("valid")
    (folder / "a.pkl").write_bytes(pickle.dumps(chexlocalize()))
    saved(folder / "zip.pt", {"w": torch.arange(20.0), "args": argparse.Namespace(a=1)})
    saved(folder / "legacy.pt", {"w": torch.arange(20.0), "args": argparse.Namespace(a=1)}, new=False)
    return folder


@pytest.mark.parametrize("name", ["a.pkl", "zip.pt", "legacy.pt"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.floats(0, 1, exclude_max=True),
    kind=st.sampled_from("flip cut insert drop".split()),
    byte=st.integers(1, 255),
)
def test_a_changed_byte_gives_a_named_error_or_a_readable_file(valid, tmp_path, name, place, kind, byte):
    data = bytearray((valid / name).read_bytes())
    at = int(place * len(data))
    if kind == "flip":
        data[at] ^= byte
    elif kind == "cut":
        del data[at:]
    elif kind == "insert":
        data[at:at] = bytes([byte])
    else:
        del data[at]
    path = tmp_path / name
    path.write_bytes(data)
    try:
        (plain_pickles.load_pickle if name.endswith("pkl") else load_checkpoint)(path)
    except DataError as error:
        assert str(error).startswith(str(path))
