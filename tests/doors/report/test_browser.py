"""In a real browser, a report shows all that it holds: no error, no request, nothing cut off, dark if it should be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

from reprune.doors.report.write import report
from tests.doors.report.records import MODEL, RUNGS, cell, run_record, study_record

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="chromium and chromedriver are not installed")

Show = Callable[..., Any]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium that keeps its log and its network requests."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    profile = tmp_path_factory.mktemp("profile")
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports on a run and on a study, with the long names that real ones have."""
    folder = tmp_path_factory.mktemp("reports")
    name = "organization-of-some-length/a-model-with-a-rather-long-name-270m-q4_k_m-a5fd3b62230aa5ec"
    records = {"reprune.json": run_record(12, model={"name": name, **MODEL})}
    cells = [cell(pruner, rung, count=6, zero_shot=True) for pruner in ("wanda", "sparsegpt") for rung in RUNGS]
    cells += [cell("wanda", rung, count=6, only="mlp", name=f"mlp-{rung}") for rung in ("LR", "BR")]
    failed = {"status": "failed", "error": f"NumericalError: {name} {'is too long ' * 20}"}
    cells.append(cell("magnitude", "LR", name="m", **failed))
    records["study.json"] = study_record(cells, zero_shot=True)
    found = {}
    for file, record in records.items():
        place = folder / Path(file).stem
        place.mkdir()
        (place / file).write_text(json.dumps(record))
        found[place.name] = report(place)
    return found


@pytest.fixture
def show(browser: Any) -> Show:
    """A function that shows a file at a width, in a colour scheme and for a medium."""

    def shown(file: Path, width: int = 1400, scheme: str = "light", media: str = "screen") -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        preferred = {"media": media, "features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", preferred)
        for log in ("browser", "performance"):
            browser.get_log(log)  # clears the log
        browser.get(file.as_uri())
        complete = "return document.readyState === 'complete'"
        WebDriverWait(browser, 60).until(lambda it: it.execute_script(complete))

    return shown


