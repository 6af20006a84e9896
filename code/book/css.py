"""Shortens stylesheets: takes off comments, rules that no page can match, and variables that nothing reads."""

import re
from collections.abc import Iterable

import tinycss2


def words(texts: Iterable[str]) -> set[str]:
    """Everything in pages and scripts that could be the name of a class, an id or a variable."""
    found = set()
    for text in texts:
        found.update(re.findall(r"[A-Za-z_-][\w-]*", text))
    return found


NAMES = re.compile(r"[.#]((?:[\w-]|\\.)+)")
ARGUMENTS = re.compile(r":(?:not|is|where|has)\((?:[^()]|\([^()]*\))*\)")


def matches(selector: str, known: set[str]) -> bool:
    """Whether a page could hold what the selector asks for. Only classes and ids are looked at."""
    # What stands in :not() must not exist, and in :is() only one must.
    plain = ARGUMENTS.sub("", re.sub(r"\[[^\]]*\]", "", selector))
    names = (re.sub(r"\\(.)", r"\1", name) for name in NAMES.findall(plain))
    return all(name in known for name in names)


def split_selectors(prelude: list) -> list[list]:
    """The selectors of a rule, cut at its commas."""
    parts: list[list] = [[]]
    for token in prelude:
        if token == ",":
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def tidy(text: str) -> str:
    """CSS without comments and needless space. Strings and addresses stay as they are."""
    pieces = re.split(
        r'("(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'|url\([^)]*\)|/\*.*?\*/)', text, flags=re.S
    )
    for place, piece in enumerate(pieces):
        if piece.startswith("/*"):
            pieces[place] = ""
        elif place % 2 == 0:
            piece = re.sub(r"\s+", " ", piece)
            pieces[place] = re.sub(r" ?([;{}]) ?", r"\1", piece)
    return "".join(pieces).strip()


def lean_css(css: str, known: set[str]) -> str:
    """A stylesheet without the rules that nothing on the site can match, and without comments.

    Args:
        css: The stylesheet.
        known: Every word that could be a class or an id.
    """
    rules = tinycss2.parse_stylesheet(css, skip_comments=True, skip_whitespace=True)
    return "".join(lean_rule(rule, known) for rule in rules)


def lean_rule(rule, known: set[str]) -> str:
    if rule.type == "error":
        raise ValueError(f"a stylesheet cannot be read: {rule.message}")
    if rule.type == "qualified-rule":
        kept = [
            text
            for part in split_selectors(rule.prelude)
            if matches(text := tinycss2.serialize(part).strip(), known)
        ]
        body = tidy(tinycss2.serialize(rule.content)).removesuffix(";")
        return f"{','.join(map(tidy, kept))}{{{body}}}" if kept and body else ""
    head = f"@{rule.at_keyword}{tinycss2.serialize(rule.prelude)}"
    if rule.content is None:
        return "" if rule.lower_at_keyword == "charset" else f"{tidy(head)};"
    content = tinycss2.serialize(rule.content)
    if rule.lower_at_keyword in ("media", "supports", "layer", "container"):
        inner = lean_css(content, known)
        return f"{tidy(head)}{{{inner}}}" if inner else ""
    if rule.lower_at_keyword == "font-face" and "Font Awesome" in content.replace("\\", ""):
        return ""
    return f"{tidy(head)}{{{tidy(content)}}}"


DEFINITION = re.compile(
    r"(?<=[;{])(--[\w-]+):((?:\"[^\"]*\"|'[^']*'|\([^)]*\)|[^;}\"'(])*)(;|(?=}))"
)


def drop_unused_variables(css: str, known: set[str]) -> str:
    """Takes off definitions of variables that neither the stylesheet nor a page reads."""
    shorter = None
    while shorter != css:
        css = css if shorter is None else shorter
        used = set(re.findall(r"var\(\s*(--[\w-]+)", css)) | known
        unused = {name for name, *_ in DEFINITION.findall(css)} - used
        shorter = DEFINITION.sub(lambda m, names=unused: "" if m[1] in names else m[0], css)
    return css


def moved_addresses(css: str, name: str) -> str:
    """The addresses in a stylesheet of `_static/<name>`, as seen from `_static/`."""
    folder = name.rpartition("/")[0]
    if not folder:
        return css
    return re.sub(
        r"url\((['\"]?)(?!data:|['\"]|#|/|https?:)", rf"url(\g<1>{folder}/", css
    ).replace(f"{folder}/../", "")
