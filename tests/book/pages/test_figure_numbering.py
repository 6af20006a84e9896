"""Each page counts its figures and equations from 1, also where only one page is written again."""

from io import StringIO

import pytest
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

CONF = """
extensions = ["myst_nb", "book.pages.figure_numbering"]
nb_execution_mode = "off"
numfig = True
myst_enable_extensions = ["dollarmath", "colon_fence"]
"""
PAGE = """# {name}

$$a$$ (eq-{name}-1)

$$b$$ (eq-{name}-2)

:::{{figure}} x.png
:name: fig-{name}
What is seen on {name}.
:::

See {{numref}}`fig-one`, {{numref}}`fig-two` and {{eq}}`eq-two-2`.
"""


@pytest.mark.slow
def test_every_page_begins_at_one(tmp_path):
    (tmp_path / "conf.py").write_text(CONF)
    (tmp_path / "index.md").write_text("# Book\n\n```{toctree}\none\ntwo\n```\n")
    (tmp_path / "x.png").write_bytes(b"")
    for name in ("one", "two"):
        (tmp_path / f"{name}.md").write_text(PAGE.format(name=name))

    def build() -> dict[str, str]:
        out = tmp_path / "_build"
        with patch_docutils(str(tmp_path)), docutils_namespace():
            app = Sphinx(
                tmp_path,
                tmp_path,
                out,
                out / "trees",
                "html",
                status=None,
                warning=StringIO(),
            )
            app.build()
        return {name: (out / f"{name}.html").read_text() for name in ("one", "two")}

    first = build()
    (tmp_path / "two.md").write_text(PAGE.format(name="two") + "\nMore.\n")
    second = build()
    assert "More." in second["two"]
    for pages in (first, second):
        for html in pages.values():
            assert html.count("Fig. 1") == 3 and "Fig. 2" not in html
            assert html.count('eqno">(1)') == html.count('eqno">(2)') == 1
            assert "(3)" not in html
