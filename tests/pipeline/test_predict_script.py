"""`segmentation_predict.py` on films of every kind: what it writes, what it skips by name, killed and run again.

pytest -m soak -s tests/pipeline/test_predict_script.py      a thousand films, three kills, and the memory it takes
"""

import csv
import json
import random
import signal
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from chexseg.data import dicom_seg, mask_files, rle
from chexseg.data.images import read_image
from tests.data.made_dicom import SECRETS, dicom
from tests.pipeline import stages

STAGE = "segmentation_predict"


def save_as(kind: str, path, pixels: np.ndarray):
    """A film (h, w) uint8 in one of the formats, lossless but for jpg; returns its file."""
    deep = pixels.astype(np.uint16) * 16
    if kind == "jpg":
        Image.fromarray(pixels).save(path.with_suffix(".JPG"), quality=95)
        return path.with_suffix(".JPG")
    if kind in ("png", "tif"):
        Image.fromarray(pixels).save(path.with_suffix(f".{kind}"))
        return path.with_suffix(f".{kind}")
    if kind in ("png16", "tif16"):
        suffix = {"png16": ".PNG", "tif16": ".TIFF"}[kind]
        Image.fromarray(deep).save(path.with_suffix(suffix))
        return path.with_suffix(suffix)
    fields = {
        "mono1": {"PhotometricInterpretation": "MONOCHROME1"},
        "window": {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 1016, "WindowWidth": 4080},
        "compressed": {"compress": True, "ImagerPixelSpacing": [0.2, 0.2]},
        "mono2": {"PixelSpacing": [0.5, 0.4]},
    }[kind]
    return dicom(path.with_suffix(".dcm"), 4080 - deep if kind == "mono1" else deep, **fields)


KINDS = ("jpg", "png", "tif", "png16", "tif16", "mono1", "mono2", "window", "compressed")


@pytest.fixture(scope="module")
def mixed(tiny_run, tmp_path_factory):
    """40 films of all kinds in nested folders, with files that are none of them."""
    folder = tmp_path_factory.mktemp("mixed") / "ward ü"
    films = (sorted((tiny_run.root / "data" / "CheXpert").rglob("*.jpg")) * 2)[:40]
    for number, film in enumerate(films):
        path = folder / ("a", "b/c", "b/d e")[number % 3] / f"film {number:02d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_as(KINDS[number % len(KINDS)], path, read_image(film))
    (folder / "notes.txt").write_text("not a film")
    return folder


@pytest.fixture
def workspace(tmp_path):
    return stages.Workspace(tmp_path / "workspace")


def predict(workspace, tiny_run, images, *more, **how):
    model = tiny_run.root / "base" / "trials" / "semi" / "best_model.pth"
    options = ("--model_path", model, "--images", images, "--output_dir", workspace.root / "out", *more)
    process = stages.start(workspace, STAGE, *map(str, options), **how)
    process.wait()
    return process


def outputs(workspace):
    found = {name: stages.content(workspace.root / name, workspace.root) for name in workspace.files()}
    return {name: value for name, value in found.items() if not name.endswith("manifest.json")}


