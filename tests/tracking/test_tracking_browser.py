"""What a newcomer sees: `mlflow ui` in headless Chromium."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (shutil.which("chromedriver") and shutil.which("chromium")),
        reason="needs chromium and chromedriver",
    ),
]
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--window-size=1500,1000",
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for option in (*OPTIONS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(option)
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        # For looking at afterwards: `pytest --basetemp` keeps the last pages.
        driver.save_screenshot(str(tmp_path / "last_page.png"))
        driver.quit()


def wait_for(browser: Any, *texts: str) -> str:
    """The page's text once it shows all of `texts`."""
    shown = ""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        shown = browser.execute_script("return document.body ? document.body.innerText : ''")
        if all(text in shown for text in texts):
            return str(shown)
        time.sleep(0.3)
    pytest.fail(f"the page {browser.current_url} never showed {texts}:\n{shown[:2000]}")


def wait_for_absence(browser: Any, text: str) -> str:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        shown = browser.execute_script("return document.body.innerText")
        if text not in shown:
            return str(shown)
        time.sleep(0.3)
    pytest.fail(f"the page {browser.current_url} still shows {text!r}")


def click(browser: Any, text: str) -> None:
    """Click the first visible thing with exactly this text, as a reader would."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for element in browser.find_elements("xpath", f"//*[normalize-space(text())='{text}']"):
            try:
                element.click()
                return
            except Exception:  # covered, moved, or not drawn yet: look again
                continue
        time.sleep(0.3)
    pytest.fail(f"nothing to click on says {text!r} on {browser.current_url}")


def run_ids(address: str) -> dict[str, str]:
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/runs/search",
        data=json.dumps({"experiment_ids": ["1"]}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        runs = json.load(answer)["runs"]
    return {run["info"]["run_name"]: run["info"]["run_id"] for run in runs}


def opens_on_runs_by_tag() -> bool:
    from importlib.metadata import version

    major, minor = (int(part) for part in version("mlflow").split(".")[:2])
    return (major, minor) < (3, 10)


def test_a_newcomer_gets_from_the_start_page_to_the_runs(browser: Any, address: str) -> None:
    browser.get(address)
    wait_for(browser, "digits")
    if not opens_on_runs_by_tag():
        # From 3.10 on the reader's own switch decides, which starts at GenAI.
        click(browser, "Model training")
    click(browser, "digits")
    wait_for(browser, "OFQ (StatsQ + QKR + CGA)", "LSQ", "5 matching runs")
    assert "/experiments/1/runs" in browser.current_url


def test_the_description_of_the_experiment_leads_to_the_runs(browser: Any, address: str) -> None:
    browser.get(f"{address}/#/experiments/1")
    wait_for(browser, "Open the training runs")
    (link,) = browser.find_elements("link text", "Open the training runs")
    browser.get(link.get_attribute("href"))
    wait_for(browser, "OFQ (StatsQ + QKR + CGA)", "LSQ", "5 matching runs")


def test_a_row_shows_its_rendered_row_and_its_children(browser: Any, address: str) -> None:
    row = run_ids(address)["OFQ (StatsQ + QKR + CGA)"]
    browser.get(f"{address}/#/experiments/1/runs/{row}")
    wait_for(browser, "| ofq | 0.8 |", "w2a2.top1_mean", "ofq-w2a2-s0", "ofq-w2a2-s1")
    browser.get(f"{address}/#/experiments/1/runs/{row}/artifacts")
    wait_for(browser, "table")


def test_a_seed_shows_settings_metrics_curves_and_files(browser: Any, address: str) -> None:
    child = f"{address}/#/experiments/1/runs/{run_ids(address)['ofq-w2a2-s0']}"
    browser.get(child)
    shown = wait_for(browser, "oscillation.share", "quant.wbits", "Parent run", "git.commit")
    assert "top1" in shown.splitlines()
    browser.get(f"{child}/model-metrics")
    wait_for(browser, "ofq-w2a2-s0 (history/lr)")
    browser.get(f"{child}/artifacts")
    wait_for(browser, "metrics.json", "history.csv", "settings.yaml")


def test_two_seeds_can_be_compared(browser: Any, address: str) -> None:
    ids = run_ids(address)
    pair = json.dumps([ids["ofq-w2a2-s0"], ids["ofq-w2a2-s1"]])
    browser.get(f'{address}/#/compare-runs?runs={pair}&experiments=["1"]')
    wait_for(browser, "Comparing 2 Runs", "ofq-w2a2-s0", "ofq-w2a2-s1", "quant.wbits", "cost.macs")
    click(browser, "Show diff only")  # the first one is that of the parameters
    shown = wait_for_absence(browser, "quant.wbits")
    assert "seed\t0\t1" in shown
