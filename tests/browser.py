"""Chromium for tests of pages: found on the machine, driven by Playwright."""

import os
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-sync", "--no-first-run"),
)
TIMEOUT_MS = 20_000


def chromium(driver: Any) -> str:
    """Where Chromium lies: named, on the path, or Playwright's own; else the test is skipped."""
    named = os.environ.get("TEMPO_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, NAMES)), driver.chromium.executable_path)
    if not Path(found).exists():
        pytest.skip("no Chromium on this machine; `make browser` installs it")
    return found


@dataclass
class Visit:
    """A page in Chromium, with everything it complained of or asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def open(self, path: Path, fragment: str = "") -> None:
        """Load a file and wait until it has drawn."""
        self.page.goto("about:blank")
        self.page.goto(f"{path.as_uri()}{fragment}")
        self.page.wait_for_selector("#lattice svg", timeout=TIMEOUT_MS)

    def choose(self, **chosen: object) -> None:
        """Set controls by their id."""
        for name, value in chosen.items():
            self.page.select_option(f"#{name}", str(value))

    def to_step(self, step: int) -> None:
        """Move the slider as a user's keys do."""
        slider = self.page.locator("#step")
        slider.focus()
        self.page.keyboard.press("Home")
        for _ in range(step):
            self.page.keyboard.press("ArrowRight")

    def detail(self) -> dict[str, str]:
        """What the panel below the attention map says."""
        terms = "Object.fromEntries([...document.querySelectorAll('#detail dd')].map(d => "
        return self.page.evaluate(f"{terms}[d.dataset.term, d.textContent]))")

    def wait_until(self, holds: str) -> None:
        """Wait for an expression to hold; the page itself forbids to evaluate strings in it."""
        end = time.monotonic() + TIMEOUT_MS / 1000
        while not self.page.evaluate(holds):
            assert time.monotonic() < end, holds
            time.sleep(0.02)

    def saved(self, figure: str, kind: str) -> bytes:
        """What a button of a figure or table gives."""
        with self.page.expect_download() as waiting:
            self.page.get_by_role("button", name=f"Save {figure} as {kind}", exact=True).click()
        return Path(waiting.value.path()).read_bytes()


@contextmanager
def started_browser() -> Generator[Any]:
    """Chromium without a window."""
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(driver), args=list(FLAGS))
        yield browser
        browser.close()


def visit_in(browser: Any, *, width: int = 1400, scheme: str = "light") -> Visit:
    """An empty page of a width, in light or dark."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    visit = Visit(page)
    page.on("console", lambda said: visit.complaints.append(f"{said.type}: {said.text}"))
    page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    page.on("request", lambda asked: visit.requests.append(asked.url))
    return visit
