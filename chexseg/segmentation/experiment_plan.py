"""How the networks of the paper's tables come about: the commands, what is finished, and how long the rest takes.

reproduce.sh runs the commands. Imports no torch.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chexseg.runtime import plain_json
from chexseg.segmentation.experiments import Network

# What reproduce.sh trains with the very same options, with its default seed.
REPRODUCED, DEFAULT_SEED = ("full", "chexseg", "full_plus", "teacher", "chexseg_plus"), 17
PHASES = ("prepare", "networks", "students", "tests")
Job = tuple[Network, int]  # and its seed


@dataclass(frozen=True)
class Step:
    """A command, what reproduce.sh calls it, and how many seconds it takes."""

    name: str
    words: Sequence[str]
    seconds: float = 0.0


@dataclass(frozen=True)
class Preset:
    """What the networks of a run have in common: the options of reproduce.sh's preset, and where its files are.

    network  options of both scripts: --lr, --augment, readers; shape  of segmentation_train.py alone: the network's
    draws    options by kind of network: `full`, `teacher`, `student`
    places   ckpt, experts (masks to train on), rest (to choose by), run (pseudo masks), trials, pool (a teacher's
             masks of films with labels alone), imagenet (weights; may be None), scripts
    """

    network: str
    shape: str
    draws: Mapping[str, str]
    places: Mapping[str, Path]

    def folder(self, network: Network, seed: int) -> Path:
        """Where a network is: reproduce.sh's own, where that trains the same."""
        own = seed == DEFAULT_SEED and network.name in REPRODUCED
        return self.places["trials"] / network.name if own else self.tables / f"{network.name}_seed_{seed}"

    @property
    def tables(self) -> Path:
        return self.places["trials"] / "tables"

    def masks(self, network: Network, seed: int) -> Path:
        """Its masks of the test set."""
        return self.folder(network, seed) / "test_masks.json"

    def experts(self, count: int, seed: int) -> Path:
        return self.tables / f"experts_{count}_seed_{seed}.json" if count else self.places["experts"]

    def pseudo(self, kind: str, length: int) -> Path:
        if kind == "teacher":
            return self.tables / f"pseudo_teacher_{length}.json" if length else self.places["pool"]
        name = f"pseudo_seg_labels_{kind}_{length}_cxrs" if length else f"pseudo_seg_labels_encoded_{kind}"
        return self.places["run"] / f"{name}.json"

    def subset_command(self, network: Network, seed: int) -> list[tuple[Path, list[str]]]:
        """The masks files that a network needs and the pipeline has not made, each with its command."""
        made, script = [], str(self.places["scripts"] / "create_train_set_subsets.py")
        if network.experts:
            path = self.experts(network.experts, seed)
            words = [script, "--masks_path", str(self.places["experts"]), "--subset_len", str(network.experts)]
            made.append((path, [*words, "--seed", str(seed), *self._outputs(path)]))
        if network.kind == "chexseg" and network.length:
            path = self.pseudo(network.pseudo, network.length)
            words = [script, "--subset_len", str(network.length)]
            if network.pseudo == "teacher":
                words += ["--masks_path", str(self.places["pool"]), *self._outputs(path)]
            else:
                words += ["--map_dir", str(self.places["run"]), "--pseudo_labels_type", network.pseudo]
            made.append((path, words))
        return made

    @staticmethod
    def _outputs(path: Path) -> list[str]:
        return ["--output_path", str(path), "--rest_path", str(path.with_name(f"{path.stem}_rest.json"))]

    def train_command(self, network: Network, seed: int) -> list[str]:
        """How a network is trained."""
        folder, places = self.folder(network, seed), self.places
        experts, pseudo = self.experts(network.experts, seed), self.pseudo(network.pseudo, network.length)
        words: list[object] = [
            "--save_dir",
            folder.parent,
            "--experiment_name",
            folder.name,
            "--eval_masks_path",
            places["rest"],
        ]
        if network.kind == "student":
            assert network.teacher is not None
            teacher = self.folder(network.teacher, seed) / "best_model.pth"
            script = "segmentation_distillation.py"
            words += ["--teacher_path", teacher, "--expert_masks_path", experts]
            words += ["--strong_labels_weight", "0.5"]
        else:
            script = "segmentation_train.py"
            words += self.shape.split()
            if network.kind == "alone":
                words += ["--train_masks_path", pseudo]
            elif network.kind == "chexseg":
                words += ["--semi_supervised", "True", "--ss_expert_annotations_masks_path", experts]
                words += ["--ss_dnn_generated_masks_path", pseudo]
            else:
                words += ["--train_set", "valid", "--train_masks_path", experts]
        if network.start == "classifier":
            words += ["--encoder_weights_type", "CheXpert", "--encoder_weights", places["ckpt"]]
        elif network.start == "imagenet":
            words += ["--encoder_weights_type", "imagenet", "--encoder_weights", places["imagenet"]]
        draws = self.draws.get(network.kind, self.draws["full"]).split()
        words += [*self.network.split(), *draws, *network.options.split(), "--seed", seed]
        if "--rounds" in network.options:  # all rounds together get one student's draws
            words += ["--epoch_len", max(1, int(draws[draws.index("--epoch_len") + 1]) // 2)]
        return [str(places["scripts"] / script), *map(str, words)]

    def test_command(self, networks: Sequence[tuple[Network, int]], truth: Path, readers: str) -> list[str]:
        """How networks predict the test set."""
        models = [str(self.folder(*each) / "best_model.pth") for each in networks]
        masks = [str(self.masks(*each)) for each in networks]
        script = str(self.places["scripts"] / "segmentation_test.py")
        return [script, "--test_masks_path", str(truth), *readers.split(), "--model_path", *models,
                "--output_path", *masks]  # fmt: skip


def is_trained(folder: Path) -> bool:
    """Whether a training ended in `folder`; its script looks more closely."""
    try:
        return "finished" in plain_json.read(folder / "args.json", finite=False)
    except (OSError, TypeError, ValueError):
        return False


def seconds_of(network: Network, times: Mapping[str, float]) -> float | None:
    """How long a training takes: as long as the one of reproduce.sh that is most like it. None where that was not
    timed."""
    like = {"alone": "chexseg", "student": "chexseg_plus"}.get(network.kind, network.kind)
    if like == "full" and "--batch_size 4" in network.options:
        like = "full_plus"
    return times.get(f"train_{like}")


def lanes(steps: Sequence[Step]) -> tuple[list[Step], list[Step]]:
    """Steps that do not build on each other, shared between two lanes: the longest first, to the lane with less."""
    both: tuple[list[Step], list[Step]] = ([], [])
    for step in sorted(steps, key=lambda each: -each.seconds):
        min(both, key=lambda lane: sum(each.seconds + 1 for each in lane)).append(step)
    return both


def write(folder: Path, phase: str, steps: Sequence[Step]) -> None:
    """The commands of a phase as two files that a shell with a function `step NAME COMMAND...` reads."""
    for number, lane in enumerate(lanes(steps), 1):
        lines = [shlex.join(["step", each.name, *each.words]) for each in lane]
        (folder / f"{phase}.{number}").write_text("\n".join([*lines, ":"]) + "\n", encoding="utf-8")
