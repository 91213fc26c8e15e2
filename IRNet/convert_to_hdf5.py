"""Stage 3a: the training images and their saliency maps in one HDF5 file.

    cd IRNet && python convert_to_hdf5.py
    python IRNet/convert_to_hdf5.py --map_dir <run folder> --image_size 160

Reads train_cams_paths.csv and cams/ of the run folder and writes its hdf5_files/train_set: cxr_images (N, S, S) uint8,
cxr_cams (N, 10, h, w) float32, cxr_base_names (N,).
"""

import argparse
import logging
from functools import partial
from pathlib import Path

import constants
from chexseg.runtime import cli

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--map_dir", type=Path, help="run folder [$OBJ_EFFICIENCY_BASE_PATH/train_cams/" + constants.MODEL_NAME + "]")
    add("--image_size", type=cli.positive_int, default=320, help="side that images are stretched to")
    cli.add_run_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    from chexseg.classifier.prediction_tables import read_listing
    from chexseg.classifier.saliency_store import open_maps
    from chexseg.classifier.train_set import TrainSetMaker
    from chexseg.data import hdf5_files
    from chexseg.runtime import provenance, shards

    run, tasks = args.map_dir or constants.run_dir(), constants.LOCALIZATION_TASKS
    listing = run / "train_cams_paths.csv"
    ids, maps = read_listing(listing), open_maps(run)
    maps.task_rows(tasks)  # an unknown task is an error now, not in the middle of the work
    maker = TrainSetMaker(maps, tasks, constants.data_dir(), args.image_size, listing)
    if lacking := int((~maps.known(ids, tasks)).any(1).sum()):
        log.warning("%s: %d images lack the map of a task: zero there, which gives an empty mask", maps.path, lacking)
    record = provenance.describe(vars(args), [listing], code=__file__)
    record["inputs"]["maps"] = maps.fingerprint()
    shards.build(
        run / hdf5_files.TRAIN_SET,
        ids,
        process=partial(maker.process, num_workers=args.num_workers),
        shard_format=hdf5_files.TrainShards(tasks, len(ids)),
        record=record,
        shard_size=args.shard_size,
        label="images and maps to HDF5",
        item_fingerprint=maker.fingerprint,
    )


if __name__ == "__main__":
    cli.run(main, build_parser)
