"""What the chapter on quantization defines: against brute force, float64, and themselves."""

import copy
import os
import subprocess
import sys

import gguf
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from package_fixtures import numbers

SLUG = "inference/quantization"
pytestmark = pytest.mark.usefixtures("no_gradients")
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


# --- Grids ---


def test_a_group_of_zeros_stays_zero_everywhere(chapter):
    weight = numbers(4, 64)
    weight[1] = 0
    ways = (
        chapter.by_absmax(4, 32),
        chapter.by_absmax(4, "channel"),
        chapter.by_offset(4, 32),
        chapter.by_zero_point(4, 32),
        chapter.by_all_codes(4, 32),
        chapter.by_normal_levels(64),
        chapter.by_mxfp4,
        chapter.by_nvfp4,
    )
    for way in ways:
        value, _ = way(weight)
        assert value.isfinite().all() and (value[1] == 0).all()


@pytest.mark.parametrize(
    ("way", "bits"),
    [
        (lambda c: c.by_absmax(8, "channel"), 8 + 16 / 64),
        (lambda c: c.by_absmax(4, "tensor"), 4 + 16 / 512),
        (lambda c: c.by_absmax(3, 32), 3.5),
        (lambda c: c.by_offset(4, 32), 5),
        (lambda c: c.by_zero_point(4, 32), 4.625),
        (lambda c: c.by_all_codes(4, 32), 4.5),
        (lambda c: c.by_normal_levels(64), 4.25),
        (lambda c: c.by_mxfp4, 4.25),
        (lambda c: c.by_nvfp4, 4.5),
        (lambda c: c.but_the_largest(4, 32, fraction=1 / 64), 4.5 + 32 / 64),
    ],
)
def test_bits_of_a_weight_are_those_that_are_stored(chapter, way, bits):
    weight = numbers(8, 64)
    value, taken = way(chapter)(weight)
    assert taken == pytest.approx(bits)
    assert value.shape == weight.shape and not torch.equal(value, weight)


def test_what_is_read_back_has_scales_of_sixteen_bits(chapter):
    weight = 0.1 * torch.arange(-7, 9).repeat(2).float().view(1, 32)
    step, low, largest = (torch.tensor(x).half().float() for x in (0.1, -0.7, 0.8))
    k = torch.arange(-7, 9).repeat(2)
    assert torch.equal(chapter.by_zero_point(4, 32)(weight)[0][0], k * step)
    assert torch.equal(chapter.by_offset(4, 32)(weight)[0][0], (k + 7) * step + low)
    assert chapter.by_normal_levels(32)(weight)[0].max() == largest
    absmax = chapter.by_absmax(4, 32)(weight)[0]
    assert absmax.max() == 7 * torch.tensor(0.8 / 7).half().float()


@given(st.integers(0, 10**6), st.integers(2, 8))
def test_all_codes_are_used_and_the_largest_weight_gets_the_lowest(
    definitions_of, seed, bits
):
    chapter = definitions_of(SLUG)
    weight = numbers(8, 64, seed=seed)
    value, _ = chapter.by_all_codes(bits, 64)(weight)
    largest = weight.gather(1, weight.abs().argmax(1, keepdim=True))
    scales = chapter.through_float16(largest / -(2 ** (bits - 1)))
    codes = (value / scales).round()
    assert (codes.amin(1) == -(2 ** (bits - 1))).all()
    assert codes.max() <= 2 ** (bits - 1) - 1
    # Half a step, or a whole one where a weight of the other sign is cut off; and the 16 bits of the scale.
    off = (value - weight).abs() / (largest / 2 ** (bits - 1)).abs()
    assert (off <= 1.001 + 2**bits * 2**-11).all()


def test_all_codes_are_those_of_q4_0(chapter):
    weight = numbers(32, 64)
    theirs = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q4_0)
    theirs = gguf.quants.dequantize(theirs, gguf.GGMLQuantizationType.Q4_0)
    value, _ = chapter.by_all_codes(4, 32)(weight)
    assert torch.equal(value, torch.from_numpy(theirs))


