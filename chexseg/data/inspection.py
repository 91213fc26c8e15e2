"""Looking at data before days are spent on it: label files, a sample of images, outlines and masks, as rows of checks.

Nothing is written, and nothing is decoded but a sample: headers and last bytes tell a broken file from a whole one.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, compress
from pathlib import Path
from time import perf_counter

from chexseg.data import chexpert, dicom_images, label_files, rle
from chexseg.data.images import opened, read_image
from chexseg.data.mask_files import MaskFile, PolygonFile
from chexseg.data.pipeline import Counts, Settings
from chexseg.errors import DataError
from chexseg.runtime.checks import BAD, MISSING, ODD, OK, Check, Checks, some

HEADERS = 2000  # files of a set whose headers and last bytes are read


@dataclass(frozen=True)
class Vocabulary:
    """The names that files may use: a classifier's observations, the outlined tasks, and other names of them."""

    observations: Sequence[str]
    tasks: Sequence[str]
    aliases: Mapping[str, str]


@dataclass
class Films:
    """What a label file lists: ids of the frontal views, how long reading one took, and which findings each has."""

    ids: list[str]
    present: dict[str, set[str]]
    seconds: float = 0.0


@dataclass
class DataSets:
    """What was found of the three sets: rows, the films of each, the experts' annotation file and its positives."""

    rows: list[Check]
    films: dict[str, Films]
    annotations: Path
    experts: int = 0

    @property
    def counts(self) -> Counts:
        train, test = (len(self.films[split].ids) if split in self.films else 0 for split in ("train", "test"))
        return Counts(train, self.experts, test)

    @property
    def seconds(self) -> float:
        """Of decoding one training image."""
        return self.films["train"].seconds if "train" in self.films else 0.0


def data_sets(
    data_dir: Path, truth: Path, names: Vocabulary, settings: Settings, *, sample: int, seed: int
) -> DataSets:
    """Look at labels, images, outlines and masks of the training, validation and test set, and whether they are enough
    for `settings`."""
    # CheXlocalize's own name is the second.
    annotations = first_that_is_there([truth / f"gt_annotations_{name}.json" for name in ("valid", "val")])
    checks = Checks("data")
    found = DataSets(checks.rows, {}, annotations)
    beside = truth / "test_labels.csv"
    for split in chexpert.SPLITS:
        find = partial(chexpert.split_csv, data_dir, split)
        if split == "test" and beside.is_file():
            find = partial(Path, beside)
        films = label_file(checks, find, data_dir, names, sample=sample, seed=seed, split=split)
        if films is not None:
            found.films[split] = films
    _shared_patients(checks, found.films)
    for split, path in (("valid", annotations), ("test", truth / "gt_annotations_test.json")):
        showing = outlines(checks, path, data_dir, names, found.films.get(split), split=split)
        if split == "valid":
            found.experts = showing or 0
        encoded = truth / f"{split}_encoded.json"
        if encoded.is_file():
            masks(checks, encoded, data_dir, names, None, split=split)
    _are_enough(checks, found, settings)
    return found


def _shared_patients(checks: Checks, films: Mapping[str, Films]) -> None:
    patients = {split: {chexpert.patient_of(name) for name in of.ids} for split, of in films.items()}
    for one, other in combinations(patients, 2):
        if shared := sorted(patients[one] & patients[other]):
            detail = f"{len(shared)} patients are in {one} and in {other}: {some(shared)}"
            checks.add(ODD, "patients", detail, "scores of patients that were trained on say nothing; drop them")


def _are_enough(checks: Checks, found: DataSets, settings: Settings) -> None:
    """Whether the sets are as large as the subsets that will be drawn from them."""
    if found.experts:
        detail = f"{found.experts} validation images show a finding; {settings.experts} are for training"
        if found.experts > settings.experts:
            checks.add(OK, "expert set", f"{detail}, the others choose epochs and thresholds")
        else:
            way_out = f"--expert_len {max(1, found.experts * 147 // 187)} leaves some to choose the epoch on"
            checks.add(BAD, "expert set", f"{detail}, and none would be left", way_out)
    if "train" in found.films:
        count = len(found.films["train"].ids)
        detail = f"{count} training images, {settings.subset} of them for CheXseg's subset"
        enough = count >= settings.subset
        checks.add(OK if enough else BAD, "pseudo set", detail, f"--subset_len {count} or fewer")


