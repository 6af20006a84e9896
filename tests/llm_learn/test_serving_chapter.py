"""What the chapter on serving defines: other rules for who takes part, a clock, a leak, and the server."""

import asyncio
import json
import math
import threading
import time
from types import SimpleNamespace

import pytest
import torch

SLUG = "applications/serving"

pytestmark = pytest.mark.usefixtures("no_gradients")


def wait_for(condition) -> None:
    """Until it holds, for some seconds at most."""
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)


class TestEngines:
    def test_nobody_joins_a_static_batch(self, chapter):
        engine = chapter.Static(
            lambda rows: rows, lambda *_: 7, chapter.BlockPool(100, 4), end_id=0, max_rows=2
        )
        requests = [chapter.Request([i], n) for i, n in ((1, 2), (2, 5), (3, 1))]
        for request in requests:
            engine.submit(request)
        for _ in range(5):
            engine.step()
        assert [r.reason for r in requests] == ["length", "length", ""]
        engine.step()
        assert requests[2].reason == "length"

    def test_a_static_batch_reads_all_its_prompts_at_once(self, chapter):
        sizes = []

        def read_rows(rows):
            sizes.append([len(row.ids) for row in rows])
            return rows

        engine = chapter.Static(
            read_rows, lambda *_: 7, chapter.BlockPool(500, 4), end_id=0
        )
        for i in range(5):
            engine.submit(chapter.Request(range(1000 * i, 1000 * i + 100), 2))
        engine.run()
        assert sizes == [[100] * 5, [1] * 5]

    def test_reserving_never_makes_anybody_give_way(self, chapter):
        engine = chapter.Reserving(
            lambda rows: rows, lambda *_: 7, chapter.BlockPool(20, 4), end_id=0
        )
        for i in range(6):
            engine.submit(chapter.Request([10 * i, 1], 30))
        engine.run()
        assert engine.preemptions == 0

    def test_a_leak_is_seen(self, chapter):
        engine = chapter.Leaking(
            lambda rows: rows, lambda *_: 7, chapter.BlockPool(20, 4), end_id=0
        )
        request = chapter.Request([1, 2, 3], 9)
        engine.submit(request)
        engine.step()
        assert chapter.lost_blocks(engine) == []
        engine.take_out(request, "cancelled")
        assert chapter.lost_blocks(engine)


class TestClock:
    def people(self, chapter):
        return [chapter.Visitor(0.0, 10, 4), chapter.Visitor(0.0, 10, 6)]

    def test_times_are_sums_of_passes(self, chapter):
        people = self.people(chapter)
        result = chapter.served(
            chapter.Engine, people, chapter.BlockPool(100, 4), clock=lambda tokens: 1.0
        )
        # One pass for the prompts and the first id, one for each further id, one to see the end.
        assert [p.first for p in people] == [1.0, 1.0]
        assert [p.gone for p in people] == [5.0, 7.0]
        assert result["ids a second"] == pytest.approx(10 / 7)
        assert [p.longest_gap for p in people] == [1.0, 1.0]

    def test_one_by_one_takes_turns(self, chapter):
        people = self.people(chapter)
        chapter.served(
            chapter.Engine,
            people,
            chapter.BlockPool(100, 4),
            clock=lambda _: 1.0,
            max_rows=1,
        )
        assert [p.first for p in people] == [1.0, 6.0]

    def test_nothing_happens_before_anybody_comes(self, chapter):
        people = [chapter.Visitor(50.0, 10, 2)]
        chapter.served(
            chapter.Engine, people, chapter.BlockPool(100, 4), clock=lambda _: 1.0
        )
        assert (people[0].first, people[0].gone) == (51.0, 53.0)

    def test_visitors_come_at_the_rate(self, chapter):
        people = chapter.visitors(2.0, 0, 4000)
        assert people[-1].comes / 4000 == pytest.approx(0.5, rel=0.05)
        assert all(4 <= p.answer <= chapter.LIMIT and 8 <= p.prompt <= 500 for p in people)
        assert not any(math.isfinite(p.first) for p in people)


# A byte is a token.
FAKE_TOKENIZER = SimpleNamespace(token_bytes=[bytes([i]) for i in range(256)])


