"""The networks of the paper's tables, in one list: `networks`. It says what stands in which table, row and column, and
what differs from the preset's options; `experiment_plan` makes commands of it.

A network that several tables show is trained once. Every one sees the same number of images, a student together with
its teacher and over all its rounds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

TITLES = {
    "encoder": "What the encoder starts from",
    "weight": "How often CheXseg draws an expert's film",
    "pseudo": "Kind of pseudo mask",
    "length": "Films with pseudo masks, of CheXseg",
    "distillation": "Distillation from a network that experts' masks taught",
    "budget": "Films that experts outlined",
    "switches": "Switches of CheXseg+",
}
BUDGETS = (10, 25, 50, 100, 147)
LENGTHS = (25, 50, 100, 200, 500, 1000, 5000)
# The switches of our recipe. A teacher has its student's loss and batch size.
SWITCHES = {
    "loss": "--loss bce_dice",
    "batch 4": "--batch_size 4",
    "expert sizes": "--expert_sizes 20 80 --floor 0.02",
    "balance": "--balance 0.5",
    "paste": "--paste 0.5",
    "from teacher": "--from_teacher True",
    "rounds": "--rounds 2",
}
TEACHERS_TOO = ("loss", "batch 4")


@dataclass(frozen=True)
class Network:
    """A network by what distinguishes it.

    kind     `alone` (pseudo masks only), `full`, `chexseg` (both), `teacher` (`full` with a teacher's draws), `student`
    options  of its script, beside the preset's
    experts  films that experts outlined; 0: all that the preset trains on
    pseudo   whose pseudo masks: cams, irnet, teacher
    length   films with pseudo masks; 0: all
    start    of the encoder: random, imagenet, classifier; or teacher, all of whose weights a student starts from
    """

    name: str
    kind: str
    options: str = ""
    experts: int = 0
    pseudo: str = "irnet"
    length: int = 0
    start: str = "classifier"
    teacher: "Network | None" = None


Entry = tuple[str, str, str, Network]  # table, row, column


def networks(expert: int, subset: int, pool: int, budgets: Sequence[int] = BUDGETS) -> Iterator[Entry]:
    """Every entry of every table, where experts outlined `expert` films to train on, and the preset's CheXseg gets
    `subset` of the `pool` films that have pseudo masks."""
    full = Network("full", "full")
    chexseg = Network("chexseg", "chexseg", "--weighted True --strong_labels_weight 0.9", length=subset)

    for start in ("random", "imagenet", "classifier"):
        same = start == "classifier"
        yield "encoder", start, "full", full if same else Network(f"full_{start}", "full", start=start)
        other = Network(f"chexseg_{start}", "chexseg", chexseg.options, length=subset, start=start)
        yield "encoder", start, "chexseg", chexseg if same else other

    for weight in [f"0.{tenth}" for tenth in range(1, 9)]:
        options = f"--weighted True --strong_labels_weight {weight}"
        yield "weight", weight, "chexseg", Network(f"chexseg_weight_{weight}", "chexseg", options, length=subset)
    yield "weight", "0.9", "chexseg", chexseg
    yield "weight", "concatenated", "chexseg", Network("chexseg_concatenated", "chexseg", length=subset)

    for pseudo in ("cams", "irnet", "teacher"):
        yield "pseudo", pseudo, "alone", Network(f"alone_{pseudo}", "alone", pseudo=pseudo)
        other = Network(f"chexseg_{pseudo}", "chexseg", chexseg.options, pseudo=pseudo, length=subset)
        yield "pseudo", pseudo, "chexseg", chexseg if pseudo == "irnet" else other

    for length in sorted({*(n for n in LENGTHS if n < pool), min(subset, pool), pool}):
        other = Network(f"chexseg_length_{length}", "chexseg", chexseg.options, length=length % pool)
        yield "length", str(length), "chexseg", chexseg if length == subset else other

    taught = teacher_of(())
    yield "distillation", "none (full)", "full", full
    for targets in ("logits", "masks"):
        options = f"--targets {targets}"
        yield "distillation", targets, "student", Network(f"distilled_{targets}", "student", options, teacher=taught)

    for experts in sorted({*(n for n in budgets if n < expert), expert}):
        if experts == expert:
            yield from (("budget", str(experts), each.name, each) for each in (full, chexseg, recipe()))
            continue
        yield "budget", str(experts), "full", Network(f"full_experts_{experts}", "full", experts=experts)
        other = Network(f"chexseg_experts_{experts}", "chexseg", chexseg.options, experts, length=subset)
        yield "budget", str(experts), "chexseg", other
        yield "budget", str(experts), "chexseg_plus", recipe(experts)

    plus = " ".join(SWITCHES[name] for name in TEACHERS_TOO)
    yield "switches", "experts only (full+)", "all", Network("full_plus", "full", plus)
    yield "switches", "none", "this alone", student_with("switch_none", ())
    for name in SWITCHES:
        word = name.replace(" ", "_")
        rest = [other for other in SWITCHES if other != name]
        yield "switches", name, "this alone", student_with(f"switch_{word}", [name])
        without = recipe() if name == "rounds" else student_with(f"switch_all_but_{word}", rest)
        yield "switches", name, "all but this", without
    yield "switches", "all", "all", student_with("switch_all", list(SWITCHES))


def recipe(experts: int = 0) -> Network:
    """CheXseg+ as reproduce.sh trains it: every switch but further rounds."""
    name = f"chexseg_plus_experts_{experts}" if experts else "chexseg_plus"
    return student_with(name, [name for name in SWITCHES if name != "rounds"], experts)


def student_with(name: str, switches: Sequence[str], experts: int = 0) -> Network:
    """A student on a teacher's masks, gated by labels, with some of SWITCHES."""
    start = "teacher" if "from teacher" in switches else "classifier"
    options = ["--targets masks --gate labels", *(SWITCHES[each] for each in switches)]
    return Network(name, "student", " ".join(options), experts, start=start, teacher=teacher_of(switches, experts))


def teacher_of(switches: Sequence[str], experts: int = 0) -> Network:
    """The teacher of a student with some of SWITCHES: the same loss and batch size, on experts' films alone."""
    shared = [name for name in TEACHERS_TOO if name in switches]
    name = "_".join(["teacher", *(shared or ["plain"])] if len(shared) < len(TEACHERS_TOO) else ["teacher"])
    name = name.replace(" ", "_") + (f"_experts_{experts}" if experts else "")
    return Network(name, "teacher", " ".join(SWITCHES[each] for each in shared), experts)
