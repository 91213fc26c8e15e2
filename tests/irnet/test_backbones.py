"""Which file the backbone's weights come from."""

import json
from pathlib import Path

import pytest

from chexseg.errors import DataError
from chexseg.irnet.backbones import backbone_of_finished, find_backbone
from chexseg.runtime import provenance

pytestmark = pytest.mark.usefixtures("six_films_environment")


def test_backbone_is_found_by_the_maps_manifest(labelled_run, six_films):
    manifest = labelled_run / "cams" / "saliency.h5.manifest.json"
    with pytest.raises(Exception, match="--backbone_weights"):
        find_backbone("auto", None, labelled_run)
    classifier = str(six_films / "classifier.ckpt")
    record = {"paths": {"ckpt_path": classifier}, "inputs": {classifier: provenance.sha256(Path(classifier))}}
    manifest.write_text(json.dumps(record | {"inputs": {classifier: "of another file"}}))
    with pytest.raises(Exception, match="--backbone_weights"):
        find_backbone("auto", None, labelled_run)
    manifest.write_text(json.dumps(record))
    try:
        assert find_backbone("auto", None, labelled_run) == six_films / "classifier.ckpt"
        assert backbone_of_finished("auto", None, labelled_run) == six_films / "classifier.ckpt"
        assert backbone_of_finished("imagenet", None, labelled_run) is None
        cached = six_films / "no_torch_cache" / "hub" / "checkpoints"
        cached.mkdir(parents=True)
        (cached / "resnet50-11ad3fa6.pth").touch()
        assert find_backbone("auto", None, labelled_run) == cached / "resnet50-11ad3fa6.pth"
        assert backbone_of_finished("auto", None, labelled_run) == cached / "resnet50-11ad3fa6.pth"
        (cached / "resnet50-11ad3fa6.pth").unlink()
    finally:
        manifest.unlink()


def test_a_path_is_taken_at_its_word(tmp_path):
    assert find_backbone("some/file.ckpt", "resnet18", tmp_path) == Path("some/file.ckpt")
    assert backbone_of_finished("some/file.ckpt", "resnet18", tmp_path) == Path("some/file.ckpt")


def test_no_imagenet_weights(tmp_path):
    with pytest.raises(DataError, match="no ImageNet weights here; download"):
        find_backbone("imagenet", "resnet18", tmp_path)
