"""The recorded experiment of the chapter on distillation: what a teacher is worth, and what of it.

`make experiment NAME=distillation` runs the chapter's own code in two processes of one thread each, in about half an hour,
and rewrites experiments/distillation.json, which the chapter prints and draws.
"""

import copy
import functools
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from common import definitions, record_parts
from torch import Tensor

SEEDS = [0, 1, 2, 3, 4]
RECORD = Path(__file__).with_suffix(".json")
chapter = definitions("post-training/distillation")
STUDENT = 1000  # added to a teacher's seed
FEW = chapter.ONE_PLAY[:400]
UPDATES = chapter.STUDENT_UPDATES


@functools.lru_cache(maxsize=1)
def teacher_of(seed: int):
    """The teacher, and its logits for the play."""
    torch.set_num_threads(1)
    teacher = chapter.trained_teacher(seed)
    return teacher, chapter.logits_of(teacher, chapter.ONE_PLAY)


def asked_anew(teacher, rows: Tensor, seed: int) -> Iterator:
    """Windows for which nothing is stored: the teacher reads each batch."""
    for ids, _ in chapter.from_text(rows, seed):
        yield ids, chapter.logits_of(teacher, ids)


def written_anew(teacher, rows: Tensor, seed: int) -> Iterator:
    """The teacher continues windows, and says what it would have expected; four batches at a time."""
    return chapter.from_own_texts(teacher, teacher, rows, seed)


def own_anew(teacher, rows: Tensor, seed: int) -> Iterator:
    """What a fresh student writes, with the teacher's logits."""
    return chapter.from_own_texts(
        chapter.new_model(chapter.STUDENT_WIDTH, seed), teacher, rows, seed
    )


def update_seconds(width: int, batches: Iterator, loss) -> float:
    """CPU-seconds of an update: the fastest of five short runs, since what disturbs a run only makes it longer."""
    times, updates = [], 24
    for _ in range(5):
        model = chapter.new_model(width, 0)
        begun = time.process_time()
        chapter.learn(model, batches, loss, max_steps=updates, learning_rate=0.01)
        times.append((time.process_time() - begun) / updates)
    return min(times)


def kept(seed: int, name: str, **found: float) -> dict[str, float]:
    row = {what: round(value, 4) for what, value in found.items()}
    print(seed, name, row, flush=True)
    return row


# --- Losses ---


def with_temperature(tau: float, squared: bool = True):
    def loss(logits: Tensor, targets: Tensor, teacher_logits: Tensor) -> Tensor:
        losses = chapter.distillation_loss(logits, teacher_logits, temperature=tau)
        return losses if squared else losses / tau**2

    return loss


def half_and_half(loss):
    def mixed(logits: Tensor, targets: Tensor, teacher_logits: Tensor) -> Tensor:
        of_text = chapter.hard(logits, targets, teacher_logits)
        return (of_text + loss(logits, targets, teacher_logits)) / 2

    return mixed


# --- Parts ---


