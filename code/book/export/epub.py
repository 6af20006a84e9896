"""Sphinx extension: binds the built site into an EPUB with pandoc, for a reader without a network."""

import json
import os
import re
import subprocess
from html import escape
from pathlib import Path
from urllib.parse import urldefrag, urljoin, urlsplit

import pypandoc
import yaml
from bs4 import BeautifulSoup, SoupStrainer, Tag
from sphinx.application import Sphinx

from book.execute.sphinx_extension import ONLY
from book.read.repository_urls import named

FILE = "llm-learn.epub"
STYLE = Path(__file__).with_name("epub.css")
CODE = re.compile("<pre.*?</pre>", re.DOTALL)
HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]
# Of the website alone, as is the style of its drawings. An exercise's hint or solution stays, and so does a cell that is folded.
LEFT_OUT = (
    "script, style, link, button, form, nav, iframe, template, noscript, svg, .headerlink, .copybtn,"
    " .prev-next-footer, .sd-stretched-link, .box-actions, summary .expanded, img[src*='://']"
)


class CannotBind(ValueError):
    """The site lacks a page of its table of contents, or pandoc cannot read one."""


def prefix(docname: str) -> str:
    """What the ids of a page begin with: in the EPUB's source, all pages are one."""
    return docname.removeprefix("chapters/").replace("/", "-")


def article(site: Path, docname: str, docnames: list[str], address: str) -> Tag:
    """What pandoc shall read of a page.

    Args:
        site: The folder of the built pages.
        docname: The page's name in _toc.yml.
        docnames: All pages of the EPUB. Links to them stay within it.
        address: Of the published site, where other links lead; empty: they become plain words.

    Raises:
        CannotBind: There is no such page, or it has no article.
    """
    path = site / f"{docname}.html"
    if not path.is_file():
        raise CannotBind(f"{path} does not exist: build the book first (make book)")
    text = path.read_text(encoding="utf-8")
    # pandoc colours code itself, and reads it much faster without the colours of the site.
    text = CODE.sub(lambda code: re.sub("</?span[^>]*>", "", code[0]), text)
    page = BeautifulSoup(text, "html.parser", parse_only=SoupStrainer("article"))
    if page.find("h1") is None:
        raise CannotBind(f"{path} has no article with a title")
    for diagram in page.select("svg.diagram"):  # as a file, which brings its own style
        alt = diagram.find("desc").get_text()
        diagram.replace_with(page.new_tag("img", src=diagram["data-image"], alt=alt))
    for element in page.select(LEFT_OUT):
        element.decompose()
    for box in page.select(".live"):  # of a figure that runs on the site
        box.unwrap()
    for element in page.select("[id=exercise-content], [id=solution-content]"):
        del element["id"]  # the same in every exercise of a page
    for element in page.find_all(id=True):
        element["id"] = f"{prefix(docname)}--{element['id']}"
    for link in page.find_all("a", href=True):
        target, anchor = urldefrag(urljoin(f"{docname}.html", link["href"]))
        if target.removesuffix(".html") in docnames:
            start = prefix(target.removesuffix(".html"))
            link["href"] = f"#{start}--{anchor}" if anchor else f"#{start}"
        elif address:
            link["href"] = urljoin(address, urljoin(f"{docname}.html", link["href"]))
        elif not urlsplit(target).scheme:
            link.unwrap()
    for image in page.find_all("img"):
        image["src"] = urljoin(f"{docname}.html", image["src"])
    for formula in page.find_all("math"):
        mode = "; mode=display" if formula.get("display") else ""
        script = page.new_tag("script", type=f"math/tex{mode}")
        script.string = formula["alttext"]
        formula.replace_with(script)
    for block in page.select("div[class*=highlight-]"):
        language = next(name for name in block["class"] if name.startswith("highlight-"))
        block.pre["class"] = language.removeprefix("highlight-").replace(
            "ipython3", "python"
        )
    for element in page.find_all(["details", "summary"]):  # many readers cannot unfold
        element["class"] = element.name
        element.name = "div" if element.name == "details" else "p"
    for element in page.find_all(["dt", "p"], id=True):  # whose ids pandoc does not keep
        element.insert(0, page.new_tag("span", id=element["id"]))
    for heading in page.select("section > :is(h1, h2, h3, h4, h5, h6)"):
        for span in heading.find_previous_siblings("span", id=True):
            heading.insert_after(span.extract())
        heading["id"] = heading.parent["id"]
        heading.parent.unwrap()
    title = page.find("h1")
    title.insert_after(page.new_tag("span", id=title.get("id")))
    title["id"] = prefix(docname)
    return page


def bind(root: Path) -> Path:
    """Writes the EPUB of the built site beside its pages, and returns where.

    Raises:
        CannotBind: A page is missing, or pandoc complains.
    """
    site = root.resolve() / "_build" / "html"
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    repository = named((config.get("repository") or {}).get("url"))
    address = (config.get("html") or {}).get("baseurl") or (
        repository.site if repository else ""
    )
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    parts = {
        part["caption"]: [page["file"] for page in part["chapters"]]
        for part in toc["parts"]
    }
    parts = {"": [toc["root"]], **parts}
    docnames = [docname for names in parts.values() for docname in names]
    source = []
    for caption, names in parts.items():
        source.append(f"<h1>{escape(caption)}</h1>" if caption else "")
        for docname in names:
            page = article(site, docname, docnames, address)
            # A part is above its pages, and the first page is beside the parts.
            for heading in page.find_all(HEADINGS[:-1] if caption else HEADINGS[1:-1]):
                heading.name = f"h{int(heading.name[1]) + 1}"
            source.append(page.decode())
    changelog = root / "code/book/data/changelog.yml"
    entries = yaml.safe_load(changelog.read_text(encoding="utf-8"))
    metadata = {
        "title": config["title"],
        "author": config["author"],
        "lang": "en",
        "rights": "Text: CC BY 4.0. Code: MIT.",
        "date": max(str(entry["date"]) for entry in entries),
        "identifier": address or config["title"],
    }
    target = site / FILE
    temporary = target.with_name(f"{FILE}.tmp")
    command = [
        *(pypandoc.get_pandoc_path(), "--from=html-auto_identifiers", "--to=epub3"),
        *("--mathml", "--split-level=2", "--toc-depth=2", f"--css={STYLE}"),
        *(f"--metadata={name}:{value}" for name, value in metadata.items()),
        *("--fail-if-warnings", f"--output={temporary}"),
    ]
    done = subprocess.run(
        command, cwd=site, input="".join(source), encoding="utf-8", stderr=subprocess.PIPE
    )
    if done.returncode:
        temporary.unlink(missing_ok=True)
        raise CannotBind(f"pandoc wrote no EPUB:\n{done.stderr}")
    return temporary.replace(target)


def bind_site(app: Sphinx, exception: Exception | None) -> None:
    """Binds the whole book when its site is built.

    After an edit of prose alone the file stays as it was, since it takes longer than such a build: `make epub`.
    """
    if exception or app.builder.name != "html" or not app.config.book_epub:
        return
    root = Path(app.srcdir)
    last = json.loads((root / "_build" / "last-build.json").read_text(encoding="utf-8"))
    if last["executed"] or not (Path(app.outdir) / FILE).is_file():
        print(f"\nEPUB: {bind(root)}", flush=True)


def setup(app: Sphinx) -> dict:
    # Pages link to it. A preview of one chapter has none.
    app.add_config_value("book_epub", ONLY not in os.environ, "")
    app.connect("build-finished", bind_site)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
