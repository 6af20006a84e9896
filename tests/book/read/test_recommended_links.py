"""Materials: every link of the learning plan is in the data and on the page, and errors name the entry."""

import pytest
import yaml
from smallbook import REPOSITORY, SmallBook, chapter

from book.pages.recommended_links import KINDS, SCRIPT, in_its_language
from book.read.chapters import find_sources, load_plan, planned_chapters
from book.read.recommended_links import THIS_REPOSITORY, helping, load_materials

pytestmark = pytest.mark.filterwarnings("default")

# Every address in the learning plan of 2025, in its order; the first, this repository's, is in _config.yml.
PLAN_LINKS = [
    "https://www.deeplearning.ai/short-courses/post-training-of-llms/",
    "https://web.stanford.edu/class/cs25/",
    "https://www.youtube.com/playlist?list=PLZHQObOWTQDNU6R1_67000Dx_ZCJB-3pi",
    "https://phontron.com/class/anlp-fall2024/",
    "https://www.ambujtewari.com/LLM-fall2024/#logistics--schedule",
    "https://sjtullm.gitbook.io/dive-into-llms",
    "https://stanford-cs336.github.io/spring2025/",
    "https://www.datawhale.cn/learn/summary/107",
    "https://github.com/HandsOnLLM/Hands-On-Large-Language-Models",
    "https://www.llm-book.com/",
    "https://github.com/bbruceyuan/Hands-On-Large-Language-Models-CN",
    "https://github.com/rasbt/LLMs-from-scratch",
    "https://magazine.sebastianraschka.com/p/llm-research-papers-the-2024-list",
    "https://karpathy.ai/zero-to-hero.html",
    "https://github.com/karpathy/ng-video-lecture",
    "https://www.youtube.com/watch?v=kCc8FmEb1nY",
    "https://yuanchaofa.com/llms-zero-to-hero/",
    "https://github.com/bbruceyuan/LLMs-Zero-to-Hero",
    "https://github.com/vllm-project/vllm",
    "https://spaces.ac.cn/search/Transformer%E5%8D%87%E7%BA%A7%E4%B9%8B%E8%B7%AF/",
    "https://mp.weixin.qq.com/s/kUF4cy1QA_xQSyT5HtcKIA",
    "https://yuanchaofa.com/llms-zero-to-hero/the-way-of-moe-model-evolution.html#_2-%E7%89%88%E6%9C%AC2-sparsemoe-%E5%A4%A7%E6%A8%A1%E5%9E%8B%E8%AE%AD%E7%BB%83%E4%BD%BF%E7%94%A8",
    "https://lilianweng.github.io/posts/2025-05-01-thinking/",
    "https://www.bilibili.com/video/BV1vQMBz6EvP?spm_id_from=333.788.videopod.episodes&vd_source=6955add1d28c52cd48096d58e09ce798&p=15",
    "https://www.youtube.com/watch?v=b80by3Xk_A8&list=PLoROMvodv4rMFqRtEuo6SGjY4XbRIVRd4&index=21",
    "https://www.youtube.com/watch?v=5vfIT5LOkR0&list=PLoROMvodv4rMFqRtEuo6SGjY4XbRIVRd4&index=22",
    "https://www.youtube.com/watch?v=cd3pRpEtjLs&list=PLoROMvodv4rMFqRtEuo6SGjY4XbRIVRd4&index=23",
]


# --- The data ---


def test_every_link_of_the_plan_is_an_entry():
    urls = [material.url for material in load_materials()]
    assert set(PLAN_LINKS) | {THIS_REPOSITORY} == set(urls) and len(urls) == len(set(urls))


def test_entries_are_complete():
    slugs = planned_chapters(load_plan())
    for material in load_materials():
        assert set(material.helps) <= set(slugs), material.key
        assert material.helps or material.url == THIS_REPOSITORY, material.key
        assert material.about.endswith(".") and material.title and material.by
        for slug, note in material.helps.items():
            assert note is None or note.endswith("."), (material.key, slug)


def test_every_published_chapter_has_materials():
    for source in find_sources():
        assert helping(load_materials(), source.slug), source.slug


