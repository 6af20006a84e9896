"""The plotting style of the book's figures."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from torch import Tensor

from llm_learn.argument_checks import expect

# The book's colours, which colour-blind readers can distinguish. The site's palette.css repeats them.
PALETTE = {
    "navy": "#293A69",
    "rust": "#B45702",
    "sage": "#4F8776",
    "violet": "#924EAD",
    "amber": "#D47F10",
    "sky": "#1897F4",
    "grey": "#565656",
}
COLORS = list(PALETTE.values())  # in matplotlib's names: "C0" to "C6"
INK = "#1F2430"  # text and axes
SEQUENTIAL = "viridis"


def use_book_style() -> None:
    """Sets matplotlib's defaults for the book: wide, light frame, legible at phone width."""
    plt.rcParams.update(
        {
            "figure.figsize": (7.2, 3.6),
            "figure.dpi": 150,  # sharp on a dense screen at the width of the page
            "savefig.dpi": 150,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.titlesize": 12,
            "axes.titlelocation": "left",
            "axes.prop_cycle": cycler(color=COLORS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "lines.linewidth": 2,
            "legend.frameon": False,
            "image.cmap": SEQUENTIAL,
        }
    )


def heat_map(
    ax,
    values,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    *,
    show_values: bool = False,
):
    """Draws a matrix with its row and column labels.

    Args:
        ax: the Axes to draw on.
        values: (rows, columns), an array or tensor.
        rows, columns: labels; none are drawn where empty.
        show_values: write each value into its cell, with two decimals.

    Returns:
        The image, for a colour bar.
    """
    values = np.asarray(values.detach() if isinstance(values, Tensor) else values)
    rule = "values (R, C), len(rows) in (0, R), len(columns) in (0, C)"
    expect(rule, values=values, rows=rows, columns=columns)
    image = ax.imshow(values, aspect="auto")
    ax.grid(False)
    rotation = 60 if any(len(label) > 2 for label in columns) else 0
    ax.set_xticks(range(len(columns)), columns, rotation=rotation)
    ax.set_yticks(range(len(rows)), rows)
    if show_values:
        middle = (values.min() + values.max()) / 2
        for (i, j), value in np.ndenumerate(values):
            color = "white" if value < middle else "black"
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", color=color)
    return image
