"""A resumable training run in a folder, with checkpoints, on one process or several."""

import csv
import io
import json
import math
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from llm_learn.atomic_files import replacing
from llm_learn.checkpoint import UnreadableCheckpoint, load_checkpoint, save_checkpoint
from llm_learn.data import TokenLoader, load_tokens
from llm_learn.distributed import (
    DistributedContext,
    FullStateDict,
    apply_fsdp,
    is_connection_error,
)
from llm_learn.generate import generate
from llm_learn.model.gpt import GPT, GPTConfig
from llm_learn.model.llama import Llama, LlamaConfig
from llm_learn.optim import AdamW, decay_groups
from llm_learn.tokenizers import BPETokenizer, CharTokenizer
from llm_learn.train import History, TrainConfig, evaluate_loss, train_step

SAMPLE_IDS = 300  # tokens of the sample at the end
CSV_COLUMNS = ["updates", "train_loss", "validation_loss"]  # of losses.csv
MOST_POINTS = 2000  # batch losses in the figure, at most


def train_config(settings: dict) -> TrainConfig:
    """The part of the settings that the training loop knows."""
    known = {n: settings[n] for n in TrainConfig.__dataclass_fields__ if n in settings}
    known["micro_batch_size"] = settings["micro_batch_size"] or None
    return TrainConfig(**known)


def load_tokenizer(path: Path) -> BPETokenizer | CharTokenizer:
    state = json.loads(path.read_text(encoding="utf-8"))
    if "characters" in state:
        return CharTokenizer("".join(state["characters"]))
    return BPETokenizer.load(path)


def make_model(settings: dict, vocab_size: int) -> GPT | Llama:
    names = ("context_length", "d_model", "num_layers", "num_heads")
    shape: dict = {n: settings[n] for n in names} | {"vocab_size": vocab_size}
    torch.manual_seed(settings["seed"])
    if settings["model"] == "gpt":
        return GPT(GPTConfig(**shape))
    # SwiGLU has three matrices where the MLP has two: 8/3 of the width make as many parameters as its 4.
    d_ff = round(8 / 3 * settings["d_model"])
    return Llama(LlamaConfig(**shape, num_kv_heads=settings["num_heads"], d_ff=d_ff))


