"""`python -m book new-chapter part/slug`: creates a chapter from the template."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from book.read.chapters import DATA, ROOT, load_plan, planned_chapters

TEMPLATE = DATA / "template.md"

NEXT_STEPS = """\
Wrote {path}. Next:
  1. {toc}
  2. Write: every `<!-- write: … -->` says what belongs there; remove it when it is done.
  3. make sync          fills the packaged cells with the package's text
  4. make chapter NAME={slug}   executes and builds this one page
  5. make test          checks the contract, executes everything twice, compares
CONTRIBUTING.md explains each part of a chapter."""


def render(slug: str, plan: dict, template: Path = TEMPLATE) -> str:
    """The template, filled in for `slug`."""
    entry = planned_chapters(plan).get(slug, {})
    part, name = slug.split("/")
    values = {
        "part": part,
        "name": name,
        "title": entry.get("title") or name.replace("-", " ").capitalize(),
        "builds": entry.get("builds") or "",
        # JSON is YAML, and quotes what needs quotes.
        "plan": json.dumps(entry.get("plan") or [], ensure_ascii=False),
        "prerequisites": json.dumps(entry.get("prerequisites") or []),
        "hours": f"{entry.get('hours', 2):g}",
    }
    return re.sub(
        r"\{\{(\w+)\}\}",
        lambda match: values[match[1]],
        template.read_text(encoding="utf-8"),
    )


def new_chapter(slug: str, root: Path = ROOT) -> Path:
    """Writes chapters/<slug>.md from the template.

    Raises:
        ValueError: the slug has not the form part/name, its part is unknown, or the chapter exists.
    """
    if not re.fullmatch(r"[a-z0-9-]+/[a-z0-9]+(?:-[a-z0-9]+)*", slug):
        raise ValueError(
            f"slug is {slug!r}; it must be part/name in lower case, as first-model/attention"
        )
    plan = load_plan(root / "code/book/data/chapters.yml")
    parts = [part["name"] for part in plan["parts"]]
    if slug.split("/")[0] not in parts:
        raise ValueError(
            f"slug is {slug!r}, but there is no such part; the parts are {', '.join(parts)}"
        )
    path = root / "chapters" / f"{slug}.md"
    if path.exists():
        raise ValueError(
            f"chapters/{slug}.md exists already: edit it, or choose another slug"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(slug, plan), encoding="utf-8")
    return path


def main(argv: Sequence[str] = (), root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        prog="book new-chapter", description="Start a chapter from the template."
    )
    parser.add_argument("slug", help="part/name, as first-model/attention")
    slug = parser.parse_args(list(argv)).slug
    new_chapter(slug, root)
    known = slug in planned_chapters(load_plan(root / "code/book/data/chapters.yml"))
    toc = f"Add `chapters/{slug}` to _toc.yml" + (
        "." if known else ", and its entry to code/book/data/chapters.yml."
    )
    print(NEXT_STEPS.format(path=f"chapters/{slug}.md", slug=slug, toc=toc))
    return 0
