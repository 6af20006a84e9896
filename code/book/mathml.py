"""Sphinx extension: mathematics as MathML Core, made when the book is built; pages need no script for it.

latex2mathml reads the LaTeX. What it writes is then brought to what browsers of today draw alike: letters of other
alphabets become characters of their own, and each pair of neighbours gets the space that TeX puts between them. A
formula that is not understood completely stops the build.
"""

import functools
import html
import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from docutils import nodes
from latex2mathml import commands
from latex2mathml.converter import Converter
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.locale import _
from sphinx.util.math import get_node_equation_number
from sphinx.util.nodes import traverse_parent
from sphinx.writers.html5 import HTML5Translator

WORD_JOINER = "\u2060"
FONT = "_static/fonts/math.woff2"


class FormulaError(ValueError):
    """A formula that cannot be shown as it is meant; the message says why."""


class MathematicsError(SphinxError):
    """Stops the build: a page has such formulas."""

    category = "Mathematics"


# --- Reading LaTeX ---

ENVIRONMENTS = {  # what latex2mathml calls them; None: only the content
    "equation": None,
    "equation*": None,
    "align": "align*",
    "align*": "align*",
    "aligned": "align*",
    "split": "align*",
    "gather": "matrix",
    "gather*": "matrix",
    "gathered": "matrix",
    **{name: name for name in ("array", "cases", "matrix", "smallmatrix")},
    **{f"{kind}matrix": f"{kind}matrix" for kind in "pbBvV"},
}
SYNONYMS = [
    (r"\\(?:operatorname\*?|mathop){arg\s*\\?,?\s*(max|min)}", r"\\arg\1"),
    (r"\\[lr]?Vert(?![A-Za-z])", r"\\|"),
    (r"\\[lr]?vert(?![A-Za-z])", r"|"),
    (r"\\ldots(?![A-Za-z])", r"\\dots "),
]


def prepared(latex: str) -> str:
    """The formula in the words that latex2mathml knows.

    Raises:
        FormulaError: Braces or environments do not match, or the environment is unknown.
    """
    depth = 0
    for brace in re.findall(r"(?<!\\)(?:\\\\)*([{}])", latex):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            raise FormulaError("a closing brace has no opening one")
    if depth:
        raise FormulaError("an opening brace is never closed")
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\s*{([^}]*)}", latex):
        if name not in ENVIRONMENTS:
            raise FormulaError(f"environment {name!r} is none of {', '.join(ENVIRONMENTS)}")
        if kind == "begin":
            opened.append(name)
        elif not opened or opened.pop() != name:
            raise FormulaError(f"\\end{{{name}}} does not match its \\begin")
    if opened:
        raise FormulaError(f"\\begin{{{opened[-1]}}} is never ended")

    def renamed(match: re.Match) -> str:
        name = ENVIRONMENTS[match[2]]
        return f"\\{match[1]}{{{name}}}" if name else ""

    latex = re.sub(r"\\(begin|end)\s*{([^}]*)}", renamed, latex)
    for pattern, replacement in SYNONYMS:
        latex = re.sub(pattern, replacement, latex)
    return latex


TAG = re.compile(r"\\tag\s*{([^{}]*)}")


def split_tag(latex: str) -> tuple[str, str | None]:
    r"""The formula without its `\tag{…}`, and the tag.

    Raises:
        FormulaError: There is more than one tag.
    """
    tags = TAG.findall(latex)
    if len(tags) > 1:
        raise FormulaError("it has more than one \\tag; label a block for each instead")
    return TAG.sub("", latex), tags[0] if tags else None


# --- Classes of atoms, and the space between them (The TeXbook, chapter 18) ---

ORD, OP, BIN, REL, OPEN, CLOSE, PUNCT, INNER = range(8)
OPENING, CLOSING = "([{⌊⌈⟨", ")]}⌋⌉⟩!?"
SETS = {
    ORD: ".|‖/∀∃∄∅∂∆∇∞⊤⊥∠¬′″‴√%#",
    OP: "∏∐∑∫∬∭∮⋀⋁⋂⋃⨁⨂",
    BIN: "+−±∓×÷*∗∖∘∙·∧∨∩∪⊕⊖⊗⊘⊙⊔⊓⋅⋆∸",
    REL: "=<>:≔≈",
    OPEN: OPENING,
    CLOSE: CLOSING,
    PUNCT: ",;",
    INNER: "…⋯⋮⋱",
}
CLASS = {character: kind for kind, characters in SETS.items() for character in characters}
LIMITS = {"lim", "sup", "inf", "max", "min", "arg max", "arg min", "det", "gcd", "Pr"}
# A digit for each pair, in rows of the left and columns of the right one: 1 thin, 2 medium, 3 thick. A minus sign
# before it: not in sub- and superscripts.
SPACES = [
    row.split()
    for row in (
        "0 1 -2 -3 0 0 0 -1",
        "1 1 0 -3 0 0 0 -1",
        "-2 -2 0 0 -2 0 0 -2",
        "-3 -3 0 0 -3 0 0 -3",
        "0 0 0 0 0 0 0 0",
        "0 1 -2 -3 0 0 0 -1",
        "-1 -1 0 -1 -1 -1 -1 -1",
        "-1 1 -2 -3 -1 0 -1 -1",
    )
]
WIDTHS = ["0", "0.167em", "0.222em", "0.278em"]