def label_file(
    checks: Checks, find: Callable[[], Path], data_dir: Path, names: Vocabulary, *, sample: int, seed: int, split: str
) -> Films | None:
    """The label file that `find` gives and a sample of the images it lists; None where it cannot be used."""
    path = checks.attempt(f"{split} labels", find, "see the layout in the README; CHEXPERT_DATA_DIR names the folder")
    if path is None:
        return None
    frame = checks.attempt(
        f"{split} labels", lambda: chexpert.read_labels(path, names.observations, names.aliases, split)
    )
    if frame is None:
        return None
    frontal = label_files.of_views(frame)
    patients = {chexpert.patient_of(name) for name in frontal.index}
    detail = f"{path}: {len(frame)} images, {len(frontal)} of them frontal, of {len(patients)} patients"
    if frontal.empty:
        checks.add(BAD, f"{split} labels", detail, "only frontal views are used; is the column Frontal/Lateral right?")
        return None
    labelled = {task: int((frontal[task] == 1).sum()) for task in names.tasks}
    never = [task for task, count in labelled.items() if not count]
    checks.add(ODD if never else OK, f"{split} labels", detail + (f"; nobody has {some(never)}" if never else ""))
    if lacking := [name for name in names.observations if (frame[name] == chexpert.NO_COLUMN).all()]:
        way_out = "unknown of every image, so never learnt; is a column misspelt?"
        checks.add(ODD, f"{split} labels", f"{path}: no column of {some(lacking)}", way_out)
    images = chexpert.ImageSet(data_dir, frontal, csv=path)
    seconds = image_files(checks, f"{split} images", images.ids, images.path, sample=sample, seed=seed)
    positive = (frontal[list(names.tasks)] == 1).to_numpy()
    present = {name: set(compress(names.tasks, row)) for name, row in zip(images.ids, positive, strict=True)}
    return Films(images.ids, present, seconds)


def image_files(
    checks: Checks, what: str, ids: Sequence[str], find: Callable[[str], Path], *, sample: int, seed: int
) -> float:
    """Whether images are there (up to `HEADERS` of them), begin and end as whole files do, and decode (`sample` of
    them). Returns the seconds that decoding one took."""
    drawn = random.Random(seed).sample(sorted(ids), min(HEADERS, len(ids)))
    lost, paths = [], []
    broken: dict[Path, str] = {}
    sizes: Counter[tuple[int, ...]] = Counter()
    for image_id in drawn:
        try:
            path = find(image_id)
        except DataError:
            lost.append(image_id)
            continue
        if why := broken_header(path):
            broken[path] = why
        else:
            paths.append(path)
    started, decoded = perf_counter(), 0
    for path in paths[:sample]:
        try:
            sizes[read_image(path).shape] += 1
            decoded += 1
        except DataError as error:
            broken[path] = str(error).removeprefix(f"{path}: ")
    seconds = (perf_counter() - started) / max(decoded, 1)
    looked = f"{len(drawn)} of {len(ids)} looked for" if len(drawn) < len(ids) else f"all {len(ids)} looked for"
    if lost:
        way_out = "is the download whole, and does CHEXPERT_DATA_DIR name the folder above CheXpert/?"
        checks.add(MISSING, what, f"{len(lost)} of {len(drawn)} are not there: {some(lost)}", way_out)
    if broken:
        texts = (f"{path} ({why})" for path, why in broken.items())
        checks.add(BAD, what, f"{len(broken)} broken: {some(texts)}", "fetch these files again, or drop their rows")
    if not lost and not broken:
        usual = f", mostly {sizes.most_common(1)[0][0]}" if sizes else ""
        checks.add(OK, what, f"{looked}, {decoded} decoded{usual}, {1000 * seconds:.0f} ms each")
    return seconds


def broken_header(path: Path) -> str:
    """Why a file is no whole image, from its header and its end; empty where it seems to be one."""
    if path.suffix.lower() == ".dcm":
        with open(path, "rb") as file:
            return "" if file.read(132)[128:] == b"DICM" else "no DICOM file"
    try:
        with opened(path) as image:
            kind, size = image.format, image.size
    except DataError as error:
        return f"no image: {str(error).removeprefix(f'{path}: ')}"
    if min(size) < 16:
        return f"only {size[0]} x {size[1]} pixels"
    if kind == "JPEG":
        with open(path, "rb") as file:
            file.seek(-2, 2)
            if file.read() != b"\xff\xd9":
                return "the file ends too early"
    return ""


