"""Serving: blocks that are never lost, passes equal to each text alone, and an engine that is fair and ends."""

import random
import sys
from hashlib import sha256

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_learn.apps.serving_engine import (
    LOGGER,
    BlockAllocator,
    Engine,
    NoFreeBlocks,
    PagedKVCache,
    Request,
    SequenceChunk,
    decode_batches,
    paged_attention,
    paged_forward,
    prefill_batches,
)
from llm_learn.generate import generate

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama()


def make_engine(model, num_blocks, block_size, **limits):
    """An engine with that model, greedy; id 0 ends a text."""
    dtype = model.norm.weight.dtype
    kv_cache = PagedKVCache(model.config, num_blocks, block_size, dtype=dtype)
    return Engine(
        lambda chunks: paged_forward(model, kv_cache, chunks),
        lambda request, logits: int(logits.argmax()),
        BlockAllocator(num_blocks, block_size),
        eos_id=0,
        context_length=64,
        **limits,
    )


def alone(model, request) -> list[int]:
    """What `generate` writes for that prompt, without the end."""
    ids = torch.tensor([request.prompt])
    whole = generate(model, ids, request.max_new_tokens, temperature=0, eos_id=0)[
        0
    ].tolist()
    new = whole[len(request.prompt) :]
    return new[: new.index(0)] if 0 in new else new


def check_allocator(engine) -> None:
    """Users, tables, free blocks and what is remembered fit together."""
    allocator = engine.allocator
    tables = [block for request in engine.running for block in request.blocks]
    assert allocator.ref_counts == [
        tables.count(block) for block in range(len(allocator.ref_counts))
    ]
    assert {b for b, users in enumerate(allocator.ref_counts) if users == 0} == {
        *allocator.free_blocks
    }
    assert {found: b for b, found in allocator.hash_of.items()} == allocator.block_of
    assert all(
        not request.blocks and request.num_computed_tokens == 0
        for request in engine.waiting
    )
    assert {*engine.waiting}.isdisjoint(engine.running)


class TestPool:
    @settings(max_examples=100, deadline=None)
    @given(data=st.data())
    def test_blocks_are_neither_lost_nor_given_twice(self, data):
        allocator = BlockAllocator(data.draw(st.integers(1, 6)), 2)
        tables: list[list[int]] = []
        for _ in range(data.draw(st.integers(0, 25))):
            what = data.draw(st.sampled_from(["allocate", "touch", "free"]))
            if what == "allocate" and allocator.free_blocks:
                tables.append([allocator.allocate()])
            elif what == "touch" and tables:
                table = data.draw(st.sampled_from(tables))
                allocator.touch(table)
                tables.append(list(table))
            elif what == "free" and tables:
                allocator.free(tables.pop(data.draw(st.integers(0, len(tables) - 1))))
            ref_counts = [
                sum(b in t for t in tables) for b in range(len(allocator.ref_counts))
            ]
            assert allocator.ref_counts == ref_counts
            assert {*allocator.free_blocks} == {
                b for b, n in enumerate(ref_counts) if not n
            }
        while allocator.free_blocks:
            allocator.allocate()
        with pytest.raises(NoFreeBlocks):
            allocator.allocate()

    def test_the_longest_free_is_taken_and_the_last_of_a_text_first(self):
        allocator = BlockAllocator(4, 2)
        table = [allocator.allocate() for _ in range(4)]
        allocator.free(table[:3])
        allocator.free(table[3:])
        assert [allocator.allocate() for _ in range(4)] == [
            table[2],
            table[1],
            table[0],
            table[3],
        ]

    def test_only_whole_blocks_before_the_last_id_are_known(self):
        allocator = BlockAllocator(4, 2)
        table = [allocator.allocate(), allocator.allocate()]
        allocator.insert([1, 2, 3, 4], table)
        assert allocator.lookup([1, 2, 3, 4]) == table[:1]
        assert allocator.lookup([1, 2, 3, 4, 5]) == table
        assert allocator.lookup([1, 2, 9, 9, 9]) == table[:1]
        assert (
            allocator.lookup([9, 2, 3, 4, 5]) == []
        )  # the same ids behind others are another text

    @settings(max_examples=200, deadline=None)
    @given(data=st.data())
    def test_hashes_find_what_whole_beginnings_find(self, data):
        """Texts over two ids, so that many begin alike; the reference keeps each beginning whole."""
        allocator, size = BlockAllocator(5, 2), 2
        begins: dict[tuple[int, ...], int] = {}
        for _ in range(data.draw(st.integers(0, 12))):
            text = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=8))
            expected = []
            for end in range(size, len(text), size):
                if (block := begins.get(tuple(text[:end]))) is None:
                    break
                expected.append(block)
            assert allocator.lookup(text) == expected
            allocator.touch(expected)
            table = list(expected)
            while len(table) < len(text) // size and allocator.free_blocks:
                table.append(allocator.allocate())
                begins = {t: b for t, b in begins.items() if b != table[-1]}
            allocator.insert(text[: len(table) * size], table, len(expected))
            for i in range(len(expected), len(table)):
                begins.setdefault(tuple(text[: (i + 1) * size]), table[i])
            allocator.free(table)

    def test_a_long_text_needs_memory_in_proportion_to_its_length(self):
        allocator = BlockAllocator(1000, 16)
        allocator.insert(range(16_000), [allocator.allocate() for _ in range(1000)])
        assert len(allocator.block_of) == 1000
        assert sum(map(sys.getsizeof, allocator.block_of)) < 100 * 1000

    def test_what_is_taken_is_forgotten(self):
        allocator = BlockAllocator(1, 2)
        block = allocator.allocate()
        allocator.insert([1, 2], [block])
        allocator.free([block])
        assert allocator.lookup([1, 2, 3]) == [block]
        assert allocator.allocate() == block
        assert allocator.lookup([1, 2, 3]) == []

    @pytest.mark.parametrize(
        ("blocks", "size", "name"), [(0, 1, "num_blocks"), (1, 0, "block_size")]
    )
    def test_sizes_are_positive(self, blocks, size, name):
        with pytest.raises(ValueError, match=f"^{name} is 0: expected {name} >= 1$"):
            BlockAllocator(blocks, size)


