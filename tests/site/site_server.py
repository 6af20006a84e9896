"""The built site for tests in a browser: its pages, a server on loopback, and Chromium."""

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
HTML = ROOT / "_build" / "html"
WIDTHS = (1280, 390)
THEMES = ("light", "dark")
# The first is Chromium without windows, tabs and menus, which take half of the others' time.
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def pages() -> list[str]:
    """The documents of the table of contents, in its order."""
    from sphinx_external_toc.parsing import parse_toc_yaml

    return [str(name).removesuffix(".md") for name in parse_toc_yaml(ROOT / "_toc.yml")]


def browser_path() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def missing() -> str | None:
    """Why the site cannot be opened in a browser, or None where it can."""
    if not (HTML / "index.html").is_file():
        return "there is no _build/html/index.html: run `make book` first"
    if browser_path() is None:
        return f"no browser was found: install one of {', '.join(BROWSERS)}"
    return None


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        # Browsers ask for it by themselves; no page refers to it.
        if self.path == "/favicon.ico":
            self.send_response(204)
            self.end_headers()
            return
        super().do_GET()


@contextmanager
def serve(folder: Path = HTML) -> Iterator[str]:
    """Serves a folder on a free port of loopback; gives the address."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def browser() -> Iterator:
    """Chromium with a profile that lasts as long as the block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # In a container there is neither a sandbox nor a GPU to use.
        options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        options += [
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            # On loopback not every Chromium knows how fast the network is, and fetches pictures from further away.
            "--blink-settings=lazyLoadingImageMarginPxUnknown=1250",
        ]
        # Its crash reports would land in the user's home.
        home = os.environ | {"XDG_CONFIG_HOME": str(ROOT / "_build" / ".home" / "config")}
        chromium = playwright.chromium.launch(
            executable_path=browser_path(), args=options, env=home
        )
        try:
            yield chromium
        finally:
            chromium.close()


def open_context(chromium, *, width: int, theme: str = "light"):
    """A browser context of that width whose reader has chosen that theme."""
    context = chromium.new_context(
        viewport={"width": width, "height": 900}, reduced_motion="reduce"
    )
    context.add_init_script(
        f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')"
    )
    return context


def settle(page) -> None:
    """Waits until fonts and lazy images are there."""
    # Not "networkidle": on a busy machine it may never be reported.
    page.wait_for_load_state("load")
    page.evaluate(
        """async () => {
            for (const image of document.images) { image.loading = 'eager'; }
            await Promise.all([...document.images].map(image => image.decode().catch(() => null)));
            await document.fonts.ready;
        }"""
    )
