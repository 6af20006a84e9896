"""Conversations from Shakespeare's plays and rules for replies: the task of the chapter on one small model."""

import itertools
import random
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_learn.argument_checks import expect
from llm_learn.data import HELD_OUT, shakespeare_plays
from llm_learn.generate import generate, pad_left
from llm_learn.model.llama import Llama
from llm_learn.sft import Example
from llm_learn.tokenizers import BPETokenizer

REPLY = 16  # tokens of a reply at most, end token included
Asked = tuple[str, str]  # a kind of reply, and what the user says

A_WORD = re.compile(r"[a-z']+")
PLAIN_SIGNS = re.compile(r"[A-Za-z' ,.;:?!-]+")


def speeches_of(play: str) -> list[list[str]]:
    """The lines of each speech of a play in Markdown; an empty list where a scene begins."""
    speeches, speaker = [], None
    for block in play.split("\n\n"):
        lines = [line.strip() for line in re.sub(r"_[^_]*_", "", block).splitlines()]
        if any(line.startswith("#") for line in lines):
            speeches.append([])
            speaker = None
        names = [line for line in lines if line.startswith("**")]
        spoken = [line for line in lines if line and line[0] not in "#*["]
        # After a stage direction the same person goes on, with the name or without.
        goes_on = speaker is not None and (not names or names[0] == speaker)
        if spoken and goes_on:
            speeches[-1] += spoken
        elif spoken:
            speeches.append(spoken)
            speaker = names[0] if names else ""
    return speeches


def is_plain(line: str, words: Collection[str]) -> bool:
    """Whether a line has twelve words at most, all of them known, and nothing but letters and punctuation."""
    found = A_WORD.findall(line.lower())
    return (
        1 <= len(found) <= 12
        and bool(PLAIN_SIGNS.fullmatch(line))
        and all(w in words for w in found)
    )


# What the system message asks for, and how such a reply ends.
REPLY_KINDS = {"ask": "?", "tell": ".", "cry": "!"}


@dataclass(frozen=True)
class Turn:
    """A line of a speech, the kind of reply that is asked for, and the reply."""

    kind: str  # one of REPLY_KINDS
    said: str
    reply: str


@dataclass(frozen=True)
class Talk:
    """Training data from the plays; the plays of HELD_OUT are separate."""

    words: frozenset[str]  # the most common ones
    text: str  # every speech, without the lines that are not plain
    held_out_text: str
    turns: tuple[Turn, ...]  # all different, and none that is held out
    held_out_turns: tuple[Turn, ...]


def plain_text(speeches: Sequence[Sequence[str]], words: Collection[str]) -> str:
    """The plain lines, with an empty one where a speech ends or something is left out."""
    kept = (
        "\n".join(line if is_plain(line, words) else "" for line in s) for s in speeches
    )
    return re.sub("\n{2,}", "\n\n", "\n\n".join(kept)).strip() + "\n"


def turns_of(speeches: Sequence[Sequence[str]], words: Collection[str]) -> Iterator[Turn]:
    """The last line of a speech, and the first of the next where it ends with one of the marks."""
    kinds = {mark: kind for kind, mark in REPLY_KINDS.items()}
    for before, after in itertools.pairwise(speeches):
        if not before or not after or after[0][-1] not in kinds:
            continue
        if is_plain(before[-1], words) and is_plain(after[0], words):
            yield Turn(kinds[after[0][-1]], before[-1], after[0])


def read_talk(num_words: int = 1000) -> Talk:
    """Reads the packaged plays.

    Args:
        num_words: how many of the most common words a line may be made of.
    """
    expect("num_words >= 1", num_words=num_words)
    known, held_out = [], []
    for name, play in shakespeare_plays().items():
        (held_out if name in HELD_OUT else known).extend([[], *speeches_of(play)])
    counts = Counter(
        word for line in itertools.chain(*known) for word in A_WORD.findall(line.lower())
    )
    words = frozenset(word for word, _ in counts.most_common(num_words))
    turns = dict.fromkeys(turns_of(known, words))
    held_out_turns = dict.fromkeys(turns_of(held_out, words))
    return Talk(
        words,
        plain_text(known, words),
        plain_text(held_out, words),
        tuple(turn for turn in turns if turn not in held_out_turns),
        tuple(held_out_turns),
    )


ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
REPLY_END = "<|end|>"  # of a reply


def prompt_ids(tokenizer: BPETokenizer, kind: str, said: str) -> list[int]:
    """The token IDs of a conversation up to where the assistant begins.

    Args:
        tokenizer: has the special tokens ROLES and REPLY_END.
        kind: one of REPLY_KINDS.
        said: what the user says; a special token spelled in it acts as none.
    """
    expect("kind in REPLY_KINDS", kind=kind, REPLY_KINDS=REPLY_KINDS)
    system, user, assistant = (tokenizer.special_ids[role] for role in ROLES)
    return [system, *tokenizer.encode(kind), user, *tokenizer.encode(said), assistant]


