"""The recorded experiment of the chapters on decoding: what samplers buy, what a grammar keeps, how many tokens a pass brings.

`make experiment NAME=decoding` runs the chapters' own code in two processes of one thread each, in about half an hour,
and rewrites experiments/decoding.json, which the chapters print and draw. A seed stands for a wording of the question on
countries, for the draws of JSON, for one beginning of each kind of text, and for a pair of models and what they write.
"""

import time
from pathlib import Path
from types import SimpleNamespace

import torch
from common import definitions, record_parts
from torch import Tensor

from llm_learn.data import HELD_OUT, shakespeare_plays
from llm_learn.model import Llama, LlamaConfig
from llm_learn.model.gpt import init_weights_fan_in

SEEDS = [0, 1, 2]
RECORD = Path(__file__).with_suffix(".json")
sampling = definitions("inference/decoding")
grammars = definitions("inference/constrained-decoding")
speculation = definitions("inference/speculative-decoding")
training = definitions("post-training/distillation")
torch.set_grad_enabled(False)
torch.set_num_threads(1)


def plane(seed: int) -> dict:
    """Quality and diversity of all samplers, exactly, for one wording on each continent; and of 20 draws."""
    found = {}
    for continent in sampling.COUNTRIES:
        names = sampling.name_logits(continent, seed)
        found[continent] = {}
        for family, chains in sampling.FAMILIES.items():
            rows = found[continent][family] = []
            for steps in chains:
                of_names = sampling.name_probs(sampling.chain(*steps), *names)
                probs = sampling.country_probs(continent, of_names)
                different = (1 - (1 - probs) ** 20).sum().item()
                measured = (*sampling.quality_and_diversity(probs), different)
                rows.append([round(x, 4) for x in measured])
        print(seed, continent, found[continent]["temperature"][9], flush=True)
    return {"seed": seed, "runs": found}


def forms(seed: int) -> dict:
    """How many answers parse, and have the keys asked for: free, and within two grammars."""
    runs = {}
    things, prompts = list(grammars.ASKED), grammars.JSON_PROMPTS
    begun = [[*prompt, *grammars.TOKENIZER.encode("{")] for prompt in prompts]
    long = 160
    for temperature in (0.0, 1.0) if seed == 0 else (1.0,):
        generator = torch.Generator().manual_seed(seed)

        def free(
            prompts, limit, temperature=temperature, generator=generator
        ) -> list[list[int]]:
            def choose(logits: Tensor, _) -> Tensor:
                return grammars.sample_next(
                    logits, temperature=temperature, generator=generator
                )

            return sampling.complete(grammars.SMOLLM2, prompts, limit, choose)

        def bound(
            rules, limit, temperature=temperature, generator=generator
        ) -> list[list[int]]:
            settings = {"temperature": temperature, "generator": generator}
            return grammars.write_in_grammar(
                grammars.SMOLLM2, prompts, grammars.GRAMMAR, rules, limit, **settings
            )

        rows = {
            "free": free(prompts, grammars.LIMIT),
            "free, long": free(prompts, long),
            "begun": free(begun, grammars.LIMIT),
            # What a grammar alone does, without a thought of the limit.
            "cut off": [
                ids[: grammars.LIMIT] for ids in bound(["object"] * len(things), long)
            ],
            "within JSON": bound(["object"] * len(things), grammars.LIMIT),
            "with its keys": bound(things, grammars.LIMIT),
        }
        texts = {
            name: [grammars.without_end(ids) for ids in found]
            for name, found in rows.items()
        }
        texts["begun"] = ["{" + text for text in texts["begun"]]
        texts["taken out"] = [grammars.taken_out(text) for text in texts["free, long"]]
        runs[str(temperature)] = {
            name: dict(zip(("parse", "keys"), grammars.judged(found), strict=True))
            for name, found in texts.items()
        }
        # When tokens are drawn, most of them are not the likeliest anyway.
        for name in ("within JSON", "with its keys") if temperature == 0 else ():
            moved = [
                grammars.share_moved(prompt, ids)
                for prompt, ids in zip(prompts, rows[name], strict=True)
            ]
            runs[str(temperature)][name]["moved"] = round(sum(moved) / len(moved), 4)
        print(seed, temperature, runs[str(temperature)], flush=True)
    return {"seed": seed, "runs": runs}


