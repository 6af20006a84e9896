"""The list of modules tells what each is for, in one line."""

from book.commands import list_modules as modules
from book.read.chapters import ROOT


def test_every_module_says_in_one_line_what_it_is_for():
    files = [p for n in ("llm_learn", "book") for p in ROOT.glob(f"code/{n}/**/*.py")]
    found = modules.summaries(ROOT)
    assert len(found) == len(files) > 90
    assert not {
        name: text
        for name, text in found.items()
        if not text.endswith(".") or len(text) > 110
    }


def test_the_list_names_each_module_below_its_package(tmp_path):
    for name, text in (
        ("book/__init__.py", '"""The builder."""'),
        ("book/read/__init__.py", '"""Reads the\nbook."""'),
        ("book/read/plan.py", ""),
        ("llm_learn/losses.py", f'"""{"Losses, " * 12}and more."""'),
    ):
        path = tmp_path / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    lines = modules.listing(tmp_path).splitlines()
    assert [line[:9].rstrip() for line in lines] == [
        "book",
        "  read",
        "    plan",
        "  losses",
        "",
    ]
    assert [line[25:35] for line in lines] == [
        "The builde",
        "Reads the",
        "?",
        "Losses, Lo",
        "Losses, Lo",
    ]
    assert max(map(len, lines)) <= 100
