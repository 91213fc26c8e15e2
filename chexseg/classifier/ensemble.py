"""Several classifiers as one: for each task its own checkpoints, whose maps and probabilities are averaged.

The configuration is the original's: `{"task2models": {task: [{"ckpt_path": ...}, ...]}, "aggregation_method": "mean"}`.
Light to import: torch comes in with the first batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chexseg.errors import DataError, MissingError, UsageError
from chexseg.runtime import plain_json

if TYPE_CHECKING:
    import torch

    from chexseg.classifier.models import Classifier

FOLDER = "ensemble_results"  # of an ensemble's maps, where a checkpoint's name stands else; the original's own name

Members = Mapping[str, Sequence[Path]]  # the checkpoints that vote on each task


def read_config(path: Path, tasks: Sequence[str], aliases: Mapping[str, str]) -> dict[str, tuple[Path, ...]]:
    """The checkpoints of each task, in the order of `tasks`; a relative path is looked for here and beside the file.

    DataError for what is not as above, and for a checkpoint that is not there.
    """
    content = plain_json.read(path, "expected the configuration of an ensemble")
    models = content.get("task2models") if isinstance(content, dict) else None
    if not isinstance(models, dict) or not models:
        raise DataError(f"{path}: expected {{'task2models': {{task: [{{'ckpt_path': ...}}]}}}}")
    if (how := content.get("aggregation_method", "mean")) != "mean":
        raise DataError(f"{path}: aggregation_method {how!r}; only 'mean' is known")
    members = {}
    for task, listed in models.items():
        name = aliases.get(task, task)
        if name not in tasks:
            raise DataError(f"{path}: unknown task {task!r}; known are {', '.join(tasks)}")
        if name in members:
            raise DataError(f"{path}: {name} occurs twice (also as {task!r}); keep one of them")
        if not isinstance(listed, list) or not listed:
            raise DataError(f"{path}: {task}: expected a list of {{'ckpt_path': ...}}")
        members[name] = tuple(_checkpoint(path, task, entry) for entry in listed)
    return {task: members[task] for task in tasks if task in members}


def _checkpoint(path: Path, task: str, entry: object) -> Path:
    named = entry.get("ckpt_path") if isinstance(entry, dict) else None
    if not isinstance(named, str) or not named or "\0" in named or len(named) > 4000:
        raise DataError(f"{path}: {task}: {str(entry)[:60]!r} has no 'ckpt_path'")
    found = next((place for place in (Path(named), path.parent / named) if place.is_file()), None)
    if found is None:
        raise MissingError(f"{path}: {task}: {named}: no such checkpoint")
    return found


def files(members: Members) -> list[Path]:
    """Each checkpoint once, in the order of the tasks."""
    return list(dict.fromkeys(path for paths in members.values() for path in paths))


@dataclass
class Ensemble:
    """Networks by their files, and which of them vote on which task."""

    networks: Mapping[Path, Classifier]
    members: Members

    def __post_init__(self) -> None:
        for task, paths in self.members.items():
            for path in paths:
                if task not in (known := self.networks[path].spec.tasks):
                    raise DataError(f"{path}: does not know {task!r}; it knows {', '.join(known)}")

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.members)

    @property
    def image_size(self) -> int:
        """Side of the input that all were trained with. UsageError where they differ."""
        sizes = sorted({network.spec.image_size for network in self.networks.values()})
        if len(sizes) > 1:
            raise UsageError(f"the checkpoints were trained with {' and '.join(map(str, sizes))} px: give --image_size")
        return sizes[0]

    def to(self, device: torch.device) -> Ensemble:
        return Ensemble({path: network.to(device) for path, network in self.networks.items()}, self.members)

    def saliency(
        self, pixels: torch.Tensor, method: str, *, scales: Sequence[float], mirror: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, S, S) uint8 -> maps (B, T, h, w) and probabilities (B, T): means over the networks of each task.

        Maps of different sizes are resized to the largest."""
        import torch
        from torch.nn.functional import interpolate

        from chexseg.classifier import cam
        from chexseg.data.images import normalise

        found = {
            path: cam.averaged_saliency(
                network, normalise(pixels, network.spec.normalisation), method, scales=scales, mirror=mirror
            )
            for path, network in self.networks.items()
        }
        if len(found) == 1 and self.tasks == next(iter(self.networks.values())).spec.tasks:
            return next(iter(found.values()))
        grid = max((maps.shape[-2:] for maps, _ in found.values()), key=lambda shape: shape[0] * shape[1])
        maps, probabilities = [], []
        for task, paths in self.members.items():
            rows = [(found[path], self.networks[path].spec.tasks.index(task)) for path in paths]
            same = [m[:, [row]] for (m, _), row in rows]
            same = [m if m.shape[-2:] == grid else interpolate(m, grid, mode="bilinear") for m in same]
            maps.append(torch.stack(same).mean(0))
            probabilities.append(torch.stack([p[:, row] for (_, p), row in rows]).mean(0))
        return torch.cat(maps, 1), torch.stack(probabilities, 1)
