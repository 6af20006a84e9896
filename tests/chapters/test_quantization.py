"""What the chapter on quantization defines: against brute force, float64, and themselves."""

import copy

import gguf
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from llm_learn.model import Llama, LlamaConfig
from llm_learn.reference.bitsandbytes import bitsandbytes_nf4

SLUG = "inference/quantization"
pytestmark = pytest.mark.usefixtures("no_gradients")
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def numbers(*shape: int, seed: int = 0, scale: float = 0.05) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator)


def inputs_of(chapter, x: torch.Tensor):
    return chapter.Inputs(products=x.T @ x / len(x), sizes=x.abs().mean(0))


@pytest.fixture
def tiny(chapter) -> Llama:
    """A Llama whose widths hold groups of 32, with SmolLM2's head_dim, and norms that differ by column."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        context_length=chapter.LENGTH,
        d_model=128,
        d_ff=96,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
    )
    model = Llama(config)
    for parameter in model.parameters():
        parameter.copy_(0.1 * torch.randn_like(parameter) + (parameter.ndim == 1))
    return model


# --- Grids ---


def test_a_group_of_zeros_stays_zero_everywhere(chapter):
    weight = numbers(4, 64)
    weight[1] = 0
    ways = (
        chapter.by_absmax(4, 32),
        chapter.by_absmax(4, "channel"),
        chapter.by_offset(4, 32),
        chapter.by_zero_point(4, 32),
        chapter.by_normal_levels(64),
        chapter.by_mxfp4,
        chapter.by_nvfp4,
    )
    for way in ways:
        value, _ = way(weight)
        assert value.isfinite().all() and (value[1] == 0).all()
    value = chapter.gptq(weight, torch.eye(64), chapter.absmax_grid(4), 32)
    assert value.isfinite().all() and (value[1] == 0).all()


@pytest.mark.parametrize(
    ("way", "bits"),
    [
        (lambda c: c.by_absmax(8, "channel"), 8 + 16 / 64),
        (lambda c: c.by_absmax(4, "tensor"), 4 + 16 / 512),
        (lambda c: c.by_absmax(3, 32), 3.5),
        (lambda c: c.by_offset(4, 32), 5),
        (lambda c: c.by_zero_point(4, 32), 4.625),
        (lambda c: c.by_normal_levels(64), 4.25),
        (lambda c: c.by_mxfp4, 4.25),
        (lambda c: c.by_nvfp4, 4.5),
        (lambda c: c.but_the_largest(4, 32, share=1 / 64), 4.5 + 32 / 64),
    ],
)
def test_bits_of_a_weight_are_those_that_are_stored(chapter, way, bits):
    weight = numbers(8, 64)
    value, taken = way(chapter)(weight)
    assert taken == pytest.approx(bits)
    assert value.shape == weight.shape and not torch.equal(value, weight)


def test_an_offset_gives_back_what_lies_on_its_grid(chapter):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(16, (6, 32), generator=generator)
    codes[:, 0], codes[:, 1] = 0, 15
    steps = (torch.rand(6, 1, generator=generator) + 0.1).half().float()
    lows = torch.randn(6, 1, generator=generator).half().float()
    weight = codes * steps + lows
    assert torch.equal(chapter.by_offset(4, 32)(weight)[0], weight)
    assert not torch.equal(chapter.by_offset(3, 32)(weight)[0], weight)


@given(st.integers(0, 10**6), st.floats(-3, 3), st.integers(2, 8))
def test_a_zero_point_keeps_zero_and_is_off_by_half_a_step_at_most(
    definitions_of, seed, shift, bits
):
    weight = numbers(8, 32, seed=seed) + 0.05 * shift
    weight[::2, 5] = 0  # else a group may lie on one side of zero
    value, _ = definitions_of(SLUG).by_zero_point(bits, 32)(weight)
    assert (value[::2, 5] == 0).all()
    reach = weight.amax(1).clamp(min=0) - weight.amin(1).clamp(max=0)
    # Half a step, and the sixteen bits of the scale.
    most = reach * (0.501 / (2**bits - 1) + 2**-11)
    assert ((value - weight).abs() <= most[:, None]).all()
    assert all(len(row.unique()) <= 2**bits for row in value)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_zero_point_is_a_level_even_where_all_weights_have_one_sign(chapter, sign):
    weight = sign * torch.linspace(1.05, 1.2, 32).view(1, 32)
    value, _ = chapter.by_zero_point(2, 32)(weight)
    # The levels are 0, 0.4, 0.8 and 1.2: one of them has to be 0.
    torch.testing.assert_close(value, sign * torch.full((1, 32), 1.2), rtol=1e-3, atol=0)


def test_what_is_read_back_has_scales_of_sixteen_bits(chapter):
    weight = 0.1 * torch.arange(-7, 9).repeat(2).float().view(1, 32)
    step, low, largest = (torch.tensor(x).half().float() for x in (0.1, -0.7, 0.8))
    k = torch.arange(-7, 9).repeat(2)
    assert torch.equal(chapter.by_zero_point(4, 32)(weight)[0][0], k * step)
    assert torch.equal(chapter.by_offset(4, 32)(weight)[0][0], (k + 7) * step + low)
    assert chapter.by_normal_levels(32)(weight)[0].max() == largest
    absmax = chapter.by_absmax(4, 32)(weight)[0]
    assert absmax.max() == 7 * torch.tensor(0.8 / 7).half().float()


@given(st.integers(0, 10**6))
def test_nearest_finds_what_trying_all_levels_finds(definitions_of, seed):
    chapter = definitions_of(SLUG)
    x = numbers(200, seed=seed, scale=0.6)
    tried = (x[:, None] - chapter.NF4).abs().argmin(1)
    assert torch.equal(chapter.nearest(x, chapter.NF4), tried)


def test_normal_levels_are_used_equally_often(chapter):
    # By construction midpoints of levels are about quantiles: no level has twice its share.
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    top = torch.special.ndtri(torch.tensor(1 - (1 / 30 + 1 / 32) / 2))
    used = chapter.nearest(x / top, chapter.NF4).bincount(minlength=16) / len(x)
    assert len(chapter.NF4) == 16 and chapter.NF4[7] == 0
    assert used.min() > 0.5 / 16 and used.max() < 1.5 / 16


def test_nf4_is_that_of_bitsandbytes(chapter):
    weight = numbers(16, 128)
    table, read = bitsandbytes_nf4(weight, group=64)
    torch.testing.assert_close(chapter.NF4, table, rtol=0, atol=1e-6)
    value, _ = chapter.by_normal_levels(64)(weight)
    # Ours stores the largest weight of a group in 16 bits, theirs in 32.
    torch.testing.assert_close(value, read, rtol=6e-4, atol=1e-7)


# --- Floats of four bits ---


@given(st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=20))
def test_to_float4_finds_the_nearest_of_fifteen_numbers(definitions_of, values):
    chapter = definitions_of(SLUG)
    x = torch.tensor(values)
    found = chapter.from_float4(chapter.to_float4(x))
    every = torch.tensor([*E2M1, *(-size for size in E2M1[1:])])
    least = (x[:, None] - every).abs().amin(1)
    assert torch.equal((x - found).abs(), least)


def test_float4_codes_have_their_sign_first(chapter):
    codes = torch.arange(16, dtype=torch.uint8)
    assert chapter.from_float4(codes).tolist() == [*E2M1, *(-size for size in E2M1)]
    assert chapter.to_float4(torch.tensor([6.0, -6.0, -0.1, 0.25])).tolist() == [
        7,
        15,
        0,
        0,
    ]


@given(st.integers(0, 10**6), st.integers(-20, 20))
def test_mxfp4_scales_by_a_power_of_two(definitions_of, seed, power):
    chapter = definitions_of(SLUG)
    weight = numbers(3, 64, seed=seed)
    value, _ = chapter.by_mxfp4(weight)
    assert torch.equal(chapter.by_mxfp4(weight * 2.0**power)[0], value * 2.0**power)
    _, exponent = chapter.mxfp4(weight)
    scaled = torch.ldexp(weight.view(-1, 32), -exponent).abs().amax(1)
    assert (scaled >= 4).all() and (scaled < 8).all()


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_nvfp4_reaches_the_largest_weight_of_each_block(chapter, scale):
    weight = numbers(64, 64, scale=scale)
    # Only with one more scale for the matrix do all others fit into eight bits.
    weight[0] *= 50
    codes, scales, whole = chapter.nvfp4(weight)
    assert ((codes & 7).amax(1) == 7).all()
    assert scales.float().max() == 448  # the largest number of E4M3 is used
    # E4M3 has three bits after the point: half a step is a sixteenth.
    exact = weight.view(-1, 16).abs().amax(1, keepdim=True) / 6
    torch.testing.assert_close(scales.float() * whole, exact, rtol=1 / 16, atol=0)


# --- Bytes ---


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "MXFP4"])
@pytest.mark.parametrize("seed", range(5))
def test_bytes_are_those_of_gguf(chapter, name, seed):
    weight = numbers(32, 64, seed=seed, scale=10.0 ** (seed - 3))
    weight[3] = 0
    theirs = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[name])
    ours = getattr(chapter, f"encode_{name.lower()}")(weight)
    assert torch.equal(ours.view(32, -1), torch.from_numpy(theirs))


# --- Layers ---


def test_one_scale_for_all_tokens_lets_an_outlier_silence_the_others(chapter):
    weight, x = numbers(40, 64), numbers(5, 64, seed=1, scale=1.0)
    spoiled = x.clone()
    spoiled[0, 3] = 3000.0
    layer = chapter.OneScaleLinear(weight)
    assert not torch.equal(layer(spoiled)[1:], layer(x)[1:])
    assert (layer(spoiled)[1:] == 0).all()


def test_the_fused_layer_is_as_exact_as_ours_for_a_single_token(chapter):
    weight, x = numbers(400, 576), numbers(1, 576, seed=1, scale=2.0)
    exact = x @ weight.T
    kinds = [chapter.Int8Linear]
    # Without the instructions the fused layer adds in 16 bits, and large sums may be cut off.
    if torch.cpu._is_vnni_supported():
        kinds.append(chapter.FusedInt8Linear)
    for kind in kinds:
        off = (kind(weight)(x) - exact).norm() / exact.norm()
        # With inputs of seven bits, a flag away, it would be above 0.014.
        assert 0.003 < off < 0.012


def test_int4_linear_stores_the_bits_that_absmax_says(chapter):
    weight = numbers(40, 64)
    layer = chapter.Int4Linear(weight)
    value, bits = chapter.by_absmax(4, 32)(weight)
    assert torch.equal(layer.dequantize(), value)
    assert 8 * chapter.memory_footprint(layer) == bits * weight.numel()


# --- With inputs in view ---


@pytest.mark.parametrize("grid", ["absmax_grid", "zero_point_grid"])
@pytest.mark.parametrize(
    ("bits", "columns", "group"),
    [(4, 96, 32), (3, 96, 32), (2, 96, 96), (4, 96, 16), (4, 192, 96), (3, 192, 48)],
)
def test_gptq_is_a_least_squares_problem_for_each_column(
    chapter, grid, bits, columns, group
):
    weight = numbers(10, columns).double()
    x = numbers(300, columns, seed=1, scale=1.0)
    x = x @ numbers(columns, columns, seed=2, scale=1.0)
    h = (x.T @ x).double()
    damped = h + 0.01 * h.diagonal().mean() * torch.eye(columns).double()
    fit = getattr(chapter, grid)(bits)
    ours = chapter.gptq(weight, h, fit, group)
    solved = chapter.by_solving(weight, damped, fit, group)
    torch.testing.assert_close(ours, solved, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bits", [3, 4])
def test_grids_are_those_of_the_ways_without_data(chapter, bits):
    weight = numbers(10, 32)
    for grid, way in (
        (chapter.absmax_grid, chapter.by_absmax),
        (chapter.zero_point_grid, chapter.by_zero_point),
    ):
        rounds = grid(bits)(weight)
        value = torch.stack([rounds(column) for column in weight.T], dim=1)
        other, _ = way(bits, 32)(weight)
        # Levels are found with stored scales here, and with exact ones there: a few near the middle differ.
        same = torch.isclose(value, other, rtol=1e-3, atol=1e-6)
        assert same.double().mean() > 0.98
        if grid is chapter.absmax_grid:
            step = weight.abs().amax(1) / (2 ** (bits - 1) - 1)
        else:
            step = (weight.amax(1) - weight.amin(1)) / (2**bits - 1)
        off = (value - weight).abs().amax(1)
        assert (off <= 0.52 * step).all()


def test_gptq_with_inputs_that_go_together_in_nothing_is_the_nearest_level(chapter):
    weight = numbers(10, 96)
    value, _ = chapter.by_absmax(4, 32)(weight)
    torch.testing.assert_close(
        chapter.gptq(weight, torch.eye(96), chapter.absmax_grid(4), 32), value
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("group", [32, "channel"])
def test_gptq_and_awq_move_the_outputs_of_new_inputs_less(chapter, seed, group):
    weight, rounding = numbers(24, 96, seed=seed), chapter.by_absmax(4, group)
    sizes = numbers(96, seed=seed + 50, scale=1.5).exp()
    directions = numbers(20, 96, seed=7, scale=1.0)
    seen, new = (
        inputs_of(
            chapter,
            (
                numbers(400, 20, seed=k, scale=1.0) @ directions
                + numbers(400, 96, seed=k + 1)
            )
            * sizes,
        )
        for k in (seed + 9, seed + 900)
    )
    plain = chapter.moved_by(weight, rounding(weight)[0], new)
    value = chapter.gptq(weight, seen.products, chapter.absmax_grid(4), group)
    assert chapter.moved_by(weight, value, new) < 0.8 * plain
    scales = chapter.awq_scales(weight, seen, rounding)
    value = rounding(weight * scales)[0] / scales
    assert chapter.moved_by(weight, value, new) < 0.95 * plain


def test_awq_scales_are_the_best_of_eleven_powers(chapter):
    weight, rounding = numbers(24, 96), chapter.by_absmax(3, 32)
    x = numbers(300, 96, seed=1, scale=1.0) * numbers(96, seed=2, scale=2.0).exp()
    inputs = inputs_of(chapter, x)
    tried = {}
    for tenths in range(11):
        scales = inputs.sizes ** (tenths / 10)
        value = rounding(weight * scales)[0] / scales
        tried[tenths] = ((x @ (value - weight).T).square().sum().item(), scales)
    best = min(tried.values(), key=lambda found: found[0])[1]
    found = chapter.awq_scales(weight, inputs, rounding)
    torch.testing.assert_close(found / found[0], best / best[0], rtol=1e-3, atol=0)


def test_by_awq_scales_three_matrices_and_rounds_all_four(chapter, tiny):
    x = tiny.token_embedding(torch.randint(50, (6, chapter.LENGTH)))
    block, rounding = copy.deepcopy(tiny.blocks[0]), chapter.by_absmax(3, 32)
    inputs = chapter.read_inputs(block, x)
    chapter.by_awq(rounding)(block, inputs)
    plain = copy.deepcopy(tiny.blocks[0])
    for name in chapter.MATRICES:
        weight = block.get_submodule(name).weight
        torch.testing.assert_close(rounding(weight)[0], weight, rtol=2e-3, atol=1e-6)
        before = plain.get_submodule(name).weight
        before.copy_(rounding(before)[0])
        assert torch.equal(weight, before) == (name == "attention.out")
    exact = chapter.run_block(tiny.blocks[0], x)
    off = [(chapter.run_block(each, x) - exact).norm() for each in (block, plain)]
    assert off[0] < off[1]


def test_by_gptq_rounds_each_matrix_by_its_own_inputs(chapter, tiny):
    x = tiny.token_embedding(torch.randint(50, (6, chapter.LENGTH)))
    block, grid = copy.deepcopy(tiny.blocks[0]), chapter.absmax_grid(3)
    inputs = chapter.read_inputs(block, x)
    chapter.by_gptq(grid, 32)(block, inputs)
    for name in chapter.MATRICES:
        weight = tiny.blocks[0].get_submodule(name).weight
        value = chapter.gptq(weight, inputs[name].products, grid, 32)
        assert torch.equal(block.get_submodule(name).weight, value)


def test_the_largest_weights_are_kept_and_the_rest_is_rounded_without_them(chapter):
    weight = numbers(8, 64)
    weight[2, 3], weight[5, 60] = 7.0, -9.0
    value, _ = chapter.but_the_largest(4, "tensor", share=2 / 512)(weight)
    assert value[2, 3] == 7 and value[5, 60] == -9
    rest = weight.clone()
    rest[2, 3] = rest[5, 60] = 0
    expected, _ = chapter.by_absmax(4, "tensor")(rest)
    expected[2, 3], expected[5, 60] = 7, -9
    assert torch.equal(value, expected)


def test_shuffled_rounds_other_neighbours_and_puts_columns_back(chapter):
    weight = numbers(8, 64)
    same, _ = chapter.shuffled(lambda w: (w, 0.0))(weight)
    assert torch.equal(same, weight)
    by_row = chapter.by_absmax(4, "channel")
    assert torch.equal(chapter.shuffled(by_row)(weight)[0], by_row(weight)[0])
    by_group = chapter.by_absmax(4, 32)
    assert not torch.equal(chapter.shuffled(by_group)(weight)[0], by_group(weight)[0])


def test_moved_by_is_the_share_of_the_outputs(chapter):
    weight, x = numbers(12, 32), numbers(50, 32, seed=1, scale=1.0)
    value, _ = chapter.by_absmax(3, 32)(weight)
    share = (x @ (value - weight).T).square().sum() / (x @ weight.T).square().sum()
    found = chapter.moved_by(weight, value, inputs_of(chapter, x))
    assert found == pytest.approx(share.item(), rel=1e-4)


@pytest.mark.parametrize("first", [0, 1])
def test_read_inputs_sees_what_each_matrix_reads(chapter, tiny, first):
    x = tiny.token_embedding(torch.randint(50, (6, chapter.LENGTH)))
    block, rows = tiny.blocks[0], {}
    seen = chapter.read_inputs(block, x, first)
    attention, norm_2 = block.attention, block.norm_2
    normed = block.norm_1(x)
    attended = attention(normed, chapter.MASK, chapter.ROPE)
    gate, up = block.mlp.gate_up(norm_2(x + attended)).chunk(2, -1)
    rows["attention.qkv"] = normed
    # What the output projection reads is what makes its outputs: the projection has an inverse.
    rows["attention.out"] = attended @ torch.linalg.inv(attention.out.weight.T)
    rows["mlp.gate_up"] = norm_2(x + attended)
    rows["mlp.down"] = torch.nn.functional.silu(gate) * up
    for name, read in rows.items():
        read = read[:, first:].flatten(0, 1)
        products = read.T @ read / len(read)
        # The inverse of a matrix costs digits; one token of 256 is 0.4 %.
        tolerance = {"rtol": 1e-2 if name == "attention.out" else 1e-3, "atol": 1e-4}
        torch.testing.assert_close(seen[name].products, products, **tolerance)
        torch.testing.assert_close(seen[name].sizes, read.abs().mean(0), **tolerance)
    assert not block.mlp.down._forward_pre_hooks


def test_treated_shows_each_block_what_the_rounded_ones_before_it_give(chapter, tiny):
    ids = torch.randint(50, (5, chapter.LENGTH))
    before, shown = copy.deepcopy(tiny.state_dict()), []

    def treat(block, inputs):
        shown.append(inputs["attention.qkv"].products)
        chapter.by_gptq(chapter.absmax_grid(3), 32)(block, inputs)

    small = chapter.treated(tiny, ids, treat)
    x = small.token_embedding(ids)
    for block, products in zip(small.blocks, shown, strict=True):
        rows = block.norm_1(x).flatten(0, 1)
        torch.testing.assert_close(
            products, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-4
        )
        x = chapter.run_block(block, x)
    assert all(torch.equal(tiny.state_dict()[name], before[name]) for name in before)


def test_scaling_columns_changes_no_output(chapter, tiny):
    block = copy.deepcopy(tiny.blocks[0])
    for name in chapter.SCALED:
        columns = block.get_submodule(name).in_features
        chapter.scale_columns(block, name, numbers(columns, scale=0.7).exp())
    ids = torch.randint(50, (2, 12))
    scaled = copy.deepcopy(tiny)
    scaled.blocks[0] = block
    torch.testing.assert_close(scaled(ids), tiny(ids), rtol=1e-4, atol=1e-5)
    assert not torch.equal(block.norm_1.weight, tiny.blocks[0].norm_1.weight)


def test_rounded_leaves_its_model_alone_and_everything_outside_of_the_matrices(
    chapter, tiny
):
    before = copy.deepcopy(tiny.state_dict())
    small, bits = chapter.rounded(tiny, chapter.by_absmax(3, 32))
    assert bits == pytest.approx(3.5)
    for name, value in small.state_dict().items():
        assert torch.equal(tiny.state_dict()[name], before[name])
        inside = name.removesuffix(".weight").split(".", 2)[-1] in chapter.MATRICES
        assert torch.equal(value, before[name]) != inside


# --- The record ---


def test_the_calibration_shares_no_play_with_the_test(chapter):
    assert not set(chapter.OTHERS) & set(chapter.HELD_OUT)
    rows = {tuple(row.tolist()) for row in chapter.CALIBRATION.flatten(0, 1)}
    assert len(rows) == chapter.CALIBRATION.shape[0] * chapter.CALIBRATION.shape[1]
    assert not rows & {tuple(row[:-1].tolist()) for row in chapter.TEST.flatten(0, 1)}
