"""The stages of one small model, and the command that runs them."""

import copy
import json
import os
import random
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from llm_learn.apps import pipeline_command, pipeline_stages, run_folder
from llm_learn.apps.pipeline_command import GPU_PLAN, PipelineRun, main, parser
from llm_learn.apps.pipeline_stages import (
    Plan,
    Round,
    distillation_batches,
    example_batches,
    flops,
    local_batch_size,
    make_llama,
    next_token_loss,
    reinforce,
    teacher_loss,
    text_batches,
    train_on,
)
from llm_learn.assets import AssetError
from llm_learn.distributed import DistributedContext, launch_processes
from llm_learn.tasks.shakespeare_conversations import (
    FORMAT_RULES,
    REPLY_END,
    ROLES,
    TalkTask,
    draw_replies,
    make_task,
    read_talk,
)
from llm_learn.tokenizers import BPETokenizer
from llm_learn.train import IGNORE_INDEX

TINY = Plan(
    num_words=300,
    vocab_size=400,
    d_model=32,
    num_layers=1,
    num_heads=2,
    pretrain_steps=3,
    pretrain_batch_size=2,
    sft_steps=3,
    sft_batch_size=4,
    rl_rounds=2,
    num_prompts=2,
    num_samples=4,
    student_d_model=32,
    student_num_layers=1,
    num_distill_samples=8,
    distill_steps=3,
)


@pytest.fixture(scope="module")
def task() -> TalkTask:
    return make_task(TINY.num_words, TINY.vocab_size)


def small(task, d_model=32, num_layers=1):
    torch.manual_seed(0)
    return make_llama(task.tokenizer.vocab_size, 64, d_model, num_layers, 2)


class TestPlan:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"rl_rounds": 0}, "rl_rounds is 0: expected rl_rounds >= 1"),
            ({"beta": -0.1}, "beta is -0.1: expected beta >= 0"),
            (
                {"rl_learning_rate": float("nan")},
                "rl_learning_rate is nan: expected rl_learning_rate >= 0",
            ),
            ({"num_samples": 1}, "num_samples is 1: expected num_samples >= 2"),
        ],
    )
    def test_what_cannot_work_is_refused(self, change, message):
        with pytest.raises(ValueError, match=message):
            replace(TINY, **change)

    def test_a_model_begins_as_uncertain_as_a_uniform_choice(self, task):
        model = small(task, d_model=96, num_layers=3)
        ids = torch.randint(400, (4, 64))
        loss = next_token_loss(model, (ids[:, :-1], ids[:, 1:])).item()
        assert abs(loss - torch.tensor(400.0).log().item()) < 1

    def test_widths_fit_groups_of_32(self):
        for width in (64, 96, 192, 384):
            assert make_llama(300, 64, width, 1, 4).config.d_ff % 32 == 0