GOOD = {
    "key": "a",
    "title": "A",
    "url": "https://example.org/a",
    "by": "B",
    "kind": "book",
    "language": "en",
    "level": "beginner",
    "about": "C.",
    "helps": {"first-model/gpt": None},
}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([GOOD | {"kind": "song"}], "`a` has kind 'song'; it must be one of course, video"),
        ([GOOD | {"language": "fr"}], "language 'fr'; it must be one of en, zh"),
        ([GOOD | {"level": "easy"}], "level 'easy'; it must be one of beginner"),
        ([GOOD | {"helps": ["first-model/gpt"]}], "it maps slugs to notes"),
        ([GOOD | {"stars": 5}], "`a` has the fields about, by"),
        ([{k: v for k, v in GOOD.items() if k != "by"}], "it must have about, by"),
        ([GOOD, GOOD | {"url": "https://example.org/b"}], "repeats the key or the address"),
        ([GOOD, GOOD | {"key": "b"}], "`b` repeats the key or the address of `a`"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path, entries, message):
    path = tmp_path / "materials.yml"
    path.write_text(yaml.safe_dump(entries), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_materials(path)


def test_chinese_words_are_marked():
    found = [(n.astext(), n.get("classes")) for n in in_its_language("GPT 大模型")[1:]]
    assert found == [("大模型", ["language-zh"])]
    assert len(in_its_language("GPT")) == 1


# --- The pages ---


@pytest.fixture
def book(tmp_path) -> SmallBook:
    book = SmallBook(tmp_path)
    book.index("chapters/start/materials", "chapters/first-model/gpt")
    book.write("chapters/start/materials.md", "# Materials\n\n```{materials}\n```\n")
    cell = "```{code-cell}\n1 + 1\n```\n\n"
    body = f"{cell}```{{materials}}\n:for: this chapter\n```"
    book.write("chapters/first-model/gpt.md", chapter("A small GPT", body))
    return book


@pytest.mark.slow
def test_every_link_of_the_plan_is_on_the_page(book):
    assert book.build() == ""
    page = book.page("chapters/start/materials")
    entries = page.select("li.material")
    urls = [entry.select_one("strong a")["href"] for entry in entries]
    assert set(PLAN_LINKS) | {REPOSITORY} == set(urls) and len(urls) == len(set(urls))

    headings = {section["id"]: section.h2 for section in page.select("section section")}
    assert list(headings) == [f"materials-{kind}" for kind in KINDS]
    for material in load_materials():
        entry = page.select_one(f"#materials-{material.kind} li#material-{material.key}")
        assert f"in-{material.language}" in entry["class"]
        assert f"level-{material.level}" in entry["class"]
        assert material.about in entry.get_text().replace("’", "'")
    helped = page.select_one("#material-ng-video-lecture .material-chapters")
    assert helped.a["href"] == "../first-model/gpt.html"
    assert helped.get_text() == "Helps with A small GPT"
    assert (
        page.select_one("#material-dive-into-llms [lang=zh]").get_text() == "动手学大模型"
    )
    assert page.select_one("#material-dive-into-llms .planned")  # not written yet: no link
    # Only the script shows the filter, and only this page has it.
    assert page.select_one("form.materials-filter").has_attr("hidden")
    script = SCRIPT.read_text(encoding="utf-8")
    assert sum(script.strip() in str(tag.string) for tag in page.select("script")) == 1

    page = book.page("chapters/first-model/gpt")
    listed = [a["href"] for a in page.select("ul.materials-for-chapter strong a")]
    assert listed == [m.url for m in helping(load_materials(), "first-model/gpt")]
    assert "Read it beside the lecture." in page.get_text()
    assert "materials-filter" not in str(page)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (":for: everyone", "`:for:` is 'everyone'; it can only be `this chapter`"),
        (
            ":for: this chapter",
            "no entry of code/book/data/materials.yml helps `start/materials`",
        ),
    ],
)
def test_a_wrong_directive_is_an_error(book, options, message):
    book.write("chapters/start/materials.md", f"# M\n\n```{{materials}}\n{options}\n```\n")
    assert message in book.build()


@pytest.mark.slow
def test_without_a_repository_the_entry_of_the_book_says_what_it_needs(book):
    conf = (book.root / "conf.py").read_text(encoding="utf-8")
    book.write("conf.py", conf.replace(f'"{REPOSITORY}"', '""'))
    assert "`llm-learn` needs repository.url of _config.yml" in book.build()
