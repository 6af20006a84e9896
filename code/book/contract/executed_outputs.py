"""Checks of executed chapters: outputs, exercises that work, measured values, no warnings."""

import re
from collections.abc import Iterator

import nbformat

from book.contract.second_edition import is_core
from book.read.chapters import Source

GLUE_ROLE = re.compile(
    r"\{glue:(?:text|math|md)?\}`([^`:]+)|^[`:]{3,}\{glue(?::\w+)?\}\s*(\S+)", re.M
)
MAX_PRINTED = 2
WARNING = re.compile(r"\b\w*Warning:|^WARNING\b|\bwarnings\.warn\(", re.M)


def output_text(cell: nbformat.NotebookNode) -> str:
    """Everything that the cell's outputs say."""
    texts = []
    for output in cell.outputs:
        texts.append(output.get("text", ""))
        texts += [
            value for mime, value in output.get("data", {}).items() if mime == "text/plain"
        ]
    return "\n".join("".join(text) for text in texts)


def executed_problems(
    chapter: Source, notebook: nbformat.NotebookNode, record: dict
) -> list[str]:
    """What is wrong with an executed chapter, each with the cell (from 1) and the remedy."""
    messages = [f"{chapter.where}: {text}" for text in _cell_problems(chapter, notebook)]
    return messages + [
        f"{chapter.where}: {text}" for text in _record_problems(chapter, record)
    ]


def _cell_problems(chapter: Source, notebook: nbformat.NotebookNode) -> Iterator[str]:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if len(cells) != len(chapter.cells):
        yield f"{len(cells)} executed cells, {len(chapter.cells)} in the source: build the book again"
    glued = set()
    for number, cell in enumerate(cells, 1):
        tags, text = cell.metadata.get("tags", []), output_text(cell)
        glued |= {
            o.get("metadata", {}).get("scrapbook", {}).get("name") for o in cell.outputs
        }
        if cell.execution_count is None and "skip-execution" not in tags:
            yield f"cell {number} has no execution count: it was not executed, so its outputs prove nothing"
        if "exercise-starter" in tags and "Not yet" not in text:
            yield f"cell {number} is an exercise's starter and must print `Not yet`: let its checker judge it"
        if "exercise-solution" in tags and ("Correct" not in text or "Not yet" in text):
            yield f"cell {number} is a solution and must print `Correct`, but printed {text[:80]!r}"
        printed = [s for s in text.split("\n") if s.strip() and not s.startswith("<Figure")]
        if chapter.edition == 2 and is_core(tags) and len(printed) > MAX_PRINTED:
            yield f"cell {number} is a core cell and prints {len(printed)} lines: print {MAX_PRINTED} at most"
        if any(output.get("name") == "stderr" for output in cell.outputs):
            yield f"cell {number} writes to stderr: correct what it complains of"
        elif found := WARNING.search(text):
            yield f"cell {number} shows `{found[0]}`: correct its cause, do not hide it"
    prose = "\n".join(line for _, line in chapter.prose)
    captions = "\n".join(str(cell.options.get("mystnb") or "") for cell in chapter.cells)
    for match in GLUE_ROLE.finditer(f"{prose}\n{captions}"):
        key = (match[1] or match[2]).strip()
        if key not in glued:
            yield f"the prose shows `{key}`, which no cell glues: call glue({key!r}, …) where it is measured"


def _record_problems(chapter: Source, record: dict) -> Iterator[str]:
    if not record.get("checks") and "check" not in (chapter.meta.get("excused") or {}):
        yield "its record holds no checks: verify something against a reference"
    for check in record.get("checks", []):
        difference, tolerance = float(check["difference"]), float(check["tolerance"])
        if not difference <= tolerance:  # also catches nan
            yield (
                f"`{check['name']}` differs from {check['against']} by {difference:.0e}, "
                f"more than {tolerance:.0e}"
            )