SCRIPTS = {
    "msub": 2,
    "msup": 2,
    "msubsup": 3,
    "munder": 2,
    "mover": 2,
    "munderover": 3,
}
ARITY = SCRIPTS | {"mfrac": 2, "mroot": 2}
ROWS = {
    "math",
    "mrow",
    "mtd",
    "mstyle",
    "msqrt",
    "mpadded",
    "mphantom",
}
LEAVES = {"mi", "mn", "mo", "mtext", "mspace"}
KNOWN = ROWS | LEAVES | set(ARITY) | {"mtable", "mtr"}
ATTRIBUTES = {
    "mo": "stretchy symmetric minsize maxsize lspace rspace movablelimits form largeop",
    "mi": "mathvariant",
    "mspace": "width height depth",
    "mfrac": "linethickness",
    "mpadded": "width height depth lspace voffset",
    "mover": "accent",
    "munder": "accentunder",
    "mtable": "displaystyle class",
    "mtd": "class",
    "mstyle": "displaystyle scriptlevel mathcolor mathsize",
    "math": "display",
}
NAMED_SPACES = {
    "negativethinmathspace": "-0.167em",
    "negativemediummathspace": "-0.222em",
    "negativethickmathspace": "-0.278em",
    "thinmathspace": "0.167em",
    "thickmathspace": "0.278em",
}
# What stands over a letter: what latex2mathml writes, and the character that browsers place well.
ACCENTS = {
    "^": "ˆ",
    "~": "˜",
    "¯": "¯",
    "―": "¯",
    "´": "´",
    "`": "`",
    "˙": "˙",
    "¨": "¨",
    "˘": "˘",
    "ˇ": "ˇ",
    "˚": "˚",
}
STYLES = {
    "bold": "BOLD",
    "italic": "ITALIC",
    "bold-italic": "BOLD ITALIC",
    "double-struck": "DOUBLE-STRUCK",
    "script": "SCRIPT",
    "fraktur": "FRAKTUR",
    "sans-serif": "SANS-SERIF",
    "monospace": "MONOSPACE",
}


def styled(text: str, variant: str) -> str:
    """The text in another mathematical alphabet, as characters of their own.

    Raises:
        FormulaError: The alphabet is unknown, or lacks one of the characters.
    """
    if variant not in STYLES:
        raise FormulaError(f"alphabet {variant!r} is none of {', '.join(STYLES)}")
    style, letters = STYLES[variant], []
    for character in text:
        name = re.sub("^(LATIN|GREEK) ", "", unicodedata.name(character, ""))
        name = name.replace(" LETTER ", " ")
        # Some letters were in Unicode before the alphabets were.
        for candidate in (
            f"MATHEMATICAL {style} {name}",
            f"{style} {name}",
            f"{style.replace('FRAKTUR', 'BLACK-LETTER')} {name}",
            f"{style} {name}".replace("ITALIC SMALL H", "PLANCK CONSTANT"),
            "PLANCK CONSTANT" if (style, name) == ("ITALIC", "SMALL H") else "",
        ):
            try:
                letters.append(unicodedata.lookup(candidate))
                break
            except KeyError:
                continue
        else:
            raise FormulaError(f"there is no {variant} form of {character!r}")
    return "".join(letters)


def only(element: Element) -> Element:
    """What an element that only groups one other holds, however deep."""
    while element.tag in ("mrow", "mstyle") and len(element) == 1:
        element = element[0]
    return element


def core(element: Element) -> Element:
    """The element that scripts belong to."""
    element = only(element)
    while element.tag in SCRIPTS and len(element):
        element = only(element[0])
    return element


