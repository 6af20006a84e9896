"""The EPUB: well-formed, complete, linked within itself, and the same bytes for the same pages."""

import re
import zipfile
from pathlib import PurePosixPath
from xml.etree import ElementTree

import pytest

from book.epub import FILE, Binder, CannotBind, bind, read_toc
from book.source import ROOT

CONFIG = "title: Tiny & small\nauthor: Nobody\nhtml: {baseurl: 'https://someone.example/tiny/'}\n"
TOC = """
format: jb-book
root: index
parts:
  - caption: First
    chapters:
      - file: chapters/a/one
        sections: [{file: chapters/a/two}]
"""
ONE = """<html><body><nav>menu</nav><main><article class="bd-article">
<h1 id="one">One <em>and</em> only<a class="headerlink" href="#one">#</a></h1>
<p>See <a href="two.html#there">there</a>, <a href="#one">here</a>, <a href="../../index.html">home</a>,
<a href="../../_sources/one.txt">its source</a>, <a href="https://else.example/">else</a>.</p>
<ul class="box-actions"><li>Open in Colab</li></ul><script>alert(1)</script><button>copy</button><br><hr>
<figure><img loading="lazy" src="../../_images/plot.png" alt="a curve & more"></figure>
<img src="https://elsewhere.example/badge.svg"><p id="twice">a</p><p id="twice">b</p>
<math display="block"><mi>x</mi></math><details><summary>Show</summary><pre>x &lt; 1</pre></details>
<svg viewbox="0 0 1 1" @click="x"><path d="M0 0"></path></svg></article></main></body></html>"""
TWO = '<html><body><article class="bd-article"><h1>Two</h1><p id="there">There.</p></article></body></html>'


@pytest.fixture
def root(tmp_path):
    files = {
        "_config.yml": CONFIG,
        "_toc.yml": TOC,
        "_build/html/index.html": TWO.replace("Two", "Home"),
        "_build/html/chapters/a/one.html": ONE,
        "_build/html/chapters/a/two.html": TWO,
        "_build/html/_images/plot.png": "not really",
        "code/book/changelog.yml": "- {date: 2026-01-02}\n- {date: 2026-03-04}\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def files(root):
    with zipfile.ZipFile(bind(root)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_toc_is_read_with_its_sections(root):
    parts = read_toc(root / "_toc.yml")
    assert [part.docnames for part in parts] == [
        ("index",),
        ("chapters/a/one", "chapters/a/two"),
    ]
    assert [part.caption for part in parts] == ["", "First"]


def test_readers_find_the_kind_first_and_the_package_by_the_container(root, files):
    with zipfile.ZipFile(root / "_build/html" / FILE) as archive:
        first = archive.infolist()[0]
    assert (first.filename, first.compress_type) == ("mimetype", zipfile.ZIP_STORED)
    assert files["mimetype"] == b"application/epub+zip"
    container = ElementTree.fromstring(files["META-INF/container.xml"])
    path = container.find(".//{*}rootfile").get("full-path")
    package = ElementTree.fromstring(files[path])
    assert package.find(".//{*}title").text == "Tiny & small"
    assert package.find(".//{*}meta").text == "2026-03-04T00:00:00Z"


def test_the_manifest_has_every_file_once_and_the_spine_every_page_in_order(files):
    package = ElementTree.fromstring(files["book/content.opf"])
    items = {i.get("id"): i for i in package.iterfind(".//{*}item")}
    listed = [f"book/{item.get('href')}" for item in items.values()]
    others = {"mimetype", "META-INF/container.xml", "book/content.opf"}
    assert sorted(listed) == sorted(files.keys() - others)
    spine = [items[i.get("idref")].get("href") for i in package.iterfind(".//{*}itemref")]
    assert spine == ["index.xhtml", "contents.xhtml", "a-one.xhtml", "a-two.xhtml"]
    properties = {item.get("href"): item.get("properties") for item in items.values()}
    assert properties["contents.xhtml"] == "nav"
    assert properties["a-one.xhtml"] == "mathml svg" and properties["a-two.xhtml"] is None


def test_what_is_the_website_s_alone_is_gone(files):
    page = files["book/a-one.xhtml"].decode()
    for gone in ("Colab", "menu", "alert", "copy", "#</a>", "loading=", "badge", "@click"):
        assert gone not in page
    assert "One <em>and</em> only" in page and "x &lt; 1" in page and 'open="open"' in page
    assert 'viewBox="0 0 1 1"' in page and "<br/>" in page


def test_links_stay_within_or_lead_to_the_site(files):
    page = files["book/a-one.xhtml"].decode()
    assert re.findall(r'<a href="([^"]*)"', page) == [
        "a-two.xhtml#there",
        "#one",
        "index.xhtml",
        "https://someone.example/tiny/_sources/one.txt",
        "https://else.example/",
    ]


def test_without_an_address_a_link_to_the_site_is_only_its_words(root):
    page = Binder(root / "_build/html", ["chapters/a/one"]).page("chapters/a/one")
    assert "its source" in page.body and "_sources" not in page.body


def test_ids_are_unique_and_pictures_are_packed_with_their_description(files):
    page = files["book/a-one.xhtml"].decode()
    assert page.count('id="twice"') == 1
    (image,) = ElementTree.fromstring(page).iterfind(".//{*}img")
    assert image.attrib == {"src": "images/_images-plot.png", "alt": "a curve & more"}
    assert files["book/images/_images-plot.png"] == b"not really"


@pytest.mark.slow
def test_the_same_pages_give_the_same_bytes(root):
    first = bind(root).read_bytes()
    assert bind(root).read_bytes() == first


@pytest.mark.parametrize("change", ["missing", "empty"])
def test_a_page_that_cannot_be_bound_is_named_and_nothing_is_written(root, change):
    path = root / "_build/html/chapters/a/two.html"
    path.unlink() if change == "missing" else path.write_text("<p>no article</p>")
    with pytest.raises(CannotBind, match=r"two\.html"):
        bind(root)
    assert not list((root / "_build/html").glob("*.epub*"))


def test_a_page_that_is_no_xml_is_named_and_nothing_is_written(root):
    path = root / "_build/html/chapters/a/two.html"
    path.write_text(TWO.replace("There.", "\x01"), encoding="utf-8")
    with pytest.raises(CannotBind, match="chapters/a/two is not well-formed"):
        bind(root)
    assert not list((root / "_build/html").glob("*.epub*"))


def test_every_page_of_the_book_is_in_its_toc_once():
    docnames = [name for part in read_toc(ROOT / "_toc.yml") for name in part.docnames]
    assert len(docnames) == len(set(docnames)) > 50
    assert all((ROOT / f"{name}.md").is_file() for name in docnames)
    assert PurePosixPath(docnames[0]).name == "index"
