"""The transformer chapter's check: it passes as the page says, and sees every mistake that the page lists."""

import ast
import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from book.read.chapters import read_source
from llm_learn.notebook import verify
from llm_learn.tasks.number_name_translation import number_translation, translation_batch

PAGE = Path(__file__).parents[2] / "chapters/origins/transformer.md"
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)
MISTAKES = (
    "half_the_heads",
    "unscaled_words",
    "positions_from_one",
    "no_positions",
    "no_residual",
    "swap_keys_and_values",
    "no_padding_mask",
    "sees_ahead",
)


@pytest.fixture(scope="module")
def chapter() -> SimpleNamespace:
    """Imports, classes, functions and the list of mistakes, up to the training, which needs the chapter's data."""
    kept = []
    for cell in read_source(PAGE).cells:
        body = ast.parse(cell.source).body
        if any(getattr(node, "name", None) == "smoothed_loss" for node in body):
            break
        kept += [
            node
            for node in body
            if isinstance(node, DEFINITIONS) or ast.unparse(node).startswith("MISTAKES =")
        ]
    namespace = {"__name__": "transformer"}
    exec(compile(ast.Module(kept, type_ignores=[]), str(PAGE), "exec"), namespace)
    return SimpleNamespace(**namespace)


@pytest.fixture(scope="module")
def texts() -> tuple[torch.Tensor, torch.Tensor]:
    source, inputs, _ = translation_batch(number_translation("de", num_train=6).train)
    return source, inputs


def fresh(chapter, texts, **settings):
    torch.manual_seed(0)
    sizes = [int(ids.max()) + 1 for ids in texts]
    model = chapter.Transformer(*sizes, d_model=40, **settings).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def checked(chapter, model, texts, norm_first: bool = False) -> None:
    """The comparison of the page."""
    reference = chapter.Reference(model, norm_first, 0.0)
    ours, theirs = (chapter.results_of(network, *texts) for network in (model, reference))
    assert ours.keys() == theirs.keys()
    verify(
        "Transformer",
        list(ours.values()),
        [theirs[name] for name in ours],
        against="torch.nn.Transformer",
        tolerance=1e-10,
    )


@pytest.mark.parametrize("wrap", ["PostNorm", "PreNorm"])
def test_the_transformer_is_torchs_with_all_gradients(chapter, texts, wrap):
    model = fresh(chapter, texts, wrap=getattr(chapter, wrap))
    checked(chapter, model, texts, wrap == "PreNorm")


def test_every_parameter_is_compared(chapter, texts):
    model = fresh(chapter, texts)
    results = chapter.results_of(model, *texts)
    compared = sum(
        gradient.numel() for name, gradient in results.items() if name != "logits"
    )
    assert compared == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_check_sees_each_mistake(chapter, texts, mistake):
    broken = copy.deepcopy(fresh(chapter, texts))
    getattr(chapter, mistake)(broken)
    with pytest.raises(AssertionError, match="differs from"):
        checked(chapter, broken, texts)
    assert chapter.difference(broken, *texts) > 1e-3


def test_these_are_the_mistakes_of_the_page(chapter):
    assert tuple(mistake.__name__ for mistake in chapter.MISTAKES) == MISTAKES
