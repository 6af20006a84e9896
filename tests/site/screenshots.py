"""Saves a picture of every page, at both widths and in both themes, for people who review them.

    python tests/site/screenshots.py [PAGE…]

writes _build/screenshots/<page>-<theme>-<width>.png, for all pages where none is named.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import site_server as site


def main(names: list[str]) -> int:
    if reason := site.missing():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    known = site.pages()
    if unknown := [name for name in names if name not in known]:
        print(
            f"error: no page is called {unknown[0]!r}; the pages are {', '.join(known)}",
            file=sys.stderr,
        )
        return 2
    folder = site.ROOT / "_build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    with site.serve() as address, site.browser() as chromium:
        for theme in site.THEMES:
            for width in site.WIDTHS:
                context = site.open_context(chromium, width=width, theme=theme)
                page = context.new_page()
                for name in names or known:
                    page.goto(f"{address}/{name}.html")
                    site.settle(page)
                    path = folder / f"{name.replace('/', '_')}-{theme}-{width}.png"
                    page.screenshot(path=path, full_page=True)
                    print(path.relative_to(site.ROOT), flush=True)
                context.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
