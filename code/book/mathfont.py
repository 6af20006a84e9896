"""Makes the font of mathematics from STIX Two Math: `python -m book.mathfont`.

The result is committed, so that a build needs neither the whole font nor the packages that cut it. Run it again when
the book needs a character that REPERTOIRE lacks; `pip install ziamath==0.13 brotli` brings the font and the compressor.
"""

import importlib.util
import sys
from pathlib import Path

FONT = Path(__file__).parents[2] / "_static" / "fonts" / "math.woff2"
FAMILY = "Book Math"
# Letters of the mathematical alphabets, and the signs that chapters use or are likely to.
RANGES = [
    *(
        (0x20, 0x7E),
        (0xA0, 0xA0),
        (0xA8, 0xA8),
        (0xAC, 0xB1),
        (0xB4, 0xB7),
        (0xD7, 0xD7),
        (0xF7, 0xF7),
    ),
    *((0x391, 0x3A9), (0x3B1, 0x3C9), (0x3D1, 0x3D6), (0x3F0, 0x3F5)),
    *((0x2C6, 0x2DC), (0x1D400, 0x1D433), (0x1D434, 0x1D467), (0x1D468, 0x1D49B)),
    *(
        (0x1D49C, 0x1D4B5),
        (0x1D538, 0x1D551),
        (0x1D6E2, 0x1D71B),
        (0x1D736, 0x1D755),
        (0x1D7CE, 0x1D7E1),
    ),
]
SIGNS = (
    "…′″‴‖ℂℋℒℓℎℍℐℕℙℚℛℝℤℬℰℱℳ←↑→↓↔↦⇐⇒⇔⇝∀∂∃∄∅∆∇∈∉∋∏∐∑−∓∖∗∘∙√∝∞∠∣∥∧∨∩∪∫∬∮∴∼≃≅≈≔≜≠≡≤≥≪≫≺≻⊂⊃⊆⊇⊕⊖⊗⊘⊙⊤⊥⊢⊨⋀⋁⋂⋃⋅⋆"
    "⋮⋯⋱⌈⌉⌊⌋⎴⎵⏜⏝⏞⏟⟂⟨⟩⟵⟶⟷⟸⟹⟺⟼⨁⨂⪯⪰⃗ "
)
REPERTOIRE = {chr(code) for first, last in RANGES for code in range(first, last + 1)} | set(
    SIGNS
)


def main() -> int:
    package = importlib.util.find_spec("ziamath")
    if package is None or importlib.util.find_spec("brotli") is None:
        print(
            "error: run `pip install ziamath==0.13 brotli` first: the font is in ziamath, and brotli compresses it",
            file=sys.stderr,
        )
        return 1
    source = Path(package.origin).parent / "fonts" / "STIXTwoMath-Regular.ttf"
    write(source, FONT)
    print(f"{FONT}: {FONT.stat().st_size:,} bytes")
    return 0


def write(source: Path, target: Path) -> None:
    """Cuts a font down to REPERTOIRE, with the growing forms of its signs, under a name of its own."""
    from fontTools import subset

    options = subset.Options(
        flavor="woff2",
        hinting=False,
        layout_features=[],  # scripts are scaled letters: their own forms would double the file
        notdef_outline=True,
        recalc_timestamp=False,
    )
    font = subset.load_font(str(source), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=map(ord, REPERTOIRE))
    subsetter.subset(font)
    narrow_roots(font)
    for number in (1, 4, 16):
        font["name"].setName(FAMILY, number, 3, 1, 0x409)
    font["name"].setName(FAMILY.replace(" ", ""), 6, 3, 1, 0x409)
    target.parent.mkdir(parents=True, exist_ok=True)
    subset.save_font(font, str(target), options)


def narrow_roots(font) -> None:
    """Makes tall signs of a root as wide as the small one.

    Chromium reserves the width of the widest, so that a gap follows every root.
    """
    root = font.getBestCmap()[0x221A]
    variants = font["MATH"].table.MathVariants
    grown = variants.VertGlyphConstruction[variants.VertGlyphCoverage.glyphs.index(root)]
    glyphs = {record.VariantGlyph for record in grown.MathGlyphVariantRecord}
    glyphs |= {part.glyph for part in grown.GlyphAssembly.PartRecords}
    width = font["hmtx"][root][0]
    for name in glyphs - {root}:
        glyph, (advance, _) = font["glyf"][name], font["hmtx"][name]
        glyph.coordinates.scale((width / advance, 1))
        glyph.coordinates.toInt()
        glyph.recalcBounds(font["glyf"])
        font["hmtx"][name] = (width, glyph.xMin)


if __name__ == "__main__":
    sys.exit(main())
