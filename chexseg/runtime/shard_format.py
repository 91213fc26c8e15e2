"""How the records of a stage become one file: `write` a shard, `merge` the shards. No more does `shards.build` know.

A module that owns a file format owns its shards too, as a class with these two methods; `hdf5_files` and `mask_files`
have such classes. Those whose shards are arrays write and read them here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np

Record = TypeVar("Record", contravariant=True)


class ShardFormat(Protocol[Record]):
    """What `shards.build` asks of a file format. The merged file has the same bytes however the records were cut."""

    def write(self, records: Sequence[Record], path: Path) -> None:
        """Write the records of one shard, at least one."""

    def merge(self, parts: Sequence[Path], path: Path) -> None:
        """Join shards, in order, into the output. None of them: an output without items."""


def write_arrays(path: Path, *, compress: bool = False, **arrays: "np.ndarray") -> None:
    """Write a shard of arrays that share their first axis, one entry a record."""
    import numpy as np

    save: Callable = np.savez_compressed if compress else np.savez
    with open(path, "wb") as file:  # of a path, NumPy would add .npz to the name
        save(file, **arrays)


def read_arrays(parts: Sequence[Path]) -> Iterator[tuple[slice, Mapping[str, "np.ndarray"]]]:
    """Shards of `write_arrays`, one at a time: the rows of the output that a shard fills, and its arrays."""
    import numpy as np

    start = 0
    for part in parts:
        with np.load(part) as shard:
            arrays = {name: shard[name] for name in shard.files}
        stop = start + len(next(iter(arrays.values())))
        yield slice(start, stop), arrays
        start = stop
