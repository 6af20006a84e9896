"""SmolLM2 as a chat model of LangChain: it streams, keeps its KV cache, fills in schemas, and calls tools."""

import codecs
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import (
    BaseChatModel,
    generate_from_stream,
)
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.utils.function_calling import convert_to_openai_tool
from torch import Tensor

from llm_learn.generate import sample_next
from llm_learn.model import load_smollm2
from llm_learn.model.llama import Llama
from llm_learn.tokenizers import BPETokenizer, encode_chat


@functools.cache
def smollm2() -> tuple[Llama, BPETokenizer]:
    """The packaged SmolLM2-135M-Instruct and its tokenizer, loaded once for all sessions."""
    return load_smollm2()


class GenerationSession:
    """Generates text, and processes only the tokens of each new prompt that are not in the KV cache.

    Args:
        capacity: tokens of prompt and output together, at most.

    Attributes:
        ids: token IDs of the prompt and of what has been generated.
        start: how many of them are the prompt.
        num_read: tokens that the model has processed, over all prompts.
    """

    def __init__(self, capacity: int = 1024):
        self.model, self.tokenizer = smollm2()
        self.capacity = capacity
        self.caches = self.model.new_caches(1, capacity)
        self.ids: list[int] = []
        self.start = self.num_read = 0

    def begin(self, ids: Sequence[int], room: int = 0) -> int:
        """Begins a prompt, with room for an answer; returns how many of its tokens are cached."""
        if not 0 < len(ids) <= self.capacity - room:
            raise ValueError(
                f"ids has {len(ids)} entries: expected 1 to {self.capacity - room}, which "
                f"leaves room for {room} more"
            )
        self.start = len(ids)
        return self.go_to(ids)

    def go_to(self, ids: Sequence[int]) -> int:
        """Forgets everything from the first token that differs from these on."""
        # The tokens generated last may not have been processed yet.
        held = self.ids[: self.caches[0].length]
        same = 0
        # The last one is processed again, since its logits are needed.
        while same < min(len(held), len(ids) - 1) and held[same] == ids[same]:
            same += 1
        for cache in self.caches:
            cache.length = same
        self.ids = list(ids)
        return same

    @torch.no_grad()  # gradients are switched off per thread
    def logits(self) -> Tensor:
        """Logits of the next token: (V,)"""
        new = self.ids[self.caches[0].length :]
        if new:
            self.num_read += len(new)
            hidden_states = self.model.hidden_states(torch.tensor([new]), self.caches)
            self.last_logits = self.model.logits(hidden_states[:, -1])[0]
        return self.last_logits

    def write(self, text: str) -> None:
        """Appends a text, and encodes all generated text again, as one piece."""
        written = self.tokenizer.decode(self.ids[self.start :]) + text
        self.go_to(self.ids[: self.start] + self.tokenizer.encode(written))


