"""Sphinx extension: configures the libraries that publish the site.

The site's address follows from the repository's; where that is unknown, everything that needs an address is left out.
"""

import hashlib
import re
from html import escape
from pathlib import Path
from urllib.parse import urlsplit

import sphinx_sitemap
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment

from book.atomic_files import write_atomically
from book.read.repository_urls import repository
from llm_learn.javascript.scripts import ENGINE

SITE = Path(__file__).parent
STYLE = "book.css"
# Scripts inside a page begin with what it defines; those of the search, with the second too.
AT_ONCE, SEARCH = "documentation_options.js", "doctools.js"
# Names, punctuation and spaces of code look like plain text; marking up each of them was half of a long page.
PLAIN_CODE = re.compile(r'<span class="(?:n|p|w)">([^<]*)</span>')
NOT_FOUND = """\
<h1>No such page</h1>
<p>There is nothing at this address. The page may have moved, or the link may be mistyped. All pages of
<a href="{root}index.html">{book}</a> are in the menu. You can also search for a word:</p>
<form class="bd-search d-flex align-items-center" action="{root}search.html" role="search">
<input class="form-control" type="search" name="q" aria-label="Search {book}" required>
<button class="sd-btn sd-btn-primary flex-shrink-0">Search</button>
</form>
"""


def own_files(root: Path) -> list[Path]:
    """What the pages depend on, except their sources: the book's extensions, scripts and style sheets."""
    found = [*SITE.parent.rglob("*.py"), *SITE.glob("s*/*"), *root.glob("_static/*.[cj]s*")]
    found += [*SITE.parent.glob("live/*"), *ENGINE.glob("*.js")]
    return sorted(found)


def set_address(app: Sphinx, config: Config) -> None:
    """Tells Sphinx and its extensions where the site and the repository are."""
    source = repository(config)
    # A site with a domain of its own names it in _config.yml, as html.baseurl.
    address = config.html_baseurl or (source.site if source else "")
    base = f"{address.rstrip('/')}/" if address else ""
    config.html_baseurl = config.ogp_site_url = base
    config.ogp_site_name = book = config.html_title
    config.notfound_urls_prefix = root = urlsplit(base).path or "/"
    body = NOT_FOUND.format(root=root, book=escape(book))
    config.notfound_context = {"title": "No such page", "body": body}
    # They change with this build.
    own = [base, *([source.url, source.colab_folder] if source else [])]
    config.linkcheck_ignore = [*config.linkcheck_ignore, *map(re.escape, filter(None, own))]


def join_styles(app: Sphinx) -> None:
    """Joins the book's style sheets: a page is shown only after each sheet has been loaded."""
    if app.builder.format == "html":
        sheets = sorted((SITE / "styles").glob("*.css"))
        text = "\n".join(sheet.read_text(encoding="utf-8") for sheet in sheets)
        write_atomically(Path(app.outdir, "_static", STYLE), text)
        app.add_css_file(STYLE)


def use_own_files(app: Sphinx, config: Config) -> None:
    """Has pages read again when the tooling changes, and results of the search ranked by the book's script."""
    files = own_files(Path(app.srcdir))
    content = b"".join(file.read_bytes() for file in files)
    config.book_files = hashlib.sha256(content).hexdigest()
    # Sphinx would look for a relative path where the build was started.
    config.html_search_scorer = str(SITE / "scripts" / "search.js")
    config.git_untracked_show_sourcelink = True


def keep_sources(app: Sphinx, env: BuildEnvironment) -> None:
    """Without a git program, the extension for dates would take from pages what the theme's buttons need."""
    dates = env.git_last_updated
    dates.update({name: (None, True) for name in dates if dates[name] is None})


def describe(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Takes a page's description from its front matter, and keeps pages without a source out of search engines."""
    context.setdefault("metatags", "")
    if doctree is None:
        context["metatags"] += '\n<meta name="robots" content="noindex" />'
    elif text := (context["meta"] or {}).get("description"):
        text = escape(str(text))
        context["metatags"] += f'\n<meta name="description" content="{text}" />'
        context["meta"]["og:description"] = text


def lighten(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Shows a page before its scripts are loaded, and removes the mark-up of code that has no colour."""
    for script in context["script_files"]:
        name = str(script.filename or "").rpartition("/")[2]
        # All pages share these objects.
        if name == SEARCH and pagename == "search":
            script.attributes.pop("defer", None)
        elif name and name != AT_ONCE:
            script.attributes.setdefault("defer", "defer")
    if context.get("body"):
        context["body"] = PLAIN_CODE.sub(r"\1", context["body"])


def list_all_pages(app: Sphinx, error: Exception | None) -> None:
    """Puts every page into the site map: sphinx-sitemap knows only those that this build has written."""
    if error or app.builder.format != "html":
        return
    links = app.sitemap_links  # pyrefly: ignore[missing-attribute]
    while not links.empty():
        links.get()
    for docname in sorted(app.env.found_docs):
        sphinx_sitemap.add_html_link(app, docname, "", {}, None)


def setup(app: Sphinx) -> dict:
    for name in (
        "sphinx_last_updated_by_git",
        "sphinx_sitemap",
        "notfound.extension",
        "sphinxext.opengraph",
    ):
        app.setup_extension(name)
    # A change of these files reads and writes every page again: Sphinx would notice none of them.
    app.add_config_value("book_files", "", "env", types=[str])
    app.connect("config-inited", set_address)
    app.connect("config-inited", use_own_files)
    app.connect("builder-inited", join_styles)
    app.connect("env-updated", keep_sources, priority=900)
    # Before the OpenGraph extension.
    app.connect("html-page-context", describe, priority=400)
    # After the extensions that add scripts to a page.
    app.connect("html-page-context", lighten, priority=900)
    app.connect("build-finished", list_all_pages, priority=400)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
