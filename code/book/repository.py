"""Addresses at the book's repository, all from `repository` in _config.yml."""

import re
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from sphinx.config import Config

# The branch on which every chapter stands as a notebook with its outputs.
NOTEBOOKS_BRANCH = "notebooks"


@dataclass(frozen=True, kw_only=True)
class Repository:
    """Where the book's sources are published."""

    url: str
    branch: str

    def file(self, path: str) -> str:
        """The page that shows a file or a folder."""
        return f"{self.url}/blob/{self.branch}/{quote(path)}"

    def edit(self, path: str) -> str:
        """The page on which a reader proposes a change of the file."""
        return f"{self.url}/edit/{self.branch}/{quote(path)}"

    def new_issue(self, title: str, body: str) -> str:
        """The form of a new issue, filled in."""
        return f"{self.url}/issues/new?{urlencode({'title': title, 'body': body}, quote_via=quote)}"

    def colab(self, docname: str) -> str | None:
        """The chapter's notebook in Google Colab, which opens what is on GitHub only."""
        match = re.fullmatch(r"https://github\.com/([^/]+/[^/]+)", self.url)
        if match is None:
            return None
        path = f"{match[1]}/blob/{NOTEBOOKS_BRANCH}/{quote(docname)}.ipynb"
        return f"https://colab.research.google.com/github/{path}"


def repository(config: Config) -> Repository | None:
    """The book's repository as Jupyter Book hands it to the theme; None where _config.yml names none."""
    options = config.html_theme_options or {}
    url = str(options.get("repository_url") or "").rstrip("/").removesuffix(".git")
    branch = str(options.get("repository_branch") or "main")
    return Repository(url=url, branch=branch) if url else None
