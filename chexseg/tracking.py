"""Where the figures of a training run go: a JSON-lines file always, Weights & Biases where the user asked for it."""

import json
import netrc
import os
from collections.abc import Mapping
from pathlib import Path

from chexseg import distributed
from chexseg.shards import atomic

WANDB_HOST = "api.wandb.ai"


class JsonLines:
    """`log.jsonl`: one line per epoch."""

    def __init__(self, path: Path):
        self.path = path

    def keep(self, epochs: int) -> None:
        """Drop the lines of later epochs, which a resumed run is about to do again, and any that a kill cut off."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        with atomic(self.path) as temporary:
            temporary.write_text("".join(line + "\n" for line in lines if _epoch(line) <= epochs))

    def write(self, record: Mapping) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")

    def read(self) -> list[dict]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []


def _epoch(line: str) -> float:
    """The epoch of a line; infinite for one that a kill cut off."""
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


class Wandb:
    """Weights & Biases, without ever asking, waiting or sending unasked.

    No project name: nothing happens, wandb is not even imported. A project name without a login: recorded offline
    under `folder`/wandb (`wandb sync` sends it later). Call `close` at the end.
    """

    def __init__(self, project: str, name: str, config: Mapping, folder: Path):
        self._run = None
        if not project or not distributed.is_main():
            return
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self._run = wandb.init(
            project=project,
            name=name or None,
            config={key: str(value) if isinstance(value, Path) else value for key, value in config.items()},
            dir=folder,
            mode=wandb_mode(),
            settings=wandb.Settings(init_timeout=20, console="off"),
        )

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
