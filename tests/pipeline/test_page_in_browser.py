"""The report page in a real browser: headless Chromium opens it from disk, clicks, types and watches the canvas.

Skipped where there is no Chromium with its driver (Debian: chromium, chromium-driver) or no selenium.
"""

import json
import shutil
import time

import numpy as np
import pytest

from chexseg.data import rle
from chexseg.evaluation import comparison, films, outlines, page, records

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with its driver on this machine")
TASKS, SIZE = ("Edema", "Cardiomegaly", "Fracture"), (120, 100)
EVIL = "patient6_</script><script>alert(1)</script>"
IMAGES = [*(f"patient{i}_study1_view1_frontal" for i in range(1, 6)), EVIL]


def box(top, left, bottom, right):
    mask = np.zeros(SIZE, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def masks(*boxes):
    return dict(zip(TASKS, rle.encode(np.stack([box(*one) for one in boxes])), strict=True))


NOTHING = (0, 0, 0, 0)
TRUTH = {image: masks((20, 10, 60, 50), NOTHING, NOTHING) for image in IMAGES[:4]}
TRUTH |= {image: masks(NOTHING, (40, 30, 100, 90), NOTHING) for image in IMAGES[4:]}
# Of Edema: IoU 1, 0.5, 0.25, missed; then two false masks of it, and Cardiomegaly as it is.
FULL = {IMAGES[i]: masks((20, 10, bottom, 50), NOTHING, NOTHING) for i, bottom in enumerate((60, 40, 30, 20))}
FULL |= {image: masks((0, 0, 10, 10), (40, 30, 100, 90), NOTHING) for image in IMAGES[4:]}


class Maps:
    tasks, network_size = TASKS, (8, 8)

    def __contains__(self, image):
        return True

    def __getitem__(self, image):
        most = 1.0 if image == IMAGES[0] else 0.5
        return {"maps": np.linspace(0, most, 3 * 16, dtype=np.float32).reshape(3, 4, 4)}


def film(image):
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return ((rows + columns + 20 * IMAGES.index(image)) % 200 + 20).astype(np.uint8)


def write(folder, **more):
    methods = {"weak_irnet": dict(TRUTH), "full": FULL}
    sources = [
        films.Source("expert", "Expert", "expert", TRUTH),
        films.Source("weak_irnet", "Weak (IRNet)", "method", methods["weak_irnet"]),
        films.Source("full", "Fully supervised", "method", FULL),
        films.Source("pseudo", "Pseudo masks", "pseudo", FULL),
    ]
    found = comparison.compare(TRUTH, methods, TASKS, num_replicates=20)
    run = page.Run(found, folder / "t.json", {name: folder / name for name in methods}, records.History(), {}, **more)
    return page.write_report(folder, run, films.Room(IMAGES, TASKS, sources, film, Maps()))


class Page:
    """The page in the browser, as its reader uses it."""

    def __init__(self, driver, path):
        self.driver = driver
        driver.get_log("browser")
        driver.get(f"file://{path}")
        self.wait("return performance.getEntriesByName('film-switch').length > 0")

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, script, *arguments):
        end = time.monotonic() + 20
        while not self.run(script, *arguments):
            assert time.monotonic() < end, script
            time.sleep(0.02)

    def find(self, id):
        return self.driver.find_element(By.ID, id)

    def click(self, id):
        self.run("arguments[0].click()", self.find(id))
        return self.picture()

    def choose(self, id, value):
        self.run(
            "const e = arguments[0]; e.value = arguments[1]; e.dispatchEvent(new Event('change'))",
            self.find(id),
            str(value),
        )
        return self.picture()

    def press(self, *keys):
        for key in keys:
            self.find("film").send_keys(key)
        return self.picture()

    def picture(self):
        """What the canvas shows, once it was painted."""
        script = "const done = arguments[0]; setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(() => "
        script += "done(document.getElementById('film').toDataURL()))), 60)"
        return self.driver.execute_async_script(script)

    def listed(self):
        return [one.text for one in self.driver.find_elements(By.CSS_SELECTOR, "#list .id")]

    def values(self):
        return [one.text for one in self.driver.find_elements(By.CSS_SELECTOR, "#list .value")]

    def caption(self):
        return self.find("caption").text

    def errors(self):
        return [line for line in self.driver.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for one in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,900"):
        options.add_argument(one)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("page")
    write(made)
    return made


@pytest.fixture
def opened(driver, folder):
    shown = Page(driver, folder / "index.html")
    yield shown
    assert shown.errors() == []


def test_it_opens_from_disk_and_fetches_nothing(opened):
    """An id that would end a script is a word like any other; how fast it is, is printed and held by bench/page.py."""
    assert opened.driver.title == "CheXseg report" and opened.listed() == IMAGES
    assert (
        opened.run("return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length")
        == 0
    )
    ready = opened.run("return performance.getEntriesByName('room-ready')[0].startTime")
    print(f"reading room ready after {ready:.0f} ms")
    images = "return [...document.images].every(one => one.complete && one.naturalWidth > 0)"
    opened.wait(images)


def test_keys_go_through_the_films(opened):
    first = opened.picture()
    assert IMAGES[0] in opened.caption() and opened.find("place").text == "1 / 6"
    second = opened.press(Keys.ARROW_RIGHT)
    assert IMAGES[1] in opened.caption() and second != first
    assert opened.press("p") == first and opened.press(Keys.ARROW_LEFT) == first  # the first film has none before it
    opened.press(Keys.END)
    assert EVIL in opened.caption() and opened.find("place").text == "6 / 6"
    opened.press(Keys.HOME, *[Keys.ARROW_RIGHT] * 5)
    times = opened.run("return performance.getEntriesByName('film-switch').map(one => one.duration)")
    print(f"films switched in {', '.join(f'{one:.0f}' for one in times)} ms")
    assert len(times) >= 5


def test_outlines_are_switched_one_by_one(opened):
    shown = opened.picture()
    without = opened.press("1")
    assert without != shown and not opened.find("source-0").is_selected()
    assert opened.click("source-0") == shown
    assert opened.press("3") not in (shown, without)
    opened.press("3")
    bare = opened.press("o")
    assert opened.press("1") == bare  # no outline at all
    opened.press("1", "o")
    assert opened.press("a") != shown and opened.press("a", "l") != shown
    side = opened.press("l", "s")
    assert side != shown and opened.find("side").is_selected()


def test_films_are_filtered_and_sorted(opened):
    opened.choose("finding", 0)
    opened.choose("show", "marked")
    assert opened.listed() == IMAGES[:4] and opened.find("count").text == "4 of 6 films"
    opened.choose("sort", 2)
    assert opened.listed() == IMAGES[3::-1] and opened.values() == ["missed", "0.25", "0.50", "1.00"]
    assert IMAGES[3] in opened.caption()  # the worst first
    opened.click("descending")
    assert opened.listed() == IMAGES[:4]
    opened.choose("show", "false")
    assert opened.listed() == IMAGES[4:] and opened.values() == ["false", "false"]
    opened.choose("show", "missed")
    assert opened.listed() == [IMAGES[3]]
    opened.choose("show", "every")
    opened.choose("sort", "apart")
    assert opened.values()[:2] == ["1.00", "1.00"]
    opened.choose("finding", 2)
    opened.choose("show", "anyone")
    assert opened.listed() == [] and "No film" in opened.caption()
    opened.press("f")  # back to all findings
    assert len(opened.listed()) == 6 and opened.find("finding").get_attribute("value") == "-1"


def test_areas_maps_and_windows(opened):
    opened.choose("finding", 0)
    shown = opened.press(Keys.ARROW_RIGHT)
    areas = opened.choose("areas", 2)
    assert areas != shown and "right 50%, missed 50%, false 0%" in opened.caption()
    opened.choose("areas", -1)
    assert opened.picture() == shown
    heat = opened.press("m")
    assert heat != shown and "the largest of all films" in opened.find("map-text").text
    assert opened.click("stretch") != heat
    opened.click("stretch")
    assert opened.press("m") == shown
    opened.choose("finding", -1)
    assert not opened.find("map").is_enabled() and opened.find("legend").text.count("\n") == 2
    opened.choose("finding", 0)
    opened.run("const e = document.getElementById('level'); e.value = 60; e.dispatchEvent(new Event('input'))")
    assert opened.picture() != shown and opened.find("window-text").text == "level 60, width 255"
    assert opened.press("i") != shown
    larger = opened.press("r", "+", "+")
    assert larger != shown and opened.find("zoom-text").text == "156%"
    assert opened.press("r") == shown


def test_keys_do_not_disturb_a_slider_or_a_select(opened):
    opened.find("level").send_keys(Keys.ARROW_RIGHT)
    opened.find("finding").send_keys("e")
    assert opened.find("place").text == "1 / 6" and opened.find("areas").get_attribute("value") == "-1"


def test_the_table_tells_what_each_source_says(opened):
    opened.press(Keys.END)
    rows = [[one.text for one in row.find_elements(By.CSS_SELECTOR, "th, td")] for row in
            opened.find("verdicts").find_elements(By.TAG_NAME, "tr")]  # fmt: skip
    assert rows == [
        ["Edema", "–", "–", "false", "false"], ["Cardiomegaly", "marked", "1.00", "1.00", "1.00"],
    ]  # fmt: skip
    opened.run("document.querySelectorAll('#verdicts button')[1].click()")
    assert opened.find("finding").get_attribute("value") == "1"


def test_examples_of_pseudo_masks_lead_into_the_room(opened):
    link = opened.driver.find_elements(By.CSS_SELECTOR, ".examples a")[1]
    assert "worst: IoU 0.25" in link.text
    opened.run("arguments[0].scrollIntoView(); arguments[0].click()", link)
    opened.picture()
    assert IMAGES[2] in opened.caption() and opened.find("finding").get_attribute("value") == "0"
    assert [opened.find(f"source-{i}").is_selected() for i in range(4)] == [True, False, False, True]
    drawn = "const c = arguments[0]; return c.getContext('2d').getImageData(0, 0, 200, 200).data.some(v => v > 0)"
    opened.run("arguments[0].scrollIntoView()", link)
    opened.wait(drawn, link.find_element(By.TAG_NAME, "canvas"))


def test_what_is_drawn_is_the_mask(opened):
    """Every pixel's centre, for random masks with holes: decoded and filled by the page."""
    rng = np.random.default_rng(0)
    stack = rng.random((4, 13, 9)) < np.array([0.1, 0.4, 0.7, 0.95])[:, None, None]
    texts = [outlines.encode(outlines.trace(mask, 0)) for mask in stack]
    script = """
      const context = document.createElement("canvas").getContext("2d"), [texts, height, width] = arguments;
      const row = (length, value) => Array.from({length}, (_, i) => value(i));
      const inside = (path, x, y) => context.isPointInPath(path, x + 0.5, y + 0.5, "evenodd");
      const filled = (path) => row(height, (y) => row(width, (x) => inside(path, x, y)));
      return JSON.stringify(texts.map((text) => filled(decodeOutline(text).path)));"""
    assert np.array_equal(json.loads(opened.run(script, texts, 13, 9)), stack)


def test_further_pages_and_films_without_an_expert(driver, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "FILMS_PER_PAGE", 4)
    write(tmp_path)
    shown = Page(driver, tmp_path / "index.html")
    shown.choose("finding", 1)
    shown.run("[...document.querySelectorAll('#list button')].at(-1).click()")
    shown.wait(
        "return location.pathname.endsWith('index-2.html') && performance.getEntriesByName('film-switch').length > 0"
    )
    shown.picture()
    assert EVIL in shown.caption() and shown.find("finding").get_attribute("value") == "1"
    room = films.Room(IMAGES, TASKS, [films.Source("net", "CheXseg", "method", FULL)], film)
    page.write_reading_room(tmp_path, room, name="own.html")
    own = Page(driver, tmp_path / "own.html")
    before = own.picture()
    assert own.press("1") != before and own.press(Keys.ARROW_RIGHT) != before
    assert own.errors() == []
