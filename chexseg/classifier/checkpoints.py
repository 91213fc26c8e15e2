"""Network files: writing our own, and reading anyone's without running what it holds.

Our files are a dict of weights, a spec (what the weights do not say: architecture, tasks, input size, ...) and metrics,
in plain types. A pickle can call any function on loading. Here only tensors and arrays are ever built: in a checkpoint
every other class becomes an inert record of its name, elsewhere it is refused by name.
"""

import dataclasses
import inspect
import io
import pickle
import types
import typing
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch

from chexseg.errors import DataError
from chexseg.runtime.files import atomic

_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
    ("torch", "Tensor"): torch.Tensor,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, coding="utf-8": text.encode("latin1" if coding == "latin1" else "utf-8"),
}
_STORAGES = {name: getattr(torch, name) for name in dir(torch) if name.endswith("Storage")}


class Inert:
    """What an object of an unknown class becomes: it takes any construction or state and does nothing with it."""

    def __init__(self, *args, **kwargs):
        self.state = args

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __setstate__(self, state):
        self.state = state

    def __setitem__(self, key, value):
        pass

    def __call__(self, *args, **kwargs):
        return Inert()

    def append(self, item):
        pass

    def extend(self, items):
        pass

    def add(self, item):
        pass


def _storage_from_bytes(data: bytes):
    """torch's own `_load_from_bytes` unpickles without a guard; this is the same with one."""
    return torch.load(io.BytesIO(data), map_location="cpu", pickle_module=_pickle_module(False), weights_only=False)


class _Unpickler(pickle.Unpickler):
    keep_unknown = False

    def find_class(self, module: str, name: str):
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _storage_from_bytes
        if (module, name) == ("torch.storage", "TypedStorage"):
            return torch.storage.TypedStorage
        if (module, name) == ("torch.storage", "UntypedStorage"):
            return torch.storage.UntypedStorage
        if module in _NUMPY and name in ("_reconstruct", "scalar"):
            core: Any = np._core if hasattr(np, "_core") else np.core
            return getattr(core.multiarray, name)
        if module.startswith("numpy") and name.endswith("DType"):
            return getattr(np.dtypes, name)
        if self.keep_unknown:
            return type(f"{module}.{name}", (Inert,), {})
        raise DataError(f"holds an object of class {module}.{name}; only tensors and arrays are read")


class _KeepingUnpickler(_Unpickler):
    keep_unknown = True


def _pickle_module(keep_unknown: bool) -> SimpleNamespace:
    """What `torch.load` asks of a pickle module."""
    unpickler = _KeepingUnpickler if keep_unknown else _Unpickler
    return SimpleNamespace(
        Unpickler=unpickler,
        load=lambda file, **options: unpickler(file, **options).load(),
        __name__="chexseg.classifier.checkpoints",
    )


def load_pickle(path: Path):
    """A plain pickle of tensors, arrays, numbers, strings, lists and dicts. DataError for anything else in it."""
    try:
        with open(path, "rb") as file:
            return _Unpickler(file).load()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise DataError(f"{path}: damaged, or not a pickle ({type(error).__name__}: {error})") from error


