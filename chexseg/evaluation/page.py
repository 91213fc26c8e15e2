"""The report as one HTML file that opens from disk: tables, figures, and a reading room of every film.

Styles, scripts, films, outlines and maps are inside the file, and its content security policy allows nothing else:
no word of a masks file can become a script, and nothing is fetched. A set of more than `FILMS_PER_PAGE` films
continues on further pages. What a film's data are is in `films`, what the tables say in `summary`.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from markupsafe import Markup

from chexseg.data import chexpert
from chexseg.data.images import read_image
from chexseg.errors import DataError
from chexseg.evaluation import figure, films, records, run_content, summary, timings
from chexseg.evaluation.comparison import Comparison
from chexseg.evaluation.film_list import FilmList, complete
from chexseg.evaluation.films import Masks, Room, Source
from chexseg.evaluation.hits import Maps
from chexseg.evaluation.methods import HUMAN, short
from chexseg.evaluation.report import QUALITY, TEMPLATES, TIMINGS
from chexseg.runtime.files import atomic
from chexseg.runtime.provenance import versions

NAME = "index.html"
FILMS_PER_PAGE = 120  # of at most films.MAX_BYTES each: a page stays below 20 MB
LISTED_PAGES = 20  # with more pages than these, a page lists its own films only
STYLES = ("page.css", "room.css")
SCRIPTS = ("decode.js", "draw.js", "list.js", "room.js", "controls.js")
# The picture's, but for white, which devices and bones are in a film themselves.
COLOURS = tuple("#d2ff7a" if colour == "#ffffff" else colour for colour in figure.COLOURS)
Content = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, its name in the navigation, and the template that shows it."""

    id: str
    title: str
    template: str


ROOM = Section("room", "Reading room", "room.html.j2")
SECTIONS = (
    Section("summary", "Summary", "summary.html.j2"),
    ROOM,
    Section("pseudo", "Pseudo masks", "pseudo.html.j2"),
    Section("training", "Training", "training.html.j2"),
    Section("provenance", "Provenance", "provenance.html.j2"),
)


@dataclass(frozen=True)
class Run:
    """What the page tells of the run beside its films: the scores, the files they come from, and their records."""

    comparison: Comparison
    truth: Path
    paths: Mapping[str, Path]
    history: records.History
    record: Mapping[str, Any]
    times: Sequence[tuple[str, float]] | None = None
    quality: Path | None = None
    leaks: Sequence[str] = ()


def report_room(
    truth: Mapping[str, Masks],
    methods: Mapping[str, Mapping[str, Masks]],
    pseudo: Mapping[str, Mapping[str, Masks]],
    tasks: Sequence[str],
    image_dir: Path,
    maps: Maps | None = None,
    listed: FilmList | None = None,
) -> tuple[Room, list[Path]]:
    """The reading room of a test set below `image_dir`, all films that the expert judged, and their paths.

    listed: all films of the set, of which those that the truth lacks have no finding.
    """
    if listed is not None:
        whole = complete(truth, methods, listed, tasks, may_lack=[HUMAN])
        truth, methods = whole.truth, whole.methods
    paths = {image: chexpert.find_image(image_dir, image) for image in truth}
    sources = [Source("expert", "Expert", films.EXPERT, truth)]
    for name, masks in sorted(methods.items(), key=lambda pair: pair[0] != HUMAN):
        kind = films.READER if name == HUMAN else films.METHOD
        sources.append(Source(name.replace(",", " "), short(name), kind, masks))
    for name, masks in pseudo.items():
        title = name if name.lower().startswith("pseudo") else f"Pseudo masks, {name}"
        sources.append(Source(f"pseudo {name}".replace(",", " "), title, films.PSEUDO, masks))
    room = Room(list(truth), tuple(tasks), sources, lambda image: read_image(paths[image]), maps)
    return room, list(paths.values())