def outlines(
    checks: Checks, path: Path, data_dir: Path, names: Vocabulary, films: Films | None, *, split: str
) -> int | None:
    """A reader's polygons: unknown tasks, tasks without one, images that are not there or of another size, and images
    that the labels call positive and nobody outlined. Returns how many images show a finding."""
    what = f"{split} outlines"
    way_out = f"CheXlocalize's download has it; it belongs into {path.parent}"
    entries = checks.attempt(what, lambda: dict(PolygonFile(path, names.aliases).items()), way_out)
    if entries is None:
        return None
    drawn = {image_id: {t for t, parts in polygons.items() if parts} for image_id, (_, polygons) in entries.items()}
    sizes = {image_id: size for image_id, (size, _) in entries.items()}
    return _annotated(checks, what, path, drawn, sizes, data_dir, names, films, split)


def masks(
    checks: Checks, path: Path, data_dir: Path, names: Vocabulary, films: Films | None, *, split: str
) -> int | None:
    """A masks JSON at the original images' size, looked at as `outlines` looks at polygons."""
    what = f"{split} masks"
    entries = checks.attempt(what, lambda: dict(MaskFile(path, names.aliases).items()))
    if entries is None:
        return None
    drawn, sizes = {}, {}
    for image_id, entry in entries.items():
        areas = rle.area(list(entry.values())) if entry else ()
        drawn[image_id] = {task for task, area in zip(entry, areas, strict=True) if area}
        different = {tuple(coded["size"]) for coded in entry.values()}
        if len(different) > 1:
            checks.add(BAD, what, f"{path}: {image_id}: masks of different sizes", "make the file again")
        sizes[image_id] = next(iter(different), (0, 0))
    return _annotated(checks, what, path, drawn, sizes, data_dir, names, films, split)


def _annotated(
    checks: Checks,
    what: str,
    path: Path,
    drawn: Mapping[str, set[str]],
    sizes: Mapping[str, tuple[int, ...]],
    data_dir: Path,
    names: Vocabulary,
    films: Films | None,
    split: str,
) -> int:
    """Rows about outlines or masks by image id."""
    counts = Counter(task for tasks in drawn.values() for task in tasks & set(names.tasks))
    showing = sum(bool(tasks & set(names.tasks)) for tasks in drawn.values())
    checks.add(OK if showing else BAD, what, f"{path}: {len(drawn)} images, {showing} of them show a finding")
    unknown = sorted({task for tasks in drawn.values() for task in tasks} - set(names.tasks))
    if unknown:
        checks.add(ODD, what, f"tasks that no stage uses: {some(unknown)}", "other names go into ALIASES, constants.py")
    if never := [task for task in names.tasks if not counts[task]]:
        checks.add(ODD, what, f"nobody shows {some(never)}: no score for it")
    lost, other = [], []
    for image_id, size in sizes.items():
        try:
            file = chexpert.locate(data_dir, image_id, (split,))
        except DataError:
            lost.append(image_id)
            continue
        if size != (0, 0) and (shape := _shape(file)) and shape != tuple(size):
            other.append(f"{image_id} ({size[0]} x {size[1]}, its image {shape[0]} x {shape[1]})")
    if lost:
        detail = f"{len(lost)} of {len(sizes)} images are not there: {some(lost)}"
        checks.add(MISSING, what, detail, f"the {split} images of the same download, below CHEXPERT_DATA_DIR")
    if other:
        detail = f"{len(other)} of another size than their image: {some(other)}"
        checks.add(BAD, what, detail, "outlines and images must come from one download")
    if films:
        bare = [name for name in films.ids if films.present[name] and name not in drawn]
        if bare:
            detail = f"{len(bare)} images have a finding by their label and no outline: {some(bare)}"
            checks.add(ODD, what, detail, "they count as without ground truth")
    return showing


def _shape(path: Path) -> tuple[int, int] | None:
    """(height, width) by the header; None where it says nothing."""
    try:
        if path.suffix.lower() == ".dcm":
            return dicom_images.size(path)
        with opened(path) as image:
            return image.size[1], image.size[0]
    except (DataError, OSError):
        return None  # said of the images already


def first_that_is_there(paths: Iterable[Path]) -> Path:
    """The first of some paths that is a file; the first of all where none is."""
    paths = list(paths)
    return next((path for path in paths if path.is_file()), paths[0])
