"""The command `python -m llm_learn.pipeline`: trains a small model through every stage, into a folder."""

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from llm_learn.apps import run_folder
from llm_learn.apps.pipeline_stages import (
    Plan,
    Round,
    distillation_batches,
    example_batches,
    flops,
    local_batch_size,
    next_token_loss,
    reinforce,
    teacher_loss,
    text_batches,
    train_on,
)
from llm_learn.atomic_files import replacing, write_json
from llm_learn.distributed import DistributedContext
from llm_learn.model.llama import Llama
from llm_learn.sft import collate_examples
from llm_learn.tasks.shakespeare_conversations import (
    REPLY_KINDS,
    TalkTask,
    draw_replies,
    make_task,
    read_talk,
)
from llm_learn.tokenizers import BPETokenizer
from llm_learn.train import evaluate_loss

# For a GPU. The corpus is small: a larger model would memorise it.
GPU_PLAN = Plan(
    num_words=4000,
    vocab_size=4096,
    d_model=384,
    num_layers=8,
    num_heads=6,
    pretrain_steps=1000,
    pretrain_batch_size=64,
    sft_steps=300,
    sft_batch_size=96,
    rl_rounds=200,
    num_prompts=32,
    num_samples=16,
    rl_learning_rate=0.0005,
    student_d_model=192,
    student_num_layers=2,
    num_distill_samples=6144,
    distill_steps=600,
)
SAID = ("How now! what news?", "Where is the king?", "I love thee.", "Good night.")


def parser() -> argparse.ArgumentParser:
    """The command's options; those that are not given are missing from what it parses."""
    made = run_folder.command_parser(
        "pipeline",
        description="Pre-trains a small model on Shakespeare's plays, tunes it on conversations, reinforces format "
        "rules, and distils it into a student. The folder receives the tokenizer, each stage's model, and report.json.",
        epilog="A stage whose model is there is not run again. Several processes share each batch when they are started "
        "by `torchrun --nproc-per-node=N -m llm_learn.pipeline`.",
    )
    made.add_argument(
        "--large", action="store_true", help="begin from the plan for a GPU, not the book's"
    )
    made.add_argument("--seed", type=int, help="decides all random choices (default: 0)")
    for field in fields(Plan):
        small, large = field.default, getattr(GPU_PLAN, field.name)
        made.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=field.type,
            help=f"default: {small}, with --large {large}",
        )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    given = vars(parser().parse_args(arguments))
    folder, device = given.pop("out"), given.pop("device", "cpu")
    seed, large = given.pop("seed", 0), given.pop("large", False)

    def work(dist_context: DistributedContext) -> int:
        plan = replace(GPU_PLAN if large else Plan(), **given)
        PipelineRun(folder, plan, seed, dist_context).go()
        return 0

    return run_folder.exit_status(work, device)


