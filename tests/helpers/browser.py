"""Chromium for the tests that drive a page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: apt install chromium")


@contextmanager
def chromium(*options: str) -> Iterator:
    """A browser without a window for the block, which plays sound without a click."""
    from playwright.sync_api import sync_playwright

    own = ["--autoplay-policy=no-user-gesture-required", *options]
    if os.geteuid() == 0:  # Chromium refuses to start as root otherwise; it opens only pages of the tests
        own.append("--no-sandbox")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=own)
        yield browser
        browser.close()


def is_remote(url: str) -> bool:
    """Whether a request leaves this machine."""
    return not url.startswith(("http://127.0.0.1:", "file:", "data:", "blob:"))
