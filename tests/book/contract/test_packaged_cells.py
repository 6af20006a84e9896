"""Packaged cells hold the package's text, and every packaged definition is taught once or listed."""

import shutil
from pathlib import Path

import pytest

from book.contract import packaged_cells
from book.read.chapters import ROOT, find_sources, read_source

MODULE = '''\
"""A module."""

import math

# How wide it is.
WIDTH = 3  # in tokens
DEPTH: int = 4

logger = None


# Why it is here.
@staticmethod
def first(x):
    """First."""
    # inside
    return x


class Second:
    """Second."""

    size = 1


def _third():
    return math.pi
'''

PLAN = """\
parts:
  - name: basics
    title: Basics
    about: About.
    chapters:
      - {slug: basics/one, title: One, builds: One., plan: [], prerequisites: []}
      - {slug: basics/two, title: Two, builds: Two., plan: [], prerequisites: []}
plan: []
"""

HEAD = "---\nllm_learn: {part: basics}\n---\n\n# One\n\nText before.\n\n"
ALL = "WIDTH = 0\nDEPTH = 0\ndef first(): ...\nclass Second: ...\ndef _third(): ..."


def packaged(source: str) -> str:
    return f"```{{code-cell}}\n:tags: [packaged]\n\n{source}\n```\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "code/llm_learn").mkdir(parents=True)
    (tmp_path / "code/book/data").mkdir(parents=True)
    (tmp_path / "chapters/basics").mkdir(parents=True)
    (tmp_path / "code/llm_learn/things.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "code/book/data/chapters.yml").write_text(PLAN, encoding="utf-8")
    listed(tmp_path, "")
    chapter(tmp_path, packaged(f"# llm_learn.things\n{ALL}"))
    return tmp_path


def chapter(root: Path, body: str, name: str = "one") -> Path:
    path = root / f"chapters/basics/{name}.md"
    path.write_text(f"{HEAD}{body}\nText after.\n", encoding="utf-8")
    return path


def listed(root: Path, text: str) -> None:
    (root / "code/book/data/taught.yml").write_text(text, encoding="utf-8")


def cell_of(root: Path, name: str = "one") -> str:
    return read_source(root / f"chapters/basics/{name}.md").cells[0].source


def test_sync_writes_the_packages_text(root):
    assert packaged_cells.main(["--check"], root) == 1
    assert packaged_cells.main([], root) == 0
    text = MODULE[MODULE.index("# How wide") :].replace("logger = None\n\n\n", "\n")
    assert cell_of(root) == "# llm_learn.things\n\n" + text.strip()
    assert (root / "chapters/basics/one.md").read_text(encoding="utf-8").startswith(HEAD)
    assert (
        (root / "chapters/basics/one.md")
        .read_text(encoding="utf-8")
        .endswith("```\n\nText after.\n")
    )
    assert packaged_cells.main(["--check"], root) == 0
    before = (root / "chapters/basics/one.md").read_bytes()
    assert packaged_cells.main([], root) == 0
    assert (root / "chapters/basics/one.md").read_bytes() == before


def test_rare_line_ends_stay_inside_their_cell(root):
    module = root / "code/llm_learn/things.py"
    module.write_text('A = "x\u2028y"\n\n\ndef last():\n    return A\n', encoding="utf-8")
    path = chapter(root, packaged("# llm_learn.things\nA\nlast"))
    assert packaged_cells.main([], root) == 0
    cell = '# llm_learn.things\nA = "x\u2028y"\n\n\ndef last():\n    return A'
    assert cell_of(root) == cell
    assert path.read_text(encoding="utf-8").endswith("A\n```\n\nText after.\n")
    path.write_text(path.read_text(encoding="utf-8").replace("return A", "return B"))
    assert packaged_cells.main([], root) == 0
    assert cell_of(root) == cell


def test_cells_keep_their_own_order_and_are_rewritten_from_the_end(root):
    chapter(
        root,
        packaged(
            "# llm_learn.things\nclass Second: ...\ndef first(): ...\ndef _third(): ..."
        )
        + "\nBetween.\n\n"
        + packaged("# llm_learn.things\nDEPTH = 0\nWIDTH = 0"),
    )
    assert packaged_cells.main([], root) == 0
    one, two = read_source(root / "chapters/basics/one.md").cells
    assert one.source.index("class Second") < one.source.index("def first")
    assert "    size = 1\n\n\n# Why it is here.\n@staticmethod\ndef first(x):" in one.source
    assert (
        two.source
        == "# llm_learn.things\nDEPTH: int = 4\n\n# How wide it is.\nWIDTH = 3  # in tokens"
    )
    assert packaged_cells.main(["--check"], root) == 0


def test_bare_names_are_enough_in_a_new_cell(root):
    full = packaged(
        "# llm_learn.things\ndef first(): ...\nclass Second: ...\ndef _third(): ..."
    )
    chapter(root, packaged("# llm_learn.things\nfirst, Second\n_third"))
    chapter(root, full, "two")
    assert packaged_cells.main([], root) == 0
    assert cell_of(root) == cell_of(root, "two")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return x", "return -x"),
        ("# inside", "# Inside"),
        ("# Why it is here.", "# Why it was here."),
        ("@staticmethod", "@classmethod"),
        ("WIDTH = 3  # in tokens", "WIDTH = 3"),
        ('"""Second."""', '"""2."""'),
    ],
)
def test_a_changed_line_of_the_package_is_reported(root, old, new, capsys):
    packaged_cells.main([], root)
    path = root / "code/llm_learn/things.py"
    path.write_text(MODULE.replace(old, new), encoding="utf-8")
    assert packaged_cells.main(["--check"], root) == 1
    said = capsys.readouterr().out
    assert (
        "chapters/basics/one.md:" in said
        and "llm_learn.things.first" in said
        and "make sync" in said
    )
    assert f"-{old}" in said.replace("    ", "") and f"+{new}" in said.replace("    ", "")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def first(): ...", "begins with the line"),
        ("# llm_learn.nothing\ndef first(): ...", "no module `nothing`"),
        ("# llm_learn.things\ndef fourth(): ...", "does not define fourth"),
        ("# llm_learn.things\nimport math\ndef first(): ...", "definitions only"),
        ("# llm_learn.things\nprint(first)", "definitions only"),
        ("# llm_learn.things", "write the names"),
        ("# llm_learn.things\ndef first(", "not Python"),
    ],
)
def test_a_cell_that_cannot_be_synced_is_left_alone(root, source, message, capsys):
    path = chapter(root, packaged(source))
    before = path.read_bytes()
    assert packaged_cells.main([], root) == 1
    assert message in capsys.readouterr().out
    assert packaged_cells.main(["--check"], root) == 1
    assert path.read_bytes() == before


