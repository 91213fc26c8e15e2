"""What segmentation_test.py prints of predicted masks: the pooled IoU of each task, and what could not be scored."""

from collections.abc import Mapping, Sequence

from chexseg.evaluation import bootstrap, metrics


def pooled_iou(
    predicted: Mapping[str, Mapping], truth: Mapping[str, Mapping], tasks: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Lines to print, one per task and one for their mean, and notes on what is not scored."""
    overlap = metrics.overlap(predicted, truth, tasks, sorted(truth))
    iou = bootstrap.score(overlap, bootstrap.Resamples(overlap.images, 0), "pooled").values[0]
    counts = [*(overlap.truth > 0).sum(0), len(overlap.images)]
    rows = zip([*tasks, "mIoU (pooled)"], iou, counts, strict=True)
    lines = [f"{name:28s} {v:.4f}  {n} images" if v == v else f"{name:28s}   does not occur" for name, v, n in rows]
    return lines, overlap.notes
