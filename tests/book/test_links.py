"""The link check against a server on loopback; nothing here reaches the network."""

import http.server
import threading
import time
from collections import Counter

import pytest

from book import links

QUICK = links.Manners(timeout_seconds=2, attempts=3, pause_seconds=0.01)


class _Host(http.server.BaseHTTPRequestHandler):
    """Answers as the path says: /status/404, /no-head, /flaky, /slow, /redirect, anything else is fine."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        seen = self.server.seen
        seen[self.command, self.path] += 1
        self.server.agents.add(self.headers["User-Agent"])
        code, headers = 200, {}
        if self.path.startswith("/status/"):
            code = int(self.path.split("/")[2])
        elif self.path == "/no-head" and self.command == "HEAD":
            code = 404
        elif self.path == "/flaky" and sum(seen.values()) < 3:
            code = 503
        elif self.path == "/wait" and self.command == "HEAD":
            code, headers = 429, {"Retry-After": "1"}
        elif self.path == "/slow":
            time.sleep(0.5)
        elif self.path == "/redirect":
            code, headers = 302, {"Location": "/fine"}
        elif self.path == "/to-nowhere":
            code, headers = 301, {"Location": "/status/404"}
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def host():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Host) as server:
        server.seen, server.agents = Counter(), set()
        server.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("path", "state", "requests"),
    [
        ("/fine", "fine", 1),
        ("/redirect", "fine", 2),
        ("/no-head", "fine", 2),
        ("/flaky", "fine", 3),
        ("/status/404", "broken", 2),
        ("/status/410", "broken", 2),
        ("/to-nowhere", "broken", 4),
        ("/status/500", "broken", 3),
        ("/status/403", "refused", 3),
        ("/status/999", "refused", 3),
    ],
)
def test_what_a_host_answers_decides(host, path, state, requests):
    answer = links.ask(host.address + path, QUICK)
    assert answer.state == state
    assert sum(host.seen.values()) == requests
    assert (answer.reason == "") == (state == "fine")
    assert host.agents == {QUICK.agent}


def test_a_host_that_asks_to_wait_is_given_the_time(host):
    start = time.monotonic()
    assert links.ask(f"{host.address}/wait", QUICK).state == "fine"
    assert time.monotonic() - start >= 1
    hurried = links.Manners(pause_seconds=0.01, longest_wait_seconds=0.01)
    start = time.monotonic()
    assert links.ask(f"{host.address}/wait", hurried).state == "fine"
    assert time.monotonic() - start < 0.9


def test_silence_and_a_closed_port_are_broken_and_nonsense_is_named(host):
    brief = links.Manners(timeout_seconds=0.1, attempts=1)
    assert links.ask(f"{host.address}/slow", brief).state == "broken"
    closed = links.ask("http://127.0.0.1:1/", brief)
    assert closed.state == "broken" and "refused" in closed.reason
    nonsense = links.ask("http://[half/", brief)
    assert nonsense.state == "broken" and "no valid address" in nonsense.reason


def test_each_host_is_asked_one_question_at_a_time(host):
    urls = {f"{host.address}/{i}": [f"page-{i}"] for i in range(4)}
    start = time.monotonic()
    answers = list(links.check(urls, links.Manners(pause_seconds=0.1)))
    assert time.monotonic() - start >= 0.3
    assert [a.url for a in answers] == list(urls) and all(
        a.state == "fine" for a in answers
    )
    assert [a.places for a in answers] == list(urls.values())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("See https://a.org/x.", ["https://a.org/x"]),
        ("[x](https://a.org/x_(y))", ["https://a.org/x_(y)"]),
        ("(https://a.org/x), then", ["https://a.org/x"]),
        ("url = {https://a.org/x?q=1&r=2},", ["https://a.org/x?q=1&r=2"]),
        ("url: 'https://a.org'", ["https://a.org"]),
        ("**https://a.org/x**", ["https://a.org/x"]),
        ("http://", []),
        ("file:///x a.org", []),
    ],
)
def test_addresses_in_text(text, found):
    assert links.in_text(text) == found


CONFIG = "repository: {url: 'https://github.com/owner/book'}\n"


@pytest.fixture
def site(tmp_path):
    html = tmp_path / "_build/html/deep"
    html.mkdir(parents=True)
    (tmp_path / "_config.yml").write_text(CONFIG)
    (tmp_path / "references.bib").write_text("@misc{a, url = {https://example.org/paper}}")
    (html.parent / "index.html").write_text(
        '<link rel="canonical" href="https://machine.example"><a href="deep/page.html">x</a>'
        '<a href="https://example.org/a?b=1&amp;c=2#part">x</a><img src="https://example.org/i.png">'
    )
    (html / "page.html").write_text(
        '<a href="https://example.org/a?b=1&amp;c=2#other">x</a><a href="https://example.org/a?b=1&amp;c=2">'
        '<a href="https://github.com/owner/book/edit/main/x.md">edit</a>'
        '<a href="https://owner.github.io/book/x.html">self</a>'
        '<a href="https://colab.research.google.com/github/owner/book/blob/notebooks/x.ipynb">Colab</a>'
        '<a href="https://github.com/owner/other">x</a><a href="http://localhost:8888">x</a>'
    )
    return tmp_path


def test_addresses_are_collected_once_with_their_places(site):
    assert links.collect(site, links.own_addresses(site)) == {
        "https://example.org/a?b=1&c=2": ["deep/page.html", "index.html"],
        "https://example.org/i.png": ["index.html"],
        "https://example.org/paper": ["references.bib"],
        "https://github.com/owner/other": ["deep/page.html"],
    }


def test_a_repositorys_address_may_end_in_git(site):
    config = CONFIG.replace("owner/book", "owner/book.git/")
    (site / "_config.yml").write_text(config)
    assert links.own_addresses(site) == [
        "https://owner.github.io/book/",
        "https://github.com/owner/book",
        "https://colab.research.google.com/github/owner/book/",
    ]


def test_the_report_names_what_is_broken_and_where(tmp_path, host, monkeypatch, capsys):
    places = {
        f"{host.address}/fine": ["a.html"],
        f"{host.address}/status/404": ["b.html", "c.html"],
        f"{host.address}/status/403": ["d.html"],
    }
    monkeypatch.setattr(links, "own_addresses", lambda root: [])
    monkeypatch.setattr(links, "collect", lambda root, own: places)
    assert links.main([], tmp_path, QUICK) == 1
    out, err = capsys.readouterr()
    assert "3 external addresses" in out and "1 broken of 3" in err
    assert "404 Not Found; in b.html, c.html" in out and "/fine" not in out
    assert out.index("look yourself: 1") < out.index("/status/403") < out.index("Broken: 1")
    del places[f"{host.address}/status/404"]
    assert links.main([], tmp_path, QUICK) == 0


def test_bad_input_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="takes no arguments, but got --fast"):
        links.main(["--fast"], tmp_path)
    with pytest.raises(ValueError, match="build it first"):
        links.collect(tmp_path)
