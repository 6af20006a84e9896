"""Draws the picture that a network shows beside a link to a page: title, text and the page's first figure."""

import textwrap
from pathlib import Path

SIZE = (1200, 630)  # what networks ask for, in pixels
# As in palette.css, for the light theme.
INK, MUTED, ACCENT, PAPER = "#1F2430", "#525B6B", "#1260AE", "#FDFCFA"


def _lines(text: str, width: int, most: int) -> str:
    return textwrap.fill(text, width, max_lines=most, placeholder=" …")


def draw(
    path: Path,
    *,
    title: str,
    text: str,
    book: str = "",
    address: str = "",
    figure: Path | None = None,
) -> None:
    """Writes a PNG of 1200 by 630 pixels.

    Args:
        path: Where to; folders are made.
        title: The page's title.
        text: What the page is about.
        book: The book's name, above the title.
        address: The site's address, at the foot.
        figure: A PNG to show at the right; left out where it does not exist.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.image import imread
    from matplotlib.patches import Rectangle

    shown = figure is not None and figure.suffix == ".png" and figure.is_file()
    style = {"text.parse_math": False, "font.family": "DejaVu Sans"}
    with rc_context(style):
        card = Figure(figsize=(SIZE[0] / 100, SIZE[1] / 100), dpi=100, facecolor=PAPER)
        edge = Rectangle((0, 0), 0.012, 1, transform=card.transFigure, color=ACCENT)
        card.add_artist(edge)
        head = _lines(title, 17 if shown else 30, 3)
        # One line of the title is 0.12 of the card high.
        below = 0.80 - 0.12 * (head.count("\n") + 1)
        card.text(0.06, 0.88, book, size=22, color=ACCENT, weight="bold", va="center")
        card.text(
            0.06, 0.80, head, size=48, color=INK, weight="bold", va="top", linespacing=1.1
        )
        about = _lines(text, 34 if shown else 62, 6 if below > 0.5 else 4)
        card.text(
            0.06, below - 0.02, about, size=22, color=MUTED, va="top", linespacing=1.45
        )
        card.text(0.06, 0.07, address, size=18, color=MUTED, va="center")
        if shown:
            picture = card.add_axes((0.55, 0.12, 0.42, 0.76))
            picture.imshow(imread(figure), interpolation="antialiased")
            picture.set_axis_off()
        path.parent.mkdir(parents=True, exist_ok=True)
        card.savefig(path, dpi=100, metadata={"Software": None})