def lookups(seed: int) -> dict:
    """Tokens a pass when drafts are looked up, by kind of text and k: greedy, and drawn sixteen times."""
    generator = torch.Generator().manual_seed(seed)
    draft = speculation.from_lookup(speculation.TOKENIZER.vocab_size)
    runs = {}
    for kind in speculation.KINDS:
        prompt, new = speculation.kind_prompt(kind, seed), speculation.how_long(kind, seed)

        def choose(logits: Tensor, _) -> Tensor:
            return sampling.sample_next(logits, generator=generator)

        (ids,) = sampling.complete(speculation.SMOLLM2, [prompt], new, sampling.greedy)
        drawn = sampling.complete(speculation.SMOLLM2, [prompt] * 16, new, choose)
        ids, drawn = grammars.before_end(ids), [grammars.before_end(row) for row in drawn]
        ours, passes = speculation.speculate(
            speculation.SMOLLM2,
            prompt,
            len(ids),
            draft,
            k=4,
            probs=speculation.greedy_probs,
            generator=generator,
        )
        needed = [speculation.passes_needed(prompt, ids, k) for k in speculation.DRAFTED]
        runs[kind] = {
            "greedy": [round(len(ids) / n, 4) for n in needed],
            # A guess that is looked up is kept with probability p: exactly as often as it is drawn.
            "drawn": [
                round(
                    sum(map(len, drawn))
                    / sum(
                        speculation.passes_needed(prompt, row, k) for row in drawn if row
                    ),
                    4,
                )
                for k in speculation.DRAFTED
            ],
            "same text": ours == ids,
            "same passes": passes == needed[speculation.DRAFTED.index(4)],
        }
        print(seed, kind, runs[kind], flush=True)
    return {"seed": seed, "runs": runs}


# --- A trained pair ---

CONTEXT = 128
UPDATES = 400


def windows(text: str) -> Tensor:
    """Rows of characters to read and one more to predict, (N, T + 1)."""
    ids = torch.tensor(training.TOKENIZER.encode(text))
    return ids.unfold(0, CONTEXT + 1, CONTEXT)


def new_model(width: int, num_layers: int, seed: int) -> Llama:
    config = LlamaConfig(
        vocab_size=training.TOKENIZER.vocab_size,
        context_length=2 * CONTEXT,
        d_model=width,
        d_ff=8 * width // 3,
        num_layers=num_layers,
        num_heads=width // 24,
        num_kv_heads=width // 24,
        tie_embeddings=False,
    )
    torch.manual_seed(seed)
    model = Llama(config)
    init_weights_fan_in(model, num_layers)
    return model


class Bigrams(torch.nn.Module):
    """What follows each character, counted in (N, T + 1): a draft that is a table, and needs no cache."""

    def __init__(self, rows: Tensor):
        super().__init__()
        vocab_size = training.TOKENIZER.vocab_size
        codes = rows[:, :-1] * vocab_size + rows[:, 1:]
        counts = torch.bincount(codes.flatten(), minlength=vocab_size**2)
        self.logits = (counts.view(vocab_size, vocab_size) + 0.1).log()
        self.config = SimpleNamespace(vocab_size=vocab_size)

    def new_caches(self, batch_size: int, capacity: int) -> list:
        return []

    def forward(self, ids: Tensor, caches: list | None = None) -> Tensor:
        return self.logits[ids]


