"""Saves and loads checkpoints atomically, with all the state that a run needs to resume."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm_learn.atomic_files import new_folder


class UnreadableCheckpoint(ValueError):
    """A folder that holds no complete checkpoint."""


def save_checkpoint(
    folder: str | Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: dict,
) -> None:
    """Writes a new folder atomically: after an error, or the end of the process, none of that name exists.

    Args:
        folder: must not exist.
        model: its weights.
        optimizers: their states and settings.
        progress: everything else that decides what comes next, such as the step, the state of the loader and that of
            a random generator: tensors, and what JSON can hold; no key has a slash.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"folder is {str(folder)!r}: it exists already")
    tensors: dict[str, Tensor] = {}
    states = [optimizer.state_dict() for optimizer in optimizers]
    for state in states:  # JSON does not allow numbers as keys
        state["state"] = {str(number): entry for number, entry in state["state"].items()}
    whole = {"model": model.state_dict(), "optimizers": states, "progress": progress}
    text = json.dumps(_take_out(whole, "", tensors), indent=1) + "\n"
    with new_folder(folder) as temporary:
        try:
            save_file(tensors, temporary / "tensors.safetensors")
        except SafetensorError as error:
            raise OSError(f"{folder} could not be written: {error}") from error
        (temporary / "state.json").write_text(text, encoding="utf-8")


def load_checkpoint(
    folder: str | Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
) -> dict:
    """Puts the model and its optimizers into the state that was saved, and returns the progress.

    Raises:
        UnreadableCheckpoint: the folder holds no checkpoint, or a damaged one.
        ValueError: it holds a checkpoint of another model or of other optimizers.
    """
    folder = Path(folder)
    try:
        tensors = load_file(folder / "tensors.safetensors")
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        state = _put_back(state, "", tensors)
        weights, saved, progress = state["model"], state["optimizers"], state["progress"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UnreadableCheckpoint(
            f"folder is {str(folder)!r}: it holds no checkpoint ({error})"
        ) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found != shapes:
        name = next(n for n in {**shapes, **found} if shapes.get(n) != found.get(n))
        raise ValueError(
            f"folder is {str(folder)!r}: it holds another model, in which {name} has shape {found.get(name)}, "
            f"not {shapes.get(name)}"
        )
    groups = [_groups(optimizer.state_dict()) for optimizer in optimizers]
    if [_groups(entry) for entry in saved] != groups:
        raise ValueError(
            f"folder is {str(folder)!r}: its optimizers hold {list(map(_groups, saved))}, not {groups}"
        )
    for optimizer, entry in zip(optimizers, saved, strict=True):
        entry["state"] = {int(number): entry["state"][number] for number in entry["state"]}
        optimizer.load_state_dict(entry)
    model.load_state_dict(weights)
    return progress


def _groups(state: dict) -> list[tuple[int, list[str]]]:
    """How many parameters each group of an optimizer holds, and which settings."""
    added_later = {"params", "initial_lr"}
    return [
        (len(group["params"]), sorted(group.keys() - added_later))
        for group in state["param_groups"]
    ]


def _take_out(value, name: str, tensors: dict[str, Tensor]):
    """The value with None instead of every tensor; `tensors` receives each tensor under its path."""
    if isinstance(value, Tensor):
        tensors[name] = value.contiguous()
        return None
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or "/" in key:
                raise ValueError(
                    f"progress has the key {key!r}: keys are strings without a slash"
                )
        return {k: _take_out(v, f"{name}/{k}", tensors) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_take_out(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]
    return value


def _put_back(value, name: str, tensors: dict[str, Tensor]):
    """The value that `_take_out` was given, with lists instead of tuples."""
    if name in tensors:
        return tensors[name].clone()  # the file may be removed
    if isinstance(value, dict):
        return {k: _put_back(v, f"{name}/{k}", tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [_put_back(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]
    return value