def problems(root: Path) -> str:
    return "\n".join(packaged_cells.taught_problems(root))


def test_everything_taught_once_is_right(root):
    assert problems(root) == ""


def test_what_is_taught_nowhere_or_twice_is_reported(root):
    chapter(root, packaged("# llm_learn.things\ndef first(): ...\nclass Second: ..."))
    assert "things.WIDTH is taught nowhere" in problems(
        root
    ) and "things._third is taught" in problems(root)
    assert "logger" not in problems(root)
    chapter(root, packaged(f"# llm_learn.things\n{ALL}"))
    chapter(root, packaged("# llm_learn.things\ndef first(): ..."), "two")
    assert "things.first is taught 2 times (chapters/basics/one.md:" in problems(root)


def test_listed_definitions(root):
    chapter(root, packaged("# llm_learn.things\ndef first(): ..."))
    why = "a reason that says why"
    listed(
        root,
        f"plumbing: {{things.WIDTH: {why}, things.DEPTH: {why}, things._third: {why}}}",
    )
    assert problems(root).count(
        "\n"
    ) == 0 and "things.Second is taught nowhere" in problems(root)
    rest = f"plumbing: {{things.WIDTH: {why}, things.DEPTH: {why}, things._third: {why}}}\n"
    listed(root, rest + "pending: {things.Second: basics/two}")
    assert problems(root) == ""
    listed(root, rest + "pending: {things.Second: basics/three}")
    assert "`basics/three`, which is not a chapter" in problems(root)
    listed(root, rest + "pending: {things.Second: basics/one}")
    assert "`basics/one`, which exists" in problems(root)
    listed(root, rest + "pending: {things.Second: basics/two, things.WIDTH: basics/two}")
    assert "listed more than once" in problems(root)


def test_stale_entries_are_reported(root):
    why = "a reason that says why"
    listed(
        root,
        f"plumbing: {{nothing: {why}, things.gone: {why}}}\npending: {{things.lost: basics/two}}",
    )
    assert all(
        f"`{name}`" in problems(root) for name in ("nothing", "things.gone", "things.lost")
    )
    listed(root, f"plumbing: {{things: {why}}}")
    assert "things.first is taught in chapters/basics/one.md" in problems(root)
    chapter(root, packaged("# llm_learn.things\ndef first(): ..."))
    listed(root, "plumbing: {things: ok}")
    assert "without a reason" in problems(root)


def test_pages_without_code_or_front_matter_are_no_chapters(root):
    (root / "chapters/basics/index.md").write_text(
        "# Part\n\n```python\nx\n```\n", encoding="utf-8"
    )
    assert [source.slug for source in find_sources(root)] == ["basics/one"]


CHAPTERS = list(find_sources())


@pytest.mark.parametrize("source", CHAPTERS, ids=lambda source: source.slug)
def test_chapter_shows_the_packages_text(source):
    found = packaged_cells.differences(source, ROOT / "code/llm_learn")
    assert not found, "\n" + "\n".join(found)


def test_every_definition_is_taught_once_or_listed():
    found = packaged_cells.taught_problems()
    assert not found, "\n" + "\n".join(found)


def test_a_real_chapter_survives_a_rewrite(tmp_path):
    """Sync on a copy of this book changes nothing where the check finds nothing."""
    for folder in ("chapters", "code/llm_learn", "code/book"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    before = {path: path.read_bytes() for path in (tmp_path / "chapters").rglob("*.md")}
    if not any(
        packaged_cells.differences(source, tmp_path / "code/llm_learn")
        for source in find_sources(tmp_path)
    ):
        assert packaged_cells.main([], tmp_path) == 0
        assert {path: path.read_bytes() for path in before} == before
