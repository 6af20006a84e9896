"""The chapter on multimodal models: pictures and captions, the contrastive loss, and a GPT that sees."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

SLUG = "applications/multimodal"


def units(num_rows, seed, size=5):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num_rows, size, generator=generator), dim=1)


class TestData:
    def test_captions_say_digit_and_colour_and_nothing_else_differs(self, chapter):
        digits, colours = chapter.DIGITS, list(chapter.PAINTS)
        for w, d, c in ((0, 3, 1), (3, 9, 5), (5, 0, 0)):
            words = [chapter.WORDS[i] for i in chapter.CAPTIONS[w, d, c].tolist()]
            text = chapter.WORDINGS[w].format(d=digits[d], c=colours[c]).split()
            pads = ["<pad>"] * (chapter.LENGTH - 1 - len(text))
            assert words == ["<s>", *text, *pads]

    def test_the_new_wording_has_only_words_of_the_others(self, chapter):
        assert chapter.NEW_WORDING not in chapter.WORDINGS
        known = {word for wording in chapter.WORDINGS for word in wording.split()}
        assert set(chapter.NEW_WORDING.split()) <= known

    def test_paint_gives_the_digit_in_each_channel_of_its_colour(self, chapter):
        names = list(chapter.PAINTS)
        which, colours = torch.tensor([5, 7]), [names.index("yellow"), names.index("blue")]
        yellow, blue = chapter.paint(which, torch.tensor(colours))
        assert torch.equal(yellow[0], chapter.IMAGES[5])
        assert torch.equal(yellow[1], chapter.IMAGES[5]) and not yellow[2].any()
        assert torch.equal(blue[2], chapter.IMAGES[7]) and not blue[:2].any()

    def test_training_never_sees_the_test_or_what_is_kept(self, chapter):
        assert not set(chapter.TRAIN.tolist()) & set(chapter.TEST.tolist())
        assert len(chapter.TRAIN) + len(chapter.TEST) == len(chapter.IMAGES)
        assert (chapter.IS_NEW.sum(1) == 1).all()
        train = {tuple(x.flatten().tolist()) for x in chapter.IMAGES[chapter.TRAIN]}
        generator = torch.Generator().manual_seed(0)
        for _ in range(5):
            pictures, labels, colours = chapter.draw_pairs(
                64, generator=generator, absent=4
            )
            assert len(pictures) == len(labels) == len(colours) == 64
            assert not chapter.IS_NEW[labels, colours].any() and (labels != 4).all()
            plain = pictures.amax(1)
            assert all(tuple(x.flatten().tolist()) in train for x in plain)


class TestInfoNCE:
    @given(st.integers(2, 12), st.floats(0.1, 50), st.integers(0, 2**32 - 1))
    def test_it_is_cross_entropy_and_does_not_mind_the_order(
        self, chapter, num_pairs, scale, seed
    ):
        images, texts = units(num_pairs, seed), units(num_pairs, seed + 1)
        scale = torch.tensor(scale)
        loss = chapter.info_nce(images, texts, scale)
        z, diagonal = scale * images @ texts.T, torch.arange(num_pairs)
        expected = (F.cross_entropy(z, diagonal) + F.cross_entropy(z.T, diagonal)) / 2
        assert torch.allclose(loss, expected, atol=1e-4)
        order = torch.randperm(num_pairs, generator=torch.Generator().manual_seed(seed))
        again = chapter.info_nce(images[order], texts[order], scale)
        assert torch.allclose(loss, again, atol=1e-4)
        assert torch.allclose(loss, chapter.info_nce(texts, images, scale), atol=1e-4)

    def test_at_temperature_one_it_cannot_pass_the_floor(self, chapter):
        pair = torch.tensor([[1.0], [-1.0]])
        best = chapter.info_nce(pair, pair, torch.tensor(1.0)).item()
        assert best == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)

    def test_pairs_that_come_twice_cost_a_logarithm(self, chapter):
        twice = torch.eye(4).repeat(3, 1)
        loss = chapter.info_nce(twice, twice, torch.tensor(100.0)).item()
        assert loss == pytest.approx(math.log(3), abs=1e-5)


class TestSeeingGPT:
    @given(split=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
    def test_a_picture_of_words_is_read_as_words(self, chapter, split, seed):
        torch.manual_seed(seed)
        gpt = chapter.new_gpt(num_layers=2)
        ids = torch.randint(len(chapter.WORDS), (3, split + 4))
        with torch.no_grad():
            parts = gpt(ids[:, split:], gpt.token_embedding(ids[:, :split]))
            assert torch.allclose(parts, gpt(ids)[:, split:], atol=1e-5)

    def test_sentences_end_at_their_last_word(self, chapter):
        encoder = chapter.TextEncoder()
        with torch.no_grad():
            padded = encoder(chapter.CAPTIONS[0, 2, :3])
            short = encoder(chapter.CAPTIONS[0, 2, :3, :5])
        assert torch.allclose(padded, short, atol=1e-6)
        with torch.no_grad():
            at_last = encoder.out(
                encoder.gpt.hidden_states(chapter.CAPTIONS[0, 2, :3, :5])[:, -1]
            )
        assert torch.allclose(short, F.normalize(at_last, dim=-1), atol=1e-6)
        assert torch.allclose(padded.norm(dim=1), torch.ones(3))

    def test_four_tokens_and_a_vector_of_length_one(self, chapter):
        encoder, pictures = chapter.ImageEncoder(), torch.rand(3, 3, 8, 8)
        assert encoder.tokens(pictures).shape == (3, 4, 64)
        assert torch.allclose(encoder(pictures).norm(dim=1), torch.ones(3))
        # The last cell of the grid does not see the first pixel.
        changed = pictures.clone()
        changed[:, :, 0, 0] += 1
        with torch.no_grad():
            moved = (encoder.tokens(pictures) - encoder.tokens(changed)).abs().amax((0, 2))
        assert moved[0] > 0 and moved[3] == 0


class TestCaptions:
    def test_places_tell_the_caption_or_another(self, chapter):
        for informs in (True, False):
            generator = torch.Generator().manual_seed(1)
            places, captions = chapter.draw_text(200, informs, generator=generator)
            pad, zero = chapter.INDEX["<pad>"], chapter.INDEX["zero"]
            assert places.shape == (200, 4) and ((places != pad).sum(1) == 2).all()
            told = [{i for i in row if i >= zero} for row in places.tolist()]
            said = [{i for i in row if i >= zero} for row in captions.tolist()]
            agree = sum(a == b for a, b in zip(told, said, strict=True)) / 200
            assert agree == 1 if informs else agree < 0.1

    def test_padding_does_not_count(self, chapter):
        torch.manual_seed(0)
        gpt, captions = chapter.new_gpt(num_layers=1), chapter.CAPTIONS[0, :2, 0]
        with torch.no_grad():
            loss = chapter.caption_loss(gpt, captions, None)
            logits = gpt(captions[:, :4])
            expected = F.cross_entropy(logits.flatten(0, 1), captions[:, 1:5].flatten())
        assert torch.allclose(loss, expected, atol=1e-6)

    @pytest.mark.parametrize("frozen", [True, False])
    def test_what_is_frozen_stays(self, chapter, frozen):
        torch.manual_seed(0)
        gpt = chapter.new_gpt(num_layers=1)
        captioner = chapter.Captioner(chapter.ImageEncoder(), torch.nn.Linear(64, 48), gpt)
        before = {k: v.clone() for k, v in captioner.state_dict().items()}
        captioner.learn(0, frozen=frozen, max_steps=30)
        after = captioner.state_dict()
        same = {k: torch.equal(before[k], after[k]) for k in before}
        assert all(same[k] for k in same if k.startswith("image_encoder"))
        assert not same["projector.weight"]
        assert all(v == frozen for k, v in same.items() if k.startswith("gpt."))
        assert torch.equal(gpt.token_embedding.weight, before["gpt.token_embedding.weight"])

    def test_the_blind_see_nothing(self, chapter, monkeypatch):
        torch.manual_seed(0)
        captioner = chapter.Captioner(
            chapter.ImageEncoder(), torch.nn.Linear(64, 48), chapter.new_gpt(num_layers=1)
        )
        projector = captioner.projector.weight.clone()
        captioner.learn(0, blind=True, max_steps=30)
        assert torch.equal(captioner.projector.weight, projector)

    def test_what_is_said_is_the_first_of_each_kind(self, chapter):
        digits, colours = chapter.said(["a red two", "in in the", "nine is two , white"])
        assert digits.tolist() == [2, -1, 9] and colours.tolist() == [0, -1, 5]


class TestLearning:
    def test_a_few_steps_bring_pairs_together(self, chapter):
        torch.manual_seed(0)
        clip, start = chapter.Clip(), math.log(64)
        assert clip.learn(0, max_steps=40) < 0.75 * start
        assert clip.log_scale.item() != pytest.approx(math.log(1 / 0.07), abs=1e-6)

    def test_a_temperature_that_is_fixed_stays(self, chapter):
        clip = chapter.Clip(scale=2.0)
        _ = clip.learn(0, fixed_scale=True, max_steps=21)
        assert clip.log_scale.item() == pytest.approx(math.log(2.0))
