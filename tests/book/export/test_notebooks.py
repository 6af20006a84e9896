"""Published notebooks say what the page says, in plain Markdown, begin with their install cell, and open in Colab."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from docutils import nodes
from docutils.core import publish_doctree
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from tinybook import FRONT, REPOSITORY, TinyBook

from book.export import notebooks
from book.export.notebook_cells import CannotWrite, MarkdownWriter, raw_syntax

PAGE = "https://somebody.github.io/Tiny/chapters/part/alpha.html"
DRAWING = """<svg xmlns="http://www.w3.org/2000/svg"><title>Box</title>
<svg class="wide" viewBox="0 0 720 90"/><svg class="narrow" viewBox="0 0 320 90"/></svg>"""
# What a chapter of this book may hold. Every construct is here once.
RICH = (
    FRONT.replace("  budget", "  extras: [more]\n  budget")
    + r"""
# Alpha

Text with *emphasis*, **strength**, `code`, $a_b \cdot c^*$, a snake_case word, 2 * 3 < 7 and \$5 [in brackets].

(idea-alpha)=
## The idea

See {ref}`the question <idea-alpha>`, [the part](beta.md), {eq}`eq-one`, {numref}`fig-one`, {doc}`gamma`
and [a page elsewhere](https://example.org/a_b).

$$
x = \sum_i y_i
$$ (eq-one)

```{code-cell} ipython3
---
tags: [hide-input]
mystnb:
  image: {alt: a dot}
  figure: {caption: A dot at $x$., name: fig-one}
---
import base64
from IPython.display import Image
Image(base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="))
```

- one

  in two paragraphs
- two
  1. first
  2. second

> A quotation.

```{diagram} drawing.svg
:name: fig-drawing
:alt: A box with a word in it, and nothing else that matters.

One *box*.
```

```{admonition} Mind the *gap*
:class: warning
It is wide.
```

```{dropdown} A drawer
With a sock.
```

| a | b |
|---|---|
| $\vert x \vert$ | one \| two |

Term
: Its meaning.

```python
print("shown, not run")
```

:::{note}
A plain note.
:::

% a comment
<!-- another -->

```{exercise-start}
:label: ex-alpha-one
```
Do it.

```{hint}
:class: dropdown
Think.
```

```{code-cell} ipython3
:tags: [exercise-starter]
print("Not yet")
```
```{exercise-end}
```

```{solution-start} ex-alpha-one
:class: dropdown
```
Before.

```{code-cell} ipython3
print("Correct.")
```

After.
```{solution-end}
```

1986\. A great year.
"""
)


@pytest.mark.parametrize(
    "text",
    [
        "{term}`token`",
        "{cite:t}`x`",
        "```{note}\nx\n```",
        ":::{tip}",
        "(here)=",
        "% no",
        "+++",
    ],
)
def test_raw_syntax_is_noticed(text):
    assert raw_syntax(f"before\n\n{text}\n\nafter")


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> TinyBook:
    book = TinyBook(tmp_path_factory.mktemp("book"))
    book.replace(
        "_config.yml",
        "sphinx:\n",
        "parse:\n  myst_enable_extensions: [amsmath, colon_fence, deflist, dollarmath]\nsphinx:\n  config: {numfig: true}\n",
    )
    diagrams = f"book.pages.diagrams: {REPOSITORY / 'code'}, book.export.notebooks"
    book.replace("_config.yml", "book.export.notebooks", diagrams)
    book.write("chapters/part/drawing.svg", DRAWING)
    book.write("chapters/part/alpha.md", RICH)
    done = book.build()
    assert done.returncode == 0, done.stdout + done.stderr
    return book


def cells_of(book: TinyBook, name: str = "alpha") -> list:
    return nbformat.read(book.published(name), as_version=4).cells


@pytest.mark.slow
def test_markdown_says_what_the_page_says(book):
    text = "\n\n".join(c.source for c in cells_of(book) if c.cell_type == "markdown")
    for piece in (
        "# Alpha\n",
        "Text with *emphasis*, **strength**, `code`, $a_b \\cdot c^*$, a snake\\_case word,",
        "2 \\* 3 &lt; 7 and \\$5 \\[in brackets\\].",
        "## The idea",
        f"[the question]({PAGE}#idea-alpha)",
        f"[the part]({PAGE.replace('alpha', 'beta')})",
        f"[(1)]({PAGE}#equation-eq-one)",
        f"[Fig. 1]({PAGE}#fig-one)",
        "[a page elsewhere](https://example.org/a_b)",
        "$$\nx = \\sum_i y_i\n\\tag{1}\n$$",
        "**Figure 1.** A dot at $x$.",
        "![A box with a word in it, and nothing else that matters.](https://somebody.github.io/Tiny/_images/drawing.svg)",
        "**Figure 2.** One *box*.",
        "- one\n\n  in two paragraphs\n\n- two\n\n  1. first\n  2. second",
        "> A quotation.",
        "> **Mind the *gap***\n>\n> It is wide.",
        "<details>\n<summary>A drawer</summary>\n\nWith a sock.\n\n</details>",
        "| a | b |\n| --- | --- |\n| $\\vert x \\vert$ | one \\| two |",
        "- **Term**: Its meaning.",
        '```python\nprint("shown, not run")\n```',
        "> **Note**\n>\n> A plain note.",
        "**Exercise 1**\n\nDo it.",
        "<details>\n<summary>Hint</summary>\n\nThink.\n\n</details>",
        "<details>\n<summary>Solution to Exercise 1</summary>\n\nBefore.\n\n</details>",
        "*Solution to Exercise 1, in the next cell: show its code to see it. "
        "Its explanation is folded below.*",
        "<details>\n<summary>Solution to Exercise 1, explained</summary>\n\nAfter.\n\n</details>",
        "1986\\. A great year.",
    ):
        assert piece in text, piece
    assert raw_syntax(text) == []
    assert "a comment" not in text and "<!--" not in text


@pytest.mark.slow
def test_a_diagram_stands_on_the_page_and_its_file_where_the_notebook_links_it(book):
    html = (book.root / "_build/html/chapters/part/alpha.html").read_text(encoding="utf-8")
    assert '<title id="svg-drawing-title">Box</title>' in html and "drawing.svg" in html
    file = book.root / "_build/html/_images/drawing.svg"
    assert "<style>" in file.read_text(encoding="utf-8")


@pytest.mark.slow
def test_code_cells_are_those_of_the_chapter_with_their_outputs(book):
    install, *code = [c for c in cells_of(book) if c.cell_type == "code"]
    executed = [
        c for c in nbformat.read(book.notebook("alpha"), 4).cells if c.cell_type == "code"
    ]
    assert [c.source for c in code] == [c.source for c in executed]
    assert [c.outputs for c in code] == [c.outputs for c in executed]
    hidden = [c.metadata.get("jupyter", {}).get("source_hidden", False) for c in code]
    assert hidden == [
        True,
        False,
        True,
    ]  # the figure's by its tag, the solution's by its place
    solution = code[2]
    assert solution.outputs and solution.metadata["collapsed"] is True
    assert solution.metadata["jupyter"]["outputs_hidden"] is True
    assert all("collapsed" not in c.metadata for c in code[:2])
    counts = [c.execution_count for c in (install, *code)]
    assert counts == [1, 2, 3, 4]


@pytest.mark.slow
def test_the_first_cell_installs_the_commit_with_the_extras(book):
    install, link = cells_of(book)[:2]
    assert (
        'pip install --quiet "llm-learn[more] @ git+https://github.com/Somebody/Tiny@main"'
        in (install.source)
    )
    assert f"[Alpha]({PAGE})" in link.source
    assert '"llm-learn @ git+' in cells_of(book, "beta")[0].source


@pytest.mark.slow
def test_site_offers_the_notebook_and_points_colab_to_it(book):
    html = (book.root / "_build/html/chapters/part/alpha.html").read_text()
    links = re.findall(r'href="(https://colab[^"]*)"', html)
    assert set(links) == {
        "https://colab.research.google.com/github/Somebody/Tiny/blob/notebooks/chapters/part/alpha.ipynb"
    }
    offered = book.root / "_build/html/notebooks/chapters/part/alpha.ipynb"
    assert offered.read_bytes() == book.published("alpha").read_bytes()
    readme = (book.root / "_build/notebooks/README.md").read_text()
    assert "[Alpha](chapters/part/alpha.ipynb)" in readme


@pytest.mark.slow
def test_deleted_notebooks_come_back_and_old_ones_go(book):
    before = book.published("alpha").read_bytes()
    book.published("alpha").unlink()
    old = book.published("renamed")
    old.write_text("{}")
    done = book.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert book.published("alpha").read_bytes() == before and not old.exists()


# --- pieces


def writer(**numbers) -> MarkdownWriter:
    return MarkdownWriter(PAGE, numbers, {})


def test_an_unknown_node_is_an_error_that_names_it():
    class strange(nodes.General, nodes.Element):
        pass

    document = publish_doctree("Text.")
    document += strange()
    with pytest.raises(CannotWrite, match="`strange` has no form in a notebook yet"):
        writer().write(document)


def test_raw_html_is_an_error_but_comments_are_not():
    document = publish_doctree("Text.")
    document += nodes.raw("", "<!-- for authors --><script>1</script>", format="html")
    assert writer().write(document) == ["Text."]
    document += nodes.raw("", "<b>bold</b>", format="html")
    with pytest.raises(CannotWrite, match="raw HTML has no form"):
        writer().write(document)


def test_a_code_cell_inside_a_list_is_an_error():
    document = publish_doctree("- one")
    cell = nodes.container("", nb_element="cell_code", cell_index=1)
    next(document.findall(nodes.list_item)).append(cell)
    with pytest.raises(CannotWrite, match="a code cell stands inside a list"):
        writer().write(document)


@pytest.mark.parametrize(
    ("literal", "markdown"), [("a", "`a`"), ("a`b", "``a`b``"), ("`a", "`` `a ``")]
)
def test_literals_hold_backticks(literal, markdown):
    paragraph = nodes.paragraph("", "", nodes.literal("", literal))
    assert writer().inline(paragraph) == markdown


@pytest.mark.parametrize("start", ["1. ", "- ", "+ ", "# "])
def test_a_paragraph_does_not_become_a_list_or_a_heading(start):
    document = nodes.document(None, None)
    document += nodes.paragraph("", f"{start}is how it begins")
    (text,) = writer().write(document)
    assert "\\" in text and text.replace("\\", "") == f"{start}is how it begins"


def test_every_code_cell_appears_once_and_in_order():
    cells = [new_markdown_cell("x"), new_code_cell("1"), new_code_cell("2")]
    executed = new_notebook(cells=cells)
    assert len(notebooks.published(executed, ["text", 1, 2]).cells) == 3
    for pieces in (["text", 1], [2, 1], [1, 2, 2]):
        with pytest.raises(notebooks.NotebookError, match=r"but the chapter has \[1, 2\]"):
            notebooks.published(executed, pieces)


@pytest.mark.parametrize("mode", [None, "input", "all", "output"])
def test_code_that_the_page_folds_is_hidden(mode):
    document = nodes.document(None, None)
    cell = nodes.container("", nb_element="cell_code", cell_index=0)
    if mode:
        cell["hide_mode"] = mode
    document += cell
    written = writer()
    executed = new_notebook(cells=[new_code_cell("1")])
    pieces = written.write(document)
    (made,) = notebooks.published(executed, pieces, written.hidden).cells
    assert ("cellView" in made.metadata) == (mode in ("input", "all"))
    assert "collapsed" not in made.metadata


def test_an_optional_section_says_so_in_its_heading():
    badge = nodes.inline("", "", nodes.inline("", " ("), nodes.Text("optional"))
    badge += nodes.inline("", ")")
    document = nodes.document(None, None)
    document += nodes.section("", nodes.title("", "Cost", badge))
    assert writer().write(document) == ["# Cost (optional)"]


def test_badges_are_set_apart():
    facts = [nodes.inline("", fact, classes=["material-fact"]) for fact in ("a", "b")]
    paragraph = nodes.paragraph("", "X · Y", nodes.Text(" "))
    paragraph += [facts[0], nodes.Text(" "), facts[1]]
    assert writer().inline(paragraph).endswith("· a · b")


def solution(*children: nodes.Node) -> MarkdownWriter:
    class solution_node(nodes.General, nodes.Element):
        pass

    document = nodes.document(None, None)
    content = nodes.section("", *children)
    document += solution_node("", nodes.title("", "Solution to Exercise 5"), content)
    written = writer()
    written.write(document)
    return written


def code_cell(index: int) -> nodes.Node:
    return nodes.container("", nb_element="cell_code", cell_index=index)


def test_a_solution_is_announced_and_its_words_are_folded():
    words = nodes.paragraph("", "Why.")
    announced = "*Solution to Exercise 5, in the next cell: show its code to see it.*"
    assert solution(code_cell(3)).cells.done == [announced, 3]
    fold = "<details>\n<summary>Solution to Exercise 5</summary>\n\nWhy.\n\n</details>"
    assert solution(words).cells.done == [fold]
    found = solution(words, code_cell(3), code_cell(4))
    assert found.hidden == {3: "all", 4: "all"} and found.cells.done == [
        f"{fold}\n\n*Solution to Exercise 5, in the next cells: show their code to see it.*",
        3,
        4,
    ]


def test_titles_are_shown_as_they_are():
    row = notebooks.table_row("A | *b* [c]", "chapters/x", PAGE)
    assert row.startswith(r"| [A \| \*b\* \[c\]](chapters/x.ipynb) |")
    notebook = new_notebook(cells=[new_code_cell("1")])
    notebooks.with_header(notebook, "x", "A [b]", PAGE)
    assert rf"[A \[b\]]({PAGE})" in notebook.cells[1].source


def test_notebooks_are_decided_once_in_a_build(monkeypatch):
    read = []
    monkeypatch.setattr(
        notebooks, "chapter_source", lambda env, name: read.append(name) or name
    )

    def app(**config) -> SimpleNamespace:
        options = {"repository_url": "https://github.com/o/n"}
        known = {"html_baseurl": "https://o.github.io/n/", "html_theme_options": options}
        return SimpleNamespace(
            builder=SimpleNamespace(format="html"),
            config=SimpleNamespace(**(known | config)),
            env=SimpleNamespace(found_docs={"chapters/a/b", "index"}),
        )

    one = app()
    assert {*notebooks.wanted(one)} == {*notebooks.wanted(one)} == {"chapters/a/b", "index"}
    assert len(read) == 2
    assert notebooks.wanted(app(html_baseurl="")) == {}
    assert notebooks.wanted(app(html_theme_options={})) == {}


@pytest.mark.slow
def test_a_book_without_a_repository_is_built_without_notebooks(tmp_path):
    book = TinyBook(tmp_path)
    book.replace("_config.yml", "url: https://github.com/Somebody/Tiny", "url: ''")
    book.replace("_config.yml", "use_repository_button: true, ", "")
    book.replace("_config.yml", "colab_url: https://colab.research.google.com", "")
    done = book.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert not book.published("alpha").exists()


def test_tags_that_the_proof_obeys_are_kept():
    cell = new_code_cell(
        "1", metadata={"tags": ["nbval-ignore-output"], "mystnb": {"x": 1}}
    )
    (kept,) = notebooks.published(new_notebook(cells=[cell]), [0]).cells
    assert kept.metadata == {"tags": ["nbval-ignore-output"]}


def test_header_is_renewed_not_repeated():
    notebook = new_notebook(cells=[new_code_cell("1")])
    for commit in ("a" * 40, "b" * 40):
        needed = notebooks.requirement("https://github.com/o/n", commit, ["y", "x"])
        notebooks.with_header(notebook, needed, "Title", PAGE)
    assert len(notebook.cells) == 3
    assert (
        f"llm-learn[x,y] @ git+https://github.com/o/n@{'b' * 40}"
        in notebook.cells[0].source
    )
    nbformat.validate(json.loads(nbformat.writes(notebook)))


def test_commit_outside_a_repository(tmp_path: Path):
    assert notebooks.current_commit(tmp_path, "trunk") == "trunk"
