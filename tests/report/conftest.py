"""A real browser for the pages: Chromium, driven by Playwright, with no network."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager

import pytest

from gtpo.report import write_page
from gtpo.testing import made_up_run

PLACES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    """One a module: as long as Playwright runs, its event loop does, and other tests could not start theirs."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, PLACES)), None)
    if chromium is None:
        pytest.skip(f"no browser: none of {', '.join(PLACES)} is installed (Debian: apt-get install chromium)")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=sandbox)
        yield started
        started.close()


@pytest.fixture
def opened(browser):
    """Opens a page; at the end it must have complained about nothing and asked for nothing from elsewhere."""

    @contextmanager
    def opener(path, fragment="", **options):
        context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        page = context.new_page()
        complaints, requests = [], []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        address = path if str(path).startswith(("http", "file")) else f"file://{path}"
        page.goto(address + fragment)
        page.wait_for_selector("#app[data-ready]")
        yield page
        context.close()
        assert complaints == []
        outside = [url for url in requests if not url.startswith((address.split("#")[0], "data:"))]
        assert outside == []

    return opener


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return made_up_run(tmp_path_factory.mktemp("runs") / "made", steps=4, groups=3, group_size=4, seed=1)


@pytest.fixture(scope="session")
def report(run):
    path = run / "report.html"
    write_page([run], path)
    return path
