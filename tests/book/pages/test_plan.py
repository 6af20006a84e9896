"""The learning plan: its data against the plan as it was written, the routes, and the pages made of them."""

import re
from collections.abc import Iterable
from html import unescape
from io import StringIO

import pytest
import smallbook
import yaml
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from book.pages.plan import LEARNED
from book.read.chapters import ROOT, find_sources, load_plan, planned_chapters
from book.read.plan import (
    plan_items,
    read_lines,
    route_chapters,
    walk,
)

WRITTEN = (ROOT / "code/book/data/learning-plan.md").read_text(encoding="utf-8")
PLAN = load_plan()
CHAPTERS = planned_chapters(PLAN)
PAGE_PART = next(part for part in PLAN["parts"] if part.get("pages"))
PAGE = PAGE_PART["pages"][0]
CHANGELOG = yaml.safe_load(
    (ROOT / "code/book/data/changelog.yml").read_text(encoding="utf-8")
)


# --- What routes leave out ---


def foundations(chapters: dict[str, dict], slugs: Iterable[str]) -> set[str]:
    """All that the chapters stand on, directly or through others; themselves left out."""
    found: set[str] = set()
    waiting = [p for slug in slugs for p in chapters[slug]["prerequisites"]]
    while waiting:
        slug = waiting.pop()
        if slug not in found:
            found.add(slug)
            waiting += chapters[slug]["prerequisites"]
    return found


def route_gaps(plan: dict, route: dict) -> list[tuple[str, str]]:
    """(chapter, prerequisite) for all that a route neither teaches before it is needed nor assumes."""
    chapters = planned_chapters(plan)
    assumed = route.get("assumes", [])
    known = set(assumed) | foundations(chapters, assumed)
    gaps = []
    for slug in route_chapters(plan, route):
        gaps += [(slug, p) for p in chapters[slug]["prerequisites"] if p not in known]
        known.add(slug)
    return gaps


# --- The plan as it was written ---


