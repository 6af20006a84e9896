"""Builds a model without memory for its weights, which stored ones replace."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode


class _SkipInitialization(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]  # as torch.nn.init hands it over
        return func(*args, **kwargs)


@contextmanager
def init_empty_weights() -> Iterator[None]:
    """Modules that are built inside have weights with a shape and no content, as in Accelerate.

    The device `meta` alone would still call `torch.nn.init`; for that, PyTorch imports its compiler, which takes
    longer than to read the weights of a small model.
    """
    with torch.device("meta"), _SkipInitialization():
        yield
