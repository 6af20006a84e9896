"""Low-rank additions: PEFT's on the same matrices, nothing at first, the same after merging, and they learn."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llm_learn.lora import LoRALinear, add_lora, lora_state, merge_lora
from llm_learn.model import Llama, LlamaConfig

NAMES = ["qkv", "out", "gate_up", "down"]
IDS = torch.randint(13, (3, 5), generator=torch.Generator().manual_seed(0))


def small_llama() -> Llama:
    torch.manual_seed(0)
    shape = {"vocab_size": 13, "context_length": 6, "d_model": 8, "num_layers": 2}
    return Llama(LlamaConfig(**shape, d_ff=11, num_heads=2, num_kv_heads=1)).double()


def learned(model: nn.Module) -> nn.Module:
    """With second matrices that are not zero any more."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.b, std=0.1, generator=generator)
    return model


@pytest.mark.parametrize(("rank", "alpha"), [(1, 1.0), (3, 16.0)])
def test_equals_peft_with_the_same_matrices(rank, alpha):
    peft = pytest.importorskip("peft")
    ours = learned(add_lora(small_llama(), NAMES, rank=rank, alpha=alpha))
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=NAMES)
    theirs = peft.inject_adapter_in_model(config, small_llama())
    state = lora_state(ours)
    weights = {name: p for name, p in theirs.named_parameters() if "lora_" in name}
    assert len(weights) == len(state)
    for path, tensor in state.items():
        layer, _, kind = path.rpartition(".")
        weights[f"{layer}.lora_{kind.upper()}.default.weight"].data.copy_(tensor)
    outputs = ours(IDS), theirs(IDS)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    for out in outputs:
        (out**2).sum().backward()
    trained = dict(ours.named_parameters())
    for path in state:
        layer, _, kind = path.rpartition(".")
        theirs_grad = weights[f"{layer}.lora_{kind.upper()}.default.weight"].grad
        torch.testing.assert_close(trained[path].grad, theirs_grad, rtol=0, atol=1e-10)
    frozen = [p for name, p in trained.items() if name not in state]
    assert all(p.grad is None and not p.requires_grad for p in frozen)


@given(
    in_features=st.integers(1, 6),
    out_features=st.integers(1, 6),
    rank=st.integers(1, 6),
    bias=st.booleans(),
)
def test_nothing_changes_at_first_and_merging_changes_nothing(
    in_features, out_features, rank, bias
):
    linear = nn.Linear(in_features, out_features, bias=bias, dtype=torch.float64)
    x = torch.randn(4, in_features, dtype=torch.float64)
    model = nn.Sequential(linear)
    before = model(x).detach()
    rank = min(rank, in_features, out_features)
    add_lora(model, ["0"], rank=rank, alpha=2.0)
    assert torch.equal(model(x), before)
    learned(model)
    merged = merge_lora(model)
    assert isinstance(merged[0], nn.Linear)
    torch.testing.assert_close(merged(x), model(x), rtol=0, atol=1e-12)
    # The model itself is as it was, so that another product can be put in its place.
    assert isinstance(model[0], LoRALinear) and torch.equal(model[0].base(x), before)
    assert torch.linalg.matrix_rank(model[0].update()) <= rank


def test_one_layer_alone_is_merged_too():
    layer = learned(nn.ModuleList([LoRALinear(nn.Linear(3, 5), rank=2, alpha=4.0)]))[0]
    assert not layer.base.weight.requires_grad and not layer.base.bias.requires_grad
    x = torch.randn(4, 3)
    merged = merge_lora(layer)
    assert type(merged) is nn.Linear
    torch.testing.assert_close(merged(x), layer(x))


