"""The report page as a file: whole, closed to the outside, and unmoved by what stands in masks files."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from chexseg.errors import DataError
from chexseg.evaluation import comparison, films, page, records
from tests.evaluation.masks import METHODS, TASKS, TRUTH, entry, name

EVIL = 'patient9_"><script>alert(1)</script><!--&amp;'
EVIL_TASK = "</script><img src=x onerror=alert(2)>"


class Parsed(HTMLParser):
    """Elements with their attributes, and the text of each script."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.scripts, self.words, self._script = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._script = dict(attributes) | {"text": ""} if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append(self._script)

    def handle_data(self, text):
        if self._script is not None:
            self._script["text"] += text
        else:
            self.words.append(text)

    def handle_endtag(self, tag):
        self._script = None

    def data(self, id):
        return json.loads(next(one["text"] for one in self.scripts if one.get("id") == id))

    def of(self, tag):
        return [attributes for found, attributes in self.elements if found == tag]


def pixels(image):
    return np.random.default_rng(len(image)).integers(0, 255, (30, 40), np.uint8)


def report(folder, truth=TRUTH, methods=METHODS, tasks=TASKS, **more):
    folder.mkdir(exist_ok=True)
    found = comparison.compare(truth, methods, tasks, num_replicates=20)
    sources = [films.Source("expert", "Expert", "expert", truth)]
    sources += [films.Source(key, key, "method", masks) for key, masks in methods.items()]
    sources += [films.Source("pseudo", "Pseudo masks", "pseudo", methods["weak_irnet"])]
    room = films.Room(list(truth), tuple(tasks), sources, pixels)
    paths = {key: folder / f"{key}.json" for key in methods}
    content = {"history": records.History(), "record": {"command": "make_tables.py", "arguments": {"seed": 17}}} | more
    names = page.write_report(folder, page.Run(found, Path("truth.json"), paths, **content), room)
    return [Parsed((folder / one).read_text(encoding="utf-8")) for one in names]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    (parsed,) = report(tmp_path_factory.mktemp("page") / "report")
    return parsed


def test_the_page_says_what_was_measured(made):
    words = " ".join(made.words)
    for text in (
        "Protocol",
        "0.750",
        "CheXseg − Fully supervised",
        "Never in the ground truth",
        "Fracture",
        "make_tables.py",
    ):
        assert text in words, text
    room, here = made.data("room-data"), made.data("page-data")
    assert room["tasks"] == list(TASKS) and [one["id"] for one in room["films"]] == list(TRUTH)
    assert room["films"][0]["iou"][3] == [1000, 750, None]  # `full`, in thousandths
    assert here["films"][name(1)]["size"] == [30, 40] and len(room["sources"]) == 7


