"""The chapter on sparse autoencoders: planted features, and what counts as found."""

import pytest
import torch
from torch.nn import functional as F

SLUG = "inside/sparse-autoencoders"

pytestmark = pytest.mark.usefixtures("no_gradients")


class TestFeatures:
    def test_few_activations_and_directions_of_length_one(self, chapter):
        torch.manual_seed(0)
        coder = chapter.SparseAutoencoder(6, 20, 3)
        coder.directions.data.mul_(5.0)
        activations = coder.encode(torch.randn(40, 6))
        assert ((activations > 0).sum(1) <= 3).all() and (activations >= 0).all()
        everything = (torch.zeros(40, 20)).scatter(1, activations.topk(3)[1], 1.0)
        assert ((activations > 0) <= (everything > 0)).all()
        one = coder.decode(torch.eye(20))
        assert torch.allclose(one.norm(dim=1), torch.ones(20))
        dense = chapter.SparseAutoencoder(6, 20, 20)
        dense.load_state_dict(coder.state_dict())
        x = torch.randn(10, 6)
        sparse, full = coder.encode(x), dense.encode(x)
        assert torch.equal(sparse, full * (full >= full.topk(3)[0][:, -1:]))

    def test_vectors_are_sums_of_as_many_features_as_asked(self, chapter):
        features, active, x = chapter.plant_features(2, seed=0, num_vectors=4000)
        assert features.shape == (60, 20) and x.shape == (4000, 20)
        assert torch.allclose(features.norm(dim=1), torch.ones(60))
        assert torch.equal(active.any(1), (x != 0).any(1))
        nothing = (x == 0).all(1).float().mean().item()
        assert abs(nothing - (1 - 2 / 60) ** 60) < 0.02
        # Features are nearly at right angles on average: lengths add up, with E[u²] = 13 / 12.
        assert abs(x.square().sum(1).mean().item() / (2 * 13 / 12) - 1) < 0.25

    def test_recovered_counts_each_direction_once(self, chapter):
        features = F.normalize(
            torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=1
        )
        assert chapter.recovered(3 * features[torch.randperm(5)], features) == 1
        assert chapter.recovered(-features, features) == 0
        assert chapter.recovered(features[:1].expand(5, 8), features) == pytest.approx(0.2)

    def test_the_autoencoder_does_not_begin_with_what_it_shall_find(self, chapter):
        for seed in range(3):
            features, *_ = chapter.plant_features(2, seed)
            start = chapter.new_autoencoder(2, seed).directions.detach()
            assert chapter.recovered(start, features) < 0.1

    def test_one_that_begins_with_orthogonal_truth_calls_active_what_is(self, chapter):
        torch.manual_seed(0)
        coder, one = chapter.SparseAutoencoder(4, 6, 2).requires_grad_(False), torch.eye(4)
        coder.directions.data[:4], coder.encoder.data[:, :4] = one, one
        coder.directions.data[4:] *= 1e-3
        coder.encoder.data[:, 4:] = 0
        active = torch.tensor([[True, True, False, False], [False, False, True, False]])
        assert chapter.active_found(coder, one, active, active.float()) == 1
        assert chapter.active_found(coder, one, ~active, active.float()) == 0
        three = torch.tensor([[True, True, True, False]])
        found = chapter.active_found(coder, one, three, three.float())
        assert found == pytest.approx(2 / 3)

    def test_training_explains_more(self, chapter):
        *_, x = chapter.plant_features(2, 0)
        coder = chapter.new_autoencoder(2, 0)
        with torch.no_grad():
            before = chapter.unexplained(coder, x)
        chapter.fit(coder, x, max_steps=30)
        assert chapter.unexplained(coder, x) < 0.8 * before

    def test_what_is_rebuilt_whole_is_explained(self, chapter):
        torch.manual_seed(0)
        coder = chapter.SparseAutoencoder(4, 8, 8)
        one = torch.eye(4)
        coder.directions.data.copy_(torch.cat([one, -one]))
        coder.encoder.data.copy_(torch.cat([one, -one]).T)
        x = torch.randn(30, 4)
        assert chapter.unexplained(coder, x) < 1e-10
        coder.encoder.data.zero_()
        assert chapter.unexplained(coder, x) == 1
