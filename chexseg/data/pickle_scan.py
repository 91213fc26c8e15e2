"""A look at a pickle before it is loaded: the classes it names, and how much data its tensors want. Nothing is run."""

import io
import pickle
import pickletools
import struct
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from chexseg.errors import DataError

T = TypeVar("T")
STORAGES = {
    f"{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
    }.items()
}  # fmt: skip
MAX_DEPTH = 200  # of objects in each other
_DAMAGED = (
    pickle.UnpicklingError, EOFError, RuntimeError, ValueError, TypeError, AttributeError, LookupError,
    ArithmeticError, MemoryError, AssertionError, struct.error, zipfile.BadZipFile, ImportError, OSError,
)  # fmt: skip


class Inert:
    """What an object of an unknown class becomes: it takes any construction or state and does nothing with it."""

    used_as: type | None = None  # dict or list, where a pickle puts items into such objects
    odd_state = False  # whether a pickle gives one a state that is no dict

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        type(self).odd_state = type(self).odd_state or type(state) is not dict

    def __setitem__(self, key: Any, value: Any) -> None:
        type(self).used_as = dict

    def append(self, item: Any) -> None:
        type(self).used_as = list

    def __call__(self, *args: Any, **kwargs: Any) -> "Inert":
        return Inert()


class InertDict(OrderedDict):
    """The same for a class of dicts (Lightning's AttributeDict): a plain one, the only kind that torch fills."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


class InertList(list):
    """The same for a class of lists."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


@contextmanager
def named(path: Path, what: str) -> Iterator[None]:
    """Every fault inside is one of this file."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except _DAMAGED as error:
        said = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: damaged, or not {what} ({type(error).__name__}: {said})") from error


def names_in(file: Any, size: int) -> dict[str, str]:
    """`module.name` of each class and function that the pickle at the file's place names, as it is written and as
    today's Python calls it; leaves the file behind the pickle.

    DataError for opcodes that would take memory without bytes to match, or name classes by number.
    """
    found: dict[str, str] = {}
    for code, value, _ in pickletools.genops(file):
        if code.name in ("GLOBAL", "INST"):
            module, _, name = str(value).partition(" ")
            now = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            found[f"{module}.{name}"] = ".".join(now)
        elif code.name in ("BINPUT", "LONG_BINPUT", "PUT") and int(str(value)) > size:
            raise DataError("damaged: it numbers more objects than it has bytes")
        elif code.name.startswith("EXT"):
            raise DataError("it names classes by number, which nothing writes")
    return found


class Budget:
    """How much may be made of a pickle: one text in it can be asked for again and again, each time as new bytes."""

    def __init__(self, size: int):
        self._left = 4 * size + (1 << 20)

    def spend(self, made: T) -> T:
        """What was made, if there is room for it."""
        self._left -= len(made) if isinstance(made, bytes) else getattr(made, "nbytes", 0)
        if self._left < 0:
            raise DataError("it makes more data than it has bytes")
        return made


class _Data(Inert):
    """What a tensor's data becomes."""

    count = 0


class _Tensor(Inert):
    """What a tensor becomes. torch takes the state of one for a new shape of it, which nothing writes."""

    def __setstate__(self, state: Any) -> None:
        raise DataError("damaged: a tensor with a state")


class _Table(Inert):
    """What an OrderedDict or a Counter becomes: torch copies its state."""

    def __setstate__(self, state: Any) -> None:
        if type(state) is not dict:
            raise DataError("damaged: a dict whose state is none")


def _rebuilt(data: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
    """A tensor that lies in its data."""
    if not isinstance(data, _Data) or type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride):
        raise DataError("damaged: a tensor without data or shape")
    if not all(type(n) is int and 0 <= n < 2**62 for n in (offset, *size, *stride)):
        raise DataError("damaged: a tensor of impossible shape")
    if all(size) and offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) >= data.count:
        raise DataError(f"damaged: a tensor of shape {str(size)[:60]} in {data.count} numbers")
    return _Tensor()


def _encoded(text: Any, coding: Any = "") -> bytes:
    """Bytes, as protocol 2 writes them. Other codings make their input longer, as often as they are asked to."""
    if type(text) is not str or coding not in ("latin1", "latin-1"):
        raise DataError("bytes in a coding that nothing writes")
    return text.encode(coding)


def _items(what: Callable[..., Any]) -> Callable[..., Any]:
    """`what` of nothing or of one list: a tensor would be taken for millions of items."""

    def call(*args: Any) -> Any:
        if len(args) > 1 or not all(type(a) in (list, tuple) for a in args):
            raise DataError("damaged: a container that is made of no list")
        return what(*args)

    return call


def _table(*args: Any) -> _Table:
    for pair in args[0] if args else ():
        if type(pair) not in (list, tuple):
            raise DataError("damaged: a dict that is made of no pairs")
    return _Table()


# What torch's loader calls with a file's arguments, and how they are looked at first.
_LOOKED_AT: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuilt,
    "torch._utils._rebuild_tensor_v2": _rebuilt,
    "torch._utils._rebuild_parameter": lambda *_: _Tensor(),
    "torch.nn.parameter.Parameter": lambda *_: _Tensor(),
    "torch.Size": _items(tuple),
    "builtins.set": _items(lambda *_: Inert()),
    "collections.OrderedDict": _items(_table),
    "collections.Counter": _items(lambda *_: _Table()),
    "_codecs.encode": _encoded,
}


class Rehearsal(pickle.Unpickler):
    """Reads a pickle with every class inert. `wanted` is the data that its tensors want, by key: type and count of
    numbers; `stand_ins` are the classes to take the place of those it names."""

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data))
        self._budget = Budget(len(data))
        self.wanted: dict[str, tuple[torch.dtype, int]] = {}
        self._classes: dict[str, type[Inert]] = {}
        self.load()

    def find_class(self, module: str, name: str) -> Any:
        if function := _LOOKED_AT.get(f"{module}.{name}"):
            # Another each time: a pickle can set attributes of what it is given.
            return lambda *args: self._budget.spend(function(*args))
        return self._classes.setdefault(f"{module}.{name}", type(name, (Inert,), {"used_as": None, "odd_state": False}))

    def persistent_load(self, saved: Any) -> Any:
        if isinstance(saved, tuple) and len(saved) == 4 and saved[0] == "module" and isinstance(saved[1], type):
            return saved[1]  # a class of a whole module, with its source, in a file before torch 1.6
        kind, key, count = (
            (saved[1], saved[2], saved[4]) if isinstance(saved, tuple) and len(saved) > 4 else (None, "", 0)
        )
        dtype = STORAGES.get(kind.__name__) if isinstance(kind, type) else None
        if dtype is None or not isinstance(count, int) or count < 0:
            raise DataError("its tensors' data is of no plain number type")
        if self.wanted.setdefault(str(key), (dtype, count)) != (dtype, count):
            raise DataError("damaged: two tensors read the same data as different types")
        data = _Data()
        data.count = count
        return data

    def bytes_wanted(self) -> dict[str, int]:
        """By key, what the data of the tensors takes."""
        return {key: dtype.itemsize * count for key, (dtype, count) in self.wanted.items()}

    def stand_in(self, name: str) -> Callable[..., Any]:
        """What takes the place of an unknown class."""
        seen = self._classes.get(name)
        used_as = seen.used_as if seen else None
        if seen and used_as is dict and seen.odd_state:
            raise DataError(f"damaged: a {name} whose state is no dict")
        return InertDict if used_as is dict else InertList if used_as is list else Inert
