"""Joins JavaScript modules into one script, and runs it in V8, the engine of Chromium, without a browser."""

import base64
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from torch import Tensor

ENGINE = Path(__file__).parent
# Import and export statements in the only forms that `bundle` knows.
IMPORT = re.compile(r'^import \{ ([\w, ]+) \} from "\./([\w-]+)\.js";\n', re.M)
EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const) (\w+))", re.M)
OTHER = re.compile(r"^(?:import|export)\b.*", re.M)
# V8 alone has no TextEncoder and no TextDecoder. This one gives a single U+FFFD for bytes that are no UTF-8.
ENCODERS = r"""
globalThis.TextEncoder = class {
  encode(text) { return Uint8Array.from(unescape(encodeURIComponent(text)), (byte) => byte.charCodeAt(0)); }
};
globalThis.TextDecoder = class {
  decode(bytes) {
    try { return decodeURIComponent(escape(String.fromCharCode(...bytes))); } catch { return "\uFFFD"; }
  }
};
"""


def bundle(folders: Iterable[Path], name: str) -> str:
    """One classic script of all modules in these folders, which also works from file://. Their exports are in `name`.

    Raises:
        ValueError: a module imports or exports in a form that is not known here, imports one that is not there, or
            imports itself through others.
    """
    paths = {path.stem: path for folder in folders for path in sorted(folder.glob("*.js"))}
    parts: dict[str, str] = {}

    def include(stem: str, importers: tuple[str, ...] = ()) -> None:
        chain = " imports ".join((*importers, stem))
        if stem in importers or stem not in paths:
            raise ValueError(
                f"{chain}: expected a module of {', '.join(paths)}, without a circle"
            )
        if stem in parts:
            return
        source = paths[stem].read_text(encoding="utf-8")
        for _, other in IMPORT.findall(source):
            include(other, (*importers, stem))
        exported = ", ".join(EXPORT.findall(source))
        body = IMPORT.sub(
            lambda found: f"const {{ {found[1]} }} = modules.{found[2]};\n", source
        )
        body = EXPORT.sub("", body)
        if other := OTHER.search(body):
            raise ValueError(
                f'{stem}.js: {other[0]!r}: expected `import {{ a, b }} from "./name.js";` or `export` of a function, '
                "a class or a constant"
            )
        parts[stem] = (
            f"modules.{stem} = (() => {{\n{body}return {{ {exported} }};\n}})();\n"
        )

    for stem in paths:
        include(stem)
    modules = "".join(parts.values())
    return f'const {name} = (() => {{\n"use strict";\nconst modules = {{}};\n{modules}return modules;\n}})();\n'


class V8:
    """The engine's script in V8: `with V8() as run: run("engine.tensors.gelu(x)", x=[1.0, -2.0])`.

    Args:
        source: the script, by default the modules beside this file.
    """

    def __init__(self, source: str | None = None):
        self.source = bundle([ENGINE], "engine") if source is None else source

    def __enter__(self) -> Self:
        from py_mini_racer import MiniRacer

        self._context = MiniRacer()
        self._context.eval(ENCODERS + self.source)
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()  # or this process would not end

    def __call__(self, expression: str, **values: Any) -> Any:
        """The value of an expression, in which the given values are constants.

        Numbers, strings, lists and tensors become those of JavaScript, and bytes an ArrayBuffer. Arrays come back as
        lists. `globalThis.model = …` keeps a value for later calls; it comes back as None.
        """
        constants = "".join(
            f"const {name} = {_in_javascript(value)};\n" for name, value in values.items()
        )
        shown = "(key, value) => ArrayBuffer.isView(value) ? Array.from(value) : value"
        kept = expression.startswith("globalThis.")
        wanted = f"({expression}, null)" if kept else expression
        text = self._context.eval(
            f"(() => {{ {constants} return JSON.stringify({wanted}, {shown}); }})()"
        )
        return json.loads(str(text))


def _in_javascript(value: Any) -> str:
    if isinstance(value, bytes):
        return f'Uint8Array.fromBase64("{base64.b64encode(value).decode()}").buffer'
    return json.dumps(value.tolist() if isinstance(value, Tensor) else value)
