"""Writes the built site as an EPUB: the same executed pages, for a reader without a network.

What belongs to the website alone is left out: menus, buttons, scripts. Links between pages stay links; those to files
that the EPUB does not have lead to the site, where its address is known.
"""

import re
import sys
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from html import escape
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from urllib.parse import urldefrag, urljoin, urlsplit
from xml.etree import ElementTree

import yaml
from bs4 import BeautifulSoup, Comment, Tag

FILE = "llm-learn.epub"
STYLE = Path(__file__).parent / "templates" / "epub.css"
KINDS = {
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
}
# Of the website alone. An exercise's hint or solution stays, and so does a cell that is folded.
LEFT_OUT = (
    "script, style, link, button, form, nav, iframe, template, noscript, .headerlink, .copybtn,"
    " .prev-next-footer, .sd-stretched-link, .box-actions"
)
ATTRIBUTES = {"viewbox": "viewBox", "preserveaspectratio": "preserveAspectRatio"}
NAMESPACES = {
    "math": "http://www.w3.org/1998/Math/MathML",
    "svg": "http://www.w3.org/2000/svg",
}


class CannotBind(ValueError):
    """The site lacks a page of its table of contents, or one has no article or cannot be XML."""


@dataclass(frozen=True)
class Part:
    """A caption of the table of contents and its pages; the first part has no caption."""

    caption: str
    docnames: tuple[str, ...]


@dataclass
class Page:
    """A page of the EPUB."""

    docname: str
    title: str
    body: str  # XHTML
    has_math: bool
    has_svg: bool
    images: dict[str, Path] = field(default_factory=dict)  # name in the EPUB -> file

    @property
    def name(self) -> str:
        return page_name(self.docname)


def page_name(docname: str) -> str:
    return docname.removeprefix("chapters/").replace("/", "-") + ".xhtml"


def read_toc(path: Path) -> list[Part]:
    """The parts of _toc.yml, and the pages of each in order."""
    toc = yaml.safe_load(path.read_text(encoding="utf-8"))
    parts = [Part("", (toc["root"],))]
    given = toc.get("parts") or [{"chapters": toc.get("chapters", [])}]
    for part in given:
        parts.append(Part(part.get("caption", ""), tuple(_files(part.get("chapters", ())))))
    return [part for part in parts if part.docnames]


def _files(entries: Iterable[dict]) -> Iterator[str]:
    for entry in entries:
        if "file" in entry:
            yield entry["file"]
        yield from _files(entry.get("sections", ()))