def atom_class(element: Element) -> int | None:
    """The class of an atom; None for what only moves its neighbours."""
    if element.tag == "mspace":
        return None
    if element.tag == "mrow":
        fenced = len(element) and element[0].get("fence") == "true"
        return INNER if fenced else ORD
    if element.tag == "mstyle" and len(element) == 1:
        return atom_class(element[0])
    if element.tag == "mfrac":
        return INNER
    if element.tag in SCRIPTS:
        return atom_class(core(element)) if core(element).tag in ("mo", "mi") else ORD
    if element.tag == "mi":
        return OP if element.get("function") else CLASS.get(element.text or "", ORD)
    if element.tag != "mo":
        return ORD
    text = element.text or ""
    if text in CLASS:
        return CLASS[text]
    return OP if text in LIMITS or text[:1].isalpha() else REL


def classes(atoms: list[Element]) -> list[int]:
    """The atoms' classes; a sign such as −, where nothing stands on one of its sides, is ordinary."""
    kinds = [atom_class(atom) for atom in atoms]
    for place, kind in enumerate(kinds):
        before = kinds[place - 1] if place else OPEN
        after = kinds[place + 1] if place + 1 < len(kinds) else CLOSE
        if kind == BIN and (
            before in (BIN, OP, REL, OPEN, PUNCT) or after in (REL, CLOSE, PUNCT)
        ):
            kinds[place] = ORD
    return kinds


def space_row(row: Element, in_script: bool) -> None:
    """Puts TeX's space between the children of a row."""
    atoms = [child for child in row if atom_class(child) is not None]
    for atom in atoms:
        operator = core(atom)
        if operator.tag == "mo":
            operator.set("lspace", "0")
            operator.set("rspace", "0")
    for (left, a), (right, b) in pairwise(zip(atoms, classes(atoms), strict=True)):
        space = int(SPACES[a][b])
        width = WIDTHS[abs(space)] if space > 0 or not in_script else "0"
        if width == "0":
            continue
        if right.tag == "mo":
            right.set("lspace", width)
        elif left.tag == "mo":
            left.set("rspace", width)
        else:
            row.insert(list(row).index(right), Element("mspace", width=width))


# --- From what latex2mathml writes to MathML Core ---


def repair_operator(element: Element) -> None:
    """Gives an operator the character, the element and the growth that it has in TeX."""
    text = element.text or ""
    if text in ORDINARY:
        element.tag = "mi"
        element.attrib.clear()
        if text in "∇∞⊤⊥∅":
            element.set("mathvariant", "normal")
    elif text in LIMITS:
        element.set("movablelimits", "true")
    elif re.fullmatch(r"[A-Za-z][A-Za-z ]*", text) and not element.get("movablelimits"):
        element.tag = "mi"
        element.set("function", "yes")
    elif "minsize" in element.attrib:
        element.set("stretchy", "true")
        element.set("symmetric", "true")


ORDINARY = set("∀∃∄∅∂∆∇∞⊤⊥∠¬…⋯⋮⋱")
FENCES = set("()[]{}⟨⟩⌊⌋⌈⌉|‖∣")
FUNCTIONS = {name.removeprefix("\\") for name in commands.FUNCTIONS} | {"arg"}


def repair_identifier(element: Element) -> None:
    """The same for what latex2mathml takes for a letter."""
    text = element.text or ""
    variant = element.attrib.pop("mathvariant", None)
    if text == "~":  # \sim
        element.tag, element.text = "mo", "∼"
    elif CLASS.get(text, ORD) not in (ORD, INNER):
        element.tag = "mo"
    elif variant not in (None, "normal"):
        element.text = styled(text, variant)
    elif text in FUNCTIONS:
        element.set("function", "yes")
    elif len(text) == 1 and (variant == "normal" or "Α" <= text <= "Ω"):
        # TeX's capitals of Greek stand upright.
        element.set("mathvariant", "normal")


def join_letters(row: Element) -> None:
    r"""Makes one word of upright letters that follow each other, as in \mathrm{KL}."""
    for left, right in reversed(list(pairwise(list(row)))):
        upright = all(
            e.tag == "mi"
            and e.get("mathvariant") == "normal"
            and (e.text or "").isascii()
            and (e.text or "").isalpha()
            for e in (left, right)
        )
        if upright:
            left.text += right.text
            row.remove(right)
    for child in row:
        if child.tag == "mi" and len(child.text or "") > 1:
            child.attrib.pop("mathvariant", None)


