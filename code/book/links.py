"""Asks every external address of the built site, and of the book's data files, whether it still answers."""

import re
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote, urldefrag, urlsplit

import yaml

DATA = ("code/book/*.yml", "references.bib", "CITATION.cff", "README.md", "CONTRIBUTING.md")
ADDRESS = re.compile(r"https?://[^\s<>\"'`{}|\\^\[\]]+")
# Sites that refuse programs or ask to wait are not gone: a person has to look.
REFUSALS = {401, 403, 405, 406, 418, 429, 451, 999}
GONE = {404, 410}


@dataclass(frozen=True, kw_only=True)
class Manners:
    """How often and how patiently a host is asked."""

    timeout_seconds: float = 20
    attempts: int = 3
    pause_seconds: float = 1.0  # between two requests to one host; doubles after a failure
    longest_wait_seconds: float = 60  # of what a host asks for in Retry-After
    hosts_at_once: int = 8
    agent: str = "Mozilla/5.0 (compatible; LLM-Learn link check)"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of one address."""

    url: str
    state: str  # "fine", "broken", or "refused": it answers, but not to programs
    reason: str = ""
    places: list[str] = field(default_factory=list)


class _Targets(HTMLParser):
    """Collects what a page links to or embeds; what its head names for machines is no link."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        name = {"a": "href", "img": "src", "iframe": "src", "source": "src"}.get(tag)
        self.found += [value for key, value in attributes if key == name and value]


def in_page(html: str) -> list[str]:
    """The external addresses that a page's reader can follow."""
    targets = _Targets()
    targets.feed(html)
    return [url for url in targets.found if url.startswith(("http://", "https://"))]


def in_text(text: str) -> list[str]:
    """The addresses in a data file, without the punctuation of the sentence around them."""
    found = []
    for url in ADDRESS.findall(text):
        url = url.rstrip(".,;:!?*_")
        # A bracket that the address did not open closes the text around it.
        while url.endswith(")") and url.count(")") > url.count("("):
            url = url[:-1].rstrip(".,;:!?*_")
        found.append(url)
    return found


def collect(root: Path, own: Iterable[str] = ()) -> dict[str, list[str]]:
    """Every external address with the places that name it.

    Args:
        root: The book's folder; its site must be built.
        own: Beginnings of the book's own addresses. They change with this build, so they are not asked.

    Raises:
        ValueError: There is no built site.
    """
    html = root / "_build" / "html"
    if not (html / "index.html").is_file():
        raise ValueError(
            f"there is no site in {html}: build it first, with `python -m book build`"
        )
    sources = [(path, in_page) for path in sorted(html.rglob("*.html"))]
    sources += [(path, in_text) for glob in DATA for path in sorted(root.glob(glob))]
    places: dict[str, list[str]] = defaultdict(list)
    own = tuple(own)
    for path, find in sources:
        where = path.relative_to(html if path.is_relative_to(html) else root).as_posix()
        for url in find(path.read_text(encoding="utf-8")):
            url = urldefrag(url).url
            local = (urlsplit(url).hostname or "") in ("", "localhost", "127.0.0.1")
            if local or (own and url.startswith(own)) or where in places[url]:
                continue
            places[url].append(where)
    return {url: found for url, found in sorted(places.items()) if found}


def _request(url: str, method: str, manners: Manners) -> None:
    ascii_url = quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    headers = {"User-Agent": manners.agent, "Accept": "*/*"}
    request = urllib.request.Request(ascii_url, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=manners.timeout_seconds) as response:
        response.read(1)


def _wait(error: urllib.error.HTTPError, pause: float, manners: Manners) -> float:
    """How long to wait after a refusal: what the host asks for, or the doubled pause."""
    asked = (error.headers or {}).get("Retry-After", "")
    seconds = float(asked) if asked.isdigit() else pause
    return min(seconds, manners.longest_wait_seconds)


def ask(url: str, manners: Manners) -> Answer:
    """Asks once for the head, then for the page, and again after a pause where that may help."""
    state, reason, pause = "broken", "", manners.pause_seconds
    for attempt in range(manners.attempts):
        # Not every host answers HEAD, and some answer it wrongly.
        method = "GET" if attempt else "HEAD"
        wait = pause
        try:
            _request(url, method, manners)
            return Answer(url=url, state="fine")
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"{error.code} {error.reason}".strip()
            state = "refused" if error.code in REFUSALS else "broken"
            if error.code in GONE and method == "GET":
                break
            wait = _wait(error, pause, manners)
        except ValueError as error:
            return Answer(url=url, state="broken", reason=f"no valid address: {error}")
        except (OSError, HTTPException) as error:
            state = "broken"
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        if attempt + 1 < manners.attempts:
            time.sleep(wait)
            pause *= 2
    return Answer(url=url, state=state, reason=reason)


def check(places: dict[str, list[str]], manners: Manners) -> Iterator[Answer]:
    """Asks all addresses, several hosts at once, and each host one question at a time."""
    hosts: dict[str, list[str]] = defaultdict(list)
    for url in places:
        hosts[urlsplit(url).netloc.lower()].append(url)

    def one_host(urls: list[str]) -> list[Answer]:
        answers = []
        for number, url in enumerate(urls):
            if number:
                time.sleep(manners.pause_seconds)
            answers.append(ask(url, manners))
        return answers

    with ThreadPoolExecutor(manners.hosts_at_once) as pool:
        for answers in pool.map(one_host, hosts.values()):
            for a in answers:
                yield Answer(
                    url=a.url, state=a.state, reason=a.reason, places=places[a.url]
                )


def own_addresses(root: Path) -> list[str]:
    """Where this book's own pages and sources are: what a build links to before it is published."""
    from book.repository import named

    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8")) or {}
    repository = named((config.get("repository") or {}).get("url"))
    baseurl = str((config.get("html") or {}).get("baseurl") or "")
    addresses = [baseurl or (repository.site if repository else "")]
    if repository:
        # Edit, issue and source links; and Colab, which opens notebooks of the same repository.
        addresses += [repository.url, repository.colab_folder]
    return [address for address in addresses if address]


def main(argv: list[str], root: Path, manners: Manners | None = None) -> int:
    """Prints what is broken, and what only a person can decide.

    Returns:
        1 if an address is broken, else 0.
    """
    if argv:
        raise ValueError(f"`links` takes no arguments, but got {' '.join(argv)}")
    places = collect(root, own_addresses(root))
    print(f"{len(places)} external addresses", flush=True)
    answers = sorted(check(places, manners or Manners()), key=lambda answer: answer.url)
    for state, title in (
        ("refused", "Answer, but not to a program; look yourself"),
        ("broken", "Broken"),
    ):
        chosen = [answer for answer in answers if answer.state == state]
        if chosen:
            print(f"\n{title}: {len(chosen)}")
        for answer in chosen:
            print(f"  {answer.url}\n    {answer.reason}; in {', '.join(answer.places[:5])}")
    broken = sum(answer.state == "broken" for answer in answers)
    print(f"\n{broken} broken of {len(answers)}", file=sys.stderr if broken else sys.stdout)
    return 1 if broken else 0
