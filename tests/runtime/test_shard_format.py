"""Shards of arrays: what is written comes back, in order, with the rows that it fills."""

import numpy as np
import pytest

from chexseg.runtime import shard_format


@pytest.mark.parametrize("compress", [False, True])
def test_arrays_come_back_with_their_rows(tmp_path, compress):
    values = np.arange(10, dtype=np.float32).reshape(5, 2)
    names = np.array([f"image{i}".encode() for i in range(5)])
    cuts, parts = [(0, 2), (2, 3), (3, 5)], []
    for start, stop in cuts:
        parts.append(tmp_path / f"{start:06d}-of-000003")
        shard_format.write_arrays(parts[-1], compress=compress, values=values[start:stop], names=names[start:stop])
    assert sorted(tmp_path.iterdir()) == parts  # no suffix is added
    together, seen = np.zeros_like(values), []
    for rows, arrays in shard_format.read_arrays(parts):
        together[rows] = arrays["values"]
        seen += [(rows.start, rows.stop)]
        assert arrays["names"].tolist() == names[rows].tolist()
    assert seen == cuts and (together == values).all()


def test_no_shards_give_no_rows():
    assert list(shard_format.read_arrays([])) == []


def test_a_shard_runs_nothing(tmp_path):
    """Arrays of Python objects are pickles: refused when they are read."""
    shard_format.write_arrays(tmp_path / "part", objects=np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match="allow_pickle"):
        list(shard_format.read_arrays([tmp_path / "part"]))
