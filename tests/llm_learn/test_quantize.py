"""Weights of few bits: torch's rounding, exact sums, and layers that compute what their levels stand for."""

import copy
import os
import re
import subprocess
import sys

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from llm_learn.lora import add_lora
from llm_learn.model import GPT, GPTConfig
from llm_learn.quantize import (
    MATRICES,
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    by_absmax,
    by_offset,
    by_zero_point,
    group_size_of,
    int8_matmul,
    int8_matmul_float32,
    int_mm_is_exact,
    memory_footprint,
    pack_int4,
    quantize_absmax,
    quantize_inputs,
    quantize_model,
    through_float16,
    unpack_int4,
)


def numbers(*shape: int, seed: int = 0, scale: float = 0.05) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator)


def whole(*shape: int, seed: int = 0) -> torch.Tensor:
    """int8, all of -127 to 127."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, shape, generator=generator).to(torch.int8)


def saturating(codes: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """torch._int_mm on a CPU without VNNI instructions: pairs of products are added in 16 bits, which saturate."""
    pairs = (codes.int() + 128)[:, None] * columns.T.int()
    pairs = pairs.unflatten(-1, (-1, 2)).sum(-1).clamp(-(2**15), 2**15 - 1)
    return (pairs.sum(-1) - 128 * columns.int().sum(0)).int()


@pytest.fixture
def fresh_test_of_int_mm():
    """What was found of this CPU is forgotten, before and after."""
    int_mm_is_exact.cache_clear()
    yield
    int_mm_is_exact.cache_clear()


class TestAbsmax:
    @given(st.integers(0, 10**6), st.integers(2, 8), st.sampled_from([1, 4, 16, 64]))
    def test_it_is_never_off_by_more_than_half_a_step(self, seed, bits, group):
        weight = numbers(8, 64, seed=seed)
        codes, scales = quantize_absmax(weight, bits, group)
        most = 2 ** (bits - 1) - 1
        assert codes.shape == (512 // group, group) and scales.shape == (512 // group, 1)
        assert torch.equal(codes, codes.round())
        assert (codes.abs().amax(1) == most).all()
        off = (codes * scales - weight.view(-1, group)).abs()
        assert (off <= scales * 0.5001).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_small_weights_of_16_bits_are_rounded_as_those_of_32(self, dtype):
        """In float16 the inverse of a scale below 1/65504 is infinite."""
        weight = numbers(8, 64, scale=1e-3).to(dtype)
        for ours, wanted in zip(
            quantize_absmax(weight, 8, 64),
            quantize_absmax(weight.float(), 8, 64),
            strict=True,
        ):
            assert ours.dtype == torch.float32 and torch.equal(ours, wanted)

    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_it_rounds_as_torch_does_with_these_scales(self, bits):
        weight = numbers(40, 64)
        codes, scales = quantize_absmax(weight, bits, 64)
        most = 2 ** (bits - 1) - 1
        zeros = torch.zeros(40, dtype=torch.int32)
        theirs = torch.fake_quantize_per_channel_affine(
            weight, scales[:, 0], zeros, 0, -most, most
        )
        # One rounding of a product: 2**-24 of it.
        torch.testing.assert_close(codes * scales, theirs, rtol=1e-6, atol=0)

    def test_a_group_of_zeros_is_zeros(self):
        codes, scales = quantize_absmax(torch.zeros(2, 8), 4, 8)
        assert not codes.any() and not scales.any()

    @pytest.mark.parametrize(
        ("bits", "group", "message"),
        [
            (1, 8, "bits is 1: expected bits >= 2"),
            (
                4,
                5,
                r"weight.numel\(\) is 16, group_size is 5: expected .* % group_size == 0",
            ),
            (4, 0, "group_size is 0: expected group_size >= 1"),
        ],
    )
    def test_what_cannot_be_rounded_so_is_refused(self, bits, group, message):
        with pytest.raises(ValueError, match=message):
            quantize_absmax(torch.ones(2, 8), bits, group)


class TestPacking:
    @given(st.integers(1, 5), st.integers(1, 20), st.integers(0, 10**6))
    def test_nothing_is_lost(self, rows, half, seed):
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(16, (rows, 2 * half), generator=generator).to(torch.uint8)
        packed = pack_int4(codes)
        assert packed.shape == (rows, half) and packed.dtype == torch.uint8
        assert torch.equal(unpack_int4(packed), codes)

    def test_the_first_half_is_low(self):
        assert pack_int4(torch.tensor([[1, 2, 3, 4]])).tolist() == [[0x31, 0x42]]

    @pytest.mark.parametrize(
        ("codes", "message"),
        [
            (
                torch.zeros(2, 3),
                r"codes has shape \(2, 3\): expected \(N, n\) with n % 2 == 0",
            ),
            (torch.zeros(4), r"codes has shape \(4,\): expected \(N, n\)"),
            (torch.tensor([[0, 16]]), r"codes.max\(\) is 16: expected 0 <= .* < 16"),
            (
                torch.tensor([[-1.0, 3.0]]),
                r"codes.min\(\) is -1.0, codes.max\(\) is 3.0: expected 0 <= ",
            ),
        ],
    )
    def test_what_does_not_fit_into_bytes_is_refused(self, codes, message):
        with pytest.raises(ValueError, match=message):
            pack_int4(codes)

    @pytest.mark.parametrize(
        ("packed", "message"),
        [
            (torch.zeros(2, 3), "packed.dtype is torch.float32: expected .* 'torch.uint8'"),
            (torch.zeros(4).byte(), r"packed has shape \(4,\): expected \(N, n\)"),
        ],
    )
    def test_only_rows_of_bytes_are_unpacked(self, packed, message):
        with pytest.raises(ValueError, match=message):
            unpack_int4(packed)


class TestSums:
    @pytest.mark.parametrize("width", [1, 576, 1024, 1536, 2500])
    def test_they_are_exact(self, width):
        codes, weights = whole(7, width), whole(5, width, seed=1)
        exact = codes.long() @ weights.long().T
        assert torch.equal(int8_matmul_float32(codes, weights).long(), exact)
        assert torch.equal(int8_matmul(codes, weights).long(), exact)

    def test_the_largest_are_exact_too(self):
        # Some are odd and above 2**24, which no float32 can hold.
        large = (127 - torch.arange(5 * 1536).view(5, 1536) % 27).to(torch.int8)
        sums = int8_matmul_float32(large, large)
        assert torch.equal(sums.long(), large.long() @ large.long().T)
        assert sums.max() > 2**24

    @pytest.mark.parametrize("capability", ["DEFAULT", "AVX2", "AVX512", "AVX512_VNNI"])
    @pytest.mark.parametrize("product", [saturating, torch._int_mm])
    @pytest.mark.parametrize("rows", [1, 3])
    def test_every_cpu_gives_the_same(
        self, monkeypatch, fresh_test_of_int_mm, capability, product, rows
    ):
        monkeypatch.setattr(
            torch.backends.cpu, "get_cpu_capability", lambda: capability, raising=True
        )
        monkeypatch.setattr(torch, "_int_mm", product)
        codes, weights = whole(rows, 1100), whole(9, 1100, seed=1)
        exact = codes.long() @ weights.long().T
        assert torch.equal(int8_matmul(codes, weights).long(), exact)

    def test_a_product_that_saturates_is_noticed(self, monkeypatch, fresh_test_of_int_mm):
        monkeypatch.setattr(torch, "_int_mm", saturating)
        assert not int_mm_is_exact()

    def test_a_cpu_without_vnni_gives_the_same(self):
        """oneDNN can be told to use older instructions, with which its sums saturate."""
        code = """