def pairs(seed: int) -> dict:
    """A target and its drafts: tokens a pass for several k, drawn and greedy, and the time of one k."""
    plays = shakespeare_plays()
    rows = windows("\n".join(text for name, text in plays.items() if name not in HELD_OUT))
    test = windows("\n".join(plays[name] for name in HELD_OUT))
    own = seed + 1000  # neither the target's first weights nor its windows
    generator = torch.Generator().manual_seed(seed)

    def asked(target):
        for ids, _ in training.from_text(rows, own):
            with torch.no_grad():
                logits = target(ids[:, :-1])
            yield ids, logits

    def as_drawn(logits: Tensor, targets: Tensor, asked: Tensor) -> Tensor:
        drawn = torch.multinomial(asked.softmax(-1).flatten(0, 1), 1, generator=generator)
        return training.hard(logits, drawn.view_as(targets), None)

    models = {"bigrams": Bigrams(rows)}
    with torch.enable_grad():
        target = new_model(192, 4, seed)
        batches = training.from_text(rows, seed)
        training.learn(
            target, batches, training.hard, max_steps=UPDATES, learning_rate=0.005
        )
        for name, batches, loss in (
            ("alone", training.from_text(rows, own), training.hard),
            ("taught by draws", asked(target), as_drawn),
            ("taught", asked(target), training.soft),
        ):
            models[name] = new_model(48, 1, own)
            training.learn(
                models[name], batches, loss, max_steps=UPDATES, learning_rate=0.01
            )
    losses = {
        name: round(training.loss_on(model, test[::16]), 4)
        for name, model in {"target": target, **models}.items()
    }
    found = {
        "seed": seed,
        "losses": losses,
        "weights": {
            "target": training.num_weights(target),
            "draft": training.num_weights(models["taught"]),
        },
        "runs": {},
    }
    print(seed, found, flush=True)
    starts = test[:: len(test) // 12][:12, :32].tolist()
    new = 96

    def written(name: str | None, k: int, probs) -> tuple[list[list[int]], int]:
        generator = torch.Generator().manual_seed(seed)
        texts, passes = [], 0
        for prompt in starts:
            draft = speculation.from_lookup(training.TOKENIZER.vocab_size)
            if name:
                draft = speculation.draft_from_model(
                    models[name], len(prompt) + new, probs=probs, generator=generator
                )
            ids, took = speculation.speculate(
                target, prompt, new, draft, k=k, probs=probs, generator=generator
            )
            texts.append([*prompt, *ids])
            passes += took
        return texts, passes

    for way, probs in (
        ("drawn", speculation.softmax_probs),
        ("greedy", speculation.greedy_probs),
    ):
        plain, _ = written(None, 0, probs)
        read = torch.tensor(plain)
        p = probs(target(read))[:, 31:-1]
        found["runs"][way] = {}
        for name, model in models.items():
            overlap = torch.minimum(p, probs(model(read))[:, 31:-1]).sum(-1).mean().item()
            row = {"overlap": round(overlap, 4), "tokens a pass": []}
            for k in speculation.DRAFTED[1:]:
                texts, passes = written(name, k, probs)
                row["tokens a pass"].append(round(new * len(starts) / passes, 4))
                if way == "greedy" and texts != plain:
                    raise AssertionError(f"{name}, {k}: another text")
            found["runs"][way][name] = row
            print(seed, way, name, row, flush=True)

    def seconds(name: str | None) -> float:
        begun = time.process_time()
        written(name, 4 if name else 0, speculation.softmax_probs)
        return time.process_time() - begun

    # In turn, and the fastest of each: what disturbs a run only makes it longer.
    times = {name: [] for name in (None, *models)}
    for _ in range(4):
        for name in times:
            times[name].append(seconds(name))
    found["speed"] = {
        name: round(min(times[None]) / min(taken), 4)
        for name, taken in times.items()
        if name
    }
    print(seed, found["speed"], flush=True)
    return found


if __name__ == "__main__":
    record_parts(
        [plane, forms, lookups, pairs],
        "SmolLM2-135M-Instruct; the time zone database; Shakespeare's plays in characters (llm_learn.assets)",
        SEEDS,
        RECORD,
    )
