"""Sphinx extension: pages that load one stylesheet, one script and what they show, and nothing else.

The theme and its extensions bring about twenty files, an icon font and its script. Here their stylesheets become one,
without the rules that no page can match, and their scripts become one, which runs after the page is shown. Icons are
drawn by `_static/icons.css`. Pictures say how large they are, so that text does not jump when they arrive. In code, only
what has a colour of its own is marked up.
"""

import hashlib
import html
import re
import struct
from collections.abc import Iterable
from pathlib import Path

from sphinx.application import Sphinx

from book.css import drop_unused_variables, lean_css, moved_addresses, words

STYLE, SCRIPT = "site.css", "site.js"
# What Jupyter Book or the theme adds, and this book has no use for.
UNUSED = re.compile(r"thebe|mathjax", re.I)
TABS, TAB_CLASS = "design-tabs.js", "sd-tab-set"
# The theme's own files, which its layout loads by itself (see `templates/`).
THEME_STYLES = ["basic.css", "styles/pydata-sphinx-theme.css"]
THEME_SCRIPTS = ["scripts/bootstrap.js", "scripts/pydata-sphinx-theme.js"]
SEARCH_SCRIPT = Path(__file__).with_name("scripts") / "search.js"
SEARCH = ("searchtools.js", "language_data.js", "searchindex.js")

# Names, punctuation and spaces of code look like plain text; marking each of them up was half of a long page.
PLAIN_CODE = re.compile(r'<span class="(?:n|p|w)">([^<]*)</span>')

# The theme writes an error to the console where a reader has chosen nothing yet, and shows the page in no theme until
# its script runs.
THEME_CHOICE = {
    'localStorage.getItem("mode") || ""': 'localStorage.getItem("mode") || "auto"',
    'localStorage.getItem("theme") || ""': (
        'localStorage.getItem("theme") || '
        '(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")'
    ),
    'data-default-mode=""': 'data-default-mode="auto"',
}


# --- Scripts ---


def bundle(parts: Iterable[str]) -> str:
    """Scripts one after the other, each ended, without the addresses of their source maps."""
    cleaned = (re.sub(r"^//# sourceMappingURL=.*$", "", part, flags=re.M) for part in parts)
    return "".join(f"{part.strip()}\n;\n" for part in cleaned)


def by_priority(file) -> int:
    """Sphinx sorts what a page loads only after this extension has seen it."""
    return getattr(file, "priority", 500)


def texts_first(parts: Iterable[str]) -> list[str]:
    """The settings that stand on the page by themselves, then the files: these read them as soon as they run."""
    return sorted(parts, key=lambda part: not part.startswith("\n"))


def script_parts(context: dict) -> tuple[list[str], list]:
    """The scripts of a page as names of files or as text, and those that must stay as they are.

    A script with an attribute of its own, such as an id, stays: it is of this page alone, or of another kind.
    """
    parts, kept = [], []
    for script in sorted(context["script_files"], key=by_priority):
        name, body = str(script.filename or ""), script.attributes.get("body") or ""
        name = name.partition("?")[0]
        unused = UNUSED.search(name + body) or body.startswith("DOCUMENTATION_OPTIONS.")
        if unused or (name.endswith(TABS) and TAB_CLASS not in context.get("body", "")):
            continue
        if name.startswith("http") or set(script.attributes) - {"body", "defer", "async"}:
            kept.append(script)
        elif name and not name.endswith(SEARCH):
            parts.append(name.removeprefix("_static/"))
        elif body:
            parts.append(f"\n{body};")
    return parts, kept


# --- Pictures ---


def png_size(path: Path) -> tuple[int, int] | None:
    """Width and height of a PNG in pixels; None for what is no PNG."""
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except OSError:
        return None
    if len(head) < 24 or not head.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    return struct.unpack(">II", head[16:24])


def sized_images(body: str, files: dict[str, Path]) -> str:
    """Pictures with their size; all but the first are fetched when the reader comes near.

    Args:
        body: The page's HTML.
        files: For each name under `_images/`, where its file is now.
    """
    count = 0

    def image(match: re.Match) -> str:
        nonlocal count
        tag, extra = match[0], ['decoding="async"']
        source = re.search(r'src="([^"]*)"', tag)
        name = html.unescape(source[1]).rpartition("/")[2] if source else ""
        size = png_size(files[name]) if name in files else None
        if size and not re.search(r"\s(width|height)=", tag):
            extra.append(f'width="{size[0]}" height="{size[1]}"')
        if count and "loading=" not in tag:
            extra.append('loading="lazy"')
        count += 1
        return f"<img {' '.join(extra)}{tag[4:]}"

    return re.sub(r"<img\b[^>]*>", image, body)


