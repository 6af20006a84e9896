"""The command line: `python -m book build | prove | epub | links | lab | sync | new-chapter | words | modules`."""

import argparse
import sys
from pathlib import Path


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
        ("words", "list the words that a page should not use"),
        ("modules", "list all modules, each with what it is for"),
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
            from book.commands import build

            return build.build(root, clean=args.clean, name=args.chapter)
        case "prove":
            from book.proof import reexecution

            return reexecution.main(args.names, root)
        case "epub":
            from book.export import epub

            print(epub.bind(root))
        case "links":
            from book.commands import links

            return links.links(rest, root)
        case "lab":
            from book.commands import lab

            return lab.main(rest, root)
        case "sync":
            from book.contract import packaged_cells

            return packaged_cells.main(rest)
        case "new-chapter":
            from book.commands import new_chapter

            return new_chapter.main(rest)
        case "words":
            from book.contract import language

            return language.words(rest, root)
        case "modules":
            from book.commands import list_modules

            print(list_modules.listing(root))


if __name__ == "__main__":
    sys.exit(main())
