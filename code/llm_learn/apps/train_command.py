"""The command `python -m llm_learn.train`: trains a model on text files, in a folder, and resumes there."""

import argparse
import json
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from llm_learn.apps import run_folder
from llm_learn.apps.training_run import TrainingRun, make_model, train_config
from llm_learn.argument_checks import expect
from llm_learn.atomic_files import write_json
from llm_learn.data import save_tokens, shakespeare
from llm_learn.distributed import DistributedContext
from llm_learn.tokenizers import BPETokenizer, CharTokenizer

# Name: default and what it means.
OPTIONS = {
    "val_share": (0.1, "fraction of the text, at its end, that is kept for validation"),
    "vocab_size": (
        0,
        "tokens of a BPE tokenizer, trained first; 0: one for each character",
    ),
    "model": ("llama", "structure: gpt or llama"),
    "context_length": (64, "positions in a window"),
    "d_model": (128, "width of the residual stream"),
    "num_layers": (4, "blocks"),
    "num_heads": (4, "heads of each attention"),
    "max_steps": (2000, "training steps"),
    "batch_size": (12, "windows per step"),
    "micro_batch_size": (0, "windows in memory at a time; 0: all of a step"),
    "learning_rate": (1e-3, "AdamW's, at the peak of the cosine schedule"),
    "warmup_steps": (100, "steps until the peak"),
    "floor": (0.1, "the schedule's last factor"),
    "weight_decay": (0.1, "AdamW's, on matrices"),
    "max_grad_norm": (1.0, "gradients are scaled down to this norm"),
    "eval_every": (100, "steps between evaluations"),
    "eval_ids": (20_000, "tokens of the validation text per evaluation"),
    "checkpoint_every": (200, "steps between checkpoints"),
    "keep": (2, "checkpoints that are kept, the latest"),
    "seed": (0, "decides the initial weights and the order of the windows"),
}


def parser() -> argparse.ArgumentParser:
    """The command's options; those that are not given are missing from what it parses."""
    made = run_folder.command_parser(
        "train",
        description="Trains a language model on texts with AdamW and a cosine schedule. The folder receives the "
        "configuration, the tokens, checkpoints, and the loss as numbers and as a figure.",
        epilog="Interrupted by Ctrl-C, a run writes a checkpoint first. --resume goes on from the latest one, and "
        "gives what the run would have given without the interruption. Several processes share each batch when "
        "they are started by `torchrun --nproc-per-node=N -m llm_learn.train`; a run can be resumed by another number.",
    )
    made.add_argument(
        "--resume", action="store_true", help="go on with the run in that folder"
    )
    made.add_argument(
        "--parallel",
        choices=["ddp", "fsdp"],
        help="under torchrun: ddp, each process holds the whole model (default); fsdp, each holds a part of it",
    )
    made.add_argument(
        "--text",
        nargs="+",
        help="text files in UTF-8; without any, the packaged plays of Shakespeare",
    )
    for name, (default, meaning) in OPTIONS.items():
        made.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            choices=["gpt", "llama"] if name == "model" else None,
            help=f"{meaning} (default: {default})",
        )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    given = vars(parser().parse_args(arguments))
    folder, resume = given.pop("out"), given.pop("resume", False)
    parallel, device = given.pop("parallel", "ddp"), given.pop("device", "cpu")

    def work(dist_context: DistributedContext) -> int:
        settings = dist_context.run_on_main(
            lambda: opened(folder, given, resume, dist_context)
        )
        if dist_context.is_main_process:
            print(json.dumps(settings, indent=1))
        return TrainingRun(folder, settings, dist_context, parallel).go()

    try:
        return run_folder.exit_status(work, device)
    except KeyboardInterrupt:
        print("stopped before the first update", file=sys.stderr)
        return 128 + signal.SIGINT


def opened(
    folder: Path, given: dict, resume: bool, dist_context: DistributedContext
) -> dict:
    """The settings of the run in that folder, which is created if there is nothing to resume."""
    if resume:
        settings = saved_settings(folder, given)
    else:
        defaults = {name: default for name, (default, _) in OPTIONS.items()}
        settings = {"text": []} | defaults | given
    size, number = settings["batch_size"], dist_context.world_size
    expect("batch_size % processes == 0", batch_size=size, processes=number)
    if not resume:
        begin(folder, settings)
    return settings


def saved_settings(folder: Path, given: dict) -> dict:
    """The settings of the run in that folder, which options may repeat but not change."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"--out is {str(folder)!r}: there is no run to resume")
    return run_folder.begun_with(path, given)


def begin(folder: Path, settings: dict) -> None:
    """Makes the run's folder, with the texts as tokens and the configuration, atomically."""
    expect(
        "checkpoint_every >= 1, keep >= 1, d_model >= 1, eval_ids > context_length, 0 <= seed < 2**63, "
        "0 < val_share < 1, isfinite(learning_rate), isfinite(weight_decay), isfinite(max_grad_norm)",
        isfinite=math.isfinite,
        **settings,
    )
    train_config(settings)
    run_folder.check_free(folder, "; choose another, or go on with its run by --resume")
    text = "\n\n".join(map(read_text, settings["text"]))
    if not settings["text"]:
        text = shakespeare()
    elif not text:
        raise ValueError(f"--text names {settings['text']}: nothing is in it")
    known = text[: round(len(text) * (1 - settings["val_share"]))]
    if settings["vocab_size"]:
        tokenizer = BPETokenizer.train(known, settings["vocab_size"])
    else:
        tokenizer = CharTokenizer(text)
    # Refuses what cannot work, before anything is written.
    make_model(settings, tokenizer.vocab_size)
    parts = {"train": tokenizer.encode(known), "val": tokenizer.encode(text[len(known) :])}
    expect(
        "train_ids_of_text > context_length, val_ids_of_text > context_length, batch_size <= windows_of_text",
        train_ids_of_text=len(parts["train"]),
        val_ids_of_text=len(parts["val"]),
        windows_of_text=(len(parts["train"]) - 1) // settings["context_length"],
        **settings,
    )
    with run_folder.new_run(folder, "config.json", settings) as temporary:
        for name, ids in parts.items():
            save_tokens(temporary / f"{name}.npy", ids, vocab_size=tokenizer.vocab_size)
        if isinstance(tokenizer, BPETokenizer):
            tokenizer.save(temporary / "tokenizer.json")
        else:
            write_json(temporary / "tokenizer.json", {"characters": tokenizer.chars})


def read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--text names {path!r}: it is not UTF-8") from error
