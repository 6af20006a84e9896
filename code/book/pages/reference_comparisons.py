"""Sphinx extension: the page that lists every comparison and every claim that this build verified.

`{verified} totals` counts, `{verified} chapters` lists chapter by chapter. Both are filled when the page is written,
and the page is written again whenever a record changes.
"""

import ast
import re
from functools import cache
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

from book.contract.packaged_cells import (
    HEADER,
    definitions,
    module_names,
    module_path,
    packaged_cells,
)
from book.execute.records import notebook_path, read_record
from book.pages.docutils_nodes import Pages, counted
from book.pages.predictions import claim_id
from book.pages.reference_libraries import (
    DOTTED,
    Reference,
    imported_names,
    resolve,
    shown_difference,
)
from book.read.chapters import Source, chapter_source, planned_chapters
from book.read.repository_urls import Repository, repository

VERIFIED = "chapters/capstone/verified"
CHECK = "llm_learn_check"
HEADS = ["Our code", "Compared with", "Largest difference", "Allowed", "See"]
WIDTHS = [28, 30, 15, 12, 15]


class verified_slot(nodes.General, nodes.Element):
    """Stands where the totals will be, or the comparisons of the chapter that its `slug` names."""


def section_id(slug: str) -> str:
    """The anchor of a chapter on the page."""
    return f"verified-{slug.replace('/', '-')}"


class VerifiedDirective(SphinxDirective):
    """`{verified} totals` or `{verified} chapters`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        kinds = {"totals": self.totals, "chapters": self.chapters}
        name = self.arguments[0]
        if name not in kinds:
            raise self.error(f"verified {name!r} is none of {', '.join(kinds)}")
        self.env.metadata[self.env.docname]["shows_records"] = "*"
        return kinds[name]()

    def totals(self) -> list[nodes.Node]:
        return [verified_slot()]

    def chapters(self) -> list[nodes.Node]:
        self.env.metadata[self.env.docname]["lists_chapters"] = True
        sections: list[nodes.Node] = []
        for slug, entry in executed_chapters(self.env).items():
            anchor = section_id(slug)
            section = nodes.section(
                "",
                nodes.title("", entry["title"]),
                verified_slot(slug=slug),
                ids=[anchor],
                names=[anchor],
            )
            self.state.document.note_explicit_target(section)
            sections.append(section)
        return sections


def executed_chapters(env: BuildEnvironment) -> dict[str, dict]:
    """slug -> entry of chapters.yml of each published chapter that has cells, in the book's order."""
    return {
        slug: entry
        for slug, entry in planned_chapters(env.config.book_plan).items()
        if f"chapters/{slug}" in env.found_docs and chapter_source(env, f"chapters/{slug}")
    }


def pages_that_list_chapters(
    app: Sphinx,
    env: BuildEnvironment,
    added: set[str],
    changed: set[str],
    removed: set[str],
) -> list[str]:
    """A page with a section for each chapter is read again when chapters come or go."""
    if not added | removed:
        return []
    listing = {name for name, data in env.metadata.items() if data.get("lists_chapters")}
    return sorted(listing & env.found_docs)


def check_labels(chapter: Source, root: Path) -> list[str | None]:
    """The label above each check, in the record's order; empty where the notebook was not written."""
    path = notebook_path(root / "_build", chapter.docname)
    if not path.is_file():
        return []
    return labels_of(chapter, nbformat.read(path, as_version=4))