class TestRead:
    @pytest.mark.parametrize("seed", range(25))
    def test_any_cut_of_any_texts_gives_the_logits_of_each_alone(self, model, seed):
        rng = random.Random(seed)
        size = rng.randint(1, 5)
        texts = [
            [rng.randrange(20) for _ in range(rng.randint(1, 14))]
            for _ in range(rng.randint(1, 4))
        ]
        blocks = rng.sample(range(60), 60)
        tables = [[blocks.pop() for _ in range(-(-len(text) // size))] for text in texts]
        kv_cache, read = PagedKVCache(model.config, 60, size), [0] * len(texts)
        while any(n < len(t) for n, t in zip(read, texts, strict=True)):
            chunks = []
            for i, text in enumerate(texts):
                if n := rng.randint(0, len(text) - read[i]):
                    chunks.append(
                        (i, SequenceChunk(text[read[i] : read[i] + n], read[i], tables[i]))
                    )
                    read[i] += n
            if chunks:
                logits = paged_forward(model, kv_cache, [chunk for _, chunk in chunks])
                for (i, _), found in zip(chunks, logits, strict=True):
                    expected = model(torch.tensor([texts[i][: read[i]]]))[0, -1]
                    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)

    def test_every_new_id_is_in_one_group_and_reads_what_is_not_later(self, model):
        kv_cache = PagedKVCache(model.config, 10, 4)
        chunks = [
            SequenceChunk([1], 5, [4, 2]),
            SequenceChunk([1, 2, 3], 2, [1, 9]),
            SequenceChunk([7], 0, [3]),
        ]
        slot_mappings = [kv_cache.slot_mapping(chunk) for chunk in chunks]
        assert slot_mappings[0].tolist() == [16, 17, 18, 19, 8, 9]
        ends, seen = [1, 4, 5], {}
        for where, table, mask in [
            *decode_batches(chunks, slot_mappings, ends),
            *prefill_batches(chunks, slot_mappings, ends),
        ]:
            mask = mask.expand(len(table), 1, where.shape[1], table.shape[1])
            for r, t in torch.cartesian_prod(*map(torch.arange, where.shape)).tolist():
                read = table[r, mask[r, 0, t]].tolist()
                assert seen.setdefault(int(where[r, t]), read) is read
        assert seen == {
            0: slot_mappings[0].tolist(),
            1: slot_mappings[1][:3].tolist(),
            2: slot_mappings[1][:4].tolist(),
            3: slot_mappings[1].tolist(),
            4: slot_mappings[2].tolist(),
        }

    def test_slots_are_read_as_by_the_definition_of_attention(self):
        generator = torch.Generator().manual_seed(0)
        R, T, S, H, K, D = 2, 3, 5, 4, 2, 6
        q = torch.randn(R, T, H, D, generator=generator).double()
        k, v = (torch.randn(R, S, K, D, generator=generator).double() for _ in range(2))
        mask = torch.rand(R, 1, T, S, generator=generator) < 0.6
        mask[..., 0] = True
        out = paged_attention(q, k, v, mask)
        for r, t, h in torch.cartesian_prod(*map(torch.arange, (R, T, H))).tolist():
            scores = k[r, :, h // (H // K)] @ q[r, t, h] / D**0.5
            weights = scores.masked_fill(~mask[r, 0, t], -torch.inf).softmax(0)
            expected = weights @ v[r, :, h // (H // K)]
            torch.testing.assert_close(out[r, t, h], expected, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_gives_the_logits_of_each_text_alone(self, tiny_llama, dtype):
        model = tiny_llama().to(dtype)
        kv_cache = PagedKVCache(model.config, 12, 4, dtype=dtype)
        texts, tables = ([1, 2, 3, 4, 5, 6], [7], [8, 9, 10]), ([3, 7], [2, 5], [4, 8])
        paged_forward(model, kv_cache, [SequenceChunk(texts[0][:4], 0, tables[0])])
        chunks = [SequenceChunk(texts[0][4:], 4, tables[0])]
        chunks += [
            SequenceChunk(t, 0, b) for t, b in zip(texts[1:], tables[1:], strict=True)
        ]
        found = paged_forward(model, kv_cache, chunks)
        assert found.dtype == torch.float32
        expected = torch.stack([model(torch.tensor([text]))[0, -1] for text in texts])
        assert expected.dtype == dtype
        # Sums in another order differ in the last bits of sums of this size.
        size = float(expected.abs().max())
        atol = 16 * torch.finfo(dtype).eps * size
        torch.testing.assert_close(found, expected.float(), rtol=0, atol=atol)

    def test_an_engine_runs_a_model_in_half_precision(self, tiny_llama):
        model = tiny_llama().to(torch.bfloat16)
        engine = make_engine(model, 20, 4, max_num_seqs=2)
        requests = [Request([i, i + 1, i + 2], 8) for i in (3, 6, 9)]
        for request in requests:
            engine.add_request(request)
        engine.run()
        assert {request.finish_reason for request in requests} <= {"length", "stop"}

    def test_all_tensors_are_where_the_model_is(self, tiny_llama, one_device, monkeypatch):
        monkeypatch.setattr(torch.Tensor, "cpu", lambda x: x)  # meta has nothing to copy
        model = tiny_llama().to("meta")
        kv_cache = PagedKVCache(model.config, 10, 4, device="meta")
        chunks = [
            SequenceChunk([1], 5, [4, 2]),
            SequenceChunk([1, 2, 3], 2, [1, 9]),
            SequenceChunk([7], 0, [3]),
        ]
        assert paged_forward(model, kv_cache, chunks).shape == (3, 20)

    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            (
                {"dtype": torch.float16},
                "^kv_cache.keys.dtype is torch.float16, weight.dtype is torch.float32: expected kv_cache.keys.dtype == "
                "weight.dtype$",
            ),
            (
                {"device": "meta"},
                r"^kv_cache.keys.device is device\(type='meta'\), weight.device is device\(type='cpu'\): expected "
                "kv_cache.keys.device == weight.device$",
            ),
        ],
    )
    def test_pages_of_another_kind_are_refused(self, model, kind, message):
        kv_cache = PagedKVCache(model.config, 2, 4, **kind)
        with pytest.raises(ValueError, match=message):
            paged_forward(model, kv_cache, [SequenceChunk([1, 2], 0, [1])])

    def test_nothing_keeps_a_gradient(self, model):
        with torch.enable_grad():
            kv_cache = PagedKVCache(model.config, 2, 4)
            assert not paged_forward(
                model, kv_cache, [SequenceChunk([1, 2], 0, [1])]
            ).requires_grad

    @pytest.mark.parametrize(
        ("chunks", "message"),
        [
            ([], r"^len\(chunks\) is 0: expected len\(chunks\) >= 1$"),
            (
                [([1] * 9, 60, range(20))],
                "^longest_chunk is 69, context_length is 64: expected longest_chunk <= context_length$",
            ),
            (
                [([1, 2, 3], 6, [0, 1])],
                r"^len\(blocks\) is 2, block_size is 4, length is 9: expected len\(blocks\) \* block_size >= length$",
            ),
            ([([], 3, [0])], r"^len\(ids\) is 0: expected len\(ids\) >= 1$"),
            ([([1], -1, [0])], "^start is -1: expected start >= 0$"),
        ],
    )
    def test_what_cannot_be_read_is_refused(self, model, chunks, message):
        kv_cache = PagedKVCache(model.config, 20, 4)
        with pytest.raises(ValueError, match=message):
            paged_forward(model, kv_cache, [SequenceChunk(*chunk) for chunk in chunks])

    @pytest.mark.parametrize(
        ("blocks", "size", "name"), [(0, 1, "num_blocks"), (1, 0, "block_size")]
    )
    def test_sizes_are_positive(self, model, blocks, size, name):
        with pytest.raises(ValueError, match=f"^{name} is 0: expected {name} >= 1$"):
            PagedKVCache(model.config, blocks, size)


class TestEngine:
    @pytest.mark.parametrize("seed", range(12))
    def test_every_text_is_continued_as_alone(self, model, seed):
        rng = random.Random(seed)
        engine = make_engine(
            model,
            rng.randint(8, 30),
            rng.choice([1, 2, 3, 4, 8]),
            max_num_seqs=rng.randint(1, 6),
            max_num_batched_tokens=rng.randint(1, 20),
            max_chunk_size=rng.randint(1, 20),
        )
        beginning = [rng.randrange(1, 20) for _ in range(6)]
        requests, heard = [], {}
        for _ in range(40):
            if rng.random() < 0.4 and len(requests) < 9:
                prompt = beginning[: rng.randint(0, 6)]
                prompt += [rng.randrange(1, 20) for _ in range(rng.randint(1, 6))]
                request = Request(prompt, rng.randint(1, 8))
                heard[request] = []
                request.on_token = heard[request].append
                try:
                    engine.add_request(request)
                except ValueError:
                    continue
                requests.append(request)
            elif rng.random() < 0.1 and requests:
                engine.abort(rng.choice(requests), "cancelled")
            engine.step()
            check_allocator(engine)
        engine.run()
        check_allocator(engine)
        assert len(engine.allocator.free_blocks) == len(engine.allocator.ref_counts)
        assert requests
        for request in requests:
            whole = alone(model, request)
            written = request.ids[len(request.prompt) :]
            assert heard[request] == written
            if request.finish_reason == "cancelled":
                assert written == whole[: len(written)]
            else:
                assert written == whole
                assert request.finish_reason == (
                    "length" if len(whole) == request.max_new_tokens else "stop"
                )

    def test_texts_give_way_and_come_back(self, model):
        engine = make_engine(model, 6, 2, max_num_seqs=4)
        requests = [Request([i, i + 1, i + 2], 8) for i in (3, 6, 9)]
        for request in requests:
            engine.add_request(request)
        engine.run()
        assert engine.num_preemptions > 0
        assert [r.ids[3:] for r in requests] == [alone(model, r) for r in requests]

    def test_where_somebody_gives_way_nobody_joins_in_the_same_pass(self):
        engine = Engine(lambda chunks: chunks, lambda *_: 7, BlockAllocator(8, 1), eos_id=0)
        first, second = (Request([1, 2, 3], 5) for _ in range(2))
        engine.add_request(first)
        engine.add_request(second)
        for _ in range(3):
            engine.step()
        # The second could share what the first has read, and would fit.
        assert engine.num_preemptions == 1 and engine.running == [first]
        engine.step()
        assert engine.running == [first, second]
        engine.run()
        assert first.ids == second.ids == [1, 2, 3, *[7] * 5]

    def test_a_common_beginning_is_read_once(self, model):
        engine = make_engine(model, 20, 2)
        for last in (1, 2, 3):
            engine.add_request(Request([5, 6, 7, 8, last], 1))
            engine.run()
        assert (engine.num_processed_tokens, engine.num_cached_tokens) == (5 + 1 + 1, 8)

    def test_no_hash_is_computed_twice_while_a_text_waits(self, monkeypatch):
        hashed = []
        monkeypatch.setattr(
            "llm_learn.apps.serving_engine.sha256", lambda b: hashed.append(b) or sha256(b)
        )
        engine = Engine(lambda r: r, lambda *_: 7, BlockAllocator(13, 4), eos_id=0)
        runs, waits = Request([1], 30), Request(range(100, 132), 2)
        engine.add_request(runs)
        engine.add_request(waits)
        for _ in range(20):
            engine.step()
        assert engine.running == [runs] and len(waits.hashes) == 8
        engine.run()
        assert len(hashed) == len(runs.hashes) + len(waits.hashes) == 30 // 4 + 33 // 4

    @pytest.mark.parametrize(
        ("prompt", "max_new_tokens", "message"),
        [
            (
                [],
                1,
                "^the prompt has 0 tokens and max_new_tokens is 1: both must be at least 1",
            ),
            (
                [1],
                0,
                "^the prompt has 1 tokens and max_new_tokens is 0: both must be at least 1",
            ),
            (
                [1] * 60,
                5,
                r"^the prompt has 60 tokens and max_new_tokens is 5: .* together at most 33$",
            ),
            (
                [1] * 20,
                20,
                r"^the prompt has 20 tokens and max_new_tokens is 20: .* at most 33$",
            ),
        ],
    )
    def test_what_could_never_end_is_refused(self, model, prompt, max_new_tokens, message):
        engine = make_engine(model, 4, 8)
        with pytest.raises(ValueError, match=message):
            engine.add_request(Request(prompt, max_new_tokens))
        assert not engine.waiting

    def test_a_text_that_just_fits_is_finished(self, model):
        engine = make_engine(model, 4, 4)
        request = Request([1] * 10, 7)  # the last id is never read
        engine.add_request(request)
        engine.run()
        assert request.finish_reason in ("length", "stop")

    def test_a_long_prompt_leaves_room_for_others(self):
        order = []
        engine = Engine(
            lambda chunks: [len(chunk.ids) for chunk in chunks],
            lambda request, _: 7,
            BlockAllocator(100, 16),
            eos_id=0,
            max_num_batched_tokens=20,
            max_chunk_size=15,
        )
        long = Request(range(200), 3, on_token=lambda _: order.append("long"))
        short = Request(range(500, 503), 3, on_token=lambda _: order.append("short"))
        engine.add_request(long)
        engine.add_request(short)
        engine.run()
        assert order == ["short"] * 3 + ["long"] * 3

    def test_who_needs_little_is_served_first(self):
        parts = []

        def execute_model(chunks):
            parts.append([len(chunk.ids) for chunk in chunks])
            return chunks

        engine = Engine(
            execute_model,
            lambda *_: 7,
            BlockAllocator(100, 16),
            eos_id=0,
            max_num_batched_tokens=16,
            max_chunk_size=15,
        )
        engine.add_request(Request(range(40), 1))
        engine.add_request(Request(range(500, 503), 1))
        engine.run()
        assert parts == [[15, 1], [14, 2], [11]]

    def test_one_text_that_fails_leaves_the_others_alone(self):
        def sample(request, _):
            if request.prompt[0] == 1:
                raise RuntimeError("planted")
            return 7

        engine = Engine(lambda chunks: chunks, sample, BlockAllocator(50, 4), eos_id=0)
        requests = [Request([i], 3) for i in (1, 2, 3)]
        for request in requests:
            engine.add_request(request)
        engine.run()
        assert [request.finish_reason for request in requests] == [
            "failed",
            "length",
            "length",
        ]
        check_allocator(engine)

    def test_what_failed_is_logged_and_an_end_that_nobody_hears_is_too(self, caplog):
        def sample(request, _):
            raise RuntimeError("planted")

        def hear(finish_reason):
            raise RuntimeError("nobody")

        engine = Engine(lambda chunks: chunks, sample, BlockAllocator(5, 4), eos_id=0)
        engine.add_request(Request([1], 3, on_finish=hear))
        engine.run()
        assert [record.name for record in caplog.records] == [LOGGER.name] * 2
        assert len(engine.allocator.free_blocks) == 5

    def test_who_has_ended_is_not_ended_again(self):
        ends = []
        engine = Engine(lambda chunks: chunks, lambda *_: 0, BlockAllocator(5, 4), eos_id=0)
        runs, waits = (Request([i], 3, on_finish=ends.append) for i in (1, 2))
        engine.add_request(runs)
        engine.run()
        engine.add_request(waits)
        for request in (runs, waits, waits):
            engine.abort(request, "cancelled")
        assert ends == ["stop", "cancelled"] and not engine.waiting
        check_allocator(engine)

    @pytest.mark.parametrize(
        "name",
        ["max_num_seqs", "max_num_batched_tokens", "max_chunk_size", "context_length"],
    )
    def test_limits_are_positive(self, name):
        with pytest.raises(ValueError, match=f"^{name} is 0: expected {name} >= 1$"):
            Engine(lambda r: r, lambda *_: 0, BlockAllocator(1, 1), eos_id=0, **{name: 0})
