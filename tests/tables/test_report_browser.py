"""The report in a real browser, at the width of a phone and of a desk."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tables.figures import render_figures
from tables.report import write_report
from tables.runs import read_study
from tables.write import RenderedPaths
from tests.tables.test_report import AGREEMENT

pytestmark = pytest.mark.browser

# Elements that stick out of the page, unless they lie in a container that scrolls.
STICKING_OUT = """
const width = document.documentElement.clientWidth
return [...document.querySelectorAll('body *')]
  .filter(element => !element.closest('.scroll') || element.classList.contains('scroll'))
  .filter(element => element.getBoundingClientRect().right > width + 1)
  .map(element => element.tagName + ' ' + element.textContent.trim().slice(0, 60))
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    driver = shutil.which("chromedriver")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if driver is None or binary is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def report(rendered: RenderedPaths) -> Path:
    out = rendered.markdown.parent
    study = read_study(out.parent / "results" / "synthetic")
    tables = [("Component ablation", rendered.markdown, [rendered.latex, rendered.csv])]
    return write_report(out, study, tables, render_figures(study, out), AGREEMENT * 5)


@pytest.mark.parametrize("width", [360, 1280])
def test_fits_the_screen_and_shows_every_figure(
    browser: webdriver.Chrome, report: Path, width: int
) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(report.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(STICKING_OUT) == []
    images = browser.execute_script(
        "return [...document.images].map(image => [image.naturalWidth, image.naturalHeight])"
    )
    assert images
    assert all(wide > 0 and high > 0 for wide, high in images)
    assert browser.get_log("browser") == []


def test_every_link_leads_to_a_file_or_a_place_on_the_page(
    browser: webdriver.Chrome, report: Path
) -> None:
    browser.get(report.as_uri())
    broken = browser.execute_script(
        "return [...document.links].filter(link => link.hash"
        " && !document.getElementById(decodeURIComponent(link.hash.slice(1))))"
        ".map(link => link.href)"
    )
    assert broken == []
    targets = browser.execute_script(
        "return [...document.links].filter(link => !link.hash)"
        ".map(link => link.getAttribute('href'))"
    )
    assert targets
    for target in targets:
        assert (report.parent / target).exists(), target


def test_dark_mode_changes_the_ground(browser: webdriver.Chrome, report: Path) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get(report.as_uri())
        script = "return getComputedStyle(document.body).backgroundColor"
        grounds.append(browser.execute_script(script))
    assert len(set(grounds)) == 2
