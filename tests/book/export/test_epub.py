"""The EPUB: complete, linked within itself, and pandoc finds nothing to complain of."""

import json
import re
import shutil
import zipfile
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import yaml

from book.export import epub
from book.export.epub import CannotBind, bind
from book.read.chapters import ROOT

SITE = "https://xiyuanyang-code.github.io/LLM_Learn/"
TOC = """
format: jb-book
root: index
parts:
  - caption: First & only
    chapters:
      - file: chapters/a/one
      - file: chapters/a/two
"""
ONE = r"""<html><body><nav>menu</nav><main><article class="bd-article">
<section id="one"><span id="label-one"></span><h1>One <em>and</em> only<a class="headerlink" href="#one">#</a></h1>
<p>See <a href="two.html#there">there</a>, <a href="#label-one">here</a>, <a href="../../index.html">home</a>,
<a href="../../_sources/one.txt">its source</a>, <a href="https://else.example/">else</a>.</p>
<ul class="box-actions"><li>Open in Colab</li></ul><script>alert(1)</script><button>copy</button>
<section id="below"><h2>Below</h2><p id="twice">a</p></section>
<div class="live" data-bundle="../../_live/live.js"><figure><img loading="lazy" src="../../_images/plot.png" alt="a curve &amp; more"></figure><button>Run</button></div>
<figure class="diagram" id="fig-d"><svg class="diagram" data-image="../../_images/drawing.svg" role="img"><title id="t">Boxes</title>
<desc id="d">two boxes &amp; an arrow</desc><svg class="wide" viewBox="0 0 720 9"><rect width="9"/><text>noise</text></svg></svg>
<figcaption>What it shows.</figcaption></figure><svg class="icon"><path d="M0 0"/></svg>
<img src="https://elsewhere.example/badge.svg">
<math display="block" alttext="\operatorname*{arg\,max}_a b &lt; c"><mi>x</mi></math>
<div class="highlight-ipython3 notranslate"><div class="highlight"><pre><span class="kn">import</span> x &lt; 1</pre></div></div>
<details><summary><p class="collapsed">Show</p><p class="expanded">Show</p></summary><p>hidden</p></details></section></article></main></body></html>"""
DRAWING = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 9" width="720" height="9"><title>Boxes</title>
<style>svg.diagram { fill: none; }</style><rect width="9" height="9"/></svg>"""
TWO = """<html><body><article class="bd-article"><section id="two"><h1>Two</h1>
<dl><dt id="there">There.</dt><dd id="twice">b</dd></dl></section></article></body></html>"""


@pytest.fixture
def root(tmp_path):
    files = {
        "_toc.yml": TOC,
        "_build/html/index.html": TWO.replace("Two", "Home"),
        "_build/html/chapters/a/one.html": ONE,
        "_build/html/chapters/a/two.html": TWO,
        "_build/html/_images/plot.png": "not really",
        "_build/html/_images/drawing.svg": DRAWING,
        "code/book/data/changelog.yml": "- {date: 2026-01-02}\n- {date: 2026-03-04}\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "_config.yml", tmp_path)
    return tmp_path


@pytest.fixture
def files(root):
    with zipfile.ZipFile(bind(root)) as archive:
        return {name: archive.read(name).decode("utf-8") for name in archive.namelist()}


@pytest.fixture
def page(files):
    """The page with everything."""
    (text,) = (
        text for name, text in files.items() if "<em>and</em>" in text and "ch" in name
    )
    return text


def test_the_package_is_named_and_dated_and_its_id_is_the_address_of_the_site(files):
    package = ElementTree.fromstring(files["EPUB/content.opf"])
    assert package.find(".//{*}title").text == "LLM Learn"
    assert package.find(".//{*}identifier").text == SITE
    assert package.find(".//{*}date").text == "2026-03-04"
    assert "CC BY" in package.find(".//{*}rights").text
    assert [i.get("properties") for i in package.iterfind(".//{*}item")].count(
        "mathml"
    ) == 1


def test_the_contents_have_the_parts_and_their_pages(files):
    contents = ElementTree.fromstring(files["EPUB/nav.xhtml"]).find(".//{*}nav/{*}ol")
    assert ["".join(item.find("{*}a").itertext()) for item in contents] == [
        "Home",
        "First & only",
    ]
    below = contents.findall("{*}li/{*}ol/{*}li/{*}a")
    assert ["".join(link.itertext()) for link in below] == ["One and only", "Two"]


def test_what_is_the_website_s_alone_is_gone(page):
    for gone in ("_live", "Colab", "menu", "alert", "copy", "#</a>", "badge"):
        assert gone not in page
    assert "One <em>and</em> only" in page and "hidden" in page and "<details" not in page
    assert page.count(">Show<") == 1
    assert '<span class="im">import</span>' in page, "code is coloured"
    assert "<munder>" in page and "b &lt; c</annotation>" in page


def test_links_stay_within_or_lead_to_the_site(files, page):
    links = re.findall(
        r'<a href="([^"#]*)(?:#([^"]*))?"[^>]*>(?:there|here|home|its|else)', page
    )
    assert [anchor for _, anchor in links[:3]] == [
        "a-two--there",
        "a-one--label-one",
        "index",
    ]
    assert [file for file, _ in links[3:]] == [
        f"{SITE}_sources/one.txt",
        "https://else.example/",
    ]
    assert 'id="a-one--label-one"' in page, "a label before a heading stays with it"
    for file, anchor in links[:3]:
        assert files[f"EPUB/text/{file}" if file else ""].count(f'id="{anchor}"') == 1


def test_without_an_address_a_link_to_the_site_is_only_its_words(root):
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    del config["repository"]
    (root / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with zipfile.ZipFile(bind(root)) as archive:
        text = "".join(
            archive.read(name).decode() for name in archive.namelist() if "ch0" in name
        )
    assert "its source" in text and "_sources" not in text


def test_pictures_are_packed_with_their_description(files, page):
    image, _ = ElementTree.fromstring(page).iterfind(".//{*}img")
    assert image.get("alt") == "a curve & more"
    assert files[image.get("src").replace("..", "EPUB")] == "not really"


def test_a_diagram_is_packed_as_the_file_with_its_own_style(files, page):
    root = ElementTree.fromstring(page)
    _, image = root.iterfind(".//{*}img")
    assert image.get("alt") == "two boxes & an arrow"
    assert files[image.get("src").replace("..", "EPUB")] == DRAWING
    assert "What it shows." in page and "noise" not in page and "<svg" not in page


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("chapters/a/two.html", "", r"two\.html does not exist"),
        ("chapters/a/two.html", "<p>x</p>", r"two\.html has no article"),
        ("_images/plot.png", "", r"plot\.png"),
    ],
)
def test_what_cannot_be_bound_is_named_and_nothing_is_written(root, name, text, complaint):
    path = root / "_build" / "html" / name
    path.unlink()
    if text:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(CannotBind, match=complaint):
        bind(root)
    assert not list((root / "_build/html").glob("*.epub*"))


@pytest.mark.parametrize(
    ("executed", "there", "changes", "written"),
    [
        ([], False, {}, True),
        ([], True, {}, False),
        (["chapters/a/one"], True, {}, True),
        ([], False, {"exception": OSError()}, False),
        ([], False, {"builder": "linkcheck"}, False),
        ([], False, {"book_epub": False}, False),
    ],
)
def test_a_build_writes_it_where_something_ran_or_it_is_missing(
    tmp_path, monkeypatch, executed, there, changes, written
):
    app = SimpleNamespace(
        srcdir=tmp_path,
        outdir=tmp_path,
        builder=SimpleNamespace(name=changes.get("builder", "html")),
        config=SimpleNamespace(book_epub=changes.get("book_epub", True)),
    )
    (tmp_path / "_build").mkdir()
    (tmp_path / "_build/last-build.json").write_text(json.dumps({"executed": executed}))
    if there:
        (tmp_path / epub.FILE).touch()
    bound = []
    monkeypatch.setattr(epub, "bind", bound.append)
    epub.bind_site(app, changes.get("exception"))
    assert bound == ([tmp_path] if written else [])


def test_the_book_s_contents_have_no_deeper_level():
    """Which the EPUB would leave out."""
    text = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    assert "sections:" not in text and text.count("file:") > 50
