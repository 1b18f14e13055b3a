import random

import pytest
import torch
import torch.nn.functional as F
from conftest import pool_of

from data_selection.activeft.initialisation import farthest_points, random_samples
from data_selection.activeft.pool import Candidates


def materialised_farthest_points(features: torch.Tensor, k: int, seed: int, distance: str) -> list[int]:
    """Farthest point sampling with every difference materialised."""
    chosen = random.Random(seed).sample(range(len(features)), 1)
    to_chosen = torch.full((len(features),), torch.inf, dtype=features.dtype)
    while len(chosen) < k:
        newest = features[chosen[-1]]
        to_newest = (features - newest).norm(dim=1) if distance == "euclidean" else 1 - (features * newest).sum(dim=1)
        to_chosen = torch.minimum(to_chosen, to_newest)
        to_chosen[chosen] = -torch.inf
        chosen.append(int(to_chosen.argmax()))
    return chosen


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_farthest_points_equal_those_of_materialised_differences(distance):
    features = F.normalize(torch.randn(400, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = materialised_farthest_points(features.double(), 60, seed=3, distance=distance)
    assert farthest_points(pool_of(features), 60, seed=3, distance=distance) == expected


def test_farthest_points_are_distinct_among_duplicates():
    features = F.normalize(torch.ones(20, 4), dim=1)
    assert sorted(farthest_points(pool_of(features), 20, seed=0)) == list(range(20))


def test_random_samples_are_those_of_the_standard_generator_in_its_order():
    random.seed(5)
    assert random_samples(Candidates(1000), 30, seed=5) == random.sample(range(1000), 30)
