"""The command `python -m llm_learn.train`: trains a model on texts, in a folder that it can go on from."""

import argparse
import json
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from llm_learn.apps.training_run import TrainingRun, make_model, train_config
from llm_learn.assets import AssetError
from llm_learn.data import save_tokens, shakespeare
from llm_learn.distributed import Ranks, joined
from llm_learn.files import new_folder, write_json
from llm_learn.tokenizers import BPETokenizer, CharTokenizer

# Name: default and what it means.
OPTIONS = {
    "val_share": (0.1, "share of the text, its end, that is kept for validation"),
    "vocab_size": (
        0,
        "ids of a BPE tokenizer that is learned first; 0: one for each character",
    ),
    "model": ("llama", "structure: gpt or llama"),
    "context_length": (64, "positions in a window"),
    "d_model": (128, "width of the residual stream"),
    "num_layers": (4, "blocks"),
    "num_heads": (4, "heads of each attention"),
    "max_steps": (2000, "updates in all"),
    "batch_size": (12, "windows in an update"),
    "micro_batch_size": (0, "windows in memory at a time; 0: all of an update"),
    "learning_rate": (1e-3, "AdamW's, at the peak of the cosine schedule"),
    "warmup_steps": (100, "updates until the peak"),
    "floor": (0.1, "the schedule's last factor"),
    "weight_decay": (0.1, "AdamW's, on matrices"),
    "max_grad_norm": (1.0, "gradients are scaled down to this norm"),
    "eval_every": (100, "updates between evaluations"),
    "eval_ids": (20_000, "ids of the validation text that an evaluation reads"),
    "checkpoint_every": (200, "updates between checkpoints"),
    "keep": (2, "checkpoints that are kept, the latest"),
    "seed": (0, "decides the first weights and the order of the windows"),
}


def parser() -> argparse.ArgumentParser:
    """The command's options; those that are not given are missing from what it parses."""
    made = argparse.ArgumentParser(
        prog="python -m llm_learn.train",
        description="Trains a language model on texts with AdamW and a cosine schedule. The folder receives the "
        "configuration, the tokens, checkpoints, and the loss as numbers and as a picture.",
        epilog="Interrupted by Ctrl-C, a run writes a checkpoint first. --resume goes on from the latest one, and "
        "gives what the run would have given without the interruption. Several processes share each batch when "
        "they are started by `torchrun --nproc-per-node=N -m llm_learn.train`; a run may be resumed by another number.",
        argument_default=argparse.SUPPRESS,
    )
    made.add_argument("--out", required=True, type=Path, help="the run's folder")
    made.add_argument(
        "--resume", action="store_true", help="go on with the run in that folder"
    )
    made.add_argument(
        "--sharing",
        choices=["ddp", "fsdp"],
        help="under torchrun: ddp, each process holds the whole model (default); fsdp, each holds a part of it",
    )
    made.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        help="cpu (default), or cuda: a GPU for each process",
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
    sharing, device = given.pop("sharing", "ddp"), given.pop("device", "cpu")
    try:
        with joined(device) as ranks:
            return begin_or_resume(folder, given, resume, ranks, sharing)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def begin_or_resume(
    folder: Path, given: dict, resume: bool, ranks: Ranks, sharing: str
) -> int:
    """Begins or resumes a run, and trains; the exit status. Of several processes the first speaks."""
    try:
        settings = ranks.from_first(lambda: opened(folder, given, resume, ranks))
        if ranks.is_first:
            print(json.dumps(settings, indent=1))
        return TrainingRun(folder, settings, ranks, sharing).go()
    except (ValueError, OSError, AssetError) as error:
        if ranks.is_first:
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped before the first update", file=sys.stderr)
        return 128 + signal.SIGINT


def opened(folder: Path, given: dict, resume: bool, ranks: Ranks) -> dict:
    """The settings of the run in that folder, which is made if there is nothing to resume."""
    settings = saved_settings(folder, given) if resume else default_settings() | given
    if settings["batch_size"] % ranks.world_size:
        raise ValueError(
            f"batch_size is {settings['batch_size']}: {ranks.world_size} processes cannot share it evenly"
        )
    if not resume:
        begin(folder, settings)
    return settings


def default_settings() -> dict:
    return {"text": []} | {name: default for name, (default, _) in OPTIONS.items()}


def saved_settings(folder: Path, given: dict) -> dict:
    """The settings of the run in that folder, which options may repeat and not change."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"--out is {str(folder)!r}: there is no run to resume")
    # A run that an older version began lacks the settings that were added later.
    settings = default_settings() | json.loads(path.read_text(encoding="utf-8"))
    for name, value in given.items():
        if value != settings[name]:
            raise ValueError(
                f"--{name.replace('_', '-')} is {value}: the run to resume was begun with {settings[name]}"
            )
    return settings


def begin(folder: Path, settings: dict) -> None:
    """Makes the run's folder, with the texts as tokens and the configuration: all of it or nothing."""
    for name in ("eval_ids", "checkpoint_every", "keep", "d_model"):
        if settings[name] < 1:
            raise ValueError(f"{name} is {settings[name]}: it must be at least 1")
    for name in ("learning_rate", "weight_decay", "max_grad_norm"):
        if not math.isfinite(settings[name]):
            raise ValueError(f"{name} is {settings[name]}: it must be finite")
    if not 0 <= settings["seed"] < 2**63:
        raise ValueError(f"seed is {settings['seed']}: it must be from 0 to below 2**63")
    if settings["eval_ids"] <= settings["context_length"]:
        raise ValueError(
            f"eval_ids is {settings['eval_ids']}: it must be above context_length"
        )
    if not 0 < settings["val_share"] < 1:
        raise ValueError(
            f"val_share is {settings['val_share']}: it must be between 0 and 1"
        )
    train_config(settings)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"--out is {str(folder)!r}: it exists; choose another, or go on with its run by --resume"
        )
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
    for name, ids in parts.items():
        if len(ids) <= settings["context_length"]:
            raise ValueError(
                f"--text has {len(ids)} ids for {name}: context_length {settings['context_length']} needs one more"
            )
    num_windows = (len(parts["train"]) - 1) // settings["context_length"]
    if settings["batch_size"] > num_windows:
        raise ValueError(
            f"batch_size is {settings['batch_size']}: the text has {num_windows} windows"
        )
    with new_folder(folder) as temporary:
        for name, ids in parts.items():
            save_tokens(temporary / f"{name}.npy", ids, vocab_size=tokenizer.vocab_size)
        if settings["vocab_size"]:
            tokenizer.save(temporary / "tokenizer.json")
        else:
            write_json(temporary / "tokenizer.json", {"characters": tokenizer.chars})
        write_json(temporary / "config.json", settings)
        if folder.exists():
            folder.rmdir()  # empty; on Windows nothing can be renamed onto it


def read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--text names {path!r}: it is not UTF-8") from error