def written_section(title: str) -> list[tuple[int, str, bool]]:
    """(depth, words, ticked) of each bullet of a section, without Markdown."""
    text = WRITTEN.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    bullets = []
    for line in text.splitlines():
        if match := re.match(r"( *)- (.*)", line):
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[2])
            words = re.sub(r"[`*]", "", words).strip()
            done = words.endswith("✅")
            bullets.append((len(match[1]) // 4, words.removesuffix("✅").strip(), done))
    return bullets


def flat(lines, depth: int = 0) -> list[tuple[int, str, bool]]:
    found = []
    for line in lines:
        found += [(depth, line.words, line.done), *flat(line.lines, depth + 1)]
    return found


def data_section(title: str) -> list[tuple[int, str, bool]]:
    section = next(s for s in PLAN["plan"] if s["section"] == title)
    return flat(read_lines(section["items"]))


CONTENTS = written_section("LLM Learning Contents")
SECTIONS = [words for depth, words, _ in CONTENTS if depth == 0]


def test_the_plan_was_read():
    assert len(SECTIONS) == 6 and len(CONTENTS) == 6 + 28
    assert sum(done for _, _, done in CONTENTS) == 3


@pytest.mark.parametrize("title", SECTIONS)
def test_contents_stand_in_the_plans_words_and_order(title):
    start = next(i for i, (_, words, _) in enumerate(CONTENTS) if words == title)
    own = []
    for depth, words, done in CONTENTS[start + 1 :]:
        if depth == 0:
            break
        own.append((depth - 1, words, done))
    assert data_section(title) == own


@pytest.mark.parametrize("title", ["Updating Status", "Current Todo List"])
def test_updates_and_todo_list_stand_in_the_plans_words_and_order(title):
    assert data_section(title) == written_section(title) != []


def test_projects_and_tools_come_from_the_plan():
    written = [words for _, words, _ in written_section("LLM Learning Materials")]
    data = [words for _, words, _ in data_section("LLM Learning Materials")]
    assert [words for words in written if words in data] == data
    assert "Build a simple GPT from scratch." in data and "vllm" in data


def test_sections_stand_in_the_plans_order():
    assert [s["section"] for s in PLAN["plan"]] == [
        "LLM Learning Materials",
        *SECTIONS,
        "Updating Status",
        "Current Todo List",
    ]


def test_history_holds_the_plans_dates():
    dates = re.findall(r"`(\d{4})/(\d\d)/(\d\d)`", WRITTEN)
    own = [entry["date"].isoformat() for entry in CHANGELOG if entry["by"] == "plan"]
    assert own == ["-".join(date) for date in dates]


@pytest.mark.parametrize(
    "entry", [{}, {"item": "a", "note": "b"}, {"words": "a"}, {"item": "a", "tick": True}]
)
def test_a_line_that_means_nothing_is_refused(entry):
    with pytest.raises(ValueError, match="plan: "):
        read_lines([entry])


def test_a_plain_string_is_an_item():
    (line,) = read_lines(["SFT"])
    assert (line.words, line.item, line.done) == ("SFT", "SFT", False)


# --- Hours ---


def test_every_chapter_has_its_hours_and_a_planned_one_an_estimate():
    published = {source.slug: source.hours[0] for source in find_sources()}
    for slug, chapter in CHAPTERS.items():
        hours = published.get(slug) or chapter.get("hours")
        assert hours and 0 < hours <= 12, (
            f"{slug}: give `hours`, an estimate of its reading time"
        )


# --- Routes ---


@pytest.mark.parametrize("route", PLAN["routes"], ids=lambda route: route["name"])
def test_a_route_teaches_or_assumes_what_it_needs(route):
    assert route_gaps(PLAN, route) == []
    slugs, assumes = route_chapters(PLAN, route), route.get("assumes", [])
    assert len(set(slugs)) == len(slugs) > 1
    known = set(assumes) | foundations(CHAPTERS, assumes)
    assert not known & set(slugs), "it teaches what it assumes"
    assert route["title"] and route["about"].endswith(".")


def test_prerequisites_stand_earlier_in_the_book():
    order = list(CHAPTERS)
    later = [
        (slug, prerequisite)
        for slug, chapter in CHAPTERS.items()
        for prerequisite in chapter["prerequisites"]
        if order.index(prerequisite) >= order.index(slug)
    ]
    assert later == []


def test_the_main_line_is_the_first_route_and_follows_the_book():
    route = PLAN["routes"][0]
    assert route["name"] == "main-line" and not route.get("assumes")
    slugs, order = route_chapters(PLAN, route), list(CHAPTERS)
    assert slugs == sorted(slugs, key=order.index)
    assert slugs[-1] == "capstone/one-small-model" and len(slugs) < len(order) / 2


def test_the_routes_of_a_weekend_of_post_training_and_from_zero_exist():
    names = [route["name"] for route in PLAN["routes"]]
    assert {"weekend", "post-training", "from-zero"} <= set(names) and len(names) == len(
        set(names)
    )


def test_gaps_are_found():
    gap = ("first-model/gpt", "first-model/attention")
    first = ["first-model/backpropagation", "first-model/tokenization"]
    route = {"name": "x", "chapters": [*first, "first-model/gpt"]}
    assert route_gaps(PLAN, route) == [gap]
    late = route | {"chapters": [*route["chapters"], "first-model/attention"]}
    assert route_gaps(PLAN, late) == [gap]
    assert route_gaps(PLAN, route | {"assumes": ["first-model/attention"]}) == []
    # What is assumed brings its own foundations.
    deep = {
        "name": "x",
        "chapters": ["first-model/gpt"],
        "assumes": ["origins/transformer", "first-model/backpropagation"],
    }
    assert route_gaps(PLAN, deep) == []


@pytest.mark.parametrize(
    ("route", "message"),
    [
        ({}, "either `chapters` or `parts`"),
        (
            {"chapters": ["first-model/gpt"], "parts": ["first-model"]},
            "either `chapters` or `parts`",
        ),
        ({"chapters": ["basics/nothing"]}, "'basics/nothing', which is no chapter"),
        (
            {"chapters": ["first-model/gpt"], "assumes": ["nothing"]},
            "'nothing', which is no",
        ),
        ({"parts": ["nowhere"]}, "the part 'nowhere'; the parts are first-model"),
    ],
)
def test_a_wrong_route_is_refused(route, message):
    with pytest.raises(ValueError, match=message):
        route_chapters(PLAN, {"name": "x"} | route)


# --- The pages ---

CONF = """\
extensions = ["myst_nb", "book.pages.docutils_nodes"]
nb_execution_mode = "off"
exclude_patterns = ["_build"]
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    """The book's own plan, routes and part pages, built without its chapters."""
    book = tmp_path_factory.mktemp("book")
    (book / "conf.py").write_text(CONF, encoding="utf-8")
    names = ["start/plan", "start/routes", *(f"{p['name']}/index" for p in PLAN["parts"])]
    linked = ["start/materials", PAGE["slug"]]
    toc = "\n".join(f"chapters/{name}" for name in [*names, *linked])
    (book / "index.md").write_text(
        f"# Book\n\n```{{toctree}}\n{toc}\n```\n", encoding="utf-8"
    )
    for name in [*names, *linked]:
        path = book / f"chapters/{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / f"chapters/{name}.md").read_text(encoding="utf-8")
        if name.endswith("/index"):  # there are no chapters to link to
            text = re.sub(r"\[([^\]]*)\]\([\w-]+\.md\)", r"\1", text)
        path.write_text(text if name in names else "# Linked\n", encoding="utf-8")
    warnings, out = StringIO(), book / "_build"
    with patch_docutils(str(book)), docutils_namespace():
        html, trees = out / "html", out / "trees"
        app = Sphinx(book, book, html, trees, "html", status=None, warning=warnings)
        app.build()
    assert warnings.getvalue() == ""
    return {
        n: (html / f"chapters/{n}.html").read_text(encoding="utf-8")
        for n in [*names, *linked]
    }


def words_in(html: str, css: str) -> list[str]:
    found = re.findall(rf'<p class="{css}">(.*?)</p>', html, re.DOTALL)
    return [" ".join(unescape(re.sub(r"<[^>]+>", "", words)).split()) for words in found]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
class TestPages:
    def test_every_line_of_the_plan_is_on_the_page_with_its_mark(self, pages):
        written = [line for line in CONTENTS if line[0] > 0]
        for title in ("Updating Status", "Current Todo List"):
            written += written_section(title)
        expected = [w + (f" {LEARNED}" if done else "") for _, w, done in written]
        shown = words_in(pages["start/plan"], "plan-words")
        assert pages["start/plan"].count('class="author-mark"') == WRITTEN.count("✅") == 3
        assert "✅" not in pages["start/plan"]
        assert shown[-len(expected) :] == expected
        for words in ("Build a simple GPT from scratch.", "vllm"):
            assert words in shown[: -len(expected)]
        for title in SECTIONS:
            assert f"<h3>{title}" in pages["start/plan"]

    def test_every_item_names_its_chapters(self, pages):
        html = pages["start/plan"]
        places = re.split(r'<p class="plan-words">', html)[1:]
        lines = [line for s in PLAN["plan"] for line in walk(read_lines(s["items"]))]
        assert len(places) == len(lines)
        for place, line in zip(places, lines, strict=True):
            shown = re.findall(r'data-slug="([^"]+)"', place)
            assert shown == [s for s, c in CHAPTERS.items() if line.item in c["plan"]]
        assert {line.item for line in lines} - {None} == set(plan_items(PLAN))

    def test_history_is_the_changelogs(self, pages):
        html = pages["start/plan"]
        history = html[html.index("plan-history") :]
        for entry in CHANGELOG:
            assert f"{entry['date'].isoformat()} · {entry['title']}" in unescape(history)

    def test_part_pages_list_their_chapters_with_hours_and_prerequisites(self, pages):
        for part in PLAN["parts"]:
            html = pages[f"{part['name']}/index"]
            shown = re.findall(r'data-slug="([^"]+)"', html)
            assert shown == [chapter["slug"] for chapter in part["chapters"]]
            for chapter in part["chapters"]:
                assert chapter["builds"] in unescape(html)
            assert "In the plan" not in html
        gpt = pages["first-model/index"].split('data-slug="first-model/gpt"')[1]
        assert "Tokenization" in gpt and "Attention" in gpt

    def test_the_plan_lists_every_part_and_chapter_with_links_and_prerequisites(
        self, pages
    ):
        html = pages["start/plan"]
        for part in PLAN["parts"]:
            section = html.split(f'<section id="part-{part["name"]}">')[1]
            section = section.split("</section>")[0]
            heading = re.search(r"<h3>(.*?)</h3>", section)[1]
            assert f'href="../{part["name"]}/index.html"' in heading
            slugs = [chapter["slug"] for chapter in part["chapters"]]
            assert re.findall(r'data-slug="([^"]+)"', section) == slugs
            titles = [
                [CHAPTERS[p]["title"] for p in CHAPTERS[s]["prerequisites"]] for s in slugs
            ]
            assert words_in(section, "facts") == [
                "after " + ", ".join(needed) if needed else "needs no other chapter"
                for needed in titles
            ]

    def test_routes_list_their_chapters_and_sum_their_hours(self, pages):
        html = pages["start/routes"]
        for route in PLAN["routes"]:
            section = html.split(f'<section id="route-{route["name"]}">')[1].split(
                "</section>"
            )[0]
            slugs = route_chapters(PLAN, route)
            assert re.findall(r'data-slug="([^"]+)"', section) == slugs
            hours = sum(CHAPTERS[slug].get("hours", 0) for slug in slugs)
            assert f"about {hours:g} hour" in section
            for slug in route.get("assumes", []):
                assert CHAPTERS[slug]["title"] in section
            if not route.get("assumes"):
                assert "Python, a little calculus, and what a matrix is." in section

    def test_a_page_that_is_no_chapter_is_linked_and_not_counted(self, pages):
        part, about = PAGE_PART["name"], PAGE["about"]
        target = PAGE["slug"].removeprefix(f"{part}/")
        for name, href in (
            (f"{part}/index", f"{target}.html"),
            ("start/plan", f"../{PAGE['slug']}.html"),
        ):
            line = re.search(r'<p class="part-page">(.*?)</p>', pages[name])[1]
            assert f'href="{href}"' in line and about in unescape(line)
            assert f'data-slug="{PAGE["slug"]}"' not in pages[name]
        count = len(PAGE_PART["chapters"])
        assert f"{count} chapters, about" in pages[f"{part}/index"]
        # Without the others' pages a part ends with its chapters.
        assert "part-page" not in pages["first-model/index"]
        assert 'class="chapter-end' not in pages["capstone/verified"]

    def test_nothing_to_tick_no_script(self, pages):
        for name, html in pages.items():
            assert "ticks.js" not in html, name


TOTALS_CONF = """
extensions = ["myst_nb", "book.pages.docutils_nodes"]
nb_execution_mode = "off"
exclude_patterns = ["_build"]
html_theme = "small"
html_theme_path = ["themes"]
book_plan = {
    "parts": [{"name": "basics", "title": "Basics", "about": "First.", "chapters": [
        {"slug": f"basics/{name}", "title": name, "builds": "A.", "plan": [], "prerequisites": [], "hours": 9}
        for name in ("one", "two", "three")
    ]}],
    "plan": [],
    "routes": [{"name": "short", "title": "Short", "about": "A.", "chapters": ["basics/one"]}],
}
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
class TestTotals:
    @pytest.fixture
    def book(self, tmp_path) -> smallbook.SmallBook:
        book = smallbook.SmallBook(tmp_path)
        book.write("conf.py", TOTALS_CONF)
        for name, hours in (("one", 2), ("two", 2.5)):  # the third is planned
            book.write(
                f"chapters/basics/{name}.md",
                smallbook.chapter(name, hours={"core": hours, "all": hours}),
            )
        return book

    def totals(self, book: smallbook.SmallBook, name: str) -> str:
        toc = "```{toctree}\nchapters/basics/one\nchapters/basics/two\n```"
        book.write("index.md", f"# Book\n\nSee {{totals}}`{name}`.\n\n{toc}\n")
        warnings = book.build()
        assert warnings == "" or name == "long", warnings
        return warnings or book.page("index").select_one("section > p").text

    def test_what_is_published_is_counted_in_the_book_and_in_a_route(self, book):
        assert self.totals(book, "book") == "See 2 chapters, about 4.5 hours to read."
        assert self.totals(book, "short") == "See 1 chapter, about 2 hours to read."

    def test_hours_are_those_of_the_cores(self, book):
        hours = {"core": 1, "all": 2.5}
        book.write(
            "chapters/basics/one.md", smallbook.chapter("one", edition=2, hours=hours)
        )
        assert self.totals(book, "book") == (
            "See 2 chapters, about 3.5 hours to read without optional sections."
        )

    def test_the_minutes_are_those_of_the_records_on_two_cores(self, book):
        book.record("basics/one", [], cpu_seconds=200.0)
        book.record("basics/two", [], cpu_seconds=100.5)
        assert self.totals(book, "minutes") == "See 3 minutes."  # 150.25 seconds
        book.record(
            "basics/two", [], cpu_seconds=160.5
        )  # a new execution rewrites the page
        assert book.build() == ""
        assert book.page("index").select_one("section > p").text == "See 4 minutes."

    def test_a_route_that_does_not_exist_is_an_error(self, book):
        assert "'long' has no totals; what has: book, minutes, short" in self.totals(
            book, "long"
        )