def turn_example(tokenizer: BPETokenizer, turn: Turn) -> Example:
    """A turn as token IDs, of which the reply and its end are trained on."""
    prompt = prompt_ids(tokenizer, turn.kind, turn.said)
    reply = [*tokenizer.encode(turn.reply), tokenizer.special_ids[REPLY_END]]
    return [*prompt, *reply], [False] * len(prompt) + [True] * len(reply)


ADDRESSES = frozenset(
    {
        *("sir", "lord", "madam", "lady", "friend", "friends"),
        *("gentlemen", "cousin", "grace", "majesty", "master", "mistress"),
    }
)
FORMAT_RULES = ("whole", "real words", "courteous", "as asked")


def kept_rules(kind: str, reply: str, words: Collection[str]) -> list[bool]:
    """Which of the four rules a reply keeps.

    Whole: one line of 4 to 10 words with a mark at its end. Real words: those that are known,
    and none of four letters or more twice, since a loop is no sentence. Courteous: it
    addresses the other. As asked: it ends with the mark of its kind.

    Args:
        kind: one of REPLY_KINDS.
        reply: what was generated until REPLY_END; empty if that was not reached.
        words: the known words.

    Returns:
        A truth value for each of FORMAT_RULES.
    """
    expect("kind in REPLY_KINDS", kind=kind, REPLY_KINDS=REPLY_KINDS)
    found = A_WORD.findall(reply.lower())
    long = [word for word in found if len(word) >= 4]
    mark = reply[-1:]
    return [
        4 <= len(found) <= 10 and mark in {*REPLY_KINDS.values()} and "\n" not in reply,
        bool(found) and all(w in words for w in found) and len(long) == len(set(long)),
        not ADDRESSES.isdisjoint(found),
        mark == REPLY_KINDS[kind],
    ]


@dataclass(frozen=True)
class Completions:
    """Sampled replies to prompts."""

    prompts: Tensor  # (B, P), padded on the left
    padding: Tensor  # (B,) by so many tokens
    replies: Tensor  # (B, REPLY), padded with the end token
    mask: Tensor  # (B, REPLY), True up to the first end, and for it

    def logits_by(self, model: nn.Module) -> Tensor:
        """Logits of a model for each token of the replies, (B, REPLY, V)."""
        ids = torch.cat([self.prompts, self.replies], 1)[:, :-1]
        return model(ids, padding=self.padding)[:, self.prompts.shape[1] - 1 :]

    def logps_by(self, model: nn.Module) -> Tensor:
        """The log-probabilities of the tokens of the replies, (B, REPLY)."""
        logps = self.logits_by(model).log_softmax(-1)
        return logps.gather(2, self.replies.unsqueeze(2)).squeeze(2)


def draw_replies(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    eos_id: int,
    *,
    generator: torch.Generator,
    temperature: float = 1.0,
) -> Completions:
    """Samples a reply to each prompt."""
    ids, padding = (t.to(generator.device) for t in pad_left(prompts, eos_id))
    found = generate(
        model,
        ids,
        REPLY,
        temperature=temperature,
        eos_id=eos_id,
        padding=padding,
        generator=generator,
    )
    replies = F.pad(
        found[:, ids.shape[1] :], (0, ids.shape[1] + REPLY - found.shape[1]), value=eos_id
    )
    ends = replies == eos_id
    # A token counts if no end token is before it.
    return Completions(ids, padding, replies, ends.cumsum(1) - ends.long() == 0)


@dataclass(frozen=True)
class TalkTask:
    """What all stages share: the plays, and the tokenizer that was trained on them."""

    talk: Talk
    tokenizer: BPETokenizer

    @property
    def eos_id(self) -> int:
        return self.tokenizer.special_ids[REPLY_END]

    def examples(self, turns: Sequence[Turn]) -> list[Example]:
        return [turn_example(self.tokenizer, turn) for turn in turns]

    def prompts(self, asked: Sequence[Asked]) -> list[list[int]]:
        return [prompt_ids(self.tokenizer, *each) for each in asked]

    def texts(self, written: Completions) -> list[str]:
        """The replies as text; one without an end token is empty."""
        texts = []
        for ids in written.replies.tolist():
            ids = ids[: ids.index(self.eos_id)] if self.eos_id in ids else []
            texts.append(self.tokenizer.decode(ids))
        return texts

    def kept(self, asked: Sequence[Asked], written: Completions) -> Tensor:
        """Which of FORMAT_RULES each reply keeps, (B, 4), 1 or 0."""
        replies = zip(asked, self.texts(written), strict=True)
        return torch.tensor(
            [kept_rules(kind, reply, self.talk.words) for (kind, _), reply in replies]
        ).float()

    def ask(self, number: int, rng: random.Random) -> list[Asked]:
        """Random kinds of replies, to lines of the plays that are not held out."""
        said = rng.choices(self.talk.turns, k=number)
        return [(rng.choice([*REPLY_KINDS]), turn.said) for turn in said]


def make_task(num_words: int, vocab_size: int) -> TalkTask:
    """Reads the plays, and trains a tokenizer on them."""
    talk = read_talk(num_words)
    return TalkTask(talk, BPETokenizer.train(talk.text, vocab_size, (*ROLES, REPLY_END)))
