"""The tensors of whole modules that were pickled: `torch.save(model, path)`, as torchxrayvision publishes its networks.

Functions and classes of this module alone take part. A module becomes a record that keeps its state if that is a dict;
of its state only parameters, buffers and submodules are looked at, by name. `safe_loading` looks at the file first.
"""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chexseg.data.pickle_scan import MAX_DEPTH, STORAGES, Budget, Inert, names_in
from chexseg.data.plain_pickles import tensor_of
from chexseg.errors import DataError

PREFIX = "torch.nn.modules."  # of the classes by which such a file is known
KEYS = ("state_dict", "model_state_dict", "model_state", "model")
MAX_MODULES = 20_000


class _Module(Inert):
    """What an object of any class becomes."""

    state: Mapping = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class _Table(dict):
    """What an OrderedDict becomes: without attributes that a file could set."""

    def __setstate__(self, state: Any) -> None:
        pass


def _table(*args: Any) -> _Table:
    """Of nothing, or of a list of pairs."""
    pairs = args[0] if args else []
    if not isinstance(pairs, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise DataError("damaged: a dict that is made of no pairs")
    return _Table((key, value) for key, value in pairs if isinstance(key, str))


@dataclass(frozen=True)
class _Storage:
    """Which data a tensor lies in."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A tensor that is made when it is wanted."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


def _parameter(*args: Any) -> Any:
    return args[0] if args else None


_KNOWN: dict[str, Callable] = {
    "collections.OrderedDict": _table,
    "torch._utils._rebuild_tensor": lambda storage, offset, size, stride, *_: _Tensor(storage, offset, size, stride),
    "torch._utils._rebuild_tensor_v2": lambda storage, offset, size, stride, *_: _Tensor(storage, offset, size, stride),
    "torch._utils._rebuild_parameter": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.Size": lambda *args: tuple(args[0]) if args and isinstance(args[0], (list, tuple)) else (),
}


class _Unpickler(pickle.Unpickler):
    """Knows the functions above; every other name is a class of records of its own."""

    def find_class(self, module: str, name: str) -> Any:
        # Another function each time: a pickle can set attributes of what it is given.
        if known := _KNOWN.get(f"{module}.{name}"):
            return lambda *args: known(*args)
        return type(name.rpartition(".")[2], (_Module,), {})

    def persistent_load(self, saved: Any) -> Any:
        if isinstance(saved, tuple) and saved and saved[0] == "module":  # a class with its source, before torch 1.6
            return saved[1]
        kind, key, count = saved[1], saved[2], saved[4]
        return _Storage(str(key), STORAGES[kind.__name__], count)


def load_module(path: Path, is_zip: bool) -> dict[str, dict[str, torch.Tensor]]:
    """`{"state_dict": tensors by name}` of the module in a file that `safe_loading` has looked at, or of the module or
    the tensors that a dict in it holds under one of `KEYS`."""
    content, read = _of_zip(path) if is_zip else _of_legacy(path)
    found = _Unpickler(io.BytesIO(content)).load()
    if isinstance(found, dict):
        found = next((found[key] for key in KEYS if key in found), None)
    storages: dict[str, torch.Tensor] = {}

    def numbers(storage: Any) -> torch.Tensor:
        if not isinstance(storage, _Storage):
            raise DataError("damaged: a tensor without data")
        if storage.key not in storages:
            raw = read(storage.key)[: storage.count * storage.dtype.itemsize]
            empty = torch.empty(0, dtype=storage.dtype)
            storages[storage.key] = torch.frombuffer(bytearray(raw), dtype=storage.dtype) if raw else empty
        return storages[storage.key]

    budget, tensors = Budget(path.stat().st_size), {}
    pairs = _tensors(found) if isinstance(found, dict) else _named(found, "", 0, iter(range(MAX_MODULES)))
    for name, one in pairs:
        tensors[name] = budget.spend(tensor_of(numbers(one.storage), one.offset, one.size, one.stride))
    return {"state_dict": tensors}


def _named(module: Any, prefix: str, depth: int, count: Iterator[int]) -> Iterator[tuple[str, _Tensor]]:
    """Parameters and buffers of a module and its submodules, as a state dict names them. `count` ends a module that
    holds another twice, which holds another twice, and so on."""
    if not isinstance(module, _Module):
        raise DataError("expected a module or a dict of tensors")
    if depth > MAX_DEPTH or next(count, None) is None:
        raise DataError(f"more than {MAX_MODULES} modules, or {MAX_DEPTH} in each other")
    for kind in ("_parameters", "_buffers"):
        for name, value in _tensors(module.state.get(kind)):
            yield prefix + name, value
    submodules = module.state.get("_modules")
    for name, value in dict.items(submodules) if isinstance(submodules, dict) else ():
        if value is not None:
            yield from _named(value, f"{prefix}{name}.", depth + 1, count)


def _tensors(found: Any) -> list[tuple[str, _Tensor]]:
    pairs = dict.items(found) if isinstance(found, dict) else ()
    return [(name, value) for name, value in pairs if isinstance(name, str) and isinstance(value, _Tensor)]


def _of_zip(path: Path) -> tuple[bytes, Callable[[str], bytes]]:
    """The pickle of a zip, and what reads the data of a key."""
    archive = zipfile.ZipFile(path)
    name = next(name for name in archive.namelist() if name.lower().rpartition("/")[2] == "data.pkl")
    prefix = name[: -len("data.pkl")]
    return archive.read(name), lambda key: archive.read(f"{prefix}data/{key}")


def _of_legacy(path: Path) -> tuple[bytes, Callable[[str], bytes]]:
    """The same of a file before torch 1.6: five pickles, then for each key a count and its numbers."""
    data = path.read_bytes()
    file, places = io.BytesIO(data), [0]
    for _ in range(5):
        names_in(file, len(data))
        places.append(file.tell())
    content = data[places[3] : places[4]]
    wanted: dict[str, _Storage] = {}

    class Noting(_Unpickler):
        def persistent_load(self, saved: Any) -> Any:
            found = super().persistent_load(saved)
            if isinstance(found, _Storage):
                wanted[found.key] = found
            return found

    Noting(io.BytesIO(content)).load()
    keys = _Unpickler(io.BytesIO(data[places[4] : places[5]])).load()
    if not isinstance(keys, list):
        raise DataError("damaged: it does not say in what order its data are")
    start, spans = places[5], {}
    for key in map(str, keys):
        if key not in wanted or data[start : start + 8] != struct.pack("<q", wanted[key].count):
            raise DataError(f"damaged: the data {key!r} is not where it should be")
        stop = start + 8 + wanted[key].count * wanted[key].dtype.itemsize
        spans[key], start = data[start + 8 : stop], stop
    return content, lambda key: spans[key]