def pieces(
    session: GenerationSession,
    limit: int,
    stop: Sequence[str] = (),
    temperature: float = 0.0,
) -> Iterator[str]:
    """Streams what the model generates, at most so many tokens, in pieces that are whole characters.

    Args:
        stop: strings before which the output ends.
        temperature: see `sample_next`.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    eos_id = session.tokenizer.special_ids["<|im_end|>"]
    held = ""
    for _ in range(limit):
        i = int(sample_next(session.logits()[None], temperature=temperature))
        if i == eos_id:
            break
        session.ids.append(i)
        held += decoder.decode(session.tokenizer.token_bytes[i])
        if found := [held.index(text) for text in stop if text in held]:
            yield held[: min(found)]
            return
        begun = [k for text in stop for k in range(len(text)) if held.endswith(text[:k])]
        ready = len(held) - max(begun, default=0)
        if ready:
            yield held[:ready]
            held = held[ready:]
    yield held + decoder.decode(b"", final=True)


def choose(session: GenerationSession, options: Sequence[str]) -> str:
    """One of several options and a closing quote, by the most likely token wherever they differ."""
    quoted = {option: json.dumps(option, ensure_ascii=False)[1:] for option in options}
    left = {option: session.tokenizer.encode(text) for option, text in quoted.items()}
    place = 0
    while len(left) > 1:
        following = sorted({ids[place] for ids in left.values()})
        best = following[0]
        if len(following) > 1:
            best = following[int(session.logits()[following].argmax())]
        left = {option: ids for option, ids in left.items() if ids[place] == best}
        session.ids.append(best)
        place += 1
    ((option, ids),) = left.items()
    session.ids += ids[place:]
    return option


def text_value(session: GenerationSession, limit: int) -> str:
    """Text up to a character that JSON must escape, such as a quote, or up to the limit."""
    written, control = b"", {*session.tokenizer.special_ids.values()}
    for _ in range(limit):
        i = int(session.logits().argmax())
        # The end token ends it, too.
        token = b"\n" if i in control else session.tokenizer.token_bytes[i]
        if end := re.search(rb'["\\\x00-\x1f]', token):
            written += token[: end.start()]
            session.ids += session.tokenizer.encode(
                token[: end.start()].decode("utf-8", "replace")
            )
            break
        written += token
        session.ids.append(i)
    session.write('"')
    return written.decode("utf-8", "replace")


def integer_value(session: GenerationSession, longest: int = 9) -> int:
    """Digits, until another token is more likely."""
    known = torch.tensor([session.tokenizer.encode(digit)[0] for digit in "0123456789"])
    digits: list[int] = []
    while len(digits) < longest:
        logits = session.logits()
        digit = int(logits[known].argmax())
        if digits and logits.argmax() != known[digit]:
            break
        session.ids.append(int(known[digit]))
        digits.append(digit)
    return int("".join(map(str, digits)))


def fill(session: GenerationSession, schema: Mapping, limit: int = 24) -> Any:
    """A value that fits the schema, generated after the session's text.

    Args:
        schema: an object, a string, an integer from 0, or an enum of strings. Properties that an
            object does not require are left out.
        limit: tokens of each string.
    """
    kind = schema.get("type")
    if "enum" in schema:
        session.write('"')
        return choose(session, schema["enum"])
    if kind == "object":
        value = {}
        for name in schema.get("required", []):
            session.write(f"{', ' if value else '{'}{json.dumps(name)}: ")
            value[name] = fill(session, schema["properties"][name], limit)
        session.write("}" if value else "{}")
        return value
    if kind == "string":
        session.write('"')
        return text_value(session, limit)
    if kind == "integer":
        return integer_value(session)
    raise ValueError(
        f"schema has type {kind!r}: expected object, string, integer or an enum"
    )


def call_of(
    session: GenerationSession, forms: Mapping[str, Mapping], limit: int
) -> tuple[str, dict]:
    """A tool's name and its arguments, generated in the format of `as_call`."""
    session.write('{"tool": "')
    name = choose(session, list(forms))
    session.write(', "arguments": ')
    return name, fill(session, forms[name], limit)


SESSIONS: list[GenerationSession] = []  # the idle ones


@contextmanager
def borrowed() -> Iterator[GenerationSession]:
    """A session for one answer: several threads may ask at once, and each needs its own."""
    try:
        session = SESSIONS.pop()
    except IndexError:
        session = GenerationSession()
    try:
        yield session
    finally:
        SESSIONS.append(session)


def as_call(name: str, arguments: Mapping) -> str:
    """A tool call in the format that the model reads and generates."""
    return json.dumps({"tool": name, "arguments": arguments}, ensure_ascii=False)


def described(tools: Sequence[Mapping]) -> str:
    """The prompt's description of the tools; its format is printed below."""
    lines = ["You have these tools:"]
    for tool in tools:
        about = tool["function"]
        types = about["parameters"]["properties"].items()
        arguments = ", ".join(
            f"{name} ({' or '.join(kind.get('enum', [])) or kind.get('type')})"
            for name, kind in types
        )
        lines.append(
            f"{about['name']}: {about['description']} Arguments: {arguments or 'none'}"
        )
    form = 'Answer with one tool call as JSON: {"tool": name, "arguments": {...}}'
    return "\n".join([*lines, form])


