"""Sphinx extension: writes each chapter as a plain notebook with its outputs, for Colab and for download.

The notebooks are written to _build/notebooks, from where the site offers them and a workflow publishes them on the
branch `notebooks`. The proof executes these same files.
"""

import os
from pathlib import Path

import nbformat
from docutils import nodes
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import SphinxError

from book.atomic_files import write_atomically
from book.execute.records import notebook_path
from book.execute.sphinx_extension import ONLY
from book.export.notebook_cells import CannotWrite, MarkdownWriter, escaped, raw_syntax
from book.read.chapters import Source, chapter_source
from book.read.repository_urls import git, repository

FOLDER = "notebooks"
# Colab reads `cellView`, and hides with it the code only; JupyterLab reads the others, of which `collapsed` is the
# older word for a hidden output.
HIDE = {
    "code": {"jupyter": {"source_hidden": True}, "cellView": "form"},
    "all": {
        "jupyter": {"source_hidden": True, "outputs_hidden": True},
        "cellView": "form",
        "collapsed": True,
    },
}
INSTALL = """\
# Installs what this notebook imports where it is missing, as in Colab: at the commit that gave the outputs below.
import importlib.util
import sys

if "google.colab" in sys.modules or importlib.util.find_spec("llm_learn") is None:
    %pip install --quiet "{requirement}"
"""
README = """\
# The chapters of LLM Learn as notebooks

These notebooks are generated from {repository} and replaced whenever the book is published. Each holds the outputs
of the build that was proved, and begins with a cell that installs the book's package at commit
[`{short}`]({repository}/commit/{commit}).

Read the book at {site}. To correct a chapter, change its source in {repository}, not a file here.

| Notebook | |
| --- | --- |
{rows}
"""


class NotebookError(SphinxError):
    category = "The notebooks cannot be published"


def build_folder(app: Sphinx) -> Path:
    """Where this build keeps its files: beside its pages, which are a preview's where one chapter is built."""
    return Path(app.outdir).parent


def published_path(build: Path, docname: str) -> Path:
    """The notebook of a chapter that Colab opens."""
    return build / FOLDER / f"{docname}.ipynb"


def page_address(app: Sphinx, docname: str) -> str:
    return app.config.html_baseurl + app.builder.get_target_uri(docname)


def wanted(app: Sphinx) -> dict[str, Source]:
    """The chapters of which this build writes a notebook: those that it executed, or found in the cache.

    Without the site's address a notebook could not link back, without the repository's it could not install.
    """
    # Once for each build: it reads every chapter, and every page asks.
    found = getattr(app, "book_notebooks", None)
    if found is None:
        known = app.config.html_baseurl and repository(app.config)
        only = os.environ.get(ONLY)
        found = {
            docname: chapter
            for docname in (app.env.found_docs if known else ())
            if only in (None, docname) and (chapter := chapter_source(app.env, docname))
        }
        app.book_notebooks = found  # pyrefly: ignore[missing-attribute]
    return found if app.builder.format == "html" else {}


