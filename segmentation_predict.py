"""Stage 7 for any X-rays: a trained network's masks of a folder of films, with pictures and numbers.

    python segmentation_predict.py --model_path seg_trials/semi_supervised/best_model.pth \\
        --images FOLDER_OR_FILES --output_dir OUT
    torchrun --nproc_per_node 8 segmentation_predict.py ...        the same, shared among 8 GPUs

Reads JPEG, PNG, TIFF and DICOM files, in nested folders too. An image's id is its path below the folder, "/" turned to
"__". Writes to OUT:

masks.json         masks at the films' own size
findings.csv       for each film and task: area in pixels, and in cm2 where the file says how far pixels are apart
                   (spacing_at: at the patient, or at the detector, where everything is larger by some 10%), the film's
                   highest probability, the mean over the mask, and the cardiothoracic ratio (heart's width by the
                   lungs', from networks that have lungs among their tasks; empty with CheXlocalize's ten tasks)
overlays/          a picture of each film with outlines; contact_sheet.png shows up to 60 of them
reading_room.html  one file to open in a browser: every film, its outlines, window and zoom
dicom_seg/         with --dicom_seg True, a DICOM SEG of each film, without the patient's data
skipped.csv        files that could not be read, and why; the exit status is 1 then

Killed and run again, it goes on where it was.
"""

import argparse
from pathlib import Path

from chexseg.errors import MissingError
from chexseg.runtime import cli
from chexseg.training.options import PRECISIONS


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--model_path", type=Path, required=True, help="best_model.pth of segmentation_train.py")
    add("--images", type=Path, nargs="+", required=True, metavar="PATH", help="folders of films, or files")
    add("--output_dir", type=Path, required=True, help="folder to write")
    add("--thresholds_path", type=Path, help="JSON list of a threshold per task [thresholds.txt beside the model]")
    cli.add_boolean(parser, "--overlays", default=True, help="write pictures")
    cli.add_boolean(parser, "--page", default=True, help="write reading_room.html, which shows all films")
    cli.add_boolean(parser, "--dicom_seg", help="write DICOM SEG files")
    add("--batch_size", type=cli.positive_int, default=8, help="films a forward pass, on each rank")
    add("--precision", choices=PRECISIONS, default="auto", help="auto: bf16 where the chip multiplies it")
    cli.add_run_options(parser, shard_size=64)
    return parser


def main(args: argparse.Namespace) -> None:
    from chexseg.data import image_folder
    from chexseg.runtime import distributed, provenance, shards
    from chexseg.segmentation import foreign
    from chexseg.segmentation.film_stage import SHEET, FilmStage, refuse_skipped
    from chexseg.segmentation.thresholds import read_thresholds

    if not args.model_path.is_file():
        raise MissingError(f"{args.model_path}: no such network; train one with segmentation_train.py")
    thresholds_path = args.thresholds_path or args.model_path.parent / "thresholds.txt"
    read_thresholds(thresholds_path)  # what is wrong with them is said before the work begins
    paths = image_folder.find(args.images, without=args.output_dir)
    stage = FilmStage(
        paths,
        args.output_dir,
        args.model_path,
        thresholds_path,
        overlays=args.overlays,
        dicom_seg=args.dicom_seg,
        page=args.page,
        batch_size=args.batch_size,
        precision=args.precision,
        num_workers=args.num_workers,
        device=args.device,
    )
    inputs = [args.model_path, thresholds_path, *foreign.side_files(args.model_path)]
    places = ("model_path", "images", "output_dir", "thresholds_path", "page")
    options = {key: value for key, value in vars(args).items() if key not in places}
    if distributed.is_main() and stage.output.is_file() and not stage.is_whole():
        provenance.manifest_path(stage.output).unlink(missing_ok=True)  # something was taken away: make it again
    if distributed.is_main() and not args.page:
        stage.drop_pictures()
    made = shards.build(
        stage.output,
        list(paths),
        process=stage.process,
        shard_format=stage,
        record=provenance.describe(options, inputs, code=__file__),
        shard_size=args.shard_size,
        label="films",
        item_fingerprint=lambda name: provenance.stat_fingerprint(paths[name]),
    )
    if distributed.is_main():
        if args.overlays and (made or not (args.output_dir / SHEET).is_file()):
            stage.draw_sheet()
        if args.page and (made or not stage.has_page()):
            stage.write_page()
        refuse_skipped(args.output_dir, len(paths))


if __name__ == "__main__":
    cli.run(main, build_parser)
