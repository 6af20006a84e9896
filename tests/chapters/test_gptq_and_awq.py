"""What the chapter on GPTQ and AWQ defines: against least squares, brute force, and themselves."""

import copy

import pytest
import torch
from package_fixtures import numbers

SLUG = "inference/gptq-and-awq"
pytestmark = pytest.mark.usefixtures("no_gradients")


def inputs_of(chapter, x: torch.Tensor):
    return chapter.Inputs(products=x.T @ x / len(x), sizes=x.abs().mean(0))


def test_a_group_of_zeros_stays_zero(chapter):
    weight = numbers(4, 64)
    weight[1] = 0
    value = chapter.gptq(weight, torch.eye(64), chapter.absmax_grid(4), 32)
    assert value.isfinite().all() and (value[1] == 0).all()


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


def test_by_awq_scales_three_matrices_and_rounds_all_four(chapter, llama_to_quantize):
    x = llama_to_quantize.token_embedding(torch.randint(50, (6, chapter.LENGTH)))
    block, rounding = copy.deepcopy(llama_to_quantize.blocks[0]), chapter.by_absmax(3, 32)
    inputs = chapter.read_inputs(block, x)
    chapter.by_awq(rounding)(block, inputs)
    plain = copy.deepcopy(llama_to_quantize.blocks[0])
    for name in chapter.MATRICES:
        weight = block.get_submodule(name).weight
        torch.testing.assert_close(rounding(weight)[0], weight, rtol=2e-3, atol=1e-6)
        before = plain.get_submodule(name).weight
        before.copy_(rounding(before)[0])
        assert torch.equal(weight, before) == (name == "attention.out")
    exact = chapter.run_block(llama_to_quantize.blocks[0], x)
    off = [(chapter.run_block(each, x) - exact).norm() for each in (block, plain)]
    assert off[0] < off[1]


def test_by_gptq_rounds_each_matrix_by_its_own_inputs(chapter, llama_to_quantize):
    x = llama_to_quantize.token_embedding(torch.randint(50, (6, chapter.LENGTH)))
    block, grid = copy.deepcopy(llama_to_quantize.blocks[0]), chapter.absmax_grid(3)
    inputs = chapter.read_inputs(block, x)
    chapter.by_gptq(grid, 32)(block, inputs)
    for name in chapter.MATRICES:
        weight = llama_to_quantize.blocks[0].get_submodule(name).weight
        value = chapter.gptq(weight, inputs[name].products, grid, 32)
        assert torch.equal(block.get_submodule(name).weight, value)


def test_moved_by_is_the_share_of_the_outputs(chapter):
    weight, x = numbers(12, 32), numbers(50, 32, seed=1, scale=1.0)
    value, _ = chapter.by_absmax(3, 32)(weight)
    share = (x @ (value - weight).T).square().sum() / (x @ weight.T).square().sum()
    found = chapter.moved_by(weight, value, inputs_of(chapter, x))
    assert found == pytest.approx(share.item(), rel=1e-4)


@pytest.mark.parametrize("first", [0, 1])
def test_read_inputs_sees_what_each_matrix_reads(chapter, llama_to_quantize, first):
    x = llama_to_quantize.token_embedding(torch.randint(50, (6, chapter.LENGTH)))
    block, rows = llama_to_quantize.blocks[0], {}
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


def test_treated_shows_each_block_what_the_rounded_ones_before_it_give(
    chapter, llama_to_quantize
):
    ids = torch.randint(50, (5, chapter.LENGTH))
    before, shown = copy.deepcopy(llama_to_quantize.state_dict()), []

    def treat(block, inputs):
        shown.append(inputs["attention.qkv"].products)
        chapter.by_gptq(chapter.absmax_grid(3), 32)(block, inputs)

    small = chapter.treated(llama_to_quantize, ids, treat)
    x = small.token_embedding(ids)
    for block, products in zip(small.blocks, shown, strict=True):
        rows = block.norm_1(x).flatten(0, 1)
        torch.testing.assert_close(
            products, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-4
        )
        x = chapter.run_block(block, x)
    assert all(
        torch.equal(llama_to_quantize.state_dict()[name], before[name]) for name in before
    )


def test_scaling_columns_changes_no_output(chapter, llama_to_quantize):
    block = copy.deepcopy(llama_to_quantize.blocks[0])
    for name in chapter.SCALED:
        columns = block.get_submodule(name).in_features
        chapter.scale_columns(block, name, numbers(columns, scale=0.7).exp())
    ids = torch.randint(50, (2, 12))
    scaled = copy.deepcopy(llama_to_quantize)
    scaled.blocks[0] = block
    torch.testing.assert_close(scaled(ids), llama_to_quantize(ids), rtol=1e-4, atol=1e-5)
    assert not torch.equal(block.norm_1.weight, llama_to_quantize.blocks[0].norm_1.weight)


def test_the_calibration_shares_no_play_with_the_test(chapter):
    assert not set(chapter.OTHERS) & set(chapter.HELD_OUT)
    rows = {tuple(row.tolist()) for row in chapter.CALIBRATION.flatten(0, 1)}
    assert len(rows) == chapter.CALIBRATION.shape[0] * chapter.CALIBRATION.shape[1]
    assert not rows & {tuple(row[:-1].tolist()) for row in chapter.TEST.flatten(0, 1)}
