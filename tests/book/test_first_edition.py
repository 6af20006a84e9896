"""Nothing of the first edition's sources is lost without a reason."""

import re
from pathlib import Path

import pytest
import yaml
from first_edition import FOLDER, in_source, load, lost, sources, together

from book.contract.required_content import unfinished
from book.read.chapters import read_source

MANIFEST = {"pages": {"basics/gpt": {"exercises": ["ex-a", "ex-b"], "checks": ["c | d"]}}}
ENTRY = {"page": "basics/gpt", "kind": "exercises", "item": "ex-b"}
PAGE = """\
---
llm_learn: {part: basics}
---
# A page

```{code-cell} ipython3
---
mystnb:
  figure: {name: fig-page, caption: A figure}
  image: {alt: A line that falls.}
---
MISTAKES = {"no mask": 1, "no scale": 2}
recorded("gpt")
```

(wrong-page)=
## What goes wrong

**A leak.** It raises no error {cite:p}`one2020paper,two2021paper`.

```{exercise-start}
:label: ex-page-leak
```
Find it.
```{exercise-end}
```

```{glossary}
leak
  A thing that comes out.
```
"""


def test_every_part_of_the_first_edition_is_in_the_book_or_was_dropped_with_a_reason():
    assert lost(*load(), together([in_source(page) for page in sources()])) == []


def test_pages_from_a_split_lack_only_what_is_listed():
    listed = yaml.safe_load((FOLDER / "unfinished.yml").read_text(encoding="utf-8"))
    missing = {page.slug: unfinished(page) for page in sources()}
    assert {slug: roles for slug, roles in missing.items() if roles} == listed


def test_the_manifest_names_its_commit_and_has_all_kinds():
    manifest, _ = load()
    assert re.fullmatch("[0-9a-f]{40}", manifest["commit"])
    counts = {
        kind: len(items) for kind, items in together(manifest["pages"].values()).items()
    }
    assert min(counts.values()) > 20
    assert counts.keys() == in_source(sources()[0]).keys() | {"checks"}


def test_items_are_read_from_a_page(tmp_path: Path):
    path = tmp_path / "page.md"
    path.write_text(PAGE, encoding="utf-8")
    assert in_source(read_source(path, "basics/page")) == {
        "failures": {"no mask", "no scale", "A leak."},
        "exercises": {"ex-page-leak"},
        "figures": {"fig-page"},
        "citations": {"one2020paper", "two2021paper"},
        "records": {"gpt"},
        "terms": {"leak"},
    }


def test_what_is_gone_is_named():
    problems = lost(MANIFEST, [], {"exercises": {"ex-a"}})
    assert len(problems) == 1 and "basics/gpt had 'ex-b' (exercises)" in problems[0]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (ENTRY | {"reason": "The page on masks has a better one."}, ""),
        (ENTRY | {"now": "ex-a"}, ""),
        (ENTRY | {"now": "ex-c"}, "has no 'ex-c' either"),
        (ENTRY | {"reason": "old"}, "must be a sentence"),
        (ENTRY, "needs `now`"),
        (ENTRY | {"now": "ex-a", "reason": "It has moved elsewhere."}, "needs `now`"),
        (ENTRY | {"item": "ex-a", "now": "ex-a"}, "still in the book"),
        (ENTRY | {"item": "ex-z", "now": "ex-a"}, "not in the manifest"),
    ],
)
def test_what_was_dropped_has_one_reason(entry: dict, problem: str):
    problems = lost(MANIFEST, [entry], {"exercises": {"ex-a"}})
    assert any(problem in text for text in problems) if problem else problems == []