def collect_run(
    folder: Path,
    comparison: Comparison,
    truth: Path,
    paths: Mapping[str, Path],
    pseudo: Sequence[Path],
    runs: Path,
    record: Mapping[str, Any],
    leaks: Sequence[str] = (),
) -> Run:
    """What is known of the run that made the masks files: their records and logs, below their own folders and `runs`;
    the times and the quality report that lie in `folder`; what leaks (`leak_guard`)."""
    outputs = [*paths.values(), truth, *pseudo]
    history = records.trace(outputs, [runs, *(path.parent for path in outputs)])
    times, quality = timings.read(folder / TIMINGS), folder / QUALITY
    return Run(comparison, truth, paths, history, record, times, quality, leaks)


def write_report(folder: Path, run: Run, room: Room, *, title: str = "CheXseg report") -> list[str]:
    """Write `index.html`, and further pages for films beyond the first `FILMS_PER_PAGE`. Returns their names."""
    entries = _entries(room)
    quality = run_content.quality(run.quality) if run.quality else None
    told = {
        "summary": summary.summarise(run.comparison, run.truth, run.paths, run.history, run.leaks),
        "pseudo": {**(quality or {}), "examples": _examples(room, entries)},
        "trainings": run_content.trainings(run.history),
        "origin": run_content.origin(run.history, run.times, run.record),
    }
    listed = entries if len(page_names(len(entries))) <= LISTED_PAGES else None
    return _write_pages(folder, room, listed, SECTIONS, told, title)


def write_reading_room(folder: Path, room: Room, *, title: str = "Reading room", name: str = NAME) -> list[str]:
    """Write the reading room alone, for films without an expert too. Returns the names of its pages.

    Of a large set (more than `LISTED_PAGES` pages) each page lists its own films only, and no more than a page's films
    are in memory.
    """
    entries = _entries(room) if len(page_names(len(room.images))) <= LISTED_PAGES else None
    return _write_pages(folder, room, entries, (ROOM,), {}, title, name)


def own_films(
    paths: Mapping[str, Path],
    masks: Mapping[str, Masks],
    tasks: Sequence[str],
    maps: Maps | None = None,
    ready: Callable[[str], films.Picture | None] = lambda image: None,
) -> Room:
    """The reading room of films that no expert judged: a network's masks alone; `paths` are the films by id, `ready`
    gives the pictures that there are already."""
    source = Source("network", "Network", films.METHOD, masks)
    return Room(list(paths), tuple(tasks), [source], lambda image: read_image(paths[image]), maps, ready)


