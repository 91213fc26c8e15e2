"""HDF5 files on a disk that fills up at any moment: an OSError, never a crash; with room they are what h5py writes."""

import errno
import os

import h5py
import numpy as np
import pytest

from chexseg.data import hdf5_output
from chexseg.data.hdf5_files import write_strings

TEXTS = [f"patient{i:05d}".encode() for i in range(40)]


def fill(file, check):
    rng = np.random.default_rng(0)
    chunks = {"chunks": (1, 1, 48, 48), "compression": "gzip", "fillvalue": 255}
    labels = file.create_dataset("labels", (40, 6, 48, 48), np.uint8, **chunks)
    maps = file.create_dataset("maps", (40, 14, 10, 10), np.float32)
    for row in range(40):
        for task in range(6):
            labels[row, task] = rng.integers(0, 3, (48, 48))
        maps[row] = rng.random((14, 10, 10))
        check()
    write_strings(file, "ids", TEXTS)


def contents(path):
    with h5py.File(path) as file:
        return {name: file[name][:].tolist() for name in file}


def test_with_room_it_is_the_file_that_h5py_writes(tmp_path):
    with hdf5_output.create(tmp_path / "ours.h5") as (file, check):
        fill(file, check)
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        fill(file, lambda: None)
    assert contents(tmp_path / "ours.h5") == contents(tmp_path / "theirs.h5")
    with hdf5_output.create(tmp_path / "again.h5") as (file, check):
        fill(file, check)
    assert (tmp_path / "again.h5").read_bytes() == (tmp_path / "ours.h5").read_bytes()


@pytest.mark.parametrize("room", [0, 90, 800, 2_000, 10_000, 100_000, 300_000, "all but one"])
def test_a_disk_that_fills_up_is_an_error(tmp_path, monkeypatch, room):
    write, left, written = os.pwrite, [1 << 60], [0]

    def on_a_small_disk(descriptor, data, place):
        taken = min(len(data), left[0])
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= taken
        written[0] += taken
        return write(descriptor, data[:taken], place)

    monkeypatch.setattr(os, "pwrite", on_a_small_disk)
    with hdf5_output.create(tmp_path / "whole.h5") as (file, check):
        fill(file, check)
    left[0] = written[0] - 1 if room == "all but one" else room
    with pytest.raises(OSError, match="No space left"), hdf5_output.create(tmp_path / "full.h5") as (file, check):
        fill(file, check)


def test_an_error_of_the_block_is_that_error(tmp_path):
    with pytest.raises(KeyError, match="mine"), hdf5_output.create(tmp_path / "a.h5") as (file, _):
        file.create_dataset("maps", (4, 4), np.float32)
        raise KeyError("mine")