import torch
from llm_learn.quantize import int8_matmul
codes = torch.full((4, 64), 127, dtype=torch.int8)
for rows in (1, 4):
    assert (int8_matmul(codes[:rows], codes) == 64 * 127**2).all()
"""
        environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)

    def test_rows_of_different_lengths_are_refused(self):
        with pytest.raises(
            ValueError, match=r"weights has shape \(2, 6\): expected \(M, K\) with K = 5"
        ):
            int8_matmul_float32(whole(2, 5), whole(2, 6))


def test_rounded_inputs_have_a_scale_for_each_position():
    x = numbers(3, 5, 64, scale=2.0)
    x[0, 0] = 0
    codes, scales = quantize_inputs(x)
    assert codes.dtype == torch.int8 and scales.shape == (3, 5, 1)
    assert ((codes * scales - x).abs() <= 0.5001 * scales).all()
    assert (codes.abs().amax(-1) == 127).sum() == 14 and not codes[0, 0].any()


class TestInt8Linear:
    def test_it_is_the_product_of_what_its_levels_stand_for(self):
        weight, x = numbers(40, 64), numbers(3, 5, 64, seed=1, scale=2.0)
        layer = Int8Linear(weight)
        codes, scales = quantize_inputs(x)
        exact = (codes * scales).double() @ (layer.codes * layer.scales.T).double().T
        torch.testing.assert_close(layer(x).double(), exact, rtol=0, atol=1e-5)
        # Rounding moves a product by 0.007 at one deviation.
        torch.testing.assert_close(layer(x), x @ weight.T, rtol=0, atol=0.05)

    def test_a_token_with_an_outlier_leaves_other_tokens_alone(self):
        layer, x = Int8Linear(numbers(40, 64)), numbers(5, 64, seed=1, scale=1.0)
        spoiled = x.clone()
        spoiled[0, 3] = 3000.0
        assert torch.equal(layer(spoiled)[1:], layer(x)[1:])

    def test_inputs_may_lie_in_any_order(self):
        layer, x = Int8Linear(numbers(7, 6)), numbers(3, 6, 2, seed=1).transpose(1, 2)
        assert torch.equal(layer(x), layer(x.contiguous()))

    def test_a_parameter_leaves_no_trace_of_its_gradient(self):
        layer = Int8Linear(nn.Parameter(numbers(4, 32)))
        assert not any(buffer.requires_grad for buffer in layer.buffers())
        assert not any(
            b.requires_grad for b in Int4Linear(nn.Parameter(numbers(4, 32))).buffers()
        )

    def test_shapes_that_do_not_fit_are_refused(self):
        with pytest.raises(
            ValueError,
            match=r"weight has shape \(4,\): expected \(out_features, in_features\)",
        ):
            Int8Linear(numbers(4))
        with pytest.raises(
            ValueError,
            match=r"x has shape \(2, 8\): expected \(\.\.\., in_features\) with in_features = 4",
        ):
            Int8Linear(numbers(3, 4))(numbers(2, 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
class TestSixteenBits:
    def test_a_row_of_zeros_stays_zero(self, dtype):
        """The least divisor, 1e-12, is 0 in float16."""
        x = torch.zeros(2, 4, dtype=dtype)
        x[1] = 3
        codes, scales = quantize_inputs(x)
        assert codes.tolist() == [[0] * 4, [127] * 4] and scales.isfinite().all()

    @pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
    def test_a_layer_answers_in_the_dtype_of_its_input(self, dtype, kind):
        weight, x = numbers(40, 64).to(dtype), numbers(5, 64, seed=1).to(dtype)
        out, wanted = kind(weight)(x), kind(weight.float())(x.float())
        assert out.dtype == dtype
        # Eight bits of a number, once for the scale and once for the sum.
        torch.testing.assert_close(out.float(), wanted, rtol=2e-2, atol=1e-3)

    @pytest.mark.usefixtures("no_gradients")
    @pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
    def test_a_model_writes_with_a_cache(self, dtype, kind, tiny_llama, two_texts):
        small = quantize_model(tiny_llama(d_model=128, d_ff=96).to(dtype), kind)
        ids = two_texts[0]
        caches = small.new_caches(len(ids), 9)
        logits = [small(ids[:, :5], caches), small(ids[:, 5:], caches)]
        assert {x.dtype for x in logits} == {dtype}
        assert torch.cat(logits, 1).isfinite().all()


class TestInt4Linear:
    def test_it_reads_back_what_absmax_rounds(self):
        weight, x = numbers(40, 64), numbers(5, 64, seed=1)
        layer = Int4Linear(weight)
        codes, scales = quantize_absmax(weight, 4, 32)
        value = (codes * scales.half().float()).view_as(weight)
        assert torch.equal(layer.dequantize(), value)
        assert memory_footprint(layer) == 40 * 64 // 2 + 40 * 64 // 32 * 2
        torch.testing.assert_close(layer(x), x @ value.T)

    @pytest.mark.parametrize("shape", [(32,), (4, 48)])
    def test_rows_that_are_no_groups_are_refused(self, shape):
        rule = r"expected \(out_features, in_features\)"
        with pytest.raises(
            ValueError, match=rf"weight has shape {re.escape(str(shape))}: {rule}"
        ):
            Int4Linear(numbers(*shape))


def test_a_table_gives_the_rows_of_its_output_layer():
    output = Int8Linear(numbers(9, 4))
    table, ids = Int8Embedding(output), torch.tensor([[0, 8, 3]])
    assert table(ids).shape == (1, 3, 4)
    assert torch.equal(table(ids), table.weight[ids])
    torch.testing.assert_close(table.weight, numbers(9, 4), rtol=0, atol=0.0005)


def test_bytes_that_are_shared_count_once():
    layer = nn.Linear(4, 4, bias=False)
    both = nn.Sequential(layer, nn.Linear(4, 4, bias=False))
    assert memory_footprint(both) == 128
    both[1].weight = nn.Parameter(layer.weight.detach())  # another one, of the same memory
    both.register_buffer("more", torch.zeros(3, dtype=torch.int8))
    assert memory_footprint(both) == 64 + 3


@pytest.mark.usefixtures("no_gradients")
class TestWithLayers:
    @pytest.fixture
    def model(self, tiny_llama):
        model = tiny_llama(d_model=128, d_ff=96)
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(0.2)
        return model

    @pytest.mark.parametrize(
        ("kind", "near", "share"), [(Int8Linear, 0.1, 0.3), (Int4Linear, 0.7, 0.2)]
    )
    def test_the_model_stays_and_the_new_one_is_small_and_near(
        self, model, two_texts, kind, near, share
    ):
        ids = two_texts[0]
        before, logits = copy.deepcopy(model.state_dict()), model(ids)
        small = quantize_model(model, kind)
        assert memory_footprint(small) < share * memory_footprint(model)
        off = (small(ids) - logits).norm() / logits.norm()
        assert 0 < off < near
        assert isinstance(small.token_embedding, Int8Embedding)
        rows = small.token_embedding(ids)
        assert torch.equal(rows, small.token_embedding.weight[ids])
        assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)

    def test_every_matrix_gets_its_layer_from_its_own_weights(self, model):
        made = []

        def make_layer(weight: torch.Tensor) -> nn.Module:
            made.append(weight)
            return Int8Linear(weight)

        small = quantize_model(model, make_layer)
        paths = [(b, path) for b in range(len(model.blocks)) for path in MATRICES]
        assert len(made) == len(paths)
        for weight, (b, path) in zip(made, paths, strict=True):
            assert torch.equal(weight, model.blocks[b].get_submodule(path).weight)
            layer = small.blocks[b].get_submodule(path)
            assert torch.equal(layer.codes, Int8Linear(weight).codes)

    def test_it_writes_with_a_cache_as_without(self, model, two_texts):
        small, ids = quantize_model(model, Int8Linear), two_texts[0]
        caches = small.new_caches(len(ids), 9)
        parts = [small(ids[:, :5], caches), small(ids[:, 5:], caches)]
        torch.testing.assert_close(torch.cat(parts, 1), small(ids), rtol=0, atol=1e-2)

    def test_new_caches_do_not_decode_the_table(self, model, monkeypatch):
        """For SmolLM2 it is as much work as several tokens."""
        small = quantize_model(model, Int8Linear)

        def decoded(_):
            raise AssertionError("the whole table was decoded")

        monkeypatch.setattr(Int8Embedding, "weight", property(decoded))
        assert small.new_caches(1, 4)[0].keys.dtype == torch.float32
        small.to(torch.bfloat16)
        assert small.new_caches(1, 4)[0].keys.dtype == torch.bfloat16

    def test_an_output_layer_of_its_own_keeps_its_weights(self, tiny_llama, two_texts):
        model = tiny_llama(d_model=128, d_ff=96, tie_embeddings=False)
        small = quantize_model(model, Int8Linear)
        assert torch.equal(small.output.codes, Int8Linear(model.output.weight).codes)
        assert torch.equal(
            small.token_embedding.output.codes,
            Int8Linear(model.token_embedding.weight).codes,
        )

    def test_other_models_are_refused(self, model):
        shape = {"vocab_size": 9, "context_length": 4, "d_model": 8, "num_layers": 1}
        for other in (
            GPT(GPTConfig(**shape, num_heads=2)),
            quantize_model(model, Int8Linear),
            add_lora(copy.deepcopy(model), ["qkv"], rank=2, alpha=2),
        ):
            with pytest.raises(ValueError, match=f"model is a {type(other).__name__}"):
                quantize_model(other, Int8Linear)


@pytest.mark.parametrize("group", ["tensor", "channel", 32])
def test_by_absmax_reads_back_what_scales_of_sixteen_bits_hold(group):
    weight = numbers(4, 64)
    value, bits = by_absmax(4, group)(weight)
    size = {"tensor": 256, "channel": 64}.get(group, group)
    assert group_size_of(group, weight) == size and bits == 4 + 16 / size
    codes, scales = quantize_absmax(weight, 4, size)
    assert torch.equal(value, (codes * through_float16(scales)).view(4, 64))
    assert torch.equal(through_float16(scales), scales.half().float())


def test_an_offset_gives_back_what_lies_on_its_grid():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(16, (6, 32), generator=generator)
    codes[:, 0], codes[:, 1] = 0, 15
    steps = (torch.rand(6, 1, generator=generator) + 0.1).half().float()
    lows = torch.randn(6, 1, generator=generator).half().float()
    weight = codes * steps + lows
    assert torch.equal(by_offset(4, 32)(weight)[0], weight)
    assert not torch.equal(by_offset(3, 32)(weight)[0], weight)


@given(st.integers(0, 10**6), st.floats(-3, 3), st.integers(2, 8))
def test_a_zero_point_keeps_zero_and_is_off_by_half_a_step_at_most(seed, shift, bits):
    weight = numbers(8, 32, seed=seed) + 0.05 * shift
    weight[::2, 5] = 0  # else a group may lie on one side of zero
    value, _ = by_zero_point(bits, 32)(weight)
    assert (value[::2, 5] == 0).all()
    reach = weight.amax(1).clamp(min=0) - weight.amin(1).clamp(max=0)
    # Half a step, and the sixteen bits of the scale.
    most = reach * (0.501 / (2**bits - 1) + 2**-11)
    assert ((value - weight).abs() <= most[:, None]).all()
    assert all(len(row.unique()) <= 2**bits for row in value)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_zero_point_is_a_level_even_where_all_weights_have_one_sign(sign):
    weight = sign * torch.linspace(1.05, 1.2, 32).view(1, 32)
    value, _ = by_zero_point(2, 32)(weight)
    # The levels are 0, 0.4, 0.8 and 1.2: one of them has to be 0.
    torch.testing.assert_close(value, sign * torch.full((1, 32), 1.2), rtol=1e-3, atol=0)
