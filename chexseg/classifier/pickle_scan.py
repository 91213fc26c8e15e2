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
from typing import Any

import torch

from chexseg.errors import DataError

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

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

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


class Rehearsal(pickle.Unpickler):
    """Reads a pickle with every class inert. `wanted` is the data that its tensors want, by key: type and count of
    numbers; `stand_ins` are the classes to take the place of those it names."""

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data))
        self.wanted: dict[str, tuple[torch.dtype, int]] = {}
        self._classes: dict[str, type[Inert]] = {}
        self.load()

    def find_class(self, module: str, name: str) -> Any:
        return self._classes.setdefault(f"{module}.{name}", type(name, (Inert,), {}))

    def persistent_load(self, saved: Any) -> Inert:
        kind, key, count = (
            (saved[1], saved[2], saved[4]) if isinstance(saved, tuple) and len(saved) > 4 else (None, "", 0)
        )
        dtype = STORAGES.get(kind.__name__) if isinstance(kind, type) else None
        if dtype is None or not isinstance(count, int) or count < 0:
            raise DataError("its tensors' data is of no plain number type")
        if self.wanted.setdefault(str(key), (dtype, count)) != (dtype, count):
            raise DataError("damaged: two tensors read the same data as different types")
        return Inert()

    def bytes_wanted(self) -> dict[str, int]:
        """By key, what the data of the tensors takes."""
        return {key: dtype.itemsize * count for key, (dtype, count) in self.wanted.items()}

    def stand_in(self, name: str) -> Callable[..., Any]:
        """What takes the place of an unknown class."""
        used_as = self._classes[name].used_as if name in self._classes else None
        return InertDict if used_as is dict else InertList if used_as is list else Inert