class Binder:
    """Makes pages of an EPUB out of those of a built site.

    Args:
        site: folder of the built HTML pages.
        docnames: the pages that the EPUB will have.
        address: of the published site, for links to what the EPUB lacks; empty: such links are dropped.
    """

    def __init__(self, site: Path, docnames: Iterable[str], address: str = "") -> None:
        self.site = site.resolve()
        self.docnames, self.address = set(docnames), address

    def page(self, docname: str) -> Page:
        """The page as XHTML.

        Raises:
            CannotBind: there is no such page, or it has no article.
        """
        path = self.site / f"{docname}.html"
        if not path.is_file():
            raise CannotBind(f"{path} does not exist: build the book first (make book)")
        soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        article = soup.select_one("article.bd-article") or soup.select_one("main, body")
        if article is None:
            raise CannotBind(f"{path} has no article")
        for element in article.select(LEFT_OUT):
            element.decompose()
        for comment in article.find_all(string=lambda text: isinstance(text, Comment)):
            comment.extract()
        for element in article.find_all("details"):
            element["open"] = "open"  # many readers cannot unfold
        heading = article.find("h1")
        images: dict[str, Path] = {}
        for image in article.find_all("img"):
            self._image(docname, image, images)
        for link in article.find_all("a"):
            self._link(docname, link)
        self._well_formed(article)
        return Page(
            docname=docname,
            title=" ".join(heading.get_text().split()) if heading else docname,
            body=article.decode_contents(formatter="minimal"),
            has_math=article.find("math") is not None,
            has_svg=article.find("svg") is not None,
            images=images,
        )

    def _image(self, docname: str, image: Tag, images: dict[str, Path]) -> None:
        source = urlsplit(image.get("src", ""))
        file = (self.site / PurePosixPath(docname).parent / source.path).resolve()
        usable = file.suffix.lower() in KINDS and file.is_relative_to(self.site)
        if source.scheme or not usable or not file.is_file():
            image.decompose()
            return
        # With its folders: two of them may hold files of one name.
        name = "images/" + "-".join(file.relative_to(self.site).parts)
        images[name] = file
        for attribute in ("srcset", "loading", "decoding", "sizes"):
            image.attrs.pop(attribute, None)
        image["src"], image["alt"] = name, image.get("alt", "")

    def _link(self, docname: str, link: Tag) -> None:
        target = link.get("href")
        if target is None or urlsplit(target).scheme:
            return
        path, anchor = urldefrag(target)
        where = f"{docname}.html" if not path else urljoin(f"{docname}.html", path)
        if where.removesuffix(".html") in self.docnames:
            name = page_name(where.removesuffix(".html"))
            same = where == f"{docname}.html" and anchor
            link["href"] = f"#{anchor}" if same else name + (f"#{anchor}" if anchor else "")
        elif self.address:
            link["href"] = urljoin(self.address, where) + (f"#{anchor}" if anchor else "")
        else:
            link.unwrap()

    @staticmethod
    def _well_formed(article: Tag) -> None:
        """What XML is stricter in: each id once, and names of attributes as they must be written."""
        seen = set()
        for element in article.find_all(True):
            identifier = element.get("id")
            if identifier is not None and (identifier in seen or not identifier.strip()):
                del element["id"]
            seen.add(identifier)
            element.attrs = {
                ATTRIBUTES.get(name, name): value
                for name, value in element.attrs.items()
                if re.fullmatch(r"[a-zA-Z_][\w.-]*", name) and name != "xmlns"
            }
            if element.name in NAMESPACES:
                element["xmlns"] = NAMESPACES[element.name]


