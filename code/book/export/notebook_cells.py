"""Writes a page that Sphinx has resolved as cells of plain Markdown and code.

Nothing of MyST can be left over, because nothing of it is read: directives, roles, citations and glued values are
document nodes by now. A kind of node that is unknown here is an error, not a gap in the notebook.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeGuard
from urllib.parse import urljoin

from docutils import nodes

ADMONITIONS = {"note", "hint", "tip", "important", "warning", "caution"}
ADMONITIONS |= {"attention", "danger", "error", "seealso"}
# They carry nothing that is read: anchors, and what only the site shows.
SILENT = {"target", "comment", "substitution_definition", "index", "meta", "colspec"}
SILENT_CLASSES = {"sd-summary-icon", "sd-summary-state-marker"}
# What MyST would read, and a notebook would show: roles, directives, labels, options, comments, cell breaks.
RAW = re.compile(
    r"\{[\w:-]+\}`[^`\n]*`?|^\s*[`:~]{3,}\s*\{.*|^:::.*|^\([\w-]+\)=\s*$|^\s*:(?:class|label|name|tags):.*"
    r"|^%\s.*|^\+\+\+.*|\{glue.*",
    re.MULTILINE,
)


def raw_syntax(markdown: str) -> list[str]:
    """What is left of MyST in Markdown, code aside."""
    code = r"^(`{3,})\w*\n.*?^\1$|(?<!\})`[^`\n]+`"
    text = re.sub(code, "", markdown, flags=re.DOTALL | re.MULTILINE)
    return [found[0] for found in RAW.finditer(text)]


class CannotWrite(Exception):
    """A page holds something that has no form in Markdown here."""


@dataclass
class Cells:
    """The page so far: Markdown as text, code cells as their index in the executed notebook."""

    done: list[str | int] = field(default_factory=list)
    paragraphs: list[str] = field(default_factory=list)

    def write(self, markdown: str) -> None:
        if markdown.strip():
            self.paragraphs.append(markdown.strip("\n"))

    def code(self, index: int) -> None:
        self.close()
        self.done.append(index)

    def close(self) -> list[str | int]:
        if self.paragraphs:
            self.done.append("\n\n".join(self.paragraphs))
            self.paragraphs = []
        return self.done


class MarkdownWriter:
    """Turns one resolved document into cells.

    Args:
        address: where the page stands on the web; links are written relative to it.
        numbers: the numbers that Sphinx gave, by kind (`figure`, `exercise`) and anchor.
        images: the address of each image file, by the document's name for it.
    """

    def __init__(
        self,
        address: str,
        numbers: dict[str, dict[str, tuple[int, ...]]],
        images: dict[str, str],
    ) -> None:
        self.address, self.numbers, self.images = address, numbers, images
        self.cells = Cells()
        self.depth = 0
        self.hidden: dict[int, str] = {}  # of code cells: that "code" or "all" is hidden

    def write(self, document: nodes.document) -> list[str | int]:
        """Markdown cells as text, code cells as indices of the executed notebook, in the page's order."""
        self.blocks(document.children)
        return self.cells.close()

    # --- Blocks ---

    def blocks(self, children: Iterable[nodes.Node]) -> None:
        for node in children:
            self.block(node)

    def block(self, node: nodes.Node) -> None:
        kind = type(node).__name__
        if kind in SILENT or SILENT_CLASSES & set(_classes(node)):
            return
        form = "admonition" if kind in ADMONITIONS else kind
        method: Callable | None = getattr(self, f"block_{form}", None)
        if method is None:
            raise self._unknown(node)
        method(node)

    def inside(self, children: Iterable[nodes.Node]) -> str:
        """The Markdown of blocks that are nested in another, where no code cell can stand."""
        outer, self.cells = self.cells, Cells()
        try:
            self.blocks(children)
            pieces = self.cells.close()
        finally:
            self.cells = outer
        texts = [piece for piece in pieces if isinstance(piece, str)]
        if len(texts) < len(pieces):
            raise CannotWrite(
                "a code cell stands inside a list, a quotation or a box: put it between them"
            )
        return "\n\n".join(texts)

    def block_section(self, node: nodes.section) -> None:
        self.depth += 1
        self.blocks(node.children)
        self.depth -= 1

    def block_title(self, node: nodes.title) -> None:
        self.cells.write(f"{'#' * max(1, self.depth)} {self.inline(node)}")

    def block_paragraph(self, node: nodes.paragraph) -> None:
        text = self.inline(node)
        # At the start of a line these would begin a list or a heading.
        text = re.sub(r"^(\d+)([.)])(?=\s)", r"\1\\\2", text)
        self.cells.write(re.sub(r"^([-+#])(?=\s)", r"\\\1", text))

    block_rubric = block_paragraph

    def block_compound(self, node: nodes.Element) -> None:
        self.blocks(node.children)

    def block_math_block(self, node: nodes.math_block) -> None:
        formula = node.astext().strip()
        number = self._number("displaymath", node) or node.get("number")
        number = f"\n\\tag{{{number}}}" if number else ""
        if node.get("nowrap") and formula.startswith("\\begin"):
            self.cells.write(formula)
        else:
            self.cells.write(f"$$\n{formula}{number}\n$$")

    def block_literal_block(self, node: nodes.literal_block) -> None:
        language = node.get("language", "")
        language = "" if language in ("none", "default", "myst-ansi") else language
        text = node.astext().strip("\n")
        fence = _fence(text, 3)
        self.cells.write(f"{fence}{language}\n{text}\n{fence}")

    def block_bullet_list(self, node: nodes.bullet_list) -> None:
        self.cells.write(self._list(node, lambda _: "- "))

    def block_enumerated_list(self, node: nodes.enumerated_list) -> None:
        first = node.get("start", 1)
        self.cells.write(self._list(node, lambda n: f"{first + n}. "))

    def _list(self, node: nodes.Element, mark: Callable[[int], str]) -> str:
        items = []
        for number, item in enumerate(node.children):
            bullet = mark(number)
            body = self.inside(item.children) or " "
            items.append(bullet + _indent(body, " " * len(bullet)).lstrip(" "))
        loose = any(len(item.children) > 1 for item in node.children)
        return ("\n\n" if loose else "\n").join(items)

    def block_definition_list(self, node: nodes.definition_list) -> None:
        entries = []
        for item in node.children:
            terms = [self.inline(t) for t in item.children if isinstance(t, nodes.term)]
            body = self.inside(
                child
                for d in item.children
                if isinstance(d, nodes.definition)
                for child in d.children
            )
            entries.append(f"- **{', '.join(terms)}**: " + _indent(body, "  ").lstrip(" "))
        self.cells.write("\n".join(entries))

    def block_block_quote(self, node: nodes.block_quote) -> None:
        self.cells.write(_indent(self.inside(node.children), "> "))

    def block_attribution(self, node: nodes.attribution) -> None:
        self.cells.write(f"— {self.inline(node)}")

    def block_transition(self, node: nodes.transition) -> None:
        self.cells.write("---")

    def block_table(self, node: nodes.table) -> None:
        group = next(node.findall(nodes.tgroup))
        rows = [
            [self._entry(entry) for entry in row.children]
            for row in group.findall(nodes.row)
        ]
        if not any(isinstance(child, nodes.thead) for child in group.children):
            rows.insert(0, [" "] * len(rows[0]))
        for title in node.findall(nodes.title):
            self.cells.write(f"**{self.inline(title)}**")
        lines = [f"| {' | '.join(row)} |" for row in rows]
        lines.insert(1, f"|{' --- |' * len(rows[0])}")
        self.cells.write("\n".join(lines))

    def _entry(self, entry: nodes.Node) -> str:
        # A bar would end the cell of the table, in a formula too.
        text = "<br>".join(self.inside([child]) for child in entry.children)
        text = re.sub(r"\\\|", r"\\Vert ", text).replace("\n", " ")
        return text.replace("|", r"\vert ") if "$" in text else text.replace("|", r"\|")

    def block_figure(self, node: nodes.figure) -> None:
        for child in node.children:
            if isinstance(child, nodes.caption):
                self._caption(node, child)
            elif isinstance(child, nodes.legend):
                self.blocks(child.children)
            else:
                self.block(child)

    def _caption(self, figure: nodes.figure, caption: nodes.caption) -> None:
        number = self._number("figure", figure)
        name = f"**Figure {number}.** " if number else ""
        self.cells.write(name + self.inline(caption))

    def block_image(self, node: nodes.image) -> None:
        self.cells.write(self.inline_image(node))

    def block_reference(self, node: nodes.reference) -> None:
        self.cells.write(self.inline_reference(node))

    def block_raw(self, node: nodes.raw) -> None:
        if node.get("format") != "html":
            return
        # Comments for authors, and scripts of the site's extensions.
        text = re.sub(
            r"<!--.*?-->|<script\b.*?</script>", "", node.astext(), flags=re.DOTALL
        ).strip()
        if text:
            raise CannotWrite(f"raw HTML has no form in a notebook here: {text[:60]!r}")

    def block_admonition(self, node: nodes.Element) -> None:
        children = list(node.children)
        title = type(node).__name__.capitalize()
        if children and isinstance(children[0], nodes.title):
            title = self.inline(children.pop(0))
        self._box(title, self.inside(children), "dropdown" in _classes(node))

    def _box(self, title: str, body: str, hidden: bool) -> None:
        if hidden:
            self.cells.write(
                f"<details>\n<summary>{title}</summary>\n\n{body}\n\n</details>"
            )
        else:
            self.cells.write(_indent(f"**{title}**\n\n{body}", "> "))

    def block_container(self, node: nodes.container) -> None:
        if node.get("nb_element") == "cell_code":
            self.cells.code(node["cell_index"])
            if node.get("hide_mode") in ("input", "all"):
                self.hidden.setdefault(node["cell_index"], "code")
            for figure in node.findall(nodes.figure):
                for caption in figure.findall(nodes.caption):
                    self._caption(figure, caption)
        else:
            self.blocks(node.children)

    def block_dropdown_main(self, node: nodes.Element) -> None:
        title, *rest = node.children
        self._box(self.inline(title), self.inside(rest), hidden=True)

    def block_footnote(self, node: nodes.footnote) -> None:
        label, *rest = node.children
        self.cells.write(f"<sup>{label.astext()}</sup> {self.inside(rest)}")

    # --- sphinx-exercise ---

    def block_exercise_node(self, node: nodes.Element) -> None:
        number = self._number("exercise", node)
        title = f"Exercise {number}" if number else "Exercise"
        self.cells.write(f"**{title}**")
        for child in node.children[1:]:
            self.blocks(child.children)

    block_exercise_enumerable_node = block_exercise_node

    def block_solution_node(self, node: nodes.Element) -> None:
        """Text of a solution folds; its code cells are hidden by the notebook, which folds no cell."""
        title = self._plain(node.children[0])
        texts: list[str] = [""]  # before the first code cell, and after each one
        code: list[nodes.Element] = []
        pieces: list[nodes.Node] = []
        for child in [block for part in node.children[1:] for block in part.children]:
            if _is_element(child) and child.get("nb_element") == "cell_code":
                texts[-1] = self.inside(pieces)
                texts.append("")
                code.append(child)
                pieces = []
            else:
                pieces.append(child)
        texts[-1] = self.inside(pieces)
        if texts[0]:
            self._box(title, texts[0], hidden=True)
        if code:
            what, whose = ("cell", "its") if len(code) == 1 else ("cells", "their")
            more = " Its explanation is folded below." if any(texts[1:]) else ""
            self.cells.write(
                f"*{title}, in the next {what}: show {whose} code to see it.{more}*"
            )
        for cell, text in zip(code, texts[1:], strict=True):
            self.hidden[cell["cell_index"]] = "all"
            self.block(cell)
            if text:
                self._box(f"{title}, explained", text, hidden=True)

    # --- Inline ---

    def inline(self, node: nodes.Node) -> str:
        """The Markdown of what stands inside a paragraph."""
        return "".join(self.inline_node(child) for child in node.children).strip()

    def inline_node(self, node: nodes.Node) -> str:
        if isinstance(node, nodes.Text):
            return escaped(node.astext().replace("\n", " "))
        kind = type(node).__name__
        if kind in SILENT or SILENT_CLASSES & set(_classes(node)):
            return ""
        method: Callable | None = getattr(self, f"inline_{kind}", None)
        if method is None:
            raise self._unknown(node)
        return method(node)

    def inline_inline(self, node: nodes.Element) -> str:
        # Not stripped: a space may stand at its edge.
        text = "".join(self.inline_node(child) for child in node.children)
        # The site sets such facts apart as badges.
        return f"· {text}" if "material-fact" in _classes(node) else text

    inline_generated = inline_abbreviation = inline_inline

    def inline_emphasis(self, node: nodes.Element) -> str:
        return f"*{self.inline(node)}*"

    def inline_strong(self, node: nodes.Element) -> str:
        return f"**{self.inline(node)}**"

    def inline_literal(self, node: nodes.Element) -> str:
        text = node.astext().replace("\n", " ")
        ticks = _fence(text, 1)
        pad = " " if text.startswith("`") or text.endswith("`") else ""
        return f"{ticks}{pad}{text}{pad}{ticks}"

    def inline_math(self, node: nodes.math) -> str:
        formula = " ".join(node.astext().split())
        return f"${formula}$"

    def inline_subscript(self, node: nodes.Element) -> str:
        return f"<sub>{self.inline(node)}</sub>"

    def inline_superscript(self, node: nodes.Element) -> str:
        return f"<sup>{self.inline(node)}</sup>"

    def inline_reference(self, node: nodes.reference) -> str:
        text = self.inline(node)
        target = node.get("refuri") or (f"#{node['refid']}" if node.get("refid") else "")
        return f"[{text}]({urljoin(self.address, target)})" if target else text

    inline_number_reference = inline_reference

    def inline_footnote_reference(self, node: nodes.Element) -> str:
        return f"<sup>{node.astext()}</sup>"

    def inline_image(self, node: nodes.image) -> str:
        if node["uri"] not in self.images:
            raise CannotWrite(f"the image {node['uri']} has no address on the site")
        alt = escaped(node.get("alt", "")).replace("\n", " ")
        return f"![{alt}]({self.images[node['uri']]})"

    def inline_raw(self, node: nodes.raw) -> str:
        self.block_raw(node)
        return ""

    # --- Help ---

    def _number(self, kind: str, node: nodes.Element) -> str:
        for anchor in node.get("ids", ()):
            if number := self.numbers.get(kind, {}).get(anchor):
                return ".".join(map(str, number))
        return ""

    def _plain(self, node: nodes.Node) -> str:
        return " ".join(node.astext().split())

    def _unknown(self, node: nodes.Node) -> CannotWrite:
        line = f", line {node.line}" if getattr(node, "line", None) else ""
        return CannotWrite(
            f"`{type(node).__name__}`{line} has no form in a notebook yet: write it another way, or teach "
            "code/book/export/notebook_cells.py to write it"
        )


def _classes(node: nodes.Node) -> list[str]:
    return node.get("classes", []) if _is_element(node) else []


def _is_element(node: nodes.Node) -> TypeGuard[nodes.Element]:
    return isinstance(node, nodes.Element)


def escaped(text: str) -> str:
    """Text as Markdown that shows it as it is."""
    return re.sub(r"([\\`*_\[\]$])", r"\\\1", text).replace("<", "&lt;")


def _indent(text: str, prefix: str) -> str:
    return "\n".join((prefix + line).rstrip() for line in text.split("\n"))


def _fence(text: str, at_least: int) -> str:
    """Backticks, more in a row than the text has."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    return "`" * max(at_least, longest + 1 if longest else 0)
