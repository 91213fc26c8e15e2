"""Stage 5 as a user runs it: subsets of a masks file, the experts' split."""

import random

import pytest

from chexseg.data import chexpert, leak_guard, mask_files, rle
from chexseg.data.mask_files import MaskFile
from chexseg.errors import DataError
from tests.pipeline.scripts import entry, name, run


def test_subset_of_the_pseudo_masks(tmp_path):
    entries = [(name(i), entry(i % 3, 1)) for i in (5, 3, 8, 1, 9, 2)]
    mask_files.write(tmp_path / "pseudo_seg_labels_encoded_irnet.json", entries)
    arguments = ("--map_dir", tmp_path, "--subset_len", 4, "--pseudo_labels_type", "irnet", "--seed", 5)
    run("create_train_set_subsets.py", *arguments)
    path = tmp_path / "pseudo_seg_labels_irnet_4_cxrs.json"
    expected = random.Random(5).sample(sorted(i for i, _ in entries), 4)
    assert dict(MaskFile(path)) == {i: e for i, e in entries if i in expected}
    first = path.read_bytes()
    # The order of the source does not matter, the seed does.
    mask_files.write(tmp_path / "pseudo_seg_labels_encoded_irnet.json", sorted(entries))
    run("create_train_set_subsets.py", *arguments)
    assert path.read_bytes() == first
    run("create_train_set_subsets.py", *arguments[:-1], 6)
    assert path.read_bytes() != first
    with pytest.raises(DataError, match="6 images; --subset_len 7"):
        run("create_train_set_subsets.py", "--map_dir", tmp_path, "--subset_len", 7, "--pseudo_labels_type", "irnet")
    with pytest.raises(DataError, match="pseudo_seg_labels_encoded_cams.json: no such masks file"):
        run("create_train_set_subsets.py", "--map_dir", tmp_path)


def test_a_subset_comes_from_the_same_patients_as_its_source(tmp_path):
    source = tmp_path / "pool_masks.json"
    mask_files.write(source, [(name(i), entry(1, 1)) for i in range(4)])
    leak_guard.record(source, {"trained": ["patient00009"]})
    run("create_train_set_subsets.py", "--masks_path", source, "--subset_len", 2)
    run("convert_masks.py", "--from", "masks", "--input", source, "--to", "coco", "--output", tmp_path / "coco.json")
    for made in ("pool_masks_2.json", "coco.json"):
        assert leak_guard.read(tmp_path / made) == leak_guard.read(source) != {}


def test_expert_split_keeps_patients_together(tmp_path, caplog):
    # 12 patients with two images of a finding each, and a third image without.
    entries = [(name(p, s), entry(1 if s < 3 else 0, 0)) for p in range(12) for s in (1, 2, 3)]
    path = tmp_path / "valid_encoded.json"
    mask_files.write(path, entries)
    showing = ("--only_with_finding", "True")
    run("create_train_set_subsets.py", "--masks_path", path, "--subset_len", 18, *showing)
    first, rest = (MaskFile(tmp_path / f"valid_encoded_{n}.json") for n in (18, 6))
    assert len(first) == 18 and len(rest) == 6 and not caplog.records
    assert {chexpert.patient_of(i) for i in first}.isdisjoint({chexpert.patient_of(i) for i in rest})
    assert {*first, *rest} == {i for i, e in entries if rle.area(list(e.values())).any()}
    assert dict(first) == {i: e for i, e in entries if i in first}
    with caplog.at_level("INFO"):
        run("create_train_set_subsets.py", "--masks_path", path, "--subset_len", 18)
    assert "valid_encoded.json: 24 images show a finding; 12 without one, split like them" in caplog.text
    assert len(MaskFile(tmp_path / "valid_encoded_18.json")) == 18
    assert len(MaskFile(tmp_path / "valid_encoded_18_rest.json")) == 18  # the two halves need two names
    with caplog.at_level("WARNING"):
        run("create_train_set_subsets.py", "--masks_path", path, "--subset_len", 17, *showing)
    first, rest = (MaskFile(tmp_path / f"valid_encoded_{n}.json") for n in (17, 7))
    shared = {chexpert.patient_of(i) for i in first} & {chexpert.patient_of(i) for i in rest}
    assert len(shared) == 1 and shared.pop() in caplog.text


def test_expert_split_draws_patients_at_random_but_seeded(tmp_path):
    path = tmp_path / "valid.json"
    mask_files.write(path, [(name(p), entry(1)) for p in range(30)])
    drawn = []
    for seed in (1, 1, 2):
        run("create_train_set_subsets.py", "--masks_path", path, "--subset_len", 10, "--seed", seed)
        drawn.append(list(MaskFile(tmp_path / "valid_10.json")))
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0] != [name(p) for p in range(10)]
