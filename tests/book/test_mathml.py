"""Mathematics: what the book writes is understood, what is not understood stops the build."""

from io import StringIO
from xml.etree import ElementTree

import pytest
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from book.mathfont import FONT, REPERTOIRE
from book.mathml import KNOWN, FormulaError, MathematicsError, split_tag, styled, to_mathml


def tree(latex: str, display: bool = False) -> ElementTree.Element:
    return ElementTree.fromstring(to_mathml(latex, display))


def shape(latex: str, display: bool = False) -> list[tuple[str, str]]:
    """Each leaf of a formula: its element and text."""
    return [(e.tag, e.text or "") for e in tree(latex, display).iter() if not len(e)]


def spaces(latex: str) -> list[tuple[str, str, str]]:
    return [
        (e.text or "", e.get("lspace"), e.get("rspace")) for e in tree(latex).iter("mo")
    ]


@pytest.mark.parametrize(
    ("latex", "leaves"),
    [
        (r"\operatorname{softmax}(x)", "softmax ( x )"),
        (r"\mathrm{KL}(p\,\|\,q)", "KL ( p  ‖  q )"),
        (r"\lVert q\rVert^2", "‖ q ‖ 2"),
        (r"\mathbf{W} \mathbb{E} \mathcal{L} \boldsymbol{\theta}", "𝐖 𝔼 ℒ 𝜽"),
        (r"\bm{x} \mathbb{1} \mathbf{12}", "𝒙 𝟙 𝟏𝟐"),
        (r"\sqrt[3]{x} + \tfrac12", "x 3 + 1 2"),
        (r"\underbrace{a+b}_{n}", "a + b ⏟ n"),
        (r"\overset{a}{=} \hat y", "= a  y ˆ"),
        (r"x\sim\Phi \to \infty", "x ∼ Φ → ∞"),
        (r"\operatorname*{arg\,max}_a f'", "arg max a  f ′"),
        (r"\binom nk \lfloor x \rfloor", "( n k ) ⌊ x ⌋"),
        (r"a \text{ if } b", "a \u00a0if\u00a0 b"),
        (r"\#\{i : x_i < 3\}", "# { i : x i < 3 }"),
        (r"\left.\frac ab\right|_x", " a b | x"),
    ],
)
def test_constructs_are_understood(latex, leaves):
    assert " ".join(text for _, text in shape(latex)) == leaves
    assert {e.tag for e in tree(latex, True).iter()} <= KNOWN


def test_every_formula_carries_its_source_and_only_blocks_are_displayed():
    assert tree(r"a < \frac{1}{b}").get("alttext") == r"a < \frac{1}{b}"
    assert tree("x").get("display") is None and tree("x", True).get("display") == "block"


def test_names_of_functions_are_words_and_single_letters_are_not():
    assert shape(r"\log \operatorname{Var}") == [
        ("mi", "log"),
        ("mspace", ""),
        ("mi", "Var"),
    ]
    assert [text for _, text in shape("ab")] == ["a", "b"]


@pytest.mark.parametrize(
    ("latex", "expected"),
    [
        ("a+b", [("+", "0.222em", "0.222em")]),
        ("a=-b", [("=", "0.278em", "0"), ("−", "0.278em", "0")]),
        ("-b", [("−", "0", "0")]),
        ("f(a,b)", [("(", "0", "0"), (",", "0", "0.167em"), (")", "0", "0")]),
        ("1{,}000", [(",", "0", "0")]),
        ("x_{i=1}", [("=", "0", "0")]),
        (r"a \mid b", [("∣", "0.278em", "0.278em")]),
        ("a/b", [("/", "0", "0")]),
        (r"\le \ge", [("≤", "0", "0"), ("≥", "0", "0")]),
    ],
)
def test_signs_have_the_space_of_tex(latex, expected):
    assert spaces(latex) == expected


def test_a_function_stands_off_its_argument_but_not_off_a_parenthesis():
    assert [e.get("width") for e in tree(r"\log x").iter("mspace")] == ["0.167em"]
    assert not list(tree(r"\log(x)").iter("mspace"))


def test_brackets_grow_only_where_asked():
    def grows(latex: str) -> list[str | None]:
        return [e.get("stretchy") for e in tree(latex, True).iter("mo")]

    assert grows(r"(\frac ab)") == ["false", "false"]
    assert grows(r"\left(\frac ab\right)") == ["true", "true"]
    assert grows(r"\big|") == ["true"]
    assert grows(r"\begin{bmatrix}1\end{bmatrix}") == ["true", "true"]