def test_the_page_is_one_file_that_fetches_nothing(made):
    for tag, attributes in made.elements:
        for key, value in attributes.items():
            assert not key.startswith("on"), (tag, key)
            if key in ("src", "href", "srcset", "action", "data", "poster"):
                assert value.startswith(("#", "data:image/svg+xml;base64,", "index.html#")), (tag, key, value)
    assert not made.of("link") and not made.of("iframe") and not made.of("base")
    (policy,) = (one["content"] for one in made.of("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    programs = [one["text"] for one in made.scripts if one.get("type") is None]
    digest = base64.b64encode(hashlib.sha256(programs[0].encode()).digest()).decode()
    assert len(programs) == 1 and f"script-src 'sha256-{digest}'" in policy
    for word in ("eval(", "innerHTML", "document.write", "fetch(", "XMLHttpRequest", "http:", "https:"):
        assert word not in programs[0], word


def test_the_page_is_accessible(made):
    ids = [attributes["id"] for _, attributes in made.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert ("html", {"lang": "en"}) in made.elements
    labelled = {one["for"] for one in made.of("label") if "for" in one}
    for one in made.of("select"):
        assert one["id"] in labelled
    for one in made.of("img"):
        assert one["alt"]
    for one in made.of("canvas"):
        assert one.get("aria-label") or one.get("aria-hidden")
    for one in made.of("section"):
        assert one["aria-labelledby"] in ids
    assert all(one.get("scope") in ("row", "col") for one in made.of("th"))
    assert len(made.of("h1")) == len(made.of("main")) == 1


def test_what_files_say_is_never_markup(tmp_path):
    """Ids of images, tasks, methods, notes, commands, logs, CSV: each with an end of a script and a picture inside."""
    tasks = (EVIL_TASK, "Edema")
    truth = {EVIL: entry(100, 20, tasks=tasks), name(1): entry(50, 0, tasks=tasks)}
    methods = {key: truth for key in ("weak_irnet", "full", EVIL_TASK)}
    stage = records.Stage(
        Path(EVIL), {"command": EVIL, "arguments": {EVIL: EVIL}, "inputs": {EVIL: EVIL}, "versions": {EVIL: EVIL}}
    )
    log = [{"epoch": 1, "train_loss": 0.5, "score": 0.1}]
    history = records.History([stage], [records.Training(EVIL, Path("x"), log, stage)], [Path(EVIL)])
    (tmp_path / "q.csv").write_text(f'source,gate,task,iou,lower,upper\n"{EVIL_TASK}",g,"{EVIL_TASK}",0.5,0.4,0.6\n')
    (parsed,) = report(
        tmp_path / "r", truth, methods, tasks, history=history, times=[(EVIL, 3.0)], quality=tmp_path / "q.csv"
    )
    assert [one.get("type") for one in parsed.scripts if one.get("type") is None] == [None]
    assert not any("onerror" in attributes or attributes.get("src") == "x" for _, attributes in parsed.elements)
    assert parsed.data("room-data")["films"][0]["id"] == EVIL and parsed.data("room-data")["tasks"][0] == EVIL_TASK
    assert EVIL in parsed.data("page-data")["films"]
    assert EVIL_TASK in " ".join(parsed.words) and EVIL in " ".join(parsed.words)


def test_a_leak_is_shouted(tmp_path):
    (parsed,) = report(tmp_path, leaks=["full: trained on 2 of the 3 scored patients"])
    assert "full: trained on 2 of the 3 scored patients" in " ".join(parsed.words)
    assert [attributes for attributes in parsed.of("p") if attributes.get("role") == "alert"]


def test_many_films_go_on_further_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "FILMS_PER_PAGE", 2)
    first, second = report(tmp_path)
    assert [list(one.data("page-data")["films"]) for one in (first, second)] == [[name(1), name(2)], [name(3)]]
    assert [one["page"] for one in second.data("room-data")["films"]] == [0, 0, 1]
    assert {"index-2.html#room", "index.html#room"} <= {one["href"] for one in second.of("a")}
    assert "Summary" not in " ".join(second.words) and "Summary" in " ".join(first.words)
    (tmp_path / "index-notes.html").write_text("somebody's own")
    monkeypatch.setattr(page, "FILMS_PER_PAGE", 120)
    report(tmp_path)
    assert sorted(one.name for one in tmp_path.glob("*.html")) == ["index-notes.html", "index.html"]


def test_pages_of_a_large_set_list_their_own_films(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "FILMS_PER_PAGE", 2)
    whole = report(tmp_path / "whole")
    monkeypatch.setattr(page, "LISTED_PAGES", 1)
    for one, other in zip(report(tmp_path / "parts"), whole, strict=True):
        number = other.data("page-data")["number"]
        expected = [film for film in other.data("room-data")["films"] if film["page"] == number]
        assert one.data("room-data")["films"] == expected and one.data("room-data")["pages"] == [
            "index.html",
            "index-2.html",
        ]
        assert one.data("page-data") == other.data("page-data")
    room = page.own_films({str(i): Path("none") for i in range(5)}, {}, TASKS)
    object.__setattr__(room, "read", pixels)
    assert page.write_reading_room(tmp_path, room, name="own.html") == ["own.html", "own-2.html", "own-3.html"]
    last = Parsed((tmp_path / "own-3.html").read_text())
    assert [one["id"] for one in last.data("room-data")["films"]] == ["4"]
    assert [one["id"] for one in last.scripts if one.get("type") == "text/plain"] == ["film-0"]


def test_the_same_page_twice(tmp_path):
    report(tmp_path)
    first = (tmp_path / "index.html").read_bytes()
    report(tmp_path)
    assert (tmp_path / "index.html").read_bytes() == first


def test_a_page_of_120_films_stays_below_20_mb():
    """Noise at full size, the worst film that there is, in every place of a page."""
    assert page.FILMS_PER_PAGE * films.MAX_BYTES * 4 / 3 < 17e6


def test_pseudo_masks_best_and_worst(made):
    """Of Edema both positive images are marked, of Airspace Opacity the one that there is."""
    shown = [(one["data-film"], one["data-finding"]) for one in made.of("canvas") if "data-film" in one]
    assert shown == [(name(1), "0"), (name(1), "0"), (name(1), "1")]  # both of Edema have an IoU of 0.5
    assert "empty in 0 of 2" in " ".join(made.words)


def test_a_reading_room_without_an_expert(tmp_path):
    masks = {"my film": entry(30, 0, 0), "other": entry(0, 0, 0)}
    room = films.Room(["my film", "other", "third"], TASKS, [films.Source("net", "CheXseg", "method", masks)], pixels)
    assert page.write_reading_room(tmp_path, room, name="films.html") == ["films.html"]
    parsed = Parsed((tmp_path / "films.html").read_text())
    assert [one["id"] for one in parsed.of("section")] == ["room"]
    assert parsed.data("room-data")["films"][2]["has"] == [None]
    options = re.findall(r"IoU of|the expert marks", " ".join(parsed.words))
    assert options == []
    with pytest.raises(DataError, match="no film to show"):
        page.write_reading_room(tmp_path, films.Room([], TASKS, [], pixels))
