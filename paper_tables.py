"""Stage 8: the paper's tables: the commands of all their networks, and the tables of those that are tested.

    bash reproduce.sh tables                                 all networks, three seeds, all tables; default preset
    bash reproduce.sh tables tiny --only budget --seeds 17   a table of the tiny preset, one seed

The networks are listed in chexseg/segmentation/experiments.py. reproduce.sh runs `python paper_tables.py` with its
settings, first with --plan (commands, in files that it reads, and an estimate of their time), then for the tables: a
LaTeX, Markdown, CSV, PNG and PDF file of each in --output_dir. A network that is trained is not trained again.
"""

import argparse
import logging
from pathlib import Path

import constants
from chexseg.data import leak_guard
from chexseg.errors import DataError, MissingError, UsageError
from chexseg.evaluation import report, timings
from chexseg.runtime import cli
from chexseg.runtime.progress import duration
from chexseg.segmentation import experiment_plan as plans
from chexseg.segmentation.experiments import BUDGETS, TITLES, Entry, Network, networks

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    places = {"type": Path, "required": True}
    add("--plan", type=Path, metavar="DIR", help="write the commands there, say how long they take")
    add("--output_dir", **places, help="folder of the tables")
    add("--trials", **places, help="folder of all networks, --save_dir of the scripts")
    add("--map_dir", **places, help="run folder with the pseudo masks")
    add("--ckpt_path", **places, help="the classifier, which encoders start from")
    add("--expert", type=cli.positive_int, required=True, help="films in the experts' masks to train on")
    add("--subset", type=cli.positive_int, required=True, help="films with pseudo masks of CheXseg")
    add("--network", default="", help="options of every training")
    add("--shape", default="", help="options of segmentation_train.py that fix the network")
    add("--draws", default="", help="options of every network but the next two")
    add("--teacher", default="", help="options of a student's teacher")
    add("--student", default="", help="options of a student")
    add("--readers", default="", help="options of segmentation_test.py")
    add("--only", nargs="+", choices=tuple(TITLES), default=list(TITLES), metavar="TABLE", help=", ".join(TITLES))
    add("--seeds", nargs="+", type=cli.non_negative_int, default=[17, 18, 19], help="of the trainings, and of subsets")
    add("--budgets", nargs="+", type=cli.positive_int, default=list(BUDGETS), help="films of experts, where there are")
    add("--encoder_weights", type=Path, metavar="PATH", help="ImageNet's, of the encoder; without them no such row")
    add("--timings", type=Path, nargs="+", default=[], metavar="CSV", help="what reproduce.sh timed, the best first")
    add("--style", choices=report.STYLES, default="light", help="of the figures")
    add("--num_replicates", type=cli.positive_int, default=1000, help="replicates of the bootstrap")
    return parser


def chosen(args: argparse.Namespace, pool: int) -> list[Entry]:
    """The entries of the tables that are asked for."""
    found = [entry for entry in networks(args.expert, args.subset, pool, args.budgets) if entry[0] in args.only]
    if args.encoder_weights is None:
        left = sorted({network.name for *_, network in found if network.start == "imagenet"})
        found = [entry for entry in found if entry[3].start != "imagenet"]
        if left:
            log.info("%s: left out; give ImageNet's weights with --encoder_weights PATH", ", ".join(left))
    elif not args.encoder_weights.is_file():
        raise UsageError(f"--encoder_weights {args.encoder_weights}: no such file")
    return found


