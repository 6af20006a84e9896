"""The recorded experiment of the chapters on quantization and on GPTQ and AWQ: what each way of rounding SmolLM2's matrices costs.

`make experiment NAME=quantization` runs the chapters' own code in two processes of one thread each, in about 75 minutes,
and rewrites experiments/quantization.json, which the chapters print and draw. A seed stands for a play of the test and
for a set of windows to calibrate on; no two seeds share either.
"""

from pathlib import Path

import torch
from common import definitions, record_parts

SEEDS = [0, 1, 2, 3]
RECORD = Path(__file__).with_suffix(".json")
chapter = definitions("inference/quantization")
with_data = definitions("inference/gptq-and-awq")
torch.set_grad_enabled(False)


def measured(seed: int, name: str, model, bits: float | None = None) -> dict:
    """The loss of each window of the play, and the bits of a weight where a way of rounding has its own."""
    row = {} if bits is None else {"bits": round(bits, 4)}
    losses = chapter.loss_of(model, chapter.TEST[seed])
    row["losses"] = [round(loss, 5) for loss in losses.tolist()]
    print(seed, name, row.get("bits", ""), f"{losses.mean():.3f}", flush=True)
    return row


def without_zero(bits: int, group: int):
    """A grid around zero that lacks zero: an odd number of half steps, the outermost the largest weight."""

    def way(weight: torch.Tensor) -> tuple[torch.Tensor, float]:
        rows = weight.reshape(-1, group)
        scales = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 0.5)
        codes = (rows / scales - 0.5).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        value = (codes + 0.5) * chapter.through_float16(scales)
        return value.view_as(weight), bits + 16 / group

    return way


def rounding(seed: int) -> dict:
    """Ways that look at the weights only."""
    torch.set_num_threads(1)
    ways = {
        f"absmax, {bits} bits, {group}": chapter.by_absmax(bits, group)
        for bits, groups in (
            (8, ("tensor", "channel", 32)),
            (6, ("tensor", "channel", 32)),
            (4, ("tensor", "channel", 64, 32, 16)),
            (3, ("channel", 64, 32, 16)),
        )
        for group in groups
    }
    ways |= {
        "offset, 4 bits, 64": chapter.by_offset(4, 64),
        "offset, 3 bits, 64": chapter.by_offset(3, 64),
        "offset, 3 bits, 32": chapter.by_offset(3, 32),
        "zero point, 4 bits, 64": chapter.by_zero_point(4, 64),
        "zero point, 4 bits, 32": chapter.by_zero_point(4, 32),
        "zero point, 3 bits, 64": chapter.by_zero_point(3, 64),
        "zero point, 3 bits, 32": chapter.by_zero_point(3, 32),
        "no zero, 4 bits, 32": without_zero(4, 32),
        "no zero, 3 bits, 32": without_zero(3, 32),
        "NF4, 64": chapter.by_normal_levels(64),
        "NF4, 32": chapter.by_normal_levels(32),
        "MXFP4": chapter.by_mxfp4,
        "NVFP4": chapter.by_nvfp4,
        "largest kept, 4 bits, tensor": chapter.but_the_largest(4, "tensor"),
        "largest kept, 4 bits, channel": chapter.but_the_largest(4, "channel"),
        "largest kept, 4 bits, 32": chapter.but_the_largest(4, 32),
    }
    found = {"as shipped": measured(seed, "as shipped", chapter.SMOLLM2)}
    for name, way in ways.items():
        found[name] = measured(seed, name, *chapter.rounded(chapter.SMOLLM2, way))
    return found


