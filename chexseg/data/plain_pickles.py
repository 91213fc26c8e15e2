"""CheXlocalize's maps and the like: pickles of tensors, arrays and values, read by functions of this module alone.

Tensors and arrays of plain number types are rebuilt from their bytes; nothing of torch or NumPy is ever called with
what a file says.
"""

import io
import math
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chexseg.data.pickle_scan import MAX_DEPTH, Budget, Rehearsal, named, names_in
from chexseg.errors import DataError, MissingError


def load_pickle(path: Path) -> Any:
    """A plain pickle of tensors, arrays, numbers, texts, lists and dicts. DataError for anything else in it."""
    if not Path(path).is_file():
        raise MissingError(f"{path}: no such file")
    with named(path, "a pickle"):
        data = Path(path).read_bytes()
        names_in(io.BytesIO(data), len(data))
        return _plain(_PlainUnpickler(data).load(), {}, 0)


class _Dtype:
    """A NumPy type on its way: a code such as `f4`, then, as its state, the byte order."""

    def __init__(self, code: Any, *_: Any):
        self.dtype = np.dtype(code) if isinstance(code, str) and len(code) <= 4 else np.dtype(object)
        if self.dtype.kind not in "biufc":
            raise DataError(f"an array of type {str(code)[:20]!r}; expected plain numbers")

    def __setstate__(self, state: Any) -> None:
        order, fields = state[1], state[2:5]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in fields):
            raise DataError("an array of a type with fields; expected plain numbers")
        self.dtype = self.dtype.newbyteorder("=" if order == "|" else order)


class _Array:
    """A NumPy array on its way: its state gives shape, type and bytes."""

    value: np.ndarray | None = None
    budget: Budget | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(shape, dtype, data, bool(fortran))
        if self.budget:
            self.budget.spend(self.value)


def _array(shape: Any, dtype: Any, data: Any, fortran: bool = False) -> np.ndarray:
    if not (isinstance(dtype, _Dtype) and isinstance(data, bytes) and isinstance(shape, tuple)):
        raise DataError("damaged: an array without numbers")
    flat = np.frombuffer(data, dtype.dtype)
    if not all(isinstance(n, int) and n >= 0 for n in shape) or math.prod(shape) != flat.size:
        raise DataError(f"damaged: an array of shape {str(shape)[:60]} with {flat.size} numbers")
    return flat.reshape(shape, order="F" if fortran else "C").astype(dtype.dtype.newbyteorder("="))


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    """An array as protocol 5 writes it."""
    return _array(shape, dtype, bytes(data) if isinstance(data, (bytes, bytearray)) else None, order == "F")


def _encoded(text: Any, coding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or coding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise DataError("damaged: bytes in a coding that nothing writes")
    return text.encode(coding)


class _Storage:
    """A tensor's numbers, of the bytes that torch pickles them as: a whole file of an old torch.save."""

    def __init__(self, data: Any):
        if not isinstance(data, bytes):
            raise DataError("damaged: a tensor without data")
        file, places = io.BytesIO(data), [0]
        for _ in range(5):  # torch's magic number, version and machine; the storage; its key
            names_in(file, len(data))
            places.append(file.tell())
        kinds = list(Rehearsal(data[places[3] : places[4]]).wanted.values())
        dtype, count = kinds[0] if len(kinds) == 1 else (torch.uint8, -1)
        raw = data[places[5] :]
        if raw[:8] != struct.pack("<q", count) or len(raw) - 8 != count * dtype.itemsize:
            raise DataError("damaged: a tensor's data is longer or shorter than it says")
        self.nbytes = len(raw)
        self.numbers = torch.frombuffer(bytearray(raw[8:]), dtype=dtype) if count else torch.empty(0, dtype=dtype)


def _rebuilt(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    if not isinstance(storage, _Storage):
        raise DataError("damaged: a tensor of impossible shape")
    return tensor_of(storage.numbers, offset, size, stride)


def tensor_of(flat: torch.Tensor, offset: Any, size: Any, stride: Any) -> torch.Tensor:
    """The tensor of a storage's numbers, if all of it lies inside and no number stands in it twice."""
    numbers = [offset, *size, *stride]
    if not all(isinstance(n, int) and 0 <= n < 2**62 for n in numbers):
        raise DataError("damaged: a tensor of impossible shape")
    count = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if count > flat.numel() or (count and last >= flat.numel()):
        raise DataError(f"damaged: a tensor of shape {str(tuple(size))[:60]} in {flat.numel()} numbers")
    return flat.as_strided(tuple(size), tuple(stride), offset).clone() if count else flat[:0].reshape(tuple(size))


_KNOWN: dict[str, Callable] = {
    "collections.OrderedDict": OrderedDict,
    "torch.storage._load_from_bytes": _Storage,
    "torch._utils._rebuild_tensor_v2": _rebuilt,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _encoded,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _KNOWN[f"{_module}._reconstruct"] = lambda *_: _Array()
    _KNOWN[f"{_module}.scalar"] = lambda dtype, data: _array((), dtype, data)[()]
for _module in ("numpy.core.numeric", "numpy._core.numeric"):
    _KNOWN[f"{_module}._frombuffer"] = _from_buffer


class _PlainUnpickler(pickle.Unpickler):
    """Knows the functions above under the names that NumPy and torch pickle, and no other name at all."""

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data))
        self._budget = Budget(len(data))

    def find_class(self, module: str, name: str) -> Any:
        function = _KNOWN.get(f"{module}.{name}")
        if function is None:
            raise DataError(f"holds an object of class {module}.{name}; only tensors, arrays and plain values are read")
        # Each time another function: a pickle can set attributes of what it is given, and these belong to nobody.
        return lambda *args: self._made(function(*args))

    def _made(self, value: Any) -> Any:
        if isinstance(value, _Array):
            value.budget = self._budget
        return self._budget.spend(value)

    def persistent_load(self, saved: Any) -> Any:
        raise DataError("damaged: data that belongs to no tensor")


def _plain(value: Any, known: dict[int, Any], depth: int) -> Any:
    """Arrays on their way become what they stand for; what stands in several places is looked at once."""
    if id(value) in known:
        return known[id(value)]
    if depth > MAX_DEPTH:
        raise DataError(f"objects lie more than {MAX_DEPTH} deep in each other")
    found = value
    if isinstance(value, _Array):
        if value.value is None:
            raise DataError("damaged: an array without numbers")
        found = value.value
    elif isinstance(value, dict):
        found = {key: _plain(item, known, depth + 1) for key, item in value.items()}
    elif type(value) in (list, tuple):
        found = type(value)(_plain(item, known, depth + 1) for item in value)
    elif not isinstance(
        value, (str, bytes, int, float, complex, type(None), torch.Tensor, np.ndarray, np.generic, set)
    ):
        raise DataError(f"it holds a {type(value).__name__.strip('_')} where a value belongs")
    known[id(value)] = found
    return found
