"""The report page in a browser: how long it takes to open, and to show the next film.

    python -m bench.page report/index.html

Headless Chromium opens the file from disk (from a cold start of the tab, five times) and goes through the films by
key. Medians and the worst are printed; the limits are those of the project: open in 2 s, another film in 100 ms.
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path

from chexseg.errors import UsageError
from chexseg.runtime import cli

OPEN, SWITCH = 2000, 100  # ms


def build_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("page", type=Path, help="index.html of a report")
    parser.add_argument("--films", type=cli.positive_int, default=40, help="films to go through")
    parser.add_argument("--screenshot", type=Path, help="PNG of the reading room to write")
    return parser


def open_browser():
    from selenium import webdriver

    browser, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (browser and driver):
        raise UsageError("no Chromium with its driver here (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for one in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1600,1000",
    ):
        options.add_argument(one)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def shown(driver) -> int:
    return driver.execute_script("return performance.getEntriesByName('film-switch').length")


def wait_for(driver, count: int) -> None:
    end = time.monotonic() + 60
    while shown(driver) < count and time.monotonic() < end:
        time.sleep(0.01)


def report(name: str, times: list[float], limit: float) -> None:
    late = sum(one > limit for one in times)
    middle, worst = statistics.median(times), max(times)
    print(f"{name}: median {middle:.0f} ms, worst {worst:.0f} ms, {late} of {len(times)} over {limit} ms")


def main(args: argparse.Namespace) -> None:
    driver = open_browser()
    try:
        opened = []
        for _ in range(5):
            driver.get("about:blank")
            driver.get(args.page.resolve().as_uri())
            wait_for(driver, 1)
            script = "const one = performance.getEntriesByName('film-switch')[0]; return one.startTime + one.duration"
            opened.append(driver.execute_script(script))
        report("opening, until the first film is drawn", opened, OPEN)
        film = driver.find_element("id", "film")
        for number in range(args.films):
            film.send_keys("n")
            wait_for(driver, number + 2)
        script = "return performance.getEntriesByName('film-switch').slice(1).map(one => one.duration)"
        report("another film", driver.execute_script(script), SWITCH)
        if args.screenshot:
            driver.execute_script("document.getElementById('room').scrollIntoView()")
            time.sleep(0.5)
            driver.save_screenshot(str(args.screenshot))
    finally:
        driver.quit()


if __name__ == "__main__":
    cli.run(main, build_parser)
