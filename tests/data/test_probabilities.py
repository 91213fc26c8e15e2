"""Probabilities from predictions.csv."""

import numpy as np
import pytest

from chexseg.data.probabilities import read_probabilities
from chexseg.errors import DataError


def test_rows_and_columns_by_name(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text("image_id,Path,Lung Opacity,Edema\na,x.jpg,0.25,0.5\nb,y.jpg,1,0\nc,z.jpg,,\n")
    found = read_probabilities(path, ["b", "a"], ("Edema", "Airspace Opacity"), {"Lung Opacity": "Airspace Opacity"})
    np.testing.assert_array_equal(found, [[0, 1], [0.5, 0.25]])
    for images, tasks, message in [
        (["d"], ("Edema",), "no probabilities of d"),
        (["c"], ("Edema",), "c: Edema: '' is not a number from 0 to 1"),
        (["a"], ("Fracture",), "no column 'Fracture'; the file has image_id, Path, Lung Opacity, Edema"),
    ]:
        with pytest.raises(DataError, match=message):
            read_probabilities(path, images, tasks)
    with pytest.raises(DataError, match="no such file; test.py writes it"):
        read_probabilities(tmp_path / "none.csv", [], ())
