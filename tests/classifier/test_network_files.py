"""One way to save and load networks of all kinds; a damaged spec is an error that names the file and the field."""

from dataclasses import asdict, dataclass, field
from typing import ClassVar

import pytest
import torch

from chexseg.classifier import checkpoints
from chexseg.classifier.models import Classifier, ClassifierSpec, load_classifier
from chexseg.errors import DataError


@dataclass(frozen=True)
class ToySpec:
    KEY: ClassVar[str] = "toy_spec"
    WHAT: ClassVar[str] = "a toy"
    MADE_BY: ClassVar[str] = "toys.py"

    kind: str = field(metadata={"choices": ("a", "b")})
    tasks: tuple[str, ...]
    size: int = 8
    deep: bool = False
    width: int | None = None


SPEC = ToySpec("a", ("Edema", "Fracture"), 16)
WEIGHTS = {"w": torch.arange(3.0)}


def test_what_was_saved_is_loaded(tmp_path):
    checkpoints.save_network(tmp_path / "a.pth", WEIGHTS, SPEC, {"epoch": 2, "iou": {"Edema": 0.5}})
    weights, spec, metrics = checkpoints.load_network(tmp_path / "a.pth", ToySpec)
    assert spec == SPEC and metrics == {"epoch": 2, "iou": {"Edema": 0.5}}
    assert list(weights) == ["w"] and torch.equal(weights["w"], WEIGHTS["w"])


def test_the_file_is_a_plain_dict_in_a_fixed_order(tmp_path):
    checkpoints.save_network(tmp_path / "a.pth", WEIGHTS, SPEC, {"epoch": 2})
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert list(content) == ["state_dict", "toy_spec", "metrics"] and content["toy_spec"] == asdict(SPEC)
    checkpoints.save_network(tmp_path / "b.pth", WEIGHTS, SPEC)
    assert list(torch.load(tmp_path / "b.pth", weights_only=True)) == ["state_dict", "toy_spec"]
    assert checkpoints.load_network(tmp_path / "b.pth", ToySpec)[2] == {}


def test_fields_with_a_default_may_be_missing_and_lists_are_tuples(tmp_path):
    content = {"state_dict": WEIGHTS, "toy_spec": {"kind": "b", "tasks": ["Edema"]}}
    torch.save(content, tmp_path / "old.pth")
    assert checkpoints.load_network(tmp_path / "old.pth", ToySpec)[1] == ToySpec("b", ("Edema",))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": None}, "toy_spec, field 'kind': 'None' is not one of a, b"),
        ({"kind": "c"}, "toy_spec, field 'kind': 'c' is not one of a, b"),
        ({"tasks": "Edema"}, r"toy_spec, field 'tasks': 'Edema' is not tuple\[str, ...\]"),
        ({"tasks": ("Edema", 1)}, "field 'tasks'"),
        ({"size": "16"}, "field 'size': '16' is not int"),
        ({"size": True}, "field 'size'"),
        ({"size": 0}, "field 'size'"),
        ({"deep": 1}, "field 'deep'"),
        ({"width": 1.5}, r"field 'width': '1.5' is not int \| None"),
        ({"colour": "red"}, "not a toy: toy_spec has an unknown field 'colour'"),
    ],
)
def test_a_damaged_field_is_named(tmp_path, change, message):
    torch.save({"state_dict": WEIGHTS, "toy_spec": asdict(SPEC) | change}, tmp_path / "toy.pth")
    with pytest.raises(DataError, match="toy.pth: .*" + message):
        checkpoints.load_network(tmp_path / "toy.pth", ToySpec)


def test_a_missing_field_or_spec_is_named(tmp_path):
    torch.save({"state_dict": WEIGHTS, "toy_spec": {"tasks": ("Edema",)}}, tmp_path / "toy.pth")
    with pytest.raises(DataError, match="toy.pth: not a toy: toy_spec lacks the field 'kind'"):
        checkpoints.load_network(tmp_path / "toy.pth", ToySpec)
    torch.save({"state_dict": WEIGHTS}, tmp_path / "bare.pth")
    with pytest.raises(DataError, match="bare.pth: not a toy: .* make one with toys.py"):
        checkpoints.load_network(tmp_path / "bare.pth", ToySpec)


def test_a_classifier_with_a_damaged_spec_is_refused(tmp_path):
    model = Classifier(ClassifierSpec("resnet10w32", ("Edema",)))
    content = {"state_dict": model.network.state_dict(), "spec": asdict(model.spec)}
    for field_name, value in (("architecture", "vgg16"), ("normalisation", "none"), ("image_size", -1), ("tasks", 3)):
        torch.save(content | {"spec": content["spec"] | {field_name: value}}, tmp_path / "c.ckpt")
        with pytest.raises(DataError, match=f"c.ckpt: spec, field '{field_name}'"):
            load_classifier(tmp_path / "c.ckpt", ("Edema",))
