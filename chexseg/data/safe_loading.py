"""Checkpoints that others saved, loaded by torch's own `weights_only` loader after a look at what they hold.

Names that torch builds and we want are left to it, names that it does not know become `Inert` records, everything else
is refused by name. Plain pickles are read in `plain_pickles`.
"""

import io
import mmap
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from chexseg.data.module_files import PREFIX, load_module
from chexseg.data.pickle_scan import MAX_DEPTH, STORAGES, Rehearsal, named, names_in
from chexseg.errors import DataError, MissingError

# What torch's loader may build here. Its other names (bytearray, Tensor, untyped storages, ...) take a size from the
# file, and memory to match.
_OF_TORCH = {
    "collections.OrderedDict",
    "collections.Counter",
    "builtins.set",
    "builtins.complex",
    "_codecs.encode",
    "torch.Size",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
}
_OF_TORCH |= {f"torch.{name}" for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}
_OF_TORCH |= {f"torch.{name}" for name in STORAGES}
_REFUSED = ("torch", "os", "posix", "nt", "sys")  # modules whose other names torch's loader might build, or refuses
_END, _LOCATOR, _END64 = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")  # torch's, of files before its zip format
_SLACK = 1 << 20  # bytes by which a small file may exceed a limit


def load_checkpoint(path: Path) -> dict:
    """A file of `torch.save`, as zip or in the format before it, or of safetensors, on the CPU. Objects of unknown
    classes are `Inert`.

    A whole module that was pickled gives its state dict. DataError for TorchScript, a zip that is not exactly as torch
    writes it or fails its checksums, more data than the file has bytes, and anything in it that is neither a number, a
    text, a container, a tensor nor such an object.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"{path}: no such checkpoint")
    with named(path, "a PyTorch checkpoint"):
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(9)
        if path.suffix.lower() == ".safetensors" or (start[8:] == b"{" and int.from_bytes(start[:8], "little") < size):
            return _load_safetensors(path)
        is_zip = start[:2] == b"PK" or zipfile.is_zipfile(path)
        names, rehearsal = _look_at_zip(path) if is_zip else _look_at_legacy(path, size)
        if any(name.startswith(PREFIX) for name in names.values()):
            found = load_module(path, is_zip)
            _check_tensors(found, size)
            return found
        _refuse(names)
        unknown: list = [(rehearsal.stand_in(now), name) for name, now in sorted(names.items()) if now not in _OF_TORCH]
        with torch.serialization.safe_globals(unknown):
            found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, dict):
            raise DataError(f"expected a dict of tensors, found {type(found).__name__}")
        _check_tensors(found, size)
    return found


def _load_safetensors(path: Path) -> dict:
    """The tensors of a file of safetensors, a format that holds numbers and their names alone. Its library checks that
    the tensors cover the file exactly."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    except SafetensorError as error:
        raise DataError(f"damaged, or no file of safetensors: {error}") from error


# ---- Before anything is loaded --------------------------------------------------------------------------------------


def _look_at_zip(path: Path) -> tuple[dict[str, str], Rehearsal]:
    """The classes and functions that a zip's pickle names, and its rehearsal.

    DataError unless the archive is one that Python and torch read alike.
    """
    _check_frame(path)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if len({name.lower() for name in names}) < len(names):  # torch looks for a name in either case
            raise DataError("a zip with two entries of one name; fetch the file again")
        if any("constants.pkl" in name.split("/") or "code" in name.split("/")[:-1] for name in names):
            raise DataError("a TorchScript program, which is not run; save its state_dict instead")
        end = 0
        for entry in sorted(entries, key=lambda e: e.header_offset):
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise DataError(f"{entry.filename!r} in it is compressed, which torch never does; save it again")
            if entry.header_offset < end:
                raise DataError("a zip whose entries overlap; fetch the file again")
            end = entry.header_offset + 30 + entry.file_size
        if broken := archive.testzip():
            raise DataError(f"damaged: the checksum of {broken!r} in it is wrong; fetch the file again")
        pickles = [name for name in names if name.lower().rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise DataError("no data.pkl in the zip, or several; expected a file of torch.save")
        prefix = pickles[0][: -len("data.pkl")]
        if f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder") != b"little":
            raise DataError("written on a big-endian machine; convert it there")
        content = archive.read(pickles[0])
        sizes = {e.filename.removeprefix(f"{prefix}data/"): e.file_size for e in entries}
    found = names_in(io.BytesIO(content), len(content))
    rehearsal = Rehearsal(content)
    for key, count in rehearsal.bytes_wanted().items():
        if count > sizes.get(key, -1):
            raise DataError(f"damaged: the data {key!r} is shorter than its tensor")
    return found, rehearsal


def _check_frame(path: Path) -> None:
    """DataError where something stands before, behind or between the parts of a zip: one reader might see it, another
    not."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(4)
        file.seek(max(0, size - 98))
        tail = file.read().rjust(98, b"\0")
    length, begin, comment = struct.unpack("<IIH", tail[-10:])
    end = size - 22
    if tail[76:80] != _END or comment:
        raise DataError("something stands behind the zip's directory, or it is cut off; fetch the file again")
    if tail[56:60] == _LOCATOR:  # zip64: a record of 56 bytes, then a pointer to it
        (end,) = struct.unpack("<Q", tail[64:72])
        large = struct.unpack("<QQ", tail[40:56])
        small_agrees = all(n in (m, 0xFFFFFFFF) for n, m in zip((length, begin), large, strict=True))
        if tail[:4] != _END64 or end != size - 98 or not small_agrees:
            raise DataError("two directories in the zip; fetch the file again")
        length, begin = large
    if start != b"PK\x03\x04" or begin + length != end:
        raise DataError("two directories in the zip, or something before it; fetch the file again")


def _look_at_legacy(path: Path, size: int) -> tuple[dict[str, str], Rehearsal]:
    """The same for the five pickles that precede the tensors' data in a file of torch before 1.6."""
    found: dict[str, str] = {}
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if _MAGIC not in data[:32]:
            raise DataError("not a PyTorch checkpoint: neither a zip nor a file of an older torch.save")
        places = [0]
        for _ in range(5):  # magic number, version, machine, the dict of weights, keys of the data
            found |= names_in(data, size)
            places.append(data.tell())
        rehearsal = Rehearsal(data[places[3] : places[4]])
    if sum(rehearsal.bytes_wanted().values()) > size:
        raise DataError("damaged: it is shorter than its tensors")
    return found, rehearsal


def _refuse(names: dict[str, str]) -> None:
    for name in sorted({*names, *names.values()} - _OF_TORCH):
        if name.split(".")[0] in _REFUSED or name == "builtins.bytearray":
            raise DataError(f"it holds {name}, which is not loaded; save a state_dict of plain tensors instead")


# ---- After loading --------------------------------------------------------------------------------------------------


def _check_tensors(found: dict, size: int) -> None:
    """DataError where tensors show more numbers than the file can hold: a stride of 0 repeats one number for ever."""
    total = sum(t.numel() * t.element_size() for t in _tensors(found, set(), 0))
    if total > 4 * size + _SLACK:
        raise DataError(f"its tensors come to {total} bytes, the file to {size}; save them contiguous")


def _tensors(value: Any, seen: set[int], depth: int) -> Iterator[torch.Tensor]:
    if id(value) in seen:
        return
    if depth > MAX_DEPTH:
        raise DataError(f"objects lie more than {MAX_DEPTH} deep in each other")
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.device.type != "cpu":
            raise DataError(f"it holds a {value.layout} tensor on {value.device}; save plain tensors")
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item, seen, depth + 1)
