"""Addresses in the book's repository, derived from `repository` in _config.yml."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

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

    @property
    def _github(self) -> list[str]:
        """Owner and name on GitHub; empty for a repository that is elsewhere."""
        url = urlsplit(self.url)
        names = url.path.strip("/").split("/")
        here = (url.hostname or "").lower() == "github.com"
        return names if here and len(names) == 2 and all(names) else []

    @property
    def site(self) -> str:
        """Where GitHub Pages publishes it; empty for a repository that is elsewhere."""
        if not self._github:
            return ""
        owner, name = self._github
        host = f"{owner.lower()}.github.io"
        return f"https://{host}/" + ("" if name.lower() == host else f"{name}/")

    @property
    def colab_folder(self) -> str:
        """What all addresses of its notebooks in Google Colab begin with; empty for one that is elsewhere."""
        if not self._github:
            return ""
        return f"https://colab.research.google.com/github/{'/'.join(self._github)}/"

    def colab(self, docname: str) -> str | None:
        """The chapter's notebook in Google Colab, which opens what is on GitHub only."""
        if not self.colab_folder:
            return None
        return f"{self.colab_folder}blob/{NOTEBOOKS_BRANCH}/{quote(docname)}.ipynb"


def named(url: object, branch: object = None) -> Repository | None:
    """The repository of an address as people write it; None where there is no address."""
    address = str(url or "").strip().rstrip("/").removesuffix(".git")
    return Repository(url=address, branch=str(branch or "main")) if address else None


def repository(config: Config) -> Repository | None:
    """The book's repository as Jupyter Book hands it to the theme; None where _config.yml names none."""
    options = config.html_theme_options or {}
    return named(options.get("repository_url"), options.get("repository_branch"))


def git(root: Path, *command: str) -> str | None:
    """What git says in a folder; None where there is no git, no history, or the command fails."""
    try:
        done = subprocess.run(
            ["git", "-c", "core.quotePath=false", *command],
            cwd=root,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=True,
        )
    except (OSError, subprocess.CalledProcessError, UnicodeDecodeError):
        return None
    return done.stdout