def weights_alone(weight: torch.Tensor) -> torch.nn.Linear:
    """A layer with weights of eight bits and inputs as they are."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.copy_(chapter.by_absmax(8, "channel")(weight)[0])
    return layer


def inputs(seed: int) -> dict:
    """Weights and the embedding in eight bits by row, and inputs rounded in several ways."""
    torch.set_num_threads(1)
    layers = {
        "a scale for each token": chapter.Int8Linear,
        "one scale for all tokens": chapter.OneScaleLinear,
        "not rounded": weights_alone,
    }
    found = {
        name: measured(seed, name, chapter.quantize_model(chapter.SMOLLM2, layer))
        for name, layer in layers.items()
    }
    model = chapter.quantize_model(chapter.SMOLLM2, chapter.Int8Linear)
    for block, original in zip(model.blocks, chapter.SMOLLM2.blocks, strict=True):
        block.mlp.down = weights_alone(original.mlp.down.weight)
    name = "a scale for each token, not rounded before down"
    return found | {name: measured(seed, name, model)}


def calibrated(seed: int) -> dict:
    """Ways that look at inputs, on texts of several kinds and lengths."""
    torch.set_num_threads(1)
    ids = with_data.CALIBRATION[seed]
    test = chapter.TEST[seed][:, :-1]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(chapter.SMOLLM2.config.vocab_size, ids.shape, generator=generator)
    gptq_4, gptq_3 = (with_data.by_gptq(with_data.absmax_grid(bits), 32) for bits in (4, 3))
    awq_4, awq_3 = (with_data.by_awq(chapter.by_absmax(bits, 32)) for bits in (4, 3))
    few = ids[: len(test)]
    by_row = with_data.by_gptq(with_data.absmax_grid(4), "channel")
    ways = {
        "GPTQ, 4 bits, 32": (ids, gptq_4),
        "GPTQ, 4 bits, channel": (ids, by_row),
        "GPTQ, 3 bits, 32": (ids, gptq_3),
        "AWQ, 4 bits, 32": (ids, awq_4),
        "AWQ, 3 bits, 32": (ids, awq_3),
        "GPTQ, 4 bits, 32, on as many tokens as the test": (few, gptq_4),
        "GPTQ, 4 bits, 32, on the test": (test, gptq_4),
        "GPTQ, 3 bits, 32, on as many tokens as the test": (few, gptq_3),
        "GPTQ, 3 bits, 32, on the test": (test, gptq_3),
        "AWQ, 4 bits, 32, on as many tokens as the test": (few, awq_4),
        "AWQ, 4 bits, 32, on the test": (test, awq_4),
        "GPTQ, 4 bits, 32, on random tokens": (noise, gptq_4),
        "AWQ, 4 bits, 32, on random tokens": (noise, awq_4),
    }
    found = {
        name: measured(seed, name, with_data.treated(chapter.SMOLLM2, text, treat))
        for name, (text, treat) in ways.items()
    }
    # The blocks listen to the model as it is, not to what is rounded before them.
    name = "GPTQ, 4 bits, 32, each block alone"
    model = chapter.copied(chapter.SMOLLM2)
    x = chapter.SMOLLM2.token_embedding(ids)
    for block, original in zip(model.blocks, chapter.SMOLLM2.blocks, strict=True):
        gptq_4(block, with_data.read_inputs(original, x))
        x = with_data.run_block(original, x)
    return found | {name: measured(seed, name, model)}


def shuffled(rounding):
    """Rounds with the columns in a random order, so that the groups are not those of the file."""

    def other(weight: torch.Tensor) -> tuple[torch.Tensor, float]:
        order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(0))
        value, bits = rounding(weight[:, order])
        return value[:, order.argsort()], bits

    return other


def controls(seed: int) -> dict:
    """What the other parts leave open: other neighbours, another grid, the first tokens, and the play."""
    torch.set_num_threads(1)
    found = {}
    for bits in (4, 3):
        for name, way in (
            ("absmax", chapter.by_absmax),
            ("offset", chapter.by_offset),
            ("zero point", chapter.by_zero_point),
        ):
            name = f"{name}, {bits} bits, 32, shuffled"
            model, taken = chapter.rounded(chapter.SMOLLM2, shuffled(way(bits, 32)))
            found[name] = measured(seed, name, model, taken)
    ids = with_data.CALIBRATION[seed]
    test = {tuple(row.tolist()) for row in chapter.TEST[seed]}
    same = chapter.windows(chapter.HELD_OUT[seed], 24)
    same = torch.stack([row for row in same if tuple(row.tolist()) not in test])[
        : len(test), :-1
    ]
    gptq_4, gptq_3 = (with_data.by_gptq(with_data.absmax_grid(bits), 32) for bits in (4, 3))
    gptq_zero = with_data.by_gptq(with_data.zero_point_grid(3), 32)
    awq_zero = with_data.by_awq(chapter.by_zero_point(3, 32))
    ways = {
        "GPTQ, zero point, 3 bits, 32": (ids, gptq_zero, 0),
        "AWQ, zero point, 3 bits, 32": (ids, awq_zero, 0),
        "GPTQ, 4 bits, 32, without first tokens": (ids, gptq_4, 1),
        "GPTQ, 4 bits, 32, on the same play": (same, gptq_4, 0),
        "GPTQ, 3 bits, 32, on the same play": (same, gptq_3, 0),
    }
    return found | {
        name: measured(seed, name, with_data.treated(chapter.SMOLLM2, text, treat, first))
        for name, (text, treat, first) in ways.items()
    }


def clipped(bits: int, group: int):
    """Absmax with the best of eleven scales for each group, by the squared error of the weights; the rest is clipped."""

    def way(weight: torch.Tensor) -> tuple[torch.Tensor, float]:
        rows, most = weight.reshape(-1, group), 2 ** (bits - 1) - 1
        full = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / most
        best, least = torch.zeros_like(rows), torch.full_like(full, torch.inf)
        for twentieths in range(20, 9, -1):
            scales = chapter.through_float16(full * twentieths / 20).clamp(min=1e-12)
            value = (rows / scales).round().clamp(-most, most) * scales
            error = (value - rows).square().sum(1, keepdim=True)
            best = torch.where(error < least, value, best)
            least = torch.minimum(error, least)
        return best.view_as(weight), bits + 16 / group

    return way


def compared(
    seed: int, name: str, model, reference: list, bits: float | None = None
) -> dict:
    """Like `measured`, and the KL divergence from the reference's distributions, per token."""
    row = {} if bits is None else {"bits": round(bits, 4)}
    row |= {"losses": [], "kl": []}
    for window, before in zip(chapter.TEST[seed], reference, strict=True):
        after = model(window[None, :-1])[0].log_softmax(-1)
        loss = torch.nn.functional.nll_loss(after, window[1:]).item()
        row["losses"].append(round(loss, 5))
        row["kl"].append(round((before.exp() * (before - after)).sum(-1).mean().item(), 5))
    print(seed, name, f"{sum(row['losses']) / 8:.3f} {sum(row['kl']) / 8:.4f}", flush=True)
    return row


