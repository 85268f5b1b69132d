"""A browser for the tests of pages, and what they ask it."""

import contextlib
import shutil

import numpy as np
import pytest


@contextlib.contextmanager
def browser_of():
    """A headless chromium; the tests that need it are skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("chromium is not installed")
    flags = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync"
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=path, args=flags.split())
        yield launched
        launched.close()


@contextlib.contextmanager
def pages_of(browser, path):
    """A function: the page at a width and colour scheme; at the end nothing was asked for and no script failed."""
    contexts, requests, troubles = [], [], []

    def open_at(width=1280, scheme="light", **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda message: troubles.append(message.text))
        page.goto(path.as_uri())
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert {url.split(":")[0] for url in requests} <= {"file", "data"} and not troubles


def contrast(page, selector, ground):
    """WCAG 2.1 contrast of an element's text with the ground behind it."""
    colours = page.evaluate(
        "([text, ground]) => [getComputedStyle(document.querySelector(text)).color,"
        " getComputedStyle(document.querySelector(ground)).backgroundColor]",
        [selector, ground],
    )
    luminance = []
    for colour in colours:
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        luminance.append(np.dot(linear, [0.2126, 0.7152, 0.0722]))
    return (max(luminance) + 0.05) / (min(luminance) + 0.05)
