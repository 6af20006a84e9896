"""Sphinx extension: figures that run in the page.

A cell that calls `trace_figure("fig-name", kind, …)` records what a figure of that name shows step by step; it runs as soon as it
is near. `{live} kind` runs a model on the reader's own text, after a click. Without a script, in print, in notebooks and in
the EPUB the image stays.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path

import nbformat
from docutils import nodes
from docutils.parsers.rst.directives import unchanged
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.osutil import relative_uri

from book.atomic_files import write_atomically
from book.execute.records import notebook_path
from book.read.chapters import ROOT, chapter_source
from llm_learn.javascript.scripts import ENGINE, bundle
from llm_learn.notebook import TRACE

LIVE = Path(__file__).parents[1] / "live"
logger = logging.getLogger(__name__)


class LiveDirective(SphinxDirective):
    """`{live} kind` with `:model:` and `:text:`, and `:figure:`, a figure of this page, or an image as its content."""

    required_arguments = 1
    has_content = True
    option_spec = dict.fromkeys(("figure", "model", "text"), unchanged)

    def run(self) -> list[nodes.Node]:
        given = dict(self.options)
        figure = given.pop("figure", "")
        if {*given} != {"model", "text"} or bool(figure) == bool(self.content):
            raise self.error("{live} needs :model:, :text:, and either :figure: or content")
        weights = weights_path(given["model"])
        if not weights.is_file():
            raise self.error(f"there is no {weights.relative_to(ROOT)}")
        self.env.note_dependency(str(weights))
        text = given["text"].replace("\\n", "\n")
        wanted = {
            "kind": self.arguments[0],
            "figure": figure,
            "model": given["model"],
            "text": text,
        }
        if figure:
            # Not in the document, of which notebooks are written, too.
            self.env.metadata[self.env.docname].setdefault("live", []).append(wanted)
            return []
        return [nodes.container("", *self.parse_content_to_nodes(), live=wanted)]


def weights_path(model: str) -> Path:
    """The recorded weights of a model."""
    return ROOT / "experiments" / f"{model}.safetensors"


def traces(app: Sphinx, docname: str) -> dict[str, dict]:
    """What the cells of a page have recorded, by the names of its figures."""
    path = notebook_path(Path(app.outdir).parent, docname)
    if not chapter_source(app.env, docname) or not path.is_file():
        return {}
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return {
        output["metadata"]["scrapbook"]["name"]: json.loads(output["data"][TRACE])
        for output in outputs
        if TRACE in output.get("data", {})
    }


class Files:
    """Writes what a page loads for its figures; a file's name changes with its content."""

    def __init__(self, app: Sphinx, docname: str) -> None:
        self.folder = Path(app.outdir)
        self.here = app.builder.get_target_uri(docname)

    def write(self, name: str, text: str) -> str:
        """The address of a file with this text."""
        stem, suffix = name.split(".")
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        file = f"_live/{stem}-{digest}.{suffix}"
        if not (path := self.folder / file).is_file():
            write_atomically(path, text)
        return relative_uri(self.here, file)

    def write_data(self, name: str, value: object) -> str:
        """The address of a script with this value: other than data, a script also loads from file://."""
        shown = json.dumps(value, separators=(",", ":"))
        return self.write(
            f"{name}.js", f"(window.liveData ??= {{}})[{json.dumps(name)}] = {shown};\n"
        )


@cache
def script() -> str:
    """The script that all figures share."""
    return bundle([ENGINE, LIVE], "live")


def opening(files: Files, kind: str, data: dict, values: dict[str, object]) -> nodes.raw:
    """Begins the box of a figure that runs, with what the loader must know."""
    attributes = {
        "kind": kind,
        "data": json.dumps(data),
        "files": json.dumps(
            {name: files.write_data(name, value) for name, value in values.items()}
        ),
        "bundle": files.write("live.js", script()),
        "style": files.write("live.css", (LIVE / "live.css").read_text(encoding="utf-8")),
    }
    shown = " ".join(f'data-{key}="{escape(value)}"' for key, value in attributes.items())
    return nodes.raw("", f'<div class="live" {shown}>', format="html")


def closing(size: int) -> nodes.raw:
    """Ends the box; a size in bytes asks the reader first."""
    text = f"Run it here (loads {size / 1e6:.1f} MB)"
    button = (
        f'<button type="button" class="live-start" hidden>{text}</button>' if size else ""
    )
    return nodes.raw("", f"{button}</div>", format="html")


def surround(
    nodes_inside: Sequence[nodes.Node], before: nodes.Node, after: nodes.Node
) -> None:
    parent = nodes_inside[0].parent
    first = parent.index(nodes_inside[0])
    parent.insert(first + len(nodes_inside), after)
    parent.insert(first, before)


def run_figures(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Puts what a figure needs to run around it."""
    if app.builder.format != "html":
        return
    figures: dict[str, list[nodes.Node]] = {}
    for node in doctree.findall(nodes.figure):
        figures |= {name: [node] for name in node["names"]}
    wanted = [*app.env.metadata[docname].get("live", [])]
    for node in [node for node in doctree.findall(nodes.container) if "live" in node]:
        figures[node["live"]["text"]] = node.children
        wanted.append({**node["live"], "figure": node["live"]["text"]})
        del node.attributes["live"]
    for name, trace in traces(app, docname).items():
        wanted.append({"kind": trace["kind"], "figure": name, "trace": trace["data"]})
    files = Files(app, docname)
    for figure in wanted:
        kind, name = figure["kind"], figure["figure"]
        if name not in figures or not (LIVE / f"{kind}.js").is_file():
            problem = "%r of kind %r: expected a figure of this page, and a kind in %s"
            logger.warning(problem, name, kind, LIVE.name, location=docname)
            continue
        inside = figures[name]
        if "trace" in figure:
            data, value, size = {"trace": name}, figure["trace"], 0
        else:
            name, value = figure["model"], weights_text(figure["model"])
            data, size = {"model": name, "text": figure["text"]}, len(value)
        surround(inside, opening(files, kind, data, {name: value}), closing(size))
    if wanted:
        # It waits until the page has been read.
        lines = (LIVE / "loader.js").read_text(encoding="utf-8").splitlines()[1:]
        loader = files.write("loader.js", "\n".join(line.strip() for line in lines))
        doctree += nodes.raw("", f'<script defer src="{loader}"></script>', format="html")


@cache
def weights_text(model: str) -> str:
    """The recorded weights of a model, as text for a script."""
    return base64.b64encode(weights_path(model).read_bytes()).decode()


def setup(app: Sphinx) -> dict:
    app.add_directive("live", LiveDirective)
    # After the notebooks, and after the cards of the first page.
    app.connect("doctree-resolved", run_figures, priority=600)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
