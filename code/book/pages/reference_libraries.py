"""Resolves what a check compares with: its full name, its library and the installed version."""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from platform import python_version

from book.contract.registry import imported, tree
from book.execute.fingerprint import distributions
from book.read.chapters import Source

DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
OWN = "llm_learn"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The other side of a comparison."""

    name: str  # as a reader would import it, or the record's own words
    library: str | None = None  # None for an identity, a count, finite differences, …
    version: str | None = None

    @property
    def is_code(self) -> bool:
        return self.library is not None


def imported_names(chapter: Source) -> dict[str, str]:
    """name in the chapter's cells -> what it stands for."""
    found = (each for cell in chapter.cells for each in imported(tree(cell)))
    return {name: target for _, name, target in found}


def resolve(against: str, imported: dict[str, str]) -> Reference:
    """The reference that a check names by `against`.

    Args:
        against: what the chapter wrote, such as `F.softmax`, `tiktoken.Encoding` or `finite differences`.
        imported: what the chapter's cells import, by the name that they use.
    """
    if not DOTTED.fullmatch(against):
        return Reference(name=against)
    root, _, rest = against.partition(".")
    if root not in imported and not rest:
        return Reference(name=against)  # one word, such as `counting`
    name = ".".join(filter(None, (imported.get(root, root), rest)))
    module = name.split(".")[0]
    if module == OWN:
        return Reference(name=name, library="this book")
    if module in sys.stdlib_module_names:
        return Reference(name=name, library="Python", version=python_version())
    for distribution in distributions().get(module, []):
        return Reference(
            name=name, library=distribution, version=metadata.version(distribution)
        )
    return Reference(name=against)


def largest_differences(checks: Iterable[dict]) -> dict[str, dict[bool, float]]:
    """against -> whether relative -> the largest difference of such checks, in the chapter's order."""
    largest: dict[str, dict[bool, float]] = {}
    for check in checks:
        bounds = largest.setdefault(str(check["against"]), {})
        relative = check["relative"]
        bounds[relative] = max(bounds.get(relative, 0.0), float(check["difference"]))
    return largest


def shown_difference(difference: float, *, relative: bool) -> str:
    """A difference as every page shows it: the digit that `verify` prints, which is the one that the proof compares."""
    return f"{difference:.0e}" + " relative" * relative if difference else "equal"