def labels_of(chapter: Source, notebook: nbformat.NotebookNode) -> list[str | None]:
    """The label above each check of an executed notebook, in order."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        label_above(chapter, source.line)
        for cell, source in zip(cells, chapter.cells, strict=False)
        for output in cell.outputs
        if CHECK in output.get("metadata", {})
    ]


def label_above(chapter: Source, line: int) -> str | None:
    """The last label above a line of the chapter."""
    above = [label for number, label in chapter.labels if number < line]
    return above[-1] if above else None


def subject(name: str) -> tuple[str, str]:
    """What a check's name begins with, and the rest: `GPT, logits` gives `GPT` and `logits`.

    The first is empty where the name does not begin with a Python name.
    """
    first, _, rest = name.partition(",")
    return (first, rest.strip()) if DOTTED.fullmatch(first) else ("", name)


# Every check asks every module, and to parse them all takes longer than to write the other pages.
@cache
def _names(source: str) -> frozenset[str]:
    """The definitions of a module, and the methods of its classes."""
    classes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    methods = (n.name for c in classes for n in c.body if isinstance(n, ast.FunctionDef))
    return frozenset([*(definition.name for definition in definitions(source)), *methods])


def packaged_module(name: str, chapter: Source, root: Path) -> str | None:
    """The module of llm_learn that defines `name`; None for what only the chapter defines.

    A method is looked up too. Where several modules have it, the one that the chapter teaches counts.
    """
    found = [
        module
        for module, path in module_names(root / "code/llm_learn").items()
        if name in _names(path.read_text(encoding="utf-8"))
    ]
    headers = (HEADER.match(c.source.split("\n", 1)[0]) for c in packaged_cells(chapter))
    taught = {header["module"] for header in headers if header}
    known = [module for module in found if module in taught] or found
    return known[0] if len(known) == 1 else None


def check_problems(
    chapter: Source, notebook: nbformat.NotebookNode, checks: list[dict], root: Path
) -> list[str]:
    """What the verified table could not place or link of a chapter's checks, each with the remedy."""
    labels = labels_of(chapter, notebook)
    if len(labels) != len(checks) or not all(labels):
        return [
            f"{chapter.where}: {len(checks)} checks are recorded, and {len(labels)} have a cell; each stands "
            "below a label of the page: build the book again, or set one above"
        ]
    problems = []
    for check in checks:
        name = subject(check["name"])[0].partition(".")[0]
        if not name:
            continue  # a phrase, which the page links to the chapter
        own = re.search(rf"^(?:def|class) {re.escape(name)}\b", chapter.text, re.M)
        if not own and not packaged_module(name, chapter, root):
            problems.append(
                f"{check['name']!r}: neither llm_learn nor {chapter.where} defines {name}; begin the name of a "
                "check with what is verified, as the code calls it, or with a phrase"
            )
    return problems


def link(text: str, uri: str, *, code: bool = False) -> nodes.reference:
    inner = nodes.literal("", text) if code else nodes.inline("", text)
    return nodes.reference("", "", inner, refuri=uri, internal="://" not in uri)


