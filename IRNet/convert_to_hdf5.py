"""Stage 3a: the training images and their saliency maps in one HDF5 file.

    cd IRNet && python convert_to_hdf5.py
    python IRNet/convert_to_hdf5.py --map_dir <run folder> --image_size 160

Reads train_cams_paths.csv and cams/ of the run folder and writes its hdf5_files/train_set: cxr_images (N, S, S) uint8,
cxr_cams (N, 10, h, w) float32, cxr_base_names (N,).
"""

import argparse
from functools import partial
from pathlib import Path

import pandas as pd

import constants
from chexseg.classifier import saliency_masks
from chexseg.classifier.saliency_store import SaliencyMaps
from chexseg.data import chexpert, hdf5_files
from chexseg.data.images import read_image, resize_square
from chexseg.errors import DataError
from chexseg.runtime import cli, provenance, shards
from chexseg.runtime.workers import ordered_map


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--map_dir", type=Path, help="run folder [$OBJ_EFFICIENCY_BASE_PATH/train_cams/" + constants.MODEL_NAME + "]")
    add("--image_size", type=cli.positive_int, default=320, help="side that images are stretched to")
    cli.add_run_options(parser)
    return parser


def read_ids(path: Path) -> list[str]:
    """The image ids in train_cams_paths.csv."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; make it with test.py --save_cams True --save_train_cams True")
    try:
        frame = pd.read_csv(path)
    except ValueError as error:
        raise DataError(f"{path}: not a CSV file ({error}); make it again with test.py") from error
    if "Train_CAM_Id" not in frame.columns:
        raise DataError(f"{path}: no column 'Train_CAM_Id'; make it again with test.py")
    return frame["Train_CAM_Id"].astype(str).tolist()


def make(maps: SaliencyMaps, rows: list[int], data_dir: Path, size: int, image_id: str):
    """One record: the image, and the maps of the tasks in `rows`."""
    image = read_image(chexpert.find_image(data_dir, image_id, "train"))
    return image_id, resize_square(image, size), maps[image_id]["maps"][rows]


def main(args: argparse.Namespace) -> None:
    run, tasks = args.map_dir or constants.run_dir(), constants.LOCALIZATION_TASKS
    ids, maps, folder = read_ids(run / "train_cams_paths.csv"), SaliencyMaps(run), constants.data_dir()
    function = partial(make, maps, maps.task_rows(tasks), folder, args.image_size)
    record = provenance.describe(vars(args), [run / "train_cams_paths.csv"], code=__file__)
    record["inputs"]["maps"] = saliency_masks.fingerprint(maps)
    shards.build(
        run / hdf5_files.TRAIN_SET,
        ids,
        process=lambda items: ordered_map(function, items, args.num_workers),
        write=hdf5_files.write_train_part,
        merge=partial(hdf5_files.merge_train_parts, tasks=tasks, count=len(ids)),
        record=record,
        shard_size=args.shard_size,
        label="images and maps to HDF5",
        item_fingerprint=lambda name: provenance.stat_fingerprint(chexpert.find_image(folder, name, "train")),
    )


if __name__ == "__main__":
    cli.run(main, build_parser)