def as_chat(messages: Sequence[BaseMessage], tools: Sequence[Mapping]) -> list[dict]:
    """Messages of LangChain in the three roles that SmolLM2 knows."""
    chat = [{"role": "system", "content": described(tools)}] if tools else []
    for message in messages:
        content = message.text
        if isinstance(message, SystemMessage):
            role = "system"
        elif isinstance(message, AIMessage):
            role = "assistant"
            if message.tool_calls:
                calls = [as_call(call["name"], call["args"]) for call in message.tool_calls]
                content = "\n".join(calls)
        else:
            role = "user"
            if isinstance(message, ToolMessage):
                content = f"Result: {content}"
        chat.append({"role": role, "content": content})
    return chat


class LocalChat(BaseChatModel):
    """SmolLM2 as a chat model of LangChain, which runs in this process."""

    model_name: str = "SmolLM2-135M-Instruct"
    max_tokens: int = 32  # of an answer, and of each string in a tool's arguments
    temperature: float = 0.0  # of an answer; calls are generated greedily
    stop: Sequence[str] = ()

    @property
    def _llm_type(self) -> str:
        return "llm-learn"

    def _get_ls_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> LangSmithParams:
        """How traces describe the model."""
        found = super()._get_ls_params(stop=stop, **kwargs)
        found["ls_provider"] = self._llm_type
        found["ls_model_name"] = kwargs.get("model", self.model_name)
        return found

    def bind_tools(self, tools, *, tool_choice=None, **kwargs):
        """The model with tools.

        Args:
            tool_choice: None, "any", the name of one of them, or a list of names, which
                LangChain's contract does not have.
        """
        tools = [convert_to_openai_tool(tool) for tool in tools]
        names = [tool["function"]["name"] for tool in tools]
        several = isinstance(tool_choice, list)
        chosen = tool_choice if several else [tool_choice]
        accepted = names if several else [None, "any", *names]
        if not chosen or any(choice not in accepted for choice in chosen):
            raise ValueError(
                f"tool_choice is {tool_choice!r}: expected None, 'any', or names of {names}"
            )
        # The same model, whose _stream gets these arguments at every call.
        return self.bind(tools=tools, tool_choice=tool_choice, **kwargs)

    def _stream(
        self,
        messages,
        stop=None,
        run_manager=None,
        *,
        tools=(),
        tool_choice=None,
        **kwargs,
    ):
        ids = encode_chat(smollm2()[1], as_chat(messages, tools))
        forms = {t["function"]["name"]: t["function"]["parameters"] for t in tools}
        if tool_choice and tool_choice != "any":
            names = [tool_choice] if isinstance(tool_choice, str) else tool_choice
            forms = {name: forms[name] for name in names}
        # Unless the caller chooses, a request is answered by a call, a result by a text.
        calls = forms and (tool_choice or not isinstance(messages[-1], ToolMessage))
        with borrowed() as session:
            # A call has up to three strings here, and the JSON around them.
            known = session.begin(ids, room=self.max_tokens * (4 if calls else 1))
            if calls:
                name, arguments = call_of(session, forms, self.max_tokens)
                call = tool_call_chunk(
                    name=name,
                    args=json.dumps(arguments),
                    id=f"call_{len(messages)}",
                    index=0,
                )
                chunks = iter([AIMessageChunk(content="", tool_call_chunks=[call])])
            else:
                ends = [*self.stop, *(stop or [])]
                texts = pieces(session, self.max_tokens, ends, self.temperature)
                chunks = (AIMessageChunk(content=text) for text in texts)
            for message in chunks:
                chunk = ChatGenerationChunk(message=message)
                if run_manager:
                    run_manager.on_llm_new_token(message.text, chunk=chunk)
                yield chunk
            usage = {
                "input_tokens": len(ids),
                "output_tokens": len(session.ids) - len(ids),
                "total_tokens": len(session.ids),
                "input_token_details": {"cache_read": known},
            }
        last = AIMessageChunk(
            content="",
            usage_metadata=usage,
            response_metadata={"model_name": self.model_name},
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=last)

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        return generate_from_stream(self._stream(messages, stop, run_manager, **kwargs))