def test_layers_may_get_different_ranks_and_all_learn():
    model = add_lora(small_llama(), ["qkv"], rank=1, alpha=1.0)
    add_lora(model, ["down"], rank=3, alpha=1.0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(lora_state(model)) and len(trained) == 8


class Packed(nn.Module):
    """A base without parameters."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features = 3, 5
        self.register_buffer("bytes", torch.zeros(5, 3, dtype=torch.uint8, device="meta"))


def test_thin_matrices_lie_where_the_base_lies_in_32_bits_at_least():
    layer = LoRALinear(Packed(), rank=2, alpha=1.0)
    assert layer.a.device.type == layer.b.device.type == "meta"
    assert layer.a.dtype == layer.b.dtype == torch.float32
    with pytest.raises(ValueError, match="a Packed under LoRA"):
        merge_lora(layer)
    half = learned(
        add_lora(nn.Sequential(nn.Linear(3, 5)).bfloat16(), ["0"], rank=2, alpha=1)
    )
    assert half[0].a.dtype == torch.float32
    assert half(torch.ones(1, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert merge_lora(half)[0].weight.dtype == torch.bfloat16
    assert LoRALinear(nn.Linear(3, 5).double(), rank=1, alpha=1.0).a.dtype == torch.float64


def test_matrices_begin_as_pefts_do():
    layer = LoRALinear(nn.Linear(100, 50), rank=30, alpha=1.0)
    assert not layer.b.any()
    # Evenly between plus and minus one over the root of the inputs.
    assert 0.098 < layer.a.abs().max() <= 0.1
    assert layer.a.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.05)


def test_the_state_is_all_that_was_learned():
    model = learned(add_lora(small_llama(), NAMES, rank=2, alpha=4.0))
    other = add_lora(small_llama(), NAMES, rank=2, alpha=4.0)
    missing = other.load_state_dict(lora_state(model), strict=False)
    assert not missing.unexpected_keys
    assert torch.equal(other(IDS), model(IDS))
    saved = lora_state(model)
    learned(model).blocks[0].attention.qkv.a.data.zero_()
    assert saved["blocks.0.attention.qkv.a"].any()  # a copy
    count = sum(t.numel() for t in saved.values())
    assert count == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_it_finds_a_change_of_low_rank():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 9))
    planted = torch.randn(9, 2) @ torch.randn(2, 12) / 3
    x = torch.randn(64, 12)
    with torch.no_grad():
        target = model(x) + x @ planted.T
    weight = model[0].weight.clone()
    add_lora(model, ["0"], rank=2, alpha=4.0)
    optimizer = torch.optim.Adam([model[0].a, model[0].b], lr=0.02)
    losses = []
    for _ in range(400):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-4 * losses[0]
    torch.testing.assert_close(model[0].update(), planted, rtol=0, atol=0.05)
    assert torch.equal(model[0].base.weight, weight)


def test_layers_that_have_it_already_are_refused():
    model = add_lora(small_llama(), ["qkv"], rank=2, alpha=4.0)
    with pytest.raises(ValueError, match=r"names is \['qkv'\]"):
        add_lora(model, ["qkv"], rank=2, alpha=4.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0, "alpha": 1.0}, r"rank is 0, min\(.*\) is 3: expected 1 <= rank"),
        ({"rank": 4, "alpha": 1.0}, "rank is 4"),
        ({"rank": 2, "alpha": 0.0}, "alpha is 0.0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        LoRALinear(nn.Linear(3, 5), **settings)


def test_unknown_names_are_refused_and_nothing_is_changed():
    model = small_llama()
    before = copy.deepcopy(model)
    with pytest.raises(
        ValueError, match=r"names is \['qkv', 'q'\], layers is \{'qkv'\}: expected"
    ):
        add_lora(model, ["qkv", "q"], rank=2, alpha=4.0)
    with pytest.raises(ValueError, match=r"len\(names\) is 0: expected"):
        add_lora(model, [], rank=2, alpha=4.0)
    with pytest.raises(
        ValueError, match=r"layer is RMSNorm\(\): expected hasattr\(layer, 'in_features'\)"
    ):
        add_lora(model, ["qkv", "norm"], rank=2, alpha=4.0)
    assert list(dict(model.named_parameters())) == list(dict(before.named_parameters()))
    assert all(p.requires_grad for p in model.parameters())


def test_a_layer_that_is_too_small_leaves_the_others_as_they_were():
    model = nn.ModuleDict({"big": nn.Linear(9, 9), "small": nn.Linear(3, 9)})
    with pytest.raises(ValueError, match=r"rank is 4, min\(.*\) is 3: expected 1 <= rank"):
        add_lora(model, ["big", "small"], rank=4, alpha=4.0)
    assert type(model["big"]) is nn.Linear
    assert all(p.requires_grad for p in model.parameters())
