"""A model is built without memory and without random numbers, and torch works as before afterwards."""

import subprocess
import sys

import torch
from torch import nn

from llm_learn.model import GPT, GPTConfig
from llm_learn.model.empty_weights import init_empty_weights

CONFIG = GPTConfig(vocab_size=11, context_length=8, d_model=8, num_layers=1, num_heads=2)


def test_shapes_are_those_of_the_model_and_no_random_number_is_used():
    state = torch.get_rng_state()
    with init_empty_weights():
        empty = GPT(CONFIG)
    assert torch.equal(torch.get_rng_state(), state)
    real = GPT(CONFIG).state_dict()
    assert {name: x.shape for name, x in empty.state_dict().items()} == {
        name: x.shape for name, x in real.items()
    }
    assert all(p.is_meta for p in empty.parameters())
    empty.load_state_dict(real, assign=True)
    assert all(torch.equal(x, real[name]) for name, x in empty.state_dict().items())


def test_outside_of_it_weights_are_initialised():
    with init_empty_weights():
        pass
    assert nn.Linear(4, 4).weight.abs().sum() > 0
    assert (nn.init.ones_(torch.empty(3)) == 1).all()


def test_the_compiler_is_not_imported():
    program = (
        "import sys, torch\n"
        "from llm_learn.model.empty_weights import init_empty_weights\n"
        "with init_empty_weights():\n"
        "    torch.nn.Embedding(3, 4), torch.nn.Linear(3, 4), torch.nn.LayerNorm(3)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stderr