@pytest.fixture
def server(chapter, monkeypatch):
    """Calls the app without a network; the engine writes the bytes of a text with an umlaut."""
    from starlette.testclient import TestClient

    space = chapter.app.__globals__
    monkeypatch.setitem(space, "bpe", FAKE_TOKENIZER)
    monkeypatch.setitem(
        space,
        "encode_chat",
        lambda _, messages: list(messages[-1]["content"].encode()) or [1],
    )
    said = "Grüße!".encode()

    def choose(request, _):
        written = len(request.ids) - len(request.prompt)
        if request.prompt[0] == ord("!"):
            raise RuntimeError("planted")
        return said[written] if written < len(said) else 0

    engine = chapter.Engine(
        lambda rows: rows,
        choose,
        chapter.BlockPool(10, 4),
        end_id=0,
        context_length=64,
        max_rows=2,
    )
    service = chapter.Service(engine, max_waiting=2)
    with TestClient(chapter.app(service)) as client:
        yield SimpleNamespace(
            client=client, service=service, engine=engine, app_globals=space
        )
    service.stop()


def body(**more) -> dict:
    return {
        "model": "smollm2-135m-instruct",
        "messages": [{"role": "user", "content": "hi"}],
    } | more


class TestServer:
    url = "/v1/chat/completions"

    def test_a_whole_answer(self, server):
        answer = server.client.post(self.url, json=body()).json()
        (choice,) = answer["choices"]
        assert choice["message"] == {"role": "assistant", "content": "Grüße!"}
        assert choice["finish_reason"] == "stop" and answer["object"] == "chat.completion"
        assert answer["usage"] == {
            "prompt_tokens": 2,
            "completion_tokens": 8,
            "total_tokens": 10,
        }

    def test_a_limit_may_cut_a_character(self, server):
        answer = server.client.post(self.url, json=body(max_tokens=3)).json()
        assert answer["choices"][0]["message"]["content"] == "Gr\ufffd"
        assert answer["choices"][0]["finish_reason"] == "length"

    def test_pieces_are_whole_characters(self, server):
        asked = body(stream=True, stream_options={"include_usage": True})
        lines = server.client.post(self.url, json=asked).text.split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        texts = [c["choices"][0]["delta"].get("content") for c in chunks[1:-1]]
        assert texts == [*"Grüße!", None]
        assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * 7 + [
            "stop"
        ]
        assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 8
        assert len({c["id"] for c in chunks}) == 1

    @pytest.mark.parametrize(
        ("change", "status", "param"),
        [
            ({"model": "x"}, 404, "model"),
            ({"model": None}, 404, "model"),
            ({"messages": "hi"}, 400, "messages"),
            ({"messages": [1]}, 400, "messages"),
            ({"messages": [{"role": "user"}]}, 400, "messages"),
            (
                {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
                400,
                "messages",
            ),
            ({"max_tokens": 0}, 400, "max_tokens"),
            ({"max_tokens": "3"}, 400, "max_tokens"),
            ({"max_tokens": True}, 400, "max_tokens"),
            ({"max_tokens": 1.5}, 400, "max_tokens"),
            ({"max_completion_tokens": -1}, 400, "max_completion_tokens"),
            ({"max_tokens": 63}, 400, "messages"),
            ({"temperature": -0.1}, 400, "temperature"),
            ({"temperature": 3}, 400, "temperature"),
            ({"top_p": 1.5}, 400, "top_p"),
            ({"n": 2}, 400, "n"),
            ({"tools": [{}]}, 400, "tools"),
            ({"stream": "no"}, 400, "stream"),
            ({"stream": True, "stream_options": "x"}, 400, "stream_options"),
            ({"stop": "x"}, 400, "stop"),
            ({"seed": "a"}, 400, "seed"),
        ],
    )
    def test_what_cannot_be_done_is_refused_by_its_name(
        self, server, change, status, param
    ):
        answer = server.client.post(self.url, json=body() | change)
        error = answer.json()["error"]
        assert answer.status_code == status and error["param"] == param
        assert error["type"] == "invalid_request_error" and error["message"]

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"1", b"null", b"\xff", b'"x"'])
    def test_nonsense_is_refused(self, server, content):
        answer = server.client.post(self.url, content=content)
        assert (
            answer.status_code == 400 and "the body is" in answer.json()["error"]["message"]
        )

    def test_missing_options_and_nulls_have_defaults(self, server):
        nulls = dict.fromkeys(
            ["temperature", "top_p", "n", "seed", "stream", "tools", "max_tokens"]
        )
        answer = server.client.post(self.url, json=body(**nulls, max_completion_tokens=4))
        assert answer.json()["choices"][0]["finish_reason"] == "length"

    def test_what_is_sent_and_not_used_is_accepted(self, server):
        neutral = {"stop": [], "tools": [], "logprobs": False, "frequency_penalty": 0}
        neutral |= {
            "top_p": 0,
            "presence_penalty": 0.0,
            "response_format": {"type": "text"},
        }
        assert server.client.post(self.url, json=body(**neutral)).status_code == 200

    @pytest.mark.parametrize(
        "content", [b"[" * 200_000, b'{"a": "' + b"x" * 1_000_000 + b'"}']
    )
    def test_monsters_are_refused(self, server, content):
        answer = server.client.post(self.url, content=content)
        assert answer.status_code in (400, 413) and answer.json()["error"]["message"]

    @pytest.mark.parametrize(
        ("option", "param"),
        [(b'"temperature": NaN', "temperature"), (b'"top_p": Infinity', "top_p")],
    )
    def test_numbers_that_are_none_are_refused(self, server, option, param):
        content = json.dumps(body()).encode()[:-1] + b", " + option + b"}"
        answer = server.client.post(self.url, content=content)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param

    def test_names_that_no_text_can_hold_are_refused(self, server):
        content = json.dumps(body() | {"\ud800": 1}).encode()
        answer = server.client.post(self.url, content=content)
        assert (
            answer.status_code == 400
            and "not supported" in answer.json()["error"]["message"]
        )

    @pytest.mark.parametrize(
        ("method", "url", "status"), [("GET", "/v1/x", 404), ("GET", url, 405)]
    )
    def test_other_addresses_are_errors_in_json(self, server, method, url, status):
        answer = server.client.request(method, url)
        assert answer.status_code == status and url in answer.json()["error"]["message"]

    def test_all_parts_of_a_stream_have_one_time(self, server, monkeypatch):
        clock = iter(range(1000))
        space = server.app_globals
        monkeypatch.setitem(space, "time", SimpleNamespace(time=lambda: next(clock)))
        lines = server.client.post(self.url, json=body(stream=True)).text.split("\n\n")[:-2]
        assert (
            len({json.loads(line.removeprefix("data: "))["created"] for line in lines}) == 1
        )

    def test_a_failure_before_the_first_piece_has_its_status(self, server):
        planted = body(messages=[{"role": "user", "content": "!"}], stream=True)
        assert server.client.post(self.url, json=planted).status_code == 500

    def test_content_in_parts(self, server):
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "bc"}]
        answer = server.client.post(
            self.url, json=body(messages=[{"role": "user", "content": parts}])
        )
        assert answer.json()["usage"]["prompt_tokens"] == 3

    def test_a_pass_that_fails_is_an_error_and_the_next_is_served(self, server):
        planted = body(messages=[{"role": "user", "content": "!"}])
        answer = server.client.post(self.url, json=planted)
        assert (
            answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
        )
        assert server.client.post(self.url, json=body()).status_code == 200
        assert len(server.engine.pool.free) == len(server.engine.pool.users)

    def test_the_model_is_listed(self, server):
        (model,) = server.client.get("/v1/models").json()["data"]
        assert model["id"] == "smollm2-135m-instruct"


