"""`python -m book build`: executes what has changed, and builds the site or one page of it."""

import gc
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

# What a clean build forgets. `.home` (fonts that matplotlib found, and the like) says nothing of the book.
OUTPUTS = ["html", ".doctrees", "jupyter_execute", "notebooks", "chapters"]
OUTPUTS += [".jupyter_cache", "preview", "proof"]


def build(root: Path, *, clean: bool = False, name: str | None = None) -> int:
    """Builds the site into _build/html, or one page of it into _build/preview/html."""
    # Else jsonschema takes a second to compile a grammar of web addresses, which nothing here checks.
    sys.modules.setdefault("rfc3987_syntax", None)  # pyrefly: ignore[no-matching-overload]
    from sphinx.util.console import nocolor

    from book.execute.sphinx_extension import ONLY
    from book.read.chapters import book_chapters, find

    start = time.perf_counter()
    # The objects of a book are many, and stay: to look through them again and again takes a third of a short build.
    gc.set_threshold(100_000)
    # Whoever ends the build ends its kernels too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    output = root / "_build"
    chapters = book_chapters(root)
    page = "index"
    os.environ.pop(ONLY, None)
    if clean:
        for folder in OUTPUTS:
            shutil.rmtree(output / folder, ignore_errors=True)
    if name:
        page = find(chapters, name).docname
        os.environ[ONLY] = page
    if not sys.stdout.isatty():
        nocolor()
    if not prefetch():
        return 1
    # A preview leaves other chapters unexecuted, so its pages never mix with those of the book, and warnings
    # about what it lacks are no errors.
    pages = output / "preview" if name else output
    options = {"warningiserror": not name, "keep_going": True}
    if sphinx(root, pages / "html", nitpicky=not name, **options):
        # Sphinx warns about a page only when it reads it: what failed once must not pass the next time.
        shutil.rmtree(pages / ".doctrees", ignore_errors=True)
        print("\nThe book was not built; the cause stands above.", file=sys.stderr)
        return 1
    print(
        summary(
            root, {chapter.docname: chapter.meta.get("budget", {}) for chapter in chapters}
        )
    )
    if name:
        for problem in unpublishable(root, pages, page):
            print(problem, file=sys.stderr)
    print(
        f"\nBuilt in {time.perf_counter() - start:.1f} s. Open {pages / 'html' / f'{page}.html'}",
        flush=True,
    )
    return 0


def sphinx(root: Path, output: Path, *, nitpicky: bool = False, **options: Any) -> Any:
    """Builds the book as the command of Jupyter Book does; true where it failed."""
    from jupyter_book.sphinx import build_sphinx

    return build_sphinx(
        root,
        output,
        noconfig=True,
        path_config=root / "_config.yml",
        confoverrides={
            "external_toc_path": str(root / "_toc.yml"),
            "latex_individualpages": False,
            "nitpicky": nitpicky,
        },
        **options,
    )


def unpublishable(root: Path, pages: Path, docname: str) -> list[str]:
    """What the tests of the site would say of a chapter that has just been built alone."""
    import nbformat

    from book.contract.executed_outputs import executed_problems
    from book.execute.records import notebook_path, read_record
    from book.pages.reference_comparisons import check_problems
    from book.read.chapters import read_source

    chapter = read_source(root / f"{docname}.md", docname.removeprefix("chapters/"))
    notebook = nbformat.read(notebook_path(pages, docname), as_version=4)
    record = read_record(root, chapter.slug) or {}
    return [
        *executed_problems(chapter, notebook, record),
        *check_problems(chapter, notebook, record.get("checks", []), root),
    ]


def prefetch() -> bool:
    """Fetches the packaged data before anything runs, so that no kernel needs the network."""
    from llm_learn import assets

    for name in assets.ASSETS:
        try:
            print(f"Packaged data: {name} is at {assets.asset_path(name)}", flush=True)
        except Exception as error:
            print(f"error: {error}", file=sys.stderr)
            return False
    return True


def summary(root: Path, budgets: dict[str, dict[str, float]]) -> str:
    """A table of the chapters: what each used, what it declares, and whether it ran now."""
    from book.execute.budgets import BOOK_CPU_SECONDS
    from book.execute.records import read_record

    last = json.loads((root / "_build" / "last-build.json").read_text(encoding="utf-8"))
    row = "{:<42} {:>11} {:>8}  {:>8} {:>8}  {}"
    heads = ["chapter", "CPU-seconds", "declared", "peak GiB", "declared", ""]
    lines = ["", row.format(*heads).rstrip()]
    used = declared = 0.0
    for docname in last["chapters"]:
        name, budget = docname.removeprefix("chapters/"), budgets[docname]
        record = read_record(root, name) or {}
        seconds, memory = f"{record['cpu_seconds']:.1f}", f"{record['peak_memory_gib']:.2f}"
        state = "executed" if docname in last["executed"] else "cached"
        used += record["cpu_seconds"]
        declared += budget["cpu_seconds"]
        numbers = [seconds, budget["cpu_seconds"], memory, budget["memory_gib"]]
        lines.append(row.format(name, *numbers, state))
    limit = f"{declared:g}, at most {BOOK_CPU_SECONDS:,}"
    lines.append(f"{'total':<42} {used:>11.1f} {limit}")
    return "\n".join(lines)
