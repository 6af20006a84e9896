"""Sphinx extension: how pages are found, shared, cited and followed.

It adds descriptions, OpenGraph tags, the date of the last change and a citation to pages, and writes the site map,
the feed of the changelog, and the page for addresses that do not exist. Everything that needs the site's address
derives it from the repository's; where that is unknown, those parts are left out.
"""

import datetime
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import jinja2
import yaml
from docutils import nodes
from markdown_it import MarkdownIt
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.errors import ConfigError

from book import cards
from book.pages import chapter_source
from book.repository import git, repository

CHANGELOG = Path(__file__).with_name("changelog.yml")
TEMPLATES = Path(__file__).with_name("templates")
PLAN_PAGE = "chapters/start/plan"
DESCRIPTION_CHARACTERS = 160  # search engines cut off what is longer
CARD_CHARACTERS = 220
SHORT = 40  # a shorter paragraph describes nothing
ATOM = "http://www.w3.org/2005/Atom"
SITEMAP = "http://www.sitemaps.org/schemas/sitemap/0.9"
# What Sphinx makes by itself has no first paragraph.
MADE = {
    "search": "Search the text of {book}.",
    "genindex": "The index of {book}.",
}


# --- The site's address ---


def set_address(app: Sphinx, config: Config) -> None:
    """Tells Sphinx and the OpenGraph extension where the site will be."""
    source = repository(config)
    # A site with a domain of its own names it in _config.yml, as html.baseurl.
    address = config.html_baseurl or (source.site if source else "")
    config.html_baseurl = f"{address.rstrip('/')}/" if address else ""
    config.ogp_site_url = config.html_baseurl
    config.ogp_site_name = config.html_title  # Jupyter Book sets it, and no project
    config.ogp_social_cards = {"enable": False}  # the book draws its own


# --- The date of a page's last change ---


def change_dates(root: Path) -> dict[str, datetime.date]:
    """The day (UTC) of the last commit that changed each Markdown file; unknown ones are left out.

    A shallow clone would give the day of its oldest commit for most files, and a file with uncommitted changes
    the day before them; so neither gives any.
    """
    if (git(root, "rev-parse", "--is-shallow-repository") or "").strip() != "false":
        return {}
    log = git(root, "log", "--format=%x00%ct", "--name-only", "--no-renames", "--relative")
    changed = git(root, "diff", "--name-only", "--relative", "HEAD")
    if log is None or changed is None:
        return {}
    dates: dict[str, datetime.date] = {}
    for commit in log.split("\0")[1:]:
        seconds, *names = commit.splitlines()
        day = datetime.datetime.fromtimestamp(int(seconds), datetime.UTC).date()
        for name in filter(None, names):
            if name.endswith(".md"):
                dates[name] = max(day, dates.get(name, day))
    return {name: day for name, day in dates.items() if name not in changed.splitlines()}


