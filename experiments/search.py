"""The recorded experiment of the chapter on search: methods by their tokens, judges, and choices among many chains.

`make experiment NAME=search` runs the chapter's own code in two processes of one thread each, in about ten minutes, and
rewrites experiments/search.json, which the chapter prints and draws. A seed stands for the hands of the test, the first
weights of player and judge, the games that they learn from, and the chains that are drawn.
"""

import functools
import random
from pathlib import Path

import numpy as np
import torch
from common import definitions, record_parts

SEEDS = [0, 1, 2]
RECORD = Path(__file__).with_suffix(".json")
chapter = definitions("reasoning/search")
torch.set_num_threads(1)


@functools.cache
def learned(seed: int) -> tuple:
    """Hands, what is hidden, player, judge, and 1,024 chains of each hand."""
    hands, hidden = chapter.deal(seed)
    player, judge = chapter.teach_player(seed, hidden), chapter.teach_judge(seed, hidden)
    generator = torch.Generator().manual_seed(seed)
    parts = [chapter.draw_chains(player, hands, 128, generator=generator) for _ in range(8)]
    return hands, hidden, player, judge, torch.cat(parts, 1)


def methods(seed: int) -> dict:
    """Hands solved by each method, by tokens a hand."""
    hands, _, player, judge, chains = learned(seed)
    pool = chapter.pool_of(judge.values, chains)
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    shares = {
        str(budget): chapter.at_tokens(
            budget, player, judge, hands, pool, generator=generator, rng=rng, beams=4
        )
        for budget in (92, 368, 736, 1472)
    }
    print(seed, shares, flush=True)
    return {"seed": seed, "shares": shares}


def whole(seed: int) -> dict:
    """What becomes of the choice among many chains."""
    _, _, _, judge, chains = learned(seed)
    pool = chapter.pool_of(judge.values, chains)
    counted, possible = (
        chapter.pool_of(
            lambda states, kind=kind: [kind(chapter.chance(s)) for s in states], chains
        )
        for kind in (float, lambda share: float(share > 0))
    )
    found = {str(n): chapter.best_among(pool, counted, possible, n) for n in chapter.COUNTS}
    print(seed, found, flush=True)
    return {"seed": seed, "choices": found}


def judges(seed: int) -> dict:
    """Beams of legal steps with judges from few and many games, and with such as are not learned."""
    hands, hidden, _, judge, _ = learned(seed)
    values, rng = chapter.values_below(judge.values, hands), random.Random(seed)
    sizes = {
        kind: [state for state in values if len(state) == size]
        for kind, size in (("triples", 3), ("pairs", 2))
    }
    everything = chapter.teach_judge(seed, hidden=())
    tables = {
        "20,000 games, shuffled": [chapter.shuffled(values, (2, 3), rng) for _ in range(10)]
    }
    for games in (300, 2000):
        other = chapter.teach_judge(seed, hidden, games)
        tables[f"{games:,} games"] = [chapter.values_below(other.values, hands)]
    tables["20,000 games"] = [values]
    tables["20,000 games, nothing hidden"] = [
        chapter.values_below(everything.values, hands)
    ]
    tables["20,000 games, shuffled triples"] = [
        chapter.shuffled(values, (3,), rng) for _ in range(10)
    ]
    tables["all games, counted"] = [{state: chapter.chance(state) for state in values}]
    runs = {}
    for name, alike in tables.items():
        found = [
            [chapter.beam_of_steps(hand, width, table) for table in alike for hand in hands]
            for width in chapter.WIDTHS
        ]
        solved, tokens = np.array(found).mean(1).T.tolist()
        ranks = {
            kind: [
                chapter.ranked_above(
                    [table[s] for s in states], [bool(chapter.chance(s)) for s in states]
                )
                for table in alike
            ]
            for kind, states in sizes.items()
        }
        runs[name] = {kind: float(np.mean(found)) for kind, found in ranks.items()}
        runs[name]["widths"] = solved
    print(seed, runs, flush=True)
    return {"seed": seed, "runs": runs, "tokens": tokens}


if __name__ == "__main__":
    record_parts(
        [methods, whole, judges],
        "hands that are dealt and games that are played by the chapter",
        SEEDS,
        RECORD,
    )
