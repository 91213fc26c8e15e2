"""Files that runs leave beside their outputs: manifests, records of patients, logs, checkpoints of trainings."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from tests.hostile.attacks_models import Call, containers, saved
from tests.hostile.cases import REFUSED, SAFE, SAME, Case
from tests.hostile.sandbox import put

JUNK = {
    "empty": "", "a text": "x", "a number": "3", "null": "null", "a list": "[]", "an object": "{}", "deep": "[" * 200_000,
    "NaN": "NaN", "not UTF-8": b"\xff\xfe\x00", "a NUL": "\0", "cut": '{"fingerprint": "', "numbers": '{"fingerprint": 1, "output": 2}',
    "lists": '{"fingerprint": [], "output": [], "inputs": [], "paths": []}', "a long number": '{"output": ' + "9" * 5000 + "}",
    "odd values": '{"output": {"size": "x", "mtime_ns": [], "sha256": 3}, "fingerprint": {}, "finished": 1, "arguments": 7}',
}  # fmt: skip


def beside(name: str, other: str, content: str | bytes, path: Path) -> None:
    """The file `path` as it is, or a little one, and this content in `name` beside it."""
    if not path.exists():
        put(path, other)
    put(path.with_name(name), content)


def records(world: Path) -> Iterator[Case]:
    for name, content in JUNK.items():
        verdict = SAFE if name == "an object" else REFUSED
        file = "pred.json.chosen_on.json"
        yield Case("record of patients", name, "score", file, content, verdict)
    for name, content in {
        "a role as text": '{"a": {"trained": "x"}}', "a role of numbers": '{"a": {"trained": [1]}}', "roles as list": '{"a": []}',
        "a role of null": '{"a": {"trained": null}}',
    }.items():  # fmt: skip
        yield Case("record of patients", name, "score", "pred.json.chosen_on.json", content, SAFE)
    for name, content in JUNK.items():
        # The output is made again, or the record of an input is not believed.
        change = partial(beside, "seg_labels_encoded.json.manifest.json", "{}", content)
        yield Case("manifest", f"{name}, of an output", "masks_of_maps", "run/seg_labels_encoded.json", change, SAME)
        change = partial(beside, "saliency.h5.manifest.json", "", content)
        yield Case("manifest", f"{name}, of an input", "masks_of_maps", "run/cams/saliency.h5", change, SAME)
        change = partial(beside, "saliency.h5.manifest.json", "", content)
        yield Case("manifest", f"{name}, that names weights", "irnet_auto", "run/cams/saliency.h5", change, SAFE)
    for name, path in {
        "a secret": "/etc/passwd",
        "a folder": "/",
        "nothing": "",
        "a device": "/dev/zero",
        "a text": "\0x",
    }.items():
        content = json.dumps({"paths": {"ckpt_path": path}, "inputs": {path: "0"}})
        change = partial(beside, "saliency.h5.manifest.json", "", content)
        yield Case("manifest", f"weights at {name}", "irnet_auto", "run/cams/saliency.h5", change, SAFE)


def trainings(world: Path) -> Iterator[Case]:
    for name, content in JUNK.items():
        yield Case("args.json", name, "train", "trials/one/args.json", content, SAME)
    for name, content in JUNK.items():
        yield Case("log.jsonl", name, "train", "trials/one/log.jsonl", content, SAFE)
    for name, content in {
        "empty": b"", "a text": b"x", "a list": saved([1]), "an empty dict": saved({}), "TorchScript": _program(),
        "a call": saved({"progress": Call(eval, "open('../ran', 'w')")}), "zeros": bytes(1000),
        "a bomb": saved({"progress": {}, "model": {"a": torch.zeros(1).expand(10**12)}, "optimizer": {}, "fingerprint": "", "arguments": {}}),
        "odd parts": saved({"progress": 1, "model": 2, "optimizer": 3, "fingerprint": 4, "arguments": 5}),
        "odd progress": saved({"progress": {"evil": 1}, "model": {}, "optimizer": {}, "fingerprint": "", "arguments": {}}),
        "arguments a list": saved({"progress": {}, "model": {}, "optimizer": {}, "fingerprint": "", "arguments": [1]}),
        "of others": saved({"progress": {}, "model": {}, "optimizer": {}, "fingerprint": "x", "arguments": {}}),
    }.items():  # fmt: skip
        yield Case("checkpoint.pt", name, "train", "trials/one/checkpoint.pt", content, SAFE)
    sums = {"epoch": 1, "step": 2, "totals": torch.ones(2, dtype=torch.float64), "tally": torch.ones(3)}
    one = {"progress": sums, "model": {"a": torch.ones(64, 8)}, "optimizer": {}, "fingerprint": "", "arguments": {}}
    for name, change, _ in containers(saved(one), one):
        yield Case("checkpoint.pt", name, "train", "trials/one/checkpoint.pt", change, SAFE)


def _program() -> bytes:
    import io

    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 1)), file)
    return file.getvalue()
