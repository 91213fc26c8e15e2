"""What a label and a teacher say of a film, by tables worked out by hand."""

import numpy as np
import pytest

from chexseg.data import mask_files, rle
from chexseg.data.mask_files import MaskFile
from chexseg.segmentation.dataset import build_cache
from chexseg.segmentation.distillation import belief, expert_sizes, gate, sized_mask
from tests.segmentation.small import TASKS, save_image

# A film of 2 x 5 pixels, so that the one most probable pixel is the belief.
SURE = np.array([[0.9, 0.8, 0.4, 0.2, 0.1], [0.0, 0.0, 0.0, 0.0, 0.0]], np.float32)
FAINT = SURE / 10
NAN = np.nan


def test_belief_is_the_mean_of_the_most_probable_pixels():
    assert belief(np.stack([SURE, FAINT])).tolist() == pytest.approx([0.9, 0.09])
    large = np.zeros((1, 40, 50), np.float32)  # 2000 pixels: the top four
    large[0, 0, :4] = 0.8, 0.6, 0.4, 0.2
    assert belief(large).tolist() == pytest.approx([0.5])


@pytest.mark.parametrize(
    ("bounds", "count"),
    [
        ((0.1, 0.9), 3),  # above 0.3 x 0.9 = 0.27: as the network has it
        ((0.4, 0.9), 4),  # experts outline at least four pixels
        ((0.1, 0.2), 2),  # at most two
        ((0.0, 0.0), 1),  # one is the least
    ],
)
def test_size_of_a_stated_finding(bounds, count):
    wanted = np.zeros(10, bool)
    wanted[:count] = True
    for scale in (1, 0.01):  # the order of the pixels counts, not how probable they are
        np.testing.assert_array_equal(sized_mask(SURE * np.float32(scale), bounds).reshape(-1), wanted)


SIZES = np.array([(0.1, 0.2)])
THRESHOLDS = [0.5]


@pytest.mark.parametrize(
    ("teacher", "label", "options", "pixels", "known"),
    [
        # Nothing gated: the teacher's threshold, whatever the label.
        (SURE, None, {}, 2, True),
        (FAINT, None, {}, 0, True),
        # Denied or not mentioned: absent, whatever the teacher says.
        (SURE, 0, {}, 0, True),
        (SURE, NAN, {}, 0, True),
        (SURE, NAN, {"sizes": SIZES}, 0, True),
        # Uncertain: unknown.
        (SURE, -1, {}, 0, False),
        (SURE, -1, {"sizes": SIZES}, 0, False),
        # Stated: where the teacher sees it, else unknown, never absent.
        (SURE, 1, {}, 2, True),
        (FAINT, 1, {}, 0, False),
        (FAINT, 1, {"sizes": SIZES}, 2, True),
        (FAINT, 1, {"sizes": SIZES, "floor": 0.1}, 0, False),
        (SURE, 1, {"sizes": SIZES, "floor": 0.1}, 2, True),
        (FAINT, 0, {"sizes": SIZES, "floor": 0.1}, 0, True),
        # A finding that no expert outlined has no size.
        (SURE, 1, {"sizes": SIZES * NAN}, 0, False),
    ],
)
def test_gate(teacher, label, options, pixels, known):
    labels = None if label is None else np.array([label], np.float32)
    masks, is_known = gate(teacher[None], labels, thresholds=THRESHOLDS, **options)
    assert masks.dtype == bool and masks.sum() == pixels and is_known.tolist() == [known]
    np.testing.assert_array_equal(masks[0].reshape(-1)[:pixels], True)


def test_sizes_are_those_of_experts_films_that_show_a_finding(tmp_path):
    """Areas of 1, 2 and 3 in ten thousand and an empty mask; the second task is unknown but once, the third never
    shown."""
    entries = []
    for i, area in enumerate([1, 2, 3, 0]):
        name, mask = f"patient{i:05d}_study1_view1_frontal", np.zeros((100, 100), np.uint8)
        mask[0, :area] = 1
        save_image(tmp_path, name, np.zeros((100, 100), np.uint8), "train")
        first, empty = (rle.encode(m[None])[0] for m in (mask, np.zeros_like(mask)))
        entries.append((name, {TASKS[0]: first, TASKS[2]: empty} | ({TASKS[1]: first} if i == 1 else {})))
    mask_files.write(tmp_path / "masks.json", entries)
    options = {"data_dir": tmp_path, "tasks": TASKS, "image_size": 100}
    cache = build_cache(tmp_path / "cache", MaskFile(tmp_path / "masks.json", {}), ("train",), **options)
    sizes = expert_sizes([cache], (0, 50))
    np.testing.assert_allclose(sizes[:2], [(1e-4, 2e-4), (2e-4, 2e-4)])
    assert np.isnan(sizes[2]).all()
