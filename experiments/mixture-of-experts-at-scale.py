"""The recorded experiments of the chapters on mixtures of experts at scale and on expert parallelism.

Ways of balancing, sizes of experts, a mixture made from a trained model, and experts that choose their tokens.
`make experiment NAME=mixture-of-experts-at-scale` runs the chapters' own code on one thread, in about fifty minutes, and
rewrites experiments/mixture-of-experts-at-scale.json, which the chapters show. With names of parts as arguments only
these are run anew; the record says for each part which commit it is from.
"""

import copy
import functools
import json
import sys
import time
from pathlib import Path

import torch
from common import definitions, head
from torch import Tensor, nn

from llm_learn.atomic_files import write_json
from llm_learn.data import shakespeare_characters
from llm_learn.feedforward import (
    MLP,
    Gates,
    MixtureOfExperts,
    renormalised_gates,
    with_aux_loss,
)
from llm_learn.train import evaluate_loss, train

page = definitions("scale/mixture-of-experts-at-scale")
choosing = definitions("scale/expert-parallelism")
SEEDS, UPDATES, NUM_TEXTS = [0, 1, 2], 2000, 1500
RECORD = Path(__file__).with_suffix(".json")


def make_mlp() -> nn.Module:
    return MLP(d_model=page.WIDTH, d_ff=4 * page.WIDTH)


def make_half() -> nn.Module:
    return MLP(d_model=page.WIDTH, d_ff=2 * page.WIDTH)


def make_mixture(gates: Gates) -> nn.Module:
    return MixtureOfExperts(
        d_model=page.WIDTH, num_experts=4, top_k=2, make_expert=make_mlp, gates=gates
    )


class Runs:
    """Trains models on the same text, and measures them on the same plays held out."""

    def __init__(self) -> None:
        characters, self.known, self.held_out = shakespeare_characters()
        self.size = characters.vocab_size
        self.val_ids = torch.stack(
            [part[:8192] for part in self.held_out.chunk(4)]
        ).flatten()

    def loss(self, model: nn.Module) -> float:
        return evaluate_loss(model, self.val_ids)

    def go_on(
        self, model: nn.Module, seed: int, max_steps: int, learning_rate: float = 1e-2
    ) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        train(
            model,
            self.known,
            None,
            page.recipe(max_steps, learning_rate),
            generator=generator,
        )
        return model

    def balancing(self, make_gates, seed: int) -> dict:
        model, shares = page.trained(
            make_gates, self.size, self.known, seed, page.recipe(UPDATES)
        )
        late: Tensor = page.overload(shares[-100:])
        return {"loss": self.loss(model), "overload": late.mean(0).tolist()}

    def sized(self, make_layer, seed: int) -> float:
        model = page.language_model(make_layer, self.size, seed)
        return self.loss(self.go_on(model, seed, UPDATES))

    def upcycling(self, seed: int) -> dict:
        """A dense model that goes on, as it is or as a mixture, against a mixture from the start."""
        gates = with_aux_loss(renormalised_gates, 0.01)
        half = UPDATES // 2
        dense = page.language_model(make_mlp, self.size, seed)
        dense = self.go_on(dense, seed, half)
        found = {"dense, first half": self.loss(dense)}
        torch.manual_seed(seed)
        mixed = page.upcycled(dense, 4, 2, gates)
        found["upcycled, before it goes on"] = self.loss(mixed)
        for name, model, updates in (
            ("dense goes on", dense, half),
            ("dense goes on, twice as long", dense, 2 * half),
            ("upcycled", mixed, half),
        ):
            model = self.go_on(copy.deepcopy(model), seed + 100, updates, 5e-3)
            found[name] = self.loss(model)
        for name, updates in (
            ("mixture, second half only", half),
            ("mixture, both", UPDATES),
        ):
            make_layer = functools.partial(make_mixture, gates)
            model = page.language_model(make_layer, self.size, seed)
            found[name] = self.loss(self.go_on(model, seed, updates))
        return found

    def expert_choice(self, seed: int) -> dict:
        """The loss of a character after training: with its future in the batch, with another text's, and alone."""
        kinds = {
            "tokens choose": lambda: page.mixture(with_aux_loss(renormalised_gates, 0.01)),
            "experts choose": lambda: choosing.ExpertChoice(page.WIDTH, 8, 2, make_half),
        }
        found = {}
        for name, make_layer in kinds.items():
            model = page.language_model(make_layer, self.size, seed)
            model = self.go_on(model, seed, UPDATES).eval()
            found[name] = choosing.three_losses(model, self.held_out, NUM_TEXTS)
        return found


def main(parts: list[str]) -> None:
    torch.set_num_threads(1)
    runs = Runs()
    experiments = {
        "expert_choice": runs.expert_choice,
        "upcycling": runs.upcycling,
        "balancing": {
            name: (runs.balancing, gates) for name, gates in page.BALANCING.items()
        },
        "sizes": {name: (runs.sized, layer) for name, layer in page.SIZES.items()},
    }
    now = head("Shakespeare's plays, four of them held out", SEEDS)
    record = json.loads(RECORD.read_text()) if parts and RECORD.exists() else now
    record |= {"updates": UPDATES, "num_texts": NUM_TEXTS}
    for part in parts or experiments:
        started, what = time.process_time(), experiments[part]
        if isinstance(what, dict):
            record[part] = {
                name: [run(case, seed) for seed in SEEDS]
                for name, (run, case) in what.items()
            }
        else:
            record[part] = [what(seed) for seed in SEEDS]
        print(part, record[part], flush=True)
        record.setdefault("commits", {})[part] = now["commit"]
        record.setdefault("cpu_seconds", {})[part] = round(time.process_time() - started)
        write_json(RECORD, record)


if __name__ == "__main__":
    main(sys.argv[1:])
