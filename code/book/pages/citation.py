"""Sphinx extension: the box "Cite this chapter" at the end of each chapter, filled from CITATION.cff."""

import datetime
import re
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ConfigError

from book.read.chapters import chapter_source


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
    """A folded block with the sentence and the BibTeX entries."""
    base = app.config.html_baseurl
    changed, _ = app.env.git_last_updated.get(docname) or (None, True)
    if changed:
        year = str(datetime.datetime.fromtimestamp(int(changed), datetime.UTC).year)
    else:
        year = re.findall(r"\d{4}|$", app.config.copyright)[0]
    sentence, entries = citations(
        read_citation(Path(app.srcdir, "CITATION.cff")),
        title=title,
        key=docname.rsplit("/", 1)[-1],
        year=year,
        url=base + app.builder.get_target_uri(docname),
        book_url=base,
    )
    return nodes.container(
        "",
        nodes.raw("", "<details><summary>Cite this chapter</summary>", format="html"),
        nodes.paragraph("", sentence),
        nodes.literal_block(entries, entries, language="bibtex"),
        nodes.raw("", "</details>", format="html"),
        classes=["cite-box"],
    )


def append(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Ends a chapter with its box; without the site's address there is nothing to cite."""
    if app.builder.format != "html" or not app.config.html_baseurl:
        return
    section = next(doctree.findall(nodes.section), None)
    if section is not None and chapter_source(app.env, docname):
        section += citation_box(app, docname, app.env.titles[docname].astext())


def setup(app: Sphinx) -> dict:
    app.setup_extension("book.site.publishing_settings")
    # Before the plan ends the chapter with what comes next.
    app.connect("doctree-resolved", append, priority=400)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
