"""The command `python -m llm_learn.train`: trains a model on texts, in a folder that it can go on from."""

import argparse
import csv
import json
import math
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from llm_learn.checkpoint import load_checkpoint, new_folder, save_checkpoint
from llm_learn.data import TokenLoader, load_tokens, save_tokens, shakespeare
from llm_learn.generate import generate
from llm_learn.model import GPT, GPTConfig, Llama, LlamaConfig
from llm_learn.optim import AdamW, decay_groups
from llm_learn.tokenizers import BPETokenizer, CharTokenizer
from llm_learn.train import History, TrainConfig, evaluate_loss, train_step

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
SAMPLE_IDS = 300  # of the text that is written at the end


def parser() -> argparse.ArgumentParser:
    """The command's options; those that are not given are missing from what it parses."""
    made = argparse.ArgumentParser(
        prog="python -m llm_learn.train",
        description="Trains a language model on texts with AdamW and a cosine schedule. The folder receives the "
        "configuration, the tokens, checkpoints, and the loss as numbers and as a picture.",
        epilog="Interrupted by Ctrl-C, a run writes a checkpoint first. --resume goes on from the latest one, and "
        "gives what the run would have given without the interruption.",
        argument_default=argparse.SUPPRESS,
    )
    made.add_argument("--out", required=True, type=Path, help="the run's folder")
    made.add_argument(
        "--resume", action="store_true", help="go on with the run in that folder"
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
    try:
        if resume:
            settings = saved_settings(folder, given)
        else:
            settings = {"text": [], **{n: d for n, (d, _) in OPTIONS.items()}, **given}
            begin(folder, settings)
        print(json.dumps(settings, indent=1))
        return TrainingRun(folder, settings).go()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped before the first update", file=sys.stderr)
        return 128 + signal.SIGINT


def saved_settings(folder: Path, given: dict) -> dict:
    """The settings of the run in that folder, which options may repeat and not change."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"--out is {str(folder)!r}: there is no run to resume")
    settings = json.loads(path.read_text(encoding="utf-8"))
    for name, value in given.items():
        if value != settings[name]:
            raise ValueError(
                f"--{name.replace('_', '-')} is {value}: the run to resume was begun with {settings[name]}"
            )
    return settings


def train_config(settings: dict) -> TrainConfig:
    """The part of the settings that the training loop knows."""
    fields = {n: settings[n] for n in TrainConfig.__dataclass_fields__ if n in settings}
    return TrainConfig(
        **fields | {"micro_batch_size": settings["micro_batch_size"] or None}
    )


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
            characters = json.dumps({"characters": tokenizer.chars})
            (temporary / "tokenizer.json").write_text(characters, encoding="utf-8")
        config = json.dumps(settings, indent=1) + "\n"
        (temporary / "config.json").write_text(config, encoding="utf-8")
        if folder.exists():
            folder.rmdir()  # empty; on Windows nothing can be renamed onto it


def read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--text names {path!r}: it is not UTF-8") from error


def load_tokenizer(path: Path) -> BPETokenizer | CharTokenizer:
    state = json.loads(path.read_text(encoding="utf-8"))
    if "characters" in state:
        return CharTokenizer("".join(state["characters"]))
    return BPETokenizer.load(path)


def make_model(settings: dict, vocab_size: int) -> GPT | Llama:
    names = ("context_length", "d_model", "num_layers", "num_heads")
    shape = {name: settings[name] for name in names} | {"vocab_size": vocab_size}
    torch.manual_seed(settings["seed"])
    if settings["model"] == "gpt":
        return GPT(GPTConfig(**shape))
    # SwiGLU has three matrices where the MLP has two: 8/3 of the width make as many weights as its 4.
    d_ff = round(8 / 3 * settings["d_model"])
    return Llama(LlamaConfig(**shape, num_kv_heads=settings["num_heads"], d_ff=d_ff))


class TrainingRun:
    """A run in its folder: opened where its latest checkpoint stands, or at the beginning.

    Args:
        folder: as `begin` left it.
        settings: of its config.json.
    """

    def __init__(self, folder: Path, settings: dict):
        self.folder, self.settings = folder, settings
        self.config = train_config(settings)
        self.tokenizer = load_tokenizer(folder / "tokenizer.json")
        self.model = make_model(settings, self.tokenizer.vocab_size)
        self.optimizer = AdamW(
            decay_groups(self.model.named_parameters(), self.config.weight_decay),
            lr=self.config.learning_rate,
            betas=self.config.betas,
        )
        self.loader = TokenLoader(
            load_tokens(folder / "train.npy"),
            batch_size=self.config.batch_size,
            context_length=settings["context_length"],
            seed=settings["seed"],
        )
        val_ids = load_tokens(folder / "val.npy")[: settings["eval_ids"]]
        self.val_ids = torch.from_numpy(val_ids.astype("int64"))
        self.history = History()
        for unfinished in folder.glob("step-*.tmp"):
            shutil.rmtree(unfinished)
        if checkpoints := self.checkpoints():
            progress = load_checkpoint(checkpoints[-1], self.model, [self.optimizer])
            self.loader.load_state_dict(progress["loader"])
            self.history = History(**progress["history"])

    @property
    def step(self) -> int:
        """Updates done."""
        return len(self.history.losses)

    def checkpoints(self) -> list[Path]:
        """The folder's complete checkpoints, the latest last."""
        return sorted(
            p for p in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name)
        )

    def go(self) -> int:
        """Trains to the end, or until it is told to stop; returns the exit status."""
        if self.step:
            print(f"resuming after update {self.step}")
        self.model.train()
        max_steps = self.config.max_steps
        progress = tqdm(total=max_steps, initial=self.step, desc="training")
        with caught_signals() as caught, progress:
            while self.step < max_steps and not caught:
                if self.step % self.config.eval_every == 0:
                    self.evaluate()
                loss = self.update()
                if not math.isfinite(loss):
                    raise self.diverged(f"the loss is {loss}")
                self.history.losses.append(loss)
                val = self.history.eval_losses[-1]
                shown = f"loss {loss:.3f}, validation {val:.3f}"
                progress.set_postfix_str(shown, refresh=False)
                progress.update()
                if (
                    self.step % self.settings["checkpoint_every"] == 0
                    and self.step < max_steps
                ):
                    self.save()
            if self.step == max_steps:
                self.evaluate()
            self.save()
        if self.step < max_steps:
            print(
                f"stopped after update {self.step}: go on with --out {self.folder} --resume"
            )
            return 128 + caught[0]
        print(f"validation loss {self.history.eval_losses[-1]:.4f} nats a token")
        print(f"loss curve: {self.folder / 'losses.png'}\n\nWhat the model writes:\n")
        print(self.sample())
        return 0

    def update(self) -> float:
        return train_step(
            self.model,
            [self.optimizer],
            self.config.micro_batches(*next(self.loader)),
            factor=self.config.factor(self.step),
            max_grad_norm=self.config.max_grad_norm,
        )

    def diverged(self, what: str) -> ValueError:
        """What to raise when training has broken down; the losses that led there are saved."""
        self.save_losses()
        latest = self.checkpoints()[-1:]
        return ValueError(
            f"{what} after update {self.step}: learning_rate {self.config.learning_rate} may be too high; begin "
            f"again with a lower one and another --out "
            f"({f'{latest[0]} is from before' if latest else 'there is no checkpoint yet'})"
        )

    def evaluate(self) -> None:
        self.history.eval_steps.append(self.step)
        self.history.eval_losses.append(evaluate_loss(self.model, self.val_ids))

    def save(self) -> None:
        """Writes a checkpoint and the losses, and removes what `keep` has no room for."""
        folder = self.folder / f"step-{self.step:08}"
        if not folder.exists():
            # A loss tells of the weights before its update: these may be broken already.
            if not all(p.isfinite().all() for p in self.model.parameters()):
                raise self.diverged("weights are no numbers")
            progress = {"loader": self.loader.state_dict(), "history": vars(self.history)}
            save_checkpoint(folder, self.model, [self.optimizer], progress)
        for old in self.checkpoints()[: -self.settings["keep"]]:
            shutil.rmtree(old)
        self.save_losses()

    def save_losses(self) -> None:
        """Writes losses.csv and losses.png."""
        validation = dict(
            zip(self.history.eval_steps, self.history.eval_losses, strict=True)
        )
        with (
            replacing(self.folder / "losses.csv") as path,
            path.open("w", newline="") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(["updates", "train_loss", "validation_loss"])
            for done in range(self.step + 1):
                loss = self.history.losses[done - 1] if done else ""
                writer.writerow([done, loss, validation.get(done, "")])
        # Imported late, since it takes a second; without a window, since there may be no screen.
        from matplotlib.figure import Figure

        axis = (figure := Figure(figsize=(7.2, 3.6))).add_subplot()
        axis.plot(range(1, self.step + 1), self.history.losses, alpha=0.4, label="batches")
        axis.plot(*zip(*validation.items(), strict=True), "o-", label="validation")
        axis.set(xlabel="updates", ylabel="loss, nats a token")
        axis.legend()
        with replacing(self.folder / "losses.png") as path:
            figure.savefig(path, dpi=150)

    def sample(self) -> str:
        """Text that the model writes, from the first id of the validation text on."""
        generator = torch.Generator().manual_seed(self.settings["seed"])
        ids = generate(
            self.model.eval(),
            self.val_ids[None, :1],
            SAMPLE_IDS,
            use_cache=False,
            generator=generator,
        )
        return self.tokenizer.decode(ids[0].tolist())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` when the block ends, and is gone where it fails."""
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collects Ctrl-C and a polite request to end, instead of stopping in the middle of an update."""
    caught: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [
        signal.signal(kind, lambda number, _: caught.append(number)) for kind in kinds
    ]
    try:
        yield caught
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
