"""Mathematics: pandoc's MathML on the page, and what it does not understand stops the build."""

from io import StringIO
from xml.etree import ElementTree

import pytest
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from book.site.mathml import MathematicsError, to_mathml


def test_each_formula_becomes_mathml_that_carries_its_source():
    inline, block = to_mathml([(r"a < \hat b", False), (r"\sum_{i=1}^n x", True)])
    tree = ElementTree.fromstring(inline)
    assert tree.get("alttext") == r"a < \hat b" and tree.get("display") is None
    assert "".join(tree.itertext()) == "a<bˆ", "neither the source nor a combining accent"
    tree = ElementTree.fromstring(block)
    assert tree.get("display") == "block" and tree.find(".//munderover/mo").text == "∑"


@pytest.mark.parametrize(
    "environment", ["aligned", "cases", "pmatrix", "bmatrix", "gathered", "split", "align*"]
)
def test_environments_become_tables(environment):
    rows = r"a &= b \\ c &= d" if environment != "gathered" else r"a \\ b"
    (made,) = to_mathml([(rf"\begin{{{environment}}} {rows} \end{{{environment}}}", True)])
    assert len(list(ElementTree.fromstring(made).iter("mtr"))) == 2


@pytest.mark.parametrize(
    ("latex", "reason"),
    [
        (r"\foo x", r"unexpected control sequence \foo"),
        ("{a", "unexpected eof"),
        (r"\frac{a}", "unexpected eof"),
        ("x & y", "unexpected '&'"),
        (r"a \\ b", r"unexpected control sequence \\"),
        (r"\begin{foo}a\end{foo}", 'unexpected "f"'),
        (r"a \tag{1}", r"unexpected control sequence \tag"),
    ],
)
def test_a_formula_that_is_not_understood_gives_its_reason_and_others_are_converted(
    latex, reason
):
    first, error, last = to_mathml([("x", False), (latex, True), ("x", False)])
    assert first == last and isinstance(first, str)
    assert latex in str(error) and reason in str(error) and "expecting" not in str(error)


CONF = """
extensions = ["myst_nb", "book.site.mathml"]
nb_execution_mode = "off"
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_double_inline = True
"""
PAGE = r"""
# Page of $t$

Text ($x$) of $a$, and.

```{math}
:label: eq-one
e = mc^2
```

See {eq}`eq-one`.

\begin{align}
a &= b \\
c &= d
\end{align}

$$ q \tag{*} $$
"""


def build(folder, page: str) -> tuple[str, str]:
    """Builds one page; returns its HTML and what Sphinx complained of."""
    (folder / "conf.py").write_text(CONF, encoding="utf-8")
    (folder / "index.md").write_text(page, encoding="utf-8")
    out, warnings = folder / "_build", StringIO()
    with patch_docutils(str(folder)), docutils_namespace():
        app = Sphinx(folder, folder, out, out, "html", status=None, warning=warnings)
        app.build()
    return (out / "index.html").read_text(encoding="utf-8"), warnings.getvalue()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_page_shows_numbers_links_and_blocks(tmp_path):
    page, warnings = build(tmp_path, PAGE)
    assert warnings == ""
    assert page.count('display="block"') == 3
    assert 'id="equation-eq-one"' in page and 'href="#equation-eq-one"' in page
    assert '<span class="eqno">(1)' in page and '<span class="eqno">(*)</span>' in page
    assert '<span class="math-joined">(<span' in page, (
        "a bracket before a formula stays at it"
    )
    assert "</math>\u2060</span>" in page, "and so does a sign after it"
    assert page.count('rel="preload"') == 1 and "fonts/math.woff2" in page
    assert "MathJax" not in page


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_page_without_mathematics_does_not_fetch_the_font(tmp_path):
    page, _ = build(tmp_path, "# Page\n\nText.\n")
    assert "math.woff2" not in page


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_an_error_names_page_line_and_formula(tmp_path):
    text = "# Page\n\nGood $x$.\n\nBad $\\foo$.\n\n$$\\bar$$\n"
    with pytest.raises(MathematicsError) as error:
        build(tmp_path, text)
    assert "index.md, line 5:\n  \\foo\n" in str(error.value)
    assert "index.md, line 7:\n  \\bar\n" in str(error.value)
    assert "line 3" not in str(error.value)