def _entries(room: Room, page: int | None = None) -> list[Content]:
    """A line of each film, or of those of a page."""
    if not room.images:
        raise DataError("no film to show")
    first, stop = (0, len(room.images)) if page is None else (page * FILMS_PER_PAGE, (page + 1) * FILMS_PER_PAGE)
    images = enumerate(room.images[first:stop], first)
    return [films.entry(room, image) | {"page": number // FILMS_PER_PAGE} for number, image in images]


def page_names(count: int, name: str = NAME) -> list[str]:
    """The files of a set of `count` films."""
    stem, suffix = name.rsplit(".", 1)
    pages = -(-count // FILMS_PER_PAGE)
    return [name, *(f"{stem}-{number}.{suffix}" for number in range(2, pages + 1))]


def _write_pages(
    folder: Path,
    room: Room,
    entries: Sequence[Content] | None,
    sections: Sequence[Section],
    told: Content,
    title: str,
    name: str = NAME,
) -> list[str]:
    peaks, names = films.peaks(room), page_names(len(room.images), name)
    template = _environment().get_template("page.html.j2")
    style, script = (_joined(files) for files in (STYLES, SCRIPTS))
    for number, file in enumerate(names):
        first, listed = number == 0, _entries(room, number) if entries is None else entries
        text = template.render(
            told,
            title=title if first else f"{title}, page {number + 1}",
            version=versions()["chexseg"],
            sections=sections if first else (ROOM,),
            style=style,
            script=script,
            hashes={"style": _hash(style), "script": _hash(script)},
            room=_room_content(room, listed, peaks, names),
            page=_page_content(room, listed, peaks, number),
        )
        with atomic(folder / file) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="replace")  # a file name may be no text
    for stale in _later_pages(folder, name, len(names)):
        stale.unlink()
    return names


def _later_pages(folder: Path, name: str, count: int) -> list[Path]:
    """Pages of an earlier, larger set."""
    stem, suffix = name.rsplit(".", 1)
    found = (path for path in folder.glob(f"{stem}-*.{suffix}"))
    return [
        path for path in found if path.stem[len(stem) + 1 :].isdecimal() and int(path.stem[len(stem) + 1 :]) > count
    ]


def _room_content(room: Room, entries: Sequence[Content], peaks: Mapping[str, float], names: Sequence[str]) -> Content:
    """What every page knows: the controls' choices, and a line of each film."""
    expert = next((n for n, source in enumerate(room.sources) if source.kind == films.EXPERT), None)
    counted = [
        one["has"][expert] if expert is not None else set().union(*(h or [] for h in one["has"])) for one in entries
    ]
    methods = [n for n, source in enumerate(room.sources) if source.kind == films.METHOD]
    shown_first = {expert, methods[-1] if methods else len(room.sources) - 1}
    sources = [
        {"number": n, "key": source.key, "title": source.title, "kind": source.kind, "on": n in shown_first}
        for n, source in enumerate(room.sources)
    ]
    data = {
        "tasks": list(room.tasks),
        "colours": [COLOURS[n % len(COLOURS)] for n in range(len(room.tasks))],
        "sources": [{key: source[key] for key in ("key", "title", "kind")} for source in sources],
        "films": entries,
        "pages": list(names),
        "peaks": {room.tasks.index(task): peak for task, peak in peaks.items() if peak > 0},
    }
    return {
        "data": data,
        "count": len(room.images),
        "pages": list(names),
        "tasks": [
            {"name": task, "count": sum(n in (one or ()) for one in counted)} for n, task in enumerate(room.tasks)
        ],
        "sources": sources,
        "expert": expert is not None,
        "methods": len(methods),
        "maps": bool(peaks),
    }


def _page_content(room: Room, entries: Sequence[Content], peaks: Mapping[str, float], page: int) -> Content:
    """The films of one page: their pictures as JPEG in base 64, and what is drawn on them."""
    found, pictures = {}, []
    for number, one in enumerate(entries):
        if one["page"] == page:
            found[one["id"]], jpeg = films.content(room, one["id"], peaks)
            pictures.append({"number": number, "jpeg": base64.b64encode(jpeg).decode()})
    return {"number": page, "data": {"number": page, "films": found}, "films": pictures}


def _examples(room: Room, entries: Sequence[Content]) -> list[Content]:
    """The best and the worst film of each finding for each source of pseudo masks, of those that the expert marks."""
    expert = next((n for n, source in enumerate(room.sources) if source.kind == films.EXPERT), None)
    if expert is None:
        return []
    names, found = page_names(len(entries)), []
    for number, source in enumerate(room.sources):
        if source.kind != films.PSEUDO:
            continue
        lines = []
        for task, name in enumerate(room.tasks):
            positive = [one for one in entries if one["iou"][number] and task in (one["has"][expert] or ())]
            marked = [(one["iou"][number][task], one) for one in positive if task in one["has"][number]]
            shown = {
                which: _example(*choose(marked, key=lambda pair: pair[0]), names, task, source.key)
                for which, choose in (("best", max), ("worst", min))[: len(marked)]
            }
            if positive:
                empty = f"empty in {len(positive) - len(marked)} of {len(positive)}"
                lines.append({"task": name, "number": task, "empty": empty, "films": shown})
        found.append({"title": source.title, "key": source.key, "findings": lines})
    return found


def _example(iou: int, one: Content, names: Sequence[str], task: int, key: str) -> Content:
    link = urlencode({"film": one["id"], "finding": task, "on": f"expert,{key}"})
    return {"id": one["id"], "iou": f"{iou / 1000:.2f}", "page": names[one["page"]], "link": link}


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _joined(files: Sequence[str]) -> Markup:
    """Our own styles or scripts, which are not escaped."""
    text = "\n".join((TEMPLATES / file).read_text(encoding="utf-8") for file in files)
    return Markup(text)


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()
