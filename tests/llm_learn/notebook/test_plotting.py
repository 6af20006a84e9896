"""Figures show the numbers they are given, in colours that can be told apart."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from llm_learn.notebook.plotting import COLORS, SEQUENTIAL, heat_map, use_book_style


@pytest.fixture(autouse=True)
def style_stays_here():
    with mpl.rc_context():
        yield
    plt.close("all")


@pytest.fixture
def ax():
    return plt.subplots()[1]


def luminance(color) -> float:
    """Relative luminance (WCAG 2.2)."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_style_sets_the_books_look():
    use_book_style()
    assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == COLORS
    assert mpl.rcParams["image.cmap"] == SEQUENTIAL
    assert mpl.rcParams["figure.facecolor"] == "white"
    assert not mpl.rcParams["axes.spines.top"] and not mpl.rcParams["axes.spines.right"]
    width, height = mpl.rcParams["figure.figsize"]
    assert 0.4 < height / width < 0.8 and mpl.rcParams["font.size"] >= 10


def test_colors_are_distinct_and_stand_out_from_white():
    """tests/book/test_face.py measures how far apart a colour-blind reader sees them."""
    assert len(set(COLORS)) == len(COLORS) >= 6
    # 3:1 against white: what a line or a bar needs (WCAG 2.2, 1.4.11).
    assert all(1.05 / (luminance(color) + 0.05) > 3 for color in COLORS)


@pytest.mark.parametrize("make", [np.array, torch.tensor, list])
def test_heat_map_draws_the_values(ax, make):
    values = [[0.0, 0.25, 1.0], [0.5, 0.75, 0.1]]
    ax.grid(True)  # as the book's style has it; over an image it would cut through cells
    image = heat_map(ax, make(values), ["r1", "r2"], ["a", "b", "c"])
    assert not any(line.get_visible() for line in ax.get_xgridlines() + ax.get_ygridlines())
    # A float32 tensor's rounding.
    np.testing.assert_allclose(image.get_array(), values, atol=1e-7)
    assert image.axes is ax
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["r1", "r2"]
    assert list(ax.get_xticks()) == [0, 1, 2] and list(ax.get_yticks()) == [0, 1]
    assert not ax.texts


def test_heat_map_without_labels_draws_none(ax):
    heat_map(ax, np.eye(3))
    assert len(ax.get_xticks()) == len(ax.get_yticks()) == 0
    assert not any(line.get_visible() for line in ax.get_xgridlines())


def test_heat_map_writes_legible_values_into_their_cells(ax):
    values = np.array([[0.0, 0.126], [0.999, 0.6]])
    image = heat_map(ax, values, show_values=True)
    assert {(t.get_position(), t.get_text()) for t in ax.texts} == {
        ((0, 0), "0.00"), ((1, 0), "0.13"), ((0, 1), "1.00"), ((1, 1), "0.60"),
    }  # fmt: skip
    for text in ax.texts:
        column, row = text.get_position()
        lighter, darker = sorted(
            (
                luminance(text.get_color()),
                luminance(image.to_rgba(values)[row, column][:3]),
            ),
            reverse=True,
        )
        # WCAG asks 3:1 of large text; the hardest cell is the middle of the colour map.
        assert (lighter + 0.05) / (darker + 0.05) > 3


def test_long_column_labels_are_turned(ax):
    heat_map(ax, np.eye(2), columns=["a", "bc"])
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {0.0}
    heat_map(ax, np.eye(2), columns=["a", "long"])
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {60.0}


def test_heat_map_draws_tensors_that_track_gradients(ax):
    weights = torch.randn(2, 2, requires_grad=True).softmax(-1)
    assert heat_map(ax, weights).get_array().shape == (2, 2)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), ()])
def test_heat_map_rejects_what_is_no_matrix(ax, shape):
    with pytest.raises(
        ValueError, match=r"values (has shape \(.*\)|is 0.0): expected \(R, C\)"
    ):
        heat_map(ax, np.zeros(shape))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            {"rows": "abc"},
            r"len\(rows\) is 3, values has shape \(2, 3\): .* len\(rows\) in \(0, R\)",
        ),
        (
            {"columns": "ab"},
            r"len\(columns\) is 2, values has shape \(2, 3\): .* in \(0, C\)",
        ),
    ],
)
def test_heat_map_rejects_labels_of_another_number(ax, labels, message):
    with pytest.raises(ValueError, match=message):
        heat_map(ax, np.zeros((2, 3)), **labels)
