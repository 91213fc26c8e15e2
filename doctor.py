"""What is here, what is missing, and which command to type next: the paper's pipeline, looked at before it runs.

    python doctor.py                                              with a classifier that will be trained
    python doctor.py --ckpt_path <checkpoint>                     with yours
    python doctor.py --subset_len 20 --expert_len 10 --encoder resnet10w32 --image_size 64      of the tiny phantom

Looks at the machine, the three variables, label files, a sample of images, outlines, masks, maps and networks, and
prints a table; then how far each stage is, about how long it takes, and the next command. Writes nothing. The exit
status is 0 where all stages can run to the end, and 1 where something stands in the way.
"""

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import constants
from chexseg.errors import DataError
from chexseg.runtime import checks, cli
from chexseg.runtime.checks import OK, Check, Checks

BELONGS = {
    "CHEXPERT_DATA_DIR": "<folder that contains CheXpert/CheXpert-v1.0>",
    "OBJ_EFFICIENCY_BASE_PATH": "<folder for everything that CheXseg writes>",
    "TEST_SEG_LABELS_GT_BASE_PATH": "<folder with the annotation files>",
}
PACKAGES = ("torch", "torchvision", "segmentation-models-pytorch", "h5py", "numpy", "opencv-python-headless")
PACKAGES += ("pycocotools", "pandas", "matplotlib", "pillow", "numba", "tqdm")


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--ckpt_path", type=Path, help="classifier [none: train.py makes $OBJ_EFFICIENCY_BASE_PATH/models/paper/...]")
    add("--map_dir", type=Path, help="run folder of the training set's maps [the checkpoint's, or the only one]")
    add("--report_dir", type=Path, help="folder of the tables [workspace/report, where reproduce.sh puts them]")
    add("--encoder", default="resnet18", help="encoder of the segmentation networks, the classifier's architecture")
    add("--image_size", type=cli.positive_int, default=320, help="side of the networks' input")
    add("--expert_len", type=cli.positive_int, default=147, help="experts' images to train on; others choose the epoch")
    add("--subset_len", type=cli.positive_int, default=100, help="pseudo-labelled images that CheXseg adds")
    add("--sample", type=cli.positive_int, default=32, help="images, and maps, of each set that are decoded")
    add("--seed", type=cli.non_negative_int, default=17, help="seed of the sample")
    add("--device", default="auto", help="where a forward pass is timed: auto, cpu or cuda")
    cli.add_boolean(parser, "--timing", default=True, help="time a forward pass, to say how long stages take")
    return parser


def networks(paths: Sequence[Path]) -> list[Check]:
    """The boundary and segmentation networks that are there already."""
    from chexseg.irnet import boundary_net
    from chexseg.segmentation import model

    checks = Checks("networks")
    for path in paths:
        is_boundary = path.name.startswith("best_ir_model")
        what = "boundary network" if is_boundary else f"network {path.parent.name}"
        read = partial(boundary_net.load if is_boundary else model.load_model, path)
        if checks.attempt(what, read, "remove the file, and train it again"):
            checks.add(OK, what, str(path))
    return checks.rows


def main(args: argparse.Namespace) -> None:
    from chexseg.data import inspection, pipeline, stage_states

    folders = constants.folders()
    data, base, truth = folders.values()
    rows = [*checks.machine(PACKAGES), checks.accelerator(), *checks.variables(folders, BELONGS)]
    if not any(row.stops for row in rows):
        settings = pipeline.Settings(args.image_size, args.encoder, args.expert_len, args.subset_len)
        names = inspection.Vocabulary(constants.OBSERVATIONS, constants.LOCALIZATION_TASKS, constants.ALIASES)
        sets = inspection.data_sets(data, truth, names, settings, sample=args.sample, seed=args.seed)
        rows += sets.rows

        from chexseg.classifier import inspection as classifier

        default = base / "models" / "paper" / "classifier.ckpt"
        checkpoint = Path(os.path.abspath(args.ckpt_path or default))  # a link keeps its name
        maps = classifier.classifier_and_maps(
            checkpoint,
            args.map_dir,
            base,
            {split: films.ids for split, films in sets.films.items()},
            names.observations,
            names.tasks,
            args.encoder,
            must_exist=args.ckpt_path is not None,
            sample=args.sample,
        )
        rows += maps.rows
        report = args.report_dir or Path(__file__).resolve().parent / "workspace" / "report"  # reproduce.sh's
        runs = maps.run, maps.test_run, maps.valid_run
        places = pipeline.Places(base, truth, checkpoint, *runs, sets.annotations, report)
        made = [path for path in places.networks if path.is_file()]
        rows += networks(made) if made else []
        stages = pipeline.paper_stages(places, sets.counts, pipeline.Speed(), settings)
        rows += checks.room(base, stage_states.bytes_needed(stages))
        print(checks.table(rows))
        forward = classifier.forward_seconds(args.encoder, args.image_size, args.device) if args.timing else 0.0
        speed = pipeline.Speed(forward, sets.seconds, os.cpu_count() or 1)
        stages = pipeline.paper_stages(places, sets.counts, speed, settings)
        reasons = stage_states.blocked(stages, [row for row in rows if row.stops])
        print(f"\n{stage_states.table(stages, reasons)}")
        if following := stage_states.next_stage(stages, reasons):
            print(f"\nNEXT\n  python {following.command}")
    else:
        print(checks.table(rows))
    if problems := [row for row in rows if row.stops]:
        first, rest = problems[0], f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise DataError(f"the paper's pipeline cannot run to its end: {first.what}: {first.detail}{rest}")


if __name__ == "__main__":
    cli.run(main, build_parser)