def repair_scripts(element: Element) -> None:
    """Limits below and above their operator; accents that do not move away from their letter."""
    base = element[0]
    if element.tag == "msup" and element[1].text and set(element[1].text) <= set("′″‴"):
        element.tag = "mrow"  # the sign is drawn small and high already
        element[1].tag = "mo"
        element[1].attrib = {"lspace": "0", "rspace": "0"}
        return
    if base.tag == "mo" and base.text in LIMITS and element.tag.startswith("msub"):
        element.tag = {"msub": "munder", "msubsup": "munderover"}[element.tag]
    if element.tag == "mover" and element[1].tag == "mo" and element[1].text in ACCENTS:
        accent = element[1]
        if len(list(element[0].iter())) > 1 or accent.text == "―":
            raise FormulaError(
                "an accent over more than one letter is not drawn alike everywhere"
            )
        accent.text, accent.attrib = ACCENTS[accent.text], {"stretchy": "false"}
        element.attrib = {"accent": "true"}
    elif element.tag == "mover" and element[1].text == "→" and element[1].get("stretchy"):
        element[1].attrib, element.attrib = {"stretchy": "false"}, {}
    elif element.tag == "munder" and element[1].text == "―":
        raise FormulaError("lines below are not drawn; use another notation")


def repair_table(element: Element) -> None:
    """Alignment by classes that the stylesheet knows: MathML Core has no attributes for it."""
    for name in ("rowlines", "columnlines"):
        if element.get(name):
            raise FormulaError("lines in a table are not drawn")
    aligned = element.attrib.pop("displaystyle", None) == "true"
    element.attrib.clear()
    if aligned:
        element.set("displaystyle", "true")
        element.set("class", "aligned")
    for cell in element.iter("mtd"):
        side = cell.attrib.pop("columnalign", None)
        if side in ("left", "right"):
            cell.set("class", side)


def read_text(element: Element) -> None:
    """Turns the references that latex2mathml writes as text into their characters."""
    element.text = html.unescape(element.text) if element.text else None
    if element.tag == "mo":
        element.text = {"-": "−", "\\|": "‖", "\\{": "{", "\\}": "}"}.get(
            element.text, element.text
        )
    if element.text and element.text.replace("\u2009", " ") in LIMITS:
        element.text = element.text.replace("\u2009", " ")


def check(element: Element) -> None:
    """
    Raises:
        FormulaError: Something is left that was not understood, or that browsers do not draw.
    """
    text = element.text or ""
    if element.tag not in KNOWN:
        raise FormulaError(
            f"<{element.tag}> is not in MathML Core, so browsers do not draw it"
        )
    if "\\" in text:
        raise FormulaError(f"{text} is not known")
    if element.get("linebreak"):
        raise FormulaError("\\\\ outside of an environment; put aligned around the lines")
    if element.tag == "mi" and text in ("&", "$", "}", "{}"):
        raise FormulaError(f"{text} stands where it means nothing")
    if "$" in text:
        raise FormulaError("mathematics inside \\text; end the text before it")
    if "⧸" in text:
        raise FormulaError("\\not is not known; write \\ne, \\notin or another single sign")
    if element.tag in ARITY and len(element) != ARITY[element.tag]:
        raise FormulaError(f"<{element.tag}> lacks an argument")
    if element.tag in ("mi", "mn") and not text and not element.get("empty"):
        raise FormulaError("a name is empty")
    if element.tag == "mo" and not text and element.get("fence") != "true":
        raise FormulaError("the name of an operator is not made of letters and spaces")
    if element.tag == "mtext" and element.get("mathvariant"):
        raise FormulaError("text in another face; write \\text{…}")


def repair(element: Element, in_script: bool = False) -> None:
    """Repairs an element and what it holds, inner ones first."""
    read_text(element)
    check(element)
    for place, child in enumerate(element):
        scripts = element.tag in SCRIPTS and place > 0
        style = element.get("displaystyle") is None
        repair(child, scripts or (in_script and style))
    if element.tag == "mo":
        repair_operator(element)
    elif element.tag == "mi":
        repair_identifier(element)
    elif element.tag == "mn" and (variant := element.attrib.pop("mathvariant", None)):
        if variant != "normal":
            element.text = styled(element.text, variant)
    elif element.tag == "mspace":
        width = element.get("width", "")
        element.set("width", NAMED_SPACES.get(width, width))
    elif element.tag in SCRIPTS:
        repair_scripts(element)
    elif element.tag == "mtable":
        repair_table(element)
    if element.tag in ROWS:
        join_letters(element)
        space_row(element, in_script)
        for place, child in enumerate(element):
            if child.tag == "mtable":  # the brackets of a matrix
                for neighbour in (
                    *element[max(0, place - 1) : place],
                    *element[place + 1 : place + 2],
                ):
                    if neighbour.tag == "mo" and neighbour.text in "()[]{}|‖":
                        neighbour.set("stretchy", "true")
            elif child.tag == "mo" and child.text in FENCES:
                child.attrib.setdefault("stretchy", "false")


