"""What the pages load: stylesheets without what no page matches, one script, pictures with their size."""

import struct
from types import SimpleNamespace

import pytest

from book.css import drop_unused_variables, lean_css, matches, moved_addresses, tidy, words
from book.lean import (
    PLAIN_CODE,
    SCRIPT,
    STYLE,
    bundle,
    digest,
    finished,
    own_files,
    png_size,
    script_parts,
    sized_images,
    texts_first,
)
from book.source import ROOT

KNOWN = {"here", "also", "main"}


@pytest.mark.parametrize(
    ("selector", "kept"),
    [
        (".here", True),
        (".here .also", True),
        (".here .gone", False),
        ("#main > p", True),
        ("#gone", False),
        ("article p::before", True),
        (".here:not(.gone)", True),
        (":is(.gone, .here) p", True),
        ('a[href=".gone"]', True),
        (r".sm\:here", False),
    ],
)
def test_a_selector_is_kept_where_a_page_may_match_it(selector, kept):
    assert matches(selector, KNOWN) is kept


@pytest.mark.parametrize(
    ("css", "lean"),
    [
        (".here { color: red; }", ".here{color: red}"),
        (".gone { color: red }", ""),
        (".gone, .here { color: red }", ".here{color: red}"),
        ("@media print { .gone { color: red } }", ""),
        ("@media print { .here { color: red } }", "@media print{.here{color: red}}"),
        ("/* a */ .here { /* b */ color: red }", ".here{color: red}"),
        ('@charset "utf-8"; p { top: 0 }', "p{top: 0}"),
        ('@font-face { font-family: "Font Awesome 6 Free"; src: url(a) }', ""),
        ('.here::after { content: "a  ; b" }', '.here::after{content: "a  ; b"}'),
    ],
)
def test_a_stylesheet_loses_what_no_page_matches(css, lean):
    assert lean_css(css, KNOWN) == lean


def test_a_stylesheet_that_cannot_be_read_is_an_error():
    with pytest.raises(ValueError, match="cannot be read"):
        lean_css("p", KNOWN)


def test_variables_stay_where_a_rule_or_a_page_reads_them():
    css = ":root{--a:1;--b:var(--a);--c:url('x;y');--d:2}p{top:var(--b)}"
    assert drop_unused_variables(css, {"--d"}) == (
        ":root{--a:1;--b:var(--a);--d:2}p{top:var(--b)}"
    )
    assert (
        drop_unused_variables(":root{--a:1;--b:var(--a);--c:2}", {"--c"}) == ":root{--c:2}"
    )


def test_text_is_tidied_outside_of_strings():
    assert tidy('a  {b : "c  /* d */" ; }') == 'a{b : "c  /* d */";}'


@pytest.mark.parametrize(
    ("name", "css", "moved"),
    [
        ("styles/a.css", "url(../b.png)", "url(b.png)"),
        ("styles/a.css", "url(b.png)", "url(styles/b.png)"),
        ("styles/a.css", 'url("data:x")', 'url("data:x")'),
        ("a.css", "url(fonts/b)", "url(fonts/b)"),
    ],
)
def test_addresses_in_a_stylesheet_follow_it(name, css, moved):
    assert moved_addresses(css, name) == moved


def test_words_are_what_may_name_a_class():
    assert {"a-b", "--c", "d_e"} <= words(["<p class='a-b d_e' style='var(--c)'>"])


def script(name: str | None = None, priority: int = 500, **attributes) -> SimpleNamespace:
    return SimpleNamespace(filename=name, priority=priority, attributes=attributes)


def test_scripts_become_parts_in_the_order_of_sphinx():
    context = {
        "body": "",
        "script_files": [
            script("_static/b.js?v=1", 800),
            script("_static/a.js", 200),
            script(body="let x = 1"),
            script("_static/sphinx-thebe.js"),
            script("_static/design-tabs.js", **{"data-x": "y"}),
            script(body="DOCUMENTATION_OPTIONS.pagename = 'x'"),
            script("https://example.org/x.js"),
            script("_static/m.js", type="module"),
        ],
    }
    parts, kept = script_parts(context)
    assert parts == ["a.js", "\nlet x = 1;", "b.js"]
    assert [file.filename for file in kept] == ["https://example.org/x.js", "_static/m.js"]
    context["body"] = '<div class="sd-tab-set">'
    assert any("design-tabs" in str(file.filename) for file in script_parts(context)[1])
    assert texts_first(parts) == ["\nlet x = 1;", "a.js", "b.js"]


def test_scripts_are_ended_and_name_no_source_map():
    assert (
        bundle(["a()", "b() // c\n//# sourceMappingURL=b.map"]) == "a()\n;\nb() // c\n;\n"
    )


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height)


def test_pictures_have_a_size_and_wait_for_the_reader(tmp_path):
    for name, data in (("a.png", png(30, 20)), ("b.png", png(5, 6)), ("c.png", b"no")):
        (tmp_path / name).write_bytes(data)
    assert png_size(tmp_path / "a.png") == (30, 20)
    assert png_size(tmp_path / "c.png") is None and png_size(tmp_path / "d.png") is None
    files = {name: tmp_path / name for name in ("a.png", "b.png", "c.png")}
    body = '<img src="_images/a.png"/><img alt="x" src="../_images/b.png" width="3"/><img src="c.png"/>'
    first, second, third = sized_images(body, files).split("><")
    assert 'width="30" height="20"' in first and "lazy" not in first
    assert 'width="3"' in second and "height" not in second and 'loading="lazy"' in second
    assert "width" not in third and third.count("decoding") == 1


def test_plain_code_is_not_marked_up():
    code = (
        '<span class="k">def</span><span class="w"> </span><span class="nf">f</span><span class="p">(</span>'
        '<span class="n">x</span><span class="p">):</span> <span class="n">n</span> <span class="o">&lt;</span>'
        '<span class="w"><b>1</b></span>'
    )
    assert PLAIN_CODE.sub(r"\1", code) == (
        '<span class="k">def</span> <span class="nf">f</span>(x): n <span class="o">&lt;</span>'
        '<span class="w"><b>1</b></span>'
    )


def test_pages_name_versions_and_only_the_search_loads_its_index():
    page = (
        f'<link href="_static/{STYLE}?v=old" /><script src="_static/{SCRIPT}"></script>'
        '<script src="_static/searchtools.js"></script><script src="searchindex.js"></script>'
    )
    versions = {STYLE: "1", SCRIPT: "2"}
    plain, search = (finished(page, is_search, versions) for is_search in (False, True))
    assert f"{STYLE}?v=1" in plain and f"{SCRIPT}?v=2" in plain and "old" not in plain
    assert "search" not in plain
    assert search.count("<script defer src=") == 2
    assert finished(plain, False, versions) == plain


def test_pages_choose_a_theme_before_they_are_shown():
    page = (
        '<body data-default-mode=""><script>x = localStorage.getItem("mode") || ""</script>'
    )
    new = finished(page, False, {})
    assert 'data-default-mode="auto"' in new and '|| "auto"' in new


def test_a_change_of_what_makes_the_pages_is_noticed(tmp_path):
    names = {path.relative_to(ROOT).as_posix() for path in own_files(ROOT)}
    assert names >= {
        "code/book/plan.py",
        "code/book/mathematics.py",
        "code/book/scripts/ticks.js",
        "code/book/templates/404.html",
        "_static/palette.css",
    }
    file = tmp_path / "a.css"
    file.write_text("a")
    before = digest([file])
    file.write_text("b")
    assert digest([file]) != before
