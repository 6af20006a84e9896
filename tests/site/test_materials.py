"""The filter of the materials page, in a browser."""

import pytest
import site_server as site

from book.read.recommended_links import LANGUAGES, LEVELS, load_materials

pytestmark = pytest.mark.skipif(site.missing() is not None, reason=site.missing() or "")
PAGE = "chapters/start/materials"


def shown(page) -> set[str]:
    return {
        entry.get_attribute("id").removeprefix("material-")
        for entry in page.locator("li.material:visible").all()
    }


@pytest.mark.parametrize("language", ["", *LANGUAGES])
@pytest.mark.parametrize("level", ["", *LEVELS])
def test_the_filter_shows_what_was_asked_for(chromium, address, language, level):
    page = site.open_context(chromium, width=390).new_page()
    page.goto(f"{address}/{PAGE}.html")
    page.get_by_label("Language").select_option(f"in-{language}" if language else "")
    page.get_by_label("Level").select_option(f"level-{level}" if level else "")
    expected = {
        m.key
        for m in load_materials()
        if language in ("", m.language) and level in ("", m.level)
    }
    assert shown(page) == expected
    total = len(load_materials())
    assert page.locator("output").inner_text() == f"{len(expected)} of {total} shown"
    kinds = {m.kind for m in load_materials() if m.key in expected}
    assert page.locator("section[id^=materials-]:visible").count() == len(kinds)
    page.context.close()


def test_a_link_to_a_hidden_entry_shows_it(chromium, address):
    page = site.open_context(chromium, width=1280).new_page()
    page.goto(f"{address}/{PAGE}.html")
    page.get_by_label("Language").select_option("in-zh")
    assert "vllm" not in shown(page)
    page.evaluate("location.hash = 'material-vllm'")
    page.wait_for_function("!document.getElementById('material-vllm').hidden", timeout=5000)
    assert len(shown(page)) == len(load_materials())
    assert page.get_by_label("Language").input_value() == ""
    page.context.close()


def test_without_scripts_everything_is_there_and_no_dead_filter(chromium, address):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}/{PAGE}.html")
    assert shown(page) == {material.key for material in load_materials()}
    assert not page.locator("form.materials-filter").is_visible()
    context.close()
