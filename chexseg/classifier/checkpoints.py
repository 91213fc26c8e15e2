"""Network files: writing our own, and reading anyone's without running what it holds.

Our files are a dict of weights, a spec (what the weights do not say: architecture, tasks, input size, ...) and metrics,
in plain types. A pickle can call any function on loading. Here only tensors and arrays are ever built: in a checkpoint
every other class becomes an inert record of its name, elsewhere it is refused by name.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import nn

from chexseg.data.module_files import KEYS
from chexseg.data.names import check_tasks
from chexseg.data.safe_loading import load_checkpoint
from chexseg.errors import DataError, UsageError
from chexseg.runtime.checks import some
from chexseg.runtime.files import atomic


def state_dict(checkpoint: dict, path: Path) -> dict[str, torch.Tensor]:
    """The named tensors of a checkpoint: under `state_dict`, `model` or `model_state`, or the dict itself."""
    for key in KEYS:
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    tensors = {k: v.detach() for k, v in checkpoint.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    if not tensors:
        raise DataError(f"{path}: no tensors in it; expected a state_dict")
    return tensors


def metric(metrics: Mapping, name: str, count: int, path: Path) -> list[float] | None:
    """A list of `count` finite numbers from 0 to 1 in a file's metrics; None where there is none."""
    found = metrics.get(name)
    if found is None:
        return None
    if not (isinstance(found, list) and len(found) == count and all(type(n) in (int, float) for n in found)):
        raise DataError(f"{path}: its metrics' {name} are not {count} numbers; train the network again")
    if not all(0 <= n <= 1 for n in found):
        raise DataError(f"{path}: its metrics' {name} are not numbers from 0 to 1; train the network again")
    return found


def differences(wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> list[str]:
    """How names and shapes of tensors differ from those wanted, in the network's order; empty where all fit."""
    found = []
    for key, tensor in wanted.items():
        if key not in given:
            found.append(f"no tensor {key!r}")
        elif given[key].shape != tensor.shape:
            found.append(f"{key!r} is {tuple(given[key].shape)}, expected {tuple(tensor.shape)}")
    return found + [f"unexpected tensor {key!r}" for key in given if key not in wanted]


def load_exactly(
    network: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path, *, but_for: tuple[str, ...] = ()
) -> None:
    """Load weights by name. DataError, with the first that differ, for missing, unexpected or misshapen tensors outside
    the modules `but_for`."""
    network.load_state_dict(fitting(network, tensors, path, but_for=but_for), strict=False)


def fitting(
    network: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path, *, but_for: tuple[str, ...] = ()
) -> dict[str, torch.Tensor]:
    """The tensors that `load_exactly` loads; DataError where they do not fit the network."""
    left_out = tuple(f"{module}." for module in but_for)
    own, given = (
        {k: v for k, v in names.items() if not k.endswith("num_batches_tracked") and not k.startswith(left_out)}
        for names in (network.state_dict(), tensors)
    )
    if found := differences(own, given):
        raise DataError(f"{path}: {some(found)}; it does not fit a {type(network).__name__}")
    return given


class NetworkSpec(Protocol):
    """A frozen dataclass with what the weights of a kind of network do not say; its fields are str, bool, int, tuple of
    str, or one of these or None. The file keeps it under the key KEY.

    A field's metadata may list its `choices`, give its `most` (a number) or a `check` (a function of value and place
    that raises DataError), and say that it is `optional`: not in the file while it has its default, so that an older
    version reads the file too. Tuples of texts are tasks.
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
    spec = read_spec(saved, path, kind)
    metrics = content.get("metrics")
    return state_dict(content, path), spec, metrics if isinstance(metrics, dict) else {}


def read_spec(saved: dict, path: Path, kind: type[Spec]) -> Spec:
    """The spec that a file says, every field checked. DataError with the field's name for what it cannot be."""
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
        value = tuple(saved[name]) if type(saved[name]) is list else saved[name]
        choices = field.metadata.get("choices")
        if not _is_a(value, hints[name]) or (choices and value not in choices):
            wanted = f"one of {', '.join(map(str, choices))}" if choices else inspect.formatannotation(field.type)
            raise DataError(f"{path}: {kind.KEY}, field {name!r}: {str(value)[:60]!r} is not {wanted}")
        if isinstance(value, int) and value > field.metadata.get("most", value):
            raise DataError(f"{path}: {kind.KEY}, field {name!r}: {value} is more than {field.metadata['most']}")
        if isinstance(value, tuple):
            check_tasks(value, f"{path}: {kind.KEY}, field {name!r}")
        if "check" in field.metadata:
            field.metadata["check"](value, f"{path}: {kind.KEY}, field {name!r}")
        values[name] = value
    try:
        return kind(**values)
    except UsageError as error:
        raise DataError(f"{path}: {kind.KEY}: {error}") from error


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type: str, bool, int above 0, float, tuple[str, ...], or a union of these."""
    if isinstance(hint, types.UnionType):
        return any(_is_a(value, each) for each in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        return isinstance(value, tuple) and all(_is_a(each, inner) for each in value)
    return type(value) is hint and (hint is not int or value > 0)
