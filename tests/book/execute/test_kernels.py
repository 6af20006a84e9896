"""What the record of an executed chapter keeps of its cells."""

from tinybook import TinyBook, page

from book.execute import kernels
from book.read.chapters import book_chapters, find

# As the helpers of llm_learn.notebook do it.
STUB = """\
from IPython.display import display


def show(kind, **entry):
    display({"text/plain": str(entry)}, raw=True, metadata={f"llm_learn_{kind}": entry})


def settle(name, **options):
    (key,) = [letter for letter in options if options[letter]]
    show("answer", name=name, key=key, options=list(options))


def claim(name, **conditions):
    assert all(conditions.values())
    show("claim", name=name, conditions=list(conditions))"""


def recorded(book: TinyBook, *cells: str) -> dict:
    book.write("chapters/part/beta.md", page("Beta", [STUB, *cells]))
    chapter = find(book_chapters(book.root), "beta")
    return kernels.execute(chapter, kernels.kernel_environment(book.root))[1]


def test_answers_and_claims_are_recorded_by_name(tiny_book):
    record = recorded(
        tiny_book,
        'print("no metadata")\nsettle("beta-one", a=False, b=True)',
        'settle("beta-two", a=True, b=False)\nclaim("beta-ahead", short=True, long=True)',
        # An answer and a claim may share a name.
        'claim("beta-one", short=True)\nsettle',
    )
    assert record["answers"] == {"beta-one": "b", "beta-two": "a"}
    assert record["claims"] == {"beta-ahead": ["short", "long"], "beta-one": ["short"]}
    assert record["checks"] == []
