"""What the chapter on serving defines: other rules for who takes part, a clock, and leaks."""

import math
import threading

import pytest

SLUG = "inference/serving"

pytestmark = pytest.mark.usefixtures("no_gradients")


class TestEngines:
    def test_nobody_joins_a_static_batch(self, chapter):
        engine = chapter.Static(
            lambda chunks: chunks,
            lambda *_: 7,
            chapter.BlockAllocator(100, 4),
            eos_id=0,
            max_num_seqs=2,
        )
        requests = [chapter.Request([i], n) for i, n in ((1, 2), (2, 5), (3, 1))]
        for request in requests:
            engine.add_request(request)
        for _ in range(5):
            engine.step()
        assert [r.finish_reason for r in requests] == ["length", "length", ""]
        engine.step()
        assert requests[2].finish_reason == "length"

    def test_a_static_batch_reads_all_its_prompts_at_once(self, chapter):
        sizes = []

        def execute_model(chunks):
            sizes.append([len(chunk.ids) for chunk in chunks])
            return chunks

        engine = chapter.Static(
            execute_model, lambda *_: 7, chapter.BlockAllocator(500, 4), eos_id=0
        )
        for i in range(5):
            engine.add_request(chapter.Request(range(1000 * i, 1000 * i + 100), 2))
        engine.run()
        assert sizes == [[100] * 5, [1] * 5]

    def test_reserving_never_makes_anybody_give_way(self, chapter):
        engine = chapter.Reserving(
            lambda chunks: chunks, lambda *_: 7, chapter.BlockAllocator(20, 4), eos_id=0
        )
        for i in range(6):
            engine.add_request(chapter.Request([10 * i, 1], 30))
        engine.run()
        assert engine.num_preemptions == 0

    def test_a_leak_is_seen(self, chapter):
        engine = chapter.Leaking(
            lambda chunks: chunks, lambda *_: 7, chapter.BlockAllocator(20, 4), eos_id=0
        )
        request = chapter.Request([1, 2, 3], 9)
        engine.add_request(request)
        engine.step()
        assert chapter.lost_blocks(engine) == []
        engine.abort(request, "cancelled")
        assert chapter.lost_blocks(engine)


class TestClock:
    def people(self, chapter):
        return [chapter.Arrival(0.0, 10, 4), chapter.Arrival(0.0, 10, 6)]

    def test_times_are_sums_of_passes(self, chapter):
        people = self.people(chapter)
        result = chapter.simulate(
            chapter.Engine, people, chapter.BlockAllocator(100, 4), clock=lambda tokens: 1.0
        )
        # One pass for the prompts and the first id, one for each further id, one to see the end.
        assert [p.first for p in people] == [1.0, 1.0]
        assert [p.end for p in people] == [5.0, 7.0]
        assert result["tokens per second"] == pytest.approx(10 / 7)
        assert [p.longest_gap for p in people] == [1.0, 1.0]

    def test_one_by_one_takes_turns(self, chapter):
        people = self.people(chapter)
        chapter.simulate(
            chapter.Engine,
            people,
            chapter.BlockAllocator(100, 4),
            clock=lambda _: 1.0,
            max_num_seqs=1,
        )
        assert [p.first for p in people] == [1.0, 6.0]

    def test_nothing_happens_before_anybody_comes(self, chapter):
        people = [chapter.Arrival(50.0, 10, 2)]
        chapter.simulate(
            chapter.Engine, people, chapter.BlockAllocator(100, 4), clock=lambda _: 1.0
        )
        assert (people[0].first, people[0].end) == (51.0, 53.0)

    def test_visitors_come_at_the_rate(self, chapter):
        people = chapter.arrivals(2.0, 0, 4000)
        assert people[-1].arrives / 4000 == pytest.approx(0.5, rel=0.05)
        assert all(4 <= p.answer <= chapter.LIMIT and 8 <= p.prompt <= 500 for p in people)
        assert not any(math.isfinite(p.first) for p in people)


class TestBlocksFree:
    def served(self, chapter, kind) -> bool:
        """Whether all blocks are free after somebody who went away, by an engine of that kind."""
        within, gate = threading.Event(), threading.Event()

        def execute_model(chunks):
            within.set()
            gate.wait(10)
            return chunks

        engine = kind(execute_model, lambda *_: 7, chapter.BlockAllocator(50, 4), eos_id=0)
        offered = chapter.ServedModel(
            name="none", prompt_ids=lambda _: [1], token_bytes=[b"a"] * 8
        )
        service = chapter.Service(engine, offered)
        request = chapter.Request([1, 2], 100)
        service.add_request(request)
        assert within.wait(10)
        assert not chapter.blocks_free(service, patience=0.1)
        service.abort(request)
        gate.set()
        free = chapter.blocks_free(service)
        service.stop()
        return free

    def test_a_good_engine_gives_all_back(self, chapter):
        assert self.served(chapter, chapter.Engine)

    def test_a_leak_is_seen_from_outside(self, chapter):
        assert not self.served(chapter, chapter.Leaking)
