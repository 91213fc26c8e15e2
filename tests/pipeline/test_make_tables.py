"""Stage 8 as a user runs it: the report folder."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexseg.data import leak_guard, mask_files
from chexseg.errors import DataError, UsageError
from tests.evaluation.masks import METHODS, TASKS, TRUTH, entry, name
from tests.pipeline.scripts import ROOT
from tests.pipeline.scripts import run as run_script


def run(*arguments):
    run_script("make_tables.py", *arguments)


@pytest.fixture
def files(tmp_path):
    """Masks of each method, X-rays below CheXpert/test and a saliency store."""
    mask_files.write(tmp_path / "truth.json", TRUTH.items())
    for method, content in METHODS.items():
        mask_files.write(tmp_path / f"{method}.json", content.items())
    rng = np.random.default_rng(0)
    for i in range(1, 4):
        folder = tmp_path / "CheXpert" / "test" / f"patient{i:05d}" / "study1"
        folder.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (30, 40), np.uint8)).save(folder / "view1_frontal.jpg")
    (tmp_path / "run" / "cams").mkdir(parents=True)
    with h5py.File(tmp_path / "run" / "cams" / "saliency.h5", "w") as file:
        file.attrs["tasks"], file.attrs["image_size"], file["ids"] = json.dumps(TASKS), 8, [name(1)]
        file["maps"], file["sizes"] = rng.random((1, 3, 2, 2), dtype=np.float32), np.int32([[30, 40]])
        file["probabilities"] = np.ones((1, 3), np.float32)
    return tmp_path


def arguments(files):
    methods = [x for m in METHODS if m != "radiologist" for x in ("--method", f"{m}={files / m}.json")]
    return [
        "--ground_truth", files / "truth.json", *methods, "--human", files / "radiologist.json", "--image_dir", files,
        "--maps", files / "run", "--pseudo", files / "weak_irnet.json", "--num_replicates", 20, "--page", False,
        "--tasks", *TASKS,
    ]  # fmt: skip


def test_make_tables_writes_the_same_report_twice(files, capsys):
    made = []
    for folder in ("a", "b"):
        run(*arguments(files), "--output_dir", files / folder, "--num_examples", 2)
        made.append([(files / folder / n).read_bytes() for n in ("table.csv", "table.md", "sheet.png")])
    assert made[0] == made[1]
    table = pd.read_csv(files / "a" / "table.csv").set_index(["method", "protocol", "task"])
    assert table.loc[("full", "pooled", "mIoU"), "iou"] == 0.75
    assert made[0][1].decode() in capsys.readouterr().out
    with Image.open(files / "a" / "sheet.png") as picture:
        width, height = picture.size
        assert width > 9 * 250 and height > 2 * 200  # X-ray, expert, map, pseudo, four methods, reader; two rows
        assert np.asarray(picture.convert("L")).std() > 20
    manifest = json.loads((files / "a" / "table.manifest.json").read_text())
    assert manifest["arguments"]["num_replicates"] == 20 and len(manifest["inputs"]) == 6


PICTURED = ("table.csv", "table.md", "sheet.png", "index.html", "table.manifest.json")


def test_a_report_that_is_up_to_date_costs_no_heavy_import(files):
    """Run again it reads and compares; none of what it would be made with is even imported."""
    command = [str(x) for x in (*arguments(files), "--output_dir", files / "out", "--num_examples", 1, "--page")]
    run(*command)
    made = {name: (files / "out" / name).stat().st_mtime_ns for name in PICTURED}
    heavy = "{'torch', 'torchvision', 'segmentation_models_pytorch', 'pandas', 'matplotlib', 'h5py', 'cv2', 'numpy'}"
    code = (
        "import runpy, sys; sys.argv = ['make_tables.py', *sys.argv[1:]]\n"
        f"try: runpy.run_path({str(ROOT / 'make_tables.py')!r}, run_name='__main__')\n"
        f"except SystemExit as e: print(e.code, sorted({heavy} & set(sys.modules)))"
    )
    again = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert again.stdout.splitlines()[-1] == "0 []", again.stderr
    assert "up to date" in again.stderr and (files / "out" / "table.md").read_text() in again.stdout
    assert {name: (files / "out" / name).stat().st_mtime_ns for name in PICTURED} == made


@pytest.mark.parametrize(
    "change", ["method", "image", "map", "table.csv", "sheet.png", "index.html", "manifest", "option", "gone"]
)
def test_what_makes_a_report_stale(files, change):
    command = [*arguments(files), "--output_dir", files / "out", "--examples", name(1), "--runs", files]
    command += ["--page", change == "index.html"]
    run(*command)
    before = (files / "out" / "table.manifest.json").stat().st_mtime_ns
    image = files / "CheXpert" / "test" / "patient00001" / "study1" / "view1_frontal.jpg"
    page = files / "out" / "index.html"
    written = page.read_bytes() if page.exists() else None
    if change == "method":
        mask_files.write(files / "full.json", METHODS["chexseg"].items())
    elif change in ("image", "map"):
        (image if change == "image" else files / "run" / "cams" / "saliency.h5").touch()
    elif change == "option":
        command += ["--seed", 5]
    elif change == "gone":
        (files / "out" / "sheet.png").unlink()
    elif change == "manifest":
        (files / "out" / "table.manifest.json").write_text("[]")
    else:
        (files / "out" / change).write_bytes(b"damaged")
    run(*command)
    assert (files / "out" / "table.manifest.json").stat().st_mtime_ns != before
    assert (files / "out" / "sheet.png").stat().st_size > 1000
    assert (page.read_bytes() if page.exists() else None) == written
    assert len(pd.read_csv(files / "out" / "table.csv")) == 5 * 3 * 4


def test_times_are_refreshed_without_making_the_report_again(files):
    command = [*arguments(files), "--output_dir", files / "out", "--num_examples", 0]
    (files / "out").mkdir()
    (files / "out" / "timings.csv").write_text("stage,seconds\nphantom,3\n")
    run(*command)
    table = (files / "out" / "table.csv").stat().st_mtime_ns
    first = (files / "out" / "table.md").read_text()
    assert first.endswith("| phantom | 3.0 s |\n| **all** | **3.0 s** |\n")
    (files / "out" / "timings.csv").write_text("stage,seconds\nphantom,4\n")
    run(*command)
    assert (files / "out" / "table.md").read_text() == first.replace("3.0 s", "4.0 s")
    (files / "out" / "timings.csv").unlink()
    run(*command)
    assert "## Time" not in (files / "out" / "table.md").read_text()
    assert (files / "out" / "table.csv").stat().st_mtime_ns == table


def test_another_label_budget_is_drawn_anew(files):
    budget, made = files / "out" / "label_budget.csv", files / "out" / "table.manifest.json"
    command = [*arguments(files), "--output_dir", files / "out", "--style", "light", "--num_examples", 1]
    command += ["--page", "False"]
    budget.parent.mkdir()
    budget.write_text("method,n_expert,iou\nfull,10,0.2\nfull,20,0.3\n")
    run(*command)
    before = made.stat().st_mtime_ns
    run(*command)
    assert made.stat().st_mtime_ns == before
    budget.write_text("method,n_expert,iou\nfull,10,0.2\nfull,20,0.4\n")
    run(*command)
    assert made.stat().st_mtime_ns != before


def test_make_tables_without_pictures_needs_no_image(files):
    run(*arguments(files), "--output_dir", files / "out", "--num_examples", 0, "--image_dir", files / "none")
    made = ["metrics.csv", "paired.csv", "table.csv", "table.manifest.json", "table.md"]
    assert sorted(p.name for p in (files / "out").iterdir()) == made


def test_make_tables_names_what_is_wrong(files):
    for wrong, error, message in [
        (["--method", f"full={files / 'full.json'}"], UsageError, "each name once"),
        (["--method", "radiologist=x.json"], UsageError, "--human"),
        (["--method", "new=none.json"], DataError, "none.json: no such masks file"),
        (["--examples", "nobody"], DataError, "--examples nobody"),
        (["--image_dir", files / "run"], DataError, "no image"),
    ]:
        with pytest.raises(error, match=message):
            run(*arguments(files), "--output_dir", files / "out", *wrong)
    with pytest.raises(UsageError, match="at least one --method"):
        run("--ground_truth", files / "truth.json")
    for text in ("full", "=x", "full="):
        with pytest.raises(SystemExit) as ended:
            run("--method", text)
        assert ended.value.code == 2


def test_masks_that_leak_are_refused_or_stamped_everywhere(files):
    command = [*arguments(files), "--output_dir", files / "out", "--num_examples", 0]
    leak_guard.record(files / "full.json", {"trained": ["patient00003"]})
    with pytest.raises(DataError, match="full.json: trained on 1 of the 3 scored patients: patient00003"):
        run(*command)
    assert not (files / "out" / "table.csv").exists()
    run(*command, "--allow_leak")
    for table in ("table", "metrics", "paired"):
        assert pd.read_csv(files / "out" / f"{table}.csv")["leak"].str.startswith("full.json: trained on 1").all()
    assert "**LEAK, these scores are no test:** full.json" in (files / "out" / "table.md").read_text()
    with pytest.raises(DataError, match="full.json: trained"):
        run(*command)  # what is up to date with the override is not without
    leak_guard.record(files / "full.json", {"trained": ["patient00009"]})
    run(*command)
    assert "leak" not in pd.read_csv(files / "out" / "table.csv")


def test_make_tables_with_the_list_of_all_images(files):
    listed = files / "test_labels.csv"
    listed.write_text("Path\n" + "".join(f"test/patient{i:05d}/study1/view1_frontal.jpg\n" for i in range(1, 5)))
    everywhere = {**METHODS["full"], name(4): entry(0, 80, 0)}
    mask_files.write(files / "full.json", everywhere.items())
    run(*arguments(files), "--output_dir", files / "out", "--num_examples", 0, "--all_images", listed)
    table = pd.read_csv(files / "out" / "table.csv").set_index(["method", "protocol", "task"])
    assert table.loc[("full", "pooled", "Airspace Opacity"), "iou"] == pytest.approx(150 / 280, abs=1e-6)
    assert table.loc[("chexseg", "pooled", "Edema"), "n_images"] == 4