XHTML = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE html>
<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops" lang="{language}" xml:lang="{language}">
<head><meta charset="utf-8"/><title>{title}</title><link rel="stylesheet" href="style.css"/></head>
<body>
{body}
</body>
</html>
"""
CONTAINER = """<?xml version="1.0" encoding="utf-8"?>
<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
<rootfiles><rootfile full-path="book/content.opf" media-type="application/oebps-package+xml"/></rootfiles>
</container>
"""
PACKAGE = """<?xml version="1.0" encoding="utf-8"?>
<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="id" xml:lang="{language}">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
<dc:identifier id="id">{identifier}</dc:identifier>
<dc:title>{title}</dc:title>
<dc:creator>{author}</dc:creator>
<dc:language>{language}</dc:language>
<dc:rights>{rights}</dc:rights>
<meta property="dcterms:modified">{modified}T00:00:00Z</meta>
</metadata>
<manifest>
{manifest}
</manifest>
<spine>
{spine}
</spine>
</package>
"""


def contents(parts: list[Part], pages: dict[str, Page]) -> str:
    """The table of contents, which is a page too."""
    items = []
    for part in parts:
        links = "".join(
            f'<li><a href="{pages[d].name}">{escape(pages[d].title)}</a></li>'
            for d in part.docnames
        )
        if part.caption:
            items.append(f"<li><span>{escape(part.caption)}</span><ol>{links}</ol></li>")
        else:
            items.append(links)
    return f'<nav epub:type="toc"><h1>Contents</h1><ol>{"".join(items)}</ol></nav>'


def write_epub(
    target: Path,
    parts: list[Part],
    pages: dict[str, Page],
    *,
    title: str,
    author: str,
    modified: str,
    address: str = "",
    language: str = "en",
    rights: str = "Text: CC BY 4.0. Code: MIT.",
    style: str = "",
) -> None:
    """Writes the file, all or nothing; the same pages give the same bytes."""
    files: dict[str, bytes] = {
        "META-INF/container.xml": CONTAINER.encode(),
        "book/style.css": style.encode(),
        "book/contents.xhtml": XHTML.format(
            language=language, title="Contents", body=contents(parts, pages)
        ).encode(),
    }
    manifest = [
        '<item id="style" href="style.css" media-type="text/css"/>',
        '<item id="contents" href="contents.xhtml" media-type="application/xhtml+xml" properties="nav"/>',
    ]
    spine = []
    order = [pages[docname] for part in parts for docname in part.docnames]
    for number, page in enumerate(order):
        text = XHTML.format(language=language, title=escape(page.title), body=page.body)
        try:
            ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            raise CannotBind(f"{page.docname} is not well-formed: {error}") from None
        files[f"book/{page.name}"] = text.encode()
        kinds = [n for n, has in (("mathml", page.has_math), ("svg", page.has_svg)) if has]
        properties = f' properties="{" ".join(kinds)}"' if kinds else ""
        manifest.append(
            f'<item id="page-{number}" href="{page.name}" media-type="application/xhtml+xml"{properties}/>'
        )
        spine.append(f'<itemref idref="page-{number}"/>')
        if number == 0:
            spine.append('<itemref idref="contents"/>')
    images = {name: file for page in order for name, file in page.images.items()}
    for number, (name, file) in enumerate(sorted(images.items())):
        files[f"book/{name}"] = file.read_bytes()
        kind = KINDS[file.suffix.lower()]
        manifest.append(f'<item id="image-{number}" href="{name}" media-type="{kind}"/>')
    files["book/content.opf"] = PACKAGE.format(
        identifier=f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, address or title)}",
        title=escape(title),
        author=escape(author),
        language=language,
        rights=escape(rights),
        modified=modified,
        manifest="\n".join(manifest),
        spine="\n".join(spine),
    ).encode()
    temporary = target.with_name(f"{target.name}.tmp")
    with zipfile.ZipFile(temporary, "w") as archive:
        # Readers look for it at the beginning, uncompressed.
        _add(archive, "mimetype", b"application/epub+zip", zipfile.ZIP_STORED)
        for name, content in files.items():
            is_image = name.startswith("book/images/")
            packed = zipfile.ZIP_STORED if is_image else zipfile.ZIP_DEFLATED
            _add(archive, name, content, packed)
    temporary.replace(target)


def _add(archive: zipfile.ZipFile, name: str, content: bytes, packed: int) -> None:
    entry = zipfile.ZipInfo(name, date_time=(2020, 1, 1, 0, 0, 0))
    entry.compress_type = packed
    archive.writestr(entry, content)


def bind(root: Path) -> Path:
    """Writes the EPUB of the built site beside its pages, and returns where.

    Raises:
        CannotBind: a page is missing.
    """
    from pygments.formatters import HtmlFormatter

    site = root / "_build" / "html"
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    address = (config.get("html") or {}).get("baseurl", "")
    parts = read_toc(root / "_toc.yml")
    docnames = [docname for part in parts for docname in part.docnames]
    binder = Binder(site, docnames, address)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        pages = dict(zip(docnames, pool.map(binder.page, docnames), strict=True))
    changelog = root / "code" / "book" / "changelog.yml"
    entries = (
        yaml.safe_load(changelog.read_text(encoding="utf-8")) if changelog.is_file() else []
    )
    write_epub(
        site / FILE,
        parts,
        pages,
        title=config["title"],
        author=config["author"],
        modified=max((str(entry["date"]) for entry in entries), default="2020-01-01"),
        address=address,
        style=STYLE.read_text(encoding="utf-8")
        + HtmlFormatter(style="tango").get_style_defs(".highlight"),
    )
    return site / FILE


def main(root: Path) -> int:
    try:
        path = bind(root)
    except CannotBind as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{path} ({path.stat().st_size / 2**20:.1f} MB)")
    return 0
