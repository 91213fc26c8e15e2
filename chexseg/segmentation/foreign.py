"""Segmentation networks that others saved: names of segmentation_models_pytorch, and a file beside that says which.

The original's training leaves `best_model.pth`, `thresholds.txt` and `args.json`; segmentation_models_pytorch's
`save_pretrained` leaves `model.safetensors` and `config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chexseg.errors import DataError
from chexseg.runtime import plain_json

if TYPE_CHECKING:
    from torch import Tensor

HEAD = "segmentation_head.0.weight"
# DeepLabV3's decoder (not DeepLabV3Plus's) was a plain sequence in segmentation_models_pytorch 0.1.
_DEEPLABV3 = {"decoder.0.": "decoder.aspp.", "decoder.1.": "decoder.conv.", "decoder.2.": "decoder.bn."}


def is_foreign(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are tensors of a segmentation network of segmentation_models_pytorch."""
    return any(key == HEAD or key.endswith("." + HEAD) for key in tensors)


def under_todays_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of such a network without what precedes their names (`module.`, `model.`)."""
    prefix = min((key for key in tensors if key.endswith(HEAD)), key=len).removesuffix(HEAD)
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    if "decoder.0.project.0.weight" not in own:
        return own
    return {_DEEPLABV3.get(key[:10], key[:10]) + key[10:]: value for key, value in own.items()}


def side_files(path: Path) -> list[Path]:
    """The file beside the network at `path` that `read_settings` reads: an input of whatever the network makes, as the
    weights are. None beside our own, whose `args.json` is a record that nothing reads. Needs no torch."""
    beside = path.parent / "args.json"
    if not beside.is_file():
        return [other] if (other := path.parent / "config.json").is_file() else []
    try:
        content = plain_json.read(beside, finite=False)
    except DataError:  # should it be needed, `read_settings` says what is wrong
        return [beside]
    return [beside] if isinstance(content, dict) and "model_args" in content else []


def read_settings(path: Path, outputs: int) -> dict[str, Any]:
    """What the file beside the network at `path` says: architecture, encoder, tasks, and, where it says so, image_size
    and normalisation. DataError where there is none, or a value is missing or of another kind."""
    for name, read in (("args.json", _of_original), ("config.json", _of_library)):
        beside = path.parent / name
        if not beside.is_file():
            continue
        content = plain_json.read(beside, finite=False)
        settings = read(beside, content, outputs)
        if len(settings["tasks"]) != outputs:
            raise DataError(f"{path}: {outputs} outputs, but {beside} names {len(settings['tasks'])} classes")
        return settings
    raise DataError(
        f"{path}: a segmentation network's weights alone; put the args.json of its training, or the config.json of "
        "save_pretrained, beside it"
    )


def _of_original(beside: Path, content: Any, outputs: int) -> dict[str, Any]:
    """The original's args.json: groups of options."""
    model = _value(beside, content, "model_args", dict)
    weights = model.get("encoder_weights")
    classes = _value(beside, _value(beside, content, "data_args", dict), "classes", list)
    if not all(isinstance(name, str) for name in classes):
        raise DataError(f"{beside}: 'classes' are not names")
    scale = content.get("transform_args", {"scale": 320}) if isinstance(content, dict) else {}
    return {
        "architecture": _value(beside, model, "architecture", str),
        "encoder": _value(beside, model, "encoder", str),
        "tasks": tuple(classes),
        "image_size": _value(beside, scale, "scale", int),
        "normalisation": "imagenet" if weights == "imagenet" else "chexpert",
    }


def _of_library(beside: Path, content: Any, outputs: int) -> dict[str, Any]:
    """The config.json of save_pretrained, which names no classes."""
    return {
        "architecture": _value(beside, content, "_model_class", str),
        "encoder": _value(beside, content, "encoder_name", str),
        "tasks": tuple(f"class {number}" for number in range(1, outputs + 1)),
    }


def _value(beside: Path, content: Any, key: str, kind: type) -> Any:
    value = content.get(key) if isinstance(content, dict) else None
    if type(value) is not kind or value == 0:
        raise DataError(f"{beside}: no {key!r} in it that is a {kind.__name__}; is it the one of this network?")
    return value