def findings(workspace):
    with open(workspace.root / "out" / "findings.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_films_of_every_kind(tiny_run, mixed, workspace):
    done = predict(workspace, tiny_run, mixed)
    assert done.process.exitcode == 0, done.said()
    out = workspace.root / "out"
    masks = mask_files.MaskFile(out / "masks.json")
    assert len(masks) == 40 and list(masks)[:2] == ["a__film 00", "a__film 03"]
    for path in mixed.rglob("film*"):
        image_id = "__".join(path.relative_to(mixed).with_suffix("").parts)
        assert {tuple(mask["size"]) for mask in masks[image_id].values()} == {read_image(path).shape}
    rows = findings(workspace)
    assert len(rows) == 400 and [row["id"] for row in rows[::10]] == list(masks)
    for row in rows:
        assert int(row["area_px"]) == rle.area([masks[row["id"]][row["task"]]])[0]
        number = int(row["id"][-2:]) % len(KINDS)
        spacing, where = {6: (0.2, "patient"), 8: (0.04, "detector")}.get(number, (None, ""))
        expected = "" if spacing is None else str(round(int(row["area_px"]) * spacing / 100, 3))
        assert (row["area_cm2"], row["spacing_at"]) == (expected, where)
    assert sorted(p.stem for p in (out / "overlays").iterdir()) == sorted(masks)
    assert (out / "contact_sheet.png").is_file() and (out / "skipped.csv").read_text() == "id,why\n"
    assert not told(done, out)


def told(done, out) -> list[str]:
    """What log and output say of the patient."""
    said = done.said() + "".join(p.read_bytes().decode("latin-1") for p in out.rglob("*") if p.is_file())
    return [secret for secret in SECRETS.values() if secret in said]


def test_segmentations_refer_to_their_films_and_tell_nothing_of_the_patient(tiny_run, mixed, tmp_path, workspace):
    films = [*sorted(mixed.rglob("*.dcm"))[:2], *sorted(mixed.rglob("*.png"))[:1]]
    done = predict(workspace, tiny_run, films[0], "--dicom_seg", "--images", *map(str, films))
    assert done.process.exitcode == 0, done.said()
    out = workspace.root / "out"
    masks = mask_files.MaskFile(out / "masks.json")
    for film in films:
        assert dicom_seg.read(out / "dicom_seg" / f"{film.stem}.dcm", {}) == masks[film.stem]
    seg, film = pydicom.dcmread(out / "dicom_seg" / f"{films[0].stem}.dcm"), pydicom.dcmread(films[0])
    assert seg.StudyInstanceUID == film.StudyInstanceUID and seg.PatientName == ""
    assert len(done.said().splitlines()) < 6 and not told(done, out)


def test_formats_of_one_film_give_one_mask(tiny_run, tmp_path, workspace):
    """Lossless files of one picture, stretched to the same 8 bits, are one film to the network."""
    film = read_image(next((tiny_run.root / "data" / "CheXpert").rglob("*.jpg")))
    film = np.round((film - film.min()) * (255 / np.ptp(film))).astype(np.uint8)
    (tmp_path / "one").mkdir()
    for kind in KINDS[1:]:
        save_as(kind, tmp_path / "one" / kind, film)
    done = predict(workspace, tiny_run, tmp_path / "one", "--batch_size", "1")
    assert done.process.exitcode == 0, done.said()
    masks = mask_files.MaskFile(workspace.root / "out" / "masks.json")
    assert len(masks) == len(KINDS) - 1
    assert all(entry == masks["png"] for name, entry in masks.items() if name != "window")
    first, second = (rle.area(list(masks[name].values())).sum() for name in ("png", "window"))
    assert abs(first - second) <= 0.02 * max(first, 1)  # a window's edges round otherwise


def test_bad_files_are_named_and_skipped(tiny_run, mixed, tmp_path, workspace):
    folder = tmp_path / "in"
    folder.mkdir()
    good = next(path for path in sorted(mixed.rglob("*.png")))
    (folder / "good.png").write_bytes(good.read_bytes())
    (folder / "cut.png").write_bytes(good.read_bytes()[:100])
    (folder / "empty.jpg").touch()
    dicom(folder / "movie.dcm", np.zeros((8, 8), np.uint8), NumberOfFrames=9)
    dicom(folder / "report.dcm", np.zeros((8, 8), np.uint8), PixelData=None)
    for _ in range(2):  # anew, and when it is up to date
        done = predict(workspace, tiny_run, folder)
        assert done.process.exitcode == 1
        assert "4 of 5 images could not be read" in done.last_line()
        for name in ("cut.png", "empty.jpg", "movie.dcm", "report.dcm"):
            assert f"skipped: {folder / name}: cannot be decoded" in done.said()
    out = workspace.root / "out"
    assert list(mask_files.MaskFile(out / "masks.json")) == ["good"]
    assert [p.name for p in (out / "overlays").iterdir()] == ["good.png"]
    with open(out / "skipped.csv", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["cut", "empty", "movie", "report"]
    assert not [secret for secret in SECRETS.values() if secret in done.said()]


def test_killed_and_run_again_it_ends_with_the_same_bytes(tiny_run, mixed, tmp_path, workspace):
    whole = stages.Workspace(tmp_path / "whole")
    first = predict(whole, tiny_run, mixed)
    assert first.process.exitcode == 0, first.said()
    rng, kills = random.Random(7), 0
    for turn in range(4):
        more = ("--num_workers", "1") if turn == 2 else ()
        done = predict(workspace, tiny_run, mixed, *more, die_at=rng.randint(1, first.operations() // (turn + 1)))
        kills += done.process.exitcode == -signal.SIGKILL
    assert kills >= 2
    last = predict(workspace, tiny_run, mixed)
    assert last.process.exitcode == 0, last.said()
    assert outputs(workspace) == outputs(whole)


def test_what_was_taken_away_is_made_again(tiny_run, mixed, workspace):
    images = mixed / "a"
    assert predict(workspace, tiny_run, images).process.exitcode == 0
    before = outputs(workspace)
    pages = ("contact_sheet.png", "reading_room.html")  # the films are read again for the page
    for name in ("findings.csv", "overlays/film 00.png", *pages):
        (workspace.root / "out" / name).unlink()
        assert predict(workspace, tiny_run, images).process.exitcode == 0
        assert outputs(workspace) == before
    waiting = workspace.root / "out" / ".reading_room"  # as a run with a page leaves it that is killed
    waiting.mkdir()
    again = predict(workspace, tiny_run, images, "--page", "False")
    assert "up to date" in again.said() and not waiting.exists()  # or a later page would show a film as it was


def test_files_are_named_one_by_one_and_the_output_may_lie_among_them(tiny_run, mixed, tmp_path, workspace):
    films = sorted(mixed.rglob("film*"))[:2]
    done = predict(workspace, tiny_run, films[0], "--images", *map(str, films))
    assert done.process.exitcode == 0, done.said()
    assert len(json.loads((workspace.root / "out" / "masks.json").read_text())) == 2
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / films[0].name).write_bytes(films[0].read_bytes())
    for _ in range(2):  # the second run finds overlays of the first below the folder
        done = predict(workspace, tiny_run, inside, "--output_dir", str(inside / "out"))
        assert done.process.exitcode == 0, done.said()
    assert len(json.loads((inside / "out" / "masks.json").read_text())) == 1


def test_two_files_of_one_id_are_named(tiny_run, mixed, tmp_path, workspace):
    film = next(iter(sorted(mixed.rglob("*.png"))))
    for name in ("x/y.png", "x__y.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(film.read_bytes())
    done = predict(workspace, tiny_run, tmp_path / "in")
    assert done.process.exitcode == 1 and "both have the image id 'x__y'" in done.last_line()


@pytest.mark.soak
def test_a_thousand_films_killed_three_times_in_flat_memory(tiny_run, tmp_path):
    """Films of all formats, each of its own pixels. The peak of memory is that of the process, after all imports."""
    drawn = [read_image(path) for path in sorted((tiny_run.root / "data" / "CheXpert").rglob("*.jpg"))]
    sets = {200: tmp_path / "few", 1000: tmp_path / "many"}
    rng = np.random.default_rng(0)
    for number in range(1000):
        film = drawn[number % len(drawn)]
        noisy = (film + rng.normal(0, 8, film.shape)).clip(0, 255).astype(np.uint8)
        for count, folder in sets.items():
            if number < count:
                (folder / str(number % 7)).mkdir(parents=True, exist_ok=True)
                save_as(KINDS[number % len(KINDS)], folder / str(number % 7) / f"{number:04d}", noisy)
    peaks, seconds, whole = {}, {}, {}
    for count, folder in sets.items():
        whole[count], started = stages.Workspace(tmp_path / f"whole{count}"), time.monotonic()
        process = start_prediction(whole[count], tiny_run, folder)
        peaks[count] = watch_memory(process)
        seconds[count] = time.monotonic() - started
        assert process.wait() == 0, process.said()
    moments = random.Random(11)
    workspace, struck = stages.Workspace(tmp_path / "killed"), 0
    for _ in range(3):
        process = start_prediction(workspace, tiny_run, sets[1000])
        process.process.join(moments.uniform(0.1, 0.4) * seconds[1000])
        process.kill()
        struck += process.process.exitcode == -signal.SIGKILL
    assert struck == 3
    last = start_prediction(workspace, tiny_run, sets[1000])
    assert last.wait(None) == 0, last.said()
    assert outputs(workspace) == outputs(whole[1000])
    print(f"peak memory by films, MB: {peaks}; seconds: { {n: round(s) for n, s in seconds.items()} }")
    assert peaks[1000] <= 1.2 * peaks[200]


def start_prediction(workspace, tiny_run, images):
    model = tiny_run.root / "base" / "trials" / "semi" / "best_model.pth"
    options = ("--model_path", model, "--images", images, "--output_dir", workspace.root / "out")
    return stages.start(workspace, STAGE, *map(str, options))


def watch_memory(running) -> float:
    """The process's highest resident memory in MB; it is waited for."""
    highest = 0
    while running.process.exitcode is None:
        try:
            status = Path(f"/proc/{running.process.pid}/status").read_text()
            highest = max([highest, *(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)])
        except OSError:
            pass
        running.process.join(0.02)
    return round(highest / 1024, 1)
