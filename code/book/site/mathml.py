"""Sphinx extension: renders mathematics as MathML with pandoc, so that pages need no script for it."""

import json
import re
import subprocess
from html import escape

import pypandoc
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.locale import _
from sphinx.util.math import get_node_equation_number
from sphinx.util.nodes import traverse_parent
from sphinx.writers.html5 import HTML5Translator

WORD_JOINER = "\u2060"
FONT = "_static/fonts/math.woff2"
# In place of the characters that browsers draw beside the letter: those that stand over its middle.
ACCENTS = str.maketrans("\u0302\u0303\u203e\u0307", "ˆ˜¯˙")
TAG = re.compile(r"\\tag\s*{([^{}]*)}")


class MathematicsError(SphinxError):
    """Stops the build: pandoc does not understand a formula."""

    category = "Mathematics"


def to_mathml(formulas: list[tuple[str, bool]]) -> list[str | ValueError]:
    """The `<math>` element of each formula, with the LaTeX as its alternative text.

    Args:
        formulas: LaTeX on one line, and whether it is shown on a line of its own.

    Returns:
        In place of a formula that pandoc does not understand, an error with its reason.
    """
    kinds = [{"t": "DisplayMath" if display else "InlineMath"} for _, display in formulas]
    blocks = [
        {"t": "Plain", "c": [{"t": "Math", "c": [kind, latex]}]}
        for kind, (latex, _) in zip(kinds, formulas, strict=True)
    ]
    done = subprocess.run(
        [pypandoc.get_pandoc_path(), "--from=json", "--to=html", "--mathml", "--wrap=none"],
        input=json.dumps({"pandoc-api-version": [1, 23], "meta": {}, "blocks": blocks}),
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    warnings = iter(done.stderr.split("[WARNING] ")[1:])
    made: list[str | ValueError] = []
    for (latex, display), line in zip(formulas, done.stdout.splitlines(), strict=True):
        if found := re.search("<semantics>(.*)<annotation", line):
            block = ' display="block"' if display else ""
            content = found[1].translate(ACCENTS)
            made.append(f'<math{block} alttext="{escape(latex)}">{content}</math>')
        else:
            reason = next(warnings).partition(":\n")[2].partition("\n  expecting")[0]
            made.append(ValueError(reason))
    return made


def convert(app: Sphinx, doctree: nodes.document, docname: str | None = None) -> None:
    """Gives the formulas of a page their MathML.

    Raises:
        MathematicsError: Some are not understood; names the file, the line and the formula of each.
    """
    found = [
        node
        for node in doctree.findall(nodes.Element)
        if isinstance(node, nodes.math | nodes.math_block) and "mathml" not in node
    ]
    formulas = []
    for node in found:
        latex, display = " ".join(node.astext().split()), isinstance(node, nodes.math_block)
        if display and not node.get("label") and len(tags := TAG.findall(latex)) == 1:
            latex, node["tag"] = TAG.sub("", latex), tags[0]
        formulas.append((latex, display))
    problems = []
    for node, mathml in zip(found, to_mathml(formulas) if found else [], strict=True):
        node["mathml"] = mathml
        if isinstance(mathml, ValueError):
            line = next(
                (parent.line for parent in traverse_parent(node) if parent.line), "?"
            )
            path = app.env.doc2path(docname or app.env.docname, base=False)
            problems.append(f"\n{path}, line {line}:\n{mathml}")
    if problems:
        raise MathematicsError("".join(problems))


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    """A formula within a line, which does not break off the letters and signs that touch it."""
    place, siblings = node.parent.index(node), node.parent.children
    touching = ""
    if place and isinstance(siblings[place - 1], nodes.Text):
        touching = re.findall(r"\S*$", self.body[-1])[0]
        self.body[-1] = self.body[-1].removesuffix(touching)
    following = siblings[place + 1].astext() if place + 1 < len(siblings) else ""
    joiner = WORD_JOINER if following and not following[0].isspace() else ""
    tag = self.starttag(node, "span", "", CLASS="math notranslate nohighlight")
    formula = f"{tag}{node['mathml']}{joiner}</span>"
    # Browsers would break the line between "(" and a formula, whatever stands between them.
    unbroken = f'<span class="math-joined">{touching}{formula}</span>'
    self.body.append(unbroken if touching else formula)
    raise nodes.SkipNode


def visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math notranslate nohighlight"))
    tag = node.get("tag")
    if number := tag or (node.get("number") and get_node_equation_number(self, node)):
        self.body.append(f'<span class="eqno">({self.encode(number)})')
        if tag is None:
            self.add_permalink_ref(node, _("Link to this equation"))
        self.body.append("</span>")
    self.body.append(f"{node['mathml']}</div>\n")
    raise nodes.SkipNode


def preload_font(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree
) -> None:
    """The browser fetches the font of mathematics together with the stylesheet, on pages that use it."""
    if "<math" in context.get("body", ""):
        address = context["pathto"](FONT, resource=True)
        context["metatags"] = context.get("metatags", "") + (
            f'<link rel="preload" href="{address}" as="font" type="font/woff2" crossorigin>'
        )


def setup(app: Sphinx) -> dict:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    # Before Sphinx copies the titles; and what a page takes from others when it is written.
    app.connect("doctree-read", convert, priority=100)
    app.connect("doctree-resolved", convert)
    app.connect("html-page-context", preload_font)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
