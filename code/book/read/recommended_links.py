"""Reads materials.yml: the links of the learning plan, and the chapters that each helps with."""

from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from book.read.chapters import DATA

MATERIALS = DATA / "materials.yml"
KINDS = {
    "course": "Courses",
    "video": "Lectures and videos",
    "book": "Books",
    "code": "Code",
    "blog": "Blogs and articles",
    "tool": "Tools",
}
LANGUAGES = {"en": "English", "zh": "Chinese"}
LEVELS = ("beginner", "intermediate", "advanced")
THIS_REPOSITORY = "this repository"  # stands for the address in _config.yml


@dataclass(frozen=True, kw_only=True)
class Material:
    """One entry of materials.yml; the file says what each field means."""

    key: str
    title: str
    url: str
    by: str
    kind: str
    language: str
    level: str
    about: str
    helps: dict[str, str | None]

    def __post_init__(self) -> None:
        for name, known in (("kind", KINDS), ("language", LANGUAGES), ("level", LEVELS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"materials.yml: `{self.key}` has {name} {getattr(self, name)!r}; "
                    f"it must be one of {', '.join(known)}"
                )
        if not isinstance(self.helps, dict):
            raise ValueError(
                f"materials.yml: `{self.key}` has helps {self.helps!r}; it maps slugs to notes"
            )

    def words_for(self, slug: str) -> str:
        """What a reader of that chapter wants to know about it."""
        return " ".join(filter(None, (self.about, self.helps.get(slug))))

    def facts(self) -> list[str]:
        """Kind, language and level; English goes without saying."""
        language = [] if self.language == "en" else [f"in {LANGUAGES[self.language]}"]
        return [self.kind, *language, self.level]


def load_materials(path: Path = MATERIALS) -> list[Material]:
    """All entries, in the file's order.

    Raises:
        ValueError: an entry lacks a field, has one that means nothing, or repeats a key or an address.
    """
    names = {field.name for field in fields(Material)}
    materials: list[Material] = []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        if set(entry) != names:
            raise ValueError(
                f"materials.yml: `{entry.get('key')}` has the fields {', '.join(sorted(entry))}; "
                f"it must have {', '.join(sorted(names))}"
            )
        material = Material(**entry)
        for other in materials:
            if material.key == other.key or material.url == other.url:
                raise ValueError(
                    f"materials.yml: `{material.key}` repeats the key or the address of `{other.key}`"
                )
        materials.append(material)
    return materials


def helping(materials: list[Material], slug: str) -> list[Material]:
    """The materials that help a chapter, in the file's order."""
    return [material for material in materials if slug in material.helps]
