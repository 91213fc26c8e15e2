"""Where the figures of a training run go: a JSON-lines file always, Weights & Biases where the user asked for it."""

import json
import logging
import netrc
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from chexseg.runtime import distributed
from chexseg.runtime.files import atomic, writing

log = logging.getLogger(__name__)
WANDB_HOST = "api.wandb.ai"


class JsonLines:
    """`log.jsonl`: one line per epoch."""

    def __init__(self, path: Path):
        self.path = path

    def keep(self, epochs: int) -> None:
        """Drop the lines of later epochs, which a resumed run is about to do again, and any that a kill cut off."""
        lines = [json.dumps(record) + "\n" for record in self.read() if record["epoch"] <= epochs]
        with atomic(self.path) as temporary:
            temporary.write_text("".join(lines))

    def write(self, record: Mapping) -> None:
        with writing(self.path), open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")

    def read(self) -> list[dict]:
        """The records of all epochs whose line is whole. Lines that are damaged are named; the last one may be cut off,
        by a kill."""
        lines = self.path.read_text(errors="replace").splitlines() if self.path.exists() else []
        records = [_record(line) for line in lines]
        damaged = [number for number, record in enumerate(records, 1) if record is None]
        if damaged and damaged != [len(lines)]:
            numbers = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
            log.warning("%s: line %s damaged, left out; the training itself is not affected", self.path, numbers)
        return [record for record in records if record is not None]


def _record(line: str) -> dict | None:
    """The record of a line; None for one that is damaged, or that a kill cut off."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and isinstance(record.get("epoch"), int)
    return record if whole else None


class Wandb:
    """Weights & Biases, without ever asking, waiting or sending unasked.

    No project name: nothing happens, wandb is not even imported. A project name without a login, or a login without a
    network: recorded offline under `folder`/wandb (`wandb sync` sends it later). Nothing happens before `start`; call
    `close` at the end.
    """

    def __init__(self, project: str, name: str, config: Mapping, folder: Path):
        self.project, self.name, self.folder = project, name, folder
        self.config = {key: str(value) if isinstance(value, Path) else value for key, value in config.items()}
        self._run = None

    def start(self, *, resumed: bool) -> None:
        """Open the run; a training that was resumed goes on with the run that it had."""
        if not self.project or not distributed.is_main():
            return
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else it looks for its makers' server, offline too
        import wandb

        options = {
            "project": self.project,
            "name": self.name or None,
            "config": self.config,
            "dir": self.folder,
            "id": self._id(resumed),
            "resume": "allow",
            "settings": wandb.Settings(init_timeout=20, console="off"),
        }
        try:
            self._run = wandb.init(mode=wandb_mode(), **options)
        except Exception as error:  # wandb raises what its network library does; none of it may stop a training
            log.warning("wandb is out of reach (%s): recording offline", " ".join(str(error).split()))
            wandb.teardown()  # its service holds on to the run's id
            self._run = wandb.init(mode="offline", **options)

    def _id(self, resumed: bool) -> str:
        """The name that W&B knows the run by, kept beside it."""
        path = self.folder / "wandb" / "run_id"
        if not (resumed and path.is_file()):
            with atomic(path) as temporary:
                temporary.write_text(secrets.token_hex(4))
        return path.read_text()

    def log(self, record: Mapping) -> None:
        if self._run is not None:
            self._run.log(dict(record), step=record["epoch"])

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def wandb_mode() -> str:
    """WANDB_MODE where it is set; else `online` with a login (WANDB_API_KEY or netrc), `offline` without one."""
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            if path and netrc.netrc(os.path.expanduser(path)).authenticators(WANDB_HOST):
                return "online"
        except (OSError, netrc.NetrcParseError):
            continue
    return "offline"