def plan(folder: Path, preset: plans.Preset, found: list[Entry], seeds: list[int], times: dict, readers: str) -> None:
    """Write the commands of a plan and say how long those take that are not finished."""
    students = list(dict.fromkeys(network for *_, network in found))
    jobs: list[plans.Job] = []
    for network in [*(each.teacher for each in students if each.teacher), *students]:
        jobs += [(network, seed) for seed in seeds if (network, seed) not in jobs]
    subsets = dict(made for job in jobs for made in preset.subset_command(*job))
    steps: dict[str, list[plans.Step]] = {phase: [] for phase in plans.PHASES}
    steps["prepare"] = [plans.Step(path.stem, words, 1) for path, words in subsets.items()]
    left, unknown = 0.0, 0
    for network, seed in jobs:
        trained = plans.is_trained(preset.folder(network, seed))
        seconds = 0.0 if trained else plans.seconds_of(network, times)
        unknown += seconds is None
        left += seconds or 0
        step = plans.Step(f"{network.name}_seed_{seed}", preset.train_command(network, seed), seconds or 1)
        steps["students" if network.teacher else "networks"].append(step)
    tested = [(network, seed) for network in students for seed in seeds]
    truth = constants.gt_dir() / "test_encoded.json"
    for number in (0, 1):
        if tested[number::2]:
            words = preset.test_command(tested[number::2], truth, readers)
            steps["tests"].append(plans.Step(f"test_masks_{number + 1}", words))
    new = [job for job in tested if not preset.masks(*job).is_file()]
    left += times.get("test_masks_of_methods", 0) / 6 * len(new)  # which were the six networks of the main table
    folder.mkdir(parents=True, exist_ok=True)
    for phase in plans.PHASES:
        plans.write(folder, phase, steps[phase])
    ready = sum(plans.is_trained(preset.folder(*job)) for job in jobs)
    print(f"{len(jobs)} trainings with the seeds {', '.join(map(str, seeds))}; {ready} of them ended before.")
    text = f"About {duration(left)} of one lane, half of that where two run at once"
    print(f"{text}; {unknown} trainings were never timed." if unknown else f"{text}.")


def main(args: argparse.Namespace) -> None:
    from chexseg.data.mask_files import MaskFile

    pseudo = args.map_dir / "pseudo_seg_labels_encoded_irnet.json"
    if not pseudo.is_file():
        raise MissingError(f"{pseudo}: no such pseudo masks; run bash reproduce.sh, then its tables")
    gt = constants.gt_dir()
    places = {"ckpt": args.ckpt_path, "run": args.map_dir, "trials": args.trials, "imagenet": args.encoder_weights}
    places |= {"experts": gt / f"valid_encoded_{args.expert}.json", "rest": gt / "valid_encoded_rest.json"}
    places |= {"pool": args.trials / "chexseg_plus" / "pool_masks.json", "scripts": Path(__file__).resolve().parent}
    draws = {"full": args.draws, "teacher": args.teacher, "student": args.student}
    preset = plans.Preset(args.network, args.shape, draws, places)
    found = chosen(args, len(MaskFile(pseudo, constants.ALIASES)))
    if args.plan:
        times: dict[str, float] = {}
        for path in reversed(args.timings):
            times |= dict(timings.read(path) or ())
        plan(args.plan, preset, found, args.seeds, times, args.readers)
        return

    from chexseg.data.chexpert import patient_of
    from chexseg.evaluation import seed_tables

    def masks(network: Network) -> tuple[Path, ...]:
        return tuple(path for seed in args.seeds if (path := preset.masks(network, seed)).is_file())

    cells = [seed_tables.Cell(table, row, column, masks(network)) for table, row, column, network in found]
    for cell in cells:
        if not cell.masks:
            log.warning("%s, %s, %s: not tested yet, left out", cell.table, cell.row, cell.column)
    cells = [cell for cell in cells if cell.masks]
    if not cells:
        raise DataError(f"{preset.tables}: no network of these tables is tested yet; bash reproduce.sh tables")
    truth = MaskFile(gt / "test_encoded.json", constants.ALIASES)
    leak_guard.check({path for cell in cells for path in cell.masks}, {patient_of(image) for image in truth})
    tasks = constants.LOCALIZATION_TASKS
    scores = seed_tables.score(cells, truth, tasks, constants.ALIASES, num_replicates=args.num_replicates)
    print("\n".join(seed_tables.write(args.output_dir, scores, TITLES, args.style)))
    log.info("%s: tables.md; a .tex, .md, .csv, .png and .pdf of %s", args.output_dir, ", ".join(args.only))


if __name__ == "__main__":
    cli.run(main, build_parser)