def ways_of_formats() -> dict:
    """Formats that need no data."""
    ways = {
        "absmax, 8 bits, channel": chapter.by_absmax(8, "channel"),
        "absmax, 4 bits, tensor": chapter.by_absmax(4, "tensor"),
        "absmax, 4 bits, channel": chapter.by_absmax(4, "channel"),
        "absmax, 4 bits, 64": chapter.by_absmax(4, 64),
        "NF4, 64": chapter.by_normal_levels(64),
        "NF4, 32": chapter.by_normal_levels(32),
        "MXFP4": chapter.by_mxfp4,
        "NVFP4": chapter.by_nvfp4,
        "no zero, 3 bits, 32": without_zero(3, 32),
    }
    for bits in (4, 3):
        for name, way in (
            ("absmax", chapter.by_absmax),
            ("all codes", chapter.by_all_codes),
            ("clipped", clipped),
            ("offset", chapter.by_offset),
            ("zero point", chapter.by_zero_point),
        ):
            ways[f"{name}, {bits} bits, 32"] = way(bits, 32)
    return ways


def formats(seed: int) -> dict:
    """Formats on SmolLM2, and how far its distributions move; offset in 4 bits is the format of the file."""
    torch.set_num_threads(1)
    windows = chapter.TEST[seed][:, None, :-1]
    reference = [chapter.SMOLLM2(window)[0].log_softmax(-1) for window in windows]
    found = {"before": compared(seed, "before", chapter.SMOLLM2, reference)}
    for name, way in ways_of_formats().items():
        model, bits = chapter.rounded(chapter.SMOLLM2, way)
        found[name] = compared(seed, name, model, reference, bits)
    return found


def moved(seed: int) -> dict:
    """SmolLM2 with weights that the format of the file would have rounded to those of the file."""
    torch.set_num_threads(1)
    move = chapter.moved_at_random(torch.Generator().manual_seed(seed))
    model, _ = chapter.rounded(chapter.SMOLLM2, move)
    return {"moved": measured(seed, "moved", model)}


def encoder(seed: int) -> dict:
    """The same formats on MiniLM, whose weights were never rounded: how far the vectors of a play move."""
    torch.set_num_threads(1)
    tokens, found = chapter.ENCODER_TEST[seed], {}
    for name, way in ways_of_formats().items():
        model, bits = chapter.rounded(chapter.ENCODER, way)
        change = chapter.vector_change(model, tokens)
        error = chapter.error_of_weights(chapter.ENCODER, model)
        found[name] = {
            "bits": round(bits, 4),
            "change": round(change, 6),
            "error": round(error, 6),
        }
        print(seed, name, f"{change:.5f}", flush=True)
    return found


if __name__ == "__main__":
    record_parts(
        [calibrated, controls, rounding, inputs, formats, moved, encoder],
        data="SmolLM2-135M-Instruct, and plays of Shakespeare: eight windows of 256 tokens of each of four held-out "
        "plays for the test, one window of each of 17 others to calibrate on",
        seeds=SEEDS,
        path=RECORD,
    )
