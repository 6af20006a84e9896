"""The words of one page, for its author."""

from pathlib import Path

import pytest

from book.__main__ import main

PAGE = """\
---
llm_learn: {part: part}
---

# Alpha

It is seldom known beforehand.
Perhaps it reads a text.

```{code-cell}
print("by lot")
```
"""


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in {
        "_config.yml": "",
        "index.md": "# Book\n",
        "chapters/part/alpha.md": PAGE,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["."])  # the command adds to it
    return tmp_path


def test_the_words_of_a_page_come_with_lines_and_remedies(book, capsys):
    assert main(["words", "alpha"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "chapters/part/alpha.md:7: E15 `seldom`: write rarely (… It is seldom known beforehand. …)",
        "chapters/part/alpha.md:7: E16 `beforehand`: write in advance (… It is seldom known beforehand. …)",
        "chapters/part/alpha.md:8: W `a text`: write a sequence; a document (… Perhaps it reads a text. …)",
        "chapters/part/alpha.md:8: W `reads`: write attends to (… Perhaps it reads a text. …)",
        'chapters/part/alpha.md:11: E5 `by lot`: write at random (… "by lot" …)',
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "the name of a page, but got []"),
        (["a", "b"], "but got ['a', 'b']"),
        (["nowhere"], "no chapter is called 'nowhere'; the names are: part/alpha, index"),
    ],
)
def test_what_is_no_page_is_refused(book, capsys, given, message):
    assert main(["words", *given]) == 2
    assert message in capsys.readouterr().err
