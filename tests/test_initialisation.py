import random

import pytest
import torch
import torch.nn.functional as F

from data_selection.activeft.initialisation import farthest_points, random_samples
from data_selection.activeft.reference import dense_farthest_points


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_farthest_points_equal_those_of_materialised_differences(distance):
    features = F.normalize(torch.randn(400, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = dense_farthest_points(features.double(), 60, seed=3, distance=distance)
    assert farthest_points(features, 60, seed=3, distance=distance) == expected


def test_farthest_points_are_distinct_among_duplicates():
    features = F.normalize(torch.ones(20, 4), dim=1)
    assert sorted(farthest_points(features, 20, seed=0)) == list(range(20))


def test_random_samples_are_those_of_the_standard_generator_in_its_order():
    random.seed(5)
    assert random_samples(1000, 30, seed=5) == random.sample(range(1000), 30)
