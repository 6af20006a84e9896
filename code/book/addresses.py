"""Addresses on the web, all derived from the repository's, which stands in _config.yml alone."""

from urllib.parse import urlsplit

from sphinx.config import Config


def repository(config: Config) -> str:
    """The repository's address, without a slash at its end."""
    return config.html_theme_options["repository_url"].rstrip("/")


def site(config: Config) -> str:
    """The published site's address, with a slash at its end: that of GitHub Pages for the repository."""
    owner, name = _owner_and_name(config)
    return f"https://{owner.lower()}.github.io/{name}/"


def page(config: Config, docname: str) -> str:
    return f"{site(config)}{docname}.html"


def colab(config: Config, docname: str) -> str:
    """Where Colab opens a chapter's published notebook."""
    owner, name = _owner_and_name(config)
    return f"https://colab.research.google.com/github/{owner}/{name}/blob/notebooks/{docname}.ipynb"


def _owner_and_name(config: Config) -> tuple[str, str]:
    parts = urlsplit(repository(config)).path.strip("/").removesuffix(".git").split("/")
    if len(parts) != 2:
        raise ValueError(
            f"repository.url of _config.yml is {repository(config)!r}: write it as https://github.com/owner/name"
        )
    return parts[0], parts[1]
