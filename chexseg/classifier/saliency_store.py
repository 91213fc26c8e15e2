"""The saliency store: all maps of a run in one HDF5 file, at the network's resolution; and CheXlocalize's pickles.

Upsampling a map adds nothing to it, so the store keeps (T, h, w) an image, about 6 kB for 14 tasks at 10 x 10, where
the original wrote 16 pickles of 1.2 MB. Datasets: ids (N,), maps (N, T, h, w) float32, probabilities (N, T) float32,
sizes (N, 2) int32 = height and width of the original; attributes tasks (JSON list) and image_size.
"""

import json
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from chexseg.errors import DataError

STORE = Path("cams") / "saliency.h5"


class SaliencyMaps:
    """Saliency maps by image id, of a store or of a folder with CheXlocalize's `*_map.pkl`.

    `maps[image_id]` is a dict of `maps` (T, h, w) float32, `probabilities` (T,) float32 and `size` (height, width).
    The file is opened at first use in each process, so an instance may cross a fork or a spawn.
    """

    def __init__(self, path: Path):
        """`path`: the store itself, or a run folder that holds `cams/`, or a folder of pickles."""
        path = Path(path)
        store = path if path.is_file() else path / STORE
        self._pid, self._file = None, None
        if store.is_file():
            self.path = store
            with _open(store) as file:
                try:
                    self.tasks = tuple(json.loads(file.attrs["tasks"]))
                    self.image_size = int(file.attrs["image_size"])
                    self.ids = [name.decode() for name in file["ids"][:]]
                except KeyError as error:
                    raise DataError(f"{store}: not a store of saliency maps ({error}); make it with test.py") from error
            self._rows = {name: row for row, name in enumerate(self.ids)}
            return
        folder = path / "cams" if (path / "cams").is_dir() else path
        pickles = sorted(folder.glob("*_map.pkl"))
        if not pickles:
            raise DataError(f"{store}: no saliency maps here; make them with test.py --save_cams True")
        self.path, self.image_size = folder, None
        self._index_pickles(pickles)

    def _index_pickles(self, pickles: Sequence[Path]) -> None:
        """`<image id>_<task>_map.pkl`: the task is what follows the view."""
        self._pickles: dict[str, dict[str, Path]] = {}
        for path in pickles:
            stem = path.name.removesuffix("_map.pkl")
            at = max(stem.find("_frontal_"), stem.find("_lateral_"))
            if at < 0:
                raise DataError(f"{path}: expected patientX_studyY_viewZ_frontal_<task>_map.pkl")
            cut = at + len("_frontal_")
            self._pickles.setdefault(stem[: cut - 1], {})[stem[cut:]] = path
        self.ids = sorted(self._pickles)
        self.tasks = tuple(dict.fromkeys(task for name in self.ids for task in self._pickles[name]))
        self._rows = {name: row for row, name in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_pid": None, "_file": None}

    def __getitem__(self, image_id: str) -> dict:
        if image_id not in self._rows:
            raise DataError(f"{self.path}: no saliency map of {image_id}; run test.py on a set that has it")
        if self.path.is_dir():
            return self._read_pickles(image_id)
        if self._pid != os.getpid():
            self._file, self._pid = _open(self.path), os.getpid()
        row = self._rows[image_id]
        height, width = self._file["sizes"][row]
        return {
            "maps": self._file["maps"][row],
            "probabilities": self._file["probabilities"][row],
            "size": (int(height), int(width)),
        }

    def _read_pickles(self, image_id: str) -> dict:
        import torch  # seconds of importing that readers of the store need not wait for

        from chexseg.classifier.checkpoints import load_pickle

        found, size = {}, None
        for task, path in self._pickles[image_id].items():
            content = load_pickle(path)
            try:
                saliency = torch.as_tensor(content["map"]).float().squeeze((0, 1))
                probability = float(np.asarray(content.get("prob", np.nan)).reshape(-1)[0])
                width, height = map(int, content["cxr_dims"])
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise DataError(f"{path}: not a saliency pickle ({type(error).__name__}: {error})") from error
            if saliency.ndim != 2:
                raise DataError(f"{path}: its map has shape {tuple(saliency.shape)}, expected (1, 1, h, w)")
            found[task], size = (saliency.numpy(), probability), (height, width)
        shape = next(iter(found.values()))[0].shape
        blank = np.zeros(shape, np.float32), 0.0
        rows = [found.get(task, blank) for task in self.tasks]
        return {
            "maps": np.stack([m for m, _ in rows]),
            "probabilities": np.array([p for _, p in rows], np.float32),
            "size": size,
        }

    def task_rows(self, tasks: Sequence[str]) -> list[int]:
        """Where each of `tasks` stands along a map's first axis."""
        for task in tasks:
            if task not in self.tasks:
                raise DataError(f"{self.path}: no maps of {task!r}; it has {', '.join(self.tasks)}")
        return [self.tasks.index(task) for task in tasks]


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: not a readable HDF5 file ({error}); make it again with test.py") from error


def write_part(records: Sequence[dict], path: Path) -> None:
    """One shard of the store: records with id, maps, probabilities and size."""
    with open(path, "wb") as file:
        np.savez(
            file,
            ids=np.array([r["id"].encode() for r in records]),
            maps=np.stack([r["maps"] for r in records]),
            probabilities=np.stack([r["probabilities"] for r in records]),
            sizes=np.array([r["size"] for r in records], np.int32),
        )


def merge_parts(parts: Sequence[Path], path: Path, *, tasks: Sequence[str], image_size: int, count: int) -> None:
    """Join shards into a store of `count` images."""
    with h5py.File(path, "w") as file:
        file.attrs["tasks"], file.attrs["image_size"] = json.dumps(list(tasks)), image_size
        names: list[bytes] = []
        for part in parts:
            with np.load(part) as shard:
                start, stop = len(names), len(names) + len(shard["ids"])
                for name in ("maps", "probabilities", "sizes"):
                    rows = shard[name]
                    if name not in file:
                        file.create_dataset(name, (count, *rows.shape[1:]), rows.dtype)
                    file[name][start:stop] = rows
                names += shard["ids"].tolist()
        # Strings last and at once: where HDF5 puts them depends on how they come.
        file.create_dataset("ids", data=np.array(names, object), dtype=h5py.string_dtype())


def read_predictions(store: Path) -> pd.DataFrame:
    """The probabilities of a store as a table: image ids by tasks."""
    with _open(store) as file:
        index = pd.Index([name.decode() for name in file["ids"][:]], name="image_id")
        return pd.DataFrame(file["probabilities"][:], index, json.loads(file.attrs["tasks"]))


def write_pickles(folder: Path, image_id: str, tasks: Sequence[str], record: dict, image: np.ndarray, labels) -> None:
    """CheXlocalize's `<image id>_<task>_map.pkl`, one per task: the map at the image's size (S, S), the image itself
    as (3, S, S) in 0..1, and the original's (width, height)."""
    import torch

    size = image.shape[-2:]
    maps = torch.nn.functional.interpolate(torch.from_numpy(record["maps"])[None], size, mode="bilinear")[0]
    picture = torch.from_numpy(image / np.float32(255)).expand(3, *size).clone()
    height, width = record["size"]
    from chexseg.runtime.files import atomic

    for row, task in enumerate(tasks):
        content = {
            "map": maps[row][None, None].clone(),
            "prob": float(record["probabilities"][row]),
            "task": task,
            "gt": float(labels[row]) if labels is not None else None,
            "cxr_img": picture,
            "cxr_dims": (width, height),
        }
        with atomic(folder / f"{image_id}_{task}_map.pkl") as temporary, open(temporary, "wb") as file:
            pickle.dump(content, file)
