"""What segmentation_test.py prints of predicted masks: the pooled IoU of each task, and what could not be scored."""

from collections.abc import Mapping, Sequence

from chexseg.evaluation import bootstrap, film_list, metrics


def pooled_iou(
    predicted: Mapping[str, Mapping],
    truth: Mapping[str, Mapping],
    tasks: Sequence[str],
    films: film_list.FilmList | None = None,
) -> tuple[list[str], list[str]]:
    """Lines to print, one per task and one for their mean, and notes on what is not scored.

    films: all images of the set; those that `truth` lacks show no finding, and masks on them are false positives.
    """
    notes = []
    if films is not None:
        whole = film_list.complete(truth, {"prediction": predicted}, films, tasks)
        truth, predicted, notes = whole.truth, whole.methods["prediction"], whole.notes
    overlap = metrics.overlap(predicted, truth, tasks, sorted(truth))
    iou = bootstrap.score(overlap, bootstrap.Resamples(overlap.images, 0), "pooled").values[0]
    counts = [*(overlap.truth > 0).sum(0), len(overlap.images)]
    rows = zip([*tasks, "mIoU (pooled)"], iou, counts, strict=True)
    lines = [f"{name:28s} {v:.4f}  {n} images" if v == v else f"{name:28s}   does not occur" for name, v, n in rows]
    return lines, notes + overlap.notes
