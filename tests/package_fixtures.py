"""Every test runs on one thread, from fixed seeds, and draws figures without a window."""

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
import torch
from hypothesis import settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llm_learn.model import Llama, LlamaConfig
from llm_learn.tasks.shakespeare_line_preferences import ANSWER, EOS_ID, PROMPT

matplotlib.use("Agg")
torch.set_num_threads(1)
# Derandomized: a failure in CI repeats here, and no database of earlier failures decides what is tried.
settings.register_profile(
    "book", deadline=None, max_examples=60, derandomize=True, database=None
)
settings.load_profile("book")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def definitions_of() -> Callable[[str], SimpleNamespace]:
    """What a chapter imports and defines, by its slug, as the recorded experiments get it."""
    path = Path(__file__).parents[1] / "experiments" / "common.py"
    spec = importlib.util.spec_from_file_location("experiments_common", path)
    common = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(common)
    return cache(common.definitions)


@pytest.fixture(scope="module")
def chapter(request, definitions_of) -> SimpleNamespace:
    """The definitions of the chapter that the test module names in SLUG."""
    return definitions_of(request.module.SLUG)


@pytest.fixture
def no_gradients():
    """For chapters that switch them off at their beginning."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def tiny_llama() -> Callable[..., Llama]:
    """Makes a Llama of two small layers in which every weight matters, from changes of its configuration."""

    def make(**changes) -> Llama:
        torch.manual_seed(0)
        shape = {"vocab_size": 20, "context_length": 64, "d_model": 32, "d_ff": 64}
        shape |= {"num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
        model = Llama(LlamaConfig(**(shape | changes))).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.5)
        return model

    return make


def sharp_llama(factor: float, seed: int = 0, **changes: int) -> Llama:
    """A small Llama whose matrices are multiplied, so that its distributions differ from position to position."""
    torch.manual_seed(seed)
    shape = {"vocab_size": 6, "context_length": 48, "d_model": 16, "d_ff": 32}
    shape |= {"num_layers": 2, "num_heads": 2, "num_kv_heads": 1}
    model = Llama(LlamaConfig(**(shape | changes))).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.detach().mul_(factor)
    return model


def numbers(*shape: int, seed: int = 0, scale: float = 0.05) -> Tensor:
    """Normally distributed numbers of a standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator)


@pytest.fixture
def llama_to_quantize(chapter) -> Llama:
    """A Llama whose widths hold groups of 32, with SmolLM2's head_dim, and norms that differ by column."""
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "context_length": chapter.LENGTH, "d_model": 128}
    shape |= {"d_ff": 96, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}
    model = Llama(LlamaConfig(**shape))
    for parameter in model.parameters():
        parameter.detach().copy_(0.1 * torch.randn_like(parameter) + (parameter.ndim == 1))
    return model


class OneDevice(TorchDispatchMode):
    """Refuses what a GPU would refuse: an operation on tensors of two devices, copies aside."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        devices = {t.device for t in tensors if t.ndim}
        if len(devices) > 1 and operation is not torch.ops.aten.copy_.default:
            raise AssertionError(f"{operation} got tensors on {devices}")
        return operation(*args, **kwargs or {})


@pytest.fixture
def one_device():
    """With it, a model on the device `meta` shows what would not work on a GPU."""
    with OneDevice():
        yield


@pytest.fixture
def two_texts() -> tuple[Tensor, Tensor]:
    """Two batches of ids, (B, T), that a `tiny_llama` can read."""
    return torch.randint(20, (3, 9)), torch.randint(20, (3, 9))


@pytest.fixture
def tiny_model_of_lines() -> Callable[[int], Llama]:
    """Makes an untrained model of the shape that the chapters on preferences need, from a seed."""

    def make(seed: int) -> Llama:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=EOS_ID + 1,
            context_length=PROMPT + ANSWER,
            d_model=16,
            d_ff=24,
            num_layers=1,
            num_heads=2,
            num_kv_heads=2,
        )
        model = Llama(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        return model

    return make


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