class PipelineRun:
    """All stages of a plan in a folder, which is created or resumed.

    Args:
        folder: where the models go.
        plan: of all stages; a folder that was begun with another is refused.
        seed: decides all random choices.
        dist_context: the processes that share the work; each makes one.
    """

    def __init__(
        self, folder: Path, plan: Plan, seed: int, dist_context: DistributedContext
    ):
        self.folder, self.plan, self.seed, self.dist_context = (
            folder,
            plan,
            seed,
            dist_context,
        )
        self.settings = asdict(plan) | {"seed": seed}
        # What cannot work is refused before anything is written.
        for name in ("pretrain_batch_size", "sft_batch_size", "num_prompts"):
            _ = local_batch_size(name, getattr(plan, name), dist_context)
        _ = flops(plan, prompt=1)
        begun = dist_context.run_on_main(self.is_begun)
        if begun:
            self.say("reading the plays and the tokenizer")
            tokenizer = BPETokenizer.load(folder / "tokenizer.json")
            self.task = TalkTask(read_talk(plan.num_words), tokenizer)
        else:
            self.say(f"reading the plays, learning {plan.vocab_size:,} tokens")
            self.task = make_task(plan.num_words, plan.vocab_size)
        encode, talk = self.task.tokenizer.encode, self.task.talk
        self.ids, self.held_out = (
            torch.tensor(encode(text)).to(dist_context.device)
            for text in (talk.text, talk.held_out_text)
        )
        self.examples = self.task.examples(talk.turns)
        lengths = [loss_mask.index(True) for _, loss_mask in self.examples]
        self.predicted = flops(plan, sum(lengths) / len(lengths))
        self.rows: list[dict] = []
        if not begun:
            dist_context.run_on_main(self.begin)

    def is_begun(self) -> bool:
        """Whether the folder holds a run, which must have been begun with the same plan."""
        path = self.folder / "plan.json"
        if path.is_file():
            run_folder.begun_with(path, self.settings)
            return True
        run_folder.check_free(self.folder, ", and holds no run")
        return False

    def begin(self) -> None:
        """Makes the folder with the tokenizer and the plan."""
        with run_folder.new_run(self.folder, "plan.json", self.settings) as temporary:
            self.task.tokenizer.save(temporary / "tokenizer.json")

    def say(self, text: str) -> None:
        if self.dist_context.is_main_process:
            print(text, flush=True)

    def go(self) -> None:
        """Runs the stages that are not done, and writes the report."""
        plan, task, seed, dist_context = self.plan, self.task, self.seed, self.dist_context
        for name, number in self.predicted.items():
            self.say(f"{name:<14} {number:9.2e} floating-point operations predicted")
        torch.manual_seed(seed)
        model, student = plan.models()
        text = text_batches(
            self.ids, plan.pretrain_batch_size, plan.context_length, seed, dist_context
        )
        turns = example_batches(
            self.examples, plan.sft_batch_size, task.eos_id, seed, dist_context
        )
        learn = partial(train_on, dist_context=dist_context)

        def pretrain() -> None:
            learn(model, next_token_loss, text, plan.pretrain_steps, learning_rate=0.01)

        def tune() -> None:
            learn(model, next_token_loss, turns, plan.sft_steps, learning_rate=0.005)

        def follow_rules() -> None:
            self.follow(reinforce(model, task, plan, seed, dist_context))

        def distil() -> None:
            replies = distillation_batches(model, task, plan, seed, dist_context)
            learn(
                student,
                teacher_loss(model),
                replies,
                plan.distill_steps,
                learning_rate=0.01,
            )

        self.run_stage("pre-training", model, pretrain)
        self.run_stage("tuning", model, tune)
        self.run_stage("reinforcement", model, follow_rules)
        self.run_stage("distillation", student, distil)
        dist_context.run_on_main(lambda: write_json(self.folder / "report.json", self.rows))
        for said in SAID:
            for kind in REPLY_KINDS:
                self.say(f"({kind}) {said} — {self.reply(model, kind, said)}")

    def run_stage(self, name: str, model: Llama, stage: Callable[[], None]) -> None:
        """Runs a stage and saves its model, or loads it; then measures."""
        path, predicted = self.folder / f"{name}.safetensors", self.predicted[name]
        model.to(self.dist_context.device)
        seconds, took = None, ""
        if self.dist_context.run_on_main(path.is_file):
            model.load_state_dict(load_file(path, device=self.dist_context.device))
        else:
            begun = time.perf_counter()
            stage()
            seconds = time.perf_counter() - begun
            took = f", {predicted / seconds:.1e} per second"
            if not all(p.isfinite().all() for p in model.parameters()):
                raise ValueError(
                    f"{name} left weights that are no numbers: lower its learning rate"
                )
            self.dist_context.run_on_main(lambda: save(model, path))
        row = {"stage": name, "weights": sum(p.numel() for p in model.parameters())}
        row |= {"flops": predicted, "seconds": seconds} | self.measured(model)
        self.rows.append(row)
        self.say(
            f"{name:<14} {row['bits_per_byte']:.3f} bits per byte, {row['reply_loss']:.3f} nats per token of a reply, "
            f"{row['all_kept']:.1%} keep all rules{took}"
        )

    def follow(self, rounds: Iterator[Round]) -> None:
        """Goes through the rounds, and reports every tenth."""
        for number, each in enumerate(rounds, 1):
            if number % 10 == 0:
                self.say(
                    f"  round {number}: {each.all_kept:.1%} keep all rules, {each.kl:.1f} nats from the reference model"
                )

    @torch.no_grad()
    def measured(self, model: Llama) -> dict[str, float]:
        """The metrics of the book's page, on the plays that were held out."""
        talk, eos_id = self.task.talk, self.task.eos_id
        num_bytes = len(talk.held_out_text.encode()) / len(self.held_out)  # per token
        x, y = collate_examples(self.task.examples(talk.held_out_turns), eos_id)
        batch = x.to(self.dist_context.device), y.to(self.dist_context.device)
        asked = [
            (kind, turn.said) for turn in talk.held_out_turns[:100] for kind in REPLY_KINDS
        ]
        generator = torch.Generator(self.dist_context.device).manual_seed(0)
        kept = self.task.kept(
            asked,
            draw_replies(model, self.task.prompts(asked), eos_id, generator=generator),
        )
        return {
            "bits_per_byte": evaluate_loss(model, self.held_out) / num_bytes / math.log(2),
            "reply_loss": float(next_token_loss(model, batch)),
            "all_kept": float(kept.all(1).float().mean()),
        }

    def reply(self, model: Llama, kind: str, said: str) -> str:
        """The reply of greedy decoding."""
        prompts = self.task.prompts([(kind, said)])
        generator = torch.Generator(self.dist_context.device)
        written = draw_replies(
            model, prompts, self.task.eos_id, generator=generator, temperature=0.0
        )
        return self.task.texts(written)[0]


def save(model: Llama, path: Path) -> None:
    """Writes the weights atomically."""
    weights = {n: p.detach().cpu().contiguous() for n, p in model.state_dict().items()}
    with replacing(path) as temporary:
        save_file(weights, temporary)