class TestLearning:
    def test_the_loss_of_a_repeated_batch_falls_and_all_weights_move(self, task):
        model = small(task)
        before = copy.deepcopy(model)
        x = torch.randint(400, (4, 16))
        batch = (x[:, :-1], x[:, 1:])
        losses = train_on(
            model, next_token_loss, iter([batch] * 12), 12, learning_rate=0.01
        )
        assert losses[-1] < losses[0] - 1
        for old, new in zip(before.parameters(), model.parameters(), strict=True):
            assert not torch.equal(old, new)

    def test_ignored_targets_do_not_count(self, task):
        model = small(task)
        x = torch.randint(400, (2, 6))
        y = x.clone()
        y[:, :3] = IGNORE_INDEX
        logps = model(x).log_softmax(-1)[:, 3:]
        expected = -logps.gather(2, x[:, 3:, None]).mean()
        torch.testing.assert_close(next_token_loss(model, (x, y)), expected)

    def test_a_loss_in_few_bits_is_summed_in_float32(self, task):
        model = small(task).bfloat16()
        x, y = torch.randint(400, (2, 8, 16))
        expected = F.cross_entropy(model(x).float().flatten(0, 1), y.flatten())
        loss = next_token_loss(model, (x, y))
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)

    def test_batches_depend_on_the_seed_alone(self, task):
        ids = torch.arange(300)
        for make in (
            lambda seed: text_batches(ids, 4, 8, seed),
            lambda seed: example_batches(
                task.examples(task.talk.turns[:9]), 4, task.eos_id, seed
            ),
        ):
            first, again, other = (next(make(seed))[0] for seed in (1, 1, 2))
            assert torch.equal(first, again)
            assert first.shape != other.shape or not torch.equal(first, other)

    def test_an_epoch_has_every_example_once_whoever_shares_it(self, task):
        examples = task.examples(task.talk.turns[:8])
        seen = []
        for rank in range(2):
            batches = example_batches(
                examples, 4, task.eos_id, 0, DistributedContext(rank, 2)
            )
            for _ in range(2):
                x, _ = next(batches)
                assert len(x) == 2
                seen += [tuple(i for i in row if i != task.eos_id) for row in x.tolist()]
        expected = [tuple(i for i in ids[:-1] if i != task.eos_id) for ids, _ in examples]
        assert sorted(seen) == sorted(expected)

    def test_what_cannot_be_shared_is_refused(self):
        message = "pretrain_batch_size is 3, processes is 2: expected pretrain_batch_size % processes == 0"
        with pytest.raises(ValueError, match=message):
            local_batch_size("pretrain_batch_size", 3, DistributedContext(0, 2))

    @pytest.mark.parametrize(
        ("stage", "name"),
        [(reinforce, "num_prompts"), (distillation_batches, "sft_batch_size")],
    )
    def test_a_stage_says_what_it_cannot_share(self, task, monkeypatch, stage, name):
        monkeypatch.setattr(pipeline_stages, "wrap_ddp", lambda model, dist_context: model)
        plan = replace(TINY, **{name: 3})
        with pytest.raises(
            ValueError, match=f"^{name} is 3, processes is 2: expected {name} %"
        ):
            _ = next(stage(small(task), task, plan, 0, DistributedContext(0, 2)))


class TestReinforcement:
    @pytest.mark.slow
    def test_replies_that_are_rewarded_become_likelier(self, task, monkeypatch):
        """With a rule that only the id wanted keeps, it is soon all that is written."""
        wanted = task.tokenizer.encode(".")[0]

        def kept(self, asked, written):
            share = ((written.replies == wanted) & written.mask).sum(1) / written.mask.sum(
                1
            )
            return share[:, None].expand(-1, 4)

        monkeypatch.setattr(TalkTask, "kept", kept)
        plan = replace(
            TINY,
            rl_rounds=25,
            num_prompts=4,
            num_samples=8,
            beta=0.0,
            rl_learning_rate=0.02,
        )
        rounds = list(reinforce(small(task), task, plan, seed=0))
        assert rounds[0].kept[0] < 0.1 and rounds[-1].kept[0] > 0.8

    def test_a_high_price_keeps_the_model_where_it_was(self, task, monkeypatch):
        wanted = task.tokenizer.encode(".")[0]

        def kept(self, asked, written):
            share = ((written.replies == wanted) & written.mask).sum(1) / written.mask.sum(
                1
            )
            return share[:, None].expand(-1, 4)

        monkeypatch.setattr(TalkTask, "kept", kept)
        distances = {}
        for beta in (0.0, 1.0):
            plan = replace(
                TINY,
                rl_rounds=15,
                num_prompts=4,
                num_samples=8,
                beta=beta,
                rl_learning_rate=0.02,
            )
            distances[beta] = list(reinforce(small(task), task, plan, seed=0))[-1].kl
        assert distances[1.0] < distances[0.0] / 4

    def test_a_round_is_grpo_with_the_share_of_rules(self, task):
        """The first update's gradient, from its definition: advantages times the gradient of log-probabilities."""
        model = small(task)
        plan = replace(TINY, rl_rounds=1, beta=0.0, rl_learning_rate=1e-9)
        trained = copy.deepcopy(model)
        (found,) = reinforce(trained, task, plan, seed=3)
        rng, generator = random.Random(3), torch.Generator().manual_seed(3)
        asked = [
            a for a in task.ask(plan.num_prompts, rng) for _ in range(plan.num_samples)
        ]
        written = draw_replies(model, task.prompts(asked), task.eos_id, generator=generator)
        kept = task.kept(asked, written)
        assert found.kept == pytest.approx(kept.mean(0).tolist())
        assert found.all_kept == pytest.approx(float(kept.all(1).float().mean()))
        assert len(found.kept) == len(FORMAT_RULES) and found.kl == 0
        rewards = kept.mean(1).view(plan.num_prompts, plan.num_samples)
        deviations = rewards.std(1, keepdim=True) + 1e-4
        advantages = ((rewards - rewards.mean(1, keepdim=True)) / deviations).view(-1)
        logps = written.logps_by(model)
        means = (logps * written.mask).sum(1) / written.mask.sum(1)
        grads = torch.autograd.grad(-(advantages * means).mean(), [*model.parameters()])
        norm = torch.cat([g.flatten() for g in grads]).norm()
        for p, g in zip(trained.parameters(), grads, strict=True):
            clipped = g / norm.clamp(min=1)
            torch.testing.assert_close(p.grad, clipped, atol=1e-5, rtol=1e-3)


