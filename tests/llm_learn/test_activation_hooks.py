"""Hooks: they show what passes a place, change it, and leave nothing behind."""

import pytest
import torch

from llm_learn.activation_hooks import changed, every_place, run_with_cache

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama()


def all_places(model) -> list[tuple[str, int]]:
    kinds = ("stream", "heads", "attention", "neurons", "mlp")
    return [place for kind in kinds for place in every_place(kind, model)] + [("stream", 2)]


class TestPlaces:
    @pytest.mark.parametrize(
        "place", [("stream", 3), ("heads", 2), ("mlp", -1), ("out", 0)]
    )
    def test_that_are_none_are_refused_and_no_hook_stays(self, model, two_texts, place):
        before = model(two_texts[0])
        doubled = {("mlp", 0): lambda x: 2 * x, place: lambda x: x}
        with pytest.raises(ValueError, match="place is"), changed(model, doubled):
            pass
        assert torch.equal(model(two_texts[0]), before)

    def test_hooks_go_even_after_an_error(self, model, two_texts):
        before = model(two_texts[0])
        with (
            pytest.raises(RuntimeError),
            changed(model, {("mlp", 0): lambda x: 2 * x}),
        ):
            assert not torch.equal(model(two_texts[0]), before)
            raise RuntimeError
        assert torch.equal(model(two_texts[0]), before)

    def test_watching_leaves_no_trace(self, model, two_texts):
        hidden_states, seen = run_with_cache(model, two_texts[0], all_places(model))
        assert torch.equal(hidden_states, model.hidden_states(two_texts[0]))
        assert list(seen) == all_places(model)

    def test_the_stream_is_the_sum_of_what_is_added(self, model, two_texts):
        _, seen = run_with_cache(model, two_texts[0], all_places(model))
        for layer in (0, 1):
            added = seen["attention", layer] + seen["mlp", layer]
            expected = seen["stream", layer] + added
            assert torch.allclose(seen["stream", layer + 1], expected, atol=1e-5)
            mixed = model.blocks[layer].attention.out(seen["heads", layer])
            assert torch.allclose(mixed, seen["attention", layer], atol=1e-5)
            down = model.blocks[layer].mlp.down(seen["neurons", layer])
            assert torch.allclose(down, seen["mlp", layer], atol=1e-5)

    @pytest.mark.parametrize("layer", [0, 1, 2])
    def test_the_whole_stream_of_another_run_gives_that_run(self, model, two_texts, layer):
        place = ("stream", layer)
        hidden_states, seen = run_with_cache(model, two_texts[0], [place])
        with changed(model, {place: lambda _: seen[place]}):
            assert torch.equal(model.hidden_states(two_texts[1]), hidden_states)
