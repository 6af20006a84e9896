"""The look of the book's figures."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from torch import Tensor

# Okabe and Ito's palette: told apart by colour-blind readers, in print and on a dark page.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5E5E5E"]
SEQUENTIAL = "viridis"


def use_book_style() -> None:
    """Sets matplotlib's defaults for the book: wide, light frame, legible at phone width."""
    plt.rcParams.update(
        {
            "figure.figsize": (7.2, 3.6),
            "figure.dpi": 100,
            "savefig.dpi": 180,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.size": 11,
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
    if values.ndim != 2:
        raise ValueError(
            f"values has shape {values.shape}: a heat map needs two dimensions"
        )
    for name, labels, size in (
        ("rows", rows, values.shape[0]),
        ("columns", columns, values.shape[1]),
    ):
        if len(labels) not in (0, size):
            raise ValueError(f"{name} holds {len(labels)} labels: expected none or {size}")
    image = ax.imshow(values, aspect="auto")
    ax.grid(False)
    ax.set_xticks(
        range(len(columns)), columns, rotation=60 if any(len(c) > 2 for c in columns) else 0
    )
    ax.set_yticks(range(len(rows)), rows)
    if show_values:
        middle = (values.min() + values.max()) / 2
        for (i, j), value in np.ndenumerate(values):
            ax.text(
                j,
                i,
                f"{value:.2f}",
                ha="center",
                va="center",
                color="white" if value < middle else "black",
            )
    return image