class TestDistillation:
    def test_the_loss_is_zero_for_the_teacher_itself_and_falls_for_a_student(self, task):
        teacher, student = small(task), small(task, num_layers=2)
        written = distillation_batches(teacher, task, TINY, seed=0)
        assert teacher_loss(teacher)(teacher, next(written)).item() == pytest.approx(
            0, abs=1e-5
        )
        plan = replace(TINY, distill_steps=20)
        again = distillation_batches(teacher, task, plan, seed=0)
        losses = train_on(
            student, teacher_loss(teacher), again, plan.distill_steps, learning_rate=0.02
        )
        assert losses[-1] < losses[0] / 2

    def test_what_stands_behind_the_end_does_not_count(self, task):
        teacher, student = small(task), small(task, num_layers=2)
        lesson = next(distillation_batches(teacher, task, TINY, seed=0))
        before = teacher_loss(teacher)(student, lesson)
        mask = lesson.mask.clone()
        mask[:, 2:] = False
        fewer = teacher_loss(teacher)(student, replace(lesson, mask=mask))
        assert not torch.isclose(before, fewer)
        lesson.replies[~lesson.mask] = 0
        torch.testing.assert_close(teacher_loss(teacher)(student, lesson), before)


def test_flops_count_six_operations_a_weight_learned_from_and_two_read():
    plan = replace(TINY, pretrain_steps=5, pretrain_batch_size=3)
    model = make_llama(400, 64, 32, 1, 2)
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    found = flops(plan, prompt=4)
    assert found["pre-training"] == 6 * weights * 5 * 3 * 64
    assert found["tuning"] == 6 * weights * 3 * 4 * 20
    assert found["reinforcement"] == 10 * weights * 2 * 2 * 4 * 20
    assert found["distillation"] == 2 * weights * 8 * 20 + 8 * weights * 3 * 4 * 20


def flags(plan: Plan) -> list[str]:
    default = Plan()
    return [
        part
        for name, value in asdict(plan).items()
        if value != getattr(default, name)
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]