def read_dates(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Reads the dates, and returns the pages whose date was another when they were written."""
    dates = change_dates(Path(app.srcdir))
    names = {
        doc: Path(env.doc2path(doc)).relative_to(app.srcdir).as_posix()
        for doc in env.found_docs
    }
    now = {doc: dates[name] for doc, name in names.items() if name in dates}
    before = getattr(env, "book_dates", {})
    env.book_dates = now
    return sorted(doc for doc in names if now.get(doc) != before.get(doc))


# --- Descriptions ---


def shorten(text: str, limit: int = DESCRIPTION_CHARACTERS) -> str:
    """The text in one line, cut between words."""
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    return text[:limit].rsplit(" ", 1)[0].rstrip(" ,;:–-") + "…"


def describe(doctree: nodes.document) -> str:
    """The page's first paragraph of text, whole; empty where it has none."""
    for paragraph in doctree.findall(nodes.paragraph):
        parent, aside = paragraph.parent, (nodes.Admonition, nodes.entry, nodes.figure)
        while parent is not None and not isinstance(parent, aside):
            parent = parent.parent
        text = paragraph.astext()
        if parent is None and len(text) >= SHORT:
            return text
    return ""


def enrich(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Gives the page its description, its card and, for a chapter, its citation."""
    meta, book = app.env.metadata[docname], app.config.html_title
    title = app.env.titles[docname].astext() if docname in app.env.titles else book
    text = str(meta.get("description") or "") or describe(doctree)
    text = text or f"{title}: a page of {book}, a book that is executed."
    doctree.append(nodes.meta(name="description", content=shorten(text)))
    # What begins with "og:" is read by the OpenGraph extension, which escapes quotes only.
    meta["og:description"] = escape(shorten(text), quote=False)
    if docname == app.config.root_doc:
        meta["og:url"] = app.config.html_baseurl
    if app.builder.format != "html" or not app.config.html_baseurl:
        return
    chapter = chapter_source(app.env, docname)
    if chapter:
        meta["og:type"] = "article"
    if chapter or docname == app.config.root_doc:
        image = next((i for i in doctree.findall(nodes.image)), None) if chapter else None
        figure = Path(app.srcdir, image["uri"]) if image else None
        name = f"_images/cards/{docname.replace('/', '-')}.png"
        address = app.config.html_baseurl.split("://")[1].rstrip("/")
        cards.draw(
            Path(app.outdir, name),
            title=title,
            text=shorten(text, CARD_CHARACTERS),
            book=book if chapter else "",
            address=address,
            figure=figure,
        )
    else:
        name = f"_images/cards/{app.config.root_doc}.png"
    meta["og:image"] = f"{app.config.html_baseurl}{name}"
    meta["og:image:alt"] = f"{title if chapter else book}, as a card"
    meta["og:image:width"], meta["og:image:height"] = map(str, cards.SIZE)
    if chapter:
        section = next(doctree.findall(nodes.section), doctree)
        section += citation_box(app, docname, title)


# --- Citation ---


def _bibtex_text(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def _bibtex(kind: str, key: str, fields: dict[str, str]) -> str:
    width = max(map(len, fields))
    lines = [f"  {name:<{width}} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])


def read_citation(path: Path) -> dict:
    """The book's entry in CITATION.cff.

    Raises:
        ConfigError: The file is missing, or lacks authors or title.
    """
    try:
        citation = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not citation["title"] or not citation["authors"]:
            raise KeyError("title or authors")
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} must be YAML with `title` and `authors`: {error}"
        ) from error
    return citation


def authors(citation: dict) -> list[tuple[str, str]]:
    """Each author as plain text and as BibTeX; a group's name is kept whole."""
    found = []
    for author in citation["authors"]:
        if name := author.get("name"):
            found.append((name, f"{{{_bibtex_text(name)}}}"))
        else:
            given, family = author.get("given-names", ""), author.get("family-names", "")
            name = f"{family}, {given}".strip(", ")
            found.append((name, _bibtex_text(name)))
    return found


def citations(
    citation: dict, *, title: str, key: str, year: str, url: str, book_url: str
) -> tuple[str, str]:
    """How to cite a chapter: a sentence, and BibTeX entries of the chapter and of the book."""
    names = authors(citation)
    plain = "; ".join(name for name, _ in names)
    book, version = citation["title"], str(citation.get("version", ""))
    edition = f"version {version}, " if version else ""
    sentence = f"{plain} ({year}). “{title}”. In {book}, {edition}{url}"
    common = {"author": " and ".join(name for _, name in names)}
    note = {"year": year, "note": f"Version {version}" if version else ""}
    title_of_book = f"{{{_bibtex_text(book)}}}"
    chapter = {"title": f"{{{_bibtex_text(title)}}}", "booktitle": title_of_book}
    entries = [
        _bibtex("incollection", f"llm-learn-{key}", common | chapter | note | {"url": url}),
        _bibtex(
            "misc",
            "llm-learn",
            common | {"title": title_of_book} | note | {"url": book_url},
        ),
    ]
    return sentence, "\n\n".join(entries)


def citation_box(app: Sphinx, docname: str, title: str) -> nodes.Node:
    """A folded block at the end of a chapter."""
    base = app.config.html_baseurl
    day = app.env.book_dates.get(docname)
    year = str(day.year) if day else re.search(r"\d{4}|$", app.config.copyright)[0]
    sentence, entries = citations(
        read_citation(Path(app.srcdir, "CITATION.cff")),
        title=title,
        key=docname.rsplit("/", 1)[-1],
        year=year,
        url=base + app.builder.get_target_uri(docname),
        book_url=base,
    )
    bibtex = nodes.literal_block(entries, entries, language="bibtex")
    return nodes.container(
        "",
        nodes.raw("", "<details><summary>Cite this chapter</summary>", format="html"),
        nodes.paragraph("", sentence),
        bibtex,
        nodes.raw("", "</details>", format="html"),
        classes=["cite-box"],
    )


# --- The page's head and foot ---


def complete_context(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree
) -> None:
    """Adds the feed, the canonical address, and the date of the last change."""
    book, base = app.config.html_title, app.config.html_baseurl
    tags = []
    if day := app.env.book_dates.get(pagename):
        context["last_updated"] = day.isoformat()
    if pagename in MADE:
        text = escape(MADE[pagename].format(book=book))
        tags.append(f'<meta name="description" content="{text}" />')
        tags.append('<meta name="robots" content="noindex" />')
    if base:
        feed, title = context["pathto"]("feed.xml", 1), escape(f"{book}: changes")
        tags.append(
            f'<link rel="alternate" type="application/atom+xml" title="{title}" href="{feed}" />'
        )
        if pagename == app.config.root_doc:
            context["pageurl"] = base
    context["metatags"] = context.get("metatags", "") + "".join(f"\n{tag}" for tag in tags)


# --- Files beside the pages ---


def _xml(root: ElementTree.Element) -> str:
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def sitemap(pages: Iterable[tuple[str, datetime.date | None]]) -> str:
    """The site map of addresses, with the day of their last change where it is known."""
    root = ElementTree.Element("urlset", xmlns=SITEMAP)
    for address, day in pages:
        url = ElementTree.SubElement(root, "url")
        ElementTree.SubElement(url, "loc").text = address
        if day:
            ElementTree.SubElement(url, "lastmod").text = day.isoformat()
    return _xml(root)


def read_changelog(path: Path = CHANGELOG) -> list[dict]:
    """The entries of the changelog, newest last; there is at least one.

    Raises:
        ConfigError: There is no entry, or one lacks a key, or its day is no day or not later than the one before.
    """
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(entries, list) or not entries:
        raise ConfigError(
            f"{path.name} must list at least one entry, but holds {entries!r}"
        )
    before = datetime.date.min
    for number, entry in enumerate(entries, 1):
        where = f"{path.name}: entry {number}"
        if not isinstance(entry, dict) or not {"date", "title", "text"} <= set(entry):
            raise ConfigError(f"{where} needs date, title and text, but is {entry!r}")
        if type(entry["date"]) is not datetime.date:
            raise ConfigError(f"{where}: date is {entry['date']!r}, not like 2026-11-25")
        if entry["date"] <= before:
            raise ConfigError(f"{where}: {entry['date']} must be later than {before}")
        before = entry["date"]
    return entries


def feed(
    entries: list[dict], *, title: str, author: str, base: str, page: str, rights: str = ""
) -> str:
    """The changelog as an Atom feed (RFC 4287).

    Args:
        entries: As `read_changelog` gives them; there is at least one.
        title: The feed's title.
        author: Who writes it.
        base: The site's address, which ends in a slash.
        page: The page of the site that shows the changelog, relative to `base`.
        rights: The licence of the text.
    """
    markdown = MarkdownIt("commonmark", {"html": False})
    # An entry keeps its id as long as it keeps its day (RFC 4151), wherever the words move.
    url = urlsplit(base)
    path = url.path.strip("/") or "book"
    root = ElementTree.Element("feed", {"xmlns": ATOM, "xml:base": base})

    def add(parent: ElementTree.Element, name: str, text: str = "", **attributes: str):
        element = ElementTree.SubElement(parent, name, attributes)
        element.text = text or None
        return element

    add(root, "id", f"{base}feed.xml")
    add(root, "title", title)
    add(root, "updated", f"{entries[-1]['date']}T00:00:00Z")
    add(root, "link", rel="self", type="application/atom+xml", href=f"{base}feed.xml")
    add(root, "link", rel="alternate", type="text/html", href=base + page)
    add(add(root, "author"), "name", author)
    if rights:
        add(root, "rights", rights)
    for entry in reversed(entries):
        element = add(root, "entry")
        add(element, "id", f"tag:{url.hostname},{entry['date']}:{path}/changelog")
        add(element, "title", entry["title"])
        add(element, "updated", f"{entry['date']}T00:00:00Z")
        add(element, "content", markdown.render(entry["text"]).strip(), type="html")
    return _xml(root)


def not_found_page(app: Sphinx) -> str:
    """The page for addresses that do not exist, with the book's contents."""
    env, base = app.env, app.config.html_baseurl
    contents: list[tuple[str, list[tuple[str, str]]]] = []
    for toctree in env.tocs and env.get_doctree(app.config.root_doc).findall(
        lambda node: node.tagname == "toctree"
    ):
        pages = [
            (app.builder.get_target_uri(doc), title or env.titles[doc].astext())
            for title, doc in toctree["entries"]
            if doc in env.titles
        ]
        contents.append((toctree.get("caption") or "Contents", pages))
    source = repository(app.config)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True
    )
    favicon = app.config.html_favicon
    logo = (app.config.html_theme_options or {}).get("logo") or {}
    return environment.get_template("404.html").render(
        base=urlsplit(base).path or "/",
        book=app.config.html_title,
        contents=contents,
        favicon=f"_static/{Path(favicon).name}" if favicon else "",
        issues=source.issues if source else "",
        language=app.config.language or "en",
        logo={
            theme: f"_static/{Path(logo[f'image_{theme}']).name}"
            for theme in ("light", "dark")
        }
        if {"image_light", "image_dark"} <= logo.keys()
        else None,
    )


def write_files(app: Sphinx, error: Exception | None) -> None:
    """Writes what stands beside the pages."""
    if error or app.builder.format != "html":
        return
    out, base, env = Path(app.outdir), app.config.html_baseurl, app.env
    files = {"404.html": not_found_page(app)}
    # On a project's site, crawlers read the robots.txt of the host's root; with a domain of its own, this one.
    files["robots.txt"] = "User-agent: *\nDisallow:\n"
    if base:
        files["robots.txt"] += f"\nSitemap: {base}sitemap.xml\n"
        pages = [
            (
                base
                + ("" if doc == app.config.root_doc else app.builder.get_target_uri(doc)),
                env.book_dates.get(doc),
            )
            for doc in sorted(env.found_docs)
        ]
        files["sitemap.xml"] = sitemap(pages)
        citation = read_citation(Path(app.srcdir, "CITATION.cff"))
        shows = PLAN_PAGE if PLAN_PAGE in env.found_docs else app.config.root_doc
        files["feed.xml"] = feed(
            read_changelog(),
            title=f"{app.config.html_title}: changes",
            author=authors(citation)[0][0],
            base=base,
            page=app.builder.get_target_uri(shows),
        )
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict:
    # The OpenGraph extension declares what this one sets.
    app.setup_extension("sphinxext.opengraph")
    app.connect("config-inited", set_address)
    app.connect("env-updated", read_dates)
    # Before the chapter box comes in, which would be the first paragraph.
    app.connect("doctree-resolved", enrich, priority=400)
    app.connect("html-page-context", complete_context, priority=600)
    app.connect("build-finished", write_files)
    return {
        "version": "1",
        "env_version": 1,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