def simplify(element: Element) -> None:
    """Leaves off groups of one, and attributes that nothing reads."""
    for place, child in enumerate(list(element)):
        simplify(child)
        if child.tag == "mrow" and len(child) == 1:
            element[place] = child[0]
        elif child.tag == "mo" and not child.text:  # \left. draws nothing
            element[place] = Element("mrow")
    allowed = ATTRIBUTES.get(element.tag, "").split()
    element.attrib = {key: value for key, value in element.attrib.items() if key in allowed}


@functools.cache
def to_mathml(latex: str, display: bool = False) -> str:
    """A formula of LaTeX as MathML Core.

    Args:
        latex: The formula, without dollars.
        display: Whether it stands on a line of its own.

    Returns:
        The `<math>` element, which carries the LaTeX as its alternative text.

    Raises:
        FormulaError: Something in it was not understood.
    """
    source = " ".join(latex.split())
    if not source:
        raise FormulaError("it is empty")
    try:
        tree = Converter(display="block" if display else "inline").convert_to_element(
            prepared(source)
        )
    except FormulaError:
        raise
    except (
        Exception
    ) as error:  # latex2mathml has a class for each kind of error, and no message
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__)
        detail = f": {error}" if str(error) else ""
        raise FormulaError(f"{words.removesuffix(' Error').lower()}{detail}") from error
    for cell in tree.iter("mtd"):  # align puts an empty name before a sign of relation
        for name in cell.iter("mi"):
            if not name.text:
                name.set("empty", "yes")
    repair(tree)
    simplify(tree)
    tree.attrib = {"display": "block"} if display else {}
    tree.set("alttext", source)
    return ElementTree.tostring(tree, encoding="unicode")


# --- On the page ---


def problems_of(document: nodes.document) -> Iterator[str]:
    """A sentence for each formula of a page that cannot be shown."""
    for node in document.findall(lambda n: isinstance(n, nodes.math | nodes.math_block)):
        latex = node.astext()
        try:
            latex, tag = split_tag(latex)
            if tag is not None and (node.get("number") or isinstance(node, nodes.math)):
                raise FormulaError("a \\tag belongs to a block without a label")
            to_mathml(latex, isinstance(node, nodes.math_block))
        except FormulaError as error:
            lines = (parent.line for parent in traverse_parent(node) if parent.line)
            yield f"line {next(lines, '?')}: {error}, in {node.astext().strip()}"


def check_page(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Stops the build at a page with formulas that cannot be shown."""
    if problems := list(problems_of(doctree)):
        path = app.env.doc2path(docname, base=False)
        raise MathematicsError("".join(f"\n{path}, {problem}" for problem in problems))


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    """A formula within a line, which does not break off the letters and signs that touch it."""
    place, siblings = node.parent.index(node), node.parent.children
    touching = ""
    if place and isinstance(siblings[place - 1], nodes.Text):
        touching = re.search(r"\S*$", self.body[-1])[0]
        self.body[-1] = self.body[-1].removesuffix(touching)
    following = siblings[place + 1].astext() if place + 1 < len(siblings) else ""
    joiner = WORD_JOINER if following and not following[0].isspace() else ""
    tag = self.starttag(node, "span", "", CLASS="math notranslate nohighlight")
    formula = f"{tag}{to_mathml(node.astext())}{joiner}</span>"
    # Browsers would break the line between "(" and a formula, whatever stands between them.
    unbroken = f'<span class="math-joined">{touching}{formula}</span>'
    self.body.append(unbroken if touching else formula)
    raise nodes.SkipNode


def visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    latex, tag = split_tag(node.astext())
    self.body.append(self.starttag(node, "div", CLASS="math notranslate nohighlight"))
    if number := tag or (node.get("number") and get_node_equation_number(self, node)):
        self.body.append(f'<span class="eqno">({self.encode(number)})')
        if tag is None:
            self.add_permalink_ref(node, _("Link to this equation"))
        self.body.append("</span>")
    self.body.append(f"{to_mathml(latex, True)}</div>\n")
    raise nodes.SkipNode


def preload_font(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree
) -> None:
    """The browser fetches the font of mathematics together with the stylesheet, on pages that use it."""
    if "<math" in context.get("body", ""):
        address = context["pathto"](FONT, resource=True)
        context["metatags"] = context.get("metatags", "") + (
            f'<link rel="preload" href="{address}" as="font" type="font/woff2" crossorigin>'
        )


def setup(app: Sphinx) -> dict:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("doctree-resolved", check_page)
    app.connect("html-page-context", preload_font)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
