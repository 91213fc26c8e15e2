"""Reading files that others pickled, without running what they hold.

A pickle can call any function on loading. Here only tensors and arrays are ever built: in a checkpoint every other
class becomes an inert record of its name, elsewhere it is refused by name.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from chexseg.errors import DataError

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
            return getattr(np._core.multiarray if hasattr(np, "_core") else np.core.multiarray, name)
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
        __name__="chexseg.checkpoints",
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
        found = torch.load(path, map_location="cpu", pickle_module=_pickle_module(True), weights_only=False)
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(f"{path}: damaged, or not a PyTorch checkpoint ({type(error).__name__}: {error})") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a dict of tensors, found {type(found).__name__}")
    return found


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
