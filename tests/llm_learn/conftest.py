"""Every test runs on one thread, from fixed seeds, and draws figures without a window."""

import matplotlib
import pytest
import torch
from hypothesis import settings

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


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