class Verified:
    """Makes the nodes of the page."""

    def __init__(self, app: Sphinx, docname: str) -> None:
        self.app, self.env, self.docname = app, app.env, docname
        self.root = Path(app.srcdir)
        self.pages = Pages(app, docname)
        self.source: Repository | None = repository(app.config)

    def totals(self) -> list[nodes.Node]:
        """How many comparisons, and against which libraries."""
        found: list[Reference] = []
        slugs = set()
        for slug in executed_chapters(self.env):
            chapter = chapter_source(self.env, f"chapters/{slug}")
            imported = imported_names(chapter) if chapter else {}
            for check in (read_record(self.root, slug) or {}).get("checks", []):
                found.append(resolve(str(check["against"]), imported))
                slugs.add(slug)
        if not found:
            return [nodes.paragraph("", "This build executed no chapter.")]
        libraries = sorted(
            {(r.library, r.version) for r in found if r.library and r.version},
            key=lambda library: library[0].lower(),
        )
        references = len({reference.name for reference in found})
        text = (
            f"{counted(len(found), 'comparison')} in {counted(len(slugs), 'chapter')}, against "
            f"{counted(references, 'reference')} from {counted(len(libraries), 'library', 'libraries')}."
        )
        rows = []
        for library, version in libraries:
            mine = [r.name for r in found if r.library == library]
            names: list[nodes.Node] = []
            for name in dict.fromkeys(mine):
                names += [nodes.Text(", ")] * bool(names) + [nodes.literal("", name)]
            rows.append(
                [
                    [nodes.Text(library)],
                    [nodes.Text(version)],
                    [nodes.Text(str(len(mine)))],
                    names,
                ]
            )
        heads = ["Library", "Version here", "Comparisons", "Compared with"]
        table = self.pages.table("verified-libraries", heads, [18, 18, 14, 50], rows)
        return [nodes.paragraph("", "", nodes.strong("", text)), table]

    def chapter(self, slug: str) -> list[nodes.Node]:
        """One row for each check of the chapter, and in a second table one for each claim of its text."""
        docname = f"chapters/{slug}"
        record, chapter = read_record(self.root, slug), chapter_source(self.env, docname)
        page = self.app.builder.get_relative_uri(self.docname, docname)
        if record is None or chapter is None:
            return [nodes.paragraph("", "This build did not execute the chapter.")]
        checks, imported = record["checks"], imported_names(chapter)
        labels = check_labels(chapter, self.root)
        if len(labels) != len(checks):  # a preview, or a notebook that was taken away
            labels = [None] * len(checks)
        rows = []
        for check, label in zip(checks, labels, strict=True):
            name, detail = subject(str(check["name"]))
            owner = name.partition(".")[0]
            module = packaged_module(owner, chapter, self.root) if owner else None
            rows.append(
                [
                    self.ours(name, detail, module, page),
                    self.reference(resolve(str(check["against"]), imported)),
                    [
                        nodes.Text(
                            shown_difference(
                                float(check["difference"]), relative=check["relative"]
                            )
                        )
                    ],
                    [nodes.Text(allowed(check))],
                    [link("check", page + self.anchor(label))],
                ]
            )
        tables: list[nodes.Node] = [self.pages.table("verified-table", HEADS, WIDTHS, rows)]
        claims = [
            [
                [nodes.Text(words)],
                [nodes.literal("", ", ".join(record["claims"][name]))],
                [link("cell", f"{page}#{claim_id(name)}")],
            ]
            for name, words in self.env.metadata[docname].get("claims", [])
            if name in record.get("claims", {})
        ]
        if claims:
            heads = ["Claim of the text", "Conditions that hold", "See"]
            tables.append(self.pages.table("verified-claims", heads, [50, 35, 15], claims))
        return tables

    def ours(
        self, name: str, detail: str, module: str | None, page: str
    ) -> list[nodes.Node]:
        if not name:
            return [link(detail, page)]
        uri = page
        if module and self.source:
            file = module_path(self.root / "code/llm_learn", module)
            uri = self.source.file(file.relative_to(self.root).as_posix())
        rest = [nodes.Text(f", {detail}")] if detail else []
        return [link(name, uri, code=True), *rest]

    def reference(self, reference: Reference) -> list[nodes.Node]:
        if not reference.is_code:
            return [nodes.Text(f"{reference.name} (no library)")]
        origin = " ".join(filter(None, (reference.library, reference.version)))
        return [
            nodes.literal("", reference.name),
            nodes.Text(" "),
            nodes.inline("", origin, classes=["verified-version"]),
        ]

    def anchor(self, label: str | None) -> str:
        labels = self.env.get_domain("std").anonlabels
        return f"#{labels[label][1]}" if label in labels else ""


def allowed(check: dict) -> str:
    tolerance = float(check["tolerance"])
    return f"{tolerance:.0e}" if tolerance else "none"


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Puts what this build recorded in the place of the directives' stand-ins."""
    page = Verified(app, docname)
    for node in list(doctree.findall(verified_slot)):
        slug = node.get("slug")
        node.replace_self(page.chapter(slug) if slug else page.totals())


def setup(app: Sphinx) -> dict:
    app.setup_extension("book.pages.docutils_nodes")
    app.add_node(verified_slot)
    app.add_directive("verified", VerifiedDirective)
    app.connect("env-get-outdated", pages_that_list_chapters)
    app.connect("doctree-resolved", fill)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
