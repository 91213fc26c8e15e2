"""The stages as commands of a tiny run, and processes forked from a warm one that run, kill and watch them."""

import hashlib
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    "constants torch.distributed segmentation_models_pytorch cv2 h5py pandas tqdm PIL.Image "
    "chexseg.classifier.dataset chexseg.classifier.cam chexseg.classifier.saliency_masks chexseg.data.hdf5_files "
    "chexseg.irnet.crf chexseg.irnet.dataset chexseg.irnet.random_walk chexseg.phantom.dataset "
    "chexseg.segmentation.evaluator chexseg.segmentation.films chexseg.training.loop tests.pipeline.stages"
)
WALK_MODEL = "best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth"
NETWORK = "--encoder resnet10w32 --decoder_channels 16 --image_size 64 --batch_size 8 --save_every 1e-6"
# Script and options of each stage, in the order in which they feed each other; {run} and the like are folders.
COMMANDS = {
    "make_synthetic_chexpert": "make_synthetic_chexpert.py --preset tiny --num_train 22 --num_valid 10 --num_test 6 "
    "--out_dir {data} --gt_out {labels}",
    "train": "train.py --ckpt_path {base}/models/tiny/c.ckpt --architecture resnet10w32 --image_size 64 --num_epochs 2 "
    "--batch_size 8 --lr 2e-3 --augment --one_cycle --save_every 1e-6",
    "test": "test.py --ckpt_path {base}/models/tiny/c.ckpt --save_dir_predictions {base}/train_cams "
    "--save_cams True --save_train_cams True --batch_size 3 --shard_size 4",
    "pred_segmentation": "localization_eval/pred_segmentation.py --map_dir {run} --shard_size 4",
    "gt_segmentation": "localization_eval/gt_segmentation.py --ann_path {labels}/gt_annotations_valid.json "
    "--output_path {labels}/valid_encoded.json",
    "gt_segmentation_test": "localization_eval/gt_segmentation.py --ann_path {labels}/gt_annotations_test.json "
    "--output_path {labels}/test_encoded.json",
    "convert_to_hdf5": "IRNet/convert_to_hdf5.py --map_dir {run} --image_size 64 --shard_size 4",
    "cam_to_ir_label_hdf5": "IRNet/cam_to_ir_label_hdf5.py --map_dir {run} --shard_size 4",
    "train_irnet": "IRNet/train_irnet.py --map_dir {run} --backbone_weights {base}/models/tiny/c.ckpt --lr 0.01 "
    "--weight_decay 0.0 --num_epochs 2 --batch_size 8 --radius 3 --save_every 1e-6",
    "make_pseudo_seg_labels": "make_pseudo_seg_labels.py --irn_pseudo_labels_save_dir {run} --radius 2 --batch_size 3 "
    "--shard_size 4 --irn_best_model_name " + WALK_MODEL,
    "segmentation_train": "segmentation_train.py --save_dir {base}/trials --experiment_name semi "
    "--semi_supervised True --weighted True --ss_expert_annotations_masks_path {labels}/valid_encoded.json "
    "--ss_dnn_generated_masks_path {run}/pseudo_seg_labels_encoded_irnet.json "
    "--eval_masks_path {labels}/test_encoded.json --encoder_weights_type CheXpert "
    "--encoder_weights {base}/models/tiny/c.ckpt --num_epochs 2 --lr 1e-3 --augment " + NETWORK,
    "segmentation_test": "segmentation_test.py --model_path {base}/trials/semi/best_model.pth "
    "--test_masks_path {labels}/test_encoded.json --output_path {base}/trials/semi/test_masks.json "
    "--batch_size 2 --shard_size 2 --allow_leak True",  # its images chose the epoch
    "segmentation_predict": "segmentation_predict.py --model_path {base}/trials/semi/best_model.pth "
    "--images {data}/CheXpert/test --output_dir {base}/films --batch_size 2 --shard_size 2",
}
SHARDED = tuple(name for name, command in COMMANDS.items() if "--shard_size" in command)
# What Python tells of before it connects (to a path of this machine it may) or looks up a name.
ASKING = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
ASKED = 99  # status of a process that did
TRAINERS = ("train", "train_irnet", "segmentation_train")


