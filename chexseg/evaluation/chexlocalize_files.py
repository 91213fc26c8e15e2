"""Scores of each film and of each bootstrap replicate, in the two CSV formats that CheXlocalize's eval.py writes.

`..._results_per_cxr.csv`: a row an image, sorted by name; the tasks in alphabetical order, then `img_id`; empty where a
pair is not scored. `..._bootstrap_results_per_cxr.csv`: a row a replicate, the tasks in the order of the findings. Its
replicates are of images, ours of patients.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from chexseg.evaluation.bootstrap import Resamples
from chexseg.runtime.files import atomic


def write(stem: Path, each: np.ndarray, tasks: tuple[str, ...], images: list[str], resamples: Resamples) -> list[Path]:
    """Write both files, their names beginning with `stem`, of a score per image and task (images, tasks)."""
    per_film = pd.DataFrame(each, columns=list(tasks))[sorted(tasks)]
    per_film["img_id"] = images
    replicates = pd.DataFrame(resamples.means(each)[1:], columns=list(tasks))
    made = []
    for name, frame in (("results", per_film.sort_values("img_id")), ("bootstrap_results", replicates)):
        made.append(stem.with_name(f"{stem.name}_{name}_per_cxr.csv"))
        with atomic(made[-1]) as temporary:
            frame.to_csv(temporary, index=False)
    return made
