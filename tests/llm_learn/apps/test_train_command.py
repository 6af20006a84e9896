"""`python -m llm_learn.train`: trains, saves, goes on bit by bit, stops politely, and says what is wrong."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from llm_learn.apps import train_command, training_run
from llm_learn.apps.train_command import main, parser
from llm_learn.apps.training_run import TrainingRun
from llm_learn.assets import AssetError
from llm_learn.checkpoint import save_checkpoint
from llm_learn.distributed import DistributedContext, launch_processes
from llm_learn.optim import cosine_schedule
from llm_learn.train import evaluate_loss

SMALL = {
    "context_length": 8, "d_model": 16, "num_layers": 1, "num_heads": 2, "max_steps": 12, "batch_size": 4,
    "warmup_steps": 2, "eval_every": 5, "eval_ids": 60, "checkpoint_every": 4,
}  # fmt: skip


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(
        "the cat sat on the mat and the dog lay on the rug. " * 40, encoding="utf-8"
    )
    return path


def arguments(out: Path, text: Path | None = None, **changes) -> list[str]:
    flags = ["--out", str(out)] + (["--text", str(text)] if text else [])
    for name, value in (SMALL | changes).items():
        flags += [f"--{name.replace('_', '-')}", str(value)]
    return flags


def rows(folder: Path) -> list[list[str]]:
    with (folder / "losses.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "tensors.safetensors")


@pytest.mark.parametrize("model", ["gpt", "llama"])
@pytest.mark.parametrize("vocab_size", [0, 270])
def test_a_run_leaves_all_that_it_promises(tmp_path, text, capsys, model, vocab_size):
    out = tmp_path / "run"
    assert main(arguments(out, text, model=model, vocab_size=vocab_size)) == 0
    settings = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert settings.keys() == {"text", *train_command.OPTIONS}
    assert settings["model"] == model and settings["d_model"] == 16
    # Two of three checkpoints are kept.
    assert [p.name for p in sorted(out.glob("step-*"))] == [
        "step-00000008",
        "step-00000012",
    ]
    header, *table = rows(out)
    assert header == ["updates", "train_loss", "validation_loss"]
    assert [row[0] for row in table] == [str(step) for step in range(13)]
    assert [row[0] for row in table if row[2]] == ["0", "5", "10", "12"]
    assert (out / "losses.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    assert json.dumps(settings, indent=1) in printed
    assert f"validation loss {float(table[-1][2]):.4f} nats per token" in printed
    assert not list(out.glob("*tmp*"))


@pytest.mark.slow
def test_a_run_learns(tmp_path, text):
    out = tmp_path / "run"
    assert main(arguments(out, text, max_steps=150, learning_rate=0.01)) == 0
    losses = [float(row[2]) for row in rows(out)[1:] if row[2]]
    assert losses[-1] < 0.5 * losses[0]  # 51 characters over and over


@pytest.mark.parametrize("stop_after", [3, 4, 5, 9])
def test_an_interrupted_run_ends_as_the_other_did(
    tmp_path, text, monkeypatch, capsys, stop_after
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(arguments(whole, text)) == 0
    update, done = TrainingRun.update, []

    def update_and_stop(run):
        done.append(run.step)
        if len(done) == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(run)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "update", update_and_stop)
        assert main(arguments(broken, text)) == 128 + signal.SIGTERM
    assert f"stopped after update {stop_after}: go on with" in capsys.readouterr().out
    assert main(["--out", str(broken), "--resume"]) == 0
    assert f"resuming after update {stop_after}" in capsys.readouterr().out
    a, b = (weights(folder / "step-00000012") for folder in (whole, broken))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert rows(whole) == rows(broken)


def test_the_data_that_cannot_be_had_is_an_error_and_no_traceback(
    tmp_path, monkeypatch, capsys
):
    def fail():
        raise AssetError("'shakespeare' cannot be downloaded: connect to the network")

    monkeypatch.setattr(train_command, "shakespeare", fail)
    assert main(arguments(tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert said == "error: 'shakespeare' cannot be downloaded: connect to the network\n"
    assert not (tmp_path / "run").exists()


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("part", ["tensors.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(
    tmp_path, text, capsys, part
):
    whole, out = tmp_path / "whole", tmp_path / "run"
    for folder in (whole, out):
        assert main(arguments(folder, text)) == 0
    latest, before = out / "step-00000012", out / "step-00000008"
    halve(latest / part)
    capsys.readouterr()
    assert main(["--out", str(out), "--resume"]) == 2
    error = capsys.readouterr().err
    assert f"error: folder is {str(latest)!r}: it holds no checkpoint" in error
    assert f"delete that folder, and --resume goes on from {before}" in error
    shutil.rmtree(latest)
    assert main(["--out", str(out), "--resume"]) == 0
    assert (out / "losses.csv").read_bytes() == (whole / "losses.csv").read_bytes()
    a, b = (weights(folder / "step-00000012") for folder in (whole, out))
    assert all(torch.equal(a[name], b[name]) for name in a)
    # Without any other, the run begins again.
    shutil.rmtree(before)
    halve(latest / part)
    assert main(["--out", str(out), "--resume"]) == 2
    assert "--resume goes on from the beginning" in capsys.readouterr().err


def test_checkpoints_do_not_grow_and_losses_are_appended(tmp_path, text, monkeypatch):
    out, written, write = tmp_path / "run", [], TrainingRun.write_losses

    def write_and_look(run):
        write(run)
        path = run.folder / "losses.csv"
        written.append((path.stat().st_ino, path.read_bytes()))

    monkeypatch.setattr(TrainingRun, "write_losses", write_and_look)
    changes = {"max_steps": 500, "checkpoint_every": 50, "keep": 10, "eval_every": 25}
    assert main(arguments(out, text, **changes)) == 0
    assert len(written) == 10
    for (inode, before), (same, after) in pairwise(written):
        # The same file, of which the last row alone is written again.
        assert same == inode
        assert after.startswith(before[: before.rstrip().rindex(b"\n") + 1])
    # Before, 50 losses took 1 kB and 500 took 10 kB.
    sizes = [(path / "state.json").stat().st_size for path in sorted(out.glob("step-*"))]
    assert len(sizes) == 10 and max(sizes) - min(sizes) < 64
    assert [row[0] for row in rows(out)[1:]] == [str(step) for step in range(501)]
    assert [int(row[0]) for row in rows(out)[1:] if row[2]] == list(range(0, 501, 25))


def losses_after_a_crash(whole: Path, out: Path) -> None:
    """What a run leaves that was killed after its checkpoint at update 8, while it wrote more losses."""
    shutil.copytree(whole, out)
    shutil.rmtree(out / "step-00000012")
    lines = (whole / "losses.csv").read_bytes().splitlines(keepends=True)
    (out / "losses.csv").write_bytes(b"".join(lines[:9]))  # to update 7


def test_a_run_killed_while_it_writes_losses_ends_as_the_other_did(tmp_path, text):
    whole = tmp_path / "whole"
    assert main(arguments(whole, text)) == 0
    for name, more in (("a", b""), ("b", b"8,1.2"), ("c", b"8,9.5,\r\n9,9.5,\r\n10,")):
        out = tmp_path / name
        losses_after_a_crash(whole, out)
        with (out / "losses.csv").open("ab") as file:
            file.write(more)
        assert main(["--out", str(out), "--resume"]) == 0
        assert (out / "losses.csv").read_bytes() == (whole / "losses.csv").read_bytes()


def test_a_run_without_its_losses_says_what_it_needs(tmp_path, text, capsys):
    out = tmp_path / "run"
    assert main(arguments(out, text)) == 0
    losses = (out / "losses.csv").read_text(encoding="utf-8")
    for damaged in (None, "updates,train_loss\n", losses.replace("\n5,", "\n50,")):
        (out / "losses.csv").unlink(missing_ok=True)
        if damaged is not None:
            (out / "losses.csv").write_text(damaged, encoding="utf-8")
        assert main(["--out", str(out), "--resume"]) == 2
        error = capsys.readouterr().err
        assert f"error: {out / 'losses.csv'} must hold the losses of the first 11" in error


def test_losses_that_are_changed_during_a_run_are_written_again(
    tmp_path, text, monkeypatch
):
    whole, out, update = tmp_path / "whole", tmp_path / "run", TrainingRun.update
    assert main(arguments(whole, text)) == 0

    def update_and_change(run):
        if run.step == 5:
            (out / "losses.csv").unlink()
        if run.step == 9:
            (out / "losses.csv").write_text("mine", encoding="utf-8")
        return update(run)

    monkeypatch.setattr(TrainingRun, "update", update_and_change)
    assert main(arguments(out, text)) == 0
    assert (out / "losses.csv").read_bytes() == (whole / "losses.csv").read_bytes()


def test_resuming_a_finished_run_changes_nothing(tmp_path, text):
    out = tmp_path / "run"
    assert main(arguments(out, text)) == 0
    before = {
        p: p.read_bytes() for p in out.rglob("*") if p.suffix in (".csv", ".safetensors")
    }
    assert main(["--out", str(out), "--resume"]) == 0
    assert before == {p: p.read_bytes() for p in before}


def test_options_may_be_repeated_on_resuming_and_not_changed(tmp_path, text, capsys):
    out = tmp_path / "run"
    assert main(arguments(out, text)) == 0
    assert main(["--resume", *arguments(out, text)]) == 0
    capsys.readouterr()
    assert main(["--resume", *arguments(out, text, batch_size=5)]) == 2
    message = f"error: batch_size is 5: the run in {str(out)!r} was begun with 4\n"
    assert capsys.readouterr().err == message


def test_a_checkpoint_that_was_not_finished_is_no_checkpoint(tmp_path, text):
    out = tmp_path / "run"
    assert main(arguments(out, text)) == 0
    (out / "step-00000099.123.tmp").mkdir()
    (out / "step-00000008-best").mkdir()  # a copy of the user's
    assert main(["--out", str(out), "--resume"]) == 0
    assert not (out / "step-00000099.123.tmp").exists()
    assert (out / "step-00000008-best").exists()


def test_the_seed_decides(tmp_path, text):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert main(arguments(tmp_path / name, text, seed=seed)) == 0
    assert rows(tmp_path / "a") == rows(tmp_path / "b") != rows(tmp_path / "c")
    run = TrainingRun(tmp_path / "c", train_command.saved_settings(tmp_path / "c", {}))
    assert run.loader.identity["seed"] == 2


def test_micro_batches_are_taken(tmp_path, text, monkeypatch):
    sizes, step = [], training_run.train_step

    def spy(model, optimizers, batches, **others):
        sizes.append([len(x) for x, _ in batches])
        return step(model, optimizers, batches, **others)

    monkeypatch.setattr(training_run, "train_step", spy)
    assert main(arguments(tmp_path / "run", text, micro_batch_size=3)) == 0
    assert sizes == [[3, 1]] * 12


def test_the_rate_follows_its_schedule_and_gradients_their_norm(
    tmp_path, text, monkeypatch
):
    taken, step = [], training_run.train_step

    def spy(*given, factor, max_grad_norm):
        taken.append((factor, max_grad_norm))
        return step(*given, factor=factor, max_grad_norm=max_grad_norm)

    monkeypatch.setattr(training_run, "train_step", spy)
    out = tmp_path / "run"
    flags = arguments(out, text, warmup_steps=4, floor=0.25, max_grad_norm=0.5)
    assert main(flags) == 0
    learning_rates = [
        cosine_schedule(n, max_steps=12, warmup_steps=4, floor=0.25) for n in range(12)
    ]
    assert (
        taken == [(learning_rate, 0.5) for learning_rate in learning_rates]
        and len(set(learning_rates)) > 6
    )


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path, text):
    out = tmp_path / "run"
    flags = arguments(out, text, max_steps=100_000, checkpoint_every=20, eval_every=50_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "llm_learn.train", *flags],
        env=os.environ
        | {"PYTHONPATH": str(Path(train_command.__file__).parents[2]), "TQDM_DISABLE": "1"},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    try:
        while not list(out.glob("step-00000???")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    run = TrainingRun(out, train_command.saved_settings(out, {}))
    assert run.step and run.step % 20 == 0
    assert run.loader.windows_read == 4 * run.step


def go_on(
    out: Path, world_size: int, parallel: str, monkeypatch, stop_after: int = 0
) -> list:
    """Trains the run in that folder by several processes; one of them may be told to stop after some updates."""
    update, done = TrainingRun.update, []

    def update_and_stop(run):
        done.append(run.step)
        if len(done) == stop_after and run.dist_context.rank == world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(run)

    def work():
        dist_context = DistributedContext(dist.get_rank(), world_size)
        run = TrainingRun(
            out, train_command.saved_settings(out, {}), dist_context, parallel
        )
        return run.go()

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "update", update_and_stop)
        return launch_processes(work, world_size)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_several_processes_train_as_one_and_may_take_turns_with_it(
    tmp_path, text, monkeypatch, parallel, world_size
):
    alone, out = tmp_path / "alone", tmp_path / "together"
    assert main(arguments(alone, text, micro_batch_size=1)) == 0
    # Two processes begin, others go on, and one alone ends what they began.
    train_command.begin(out, train_command.saved_settings(alone, {}))
    status = 128 + signal.SIGTERM
    assert go_on(out, 2, parallel, monkeypatch, stop_after=3) == [status] * 2
    found = go_on(out, world_size, parallel, monkeypatch, stop_after=6)
    assert found == [status] * world_size
    assert [row[0] for row in rows(out)[1:]] == [str(step) for step in range(10)]
    assert main(["--out", str(out), "--resume"]) == 0
    assert len(rows(out)) == len(rows(alone))
    for ours, theirs in zip(rows(out)[1:], rows(alone)[1:], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            # float32; sums in another order, through twelve updates.
            assert (a, b) == ("", "") or float(a) == pytest.approx(float(b), abs=1e-5)
    a, b = (weights(folder / "step-00000012") for folder in (out, alone))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        # 7 windows: 2 for each of 3 processes, and one for all of them.
        ({"micro_batch_size": 1}, [1, 1, 1]),
        ({}, [2, 1]),
        ({"eval_ids": 17}, [2]),  # 2 windows, which 3 processes cannot share
        ({"eval_ids": 49}, [2]),
    ],
)
def test_processes_share_an_evaluation_in_parts_of_a_micro_batch(
    tmp_path, text, parallel, changes, sizes
):
    out = tmp_path / "run"
    defaults = {name: default for name, (default, _) in train_command.OPTIONS.items()}
    shape = {"batch_size": 6, "text": [str(text)]}
    settings = defaults | SMALL | shape | changes
    train_command.begin(out, settings)

    def work():
        run = TrainingRun(out, settings, DistributedContext(dist.get_rank(), 3), parallel)
        sizes = []
        run.model.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
        run.evaluate()
        return sizes, run.history.eval_losses

    run = TrainingRun(out, settings)
    wanted = evaluate_loss(run.model, run.val_ids)
    for found, losses in launch_processes(work, 3):
        assert found == sizes
        assert losses == [pytest.approx(wanted, abs=1e-6)]


def test_an_error_of_the_first_process_ends_all(tmp_path, text, monkeypatch):
    out = tmp_path / "run"
    defaults = {name: default for name, (default, _) in train_command.OPTIONS.items()}
    train_command.begin(out, defaults | SMALL | {"text": [str(text)]})

    def fail(folder, *others):
        raise OSError(28, "No space left on device")

    def work():
        monkeypatch.setattr(training_run, "save_checkpoint", fail)
        dist_context = DistributedContext(dist.get_rank(), 2)
        run = TrainingRun(out, train_command.saved_settings(out, {}), dist_context)
        with pytest.raises(OSError, match="No space left"):
            run.go()
        return run.step

    assert launch_processes(work) == [4, 4]
    assert not list(out.glob("step-*"))


def torchrun(out: Path, *flags: str) -> subprocess.Popen:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen(
        [sys.executable, *launch, "-m", "llm_learn.train", "--out", str(out), *flags],
        env=os.environ
        | {"PYTHONPATH": str(Path(train_command.__file__).parents[2]), "TQDM_DISABLE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_killing_one_of_two_processes_ends_the_run_with_a_checkpoint_that_resumes(
    tmp_path, text, parallel
):
    out = tmp_path / "run"
    changes = {"max_steps": 100_000, "checkpoint_every": 20, "eval_every": 50_000}
    _, _, *flags = arguments(out, text, **changes)
    process = torchrun(out, "--parallel", parallel, *flags)
    deadline = time.monotonic() + 120
    while not list(out.glob("step-00000???")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    (*_, victim) = psutil.Process(process.pid).children()
    victim.kill()
    printed, _ = process.communicate(timeout=60)
    assert process.returncode
    (message,) = (line for line in printed.splitlines() if line.startswith("error: "))
    assert re.search(
        rf"process \d of 2 cannot reach another one any more, .* is complete: go on with --out {out} --resume",
        message,
    )
    run = TrainingRun(out, train_command.saved_settings(out, {}))
    assert run.step and run.step % 20 == 0
    assert run.loader.windows_read == 4 * run.step


@pytest.mark.slow
def test_processes_that_cannot_share_a_batch_are_refused_before_anything_is_written(
    tmp_path, text
):
    out = tmp_path / "run"
    _, _, *flags = arguments(out, text, batch_size=3)
    process = torchrun(out, *flags)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode
    said = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert said == [
        "error: batch_size is 3, processes is 2: expected batch_size % processes == 0"
    ]
    assert not out.exists()


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(
    tmp_path, text, monkeypatch, capsys
):
    saved = []

    def fail(folder, *others):
        if saved:
            raise OSError(28, "No space left on device")
        saved.append(folder)
        save_checkpoint(folder, *others)

    monkeypatch.setattr(training_run, "save_checkpoint", fail)
    out = tmp_path / "run"
    assert main(arguments(out, text)) == 2
    assert "error: [Errno 28] No space left on device" in capsys.readouterr().err
    assert [p.name for p in out.glob("step-*")] == ["step-00000004"]


@pytest.mark.parametrize("checkpoint_every", [1, 3, 100])
def test_a_run_that_diverges_ends_and_keeps_no_broken_weights(
    tmp_path, text, monkeypatch, capsys, checkpoint_every
):
    update = TrainingRun.update

    def update_that_breaks(run):
        loss = update(run)
        if run.step == 4:  # the fifth
            run.model.norm.weight.data[0] = float("nan")
        return loss

    monkeypatch.setattr(TrainingRun, "update", update_that_breaks)
    out = tmp_path / "run"
    assert main(arguments(out, text, checkpoint_every=checkpoint_every)) == 2
    error = capsys.readouterr().err
    assert "learning_rate 0.001 may be too high" in error
    # At once: before a checkpoint of that update, or by the next loss.
    assert "after update 5: " in error
    latest = {1: "step-00000004", 3: "step-00000003"}.get(checkpoint_every)
    assert (f"{latest} is from before" if latest else "there is no checkpoint yet") in error
    assert [row[0] for row in rows(out)[1:]] == list("012345")  # the losses that led there
    for folder in out.glob("step-*"):
        assert all(x.isfinite().all() for x in weights(folder).values())


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "d_model is 16, num_heads is 3: expected d_model % (2 * num_heads) == 0"),
        ({"max_steps": 0}, "max_steps is 0: expected max_steps >= 1"),
        ({"warmup_steps": 12}, "warmup_steps is 12"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0: expected learning_rate > 0"),
        ({"val_share": 1.0}, "val_share is 1.0: expected 0 < val_share < 1"),
        ({"keep": 0}, "keep is 0: expected keep >= 1"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0: expected checkpoint_every >= 1"),
        ({"micro_batch_size": -1}, "micro_batch_size is -1"),
        ({"vocab_size": 3}, "vocab_size is 3"),
        ({"seed": -1}, "seed is -1: expected 0 <= seed < 2**63"),
        ({"d_model": 0}, "d_model is 0: expected d_model >= 1"),
        ({"learning_rate": "inf"}, "learning_rate is inf: expected isfinite(learning_rate)"),
        ({"batch_size": 10**12}, "batch_size is 1000000000000, windows_of_text is 229: expected batch_size <= windows_of_text"),
        ({"eval_ids": 8}, "eval_ids is 8, context_length is 8: expected eval_ids > context_length"),
        ({"context_length": 1000, "eval_ids": 2000}, "val_ids_of_text is 204, context_length is 1000: expected val_ids_of_text > context_length"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_written(
    tmp_path, text, capsys, changes, message
):
    out = tmp_path / "run"
    assert main(arguments(out, text, **changes)) == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("flag", "accepted"), [("model", ("gpt", "llama")), ("device", ("cpu", "cuda"))]
)
def test_what_is_no_choice_is_refused_with_the_choices(
    tmp_path, text, capsys, flag, accepted
):
    out = tmp_path / "run"
    with pytest.raises(SystemExit):
        _ = main(arguments(out, text, **{flag: "abacus"}))
    said = capsys.readouterr().err
    assert f"--{flag}: invalid choice: 'abacus'" in said
    assert all(name in said.rpartition("invalid choice")[2] for name in accepted)
    assert not out.exists()


def test_texts_that_cannot_be_read_are_named(tmp_path, capsys):
    missing, binary = tmp_path / "missing.txt", tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\xfa")
    assert main(arguments(tmp_path / "run", missing)) == 2
    assert "missing.txt" in capsys.readouterr().err
    assert main(arguments(tmp_path / "run", binary)) == 2
    assert "binary.txt': it is not UTF-8" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_empty_text_is_not_replaced_by_another(tmp_path, capsys):
    (tmp_path / "empty.txt").touch()
    assert main(arguments(tmp_path / "run", tmp_path / "empty.txt")) == 2
    assert "nothing is in it" in capsys.readouterr().err


def test_an_error_while_a_run_is_begun_leaves_nothing(tmp_path, text, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train_command, "save_tokens", fail)
    assert main(arguments(tmp_path / "run", text)) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


def test_the_last_checkpoint_knows_the_last_evaluation(tmp_path, text):
    out = tmp_path / "run"
    assert main(arguments(out, text)) == 0
    run = TrainingRun(out, train_command.saved_settings(out, {}))
    assert run.history.eval_steps == [0, 5, 10, 12]


def test_a_run_is_neither_overwritten_nor_invented(tmp_path, text, capsys):
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    assert main(arguments(out, text)) == 2
    assert "it exists; choose another" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["notes.txt"]
    assert main(["--out", str(out), "--resume"]) == 2
    assert "there is no run to resume" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(
    tmp_path, text, capsys
):
    out = tmp_path / "run"
    assert main([*arguments(out, text), "--device", "cuda"]) == 2
    said = capsys.readouterr().err
    assert said == "error: device is 'cuda': PyTorch finds no GPU here\n"
    assert not out.exists()


def test_an_unknown_option_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as error:
        main(["--out", "x", "--learning-rte", "1"])
    assert error.value.code == 2 and "--learning-rte" in capsys.readouterr().err


def test_help_names_options_and_defaults():
    shown = " ".join(parser().format_help().split())
    for option in (
        "--out",
        "--resume",
        "--text",
        "--learning-rate",
        "(default: 0.001)",
        "Ctrl-C",
    ):
        assert option in shown