def requests(browser: Any) -> list[str]:
    """The URLs that the page has requested since it was shown."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    found = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    return [url for url in found if not url.startswith(("chrome", "devtools"))]


both = pytest.mark.parametrize("which", ["reprune", "study"])


@both
def test_it_asks_for_nothing_and_logs_no_error(which: str, browser: Any, show: Show, files: dict[str, Path]) -> None:
    show(files[which])
    assert [url for url in requests(browser) if not url.startswith("data:")] == [files[which].as_uri()]
    assert browser.get_log("browser") == []


def test_the_browser_would_tell(browser: Any, show: Show, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        '<!doctype html><body style="margin:0"><div style="width:3000px">wide</div><img src="http://127.0.0.1:9/x.png">'
        "<script>undefinedName()</script>"
    )
    show(page, 400)
    assert "http://127.0.0.1:9/x.png" in requests(browser)
    assert [entry for entry in browser.get_log("browser") if "undefinedName" in entry["message"]]
    assert browser.execute_script(_OVERFLOW)


@both
def test_every_plot_is_there_and_its_numbers_behind_it(
    which: str, browser: Any, show: Show, files: dict[str, Path]
) -> None:
    show(files[which])
    figures = browser.execute_script(
        """return [...document.querySelectorAll("figure")].map(figure => {
          const svg = figure.querySelector("svg"), table = figure.querySelector("table");
          const box = svg.getBoundingClientRect();
          const drawn = [...svg.querySelectorAll("path,use,text")].filter(one => one.getBoundingClientRect().width > 0);
          const before = table.checkVisibility();
          figure.querySelector("summary").click();
          return {label: svg.getAttribute("aria-label"), width: box.width, height: box.height, drawn: drawn.length,
                  before, after: table.checkVisibility(), cells: table.querySelectorAll("tbody td").length};
        })"""
    )
    assert len(figures) >= (7 if which == "reprune" else 10)
    for figure in figures:
        assert figure["width"] > 300, figure
        assert figure["height"] > 150, figure
        assert figure["drawn"] > 10, figure
        assert (figure["before"], figure["after"]) == (False, True), figure
        assert figure["cells"] >= 2, figure


_OVERFLOW = """
document.querySelectorAll("details").forEach(one => one.open = true);
const width = document.documentElement.clientWidth, found = [];
if (document.documentElement.scrollWidth > width) found.push("page " + document.documentElement.scrollWidth);
for (const one of document.querySelectorAll("body *")) {
  if (one.closest("svg, .scroll > *, pre > *") || one.matches(".skip")) continue;
  const box = one.getBoundingClientRect();
  if (box.width && (box.right > width + 0.5 || box.left < -0.5)) found.push(one.tagName + "." + one.className);
}
return found;
"""


@both
@pytest.mark.parametrize("width", [320, 400, 800, 1400])
def test_nothing_is_wider_than_the_screen(
    which: str, width: int, browser: Any, show: Show, files: dict[str, Path]
) -> None:
    show(files[which], width)
    assert browser.execute_script("return document.documentElement.clientWidth") == width
    assert browser.execute_script(_OVERFLOW) == []
    if width == 400:
        scrolled = browser.execute_script(
            "return [...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth).length"
        )
        assert scrolled > 0, "wide tables scroll in their own place"


def test_the_results_of_several_seeds_are_seen_without_scrolling(browser: Any, show: Show, tmp_path: Path) -> None:
    cells = [cell(pruner, rung, seed=seed) for pruner in ("wanda", "sparsegpt") for rung in RUNGS for seed in range(3)]
    (tmp_path / "study.json").write_text(json.dumps(study_record(cells)))
    show(report(tmp_path), 1200)
    hidden = "const table = document.querySelector('.scroll'); return table.scrollWidth - table.clientWidth"
    assert browser.execute_script(hidden) == 0


@both
@pytest.mark.parametrize("width", [400, 1400])
def test_text_in_plots_stays_legible_and_within_them(
    which: str, width: int, browser: Any, show: Show, files: dict[str, Path]
) -> None:
    show(files[which], width)
    found = browser.execute_script(
        """return [...document.querySelectorAll("svg.figure")].flatMap(svg => {
          const frame = svg.getBoundingClientRect(), scale = frame.width / svg.viewBox.baseVal.width;
          return [...svg.querySelectorAll("text")].map(text => {
            const box = text.getBoundingClientRect();
            const left = frame.left - box.left, right = box.right - frame.right;
            const out = Math.max(left, right, frame.top - box.top, box.bottom - frame.bottom);
            return [text.textContent, parseFloat(getComputedStyle(text).fontSize) * scale, out];
          });
        })"""
    )
    assert len(found) > 50
    for text, size, out in found:
        assert size >= 9.5, text
        assert out <= 1, text


def colors(browser: Any) -> list[str]:
    """The colours of the page, its text, a plot's card, and a line and a letter in a plot."""
    found: list[str] = browser.execute_script(
        """const of = (where, what) => getComputedStyle(document.querySelector(where))[what];
        return [of("body", "backgroundColor"), of("body", "color"), of("figure", "backgroundColor"),
                of("figure svg path[clip-path]", "stroke"), of("figure svg text", "fill")]"""
    )
    return found


@both
def test_it_is_dark_where_the_reader_wants_it(which: str, browser: Any, show: Show, files: dict[str, Path]) -> None:
    show(files[which], scheme="light")
    light = colors(browser)
    show(files[which], scheme="dark")
    dark = colors(browser)
    assert all(one != other for one, other in zip(light, dark, strict=True))
    button = browser.find_element("id", "theme")
    assert (button.text, button.accessible_name) == ("Light", "Show this page in light colours")
    button.click()
    assert colors(browser) == light, "the button turns it, whatever the system's setting"
    assert (button.text, button.accessible_name) == ("Dark", "Show this page in dark colours")
    button.click()
    assert colors(browser) == dark
    show(files[which], scheme="dark", media="print")
    assert colors(browser) == light, "paper is white"
    assert not browser.find_element("id", "theme").is_displayed()


def test_a_figure_in_a_file_of_its_own_is_dark_too(browser: Any, show: Show, tmp_path: Path) -> None:
    from reprune.doors.drawing.figures import error_by_block

    file = tmp_path / "figure.svg"
    file.write_text(error_by_block({"a": [1.0, 2.0], "b": [2.0, 3.0]}, title="t", ylabel="y"), encoding="utf-8")
    script = """const of = (where, what) => getComputedStyle(document.querySelector(where))[what];
    return [of("svg", "backgroundColor"), of("path[clip-path]", "stroke"), of("text", "fill"),
            of("text", "fontFamily")]"""
    found = []
    for scheme in ("light", "dark"):
        show(file, scheme=scheme)
        found.append(browser.execute_script(script))
        assert browser.get_log("browser") == []
    assert all(one != other for one, other in zip(found[0][:3], found[1][:3], strict=True))
    assert found[0][3].startswith("system-ui")
