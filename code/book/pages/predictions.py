"""Sphinx extension: questions whose answer is what a cell computed, and sentences bound to a claim of a cell.

Both are completed from the record of the execution when the page is written. What does not fit is a warning, which
fails the build of the book.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import ReferenceRole, SphinxDirective

from book.execute.records import read_record
from book.pages.docutils_nodes import counted
from book.read.chapters import chapter_source

# The options of a question, and the reason of each.
KEYS = (["a", "a!", "b", "b!", "c", "c!"], ["a", "a!", "b", "b!", "c", "c!", "d", "d!"])
PENDING = "The answer appears here once this page has been executed."
logger = logging.getLogger(__name__)


def claim_id(name: str) -> str:
    """The anchor of the cell that makes a claim."""
    return f"claim-{name}"


def key_of(item: nodes.Node) -> str:
    """`a` of an option `a: …`, and `a!` of its reason `a!: …`."""
    return next(item.findall(nodes.Text), nodes.Text("")).partition(": ")[0]


def split(content: Sequence[nodes.Node]) -> list[nodes.Node]:
    """The question, the list of its options, and the list of their reasons, each in the order of the letters.

    Raises:
        ValueError: the question, an option or a reason is missing or stands twice.
    """
    *stem, listed = content or [nodes.paragraph()]
    items = sorted(listed.children, key=key_of)
    if not stem or [key_of(item) for item in items] not in KEYS:
        raise ValueError(
            "expected a question, then a list of options a, b, c and at most d, each with its reason, as "
            f"`- a: …` and `- a!: …`; found {', '.join(map(key_of, items)) or 'no list'}"
        )
    for item in items:
        text, key = next(item.findall(nodes.Text)), key_of(item)
        # A letter in words, for every reader and every format.
        letter, rest = nodes.strong("", f"{key[0]}:"), text.removeprefix(f"{key}:")
        text.parent.replace(text, [letter, nodes.Text(rest)])
    return [*stem, nodes.bullet_list("", *items[::2]), nodes.bullet_list("", *items[1::2])]


class PredictDirective(SphinxDirective):
    """`{predict} name`: a question, its options `- a: …`, and for each of them a reason `- a!: …`."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        name, chapter = self.arguments[0], self.env.docname.rpartition("/")[2]
        try:
            if not name.startswith(f"{chapter}-"):
                raise ValueError(f"the name must begin with `{chapter}-`")
            content = split(self.parse_content_to_nodes())
        except ValueError as error:
            raise self.error(f"predict {name!r}: {error}") from error
        label = nodes.paragraph("", "", nodes.strong("", "Predict"))
        label["classes"] = ["predict-label"]
        # docutils makes an anchor of the name, and warns where it stands twice.
        node = nodes.container("", label, *content, question=name)
        node["classes"], node["names"] = ["predict"], [f"predict-{name}"]
        self.set_source_info(node)
        self.state.document.note_explicit_target(node)
        return [node]


class ClaimRole(ReferenceRole):
    """`` {claim}`words <name>` ``: words of a sentence, and the claim of a cell that supports them."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        if not self.has_explicit_title:
            problem = f"claim {self.text!r} lacks words or a name: write `words <name>`"
            return [], [self.inliner.reporter.error(problem, line=self.lineno)]
        words = " ".join(self.title.split())
        # For the page of everything verified.
        metadata = self.env.metadata[self.env.docname]
        metadata.setdefault("claims", []).append([self.target, words])
        node = nodes.inline("", words, claim=self.target)
        self.set_source_info(node)
        return [node], []


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Answers the questions of a page, and links its claims to their cells."""
    chapter = chapter_source(app.env, docname)
    # A page without cells is never executed, so nothing can be pending there.
    record = read_record(Path(app.srcdir), chapter.slug) if chapter else {}
    containers = [*doctree.findall(nodes.container)]
    for node in [node for node in containers if "question" in node]:
        answer(node, record)
    cells = [node for node in containers if node.get("nb_element") == "cell_code"]
    for node in [node for node in doctree.findall(nodes.inline) if "claim" in node]:
        bind(node, record, cells)


def answer(node: nodes.container, record: dict | None) -> None:
    """Folds the answer below a question, or says that it is pending where the page was not executed."""
    name, reasons = node["question"], dict(zip("abcd", node.pop().children, strict=False))
    key = (record or {}).get("answers", {}).get(name)
    if right := reasons.pop(key, None):
        title, others = nodes.title("", "Answer"), nodes.bullet_list("", *reasons.values())
        # Pages, notebooks and the EPUB know this class: it folds where that is possible.
        classes = ["dropdown", "predict-answer"]
        node += nodes.admonition("", title, *right.children, others, classes=classes)
    else:
        node += nodes.paragraph("", PENDING)
        if record is not None:
            problem = "predict %r: the executed answer is %r, expected one of %s"
            logger.warning(problem, name, key, ", ".join(reasons), location=node)


def bind(node: nodes.inline, record: dict | None, cells: list[nodes.container]) -> None:
    """Links a claim to its cell, and warns where fewer conditions than needed were executed."""
    name, words = node["claim"], list(node.children)
    conditions = (record or {}).get("claims", {}).get(name, [])
    needed = 2 if isinstance(node.parent, nodes.strong) else 1  # bold words are general
    if record is not None and len(conditions) < needed:
        problem = "claim %r: expected %s in an executed cell, found %s"
        found = ", ".join(conditions) or "none"
        logger.warning(problem, name, counted(needed, "condition"), found, location=node)
    call = re.compile(rf'\bclaim\(\s*"{re.escape(name)}"')
    if cell := next((cell for cell in cells if call.search(cell.astext())), None):
        cell["ids"] = list(dict.fromkeys([*cell["ids"], claim_id(name)]))
        link = nodes.reference("", "", *words, refid=claim_id(name), internal=True)
        link["classes"], link["reftitle"] = ["claim"], "To the cell that checks this"
        words = [link]
    node.replace_self(words)


def setup(app: Sphinx) -> dict:
    app.setup_extension("book.pages.docutils_nodes")
    app.add_directive("predict", PredictDirective)
    app.add_role("claim", ClaimRole())
    # Before book.export.notebooks looks at the page.
    app.connect("doctree-resolved", fill, priority=300)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
