"""The book's command line: `python -m book build | prove | epub | links | lab | sync | new-chapter`."""

import argparse
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
OUTPUTS = [
    "html",
    ".doctrees",
    "jupyter_execute",
    "notebooks",
    "chapters",
    ".jupyter_cache",
    "preview",
    "proof",
]


def main(argv: list[str] | None = None) -> int:
    root = Path.cwd()
    argv = sys.argv[1:] if argv is None else argv
    if not (root / "_config.yml").is_file():
        print(f"error: {root} is no book: run this where _config.yml is", file=sys.stderr)
        return 2
    sys.path.insert(0, str(root / "code"))
    parser = argparse.ArgumentParser(prog="python -m book", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build_parser = commands.add_parser(
        "build", help="execute what has changed, and build the site"
    )
    build_parser.add_argument(
        "--clean", action="store_true", help="forget all earlier results first"
    )
    build_parser.add_argument(
        "--chapter", metavar="NAME", help="execute and show this chapter only"
    )
    prove_parser = commands.add_parser(
        "prove", help="execute the built notebooks again, and compare"
    )
    prove_parser.add_argument(
        "names", nargs="*", metavar="NAME", help="chapters; all where none is given"
    )
    for name, text in (
        ("epub", "write the built site as an EPUB"),
        ("links", "ask every external address whether it answers"),
        ("lab", "open the chapters in JupyterLab"),
        ("sync", "write the package's text into the packaged cells"),
        ("new-chapter", "start a chapter from the template"),
    ):
        commands.add_parser(name, help=text, add_help=False)
    args, rest = parser.parse_known_args(argv)
    if rest and args.command in ("build", "prove"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return run(args, rest, root) or 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


def run(args: argparse.Namespace, rest: list[str], root: Path) -> int | None:
    # Imported late: each command loads what it needs only, and `--help` loads nothing.
    match args.command:
        case "build":
            return build(root, clean=args.clean, name=args.chapter)
        case "prove":
            from book import prove

            return prove.main(args.names, root)
        case "epub":
            from book import epub

            print(epub.bind(root))
        case "links":
            return links(rest, root)
        case "lab":
            from book import lab

            return lab.main(rest, root)
        case "sync":
            from book import sync

            return sync.main(rest)
        case "new-chapter":
            from book import new_chapter

            return new_chapter.main(rest)


def build(root: Path, *, clean: bool = False, name: str | None = None) -> int:
    """Builds the site into _build/html, or one page of it into _build/preview/html."""
    # Else jsonschema takes a second to compile a grammar of web addresses, which nothing here checks.
    sys.modules.setdefault("rfc3987_syntax", None)
    from sphinx.util.console import nocolor

    from book.execution import ONLY
    from book.source import book_chapters, find

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
        summary(root, {chapter.docname: chapter.meta.get("budget") for chapter in chapters})
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


def links(argv: list[str], root: Path) -> int:
    """Has Sphinx ask every external address of the book, and prints those that are broken.

    Returns:
        1 if an address is broken or the chapters are not executed, else 0.
    """
    if argv:
        raise ValueError(f"`links` takes no arguments, but got {' '.join(argv)}")
    # With doctrees of its own: what this build reads must not keep the site from reading it.
    output = root / "_build" / "links" / "linkcheck"
    report = output / "output.json"
    report.unlink(missing_ok=True)
    sphinx(root, output, builder="linkcheck", quiet=True)
    if not report.is_file():
        return 1
    answers = [json.loads(line) for line in report.read_text("utf-8").splitlines()]
    asked = [a for a in answers if a["status"] not in ("unchecked", "ignored")]
    # A site that refuses programs, or asks them to wait, is not gone.
    broken = [
        answer
        for answer in asked
        if answer["status"] == "broken" and not answer["info"].startswith(("403 ", "429 "))
    ]
    for answer in broken:
        where = f"{answer['filename']}:{answer['lineno']}"
        print(f"{where}: {answer['uri']}\n  {answer['info']}")
    print(f"\n{len(broken)} broken of {len(asked)} addresses")
    return 1 if broken else 0


def unpublishable(root: Path, pages: Path, docname: str) -> list[str]:
    """What the tests of the site would say of a chapter that has just been built alone."""
    import nbformat

    from book.executed import executed_problems, notebook_path, read_record
    from book.source import read_source
    from book.verified import check_problems

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

    for name in assets.NEEDED_BY_CHAPTERS:
        try:
            print(f"Packaged data: {name} is at {assets.asset_path(name)}", flush=True)
        except Exception as error:
            print(f"error: {error}", file=sys.stderr)
            return False
    return True


def summary(root: Path, budgets: dict[str, dict[str, float]]) -> str:
    """A table of the chapters: what each used, what it declares, and whether it ran now."""
    from book.budgets import BOOK_CPU_SECONDS
    from book.executed import read_record

    last = json.loads((root / "_build" / "last-build.json").read_text(encoding="utf-8"))
    row = "{:<42} {:>11} {:>8}  {:>8} {:>8}  {}"
    heads = ["chapter", "CPU-seconds", "declared", "peak GiB", "declared", ""]
    lines = ["", row.format(*heads).rstrip()]
    used = declared = 0.0
    for docname in last["chapters"]:
        name, budget = docname.removeprefix("chapters/"), budgets[docname]
        record = read_record(root, name)
        seconds, memory = f"{record['cpu_seconds']:.1f}", f"{record['peak_memory_gib']:.2f}"
        state = "executed" if docname in last["executed"] else "cached"
        used += record["cpu_seconds"]
        declared += budget["cpu_seconds"]
        numbers = [seconds, budget["cpu_seconds"], memory, budget["memory_gib"]]
        lines.append(row.format(name, *numbers, state))
    limit = f"{declared:g}, at most {BOOK_CPU_SECONDS:,}"
    lines.append(f"{'total':<42} {used:>11.1f} {limit}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
