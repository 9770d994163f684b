"""The HTML page in a real browser, at the width of a phone and of a desk."""

import shutil
from collections.abc import Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tables.write import RenderedPaths

pytestmark = pytest.mark.browser

CLIPPED = """
return [...document.querySelectorAll('th, td, td > div, dd, p, li')]
  .filter(element => element.scrollWidth > element.clientWidth + 1
    && element.clientWidth > 1 && getComputedStyle(element).display !== 'inline')
  .map(element => element.textContent.trim().slice(0, 60))
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    driver = shutil.which("chromedriver")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if driver is None or binary is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


def resize(browser: webdriver.Chrome, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_horizontal_scrolling_and_nothing_clipped(
    browser: webdriver.Chrome, rendered: RenderedPaths, width: int
) -> None:
    resize(browser, width)
    browser.get(rendered.html.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(CLIPPED) == []


def test_dark_mode_changes_the_ground(browser: webdriver.Chrome, rendered: RenderedPaths) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get(rendered.html.as_uri())
        script = "return getComputedStyle(document.body).backgroundColor"
        grounds.append(browser.execute_script(script))
    assert grounds == ["rgb(251, 251, 250)", "rgb(20, 23, 26)"]
