"""A classifier's say in a segmentation network's masks: a finding that it thinks unlikely gets an empty mask.

The cut-offs, one per task, are chosen on the experts' training films by localization_eval/tune_thresholds.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from chexseg.data.probabilities import read_probabilities


@dataclass(frozen=True)
class PredictionGate:
    """predictions  CSV of `image_id` and a column of probabilities per task (test.py's predictions.csv)
    cutoffs      CheXlocalize's CSV of cut-offs (`prob_threshold,mIoU,task`); a task that it lacks is not gated
    aliases      other names of a task in either file
    """

    predictions: Path
    cutoffs: Path
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> list[Path]:
        """The files that decide it."""
        return [self.predictions, self.cutoffs]

    def present(self, ids: Sequence[str], tasks: Sequence[str]) -> np.ndarray:
        """(N, T) bool: whether the probability lies above the task's cut-off."""
        from chexseg.classifier.saliency_masks import read_task_values

        cutoffs = read_task_values(self.cutoffs, "prob_threshold", tasks, self.aliases)
        gated = [task for task, cutoff in zip(tasks, cutoffs, strict=True) if cutoff == cutoff]
        present = np.ones((len(ids), len(tasks)), bool)
        likely = read_probabilities(self.predictions, ids, gated, self.aliases) > cutoffs[~np.isnan(cutoffs)]
        present[:, ~np.isnan(cutoffs)] = likely
        return present