def load_checkpoint(path: Path) -> dict:
    """A file of `torch.save`, old or new format, on the CPU. Objects of unknown classes are `Inert`."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such checkpoint")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # torch would hand such a file to its compiler, past our unpickler.
            if any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist()):
                raise DataError(f"{path}: a TorchScript program, which is not run; save its state_dict instead")
    try:
        content = torch.load(path, map_location="cpu", pickle_module=_pickle_module(True), weights_only=False)
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(f"{path}: damaged, or not a PyTorch checkpoint ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a dict of tensors, found {type(content).__name__}")
    return content


def state_dict(checkpoint: dict, path: Path) -> dict[str, torch.Tensor]:
    """The named tensors of a checkpoint: under `state_dict`, `model` or `model_state`, or the dict itself."""
    for key in ("state_dict", "model_state_dict", "model_state", "model"):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    tensors = {k: v.detach() for k, v in checkpoint.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    if not tensors:
        raise DataError(f"{path}: no tensors in it; expected a state_dict")
    return tensors


class NetworkSpec(Protocol):
    """A frozen dataclass with what the weights of a kind of network do not say; its fields are str, bool, int, tuple of
    str, or one of these or None. The file keeps it under the key KEY.

    A field's metadata may list its `choices`, and say that it is `optional`: not in the file while it has its default,
    so that an older version reads the file too.
    """

    KEY: ClassVar[str]
    WHAT: ClassVar[str]  # "a boundary network", for messages
    MADE_BY: ClassVar[str]  # the script that writes such files, for messages
    __dataclass_fields__: ClassVar[dict[str, Any]]


Spec = TypeVar("Spec", bound=NetworkSpec)


def save_network(
    path: Path, weights: Mapping[str, torch.Tensor], spec: NetworkSpec, metrics: Mapping | None = None
) -> None:
    """Write a network's weights, its spec and, unless None, the metrics of its epoch. The weights are pickled as the
    mapping that they are, so hand over a plain dict where the file should hold one."""
    content = {"state_dict": weights, spec.KEY: _plain(spec)}
    if metrics is not None:
        content["metrics"] = dict(metrics)
    with atomic(path) as temporary, open(temporary, "wb") as file:  # a path would leave its name in the file
        torch.save(content, file)


def _plain(spec: NetworkSpec) -> dict[str, Any]:
    optional = {f.name: f.default for f in dataclasses.fields(spec) if f.metadata.get("optional")}
    values = dataclasses.asdict(spec)
    return {name: value for name, value in values.items() if name not in optional or value != optional[name]}


def load_network(path: Path, kind: type[Spec]) -> tuple[dict[str, torch.Tensor], Spec, dict]:
    """Weights, spec and metrics (empty if it has none) of a file that `save_network` wrote with a spec of class `kind`.

    DataError with the file's name, and the field's where one is missing, unknown, or not of its type.
    """
    return unpack_network(load_checkpoint(path), path, kind)


def unpack_network(content: dict, path: Path, kind: type[Spec]) -> tuple[dict[str, torch.Tensor], Spec, dict]:
    """`load_network` of a file that was read already."""
    saved = content.get(kind.KEY)
    if not isinstance(saved, dict):
        raise DataError(f"{path}: not {kind.WHAT}: it has no {kind.KEY!r}; make one with {kind.MADE_BY}")
    spec = _read_spec(saved, path, kind)
    metrics = content.get("metrics")
    return state_dict(content, path), spec, metrics if isinstance(metrics, dict) else {}


def _read_spec(saved: dict, path: Path, kind: type[Spec]) -> Spec:
    hints, values = typing.get_type_hints(kind), {}
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in saved:
        if name not in fields:
            raise DataError(f"{path}: not {kind.WHAT}: {kind.KEY} has an unknown field {str(name)[:60]!r}")
    for name, field in fields.items():
        if name not in saved:
            if field.default is dataclasses.MISSING:
                raise DataError(f"{path}: not {kind.WHAT}: {kind.KEY} lacks the field {name!r}")
            continue
        value = tuple(saved[name]) if isinstance(saved[name], list) else saved[name]
        choices = field.metadata.get("choices")
        if not _is_a(value, hints[name]) or (choices and value not in choices):
            wanted = f"one of {', '.join(map(str, choices))}" if choices else inspect.formatannotation(field.type)
            raise DataError(f"{path}: {kind.KEY}, field {name!r}: {str(value)[:60]!r} is not {wanted}")
        values[name] = value
    return kind(**values)


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type: str, bool, int above 0, float, tuple[str, ...], or a union of these."""
    if isinstance(hint, types.UnionType):
        return any(_is_a(value, each) for each in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        return isinstance(value, tuple) and all(_is_a(each, inner) for each in value)
    return type(value) is hint and (hint is not int or value > 0)