# --- Sphinx ---


def own_files(root: Path) -> list[Path]:
    """What the pages depend on beside their sources: the book's extensions, its scripts and its stylesheets."""
    book = Path(__file__).parent
    found = [*book.glob("*.py"), *book.glob("scripts/*"), *book.rglob("templates/*.html")]
    return sorted(found) + sorted(root.glob("_static/*.[cj]s*"))


def digest(files: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def use_templates(app: Sphinx, config) -> None:
    """The theme's layout loads its files through a template; ours loads nothing there."""
    config.book_files = digest(own_files(Path(app.srcdir)))
    config.html_search_scorer = str(SEARCH_SCRIPT)
    config.templates_path = [
        *config.templates_path,
        str(Path(__file__).parent / "templates"),
    ]


def slim(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Replaces what a page loads, and remembers it for the two files that are written at the end."""
    parts, kept = script_parts(context)
    app.book_scripts.update(dict.fromkeys(parts))
    for style in sorted(context["css_files"], key=by_priority):
        name = (
            str(getattr(style, "filename", style))
            .removeprefix("_static/")
            .partition("?")[0]
        )
        if not UNUSED.search(name):
            app.book_styles[name] = None
    context["script_files"], context["css_files"] = kept, []
    context["book_style"], context["book_script"] = STYLE, SCRIPT
    if context.get("body"):
        files = {name: Path(app.srcdir) / path for path, name in app.builder.images.items()}
        context["body"] = sized_images(PLAIN_CODE.sub(r"\1", context["body"]), files)


def write_files(app: Sphinx, exception: Exception | None) -> None:
    """Writes the stylesheet and the script of all pages, and their versions into each page."""
    if exception or app.builder.format != "html" or not app.book_styles:
        return
    out = Path(app.outdir)
    static = out / "_static"
    pages = [path for path in out.rglob("*.html") if static not in path.parents]
    texts = {path: path.read_text(encoding="utf-8") for path in pages}
    scripts = [
        part if part.startswith("\n") else (static / part).read_text(encoding="utf-8")
        for part in [*texts_first(app.book_scripts), *THEME_SCRIPTS]
    ]
    script = bundle(scripts)
    known = words(
        [
            *texts.values(),
            script,
            *(
                (static / name).read_text(encoding="utf-8")
                for name in SEARCH
                if (static / name).is_file()
            ),
        ]
    )
    style = ""
    for name in [*THEME_STYLES, *app.book_styles]:
        css = (static / name).read_text(encoding="utf-8")
        style += lean_css(moved_addresses(css, name), known)
    style = drop_unused_variables(style, known)
    (static / STYLE).write_text(style, encoding="utf-8")
    (static / SCRIPT).write_text(script, encoding="utf-8")
    versions = {
        name: hashlib.sha256(text.encode()).hexdigest()[:8]
        for name, text in ((STYLE, style), (SCRIPT, script))
    }
    # A chapter may be called search, too.
    search_page = Path(app.outdir) / "search.html"
    for path, text in texts.items():
        new = finished(text, path == search_page, versions)
        if new != text:
            path.write_text(new, encoding="utf-8")


def finished(page: str, is_search: bool, versions: dict[str, str]) -> str:
    """A page that names the versions of its files, and that loads the index of the search only to search."""
    page = re.sub(
        r'(_static/(site\.(?:css|js)))(?:\?v=\w*)?(?=")',
        lambda m: f"{m[1]}?v={versions[m[2]]}",
        page,
    )
    for old, new in THEME_CHOICE.items():
        page = page.replace(old, new)
    tools = "|".join(map(re.escape, SEARCH))
    replacement = r"<script defer \1" if is_search else ""
    return re.sub(rf'<script (src="[^"]*(?:{tools})[^"]*"></script>)\s*', replacement, page)


def setup(app: Sphinx) -> dict:
    app.book_styles, app.book_scripts = {}, {}
    # A change of these files reads and writes every page again: Sphinx would notice none of them.
    app.add_config_value("book_files", "", "env", types=[str])
    app.connect("config-inited", use_templates)
    app.connect("html-page-context", slim, priority=950)
    # Late: the theme writes the colours of code when a build ends.
    app.connect("build-finished", write_files, priority=900)
    # Pages are written in one process: each tells the others what it loads.
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": False}