class TestDepartures:
    def test_who_is_gone_is_taken_out(self, chapter, monkeypatch):
        monkeypatch.setitem(chapter.written.__globals__, "bpe", FAKE_TOKENIZER)
        engine = chapter.Engine(
            lambda rows: rows,
            lambda *_: 7,
            chapter.BlockPool(50, 4),
            end_id=0,
            context_length=150,
        )
        service = chapter.Service(engine)
        request = chapter.Request([1, 2], 100)
        asked = iter([False, False, True])

        async def is_disconnected() -> bool:
            return next(asked)

        async def listen() -> list:
            http = SimpleNamespace(is_disconnected=is_disconnected)
            return [piece async for piece in chapter.written(http, service, request)]

        assert len(asyncio.run(listen())) == 2
        assert chapter.blocks_free(service)
        assert request.reason in ("cancelled", "length")
        service.stop()

    def slow(self, chapter, max_waiting: int):
        """A service whose passes wait for a gate, in the middle of its first one."""
        gate, within = threading.Event(), threading.Event()

        def read_rows(rows):
            within.set()
            gate.wait(10)
            return rows

        engine = chapter.Engine(
            read_rows, lambda *_: 7, chapter.BlockPool(50, 4), end_id=0, max_rows=1
        )
        service = chapter.Service(engine, max_waiting=max_waiting)
        first = chapter.Request([1], 2)
        service.submit(first)
        assert within.wait(10)
        return gate, service, first

    def test_a_burst_within_a_pass_is_refused_beyond_the_limit(self, chapter):
        gate, service, first = self.slow(chapter, 3)
        requests = [chapter.Request([i], 2) for i in range(2, 12)]
        refused = 0
        for request in requests:
            try:
                service.submit(request)
            except chapter.Refused as error:
                assert error.status == 503
                refused += 1
        gate.set()
        service.stop()
        assert refused == 7 and first.reason and all(r.reason for r in requests[:3])

    def test_what_lies_in_the_mail_is_told_when_the_service_stops(self, chapter):
        gate, service, first = self.slow(chapter, 30)
        ends = []
        requests = [chapter.Request([i], 2, on_end=ends.append) for i in range(2, 22)]
        for request in requests:
            service.submit(request)
        threading.Timer(0.1, gate.set).start()
        service.stop()
        assert len(ends) == 20 and first.reason
        with pytest.raises(chapter.Refused, match="closing"):
            service.submit(chapter.Request([1], 1))
        assert len(service.engine.pool.free) == len(service.engine.pool.users)

    @pytest.mark.parametrize("callback", ["on_id", "on_end"])
    def test_the_thread_survives_callbacks_that_fail(self, chapter, callback):
        engine = chapter.Engine(
            lambda rows: rows, lambda *_: 7, chapter.BlockPool(50, 4), end_id=0
        )
        service = chapter.Service(engine)

        def closed(_):
            raise RuntimeError("Event loop is closed")

        service.submit(chapter.Request([1], 3, **{callback: closed}))
        last = chapter.Request([2], 3)
        service.submit(last)
        wait_for(lambda: last.reason)
        service.stop()
        assert last.reason == "length"

    def test_what_could_never_end_harms_nobody(self, chapter):
        engine = chapter.Engine(
            lambda rows: rows, lambda *_: 7, chapter.BlockPool(5, 4), end_id=0
        )
        service = chapter.Service(engine)
        good = chapter.Request([2], 15)
        service.submit(good)
        with pytest.raises(ValueError, match="together at most"):
            service.submit(chapter.Request([1], 1000))
        wait_for(lambda: good.reason)
        service.stop()
        assert good.reason == "length"

    @pytest.mark.parametrize("temperature", [0, 1e-38, 1e-3, 1.0])
    def test_every_temperature_can_be_drawn_with(self, chapter, temperature, monkeypatch):
        monkeypatch.setitem(chapter.request_from.__globals__, "bpe", FAKE_TOKENIZER)
        monkeypatch.setitem(
            chapter.request_from.__globals__, "encode_chat", lambda *_: [1, 2]
        )
        engine = chapter.Engine(
            lambda rows: rows, lambda *_: 7, chapter.BlockPool(50, 4), end_id=0
        )
        request = chapter.request_from(body(temperature=temperature), engine)
        logits = torch.tensor([[30.0, -30.0, 0.0]])
        assert chapter.sample_next(logits, **request.options).item() == 0

    def test_developers_are_the_system(self, chapter, monkeypatch):
        heard = []
        space = chapter.request_from.__globals__
        monkeypatch.setitem(space, "bpe", FAKE_TOKENIZER)
        monkeypatch.setitem(
            space, "encode_chat", lambda _, messages: heard.append(messages) or [1]
        )
        engine = chapter.Engine(
            lambda rows: rows, lambda *_: 7, chapter.BlockPool(50, 4), end_id=0
        )
        chapter.request_from(body(messages=[{"role": "developer", "content": "x"}]), engine)
        assert heard == [[{"role": "system", "content": "x"}]]

    def test_what_has_not_ended_is_cancelled_when_the_service_stops(self, chapter):
        engine = chapter.Engine(
            lambda rows: rows, lambda *_: 7, chapter.BlockPool(500, 4), end_id=0, max_rows=1
        )
        service = chapter.Service(engine)
        ends = []
        requests = [chapter.Request([i], 1500, on_end=ends.append) for i in range(1, 4)]
        for request in requests:
            service.submit(request)
        while not engine.running:
            pass
        service.stop()
        assert len(ends) == 3 and not service.thread.is_alive()
        assert len(engine.pool.free) == len(engine.pool.users)
