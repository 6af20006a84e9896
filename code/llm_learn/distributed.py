"""Distributed training: processes of torchrun or of this machine, means over them, and sharded weights."""

import multiprocessing
import os
import pickle
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from llm_learn.argument_checks import expect

SECONDS_TO_END = 10  # for a process that has given its result


@dataclass(frozen=True)
class DistributedContext:
    """This process among those of a run; it may be the only one."""

    rank: int = 0  # from 0
    world_size: int = 1  # processes
    device: str = "cpu"  # this process's own

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    def mean(self, values: Sequence[float]) -> list[float]:
        """The means over all processes; each process must call this."""
        if self.world_size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(numbers)
        return (numbers / self.world_size).tolist()

    def run_on_main(self, work: Callable[[], object]) -> Any:
        """Calls `work()` on the first process; all processes return its result, or raise its exception."""
        if self.world_size == 1:
            return work()
        result = error = None
        if self.is_main_process:
            try:
                result = work()
            except Exception as raised:
                error = _portable(raised)
        outcome: list[Any] = [result, error]
        dist.broadcast_object_list(outcome, src=0, device=torch.device(self.device))
        result, error = outcome
        if error is not None:
            raise error
        return result


def _portable(error: Exception) -> Exception:
    """The exception, or a RuntimeError with its message if other processes cannot rebuild it."""
    try:
        _ = pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """Drops what is written to stdout, even by C++: with PyTorch 2.9, each process prints a greeting there."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def init_distributed(device: str = "cpu") -> Iterator[DistributedContext]:
    """Joins the processes that torchrun has started, or runs as a single process.

    Args:
        device: "cpu", or "cuda" for a GPU of its own in each process.
    """
    expect("device in ('cpu', 'cuda')", device=device)
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("device is 'cuda': PyTorch finds no GPU here")
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield DistributedContext(device=device)
        return
    with _silent_stdout():
        dist.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        yield DistributedContext(dist.get_rank(), world_size, device)
    finally:
        dist.destroy_process_group()


def is_connection_error(error: RuntimeError) -> bool:
    """Whether the error says that another process cannot be reached."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def apply_fsdp(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Shards the weights of a model, and its optimizer's state, over all processes, by PyTorch's FSDP2.

    Args:
        model: the same in every process; its `blocks` are gathered one at a time.
        optimizer: of all its parameters, with or without a state.
    """
    whole = list(model.parameters())
    # Without a mesh, PyTorch takes the accelerator that it finds, even if the model is on the CPU.
    mesh = init_device_mesh(whole[0].device.type, (dist.get_world_size(),))
    for block in model.get_submodule("blocks").children():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    shards: dict[Tensor, Any] = dict(zip(whole, model.parameters(), strict=True))
    for group in optimizer.param_groups:
        group["params"] = [shards[p] for p in group["params"]]
    state: defaultdict[Tensor, dict] = defaultdict(dict)
    for p, entry in optimizer.state.items():
        mesh, placements = shards[p].device_mesh, shards[p].placements
        state[shards[p]] = {
            name: distribute_tensor(value, mesh, placements)
            if isinstance(value, Tensor)
            else value
            for name, value in entry.items()
        }
    optimizer.state = state


class FullStateDict:
    """The state of a model or an optimizer with full tensors; all processes must create it at the same time."""

    def __init__(self, part: nn.Module | torch.optim.Optimizer):
        self.whole = _gather(part.state_dict())

    def state_dict(self) -> dict:
        return self.whole


def _gather(value):
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: _gather(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_gather(entry) for entry in value]
    return value


def launch_processes(work: Callable[[], object], world_size: int = 2) -> list:
    """Runs `work()` in several new processes that can reach each other by `torch.distributed`, on one machine.

    Returns:
        The result of each process, by rank.

    Raises:
        RuntimeError: one of them failed; the others are ended.
    """

    def run(rank: int, folder: str, answer: Connection) -> None:
        address = f"file://{folder}/store"
        # By loopback, whatever the name of this machine may resolve to.
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        try:
            with _silent_stdout():
                dist.init_process_group(
                    "gloo", init_method=address, rank=rank, world_size=world_size
                )
            answer.send(work())
            # The others may still be connecting: one that leaves early would break their connection.
            dist.barrier()
            dist.destroy_process_group()
        except Exception as error:
            answer.send(error)

    # Each starts as a copy of this process; Windows cannot do that.
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe(duplex=False) for _ in range(world_size)]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            fork.Process(target=run, args=(rank, folder, answer))
            for rank, (_, answer) in enumerate(pipes)
        ]
        try:
            for process in processes:
                process.start()
            while waiting := [rank for rank in range(world_size) if rank not in found]:
                answers = [pipes[rank][0] for rank in waiting]
                wait([*answers, *(processes[rank].sentinel for rank in waiting)])
                for rank, answer in zip(waiting, answers, strict=True):
                    ended = not processes[rank].is_alive()
                    if answer.poll():
                        found[rank] = answer.recv()
                    elif ended:
                        found[rank] = EOFError("it ended without a result")
                    if isinstance(found.get(rank), Exception):
                        error = found[rank]
                        why = f"{type(error).__name__}: {error}"
                        raise RuntimeError(f"process {rank} failed: {why}") from error
            # All results are here. With PyTorch 2.7 the end of a gloo group has been seen to wait for ever.
            for process in processes:
                process.join(SECONDS_TO_END)
        finally:
            started = [process for process in processes if process.pid is not None]
            for process in started:
                process.kill()  # after a failure, the others would wait for ever
            for process in started:
                process.join()
                process.close()
            for pipe in pipes:
                for end in pipe:
                    end.close()
    return [found[rank] for rank in range(world_size)]