def missing(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """The pages to write again because their notebook was deleted."""
    build = build_folder(app)
    return sorted(d for d in wanted(app) if not published_path(build, d).is_file())


def write_notebook(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Writes a chapter's cells when its page is written: only then is every reference resolved."""
    env = app.env
    if docname not in wanted(app):
        return
    executed = nbformat.read(notebook_path(build_folder(app), docname), as_version=4)
    images = {
        uri: f"{app.config.html_baseurl}_images/{name}"
        for uri, (_, name) in env.images.items()
    }
    writer = MarkdownWriter(
        page_address(app, docname), env.toc_fignumbers.get(docname, {}), images
    )
    try:
        pieces = writer.write(doctree)
        for left in (
            raw for text in pieces if isinstance(text, str) for raw in raw_syntax(text)
        ):
            raise CannotWrite(f"MyST left {left!r} unread: correct it")
    except CannotWrite as error:
        raise NotebookError(f"{docname}.md: {error}") from None
    notebook = published(executed, pieces, writer.hidden)
    write_atomically(published_path(build_folder(app), docname), _text(notebook))


def _text(notebook: NotebookNode) -> str:
    return nbformat.writes(notebook) + "\n"


def published(
    executed: NotebookNode, pieces: list[str | int], hidden: dict[int, str] | None = None
) -> NotebookNode:
    """A notebook of Markdown cells and executed cells, in the order of the page.

    Args:
        executed: the executed notebook.
        pieces: Markdown, or the index of a code cell in `executed`.
        hidden: the cells whose "code" is hidden, as on the page, or "all", as of solutions.

    Raises:
        NotebookError: a code cell of the chapter is not on the page, or stands there twice.
    """
    code = [i for i, cell in enumerate(executed.cells) if cell.cell_type == "code"]
    shown = [piece for piece in pieces if isinstance(piece, int)]
    if shown != code:
        raise NotebookError(
            f"the page shows the code cells {shown}, but the chapter has {code}"
        )
    cells = []
    for piece in pieces:
        if isinstance(piece, str):
            cells.append(new_markdown_cell(piece))
            continue
        cell = executed.cells[piece]
        tags = cell.metadata.get("tags", [])
        metadata = {"tags": tags} if tags else {}
        metadata |= HIDE.get((hidden or {}).get(piece, ""), {})
        # The install cell is first.
        count = cell.execution_count and cell.execution_count + 1
        cells.append(
            new_code_cell(
                cell.source, outputs=cell.outputs, execution_count=count, metadata=metadata
            )
        )
    notebook = new_notebook(cells=cells)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": executed.metadata.get("language_info", {"name": "python"}),
        "colab": {"provenance": []},
    }
    return notebook


def requirement(repository: str, commit: str, extras: list[str]) -> str:
    """What pip installs for a chapter: the package of one commit, with the extras that the chapter names."""
    names = f"[{','.join(sorted(extras))}]" if extras else ""
    return f"llm-learn{names} @ git+{repository}@{commit}"


def finish(app: Sphinx, error: Exception | None) -> None:
    """Begins every notebook with its install cell and a way back to the page, and puts copies beside the site."""
    if error or app.builder.format != "html":
        return
    env, build, source = app.env, build_folder(app), repository(app.config)
    commit = current_commit(Path(app.srcdir), source.branch) if source else ""
    address = source.url if source else ""
    rows = []
    for docname, chapter in sorted(wanted(app).items()):
        title, page = env.titles[docname].astext(), page_address(app, docname)
        extras = chapter.meta.get("extras") or []
        path = published_path(build, docname)
        notebook = nbformat.read(path, as_version=4)
        with_header(notebook, requirement(address, commit, extras), title, page)
        for target in (path, published_path(Path(app.outdir), docname)):
            write_atomically(target, _text(notebook))
        rows.append(table_row(title, docname, page))
    notebooks = build / FOLDER
    for path in {*notebooks.rglob("*.ipynb")}:
        if path.relative_to(notebooks).with_suffix("").as_posix() not in wanted(app):
            path.unlink()  # the chapter was renamed, or left the book
    if rows:
        readme = README.format(
            repository=address,
            site=app.config.html_baseurl,
            commit=commit,
            short=commit[:12],
            rows="\n".join(rows),
        )
        write_atomically(notebooks / "README.md", readme)


def table_row(title: str, docname: str, page: str) -> str:
    """The chapter's row in the list of all notebooks."""
    text = escaped(title).replace("|", r"\|")
    return f"| [{text}]({docname}.ipynb) | [on the site]({page}) |"


def with_header(notebook: NotebookNode, needed: str, title: str, page: str) -> None:
    """Puts the install cell first, or renews the one that is there."""
    if notebook.cells and "install" in notebook.cells[0].metadata.get("tags", ()):
        del notebook.cells[:2]
    install = new_code_cell(
        INSTALL.format(requirement=needed).rstrip(),
        execution_count=1,
        metadata={"tags": ["install"]},
    )
    link = new_markdown_cell(
        f"*This is the notebook of the chapter [{escaped(title)}]({page}) of LLM Learn. "
        "Its outputs are those of the page; on another processor, digits can differ.*"
    )
    notebook.cells[:0] = [install, link]
    # Repeatable: two builds of one commit write the same bytes.
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"


def current_commit(root: Path, branch: str) -> str:
    """The commit that is checked out; the branch outside a repository."""
    return (git(root, "rev-parse", "HEAD") or branch).strip()


def point_to_colab(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict,
    doctree: nodes.document | None,
) -> None:
    """The theme's button opens the page's source, which Colab cannot read: it gets the notebook instead."""
    if pagename not in app.env.found_docs or not chapter_source(app.env, pagename):
        return
    stack = list(context.get("header_buttons", []))
    source = repository(app.config)
    while stack and source:
        button = stack.pop()
        stack.extend(button.get("buttons", []))
        if "colab" in str(button.get("url", "")):
            button["url"] = source.colab(pagename)
    # The theme's own copy of the notebook lacks the install cell, and shows raw MyST.
    context.pop("ipynb_source", None)


def setup(app: Sphinx) -> dict:
    app.connect("env-updated", missing, priority=950)
    # Before the extensions that add what only the site shows: boxes, folds, citations.
    app.connect("doctree-resolved", write_notebook, priority=350)
    app.connect("html-page-context", point_to_colab, priority=900)
    app.connect("build-finished", finish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