@dataclass
class Workspace:
    """A folder with data, labels and everything that stages make of them."""

    root: Path

    def __post_init__(self):
        for folder in ("data/labels", "base"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)

    @property
    def run(self) -> Path:
        return self.root / "base" / "train_cams" / "tiny_c.ckpt"

    def command(self, stage: str, *more: str) -> list[str]:
        data = self.root / "data"
        places = {"data": data, "labels": data / "labels", "base": self.root / "base", "run": self.run}
        return [*COMMANDS[stage].format(**places).split(), *more]

    def environment(self) -> dict[str, str]:
        return {
            "CHEXPERT_DATA_DIR": str(self.root / "data"),
            "OBJ_EFFICIENCY_BASE_PATH": str(self.root / "base"),
            "TEST_SEG_LABELS_GT_BASE_PATH": str(self.root / "data" / "labels"),
        }

    def files(self) -> set[str]:
        """All files but locks, relative to the root."""
        found = (path for path in self.root.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
        return {str(path.relative_to(self.root)) for path in found}

    def content(self, names: Sequence[str]) -> dict[str, object]:
        """What is in the files, comparable across workspaces."""
        return {name: content(self.root / name, self.root) for name in names}


@dataclass
class TinyRun(Workspace):
    """A workspace in which every stage ran undisturbed; `made` and `seconds` of each, and its file operations."""

    made: dict[str, list[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)
    expected: dict[str, dict] = field(default_factory=dict)

    def add(self, stage: str) -> None:
        before, started = self.files(), time.monotonic()
        process = start(self, stage)
        assert process.wait() == 0, process.said()
        self.seconds[stage] = time.monotonic() - started
        self.operations[stage] = process.operations()
        self.made[stage] = sorted(self.files() - before)
        self.expected[stage] = self.content(self.made[stage])

    def before(self, stage: str, root: Path) -> Workspace:
        """A copy of the workspace as the stage found it."""
        for name in COMMANDS:
            if name == stage:
                return Workspace(root)
            for file in self.made[name]:
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.root / file, root / file)
        raise KeyError(stage)

    def assert_same(self, stage: str, workspace: Workspace) -> None:
        """Every file that the stage made here is there with the same content, and nothing else is."""
        earlier = {file for name in list(COMMANDS)[: list(COMMANDS).index(stage)] for file in self.made[name]}
        assert sorted(workspace.files() - earlier) == self.made[stage]
        found = workspace.content(self.made[stage])
        assert [name for name, value in self.expected[stage].items() if found[name] != value] == []


def content(path: Path, root: Path) -> object:
    """A file's bytes as a digest; of checkpoints the tensors, of logs all but times, of records all but places."""
    data = path.read_bytes()
    if path.name == "checkpoint.pt":
        return plain(torch.load(path, weights_only=True), skip=("num_workers",))
    if path.name == "log.jsonl":
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in data.splitlines()]
    if path.name == "args.json" or path.name.endswith("manifest.json"):
        found = json.loads(data.decode().replace(str(root), "ROOT"))
        return plain(found, skip=("mtime_ns", "shard_size", "num_workers", "batch_size"))
    return hashlib.sha256(data).hexdigest()


def plain(value, skip=()):
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, Mapping):
        return {k: plain(v, skip) for k, v in value.items() if k not in skip}
    if isinstance(value, (list, tuple)):
        return [plain(v, skip) for v in value]
    return value


_context = multiprocessing.get_context("forkserver")


def warm_up() -> None:
    """Start the process that all others are forked from: it has imported everything and run nothing."""
    _context.set_forkserver_preload(MODULES.split())
    former = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "PYTHONPATH")}
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    from multiprocessing.forkserver import ensure_running

    ensure_running()
    for name, value in former.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@dataclass
class Running:
    """A stage in its own process, and what it says."""

    process: multiprocessing.Process
    log: Path

    def wait(self, timeout: float | None = 120) -> int | None:
        self.process.join(timeout)
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def said(self) -> str:
        return self.log.read_text()

    def operations(self) -> int:
        return int(self._ended()[0])

    def seconds(self) -> float:
        """Of the processor, in an undisturbed run."""
        return float(self._ended()[1])

    def _ended(self) -> list[str]:
        return self.log.with_suffix(".operations").read_text().split()

    def last_line(self) -> str:
        lines = self.said().strip().splitlines()
        return lines[-1] if lines else ""


_count = 0


def start(
    workspace: Workspace, stage: str, *more: str, die_at: int = 0, limits: Mapping = {}, **environment
) -> Running:
    """Start a stage; it is killed (SIGKILL) right before its `die_at`-th change of a file, if that is not 0.

    limits: of `resource.setrlimit`, by number."""
    global _count
    _count += 1
    folder = workspace.root.parent / f"{workspace.root.name}.logs"
    folder.mkdir(exist_ok=True)
    log = folder / f"{_count:04d}_{stage}.log"
    given = (
        workspace.command(stage, *more),
        workspace.environment() | environment,
        log,
        workspace.root,
        die_at,
        limits or {},
    )
    process = _context.Process(target=_body, args=given)
    process.start()
    return Running(process, log)


def start_ranks(workspace: Workspace, stage: str, ranks: int, *more: str, die_at: int = 0) -> list[Running]:
    """The same in several ranks, as torchrun would start them; `die_at` is the last one's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    dies = [0] * (ranks - 1) + [die_at]
    return [
        start(workspace, stage, *more, die_at=dies[r], RANK=str(r), LOCAL_RANK=str(r), **common) for r in range(ranks)
    ]


def _body(command, environment, log, root, die_at, limits) -> None:
    import resource

    os.environ |= environment | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    if os.environ.pop("CHEXSEG_OWN_GROUP", ""):
        os.setpgid(0, 0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job, as we may be, ignores
    multiprocessing.set_start_method(None, force=True)  # workers come as Python starts them, not as this process came
    tqdm.set_lock(threading.RLock())  # the usual one is a semaphore, which a killed process would leave behind
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", closefd=False, buffering=1)
    changes = 0
    watched = str(root)

    def watch(event: str, args: tuple) -> None:
        nonlocal changes
        if event in ASKING and not (event == "socket.connect" and isinstance(args[1], (str, bytes))):
            sys.stderr.write(f"{event} {args[1:]}: no stage may ask the network\n")
            os._exit(ASKED)
        if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if not str(args[0]).startswith(watched) and event != "os.rmdir":
            return
        changes += 1
        if changes == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    for what, limit in limits.items():
        resource.setrlimit(what, (limit, limit))
    script = ROOT / command[0]
    sys.argv = [str(script), *command[1:]]
    sys.path.insert(0, str(script.parent))
    status = 0
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as stop:
        status = stop.code or 0
    finally:
        sys.stdout.flush()
    watched = "\0"
    log.with_suffix(".operations").write_text(f"{changes} {time.process_time():.3f}")
    os._exit(status)