def texts(seed: int) -> dict:
    """With and without a teacher: few windows, one play, all plays; and controls."""
    teacher, stored = teacher_of(seed)
    play, everything = chapter.ONE_PLAY, chapter.ALL_PLAYS
    own = seed + STUDENT  # neither the teacher's first weights nor its windows
    hard, soft, from_text = chapter.hard, chapter.soft, chapter.from_text
    found = {"seed": seed, "teacher": round(chapter.loss_on(teacher), 4), "runs": {}}

    def run(name: str, batches: Iterator, loss, max_steps: int = UPDATES) -> None:
        student = chapter.trained_student(own, batches, loss, max_steps)
        found["runs"][name] = kept(
            seed,
            name,
            loss=chapter.loss_on(student),
            right=chapter.share_right(student),
            max_steps=max_steps,
        )

    seconds = {
        "alone": update_seconds(chapter.STUDENT_WIDTH, from_text(play, own), hard),
        "stored": update_seconds(chapter.STUDENT_WIDTH, from_text(play, own, stored), soft),
        "read along": update_seconds(
            chapter.STUDENT_WIDTH, asked_anew(teacher, play, own), soft
        ),
        "own texts": update_seconds(
            chapter.STUDENT_WIDTH, own_anew(teacher, play, own), soft
        ),
        "teacher": update_seconds(chapter.TEACHER_WIDTH, from_text(play, own), hard),
    }
    found["costs"] = kept(
        seed, "costs", **{what: value / seconds["alone"] for what, value in seconds.items()}
    )
    for name, rows in (("few windows", FEW), ("one play", play), ("all plays", everything)):
        run(f"{name}, alone", from_text(rows, own), hard)
        batches = (
            asked_anew(teacher, rows, own)
            if rows is everything
            else from_text(rows, own, stored[: len(rows)])
        )
        run(f"{name}, taught", batches, soft)
    # As much time as the student with a teacher that reads each batch; and as both together.
    long = UPDATES * found["costs"]["read along"]
    both = long + chapter.TEACHER_UPDATES * found["costs"]["teacher"]
    for name, updates in (("as long", long), ("as long as both", both)):
        run(f"all plays, alone, {name}", from_text(everything, own), hard, round(updates))
    for times in (2, 4):
        more = times * UPDATES
        run(f"one play, alone, {times} times", from_text(play, own), hard, more)
        run(f"one play, taught, {times} times", from_text(play, own, stored), soft, more)
    more = 4 * UPDATES
    for name, batches, loss in (
        ("alone", from_text(everything, own), hard),
        ("taught", asked_anew(teacher, everything, own), soft),
        ("half", asked_anew(teacher, everything, own), half_and_half(soft)),
    ):
        run(f"all plays, {name}, 4 times", batches, loss, more)
    shuffled = chapter.shuffled_others(
        stored, generator=torch.Generator().manual_seed(seed)
    )
    run("one play, shuffled", from_text(play, own, shuffled), soft)
    run("one play, evened", from_text(play, own, chapter.evened_others(stored)), soft)
    run("one play, smoothed", from_text(play, own), chapter.smoothed)
    run("one play, weighted", from_text(play, own, stored), chapter.weighted)
    for tau in (2, 4):
        batches = from_text(play, own, stored)
        run(f"one play, temperature {tau}", batches, with_temperature(tau))
    for tau, squared in ((1, True), (4, True), (4, False)):
        name = f"one play, half, temperature {tau}" + ("" if squared else ", not squared")
        loss = half_and_half(with_temperature(tau, squared))
        run(name, from_text(play, own, stored), loss)
    # Without anything else to balance, the square is a factor on all gradients.
    run(
        "one play, temperature 4, not squared",
        from_text(play, own, stored),
        with_temperature(4, squared=False),
    )
    for learning_rate in (0.005, 0.02):
        for name, batches, loss in (
            ("alone", from_text(play, own), hard),
            ("taught", from_text(play, own, stored), soft),
        ):
            student = chapter.new_model(chapter.STUDENT_WIDTH, own)
            chapter.learn(
                student, batches, loss, max_steps=UPDATES, learning_rate=learning_rate
            )
            name = f"one play, {name}, rate {learning_rate}"
            found["runs"][name] = kept(seed, name, loss=chapter.loss_on(student))
    return found


def teachers(seed: int) -> dict:
    """Teachers that were trained for shorter and for longer, and a student of each."""
    found = {"seed": seed, "runs": {}}
    for updates in (70, 140, 280, 560, 1120):
        teacher = chapter.trained_teacher(seed, updates)
        stored = chapter.logits_of(teacher, chapter.ONE_PLAY)
        batches = chapter.from_text(chapter.ONE_PLAY, seed + STUDENT, stored)
        student = chapter.trained_student(seed + STUDENT, batches, chapter.soft)
        found["runs"][str(updates)] = kept(
            seed,
            f"teacher {updates}",
            teacher=chapter.loss_on(teacher),
            student=chapter.loss_on(student),
        )
    return found


