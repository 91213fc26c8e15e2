"""ImageNet weights in torch's own cache, found by name without importing torch."""

import os
from pathlib import Path


def folder() -> Path:
    """Where torch.hub keeps downloaded weights, by the same variables."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


def only_file(architecture: str) -> Path | None:
    """The architecture's weights, where there is exactly one file of them: torchvision, which knows the full name,
    cannot mean another."""
    found = sorted(folder().glob(f"{architecture}-*.pth"))
    return found[0] if len(found) == 1 else None
