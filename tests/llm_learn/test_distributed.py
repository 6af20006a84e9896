"""Several processes compute what one computes; errors of one end all."""

import multiprocessing
import os
import threading
import time
from multiprocessing import active_children

import psutil
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from llm_learn import distributed
from llm_learn.assets import AssetError
from llm_learn.distributed import (
    DistributedContext,
    FullStateDict,
    apply_fsdp,
    init_distributed,
    is_connection_error,
    launch_processes,
)
from llm_learn.model import GPT, GPTConfig, Llama, LlamaConfig
from llm_learn.optim import AdamW, decay_groups
from llm_learn.train import IGNORE_INDEX, train_step

SHAPE = {"vocab_size": 13, "context_length": 6, "d_model": 8, "num_layers": 2}
IDS = torch.randint(13, (4, 7), generator=torch.Generator().manual_seed(0))


def make_model(name: str):
    torch.manual_seed(0)
    if name == "gpt":
        return GPT(GPTConfig(**SHAPE, num_heads=2))
    # Its width is odd on purpose: 2 processes cannot divide it evenly.
    return Llama(LlamaConfig(**SHAPE, d_ff=11, num_heads=2, num_kv_heads=1))


def make_optimizer(model) -> AdamW:
    groups = decay_groups(model.named_parameters(), 0.1)
    return AdamW(groups, lr=0.01, betas=(0.9, 0.99))


def steps(model, optimizer, ids: torch.Tensor, number: int) -> list[float]:
    return [
        train_step(model, [optimizer], [(ids[:, :-1], ids[:, 1:])]) for _ in range(number)
    ]


def whole_state(model, optimizer) -> list[torch.Tensor]:
    means = FullStateDict(optimizer).state_dict()["state"].values()
    tensors = [entry[name] for entry in means for name in ("mean", "mean_square")]
    return [t.clone() for t in (*FullStateDict(model).state_dict().values(), *tensors)]