def test_limits_stand_below_in_a_block():
    assert tree(r"\max_i x", True).find(".//munder/mo").text == "max"
    assert tree(r"\sum_{i=1}^n x", True).find(".//munderover/mo").text == "∑"


def test_lines_are_aligned_and_cases_have_a_brace():
    aligned = tree(r"\begin{aligned} a &= b\\ c &= d \end{aligned}", True)
    table = aligned.find(".//mtable")
    assert table.get("class") == "aligned"
    assert [cell.get("class") for cell in table.iter("mtd")] == ["right", "left"] * 2
    cases = tree(r"\begin{cases} 1 & x > 0\\ 0 & \text{else}\end{cases}", True)
    assert cases.find(".//mo").text == "{" and cases.find(".//mo").get("stretchy") == "true"
    assert {cell.get("class") for cell in cases.iter("mtd")} == {"left"}


@pytest.mark.parametrize(
    ("latex", "message"),
    [
        (r"\foo x", r"\\foo is not known"),
        ("", "it is empty"),
        ("{a", "never closed"),
        ("a}", "no opening one"),
        (r"\frac{a}", "lacks an argument"),
        ("x & y", "& stands where it means nothing"),
        (r"a \\ b", "outside of an environment"),
        (r"\begin{foo}a\end{foo}", "environment 'foo' is none of equation"),
        (r"\begin{cases}a\end{aligned}", "does not match"),
        (r"\begin{cases}a", "never ended"),
        (r"\boxed{x}", "menclose"),
        (r"\text{a $x$}", "mathematics inside"),
        (r"\textbf{a}", "another face"),
        (r"\not= b", "is not known; write"),
        (r"\left( a", "missing right"),
        ("x^", "missing super script"),
        (r"\overline{ab}", "more than one letter"),
        (r"\operatorname{f2}(x)", "name of an operator"),
        (r"\begin{array}{c|c}1 & 2\end{array}", "lines in a table"),
        (r"\mathbb{+\alpha}", "no double-struck form of"),
    ],
)
def test_what_is_not_understood_is_an_error(latex, message):
    with pytest.raises(FormulaError, match=message):
        to_mathml(latex, True)


def test_tags_are_taken_off_and_two_are_an_error():
    assert split_tag(r"a = b \tag{*}") == ("a = b ", "*")
    with pytest.raises(FormulaError, match="more than one"):
        split_tag(r"a \tag{1} b \tag{2}")


def test_alphabets_have_their_old_letters_and_no_others():
    assert styled("RLe", "script") == "ℛℒℯ"
    assert styled("RC", "double-struck") == "ℝℂ"
    assert styled("h", "italic") == "ℎ"
    with pytest.raises(FormulaError, match="alphabet 'gothic' is none of"):
        styled("a", "gothic")


def test_the_font_draws_what_formulas_use():
    from fontTools.ttLib import TTFont

    font = TTFont(FONT)
    drawn = set(map(chr, font.getBestCmap()))
    assert "MATH" in font and FONT.stat().st_size < 64_000
    # Not every code point of a range is a letter; those that the font lacks have another one of old.
    assert len(REPERTOIRE - drawn) < 30
    used = (
        r"\sum\prod\sqrt{x}\partial\nabla\infty\lVert\alpha\omega\Phi\ell\top\odot\approx"
    )
    used += r"\leftarrow\in\le\ne\mathbb{E1R}\mathcal{LDN}\mathbf{Wx0}\bm{x\theta}|\mid\dots\times"
    assert {c for _, text in shape(used) for c in text} <= drawn


CONF = """
extensions = ["myst_nb", "book.mathml"]
nb_execution_mode = "off"
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_double_inline = True
"""
PAGE = r"""
# Page

Text ($x$) of $a$.

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
    assert page.count("<math ") == 5 and page.count('display="block"') == 3
    assert 'id="equation-eq-one"' in page and 'href="#equation-eq-one"' in page
    assert '<span class="eqno">(1)' in page and '<span class="eqno">(*)</span>' in page
    assert '<span class="math-joined">(<span' in page
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
    assert "index.md, line 5: \\foo is not known, in \\foo" in str(error.value)
    assert "line 7" in str(error.value) and "Good" not in str(error.value)
