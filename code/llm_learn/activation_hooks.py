"""Forward hooks that read or replace activations inside a model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from llm_learn.argument_checks import expect
from llm_learn.model.llama import Llama

Place = tuple[str, int]  # what, and in which block
Change = Callable[[Tensor], Tensor]  # (B, T, C) -> (B, T, C)


def module_at(model: Llama, place: Place) -> tuple[nn.Module, bool]:
    """The module at a place, and whether the place is the module's input. Raises ValueError if there is none."""
    kind, layer = place
    num_layers = model.config.num_layers
    expect(
        "place[0] in ('stream', 'heads', 'attention', 'neurons', 'mlp'), "
        "0 <= place[1] < num_layers + (place[0] == 'stream')",
        place=place,
        num_layers=num_layers,
    )
    if layer == num_layers:
        return model.norm, True
    block = model.blocks[layer]
    if kind == "stream":
        return block, True
    if kind == "heads":
        return block.get_submodule("attention.out"), True
    if kind == "neurons":
        return block.get_submodule("mlp.down"), True
    return block.get_submodule(kind), False


def _on_input(change: Change) -> Callable:
    return lambda _, args: (change(args[0]), *args[1:])


def _on_output(change: Change) -> Callable:
    return lambda _module, _args, output: change(output)


@contextmanager
def changed(model: Llama, changes: dict[Place, Change]) -> Iterator[None]:
    """Inside the `with` block, the result of each place's function replaces the activation there."""
    places = {place: module_at(model, place) for place in changes}
    handles = []
    try:
        for place, (module, is_input) in places.items():
            if is_input:
                handles.append(module.register_forward_pre_hook(_on_input(changes[place])))
            else:
                handles.append(module.register_forward_hook(_on_output(changes[place])))
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_with_cache(
    model: Llama, ids: Tensor, places: Sequence[Place]
) -> tuple[Tensor, dict[Place, Tensor]]:
    """Runs the model: the hidden states that its output layer receives, (B, T, C), and the activation at each place."""
    seen = {}

    def keep(place: Place) -> Change:
        return lambda x: seen.setdefault(place, x)

    with changed(model, {place: keep(place) for place in places}):
        hidden_states = model.hidden_states(ids)
    return hidden_states, {place: seen[place] for place in places}


def every_place(kind: str, model: Llama) -> list[Place]:
    """The places of one kind, in all blocks."""
    return [(kind, layer) for layer in range(model.config.num_layers)]