@pytest.mark.parametrize("name", ["gpt", "llama"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_several_processes_train_as_one_does(name, parallel, world_size):
    ids = IDS.repeat(3, 1)  # 12 windows, which 2 and 3 can share

    def work():
        model = make_model(name)
        optimizer = make_optimizer(model)
        steps(model, optimizer, ids, 2)  # so that there is a state to divide
        if parallel == "fsdp":
            apply_fsdp(model, optimizer)
            assert all(isinstance(p, DTensor) for p in model.parameters())
            trained = model
        else:
            trained = DistributedDataParallel(model)
        dist_context = DistributedContext(dist.get_rank(), world_size)
        losses = steps(trained, optimizer, ids[dist_context.rank :: world_size], 3)
        losses = [dist_context.mean([loss])[0] for loss in losses]
        return losses, [t.tolist() for t in whole_state(model, optimizer)]

    model = make_model(name)
    optimizer = make_optimizer(model)
    wanted = steps(model, optimizer, ids, 5)[2:]
    for losses, state in launch_processes(work, world_size):
        assert losses == pytest.approx(wanted, abs=1e-6)
        for ours, alone in zip(state, whole_state(model, optimizer), strict=True):
            # float32; sums in another order, through five updates that divide by their size.
            torch.testing.assert_close(torch.tensor(ours), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("accelerator", ["cuda", "mps", "xpu"])
def test_fsdp_uses_the_models_device_whatever_accelerator_there_is(
    accelerator, monkeypatch
):
    # What fully_shard asks for a default: a Mac answers MPS, a machine with a GPU answers CUDA.
    monkeypatch.setattr(torch._C, "_get_accelerator", lambda *_: torch.device(accelerator))

    def work():
        model = make_model("llama")
        optimizer = make_optimizer(model)
        apply_fsdp(model, optimizer)
        losses = steps(model, optimizer, IDS[dist.get_rank() :: 2], 2)
        kinds = {p.device.type for p in model.parameters()}
        return kinds, DistributedContext(dist.get_rank(), 2).mean(losses)

    model = make_model("llama")
    wanted = steps(model, make_optimizer(model), IDS, 2)
    for kinds, losses in launch_processes(work):
        assert kinds == {"cpu"}
        assert losses == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("targets", [(6, 1), (3, 0)])
def test_processes_with_unequal_targets_take_the_gradient_of_the_whole_batch(
    parallel, targets
):
    """Each process has two micro-batches of one window, in which the first `targets` positions count."""
    x, y = IDS[:, :-1], IDS[:, 1:].clone()
    for rank, count in enumerate(targets):
        y[2 * rank, count:] = IGNORE_INDEX
        y[2 * rank + 1] = IGNORE_INDEX  # a micro-batch without any target

    def gradient(model, batches):
        still = torch.optim.SGD(model.parameters(), lr=0.0)
        loss = train_step(model, [still], batches, max_grad_norm=1e9)
        grads = [p.grad for p in model.parameters()]
        whole = [g.full_tensor() if isinstance(g, DTensor) else g for g in grads]
        return loss, [g.tolist() for g in whole]

    def work():
        model = make_model("llama").double()
        if parallel == "fsdp":
            apply_fsdp(model, torch.optim.SGD(model.parameters(), lr=0.0))
        else:
            model = DistributedDataParallel(model)
        own = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
        return gradient(model, list(zip(x[own].split(1), y[own].split(1), strict=True)))

    wanted_loss, wanted = gradient(make_model("llama").double(), [(x, y)])
    found = launch_processes(work)
    assert sum(loss for loss, _ in found) / 2 == pytest.approx(wanted_loss, abs=1e-12)
    for _, grads in found:
        for ours, theirs in zip(grads, wanted, strict=True):
            # float64; sums in another order.
            torch.testing.assert_close(
                torch.tensor(ours), torch.tensor(theirs), atol=1e-12, rtol=1e-9
            )


def test_processes_without_any_target_all_refuse_the_batch():
    def work():
        model = DistributedDataParallel(make_model("gpt"))
        still = torch.optim.SGD(model.parameters(), lr=0.0)
        x, y = IDS[:, :-1], torch.full((4, 6), IGNORE_INDEX)
        with pytest.raises(ValueError, match="batches has no target"):
            train_step(model, [still], [(x, y)])
        return True

    assert launch_processes(work) == [True, True]


def test_each_process_holds_its_share_only():
    def work():
        model = make_model("gpt")
        whole = sum(p.numel() for p in model.parameters())
        optimizer = make_optimizer(model)
        apply_fsdp(model, optimizer)
        ids = IDS[dist.get_rank() :: 2]
        steps(model, optimizer, ids, 1)
        parts = sum(p.to_local().numel() for p in model.parameters())
        means = sum(s["mean"].to_local().numel() for s in optimizer.state.values())
        return whole, parts, means

    found = launch_processes(work)
    whole = found[0][0]
    assert sum(parts for _, parts, _ in found) == whole
    assert sum(means for _, _, means in found) == whole
    # 13 rows of the embedding cannot be halved.
    assert all(abs(parts - whole / 2) <= SHAPE["d_model"] for _, parts, _ in found)


def test_means_are_taken_over_all_processes():
    def work():
        dist_context = DistributedContext(dist.get_rank(), 3)
        return dist_context.mean(
            [dist_context.rank, 1.5, 2**24 + 1]
        )  # float32 cannot hold the last

    assert launch_processes(work, 3) == [[1.0, 1.5, 2**24 + 1]] * 3
    assert DistributedContext().mean([0.1, 2]) == [0.1, 2]


def test_what_the_first_process_does_all_receive():
    def work():
        dist_context = DistributedContext(dist.get_rank(), 2)
        return dist_context.run_on_main(
            lambda: [dist_context.rank, os.getpid()]
        ), os.getpid()

    (first, pid), (second, other) = launch_processes(work)
    assert first == second == [0, pid] and pid != other
    assert DistributedContext().run_on_main(lambda: 5) == 5


class Unportable(Exception):
    """Cannot be rebuilt from its pickle."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


@pytest.mark.parametrize("kind", [ValueError, OSError, KeyError, AssetError])
def test_an_error_of_the_first_process_is_raised_in_all(kind):
    def fail():
        raise kind("no room")

    def work():
        with pytest.raises(kind, match="no room"):
            DistributedContext(dist.get_rank(), 2).run_on_main(fail)
        return True

    assert launch_processes(work) == [True, True]
    with pytest.raises(kind, match="no room"):
        DistributedContext().run_on_main(fail)


def test_an_exception_that_cannot_travel_is_raised_in_all_as_a_runtime_error():
    def fail():
        raise Unportable("no", "room")

    def work():
        with pytest.raises(RuntimeError, match="Unportable: no room"):
            DistributedContext(dist.get_rank(), 2).run_on_main(fail)
        return True

    assert launch_processes(work) == [True, True]


def test_no_process_leaves_before_all_are_done(monkeypatch, tmp_path):
    """One that leaves while others are still connecting would break their connection."""
    leave = dist.destroy_process_group

    def noted():
        (tmp_path / str(dist.get_rank())).write_text(repr(time.monotonic()))
        leave()

    def work():
        if dist.get_rank() == 0:
            time.sleep(0.3)
        return time.monotonic()

    monkeypatch.setattr(dist, "destroy_process_group", noted)
    done = launch_processes(work)
    left = [float((tmp_path / name).read_text()) for name in "01"]
    assert min(left) >= max(done)


def test_processes_leave_nothing_behind_in_the_caller(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    before = psutil.Process().num_fds()
    named = launch_processes(lambda: os.environ["GLOO_SOCKET_IFNAME"])
    assert named in (["lo"] * 2, ["lo0"] * 2)
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    assert psutil.Process().num_fds() == before
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")  # a name that is set is kept
    with pytest.raises(RuntimeError, match=r"process . failed: .*mine"):
        launch_processes(lambda: None)


def test_a_process_that_cannot_be_started_ends_the_others_and_is_reported(monkeypatch):
    start, started = multiprocessing.context.ForkProcess.start, []

    def start_once(process):
        if started:
            raise OSError(11, "no more processes")
        start(process)
        started.append(process.pid)

    monkeypatch.setattr(multiprocessing.context.ForkProcess, "start", start_once)
    with pytest.raises(OSError, match="no more processes"):
        launch_processes(lambda: None)
    # It is gone, not a zombie that waits for its parent.
    assert not psutil.pid_exists(started[0])


def test_a_process_that_fails_ends_the_others():
    def work():
        if dist.get_rank() == 1:
            raise ValueError("rank 1 has had enough")
        dist.barrier()

    with pytest.raises(
        RuntimeError, match="process 1 failed: ValueError: rank 1"
    ) as caught:
        launch_processes(work)
    assert "rank 1 has had enough" in str(caught.value.__cause__)


def test_a_process_that_has_given_its_result_may_not_stay(monkeypatch):
    monkeypatch.setattr(distributed, "SECONDS_TO_END", 0.2)

    def work():
        # A process ends after its threads, and this one will not.
        threading.Thread(target=time.sleep, args=(60,)).start()
        return os.getpid()

    begun = time.monotonic()
    pids = launch_processes(work)
    assert len(set(pids)) == 2 and time.monotonic() - begun < 30
    deadline = time.monotonic() + 10
    while left := [child for child in active_children() if child.pid in pids]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_a_process_that_ends_without_a_word_ends_the_others():
    def work():
        if dist.get_rank() == 1:
            os._exit(0)
        time.sleep(60)

    ended = r"process 1 failed: EOFError: it ended without a result"
    with pytest.raises(RuntimeError, match=ended):
        launch_processes(work)


def test_a_lost_process_is_told_from_other_errors():
    # What Gloo says is tried in test_command.py, with a process that is killed.
    assert is_connection_error(dist.DistNetworkError("no answer"))
    assert not is_connection_error(RuntimeError("sizes of tensors must match"))


def test_an_unknown_device_is_refused():
    with (
        pytest.raises(
            ValueError, match=r"device is 'tpu': expected device in \('cpu', 'cuda'\)"
        ),
        init_distributed("tpu"),
    ):
        pass


GREETING = b"[Gloo] Rank 0 is connected to 1 peer ranks.\n"  # PyTorch 2.9 does


def test_what_gloo_says_while_it_connects_is_dropped_and_nothing_else(capfd, monkeypatch):
    connect = dist.init_process_group

    def greet_and_connect(*args, **settings):
        os.write(1, GREETING)
        connect(*args, **settings)

    monkeypatch.setattr(dist, "init_process_group", greet_and_connect)
    launch_processes(lambda: os.write(1, b"at work\n"))
    assert capfd.readouterr().out == "at work\nat work\n"


def test_torchruns_processes_do_not_show_gloos_greeting_either(capfd, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", lambda _: os.write(1, GREETING))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with init_distributed() as dist_context:
        os.write(1, b"at work\n")
    assert dist_context == DistributedContext(0, 2)
    assert capfd.readouterr().out == "at work\n"
