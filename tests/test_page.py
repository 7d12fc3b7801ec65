"""The page of a report in a browser: it renders, sorts, reads out, and no name in it does anything."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic import layers_like, write_run

from bitflip import report
from bitflip.report import page

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
HOSTILE = "\"><script>document.title='owned'</script><img src=x onerror=document.title='owned'>&amp;'"

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver, as CI has")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless browser of its own."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    quiet = ("background-networking", "component-update", "sync", "gpu", "quic", "dev-shm-usage")
    for flag in ("--headless=new", "--no-sandbox", "--no-first-run", "--window-size=1100,900"):
        options.add_argument(flag)
    for name in quiet:
        options.add_argument(f"--disable-{name}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def opened(browser: Any, folder: Path, **run: Any) -> Any:
    """Open the page of a run from the disk."""
    path = folder / "page.html"
    path.write_text(page.html(report.read(write_run(folder, **run))), encoding="utf-8")
    browser.get(path.as_uri())
    return browser


def column(browser: Any, number: int, table: str = "layers") -> list[str]:
    cells = f"#{table} tbody tr td:nth-child({number})"
    script = "return [...document.querySelectorAll(arguments[0])].map(cell => cell.dataset.v ?? cell.textContent)"
    found: list[str] = browser.execute_script(script, cells)
    return found


def problems(browser: Any) -> list[Any]:
    found: list[Any] = browser.get_log("browser")
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
def test_it_renders_within_the_screen(browser: Any, tmp_path: Path, scheme: str, width: int) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        opened(browser, tmp_path, layers=layers_like(24))
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        boxes = "return [...document.querySelectorAll('svg.plot')].map(svg => svg.getBoundingClientRect().width)"
        widths = browser.execute_script(boxes)
        assert len(widths) == 3
        assert all(width * 0.5 < box < width for box in widths)
        assert len(column(browser, 1)) == 24
        style = "return getComputedStyle(document.body)"
        paper, ink = (browser.execute_script(f"{style}.{name}") for name in ("backgroundColor", "color"))
        assert contrast(paper, ink) > 7
        assert (luminance(paper) > 0.5) == (scheme == "light")
        assert problems(browser) == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("width", [800, 1200])
@pytest.mark.parametrize("count", [7, 24, 163])
def test_no_column_is_cut_off(browser: Any, tmp_path: Path, count: int, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        opened(browser, tmp_path, layers=layers_like(count))
        edges = "return ['#layers', '#layers th:last-child'].map(e => document.querySelector(e))"
        edges += ".map(e => e.getBoundingClientRect().right)"
        room = browser.execute_script("return document.querySelector('main').getBoundingClientRect().right")
        assert max(browser.execute_script(edges)) <= room
        names = "return [...document.querySelectorAll('.plot .name')].map(e => e.getBoundingClientRect().left)"
        assert min(browser.execute_script(names)) >= 0
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)``, as WCAG defines it."""
    parts = [int(part) / 255 for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, two: str) -> float:
    dark, light = sorted(luminance(colour) + 0.05 for colour in (one, two))
    return light / dark


def test_a_table_sorts_by_click_and_by_key(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, tmp_path, layers=layers_like(24))
    rates = [float(text) for text in column(browser, 4)]
    header = browser.find_element("css selector", "#layers th:nth-child(4)")
    button = header.find_element("css selector", "button")
    button.click()
    assert [float(text) for text in column(browser, 4)] == sorted(rates, reverse=True)
    assert header.get_attribute("aria-sort") == "descending"
    button.send_keys(Keys.ENTER)
    assert [float(text) for text in column(browser, 4)] == sorted(rates)
    assert header.get_attribute("aria-sort") == "ascending"
    browser.find_element("css selector", "#layers th:nth-child(2) button").click()
    assert column(browser, 2) == [f"features.{i}" for i in range(24)]  # 2 before 10
    assert header.get_attribute("aria-sort") == "none"
    assert problems(browser) == []


