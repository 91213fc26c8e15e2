"""Timing two sides in turn, and saying what came of it.

A topic's module registers rows; each builds its inputs when it is asked for and returns a `Case`:

    @row("walk", "random walk, 10 maps on an 80 x 80 grid")
    def walk(device: torch.device) -> Case:
        ...
        return Case(ours=lambda: ..., reference=lambda: ..., agreement=compare, least_agreement=0.99, max_ratio=1 / 6)
"""

import importlib.metadata
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

ROWS: dict[str, tuple[str, Callable[[torch.device], "Case"]]] = {}


class MissingError(Exception):
    """A reference that is not installed here; says how to get it."""


@dataclass
class Case:
    """Two sides of a comparison over the same inputs.

    max_ratio, limit_s  targets: of ours / reference, and of our seconds per item; both must hold where both are given
    agreement           (ours' result, reference's result) -> a number, 1 for equal; must reach `least_agreement`
    items               how many things one call deals with: times are per item
    reference_repeats   fewer for a reference that takes long; such a one is not warmed up either
    clock               of both sides; time.process_time where a busy machine must not matter, of one thread
    missing             why there is no reference
    note                what else was measured
    """

    ours: Callable[[], Any]
    reference: Callable[[], Any] | None = None
    agreement: Callable[[Any, Any], float] | None = None
    least_agreement: float = 0.0
    max_ratio: float | None = None
    limit_s: float | None = None
    items: int = 1
    reference_repeats: int | None = None
    clock: Callable[[], float] = time.perf_counter
    missing: str = ""
    note: str = ""


def row(name: str, title: str) -> Callable:
    """Register a function of the device as a row; `python -m bench <prefix of name>` runs it."""

    def register(function: Callable[[torch.device], Case]) -> Callable[[torch.device], Case]:
        if name in ROWS:
            raise ValueError(f"two rows are called {name!r}")
        ROWS[name] = title, function
        return function

    return register


def require(package: str) -> None:
    """MissingError where an optional reference is not installed."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingError(f"pip install {package}") from error


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(
    function: Callable[[], Any], device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, Any]:
    """Seconds of one call, and its result."""
    synchronise(device)
    started = clock()
    result = function()
    synchronise(device)
    return clock() - started, result


def spread(seconds: list[float]) -> float:
    """Interquartile range over the median; 0 for a single value."""
    if len(seconds) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return (high - low) / middle


def measure(name: str, device: torch.device, repeats: int) -> dict[str, Any]:
    """One row: the two sides in turn, so that a busy machine is busy for both."""
    title, build = ROWS[name]
    case = build(device)
    ours, reference, last, other = [], [], None, None
    last = case.ours()  # warm up: compile, allocate
    reference_repeats = case.reference_repeats or repeats
    if case.reference and case.reference_repeats is None:
        other = case.reference()
    for i in range(repeats):
        seconds, last = timed(case.ours, device, case.clock)
        ours.append(seconds / case.items)
        if case.reference and i < reference_repeats:
            seconds, other = timed(case.reference, device, case.clock)
            reference.append(seconds / case.items)
    ours_s = statistics.median(ours)
    reference_s = statistics.median(reference) if reference else None
    ratio = ours_s / reference_s if reference_s else None
    agreement = case.agreement(last, other) if case.agreement and reference else None
    met = not (case.missing and case.max_ratio is not None)
    if case.max_ratio is not None and ratio is not None:
        met &= ratio <= case.max_ratio
    if case.limit_s is not None:
        met &= ours_s <= case.limit_s
    if agreement is not None:
        met &= agreement >= case.least_agreement
    return {
        "name": name,
        "title": title,
        "ours_s": ours_s,
        "reference_s": reference_s,
        "ratio": ratio,
        "agreement": agreement,
        "target": case.max_ratio,
        "limit_s": case.limit_s,
        "met": met,
        "ours_spread": spread(ours),
        "reference_spread": spread(reference) if reference else None,
        "missing": case.missing,
        "note": case.note,
    }


def shown_time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("s", 1), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def shown_ratio(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    return f"1/{1 / ratio:.3g}" if ratio < 0.5 else f"{ratio:.3g}"


def table(results: list[dict]) -> str:
    """Markdown: one line per row."""
    head = "| row | ours | +- | reference | +- | ratio | target | agreement | met |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for r in results:
        targets = [shown_ratio(r["target"])] if r["target"] is not None else []
        targets += [shown_time(r["limit_s"])] if r["limit_s"] is not None else []
        agreement = "-" if r["agreement"] is None else f"{r['agreement']:.6g}"
        reference = shown_time(r["reference_s"]) if not r["missing"] else f"missing: {r['missing']}"
        spreads = ["-" if s is None else f"{s:.0%}" for s in (r["ours_spread"], r["reference_spread"])]
        text = r["title"] + (f" ({r['note']})" if r["note"] else "")
        cells = [f"`{r['name']}` {text}", shown_time(r["ours_s"]), spreads[0], reference, spreads[1]]
        cells += [shown_ratio(r["ratio"]), " and ".join(targets) or "-", agreement, "yes" if r["met"] else "**no**"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
