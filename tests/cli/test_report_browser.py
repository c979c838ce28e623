"""The page in a browser: from disk, without a network, used by its controls; skipped where there is no Chromium."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import axe_core_python
import pytest
from support.reports import HOSTILE, SHARP, write_run
from support.tiny import dis, trained

from dis_cli.events import Note

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs Debian's packages chromium and chromium-driver"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(
        tmp_path_factory.mktemp("browser") / "run",
        "train.steps=6",
        "train.preview_every=2",
        "train.preview_images=12",
        "train.save_every=2",
        "train.keep_last=2",
        "sample.steps=2",
    )


def opened(browser: Any, path: Path, width: int = 1400) -> None:
    for log in ("browser", "performance"):
        browser.get_log(log)
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())


def requests(browser: Any) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith("data:")]


def shown(browser: Any) -> str:
    return browser.execute_script("return document.querySelector('.frame:not([hidden]) img').src")


def test_the_page_works_from_disk(browser: Any, run: Path, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    path = tmp_path / "report.html"
    assert dis("report", run, "--full", "--out", path, "-q") == 0
    opened(browser, path)

    # Another picture, and at its step the file of the run.
    last = shown(browser)
    slider = browser.find_element(By.ID, "step")
    slider.send_keys(Keys.ARROW_LEFT)
    assert browser.find_element(By.ID, "shown").text == "4"
    assert shown(browser) != last
    picture = base64.b64decode(shown(browser).partition(",")[2])
    assert picture == (run / "samples" / "preview-00000004.png").read_bytes()

    drawn = browser.find_element(By.CSS_SELECTOR, "#loss .drawn:not([hidden])")
    assert (drawn.get_attribute("data-axis"), drawn.get_attribute("data-scale")) == ("steps", "linear")
    browser.find_element(By.CSS_SELECTOR, "input[value=flops]").click()
    browser.find_element(By.CSS_SELECTOR, "input[value=log]").click()
    (drawn,) = browser.find_elements(By.CSS_SELECTOR, "#loss .drawn:not([hidden])")
    assert (drawn.get_attribute("data-axis"), drawn.get_attribute("data-scale")) == ("flops", "log")
    assert "training FLOPs" in drawn.text

    # What is copied, run in a shell, makes the same bytes.
    browser.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    button = browser.find_element(By.CSS_SELECTOR, ".frame:not([hidden]) .copy")
    button.click()
    copied = browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert copied.startswith("dis sample --ckpt ")
    path_variable = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path_variable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["sh", "-c", copied], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "preview-00000004" / "grid.png").read_bytes() == picture

    # The checkpoint of the first preview is gone.
    slider.send_keys(Keys.HOME)
    frame = browser.find_element(By.CSS_SELECTOR, ".frame:not([hidden])")
    assert "The checkpoint of step 2 is gone; train.keep_every" in frame.text

    assert browser.get_log("browser") == []
    assert requests(browser) == [path.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible_at_every_width(scheme: str, browser: Any, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"run{depth}", depth=depth) for depth in (3, 5)]
    pages = {"one": runs[:1], "two": runs}
    axe = next(Path(axe_core_python.__file__).parent.rglob("axe*.js")).read_text()
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    for name, folders in pages.items():
        assert dis("report", *folders, "--out", tmp_path / f"{name}.html", "-q") == 0
        for width in (390, 800, 1400):
            opened(browser, tmp_path / f"{name}.html", width)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            assert browser.get_log("browser") == []
        browser.execute_script(axe)
        faults = browser.execute_async_script(
            "const done = arguments[0]; axe.run().then(found => done([found.passes.length, found.violations.map("
            "fault => [fault.id, fault.impact, fault.nodes.map(node => node.html.slice(0, 120))])]))"
        )
        assert faults[0] > 20
        assert [fault for fault in faults[1] if fault[1] in ("serious", "critical")] == []


def test_hostile_names_do_nothing(browser: Any, tmp_path: Path) -> None:
    notes = tuple(Note(message=name, level="warning") for name in HOSTILE)
    run = write_run(tmp_path / f"a{SHARP[:60].replace('/', '-')}", events=notes, steps=10)
    facts = json.loads((run / "run.json").read_text())
    facts["config"]["description"] = facts["device"] = SHARP
    (run / "run.json").write_text(json.dumps(facts))
    assert dis("report", run, "--out", tmp_path / "report.html", "-q") == 0
    opened(browser, tmp_path / "report.html")
    assert browser.title == run.name
    assert browser.execute_script("return document.scripts.length") == 1
    said = browser.execute_script("return [...document.querySelectorAll('#notes li')].map(one => one.textContent)")
    assert said == [f"warning: {name}" for name in HOSTILE]
    assert browser.get_log("browser") == []
    assert requests(browser) == [(tmp_path / "report.html").as_uri()]


def test_nothing_written_into_the_page_would_run(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=2, every=1)
    assert dis("report", run, "--out", tmp_path / "report.html", "-q") == 0
    text = (tmp_path / "report.html").read_text().replace("</main>", f"{SHARP}</main>")
    (tmp_path / "report.html").write_text(text)
    opened(browser, tmp_path / "report.html")
    assert browser.title == "run"
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))