def test_plots_say_what_is_under_the_pointer(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    opened(browser, tmp_path, layers=layers_like(7))
    rows = {cells[0]: cells for cells in zip(column(browser, 1), column(browser, 2), column(browser, 6), strict=True)}
    for plot in ("by-layer", "by-bit", "by-both"):
        element = browser.find_element("id", plot)
        browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        ActionChains(browser).move_to_element_with_offset(element, 8, 0).perform()  # not between two bits
        tip = browser.find_element("id", "tip").text
        assert " of " in tip
        assert ("bit 16" in tip) == (plot != "by-layer")
        if plot != "by-bit":
            assert f"#3 MaxPool2d (path {rows['3'][1]})" in tip
    assert problems(browser) == []


def test_plots_can_be_read_with_the_keyboard(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, tmp_path, layers=layers_like(7))
    plot = browser.find_element("id", "by-layer")
    plot.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    aloud = browser.execute_script("return document.getElementById('aloud').textContent")
    assert aloud.startswith("#1 BatchNorm2d (path features.1)")
    assert plot.get_attribute("aria-label").startswith("Misclassification rate of 7 layers")
    plot.send_keys(Keys.ENTER)
    assert browser.find_element("css selector", "tr.found .path").text == "features.1"
    assert problems(browser) == []


def test_lines_of_a_deep_network_lead_to_their_layers(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, tmp_path, layers=layers_like(163))
    plot = browser.find_element("id", "by-layer")
    plot.send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    (name,) = browser.execute_script("return [document.querySelectorAll('#by-layer .name')[1].textContent]")
    aloud = "return document.getElementById('aloud').textContent"
    assert browser.execute_script(aloud).startswith(f"{name}\n")
    plot.send_keys(Keys.ENTER)
    path = browser.find_element("css selector", "tr.found .path").text
    assert name.endswith(f"(path {path})")
    plot.send_keys(*[Keys.ARROW_DOWN] * 40)  # to the last line, a block
    assert re.fullmatch(
        r"#153 to 162 \(10 layers\): mean [\d.]+ %, from [\d.]+ to [\d.]+ %", browser.execute_script(aloud)
    )
    assert problems(browser) == []


def test_layer_types_can_be_hidden(browser: Any, tmp_path: Path) -> None:
    opened(browser, tmp_path, layers=layers_like(10))
    button = browser.find_element("css selector", ".legend button")
    button.click()
    visible = browser.execute_script(
        "return [...document.querySelectorAll('#layers tbody tr')].map(r => !!r.offsetParent)"
    )
    assert visible == [i % 5 != 0 for i in range(10)]
    assert button.get_attribute("aria-pressed") == "false"


def test_a_name_does_nothing(browser: Any, tmp_path: Path) -> None:
    layers = [(f"{HOSTILE}{i}", f"{HOSTILE}{i}") for i in range(3)]
    (tmp_path / "net_digits_1_detailed.txt").write_text(
        f"Layer: 0\nBatch: 0\nPosition: {HOSTILE}\nOriginal value:  0.5\nFlip bit: 1\n"
        f"Error value:     8e30\nLabel:        {HOSTILE}\nModel output: 0\n\n\n"
    )
    opened(browser, tmp_path, layers=layers, dataset=HOSTILE, weights=HOSTILE)
    browser.find_element("id", "by-layer").click()
    assert "owned" not in browser.title.replace(HOSTILE, "")
    assert len(browser.find_elements("css selector", "script")) == 2
    assert not browser.find_elements("css selector", "img")
    assert column(browser, 2) == [path for _, path in layers]
    assert HOSTILE in browser.find_element("id", "faults").text
    assert problems(browser) == []


def test_without_scripts_everything_is_still_there(browser: Any, tmp_path: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened(browser, tmp_path, layers=layers_like(7))
        assert len(browser.find_elements("css selector", "#layers tbody tr")) == 7
        assert len(browser.find_elements("css selector", "#by-layer .at")) == 7
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
