"""Which patients a file was chosen on, written beside it, so that no score of these patients passes for a test's.

A network is trained on some patients, its epoch and thresholds are chosen on others; masks made with it inherit both.
`<file>.chosen_on.json` holds, for each role, the hashes of the patients (not their ids), sorted:

    {"best_model.pth": {"trained": ["0a1b...", ...], "epoch and thresholds": [...]}}

A file without such a record is not refused: nothing is known of it, and `check` says so.
"""

import argparse
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from chexseg.errors import DataError
from chexseg.runtime import cli, distributed, plain_json
from chexseg.runtime.files import atomic

log = logging.getLogger(__name__)
Record = dict[str, dict[str, list[str]]]  # file name -> role -> hashes of patients


def add_option(parser: argparse.ArgumentParser) -> None:
    """`--allow_leak`, of every script that scores."""
    cli.add_boolean(
        parser,
        "--allow_leak",
        help="score patients that the predictions were trained or chosen on too; every output says so",
    )


def path_of(file: Path) -> Path:
    """Where the record of `file` stands."""
    return file.with_name(file.name + ".chosen_on.json")


def hashed(patient: str) -> str:
    """What stands for a patient in a record."""
    return hashlib.sha256(patient.encode()).hexdigest()[:16]


def record(file: Path, chosen_on: Mapping[str, Iterable[str]]) -> None:
    """Write which patients `file` comes from, by role: `{"trained": patients, "epoch and thresholds": patients}`.

    To be called before `file` is written, so that a kill leaves no file without its record. Rank 0 writes.
    """
    hashes = {role: sorted({hashed(patient) for patient in patients}) for role, patients in chosen_on.items()}
    _write(file, {file.name: hashes})


def inherit(file: Path, sources: Sequence[Path | None]) -> None:
    """Write the record of a file that is made with others (masks by a network and its thresholds): theirs, together.

    Where none of them has a record, `file` gets none, and loses an old one."""
    together: Record = {}
    for source in sources:
        if source is not None:
            for name, roles in read(source).items():
                known = together.setdefault(name, {})
                known |= {role: sorted({*known.get(role, ()), *hashes}) for role, hashes in roles.items()}
    if together:
        _write(file, together)
    elif distributed.is_main():
        path_of(file).unlink(missing_ok=True)


def _write(file: Path, content: Record) -> None:
    if distributed.is_main():
        text = json.dumps(content, sort_keys=True) + "\n"
        path = path_of(file)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            with atomic(path) as temporary:
                temporary.write_text(text, encoding="utf-8")


def read(file: Path) -> Record:
    """The record of `file`; empty where there is none."""
    path = path_of(file)
    if not path.is_file():
        return {}
    try:
        content = plain_json.read(path)
        if not all(isinstance(h, str) for roles in content.values() for hashes in roles.values() for h in hashes):
            raise ValueError("expected texts")
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{path}: not a record of patients ({error}); make {file.name} again") from error
    return content


def check(sources: Iterable[Path | None], patients: Iterable[str], *, allow: bool = False) -> list[str]:
    """Refuse (DataError) to score `patients` where one of `sources` was trained or chosen on some of them.

    With `allow` the reasons are returned instead, and warned of, to be stamped on whatever is written.
    """
    tested = {hashed(patient): patient for patient in patients}
    leaks, unknown = [], []
    for source in sources:
        if source is None:
            continue
        found = read(source)
        if not found:
            unknown.append(source.name)
        for name, roles in found.items():
            for role, hashes in roles.items():
                shared = sorted(tested[h] for h in hashes if h in tested)
                if shared:
                    by = name if name == source.name else f"{name} (in {source.name})"
                    leaks.append(
                        f"{by}: {role} on {len(shared)} of the {len(tested)} scored patients: {', '.join(shared[:3])}"
                        + (", ..." if len(shared) > 3 else "")
                    )
    if unknown:
        log.info("nothing says which patients these were chosen on: %s", ", ".join(unknown))
    if leaks and not allow:
        raise DataError(
            f"{'; '.join(leaks)}. Scores of these patients are no test; "
            "score others, or give --allow_leak True to score them all the same"
        )
    for leak in leaks:
        log.warning("LEAK: %s", leak)
    return leaks