def test_moved_weights_are_rounded_back_by_q4_1(chapter):
    generator = torch.Generator().manual_seed(0)
    weight, _ = chapter.by_offset(4, 32)(numbers(64, 64))
    moved, _ = chapter.moved_at_random(generator)(weight)
    rows = weight.view(-1, 32)
    step = (rows.amax(1, keepdim=True) - rows.amin(1, keepdim=True)) / 15
    off = (moved.view(-1, 32) - rows) / step
    assert (off.abs() <= 0.5001).all() and (off != 0).double().mean() > 0.99
    assert off.square().mean().item() == pytest.approx(1 / 12, rel=0.05)


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
    table, read = chapter.bitsandbytes_nf4(weight, group=64)
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


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "MXFP4"])
@pytest.mark.parametrize("seed", range(5))
def test_bytes_are_those_of_gguf(chapter, name, seed):
    weight = numbers(32, 64, seed=seed, scale=10.0 ** (seed - 3))
    weight[3] = 0
    assert_bytes_of_gguf(chapter, name, weight)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "MXFP4"])
@pytest.mark.parametrize("largest", [127.0, -8.0, 15.0, 6.0])
def test_bytes_are_those_of_gguf_halfway_between_codes(chapter, name, largest):
    generator = torch.Generator().manual_seed(0)
    most = int(2 * abs(largest))
    weight = torch.randint(-most, most + 1, (64, 32), generator=generator) / 2
    weight[:, 0] = largest
    assert_bytes_of_gguf(chapter, name, weight)


def assert_bytes_of_gguf(chapter, name, weight):
    theirs = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[name])
    ours = getattr(chapter, f"encode_{name.lower()}")(weight)
    assert torch.equal(ours.view(len(weight), -1), torch.from_numpy(theirs))


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


def test_sums_saturate_as_those_of_a_cpu_without_vnni(chapter):
    """oneDNN can be told to use older instructions. Elsewhere torch._int_mm may be exact in spite of that."""
    code = """
import torch
generator = torch.Generator().manual_seed(0)
codes = torch.randint(-127, 128, (5, 64), generator=generator).to(torch.int8)
print(torch._int_mm(codes, codes.T).tolist())
"""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True
    )
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (5, 64), generator=generator).to(torch.int8)
    ours, exact = chapter.saturating_matmul(codes, codes), codes.long() @ codes.long().T
    assert not torch.equal(ours.long(), exact)
    assert eval(run.stdout) in (ours.tolist(), exact.tolist())


def test_neighbours_are_packed_without_loss_in_another_order(chapter):
    codes = torch.randint(16, (3, 32), generator=torch.Generator().manual_seed(0))
    packed = chapter.pack_neighbours(codes)
    assert torch.equal(chapter.unpack_neighbours(packed), codes)
    assert not torch.equal(packed, chapter.pack_int4(codes))


def test_int4_linear_stores_the_bits_that_absmax_says(chapter):
    weight = numbers(40, 64)
    layer = chapter.Int4Linear(weight)
    value, bits = chapter.by_absmax(4, 32)(weight)
    assert torch.equal(layer.dequantize(), value)
    assert 8 * chapter.memory_footprint(layer) == bits * weight.numel()


# --- Models ---


def test_the_largest_weights_are_kept_and_the_rest_is_rounded_without_them(chapter):
    weight = numbers(8, 64)
    weight[2, 3], weight[5, 60] = 7.0, -9.0
    value, _ = chapter.but_the_largest(4, "tensor", fraction=2 / 512)(weight)
    assert value[2, 3] == 7 and value[5, 60] == -9
    rest = weight.clone()
    rest[2, 3] = rest[5, 60] = 0
    expected, _ = chapter.by_absmax(4, "tensor")(rest)
    expected[2, 3], expected[5, 60] = 7, -9
    assert torch.equal(value, expected)


def test_rounded_leaves_its_model_alone_and_everything_outside_of_the_matrices(
    chapter, llama_to_quantize
):
    before = copy.deepcopy(llama_to_quantize.state_dict())
    small, bits = chapter.rounded(llama_to_quantize, chapter.by_absmax(3, 32))
    assert bits == pytest.approx(3.5)
    for name, value in small.state_dict().items():
        assert torch.equal(llama_to_quantize.state_dict()[name], before[name])
        inside = name.removesuffix(".weight").split(".", 2)[-1] in chapter.MATRICES
        assert torch.equal(value, before[name]) != inside
