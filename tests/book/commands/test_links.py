"""The link check on a tiny book, against a server on loopback; nothing here reaches the network."""

import http.server
import threading
from collections import Counter

import pytest
from tinybook import REPOSITORY, TinyBook


class _Host(http.server.BaseHTTPRequestHandler):
    """Answers with the status that the path names, if it names one."""

    def do_HEAD(self) -> None:
        self.server.seen[self.path] += 1
        code = self.path.removeprefix("/status/")
        self.send_response(int(code) if code.isdigit() else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def host():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Host) as server:
        server.seen = Counter()
        server.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_a_broken_address_is_reported_with_its_page_and_nothing_is_executed(
    tiny_book: TinyBook, host
) -> None:
    names = ("fine", "status/401", "status/403", "status/404", "own/page.html")
    links = "\n".join(f"- [{name}]({host.address}/{name})" for name in names)
    tiny_book.write("index.md", f"# Tiny\n\n{links}\n")
    tiny_book.replace(
        "_config.yml", "https://somebody.github.io/Tiny/", f"{host.address}/own/"
    )
    tiny_book.replace(
        "_config.yml",
        "local_extensions: {",
        "config: {suppress_warnings: [git.subprocess_error], ogp_social_cards: {enable: false}}\n"
        f"  local_extensions: {{book.site.publishing_settings: {REPOSITORY / 'code'}, ",
    )
    stale = tiny_book.run("-m", "book", "links")
    assert stale.returncode == 1 and not host.seen
    assert "executes nothing, but these chapters must be: part/alpha" in stale.stderr

    assert tiny_book.build().returncode == 0
    found = tiny_book.run("-m", "book", "links")
    assert found.returncode == 1
    assert f"index.md:6: {host.address}/status/404\n  404 Client Error" in found.stdout
    assert (
        "\n1 broken of 4 addresses" in found.stdout and found.stdout.count("index.md:") == 1
    )
    assert host.seen["/fine"] and not host.seen["/own/page.html"]

    tiny_book.replace("index.md", f"- [status/404]({host.address}/status/404)\n", "")
    assert tiny_book.run("-m", "book", "links").returncode == 0
    # The cells are the same, but what they import prints something else.
    tiny_book.replace("code/llm_learn/low.py", "return 1", "return 5")
    stale = tiny_book.run("-m", "book", "links")
    assert stale.returncode == 1 and "must be: part/alpha. Run" in stale.stderr
