"""Masks, polygons, COCO, thresholds: JSON that is none, or says what cannot be."""

import json
from collections.abc import Iterator
from pathlib import Path

from tests.hostile.cases import REFUSED, SAFE, SAME, Case
from tests.hostile.world import IDS, SHAPE

GOOD = {"size": list(SHAPE), "counts": [SHAPE[0] * SHAPE[1]]}
ONE, TWO, THREE = IDS


def text(path: Path) -> str:
    return path.read_text()


def _any_json(good: str) -> Iterator[tuple[str, bytes | str, str]]:
    """What no JSON file of ours may be, whatever it is about."""
    yield "empty", "", REFUSED
    yield "blank", " \n\n", REFUSED
    yield "cut in half", good[: len(good) // 2], REFUSED
    yield "cut before the end", good.rstrip()[:-1], REFUSED
    yield "more behind it", good + "]", REFUSED
    yield "a number", "17", REFUSED
    yield "a text", '"masks"', REFUSED
    yield "null", "null", REFUSED
    yield "deep lists", "[" * 200_000 + "]" * 200_000, REFUSED
    yield "deep objects", '{"a":' * 100_000 + "1" + "}" * 100_000, REFUSED
    yield "deep, not closed", "[" * 1_000_000, REFUSED
    yield "UTF-16", good.encode("utf-16"), REFUSED
    yield "a NUL", "\0" + good, REFUSED
    yield "Latin-1", b'{"\xe9": {}}', REFUSED
    yield "gzip", b"\x1f\x8b\x08\0\0\0\0\0" + bytes(50), REFUSED
    yield "single quotes", good.replace('"', "'") if '"' in good else "['a']", REFUSED
    yield "a byte-order mark", b"\xef\xbb\xbf" + good.encode(), SAME
    yield "a long number", '{"a": ' + "9" * 5000 + "}", REFUSED
    yield "a comment", "// masks\n" + good, REFUSED


def _bad_sizes() -> Iterator[tuple[str, object, str]]:
    for name, size in {
        "zero": [0, 5], "negative": [-20, -26], "beyond 64 bits": [2**70, 1], "beyond 32 bits": [2**33, 2**33],
        "a line of a million": [1, 1_000_000], "a text": "20", "texts": ["20", "26"], "a Boolean": [True, 26], "one": [20],
        "three": [20, 26, 1], "null": None, "an object": {"h": 20}, "a broken number": [20.5, 26], "very large": [90000, 90000],
        "nested": [[20], [26]], "a long number": [10**400, 1],
    }.items():  # fmt: skip
        yield f"size {name}", size, REFUSED
    yield "size as 20.0", [float(n) for n in SHAPE], SAFE


def _bad_masks() -> Iterator[tuple[str, object, str]]:
    """A mask in a masks JSON or in COCO."""
    height, width = SHAPE
    for name, size, verdict in _bad_sizes():
        yield name, {"size": size, "counts": GOOD["counts"]}, verdict
    for name, counts in {
        "none": None, "a number": 5, "an object": {}, "empty text": "", "no end": "oooooooo", "too short": [5],
        "too long": [height * width, 1], "negative that cancel": [height * width + 5, -5], "Booleans": [True] * 520,
        "floats": [520.0], "texts": ["520"], "nested": [[520]], "beyond 64 bits": [2**64, 520 - 2**64],
        "a text beyond ASCII": "é" * 9, "half a character": "\ud800", "NUL": "\0\0", "negative differences": "111M4",
        "long digits": "o" * 50 + "0", "a million runs": [0] * 1_000_000,
    }.items():  # fmt: skip
        yield f"counts {name}", {"size": list(SHAPE), "counts": counts}, REFUSED
    yield "no size", {"counts": [520]}, REFUSED
    yield "no counts", {"size": list(SHAPE)}, REFUSED
    yield "a list", [], REFUSED
    yield "null", None, REFUSED
    yield "a number", 1, REFUSED
    yield "zeros between", {"size": list(SHAPE), "counts": [0, 0, 520]}, SAFE


def _names() -> Iterator[tuple[str, str]]:
    for name, task in {
        "a separator": "Edema/../../x", "the parent": "..", "hidden": ".Edema", "a backslash": "a\\b", "NUL": "Ede\0ma",
        "a line's end": "Ede\nma", "escape": "\x1b[31mEdema", "empty": "", "blank": " ", "half a character": "\ud800",
        "very long": "E" * 100_000, "absolute": "/tmp/x", "an option": "--output",
    }.items():  # fmt: skip
        yield f"task {name}", task


def _ids() -> Iterator[tuple[str, str, str]]:
    for name, image, verdict in (
        ("NUL", "a\0b", REFUSED), ("a line's end", "a\nb", REFUSED), ("escape", "\x1b]0;x\x07", REFUSED),
        ("empty", "", REFUSED), ("very long", "a" * 100_000, REFUSED), ("half a character", "\ud800", REFUSED),
        ("the parent", "../../../outside", SAFE), ("absolute", "/tmp/outside", SAFE), ("hidden", ".x", SAFE),
        ("dots", "..", SAFE), ("markup", "<script>alert(1)</script>", SAFE), ("a formula", "=1+1", SAFE),
    ):  # fmt: skip
        yield f"id {name}", image, verdict


def masks(world: Path) -> Iterator[Case]:
    good = text(world / "pred.json")
    content = json.loads(good)

    def case(name, change, verdict=REFUSED, command="score"):
        change = change if isinstance(change, (bytes, str)) else json.dumps(change)
        return Case("masks JSON", name, command, "pred.json", change, verdict)

    for name, change, verdict in _any_json(good):
        yield case(name, change, verdict)
    for name, mask, verdict in _bad_masks():
        yield case(name, content | {ONE: {"Edema": mask}}, verdict)
    for name, task in _names():
        yield case(name, content | {ONE: {task: GOOD}})
    for name, image, verdict in _ids():
        for command in ("score", "to_png", "subset"):
            yield case(name, content | {image: {"Edema": GOOD}}, verdict, command)
    yield case("both names of a task", content | {ONE: {"Lung Opacity": GOOD, "Airspace Opacity": GOOD}})
    yield case("a task twice", good.replace('"Cardiomegaly"', '"Edema"', 1))
    yield case("an image twice", good.replace(TWO, ONE))
    yield case("an image twice, in one line", json.dumps(content).replace(TWO, ONE))
    yield case("NaN", good.replace('"size": [20', '"size": [NaN', 1))
    yield case("Infinity", good.replace('"size": [20', '"size": [Infinity', 1))
    yield case("1e999", good.replace('"size": [20', '"size": [1e999', 1))
    yield case("no entry", content | {ONE: None})
    yield case("an entry as list", content | {ONE: []})
    yield case(
        "many large masks", {ONE: {f"t{n}": {"size": [8000, 8000], "counts": [64_000_000]} for n in range(40)}}, REFUSED
    )
    yield case("indented", json.dumps(content, indent=2), SAME)
    yield case("no image", "{\n}\n", REFUSED, "subset")


def outlines(world: Path) -> Iterator[Case]:
    good = text(world / "outlines.json")
    content = json.loads(good)

    def case(name, change, verdict=REFUSED):
        change = change if isinstance(change, (bytes, str)) else json.dumps(change)
        return Case("polygons JSON", name, "polygons", "outlines.json", change, verdict)

    def with_entry(entry):
        return content | {ONE: entry}

    for name, change, verdict in _any_json(good):
        yield case(name, change, verdict)
    for name, size, verdict in _bad_sizes():
        yield case(name, with_entry({"img_size": size, "Edema": []}), verdict)
    for name, task in _names():
        yield case(name, with_entry({"img_size": list(SHAPE), task: []}))
    for name, image, verdict in _ids():
        yield case(name, content | {image: content[ONE]}, verdict)
    for name, polygons in {
        "a number": 5, "null": None, "an object": {}, "a point": [[1, 2]], "texts": [[["a", "b"]]], "three": [[[1, 2, 3]]],
        "nulls": [[[None, None]]], "far away": [[[0, 0], [1e300, 0], [3, 3]]], "a long number": [[[10**400, 1], [2, 2]]],
        "nested": [[[[1, 2]]]], "a text": "polygon", "Infinity as text": [[["Infinity", 1]]],
    }.items():  # fmt: skip
        yield case(f"polygon {name}", with_entry({"img_size": list(SHAPE), "Edema": polygons}))
    yield case("no img_size", with_entry({"Edema": []}))
    yield case("an entry as list", with_entry([1, 2]))
    yield case(
        "both names of a task", with_entry({"img_size": list(SHAPE), "Lung Opacity": [], "Airspace Opacity": []})
    )
    yield case("NaN", good.replace("3, 3]", "NaN, 3]", 1))
    yield case("Infinity", good.replace("3, 3]", "-Infinity, 3]", 1))
    yield case(
        "a million points",
        with_entry({"img_size": list(SHAPE), "Edema": [[[n % 20, n % 26] for n in range(300_000)]]}),
        SAFE,
    )


def coco(world: Path) -> Iterator[Case]:
    good = text(world / "coco.json")

    def case(name, change, verdict=REFUSED):
        change = change if isinstance(change, (bytes, str)) else json.dumps(change)
        return Case("COCO", name, "coco", "coco.json", change, verdict)

    def changed(part, **values):
        content = json.loads(good)
        content[part][0] |= values
        return content

    for name, change, verdict in _any_json(good):
        yield case(name, change, verdict)
    for name, mask, verdict in _bad_masks():
        yield case(name, changed("annotations", segmentation=mask), verdict)
    for name, task in _names():
        yield case(name, changed("categories", name=task))
    for name, image, verdict in _ids():
        yield case(name, changed("images", name=image), verdict)
    for part in ("images", "annotations", "categories"):
        yield case(f"no {part}", {k: v for k, v in json.loads(good).items() if k != part})
        yield case(f"{part} as an object", json.loads(good) | {part: {}})
        yield case(f"{part} of numbers", json.loads(good) | {part: [1]})
        yield case(f"{part}: id as list", changed(part, **{"image_id" if part == "annotations" else "id": [1]}))
    for name, polygons in {
        "short": [[1, 2, 3, 4]], "odd": [[1, 2, 3, 4, 5, 6, 7]], "far": [[0, 0, 1e9, 0, 3, 3]], "texts": [["a"] * 6],
        "nested": [[[1, 2], [3, 4], [5, 6]]], "a box": [], "a long number": [[10**400, 0, 1, 1, 2, 2]],
    }.items():  # fmt: skip
        yield case(f"polygon {name}", changed("annotations", segmentation=polygons))
    yield case("unknown category", changed("annotations", category_id=99))
    yield case("unknown image", changed("annotations", image_id=99))
    yield case("category as list", changed("annotations", category_id=[1]))
    yield case("negative list as an object", changed("images", neg_category_ids={}))
    yield case("unknown negative", changed("images", neg_category_ids=[77]))
    yield case("height beyond", changed("images", height=10**12))
    yield case("width as text", changed("images", width="26"))
    yield case("two categories of one id", changed("categories", id=4))
    yield case("two categories of one name", changed("categories", name="Edema"))
    yield case("file name outside", changed("images", file_name="../../../etc/passwd"), SAME)
    yield case("url", changed("images", coco_url="http://localhost:9/x.png", flickr_url="http://localhost:9"), SAME)


def thresholds(world: Path) -> Iterator[Case]:
    for name, change, verdict in _any_json(text(world / "thresholds.txt")):
        yield Case("thresholds.txt", name, "predict", "thresholds.txt", change, verdict)
    for name, change in {
        "one": "[0.5]", "three": "[0.5, 0.5, 0.5]", "a text": '["0.5", 0.4]', "Booleans": "[true, false]", "NaN": "[NaN, 0.4]",
        "Infinity": "[Infinity, 0.4]", "above": "[1.5, 0.4]", "below": "[-0.5, 0.4]", "null": "[null, 0.4]",
        "an object": '{"Edema": 0.5, "Cardiomegaly": 0.4}', "nested": "[[0.5, 0.4]]", "1e999": "[1e999, 0.4]",
        "a huge list": "[" + "0.5," * 100_000 + "0.5]",
    }.items():  # fmt: skip
        yield Case("thresholds.txt", name, "predict", "thresholds.txt", change)
