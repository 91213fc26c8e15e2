"""How far the paper's stages are, what stands in the way of each, what room the others need, and what comes next."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from chexseg.data.pipeline import Stage
from chexseg.runtime import plain_json, provenance
from chexseg.runtime.checks import Check
from chexseg.runtime.progress import duration

FINISHED, BEGUN, UNRECORDED, TO_DO = "finished", "begun", "there, unknown from what", "to do"
NETWORKS = (".pth", ".ckpt", ".pt")


def bytes_needed(stages: Sequence[Stage]) -> float:
    """Of the disk by the stages that are not there yet."""
    return sum(stage.bytes for stage in stages if state(stage) not in (FINISHED, UNRECORDED))


def state(stage: Stage) -> str:
    """How far a stage is, by its files alone. Whether its inputs changed since, the stage itself finds out."""
    states = [_state(output) for output in stage.outputs]
    for worse in (TO_DO, BEGUN, UNRECORDED):
        if any(found.startswith(worse) for found in states):
            begun = [found for found in states if found.startswith(BEGUN)]
            return begun[0] if begun else worse
    return FINISHED


def _state(output: Path) -> str:
    if output.suffix in NETWORKS:
        return _training_state(output)
    if not output.is_file():
        parts = output.with_name(f".{output.name}.parts")
        made = [path.name for path in parts.glob("*-of-*") if path.suffix != ".json"]
        return f"{BEGUN}: {len(made)} of {int(made[0].rpartition('-of-')[2])} shards" if made else TO_DO
    if _read(output.with_suffix(".manifest.json")).get("fingerprint"):  # a report's, of all its files
        return FINISHED
    size = _read(provenance.manifest_path(output)).get("output", {}).get("size")
    return FINISHED if size == output.stat().st_size else UNRECORDED


def _training_state(output: Path) -> str:
    """Of a network. Its record stands beside it, or in the folder of its training."""
    beside = provenance.manifest_path(output), output.parent / "args.json"
    of_boundaries = output.parent / output.stem.removeprefix("best_")
    folders = output.with_name(f"{output.name}.training"), output.parent, of_boundaries
    if not output.is_file():
        return BEGUN if any((folder / "checkpoint.pt").is_file() for folder in folders) else TO_DO
    record = next((path for path in (*beside, of_boundaries / "args.json") if path.is_file()), None)
    if record and "finished" in _read(record):
        return FINISHED
    return BEGUN if record and any((folder / "checkpoint.pt").is_file() for folder in folders) else UNRECORDED


def _read(path: Path) -> dict:
    """A record; empty where it cannot be read."""
    try:
        content = plain_json.read(path, finite=False)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def blocked(stages: Sequence[Stage], stopping: Sequence[Check]) -> dict[str, str]:
    """The check that each blocked stage waits for: its own input's, or that of a stage before it. A finished stage, or
    one whose file is there, is not blocked and blocks nobody."""
    problems: dict[str, str] = {}
    for check in reversed(stopping):
        # `train labels` and `train images` are both about `train`.
        for name in (check.what, check.what.removesuffix(" labels").removesuffix(" images")):
            problems[name] = check.what
    reasons: dict[str, str] = {}
    for stage in stages:
        if state(stage) not in (FINISHED, UNRECORDED):
            for need in stage.needs:
                reason = reasons.get(need) if need != stage.name else None
                reason = reason or problems.get(need)
                if reason:
                    reasons.setdefault(stage.name, reason)
    return reasons


def table(stages: Sequence[Stage], reasons: Mapping[str, str]) -> str:
    """A line a stage: how far it is, of how many images, about how long what is left takes, and what is in its way."""
    width = max(len(stage.name) for stage in stages)
    lines = ["STAGES"]
    for number, stage in enumerate(stages, 1):
        how_far = state(stage)
        left = "" if how_far == FINISHED or not stage.seconds else f"about {duration(stage.seconds)}"
        text = how_far
        if stage.name in reasons:
            text = f"BLOCKED by {reasons[stage.name]}, see above"
        images = f"{stage.images} images" if stage.images else ""
        lines.append(f"  {number:2} {stage.name:{width}}  {images:>14}  {left:>18}  {text}".rstrip())
    work = sum(stage.seconds for stage in stages if state(stage) != FINISHED and stage.name not in reasons)
    if work:
        lines.append(f"  about {duration(work)} of work left on this machine, in one process")
    return "\n".join(lines)


def next_stage(stages: Sequence[Stage], reasons: Mapping[str, str]) -> Stage | None:
    """The first stage that is not finished and not blocked."""
    ready = (stage for stage in stages if stage.name not in reasons and state(stage) != FINISHED)
    return next((stage for stage in ready if state(stage) != UNRECORDED), None)
