"""The chapter on interpretability: patching, attributions, and the model that was written by hand."""

import pytest
import torch

SLUG = "inside/interpretability"

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama()


@pytest.fixture(scope="module")
def planted(chapter):
    return chapter.planted_model(torch.Generator().manual_seed(3))


class TestPatching:
    def test_means_are_over_texts_and_positions(self, chapter, model, two_texts):
        _, seen = chapter.run_with_cache(model, two_texts[0], [("heads", 0)])
        mean = chapter.mean_heads(model, two_texts[0])["heads", 0]
        assert torch.allclose(mean, seen["heads", 0].flatten(0, 1).mean(0), atol=1e-6)


class TestAttribution:
    def metric(self, model):
        return lambda hidden_states: model.logits(hidden_states[:, -1])[:, 5]

    def test_shares_add_up_to_what_patching_the_place_does(self, chapter, model, two_texts):
        place, metric = ("attention", 1), self.metric(model)
        (_, start), (_, end) = (
            chapter.run_with_cache(model, t, [place]) for t in two_texts
        )
        shares = chapter.integrated_gradients(
            model, two_texts[0], metric, place, start[place], end[place], 200
        )
        with chapter.changed(model, {place: lambda _: end[place]}):
            patched = metric(model.hidden_states(two_texts[0]))
        whole = patched - metric(model.hidden_states(two_texts[0]))
        assert torch.allclose(
            shares.sum((1, 2)), whole, atol=0.02 * whole.abs().max().item()
        )

    def test_steps_are_taken_in_their_middles(self, chapter, model, two_texts):
        place, metric = ("stream", 2), lambda hidden_states: hidden_states[:, -1, 0] ** 3
        (_, start), (_, end) = (
            chapter.run_with_cache(model, t, [place]) for t in two_texts
        )
        shares = chapter.integrated_gradients(
            model, two_texts[0], metric, place, start[place], end[place], 2
        )
        far = end[place] - start[place]
        slopes = [
            chapter.activation_gradients(
                model, two_texts[0], metric, [place], {place: start[place] + part * far}
            )[place]
            for part in (0.25, 0.75)
        ]
        assert torch.allclose(
            shares, far * (slopes[0] + slopes[1]) / 2, rtol=1e-4, atol=1e-6
        )


class TestPlanted:
    def test_says_what_followed_or_that_nothing_came_back(self, chapter, planted):
        model, _ = planted
        case = chapter.draw_case(64, generator=torch.Generator().manual_seed(0))
        assert case.right(model, case.ids) == 1
        assert (model(case.corrupted)[:, -1].argmax(-1) == chapter.NOTHING_CAME_BACK).all()

    def test_cases_are_what_they_say(self, chapter):
        case = chapter.draw_case(200, generator=torch.Generator().manual_seed(0))
        assert (case.ids > 0).all()
        assert (case.corrupted > 0).all()  # 0 means that nothing came back
        for ids, bad, place in zip(case.ids, case.corrupted, case.place, strict=True):
            assert len(set(ids[:-1].tolist())) == 24
            assert ids[-1] == ids[place]
            assert ids[place + 1] == case.at(case.place + 1)[(case.ids == ids).all(1)][0]
            assert len(set(bad.tolist())) == 25
            assert (ids != bad).nonzero().flatten().tolist() == [place]

    def test_each_instrument_errs_where_it_must(self, chapter, planted):
        model, truth = planted
        generator = torch.Generator().manual_seed(1)
        answers = chapter.six_questions(
            model,
            chapter.draw_case(24, generator=generator),
            chapter.draw_case(96, generator=generator),
        )
        heads = {role: head for head, role in truth.items() if role != "idle"}
        for role, head in heads.items():
            said = {question: x[head].item() for question, x in answers.items()}
            assert said["looks"] > 0.9
            assert said["readable"] > 0.8
            unread = role.endswith("unread")
            is_half = role.startswith("induction") and not unread
            is_spare = role.startswith("looks") and not unread
            assert said["removed"] == pytest.approx(float(is_half), abs=0.1)
            assert said["patched"] == pytest.approx(float(is_spare), abs=0.1)
            assert (said["gradient"] > 0.25) == (said["integrated"] > 0.25) == (not unread)

    def test_both_spares_and_both_halves(self, chapter, planted):
        model, truth = planted
        generator = torch.Generator().manual_seed(2)
        case, other = (
            chapter.draw_case(24, generator=generator),
            chapter.draw_case(64, generator=generator),
        )

        def pair(kind: str) -> list[tuple[int, int]]:
            return [
                head
                for head, role in truth.items()
                if role in (f"{kind}, one", f"{kind}, other")
            ]

        means = chapter.mean_heads(model, other.ids)
        assert chapter.lost_without(model, case, pair("looks back"), means) > 0.9
        _, clean = chapter.run_with_cache(
            model, case.ids, chapter.every_place("heads", model)
        )
        assert chapter.brought_back(model, case, pair("induction"), clean) == 1


class TestPeriodic:
    def test_targets_follow_from_one_period_before(self, chapter):
        ids, targets, period = chapter.periodic(
            100, generator=torch.Generator().manual_seed(0)
        )
        assert ids.shape == targets.shape == (100, chapter.CONTEXT)
        assert {8, 16} <= set(period.flatten().tolist()) <= {*range(8, 17)}
        for row, aim, p in zip(ids, targets, period[:, 0].tolist(), strict=True):
            assert len(set(row[:p].tolist())) == p
            assert torch.equal(row[p:], row[:-p])
            assert (aim[:p] == chapter.IGNORE_INDEX).all()
            assert torch.equal(aim[p:-1], row[p + 1 :])
            assert aim[-1] == row[chapter.CONTEXT % p]

    def test_the_planted_model_scores_as_one_that_copies(self, chapter, planted):
        test = chapter.periodic(32, generator=torch.Generator().manual_seed(0))
        right, score = chapter.copying(planted[0], *test)
        # The first token has none before it, and names itself: where it comes back, the answer is torn.
        assert 0.85 < right < 1
        assert score > 0.8

    def test_uniform_attention_scores_low(self, chapter):
        model = chapter.attention_only(num_layers=1, num_heads=2, d_model=16)
        for parameter in model.parameters():
            parameter.zero_()
        right, score = chapter.copying(
            model, *chapter.periodic(32, generator=torch.Generator())
        )
        assert right < 0.2
        assert score < 0.1


def test_a_fitted_probe_with_a_hidden_layer_reads_what_is_not_linear(chapter):
    generator = torch.Generator().manual_seed(0)
    words, new = (torch.randint(16, (400,), generator=generator) for _ in range(2))
    (x, labels), (new_x, new_labels) = (
        (torch.stack([w % 2, w // 2 % 2], 1).float(), w % 2 ^ w // 2 % 2)
        for w in (words, new)
    )
    probe = chapter.fitted_probe(x, labels == 1, 16, 0)
    assert (probe(new_x) == (new_labels == 1)).float().mean() > 0.95