class TestCommand:
    @pytest.mark.slow
    def test_it_runs_every_stage_saves_and_reports(self, tmp_path, capsys):
        out = tmp_path / "run"
        assert main(["--out", str(out), *flags(TINY)]) == 0
        said = capsys.readouterr().out
        report = json.loads((out / "report.json").read_text())
        stages = ["pre-training", "tuning", "reinforcement", "distillation"]
        assert [row["stage"] for row in report] == stages
        for row in report:
            assert (out / f"{row['stage']}.safetensors").is_file()
            assert row["flops"] > 0 and row["seconds"] > 0
            assert f"{row['stage']:<14} {row['flops']:9.2e} floating-point" in said
        assert "(ask) How now! what news? — " in said
        assert not list(out.glob("*.tmp*"))
        # Again: nothing is trained, and the measures are the same.
        before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.safetensors")}
        assert main(["--out", str(out), *flags(TINY)]) == 0
        assert before == {p.name: p.stat().st_mtime_ns for p in out.glob("*.safetensors")}
        for old, new in zip(
            report, json.loads((out / "report.json").read_text()), strict=True
        ):
            assert new == old | {"seconds": None}

    def test_it_goes_on_with_the_tokenizer_that_it_has_written(
        self, tmp_path, capsys, monkeypatch
    ):
        out = tmp_path / "run"
        assert main(["--out", str(out), *flags(TINY)]) == 0
        report = json.loads((out / "report.json").read_text())
        talk = read_talk(TINY.num_words)
        # As another version of a library might learn it, from the same plays.
        other = BPETokenizer.train(talk.text[::-1], 400, (*ROLES, REPLY_END))
        monkeypatch.setattr(pipeline_command, "make_task", lambda *_: TalkTask(talk, other))
        assert main(["--out", str(out), *flags(TINY)]) == 0
        assert json.loads((out / "report.json").read_text()) == [
            row | {"seconds": None} for row in report
        ]

    def test_a_folder_is_begun_completely_or_not_at_all(
        self, tmp_path, capsys, monkeypatch
    ):
        def fail(*_):
            raise OSError(28, "No space left on device")

        out = tmp_path / "run"
        with monkeypatch.context() as patch:
            patch.setattr(run_folder, "write_json", fail)
            assert main(["--out", str(out), *flags(TINY)]) == 2
        assert "error: [Errno 28] No space left" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())
        out.mkdir()  # empty: it can be begun
        PipelineRun(out, TINY, 0, DistributedContext())
        assert {path.name for path in out.iterdir()} == {"tokenizer.json", "plan.json"}

    def test_the_data_that_cannot_be_had_is_an_error_and_no_traceback(
        self, tmp_path, capsys, monkeypatch
    ):
        def fail(*_):
            raise AssetError("'shakespeare' cannot be downloaded: connect to the network")

        monkeypatch.setattr(pipeline_command, "make_task", fail)
        assert main(["--out", str(tmp_path / "run"), *flags(TINY)]) == 2
        said = capsys.readouterr().err
        assert said == (
            "error: 'shakespeare' cannot be downloaded: connect to the network\n"
        )

    def test_it_is_the_page_s_pipeline(self, tmp_path, task):
        """The same seed gives the weights that the functions give."""
        out = tmp_path / "run"
        assert main(["--out", str(out), *flags(TINY)]) == 0
        torch.manual_seed(0)
        model = make_llama(TINY.vocab_size, TINY.context_length, 32, 1, 2)
        ids = torch.tensor(task.tokenizer.encode(task.talk.text))
        batches = text_batches(ids, TINY.pretrain_batch_size, TINY.context_length, 0)
        _ = train_on(
            model, next_token_loss, batches, TINY.pretrain_steps, learning_rate=0.01
        )
        saved = load_file(out / "pre-training.safetensors")
        for name, p in model.state_dict().items():
            assert torch.equal(p, saved[name])

        # It predicts for its own prompts.
        prompts = [loss_mask.index(True) for _, loss_mask in task.examples(task.talk.turns)]
        predicted = flops(TINY, sum(prompts) / len(prompts))
        report = json.loads((out / "report.json").read_text())
        assert {row["stage"]: row["flops"] for row in report} == predicted

    def test_what_it_says_in_the_end_is_likeliest(self, task):
        model = small(task)
        prompts = task.prompts([("ask", "Good night.")])
        likeliest = draw_replies(
            model, prompts, task.eos_id, generator=torch.Generator(), temperature=0.0
        )
        # A model that has learned nothing seldom ends, and a reply without its end is no text.
        as_ids = SimpleNamespace(
            prompts=task.prompts,
            eos_id=task.eos_id,
            texts=lambda written: written.replies.tolist(),
        )
        run = SimpleNamespace(task=as_ids, dist_context=DistributedContext(0, 1))
        assert PipelineRun.reply(run, model, "ask", "Good night.") == (
            likeliest.replies[0].tolist()
        )

    def test_large_begins_from_the_plan_for_a_gpu(self, monkeypatch):
        begun = []

        class Recorder:
            def __init__(self, folder, plan, seed, dist_context):
                begun.append((folder, plan, seed))

            def go(self):
                pass

        monkeypatch.setattr(pipeline_command, "PipelineRun", Recorder)
        assert (
            main(["--out", "x"]) == main(["--out", "x", "--large", "--rl-rounds", "7"]) == 0
        )
        assert begun == [
            (Path("x"), Plan(), 0),
            (Path("x"), replace(GPU_PLAN, rl_rounds=7), 0),
        ]

    def test_every_tenth_round_is_told(self):
        lines = []
        rounds = [Round([0.5] * len(FORMAT_RULES), 0.25, kl) for kl in range(1, 26)]
        PipelineRun.follow(SimpleNamespace(say=lines.append), rounds)
        assert lines == [
            "  round 10: 25.0% keep all rules, 10.0 nats from the reference model",
            "  round 20: 25.0% keep all rules, 20.0 nats from the reference model",
        ]

    @pytest.mark.slow
    def test_an_interrupted_run_goes_on(self, tmp_path, monkeypatch, capsys):
        out = tmp_path / "run"
        broken = pytest.MonkeyPatch()
        broken.setattr(
            "llm_learn.apps.pipeline_command.reinforce",
            lambda *_, **__: (_ for _ in ()).throw(OSError("no space")),
        )
        assert main(["--out", str(out), *flags(TINY)]) == 2
        assert "error: no space" in capsys.readouterr().err
        broken.undo()
        assert {p.stem for p in out.glob("*.safetensors")} == {"pre-training", "tuning"}
        assert main(["--out", str(out), *flags(TINY)]) == 0
        whole = tmp_path / "whole"
        assert main(["--out", str(whole), *flags(TINY)]) == 0
        for path in whole.glob("*.safetensors"):
            ours, theirs = load_file(path), load_file(out / path.name)
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--rl-rounds", "0"], "rl_rounds is 0: expected rl_rounds >= 1"),
            (["--num-heads", "3"], "d_model is 32"),
            (["--vocab-size", "100"], "vocab_size is 100"),
        ],
    )
    def test_bad_options_are_refused_before_anything_is_written(
        self, tmp_path, capsys, more, message
    ):
        out = tmp_path / "run"
        assert main(["--out", str(out), *flags(TINY), *more]) == 2
        assert f"error: {message}" in capsys.readouterr().err
        assert not out.exists()

    def test_another_plan_or_a_folder_of_something_else_is_refused(self, tmp_path, capsys):
        out = tmp_path / "run"
        out.mkdir()
        (out / "letter.txt").write_text("dear")
        assert main(["--out", str(out), *flags(TINY)]) == 2
        assert "it exists, and holds no run" in capsys.readouterr().err
        (out / "letter.txt").unlink()
        (out / "plan.json").write_text(json.dumps(asdict(TINY) | {"seed": 0}))
        assert main(["--out", str(out), *flags(TINY), "--seed", "1"]) == 2
        assert "seed is 1: the run in" in capsys.readouterr().err

    def test_every_number_of_a_plan_is_an_option(self):
        given = vars(parser().parse_args(["--out", "x", *flags(GPU_PLAN)]))
        assert (
            replace(Plan(), **{f.name: given.get(f.name, f.default) for f in fields(Plan)})
            == GPU_PLAN
        )

    @pytest.mark.slow
    def test_torchrun_trains_one_model_in_two_processes(self, tmp_path):
        out = tmp_path / "run"
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        done = subprocess.run(
            [
                sys.executable,
                *launch,
                "-m",
                "llm_learn.pipeline",
                "--out",
                str(out),
                *flags(TINY),
            ],
            env=os.environ
            | {
                "PYTHONPATH": str(Path(pipeline_stages.__file__).parents[2]),
                "TQDM_DISABLE": "1",
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("reading the plays") == 1
        assert len(json.loads((out / "report.json").read_text())) == 4


def test_two_processes_average_their_gradients(task):
    """Pre-training by two processes is training on both their batches."""
    ids = torch.tensor(task.tokenizer.encode(task.talk.text))

    def work() -> list[float]:
        dist_context = DistributedContext(torch.distributed.get_rank(), 2)
        model = small(task)
        _ = train_on(
            model,
            next_token_loss,
            text_batches(ids, 4, 16, 0, dist_context),
            2,
            learning_rate=0.01,
            dist_context=dist_context,
        )
        return [p.sum().item() for p in model.parameters()]

    first, second = launch_processes(work)
    assert first == second
    shares = [text_batches(ids, 4, 16, 0, DistributedContext(rank, 2)) for rank in range(2)]
    both = (
        tuple(torch.cat(parts) for parts in zip(*pair, strict=True))
        for pair in zip(*shares, strict=True)
    )
    model = small(task)
    _ = train_on(model, next_token_loss, both, 2, learning_rate=0.01)
    assert first == pytest.approx([p.sum().item() for p in model.parameters()], abs=1e-3)