def sequences(seed: int) -> dict:
    """Students of texts that the teacher wrote, with hard and with soft targets."""
    teacher, stored = teacher_of(seed)
    found = {"seed": seed, "runs": {"teacher": chapter.measured(teacher, teacher)}}

    def run(name: str, batches: Iterator, loss) -> None:
        student = chapter.new_model(chapter.STUDENT_WIDTH, own)
        begin = chapter.GIVEN - 1  # what the teacher did not write is not learned
        chapter.learn(
            student, batches, loss, max_steps=UPDATES, learning_rate=0.01, begin=begin
        )
        found["runs"][name] = kept(seed, name, **chapter.measured(student, teacher))

    generator = torch.Generator().manual_seed(seed)
    play, own = chapter.ONE_PLAY, seed + STUDENT
    run("play, hard", chapter.from_text(play, own), chapter.hard)
    run("play, soft", chapter.from_text(play, own, stored), chapter.soft)
    for name, times, temperature in (
        ("written", 1, 1.0),
        ("four times written", 4, 1.0),
        ("written at 0.5", 1, 0.5),
    ):
        rows = torch.cat(
            [chapter.written(teacher, play, generator, temperature) for _ in range(times)]
        )
        run(f"{name}, hard", chapter.from_text(rows, own), chapter.hard)
        if times == 1:
            asked = chapter.logits_of(teacher, rows)
            run(f"{name}, soft", chapter.from_text(rows, own, asked), chapter.soft)
    return found


def own_texts(seed: int) -> dict:
    """A taught student goes on: whose texts, and which divergence."""
    teacher, stored = teacher_of(seed)
    play = chapter.ONE_PLAY
    own = seed + STUDENT
    taught = chapter.trained_student(
        own, chapter.from_text(play, own, stored), chapter.soft
    )
    runs = {"taught": chapter.measured(taught, teacher)}

    def halfway(logits: Tensor, targets: Tensor, teacher_logits: Tensor) -> Tensor:
        return chapter.generalized_jsd(logits, teacher_logits, 0.5)

    more = own + 100
    sources = {
        "the play": lambda _: chapter.from_text(play, more, stored),
        "other plays": lambda _: asked_anew(teacher, chapter.ALL_PLAYS, more),
        "teacher's texts": lambda _: written_anew(teacher, play, more),
        "own texts": lambda student: chapter.from_own_texts(student, teacher, play, more),
    }
    for loss_name, loss in (
        ("forward", chapter.soft),
        ("reverse", chapter.reverse),
        ("halfway", halfway),
    ):
        for source, batches_for in sources.items():
            student = copy.deepcopy(taught)
            chapter.more_lessons(student, batches_for(student), loss)
            name = f"{source}, {loss_name}"
            runs[name] = kept(seed, name, **chapter.measured(student, teacher))
    return {"seed": seed, "runs": runs}


def sizes(seed: int) -> dict:
    """Students of several widths, with and without a teacher, on all plays; and how fast they write."""
    teacher, _ = teacher_of(seed)
    runs = {}
    for width in (24, 48, 72, 96):
        row = {}
        alone = chapter.from_text(chapter.ALL_PLAYS, seed + STUDENT)
        taught = asked_anew(teacher, chapter.ALL_PLAYS, seed + STUDENT)
        for name, batches, loss in (
            ("alone", alone, chapter.hard),
            ("taught", taught, chapter.soft),
        ):
            student = chapter.new_model(width, seed + STUDENT)
            chapter.learn(student, batches, loss, max_steps=UPDATES, learning_rate=0.01)
            row[name] = chapter.loss_on(student)
        times = []
        for _ in range(5):
            begun = time.process_time()
            rows = chapter.written(
                student, chapter.TEST[:256], torch.Generator().manual_seed(0)
            )
            times.append(time.process_time() - begun)
        characters = 256 * (rows.shape[1] - chapter.GIVEN)
        row |= {
            "weights": chapter.num_weights(student),
            "characters a second": characters / min(times),
        }
        runs[str(width)] = kept(seed, f"width {width}", **row)
    return {"seed": seed, "runs": runs}


if __name__ == "__main__":
    record_parts(
        [texts, teachers, sequences, own_texts, sizes],
        "Shakespeare's plays (llm_learn.assets), in characters",
        SEEDS,
        RECORD,
    )