class TrainingRun:
    """A run in its folder: opened at its latest checkpoint, or at the beginning.

    Args:
        folder: as `begin` left it.
        settings: of its config.json.
        dist_context: the processes that share the run; each opens it.
        parallel: what they share, "ddp" (each holds the whole model) or "fsdp" (each holds a part of it).
    """

    def __init__(
        self,
        folder: Path,
        settings: dict,
        dist_context: DistributedContext | None = None,
        parallel: str = "ddp",
    ):
        self.dist_context = dist_context = dist_context or DistributedContext()
        self.folder, self.settings = folder, settings
        self.config = train_config(settings)
        self.tokenizer = load_tokenizer(folder / "tokenizer.json")
        self.model = make_model(settings, self.tokenizer.vocab_size).to(dist_context.device)
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
            rank=dist_context.rank,
            world_size=dist_context.world_size,
        )
        val_ids = load_tokens(folder / "val.npy")[: settings["eval_ids"]]
        self.val_ids = torch.from_numpy(val_ids.astype("int64")).to(dist_context.device)
        self.history = History()
        self.complete = (0, 0)  # rows of losses.csv that cannot change, and their bytes
        self.csv_bytes = None  # size of losses.csv, once this process has written it
        dist_context.run_on_main(self.remove_unfinished)
        if checkpoints := self.checkpoints():
            progress = self.load(checkpoints)
            self.loader.load_state_dict(progress["loader"])
            self.history = self.read_history(progress)
        self.trained = self.model
        if dist_context.world_size > 1 and parallel == "fsdp":
            apply_fsdp(self.model, self.optimizer)
        elif dist_context.world_size > 1:
            self.trained = DistributedDataParallel(self.model)

    def remove_unfinished(self) -> None:
        for unfinished in self.folder.glob("step-*.tmp"):
            shutil.rmtree(unfinished)

    def load(self, checkpoints: list[Path]) -> dict:
        """Loads the latest checkpoint; returns its progress."""
        try:
            return load_checkpoint(checkpoints[-1], self.model, [self.optimizer])
        except UnreadableCheckpoint as error:
            before = checkpoints[-2] if len(checkpoints) > 1 else "the beginning"
            raise ValueError(
                f"{error}; delete that folder, and --resume goes on from {before}"
            ) from error

    def read_history(self, progress: dict) -> History:
        """The losses up to a checkpoint: the rows of losses.csv before its update, and the row that it holds."""
        step, *latest = progress["latest"]
        path, history = self.folder / "losses.csv", History()
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(islice(csv.reader(file), 1, step + 1))
            for n, (done, loss, validation) in enumerate([*rows, (step, *latest)]):
                if int(done) != n:
                    raise ValueError(f"row {n} is of update {done}")
                if n:
                    history.losses.append(float(loss))
                if validation != "":
                    history.eval_steps.append(n)
                    history.eval_losses.append(float(validation))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path} must hold the losses of the first {step - 1} updates, which the run needs to go on: "
                f"restore it ({error})"
            ) from error
        return history

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
        """Trains to the end, or until a signal stops it; returns the exit status."""
        say = print if self.dist_context.is_main_process else lambda *_: None
        if self.step:
            say(f"resuming after update {self.step}")
        hidden: dict = {} if self.dist_context.is_main_process else {"disable": True}
        progress = tqdm(
            total=self.config.max_steps, initial=self.step, desc="training", **hidden
        )
        with caught_signals() as caught, progress:
            try:
                self.advance(caught, progress)
            except RuntimeError as error:
                if not is_connection_error(error):
                    raise
                print(f"error: {self.broken_off(error)}", file=sys.stderr, flush=True)
                return 1
        if self.step < self.config.max_steps:
            say(
                f"stopped after update {self.step}: go on with --out {self.folder} --resume"
            )
            return 128 + (caught[0] if caught else signal.SIGTERM)
        say(f"validation loss {self.history.eval_losses[-1]:.4f} nats per token")
        say(f"loss curve: {self.folder / 'losses.png'}\n\nWhat the model generates:\n")
        say(self.sample())
        return 0

    def advance(self, caught: list[int], progress: tqdm) -> None:
        """Updates, evaluations and checkpoints, until all is done or a signal has been caught."""
        self.model.train()
        max_steps, stopping = self.config.max_steps, 0.0
        while self.step < max_steps and not stopping:
            if self.step % self.config.eval_every == 0:
                self.evaluate()
            # One of the processes may have received a signal: all of them stop after the same step.
            loss, stopping = self.dist_context.mean([self.update(), float(bool(caught))])
            if not math.isfinite(loss):
                raise self.diverged(f"the loss is {loss}")
            self.history.losses.append(loss)
            told = f"loss {loss:.3f}, validation {self.history.eval_losses[-1]:.3f}"
            progress.set_postfix_str(told, refresh=False)
            progress.update()
            due = self.step % self.settings["checkpoint_every"] == 0
            if due and self.step < max_steps:
                self.save()
        if self.step == max_steps:
            self.evaluate()
        self.save()

    def update(self) -> float:
        """One training step; the loss of this process's windows before it, in nats per token."""
        x, y = (ids.to(self.dist_context.device) for ids in next(self.loader))
        return train_step(
            self.trained,
            [self.optimizer],
            self.config.micro_batches(x, y),
            factor=self.config.factor(self.step),
            max_grad_norm=self.config.max_grad_norm,
        )

    def diverged(self, what: str) -> ValueError:
        """What to raise when training has broken down; the losses that led there are saved."""
        self.dist_context.run_on_main(self.write_losses)
        self.dist_context.run_on_main(self.draw_losses)
        latest = self.checkpoints()[-1:]
        return ValueError(
            f"{what} after update {self.step}: learning_rate {self.config.learning_rate} may be too high; begin "
            f"again with a lower one and another --out "
            f"({f'{latest[0]} is from before' if latest else 'there is no checkpoint yet'})"
        )

    def broken_off(self, error: RuntimeError) -> str:
        """What to say when another process of the run is gone."""
        latest = self.checkpoints()[-1:]
        kept = f"{latest[0]} is complete" if latest else "there is no checkpoint yet"
        return (
            f"process {self.dist_context.rank} of {self.dist_context.world_size} cannot reach another one any more, which has "
            f"probably ended, after update {self.step}; {kept}: go on with --out {self.folder} --resume "
            f"({str(error).split('. ')[0]})"
        )

    def evaluate(self) -> None:
        """The loss of the validation text, of which each process computes an equal part.

        The last windows, fewer than there are processes, are computed by all: with FSDP, all need the same number of
        forward passes.
        """
        size, length = self.dist_context.world_size, self.settings["context_length"]
        windows = (len(self.val_ids) - 1) // length
        each, rest = divmod(windows, size)
        own = self.val_ids[self.dist_context.rank * each * length :][: each * length + 1]
        last = self.val_ids[size * each * length :]
        at_once = self.config.micro_batch_size or self.config.batch_size // size
        loss = sum(
            count / windows * evaluate_loss(self.model, ids, batch_size=at_once)
            for count, ids in ((size * each, own), (rest, last))
            if count
        )
        self.history.eval_steps.append(self.step)
        self.history.eval_losses += self.dist_context.mean([loss])

    def save(self) -> None:
        """Writes the losses and a checkpoint, and removes the checkpoints beyond `keep`."""
        # First, since the checkpoint relies on them.
        self.dist_context.run_on_main(self.write_losses)
        folder = self.folder / f"step-{self.step:08}"
        if not self.dist_context.run_on_main(folder.exists):
            model, optimizer = FullStateDict(self.model), FullStateDict(self.optimizer)
            # A loss belongs to the weights before its update: the new ones may be broken already.
            if not all(p.isfinite().all() for p in model.whole.values()):
                raise self.diverged("weights are no numbers")
            # The update, its loss, and the validation loss after it: losses.csv has the rest.
            (latest,) = self.rows(self.step)
            progress = {"loader": self.loader.state_dict(), "latest": latest}
            parts = folder, model, [optimizer], progress
            self.dist_context.run_on_main(lambda: save_checkpoint(*parts))  # pyrefly: ignore[bad-argument-type]
        self.dist_context.run_on_main(self.tidy)

    def tidy(self) -> None:
        """Removes the checkpoints beyond `keep`, and draws the losses."""
        for old in self.checkpoints()[: -self.settings["keep"]]:
            shutil.rmtree(old)
        self.draw_losses()

    def rows(self, first: int) -> list[list]:
        """The rows of losses.csv from that update on."""
        history = self.history
        validation = dict(zip(history.eval_steps, history.eval_losses, strict=True))
        return [
            [n, history.losses[n - 1] if n else "", validation.get(n, "")]
            for n in range(first, self.step + 1)
        ]

    def write_losses(self) -> None:
        """Appends to losses.csv what is new; the last row is written again, since an evaluation may have followed it."""
        path = self.folder / "losses.csv"
        # A new process, or a file that has been changed, writes all of it.
        whole = not path.is_file() or path.stat().st_size != self.csv_bytes
        first, begin = (0, 0) if whole else self.complete
        *complete, last = self.rows(first)
        text = lines([CSV_COLUMNS, *complete] if whole else complete)
        with (
            replacing(path) if whole else nullcontext(path) as target,
            target.open("wb" if whole else "r+b") as file,
        ):
            file.seek(begin)
            file.truncate()
            file.write(text + lines([last]))
            self.csv_bytes = file.tell()
            file.flush()
            os.fsync(file.fileno())
        self.complete = (self.step, begin + len(text))

    def draw_losses(self) -> None:
        """Writes losses.png."""
        # Imported late, since it takes a second; without a window, since there may be no screen.
        from matplotlib.figure import Figure

        axis, history = (figure := Figure(figsize=(7.2, 3.6))).add_subplot(), self.history
        every = max(1, -(-self.step // MOST_POINTS))
        points = range(every, self.step + 1, every)
        axis.plot(points, history.losses[every - 1 :: every], alpha=0.4, label="batches")
        axis.plot(history.eval_steps, history.eval_losses, "o-", label="validation")
        axis.set(xlabel="updates", ylabel="loss, nats per token")
        axis.legend()
        with replacing(self.folder / "losses.png") as path:
            figure.savefig(path, dpi=150)

    def sample(self) -> str:
        """Text that the model generates, from the first token of the validation text on."""
        model, first = self.model.eval(), self.val_ids[None, :1]
        generator = torch.Generator(self.dist_context.device).manual_seed(
            self.settings["seed"]
        )
        ids = generate(model, first, SAMPLE_IDS, use_cache=False, generator=generator)
        return self.tokenizer.decode(ids[0].tolist())


def lines(rows: list[list]) -> bytes:
    """Rows as lines of a CSV file."""
    csv.writer(text := io.StringIO()).writerows(rows)
    return text.getvalue().encode()


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collects Ctrl-C and requests to terminate, instead of stopping in the middle of a step."""
    caught: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}
    try:
        for kind in kinds:
            signal.signal(kind, lambda number, _: caught.append(number))
        yield caught
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
